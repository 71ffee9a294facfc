"""Costs: hard-wired intrinsic terms in one immutable bank, a trainable critic, and goal terms."""

from forethought.agent.cost.critic import Critic, CriticStage, lambda_returns, train_critic
from forethought.agent.cost.intrinsic import IntrinsicCost, Weighted
from forethought.agent.cost.terms import (
    Effort,
    GoalDistance,
    GoalTerm,
    IntrinsicTerm,
    Jointly,
    KeepOut,
    Posture,
    Shortfall,
    Speed,
    Tolerance,
)

__all__ = [
    "Critic",
    "CriticStage",
    "Effort",
    "GoalDistance",
    "GoalTerm",
    "IntrinsicCost",
    "IntrinsicTerm",
    "Jointly",
    "KeepOut",
    "Posture",
    "Shortfall",
    "Speed",
    "Tolerance",
    "Weighted",
    "lambda_returns",
    "train_critic",
]
