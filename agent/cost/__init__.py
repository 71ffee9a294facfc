"""Costs: hard-wired intrinsic terms in one immutable bank, and argument-taking goal terms."""

from forethought.agent.cost.intrinsic import IntrinsicCost, Weighted
from forethought.agent.cost.terms import CostTerm, Effort, GoalDistance

__all__ = ["CostTerm", "Effort", "GoalDistance", "IntrinsicCost", "Weighted"]
