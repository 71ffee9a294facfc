"""Costs: hard-wired intrinsic terms in one immutable bank, a trainable critic, and goal terms."""

from forethought.agent.cost.calibration import calibration, realised, reweighting, weighted
from forethought.agent.cost.critic import Critic, CriticStage, lambda_returns, train_critic
from forethought.agent.cost.demonstrations import DemonstrationStage, LearnedCost, learn_cost
from forethought.agent.cost.intrinsic import IntrinsicCost, Weighted
from forethought.agent.cost.temporal import (
    TemporalCost,
    TemporalDistance,
    TemporalStage,
    train_temporal,
)
from forethought.agent.cost.terms import (
    Aim,
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
    "Aim",
    "Critic",
    "CriticStage",
    "DemonstrationStage",
    "Effort",
    "GoalDistance",
    "GoalTerm",
    "IntrinsicCost",
    "IntrinsicTerm",
    "Jointly",
    "KeepOut",
    "LearnedCost",
    "Posture",
    "Shortfall",
    "Speed",
    "TemporalCost",
    "TemporalDistance",
    "TemporalStage",
    "Tolerance",
    "Weighted",
    "calibration",
    "lambda_returns",
    "learn_cost",
    "realised",
    "reweighting",
    "train_critic",
    "train_temporal",
    "weighted",
]
