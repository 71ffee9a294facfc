"""forethought: world models that plan.

The rooms are sub-packages: `envs`, `worldmodel`, `planners`, `agent`. This module only holds what
ties them together; it is loaded lazily, because PyTorch takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forethought.cli import call
    from forethought.running import Trained, load
    from forethought.running import Trained as Agent

__all__ = ["Agent", "Trained", "call", "load"]

# `forethought.Agent` is for whoever uses a trained run: `Agent.load(RUN).play()`. The agent inside
# of it, with its parts, is `forethought.agent.Agent`.
_WHERE = {
    "Agent": ("running", "Trained"),
    "Trained": ("running", "Trained"),
    "call": ("cli", "call"),
    "load": ("running", "load"),
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'forethought' has no attribute {name!r}")
    module, attribute = _WHERE[name]
    return getattr(import_module(f"forethought.{module}"), attribute)
