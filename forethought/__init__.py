"""forethought: world models that plan.

The rooms are sub-packages: `envs`, `worldmodel`, `planners`, `agent`. This module only holds what
ties them together; it is loaded lazily, because PyTorch takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forethought.cli import call
    from forethought.running import Trained, load

__all__ = ["Trained", "call", "load"]

_WHERE = {"Trained": "running", "call": "cli", "load": "running"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'forethought' has no attribute {name!r}")
    return getattr(import_module(f"forethought.{_WHERE[name]}"), name)
