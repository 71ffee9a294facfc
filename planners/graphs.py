"""A search as one CUDA graph: recorded once, then replayed for every decision.

A small model leaves a GPU idle: launching its kernels takes longer than running them. A graph
launches all kernels of a search at once, from the same addresses each time. So what changes between
decisions (start state, context, proposals) is copied into buffers, and everything else is fixed
when the search is recorded: the problem's functions, bounds, horizon and discount, the planner, the
number of problems and of proposals. On other devices nothing is recorded and the same search runs
as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from forethought.planners.cem import CEM
from forethought.planners.gradient import Gradient
from forethought.planners.incumbent import Incumbent
from forethought.planners.problem import Context, Plan, Problem
from forethought.planners.proposals import checked, starts
from forethought.planners.state import State, apply, leaves

__all__ = ["GraphedSearch", "Recorded"]

Result = TypeVar("Result")


class Recorded(Generic[Result]):
    """A function recorded on a GPU and replayed by each call; elsewhere called as it is.

    The function must not wait for the GPU, look at its numbers from Python, nor make tensors out of
    Python's lists: it runs a few times when it is recorded, and never again.

    Args:
        function: reads `inputs`. What it returns lies in the same place after each replay, to be
            copied by whoever keeps it.
        inputs: a tensor or a nested mapping of tensors, all on one device; every call overwrites
            them, so they must be nobody else's.
        generators: sources of randomness that the function draws from, on that device. Each
            replay draws new numbers from them.
        rehearsals: calls before the recording, so that libraries and compilers have set up what
            they need.

    Raises:
        ValueError: no tensor, tensors or generators on another device, or no rehearsal.
    """

    def __init__(
        self,
        function: Callable[[], Result],
        inputs: State,
        *,
        generators: Sequence[torch.Generator] = (),
        rehearsals: int = 3,
    ) -> None:
        devices = {leaf.device for leaf in leaves(inputs)}
        if len(devices) != 1:
            raise ValueError(
                f"inputs is on {sorted(map(str, devices)) or 'no device'}: choose tensors on one"
            )
        (device,) = devices
        _check_generators(generators, device)
        if rehearsals < 1:
            raise ValueError(f"rehearsals is {rehearsals}: choose at least 1")
        self._function, self._inputs = function, inputs
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Result | None = None
        if device.type == "cuda":
            # The second: constants are made on the GPU, as copies from the host cannot be recorded.
            with torch.cuda.device(device), torch.device(device):
                self._record(generators, rehearsals)

    def _record(self, generators: Sequence[torch.Generator], rehearsals: int) -> None:
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(rehearsals):
                self._function()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph):
            self._result = self._function()
        self._graph = graph

    @property
    def recorded(self) -> bool:
        """Whether there is a graph: on a GPU."""
        return self._graph is not None

    def __call__(self, inputs: State) -> Result:
        """What the function returns with `inputs`, nested, shaped and typed like the first ones.

        Raises:
            ValueError: they are not.
        """
        apply(_check_like, self._inputs, inputs)
        apply(lambda buffer, new: buffer.copy_(new.detach()), self._inputs, inputs)
        if self._graph is None:
            return self._function()
        self._graph.replay()
        return cast(Result, self._result)


class GraphedSearch:
    """A planner's search on problems of one shape, as a CUDA graph.

    `Planner.plan` without a deadline: a graph runs to its end. With the same numbers from the
    generator it finds the same plan, up to rounding.

    Args:
        planner: `CEM` or `Gradient`, without `control_points`.
        problem: B problems with continuous actions; the example of those to be planned.
        generator: source of randomness, on the problem's device. It stays the only one.
        proposals: `(B, P, H, A)`, an example of those that every decision will bring, or None.
        rehearsals: as in `Recorded`.

    Raises:
        TypeError: another planner.
        ValueError: control points, discrete actions, wrong proposals, or a generator elsewhere.
    """

    def __init__(
        self,
        planner: CEM | Gradient,
        problem: Problem,
        *,
        generator: torch.Generator,
        proposals: Tensor | None = None,
        rehearsals: int = 3,
    ) -> None:
        if not isinstance(planner, CEM | Gradient):
            raise TypeError(f"planner is {planner!r}: choose CEM or Gradient")
        if planner.control_points is not None:
            raise ValueError(
                f"control_points is {planner.control_points}: choose None, because the fit to "
                "points waits for the GPU and cannot be recorded"
            )
        if problem.actions is not None:
            raise ValueError(f"actions is {problem.actions}: choose low and high (continuous)")
        _check_generators((generator,), problem.device)
        if proposals is not None:  # the search checks them again, against the planner's room
            proposals = checked(problem, proposals, proposals.shape[1], "proposals")
        self._planner, self._generator = planner, generator
        buffers: Any = apply(torch.clone, _inputs(problem.state, problem.context, proposals))
        self._given: Tensor | None = buffers["proposals"].get("proposals")
        # Made once: making a problem looks at its bounds from Python.
        self._problem = replace(
            problem,
            state=buffers["state"],
            context=buffers["context"],
        )
        self._replay = Recorded(
            self.search, buffers, generators=(generator,), rehearsals=rehearsals
        )

    @property
    def recorded(self) -> bool:
        """Whether there is a graph: on a GPU."""
        return self._replay.recorded

    def plan(
        self, state: State, context: Context | None = None, proposals: Tensor | None = None
    ) -> Plan:
        """Plan from another state; see `Planner.plan`.

        Args:
            state: start state, nested and shaped like the example's.
            context: named tensors, shaped like the example's; None where it has none.
            proposals: `(B, P, H, A)`, shaped like the example's; None where it has none.

        Raises:
            ValueError: something is not like the example.
        """
        began = time.perf_counter()
        if (proposals is None) != (self._given is None):
            was, chosen = ("None", "None") if self._given is None else ("given", "some as at first")
            raise ValueError(f"proposals were {was} at first: choose {chosen}")
        plan = self._replay(_inputs(state, context or {}, proposals)).plan()
        return replace(
            plan,
            actions=plan.actions.clone(),
            energy=plan.energy.clone(),
            states=apply(torch.clone, plan.states),
            seconds=time.perf_counter() - began,
        )

    def search(self) -> Incumbent:
        """What is recorded: the search, without a look at its result."""
        planner, problem = self._planner, self._problem
        incumbent = Incumbent(problem, None)
        if isinstance(planner, CEM):
            given = checked(problem, self._given, planner.candidates, "candidates")
            with torch.no_grad():
                planner._search(problem, given, self._generator, incumbent)
        else:
            first = starts(problem, planner.starts, planner.knots, self._given, self._generator)
            planner._search(problem, first, incumbent)
        return incumbent


def _inputs(state: State, context: Context, proposals: Tensor | None) -> dict[str, Any]:
    given = {} if proposals is None else {"proposals": proposals}
    return {"state": state, "context": dict(context), "proposals": given}


def _check_generators(generators: Sequence[torch.Generator], device: torch.device) -> None:
    for generator in generators:
        # torch.device("cuda") and torch.device("cuda", 0) are unequal.
        here = generator.device.index in (None, device.index) or device.index is None
        if generator.device.type != device.type or not here:
            raise ValueError(
                f"generator is on {generator.device}: choose torch.Generator({str(device)!r})"
            )


def _check_like(first: Tensor, new: Tensor) -> Tensor:
    """`new`, if it has the shape and type of `first`; it would be broadcast without a word."""
    if new.shape != first.shape or new.dtype != first.dtype:
        raise ValueError(
            f"an input has the shape {tuple(new.shape)} and the type {new.dtype}: choose "
            f"{tuple(first.shape)} and {first.dtype}, as at first"
        )
    return new
