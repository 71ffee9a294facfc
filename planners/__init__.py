"""Planning as energy minimisation (Mode-2): a planner takes a `Problem` and returns a `Plan`.

The folder imports nothing else of the project and never sees a network.
"""

from forethought.planners.cem import CEM
from forethought.planners.deadline import Clock, Deadline
from forethought.planners.gauss_newton import GaussNewton
from forethought.planners.gradient import Gradient
from forethought.planners.icem import ICEM
from forethought.planners.incumbent import Incumbent
from forethought.planners.lifted import Lifted
from forethought.planners.mppi import MPPI
from forethought.planners.polish import Polish
from forethought.planners.predictive import PredictiveSampling
from forethought.planners.problem import Context, Plan, Planner, Problem, Reduction, Status
from forethought.planners.proposals import project, safe_actions, shift, smooth_noise, starts
from forethought.planners.rollout import evaluate, losing
from forethought.planners.shooting import RandomShooting
from forethought.planners.smoothed import Smoothed
from forethought.planners.state import State, expand, flatten, select, unflatten

__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "Clock",
    "Context",
    "Deadline",
    "GaussNewton",
    "Gradient",
    "Incumbent",
    "Lifted",
    "Plan",
    "Planner",
    "Polish",
    "PredictiveSampling",
    "Problem",
    "RandomShooting",
    "Reduction",
    "Smoothed",
    "State",
    "Status",
    "evaluate",
    "expand",
    "flatten",
    "losing",
    "project",
    "safe_actions",
    "select",
    "shift",
    "smooth_noise",
    "starts",
    "unflatten",
]
