"""Planning with the states as variables of their own: no gradient goes through time.

After GRASP (2602.00475): actions and the states between them are moved together, so that states
become cheap and each state becomes what the model predicts from the one before. All steps of the
model are taken side by side, each from its own state, and the gradient never meets the product of
many Jacobians. It may also stop at the state that the model starts from: then it needs no
derivative of the model in states at all, which are high-dimensional and often wild.

From time to time the actions are rolled out, the states are set to what comes of it, and a few
steps of plain descent follow. Only such real roll-outs are candidates.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from forethought.planners.deadline import Deadline
from forethought.planners.descent import Descent
from forethought.planners.incumbent import Incumbent
from forethought.planners.problem import Context, Plan, Planner, Problem
from forethought.planners.proposals import project, starts
from forethought.planners.rollout import evaluate
from forethought.planners.state import (
    State,
    apply,
    expand,
    flatten,
    leaves,
    stack,
    unflatten,
)

__all__ = ["Lifted"]


@dataclass(frozen=True)
class Lifted(Planner):
    """Projected Adam on actions and lifted states, in cycles that end with real roll-outs.

    The loss of a start is, with predictions p_{t+1} = step(s_t, a_t),

        energy(states, actions) / K + residual * sum_t |s_{t+1} - p_{t+1}|^2 / D^2
            + shaping * mean_t (goal_cost(p_t) + terminal_cost(p_t)) / K

    where D is how far the roll-outs of the starts go from the start state (root mean square, for
    each tensor of the state) and K how much the energy changes over D and over half the actions'
    range, by its largest gradient there: no unit matters. With `stop` the gradient does not pass
    s_t on its way through `step`.
    A state then never moves to help the one after it, so `shaping` draws every prediction to the
    goal; it shapes the loss alone, never the energy of a candidate.

    Without `lift`, states are those of the roll-out in each iteration, and `stop` means that each
    action feels its own cost and the costs that see its direct successor, but nothing later.
    Neither, without `shaping`, is plain gradient descent.

    Lifted are all floating tensors of a state; the others are as in the last roll-out.
    A deadline in the middle of a cycle loses what it did since the last roll-out.
    Model evaluations per start: 1 + `cycles` (`iterations` + `descents` + 1), one more in each
    iteration with `stop` and without `lift`.

    Attributes:
        starts: Starting sequences per problem; proposals take the first places, the safe action
            the next, smooth noise the others.
        cycles: Times that states are lifted and rolled out again.
        iterations: Steps on lifted states per cycle.
        descents: Steps of plain descent through the roll-out at the end of a cycle.
        learning_rate: Size of a step of actions, as a fraction of half of each action's range.
        state_rate: Size of a step of states, in D per root of the number of components.
        residual: Weight of the disagreement with the model.
        shaping: Weight of goals on all predictions.
        noise: Standard deviation of what is added to lifted states after each step, in the unit
            of `state_rate`; it falls to zero over a cycle.
        lift: States are variables.
        stop: No gradient through the state that the model starts from.
        knots: Knots of the smooth random starts over the horizon; H gives white noise.
    """

    starts: int = 8
    cycles: int = 3
    iterations: int = 12
    descents: int = 4
    learning_rate: float = 0.1
    state_rate: float = 0.1
    residual: float = 10.0
    shaping: float = 0.1
    noise: float = 0.02
    lift: bool = True
    stop: bool = True
    knots: int = 4

    def __post_init__(self) -> None:
        for name in ("starts", "cycles", "iterations", "knots"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; give at least 1")
        if self.descents < 0:
            raise ValueError(f"descents = {self.descents}; give 0 or more")
        for name in ("learning_rate", "state_rate", "residual"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)}; give a finite one above 0")
        for name in ("shaping", "noise"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} = {getattr(self, name)}; give a finite one, 0 or more")

    @property
    def room(self) -> int:
        """Most proposals that `plan` takes."""
        return self.starts

    @torch.no_grad()
    def plan(
        self,
        problem: Problem,
        *,
        proposals: Tensor | None = None,
        generator: torch.Generator,
        deadline: Deadline | None = None,
    ) -> Plan:
        """Plan each problem; see `Planner.plan`."""
        _ = problem.bounds  # refuses discrete actions
        incumbent = Incumbent(problem, deadline)
        actions = starts(problem, self.starts, self.knots, proposals, generator)
        energies, states = evaluate(problem, actions)
        energies = incumbent.offer(actions, energies, states)
        scales = _scales(problem, actions, states, energies)
        for _ in range(self.cycles):
            relaxed = self._relaxed(problem, actions, states, scales, generator, incumbent)
            descended = None if relaxed is None else self._descended(problem, relaxed, incumbent)
            if descended is None or incumbent.late():
                break
            actions = descended
            energies, states = evaluate(problem, actions)
            incumbent.offer(actions, energies, states)
        return incumbent.plan()

    def _relaxed(
        self,
        problem: Problem,
        actions: Tensor,
        states: State,
        scales: "_Scales",
        generator: torch.Generator,
        incumbent: Incumbent,
    ) -> Tensor | None:
        """Actions `(B, S, H, A)` after the steps on lifted states of a cycle; None if late."""
        low, high = problem.bounds
        rate = 0.5 * self.learning_rate * (high - low)
        descents = [Descent() for _ in range(1 + len(leaves(states)))]
        for iteration in range(self.iterations):
            if incumbent.late():
                return None
            if not self.lift:
                slopes = self._unlifted(problem, actions, scales, incumbent)
            else:
                slopes = self._lifted(problem, actions, states, scales)
                incumbent.count(actions.shape[1])
                fading = self.noise * (1.0 - (iteration + 1) / self.iterations)
                moves = zip(slopes[1:], descents[1:], scales.distances, strict=True)
                states = self._moved(states, moves, fading, generator)
            actions = project(problem, actions - rate * descents[0].step(slopes[0]))
        return actions

    def _moved(
        self,
        states: State,
        moves: Iterator[tuple[Tensor, Descent, Tensor]],
        noise: float,
        generator: torch.Generator,
    ) -> State:
        """One step of the lifted states."""

        def move(leaf: Tensor) -> Tensor:
            if not leaf.is_floating_point():
                return leaf
            slope, descent, distance = next(moves)
            unit = distance / math.sqrt(leaf[0, 0, 0].numel())  # (B,)
            unit = unit.view(-1, *[1] * (leaf.ndim - 1))
            change = -self.state_rate * descent.step(slope)
            if self.noise:
                drawn = torch.randn(
                    leaf.shape, generator=generator, dtype=leaf.dtype, device=generator.device
                )
                change = change + noise * drawn.to(leaf.device)
            return leaf + unit * change

        return apply(move, states)

    def _lifted(
        self, problem: Problem, actions: Tensor, states: State, scales: "_Scales"
    ) -> list[Tensor]:
        """Gradients of the loss in the actions and in each floating tensor of the states."""
        with torch.enable_grad():
            leaf = actions.detach().requires_grad_()
            lifted = apply(_variable, states)
            free = [x for x in leaves(lifted) if x.requires_grad]
            predicted = _predicted(problem, leaf, lifted, self.stop)
            loss = _energies_along(problem, leaf, lifted) / scales.energy
            pairs = zip(leaves(lifted), leaves(predicted), strict=True)
            apart = [s - p for s, p in pairs if s.requires_grad]
            for gap, distance in zip(apart, scales.distances, strict=True):
                square = gap.flatten(2).square().sum(-1)  # (B, S)
                loss = loss + self.residual * square / distance.square().unsqueeze(1)
            loss = loss + self._shaped(problem, leaf, predicted) / scales.energy
            return _slopes(loss, [leaf, *free])

    def _unlifted(
        self, problem: Problem, actions: Tensor, scales: "_Scales", incumbent: Incumbent
    ) -> list[Tensor]:
        """Offer the actions; the gradient of the loss in them, states being those of a roll-out."""
        with torch.set_grad_enabled(not self.stop):
            leaf = actions.detach().requires_grad_()
            energies, states = evaluate(problem, leaf)
        incumbent.offer(actions, energies, states)
        with torch.enable_grad():
            if self.stop:
                incumbent.count(actions.shape[1])
                states = _predicted(problem, leaf, states, True)
                energies = _energies_along(problem, leaf, states)
            loss = (energies + self._shaped(problem, leaf, states)) / scales.energy
            return _slopes(loss, [leaf])

    def _shaped(self, problem: Problem, actions: Tensor, states: State) -> Tensor:
        """`shaping` times the mean over time of goals and terminal costs `(B, S)`."""
        goal, terminal = problem.goal_cost, problem.terminal_cost
        if not self.shaping or (goal is None and terminal is None):
            return actions.new_zeros(actions.shape[:2])

        def cost(state: Any, action: Tensor, after: Any, context: Context, t: Tensor) -> Tensor:
            total = torch.zeros_like(action[..., 0])
            if goal is not None:
                total = total + goal(state, action, after, context, t)
            if terminal is not None:
                now = {name: x.squeeze(1) for name, x in context.items()}
                each = apply(lambda x: x.flatten(1, 2), after)  # (B, S*H, ...)
                total = total + terminal(each, now).view_as(total)
            return total

        dense = replace(
            problem,
            stage_cost=cost,
            goal_cost=None,
            terminal_cost=None,
            latent_energy=None,
            discount=1.0,
        )
        return self.shaping / problem.horizon * _energies_along(dense, actions, states)

    def _descended(self, problem: Problem, actions: Tensor, incumbent: Incumbent) -> Tensor | None:
        """Actions after plain descent through the roll-out; every step is offered. None if late."""
        low, high = problem.bounds
        rate = 0.5 * self.learning_rate * (high - low)
        descent = Descent()
        for _ in range(self.descents):
            if incumbent.late():
                return None
            with torch.enable_grad():
                leaf = actions.detach().requires_grad_()
                energies, states = evaluate(problem, leaf)
                (slope,) = _slopes(energies, [leaf])
            incumbent.offer(actions, energies, states)
            actions = project(problem, actions - rate * descent.step(slope))
        return actions


class _Scales(NamedTuple):
    """Units of a problem.

    Attributes:
        energy: K of `Lifted` `(B, 1)`.
        distances: D of `Lifted` for each floating tensor of the state, each `(B,)`.
    """

    energy: Tensor
    distances: list[Tensor]


def _scales(problem: Problem, actions: Tensor, states: State, energies: Tensor) -> _Scales:
    """Measure the units on the roll-outs of the starts; 1 where there is nothing to measure."""
    good = energies.isfinite()  # (B, S)
    count = (good.sum(1) * problem.horizon).clamp(min=1)
    distances = []
    for start, after in zip(leaves(problem.state), leaves(states), strict=True):
        if after.is_floating_point():
            square = (after - start[:, None, None]).flatten(3).square().sum(dim=(2, 3))
            mean = torch.where(good, square, 0.0).sum(1) / count
            distances.append(_or_one(mean.sqrt()))
    with torch.enable_grad():
        lifted = apply(_variable, states)
        free = [x for x in leaves(lifted) if x.requires_grad]
        leaf = actions.detach().requires_grad_()
        slopes = _slopes(_energies_along(problem, leaf, lifted), [leaf, *free])
    low, high = problem.bounds
    change = (0.5 * (high - low) * slopes[0]).flatten(2).norm(dim=2)
    for slope, distance in zip(slopes[1:], distances, strict=True):
        change = change + slope.flatten(2).norm(dim=2) * distance.unsqueeze(1)
    largest = torch.where(good, change, 0.0).amax(1, keepdim=True)
    return _Scales(_or_one(largest), distances)


def _or_one(values: Tensor) -> Tensor:
    return torch.where((values > 0.0) & values.isfinite(), values, 1.0)


def _variable(leaf: Tensor) -> Tensor:
    leaf = leaf.detach()
    return leaf.clone().requires_grad_() if leaf.is_floating_point() else leaf


def _slopes(losses: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Gradients of `(B, S)` in each input `(B, S, ...)`, zero for rows where any is not finite."""
    if not losses.requires_grad:
        raise ValueError(
            "the energy has no gradient; let step, rollout and costs keep it and leave "
            "torch.inference_mode, or plan with CEM"
        )
    # The sum only sends a one into each candidate: no candidate sees another's gradient.
    found = torch.autograd.grad(losses.sum(), inputs, allow_unused=True, materialize_grads=True)
    squares = sum(slope.flatten(2).square().sum(-1) for slope in found)
    good = cast(Tensor, squares).isfinite()
    return [torch.where(good.view(*good.shape, *[1] * (x.ndim - 2)), x, 0.0) for x in found]


def _energies_along(problem: Problem, actions: Tensor, states: State) -> Tensor:
    """Energies `(B, S)` with given states `(B, S, H, ...)`: nothing is predicted."""
    return evaluate(replace(problem, rollout=lambda *_: flatten(states)), actions)[0]


def _predicted(problem: Problem, actions: Tensor, states: State, stop: bool) -> State:
    """What `step` makes of each state and action, all apart from each other `(B, S, H, ...)`.

    Args:
        problem: B problems.
        actions: `(B, S, H, A)`.
        states: States after each action `(B, S, H, ...)`; the start state comes before.
        stop: Keep gradients from going through them.
    """
    batch, samples = actions.shape[:2]
    state: Any = expand(problem.state, samples)
    context = cast(Context, expand(problem.context, samples))
    latents = problem.latents
    if latents is not None:
        latents = cast(Tensor, expand(latents.expand(batch, *latents.shape[1:]), samples))
    flat = flatten(states)
    if stop:
        flat = apply(Tensor.detach, flat)
    predicted: list[State] = []
    for t, action in enumerate(actions.flatten(0, 1).unbind(1)):
        latent = None if latents is None else latents[:, t]
        predicted.append(problem.step(state, action, latent, context, t))
        state = apply(lambda x, at=t: x[:, at], flat)
    return unflatten(stack(predicted, axis=1), batch, samples)
