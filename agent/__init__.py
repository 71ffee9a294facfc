"""The agent: cost, configurator, actor, the perception-action step, distillation, evaluation."""

from forethought.agent.actor import Policy, problem_of
from forethought.agent.agent import Agent, AgentState
from forethought.agent.configurator import Configurator, Cost, Mode, Setting
from forethought.agent.cost import CostTerm, Effort, GoalDistance, IntrinsicCost, Weighted
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
    Controller,
    Outcome,
    PolicyController,
    run_episodes,
)

__all__ = [
    "Agent",
    "AgentController",
    "AgentState",
    "Configurator",
    "Controller",
    "Cost",
    "CostTerm",
    "Distillation",
    "Effort",
    "GoalDistance",
    "IntrinsicCost",
    "Mode",
    "Outcome",
    "Policy",
    "PolicyController",
    "Setting",
    "Timing",
    "Weighted",
    "bootstrap_mean",
    "distill",
    "held_out_seeds",
    "label",
    "problem_of",
    "run_episodes",
    "summarise",
    "time_decisions",
    "violation_rate",
    "wilson",
]
