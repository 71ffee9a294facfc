"""Where a search begins: smooth random sequences, the safe action, and last time's plan, shifted.

Random starts are interpolated between a few knots: independent steps would largely cancel.
"""

import torch
from torch import Tensor

from forethought.planners.discrete import held_actions
from forethought.planners.problem import Problem

__all__ = ["checked", "gaussian_noise", "safe_actions", "shift", "smooth_noise", "starts"]


def safe_actions(problem: Problem) -> Tensor:
    """The action nearest to zero within the bounds, at every step `(B, H, A)`.

    With discrete actions the action 0, `(B, H)`.
    """
    if problem.actions is not None:
        return torch.zeros(
            (problem.batch, problem.horizon), dtype=problem.dtype, device=problem.device
        )
    low, high = problem.bounds
    safe = torch.zeros_like(low).clamp(low, high)
    return safe.expand(problem.batch, problem.horizon, -1).clone()


def shift(actions: Tensor, steps: int = 1, *, repeat_last: bool = True) -> Tensor:
    """The plan as it stands `steps` later, to be proposed to the next decision.

    Args:
        actions: `(..., H, A)`; discrete ones, which are known by their integer type, `(..., H)`.
        steps: How many actions were sent, 0 or more; H and above leaves only the fill.
        repeat_last: Fill the end with the last action; else with zeros, or the discrete action 0.
    """
    if steps < 0:
        raise ValueError(f"steps = {steps}; a plan shifts by 0 or more steps")
    axis = -2 if actions.is_floating_point() else -1
    horizon = actions.shape[axis]
    steps = min(steps, horizon)
    last = actions.narrow(axis, horizon - 1, 1)
    fill = (last if repeat_last else torch.zeros_like(last)).repeat_interleave(steps, axis)
    return torch.cat((actions.narrow(axis, steps, horizon - steps), fill), axis)


def smooth_noise(problem: Problem, count: int, knots: int, generator: torch.Generator) -> Tensor:
    """Random sequences `(B, count, H, A)`, linear between knots drawn uniformly in the bounds.

    Args:
        problem: B problems with continuous actions.
        count: Sequences per problem.
        knots: Knots over the horizon, the first at its start and the last at its end. 1 gives
            constant actions; H and above an independent draw per step.
        generator: Source of randomness.
    """
    low, high = problem.bounds
    knots = min(knots, problem.horizon)
    shape = (problem.batch * count, problem.action_dim, knots)
    drawn = torch.rand(shape, generator=generator, dtype=problem.dtype, device=generator.device)
    between = torch.nn.functional.interpolate(
        drawn.to(problem.device), size=problem.horizon, mode="linear", align_corners=True
    )
    unit = between.transpose(1, 2).reshape(problem.batch, count, problem.horizon, -1)
    return (low + (high - low) * unit).clamp(low, high)


def checked(problem: Problem, proposals: Tensor | None, room: int, field: str) -> Tensor:
    """Proposals `(B, P, H, A)` within the bounds, P = 0 for None; not-a-number becomes safe.

    Discrete ones are `(B, P, H)`. An index without an action is refused, for no other is near it.

    Raises:
        ValueError: a wrong shape or index, or more proposals than `room`, which is the planner's
            `field`.
    """
    safe = safe_actions(problem)
    if proposals is None:
        return safe.unsqueeze(1)[:, :0]
    if proposals.shape[:1] + proposals.shape[2:] != safe.shape:
        axes = "(B, P, H)" if safe.ndim == 2 else "(B, P, H, A)"
        sizes = ", ".join(f"{axis} = {x}" for axis, x in zip("BHA", safe.shape, strict=False))
        raise ValueError(
            f"proposals have the shape {tuple(proposals.shape)}; give {axes} with {sizes}"
        )
    if proposals.shape[1] > room:
        raise ValueError(f"{proposals.shape[1]} proposals exceed {field} = {room}; raise {field}")
    proposals = proposals.detach()
    if problem.actions is not None:
        return _checked_indices(proposals, problem.actions).to(problem.device)
    low, high = problem.bounds
    proposals = proposals.to(low)
    return proposals.where(~proposals.isnan(), torch.zeros_like(low)).clamp(low, high)


def _checked_indices(proposals: Tensor, count: int) -> Tensor:
    """`proposals`, if they are int64 and from 0 to count - 1."""
    if proposals.dtype != torch.int64:
        raise ValueError(f"proposals are {proposals.dtype}; give int64, the problem is discrete")
    if proposals.numel() and not 0 <= int(proposals.min()) <= int(proposals.max()) < count:
        raise ValueError(
            f"proposals hold indices from {int(proposals.min())} to {int(proposals.max())}; "
            f"give 0 to {count - 1}, the problem has actions = {count}"
        )
    return proposals


def starts(
    problem: Problem,
    count: int,
    knots: int,
    proposals: Tensor | None,
    generator: torch.Generator,
    field: str = "starts",
) -> Tensor:
    """Starts of a search `(B, count, H, A)`: proposals, then the safe action, then smooth noise.

    Discrete ones are int64 `(B, count, H)`, and `discrete.held_actions` are the noise.

    Args:
        problem: B problems.
        count: Starts per problem, 1 or more.
        knots: As in `smooth_noise` or `held_actions`.
        proposals: `(B, P, H, A)` or `(B, P, H)` with P <= count, or None. They come first.
        generator: Source of randomness.
        field: Name of the planner's field that holds `count`, for messages.
    """
    given = checked(problem, proposals, count, field)
    parts = [given, safe_actions(problem).unsqueeze(1)][: 1 + (given.shape[1] < count)]
    missing = count - sum(part.shape[1] for part in parts)
    if missing:
        noise = smooth_noise if problem.actions is None else held_actions
        parts.append(noise(problem, missing, knots, generator))
    return torch.cat(parts, dim=1)


def gaussian_noise(
    problem: Problem, count: int, generator: torch.Generator, correlation: float = 0.0
) -> Tensor:
    """Standard normal sequences `(B, count, H, A)`, correlated between consecutive steps.

    n_0 = e_0 and n_t = c n_{t-1} + sqrt(1 - c^2) e_t, which keeps the variance 1 at every step.

    Args:
        problem: B problems.
        count: Sequences per problem.
        generator: Source of randomness.
        correlation: c, in [0, 1); 0 is white noise.
    """
    shape = (problem.batch, count, problem.horizon, problem.action_dim)
    noise = torch.randn(shape, generator=generator, dtype=problem.dtype, device=generator.device)
    noise = noise.to(problem.device)
    if correlation:
        steps = torch.arange(problem.horizon, device=problem.device)
        lag = (steps.unsqueeze(1) - steps).clamp(min=0)  # (H, H)
        mixing = (correlation ** lag.to(noise)).tril()  # n = mixing e, written out
        mixing[:, 1:] *= (1.0 - correlation**2) ** 0.5
        noise = mixing @ noise
    return noise
