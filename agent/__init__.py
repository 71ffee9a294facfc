"""The agent: cost, configurator, actor, the perception-action step, distillation, evaluation."""

from forethought.agent.actor import Policy, problem_of
from forethought.agent.agent import Agent, AgentState
from forethought.agent.agreement import gradient_agreement
from forethought.agent.configurator import Configurator, Cost, Mode, Setting
from forethought.agent.cost import (
    Critic,
    CriticStage,
    Effort,
    GoalDistance,
    GoalTerm,
    IntrinsicCost,
    IntrinsicTerm,
    Jointly,
    KeepOut,
    Posture,
    Shortfall,
    Speed,
    Tolerance,
    Weighted,
    lambda_returns,
    train_critic,
)
from forethought.agent.distill import Distillation, distill, label
from forethought.agent.evaluate import (
    Timing,
    bootstrap_mean,
    held_out_seeds,
    summarise,
    time_decisions,
    violation_rate,
    wilson,
)
from forethought.agent.loop import (
    AgentController,
    AgentPolicy,
    Controller,
    Outcome,
    PolicyController,
    run_episodes,
)
from forethought.agent.memory import Moments, ShortTermMemory
from forethought.agent.task import REACH, Task, TaskTerm, task_from_reward

__all__ = [
    "REACH",
    "Agent",
    "AgentController",
    "AgentPolicy",
    "AgentState",
    "Configurator",
    "Controller",
    "Cost",
    "Critic",
    "CriticStage",
    "Distillation",
    "Effort",
    "GoalDistance",
    "GoalTerm",
    "IntrinsicCost",
    "IntrinsicTerm",
    "Jointly",
    "KeepOut",
    "Mode",
    "Moments",
    "Outcome",
    "Policy",
    "PolicyController",
    "Posture",
    "Setting",
    "ShortTermMemory",
    "Shortfall",
    "Speed",
    "Task",
    "TaskTerm",
    "Timing",
    "Tolerance",
    "Weighted",
    "bootstrap_mean",
    "distill",
    "gradient_agreement",
    "held_out_seeds",
    "label",
    "lambda_returns",
    "problem_of",
    "run_episodes",
    "summarise",
    "task_from_reward",
    "time_decisions",
    "train_critic",
    "violation_rate",
    "wilson",
]
