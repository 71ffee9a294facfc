"""Energies of candidate action sequences, differentiable, and the rule that not-a-number loses.

Unusual here: the roll-out keeps its graph (sampling planners switch gradients off themselves), and
costs see all time steps at once.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor

from forethought.planners.problem import Context, Problem
from forethought.planners.state import State, apply, expand, leaves, stack, unflatten

__all__ = ["evaluate", "losing"]


def evaluate(
    problem: Problem, actions: Tensor, latents: Tensor | None = None
) -> tuple[Tensor, State]:
    """Roll candidates out through the model and sum their costs (LeCun 2022, figure 4).

    Differentiable in actions (but for indices), latents, the start state, the context and the
    model's parameters.
    Nothing is averaged or compared across problems or candidates.

    Args:
        problem: B problems.
        actions: Candidates `(B, S, H, A)`, with the problem's horizon. Discrete ones are int64
            `(B, S, H)`, or probabilities `(B, S, H, n)` where the problem's functions take them.
        latents: Latent variables `(B, S, H, Z)`; None takes the problem's own.

    Returns:
        Energies `(B, S)`, non-finite ones included, and the predicted states `(B, S, H, ...)`.

    Raises:
        ValueError: actions of a wrong shape or type, a cost that returns a wrong shape, or a
            latent energy without latents.
    """
    _check_actions(problem, actions)
    batch, samples = actions.shape[:2]
    if latents is None and problem.latents is not None:
        shared = problem.latents.unsqueeze(1)  # (B or 1, 1, H, Z)
        latents = shared.expand(batch, samples, *shared.shape[2:])
    states = unflatten(_roll_out(problem, actions, latents), batch, samples)
    return _energies(problem, actions, states, latents), states


def losing(energies: Tensor, states: State | None = None) -> Tensor:
    """Detached energies in which whatever is not finite is +infinity, so that it never wins.

    Minus infinity and not-a-number lose too, and so does a candidate that passed through a
    non-finite state: a bounded cost would otherwise hide it.

    Args:
        energies: `(B, S)`.
        states: Predicted states `(B, S, ...)`, or None to look at the energies alone.
    """
    energies = energies.detach()
    for leaf in () if states is None else leaves(states):
        if leaf.is_floating_point() and not _surely_finite(leaf.detach()):
            # Zero times a finite number is zero, times anything else not a number.
            energies = energies + leaf.detach().flatten(2).mul(0.0).sum(-1)
    return energies.nan_to_num(nan=math.inf, posinf=math.inf, neginf=math.inf)


def _surely_finite(x: Tensor) -> bool:
    """Whether one sum says that all of `x` is finite; False: look closer.

    Elsewhere than on a CPU asking for one number waits for all that was begun: never sure.
    """
    return x.device.type == "cpu" and math.isfinite(x.sum().item())


def _check_actions(problem: Problem, actions: Tensor) -> None:
    wanted, trailing = "(B, S, H, A)", actions.shape[3:]
    if problem.actions is not None:
        wanted = f"int64 (B, S, H), or probabilities (B, S, H, {problem.actions}),"
        soft = actions.is_floating_point()
        right = trailing == ((problem.actions,) if soft else ()) and (
            soft or actions.dtype == torch.int64
        )
    else:
        right = len(trailing) == 1
    if not right or actions.shape[0] != problem.batch or actions.shape[2] != problem.horizon:
        raise ValueError(
            f"actions have the shape {tuple(actions.shape)} and the type {actions.dtype}; give "
            f"{wanted} with B = {problem.batch}, H = {problem.horizon}"
        )


def _roll_out(problem: Problem, actions: Tensor, latents: Tensor | None) -> State:
    """Predicted states `(N, H, ...)`, by the problem's own roll-out or a loop over its step."""
    samples = actions.shape[1]
    state: Any = expand(problem.state, samples)
    context = cast(Context, expand(problem.context, samples))
    actions = actions.flatten(0, 1)  # (N, H, A), (N, H) or (N, H, n)
    latents = None if latents is None else latents.flatten(0, 1)  # (N, H, Z)
    if problem.rollout is not None:
        return cast(State, problem.rollout(state, actions, latents, context))
    # One unbind has one backward for all steps; indexing would fill a tensor of zeros per step.
    latent_at = [None] * problem.horizon if latents is None else latents.unbind(1)
    states: list[State] = []
    for t, action in enumerate(actions.unbind(1)):
        state = problem.step(state, action, latent_at[t], context, t)
        states.append(state)
    return stack(states, axis=1)


def _energies(problem: Problem, actions: Tensor, states: State, latents: Tensor | None) -> Tensor:
    """Energies `(B, S)` of rolled-out candidates, as `Problem` defines them."""
    previous = apply(_shifted, problem.state, states)  # (B, S, H, ...)
    context = {name: x.unsqueeze(1).unsqueeze(1) for name, x in problem.context.items()}
    times = torch.arange(problem.horizon, device=actions.device)
    shape = actions.shape[:3]
    terms: list[Tensor] = []
    if problem.stage_cost is not None:
        costs = problem.stage_cost(previous, actions, states, context, times)
        terms.append(_discounted_sum(problem, _checked("stage_cost", costs, shape)))
    if problem.latent_energy is not None:
        if latents is None:
            raise ValueError("latent_energy without latents; give latents to Problem or evaluate")
        costs = problem.latent_energy(previous, latents, context, times)
        terms.append(_discounted_sum(problem, _checked("latent_energy", costs, shape)))
    if problem.goal_cost is not None:
        costs = problem.goal_cost(previous, actions, states, context, times)
        terms.append(_reduced(problem, _checked("goal_cost", costs, shape)))
    if problem.terminal_cost is not None:
        last = apply(lambda x: x.select(2, -1), states)
        now = {name: x.unsqueeze(1) for name, x in problem.context.items()}
        cost = _checked("terminal_cost", problem.terminal_cost(last, now), shape[:2])
        terms.append(cost * problem.discount**problem.horizon)
    return sum(terms[1:], terms[0])


def _shifted(start: Tensor, states: Tensor) -> Tensor:
    """States before each action `(B, S, H, ...)`, from the start `(B, ...)` and those after."""
    first = start.unsqueeze(1).unsqueeze(1).expand_as(states[:, :, :1])
    return torch.cat((first, states[:, :, :-1]), dim=2)


def _checked(name: str, costs: Tensor, shape: torch.Size) -> Tensor:
    """`costs`, if they have one value per candidate (and time); a wrong shape would broadcast."""
    if costs.shape != shape:
        raise ValueError(
            f"{name} returned the shape {tuple(costs.shape)}; return {tuple(shape)}, "
            "one value per problem, candidate and (but for terminal_cost) time"
        )
    return costs


def _discounted_sum(problem: Problem, costs: Tensor) -> Tensor:
    """`sum_t discount^t c_t`: `(B, S, H)` -> `(B, S)`."""
    if problem.discount == 1.0:
        return costs.sum(-1)
    steps = torch.arange(problem.horizon, device=costs.device, dtype=costs.dtype)
    return (costs * problem.discount**steps).sum(-1)


def _reduced(problem: Problem, costs: Tensor) -> Tensor:
    """Goal costs over time, by the problem's reduction: `(B, S, H)` -> `(B, S)`."""
    if problem.reduction == "last":
        return costs[..., -1]
    if problem.reduction == "softmin":
        temperature = problem.softmin_temperature
        soft_sum = torch.logsumexp(costs / -temperature, dim=-1)
        return -temperature * (soft_sum - math.log(problem.horizon))
    return _discounted_sum(problem, costs)
