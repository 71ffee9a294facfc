"""Planning against a clock: a moment after which a search begins no further iteration."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Clock", "Deadline"]

Clock: TypeAlias = Callable[[], float]


@dataclass(frozen=True)
class Deadline:
    """A moment on a clock.

    Args:
        at: the moment, in the clock's own seconds.
        clock: tells the time; a clock that counts iterations or a simulator's time does as well.
    """

    at: float
    clock: Clock = time.perf_counter

    def __post_init__(self) -> None:
        if math.isnan(self.at):
            raise ValueError("at is not a number; give a moment on the clock")

    @staticmethod
    def after(seconds: float, clock: Clock = time.perf_counter) -> Deadline:
        """`seconds` from now on."""
        return Deadline(clock() + seconds, clock)

    def part(self, among: int) -> Deadline:
        """The end of the first of so many equal parts of the time that is left."""
        now = self.clock()
        return Deadline(now + (self.at - now) / among, self.clock)

    def passed(self) -> bool:
        """Whether the moment has come."""
        return self.clock() >= self.at
