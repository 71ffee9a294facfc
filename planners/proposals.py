"""Where a search begins and what its candidates are made of: starts, noise, splines, the bounds.

Random starts are interpolated between a few knots: independent steps would largely cancel. A search
may also move such a line's control points instead of single actions (`spline`).
"""

import math

import torch
from torch import Tensor

from forethought.planners.discrete import held_actions
from forethought.planners.problem import Problem

__all__ = [
    "Noise",
    "checked",
    "coloured",
    "fitted",
    "gaussian_noise",
    "project",
    "safe_actions",
    "shift",
    "smooth_noise",
    "spline",
    "starts",
]


def project(problem: Problem, actions: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The nearest actions within the bounds and within `max_norm`.

    Nearest in the Euclidean norm of each action, apart from the others. Within the ball and the
    box that is clamp(s a, low, high), with the largest s <= 1 whose norm is at most `max_norm` (the
    optimality conditions of the projection, with s = 1 / (1 + multiplier of the norm)). Rounding
    leads out of neither: the result stays some units in the last place below `max_norm`. Actions
    that are within by as much come back bit for bit as they are.

    Args:
        problem: B problems.
        actions: Finite ones `(..., A)`; discrete ones are returned as they are.
        out: Where to write the result, `actions` itself if wished; None makes a new tensor.
    """
    if problem.actions is not None:
        return actions
    low, high = problem.bounds
    if problem.max_norm is None:
        return torch.clamp(actions, low, high, out=out)
    # A norm is computed to about A roundings, which depend on how its squares are summed.
    rounding = (2 + problem.action_dim) * torch.finfo(actions.dtype).eps
    most = problem.max_norm * (1.0 - rounding)
    if problem.norm_inside:
        inside = actions
    else:
        inside = actions.clamp(low, high)
        if problem.action_dim > 1:
            s = _shrinking(actions, low, high, problem.max_norm)
            within = torch.linalg.vector_norm(inside, dim=-1, keepdim=True) <= most
            inside = torch.where(within, inside, (actions * s).clamp(low, high))
    norm = torch.linalg.vector_norm(inside, dim=-1, keepdim=True)
    scale = torch.where(norm > most, most * (1.0 - rounding) / norm, 1.0)
    return torch.mul(inside, scale, out=out)


def _shrinking(actions: Tensor, low: Tensor, high: Tensor, max_norm: float) -> Tensor:
    """The s `(..., 1)` of `project`, from below, by at most A exact steps.

    Components at their bounds stay there as s grows, so each step solves for the others' s; the
    set of those at their bounds only grows, and there are A.
    """
    reach = torch.where(actions < 0.0, -low, high)  # how far the bound is, >= 0
    size = actions.abs()
    s = torch.zeros_like(size[..., :1])
    for _ in range(size.shape[-1]):
        bounded = s * size > reach
        rest = max_norm**2 - (reach * bounded).square().sum(-1, keepdim=True)
        free = (size * ~bounded).square().sum(-1, keepdim=True)
        free = free.clamp(min=torch.finfo(free.dtype).tiny)
        s = torch.maximum(s, (rest.clamp(min=0.0) / free).sqrt()).clamp(max=1.0)
    return s


def safe_actions(problem: Problem) -> Tensor:
    """The action nearest to zero within the bounds, at every step `(B, H, A)`.

    A `max_norm` asks for bounds that contain zero, which is then the safe action. With discrete
    actions the action 0, `(B, H)`.
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

    With a `max_norm` they are projected.

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
    return project(problem, low + (high - low) * unit)


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
    numbers = proposals.where(~proposals.isnan(), torch.zeros_like(low)).clamp(low, high)
    return project(problem, numbers)


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
    return Noise(problem, count, correlation=correlation).draw(generator)


class Noise:
    """Standard normal sequences, drawn again and again into the same memory.

    Args:
        problem: B problems.
        count: Most sequences per problem.
        points: Their length; None is the horizon.
        correlation: As in `gaussian_noise`; 0 is white noise.
        mixing: `(points, points)`, applied to white noise instead of a correlation.
    """

    def __init__(
        self,
        problem: Problem,
        count: int,
        *,
        points: int | None = None,
        correlation: float = 0.0,
        mixing: Tensor | None = None,
    ) -> None:
        points = problem.horizon if points is None else points
        self._shape = (problem.batch, points, problem.action_dim)
        self._count = count
        size = problem.batch * count * points * problem.action_dim
        self._white = torch.empty(size, dtype=problem.dtype, device=problem.device)
        self._drawn: Tensor | None = None  # on the generator's device, if that is another
        if mixing is None and correlation:
            mixing = _correlated(self._white, points, correlation)
        self._mixing = None if mixing is None else mixing.to(self._white)
        self._mixed = None if mixing is None else torch.empty_like(self._white)

    def draw(self, generator: torch.Generator, count: int | None = None) -> Tensor:
        """Fresh noise `(B, count, points, A)`; the next draw overwrites it, and so may the caller.

        Args:
            generator: Source of randomness.
            count: Sequences per problem, at most those of the constructor; None is as many.
        """
        batch, points, action_dim = self._shape
        shape = (batch, self._count if count is None else count, points, action_dim)
        white = self._white[: math.prod(shape)]
        if generator.device == white.device:
            white.normal_(generator=generator)
        else:
            if self._drawn is None:
                self._drawn = torch.empty_like(self._white, device=generator.device)
            white.copy_(self._drawn[: math.prod(shape)].normal_(generator=generator))
        if self._mixing is None or self._mixed is None:
            return white.view(shape)
        # One product for all, for which time has to be the last axis: a view puts it back.
        mixed = self._mixed[: math.prod(shape)].view(-1, points)
        torch.mm(white.view(-1, points), self._mixing.t(), out=mixed)
        return mixed.view(*shape[:2], action_dim, points).transpose(2, 3)


def _correlated(like: Tensor, points: int, correlation: float) -> Tensor:
    """Matrix `(points, points)` with n = mixing e of `gaussian_noise`.

    Made where `like` lies, as a recording of a graph refuses copies from the host.
    """
    steps = torch.arange(points, device=like.device)
    lag = (steps.unsqueeze(1) - steps).clamp(min=0)
    mixing = (correlation ** lag.to(like)).tril()
    mixing[:, 1:] *= (1.0 - correlation**2) ** 0.5
    return mixing


def coloured(points: int, exponent: float) -> Tensor:
    """Mixing `(points, points)` that gives white noise the power f^-exponent at frequency f.

    White noise is filtered in Fourier space (after Timmer and Koenig 1995; Pinneri et al. 2020,
    2008.06389, section 3.1) and scaled to the variance 1. Filtering a fixed length is linear, so
    the transform is needed once and each draw is one small product of matrices. The constant part,
    whose power would be infinite, gets that of the lowest frequency, 1 / points. The noise has the
    period `points`: its two ends are neighbours.

    Args:
        points: Length of the sequences, 1 or more.
        exponent: 0 is white noise, 1 pink, 2 red: the larger, the longer the waves.
    """
    order = torch.arange(points // 2 + 1, dtype=torch.float64).clamp(min=1.0)
    spectrum = torch.fft.rfft(torch.eye(points, dtype=torch.float64), dim=0)
    filtered = spectrum * order.pow(-0.5 * exponent).unsqueeze(1)
    mixing: Tensor = torch.fft.irfft(filtered, n=points, dim=0)
    return mixing / mixing[0].square().sum().sqrt()  # rows are alike but for their place


def spline(problem: Problem, points: int | None) -> Tensor | None:
    """Weights `(H, K)` by which K control points give H actions, linear in between.

    The first point is the first action and the last the last; one point is held throughout. The
    weights of an action are not negative and add up to 1, so actions are within every convex bound
    (box and ball) that the points are in, up to rounding: `project` takes that away.

    Args:
        problem: B problems with continuous actions.
        points: K; None, or H and above, means every action for itself.

    Returns:
        The weights, or None where every action stands for itself.
    """
    if points is None or points >= problem.horizon:
        return None
    kind, device = problem.dtype, problem.device
    places = torch.linspace(0.0, points - 1.0, problem.horizon, dtype=kind, device=device)
    number = torch.arange(points, dtype=kind, device=device)
    return (1.0 - (places.unsqueeze(1) - number).abs()).clamp(min=0.0)


def fitted(problem: Problem, weights: Tensor | None, actions: Tensor) -> Tensor:
    """The control points `(..., K, A)` nearest to `actions` `(..., H, A)`, within the bounds.

    By least squares, then projected; `actions` themselves where `weights` is None.
    """
    if weights is None:
        return actions
    if actions.numel() == 0:
        return actions[..., : weights.shape[1], :]
    nearest: Tensor = torch.linalg.pinv(weights) @ actions
    return project(problem, nearest)
