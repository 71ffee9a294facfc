"""Second-order planning: dynamic programming on a quadratic model of the energy, many rows at once.

Iterative LQR (Li and Todorov 2004) with bounds on the actions (Tassa, Mansard and Todorov 2014,
"Control-limited differential dynamic programming"): linearise the model and expand the costs along
a roll-out, solve that linear-quadratic problem backward in time, try its feedback law on the model
with several step sizes, keep the best. One iteration solves a linear-quadratic problem.

Two laws are tried. The law of Tassa et al. keeps an action still that wants to cross its bound at
the old states, and finds optima at the bounds; but at the new states the action may be well inside.
The law without bounds, clamped as it is rolled out, is exact where the optimum is inside.

Unusual here: all Jacobians and Hessians come from as many backward passes as a state has
components, over all problems, starts and times together, since `step` and the costs treat these
apart. Actions count in halves of their ranges, energies relative to the largest gradient, so that
damping needs no unit.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor

from forethought.planners.deadline import Deadline
from forethought.planners.incumbent import Incumbent
from forethought.planners.problem import Context, Plan, Planner, Problem
from forethought.planners.proposals import project, starts
from forethought.planners.rollout import evaluate
from forethought.planners.state import expand, unflatten

__all__ = ["GaussNewton"]

_SHRINK = 0.4  # from one step size of the line search to the next
_RAISE, _FIRST, _LEAST = 10.0, 1e-2, 1e-4  # damping: factor, first above zero, zero below
_BOX_STEPS = (1.0, 0.5, 0.25, 0.1, 0.01, 0.0)  # of the projected Newton method for one action
_NO_GRADIENT = (
    "{} has no gradient; let step and costs keep it and leave torch.inference_mode, "
    "or plan with CEM"
)


@dataclass(frozen=True)
class GaussNewton(Planner):
    """Iterative LQR within bounds, damped per start (Levenberg and Marquardt).

    States are one floating tensor `(B, D)`. The second derivatives of the model are left out
    (Gauss-Newton), negative curvature of the costs is cut off, and a start only moves to where its
    energy is lower; where no step size achieves that, its damping grows tenfold.
    `Problem.max_norm` is kept by projecting each action as it is rolled out; the laws know only
    the bounds. Costs must treat times apart. A goal cost reduced by "softmin" counts by its weights
    at the present roll-out: softmin is concave in its terms, so this is an upper bound that touches
    it.

    It uses `step` even where the problem brings a `rollout`, which only judges the starts. Model
    evaluations: 1 + `iterations` (1 + 2 `line_search`) per start. An iteration costs D backward
    passes through `step` and 2 D + A through the costs: made for small states.

    Attributes:
        starts: Starting sequences per problem; proposals take the first places, the safe action
            the next, smooth noise the others.
        iterations: Linear-quadratic problems solved per start.
        line_search: Step sizes tried at once for each of the two laws, 1, 0.4, 0.16, ...
        damping: First damping, added to the curvature of every action (in halves of its range) in
            units of the row's largest gradient. 0 gives full Gauss-Newton steps.
        knots: Knots of the smooth random starts over the horizon; H gives white noise.
    """

    starts: int = 4
    iterations: int = 6
    line_search: int = 4
    damping: float = 0.0
    knots: int = 4

    def __post_init__(self) -> None:
        for name in ("starts", "iterations", "line_search", "knots"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; give at least 1")
        if not 0.0 <= self.damping < math.inf:
            raise ValueError(f"damping = {self.damping}; give a finite one, 0 or more")

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
        """Plan each problem; see `Planner.plan`.

        Raises:
            ValueError: also a state that is nested or has other axes than `(B, D)`, and a model or
                cost without a gradient.
        """
        _check(problem)
        incumbent = Incumbent(problem, deadline)
        actions = starts(problem, self.starts, self.knots, proposals, generator)
        self._search(problem, actions, incumbent)
        return incumbent.plan()

    def _search(self, problem: Problem, actions: Tensor, incumbent: Incumbent) -> None:
        """Improve the starts `actions` `(B, S, H, A)`."""
        predicted, predictions = evaluate(problem, actions)
        energies = incumbent.offer(actions, predicted, predictions)  # (B, S)
        states = cast(Tensor, predictions)  # (B, S, H, D)
        damping = torch.full_like(energies, self.damping)
        for _ in range(self.iterations):
            if incumbent.late():
                return
            local = _expansion(problem, actions, states, energies)
            incumbent.count(actions.shape[1])
            law = _solve(problem, local, actions, damping)
            tried, reached = self._follow(problem, law, actions, states)
            found = incumbent.offer(tried, _energies_along(problem, tried, reached), reached)
            lowest, best = found.view(*energies.shape, -1).min(2)  # (B, S)
            better = lowest < energies
            actions = _taken(better, best, tried, actions)
            states = _taken(better, best, reached, states)
            energies = torch.where(better, lowest, energies)
            damping = _adapted(damping, better, best % self.line_search == 0)

    def _follow(
        self, problem: Problem, law: "_Law", actions: Tensor, states: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Roll the laws out through the model, with every step size of the line search.

        Returns:
            Actions `(B, S*L, H, A)` within the bounds, L both laws with each size, and the states
            after them `(B, S*L, H, D)`.
        """
        batch, samples = actions.shape[:2]
        low, high = problem.bounds
        half_range = 0.5 * (high - low)
        sizes = _SHRINK ** torch.arange(self.line_search, device=low.device).to(low)
        rows = samples * 2 * self.line_search
        state, context, latents = _expanded(problem, rows)
        before = _before(problem, states)  # (B, S, H, D)
        tried: list[Tensor] = []
        reached: list[Tensor] = []
        for t in range(problem.horizon):
            away = state.view(batch, samples, 2, self.line_search, -1) - before[:, :, None, None, t]
            change = sizes.view(-1, 1) * law.open[:, :, :, t].unsqueeze(-2)  # (B, S, 2, sizes, A)
            change = (change + away @ law.gains[:, :, :, t].mT).flatten(2, 3)
            old = actions[:, :, t].unsqueeze(2)
            action = old + half_range * change
            action = torch.where(action.isfinite(), action, old)
            action = project(problem, action).flatten(0, 2)  # (B*S*L, A)
            latent = None if latents is None else latents[:, t]
            state = problem.step(state, action, latent, context, t)
            tried.append(action)
            reached.append(state)
        return (
            cast(Tensor, unflatten(torch.stack(tried, 1), batch, rows)),
            cast(Tensor, unflatten(torch.stack(reached, 1), batch, rows)),
        )


class _Expansion(NamedTuple):
    """The problem around roll-outs, to second order, in x (state) and v (action / half range).

    Attributes:
        jacobians: d next state / d (x, v) `(B, S, H, D, D+A)`.
        gradients: d cost_t / d (x, v), through the next state too `(B, S, H, D+A)`.
        hessians: Likewise, without negative eigenvalues `(B, S, H, D+A, D+A)`.
    """

    jacobians: Tensor
    gradients: Tensor
    hessians: Tensor


class _Law(NamedTuple):
    """Change of the actions, in half ranges: `step size * open + gains @ (state - old state)`.

    The axis of two is: within the bounds, and without any.
    """

    open: Tensor  # (B, S, 2, H, A)
    gains: Tensor  # (B, S, 2, H, A, D)


def _check(problem: Problem) -> None:
    _ = problem.bounds  # refuses discrete actions
    state = problem.state
    if not isinstance(state, Tensor):
        raise ValueError(
            f"state is a mapping with the keys {sorted(state)}; give one tensor (B, D), or plan "
            "with Gradient"
        )
    if state.ndim != 2 or not state.is_floating_point():
        raise ValueError(
            f"state has the shape {tuple(state.shape)} and the type {state.dtype}; give a floating "
            "tensor (B, D), or plan with Gradient"
        )


def _before(problem: Problem, states: Tensor) -> Tensor:
    """States before each action `(B, S, H, D)`, from those after them."""
    start = cast(Tensor, problem.state)[:, None, None].expand_as(states[:, :, :1])
    return torch.cat((start, states[:, :, :-1]), 2)


def _expanded(problem: Problem, samples: int) -> tuple[Tensor, Context, Tensor | None]:
    """Start state, context and latents of `samples` candidates per problem, with the axis N."""
    latents = problem.latents
    if latents is not None:
        latents = latents.expand(problem.batch, *latents.shape[1:])
        latents = cast(Tensor, expand(latents, samples))
    context = cast(Context, expand(problem.context, samples))
    return cast(Tensor, expand(problem.state, samples)), context, latents


def _energies_along(problem: Problem, actions: Tensor, states: Tensor) -> Tensor:
    """Energies `(B, S)` of candidates whose states are known: nothing is predicted again."""
    known = replace(problem, rollout=lambda *_: states.flatten(0, 1))
    return evaluate(known, actions)[0]


def _taken(better: Tensor, best: Tensor, tried: Tensor, old: Tensor) -> Tensor:
    """`old` `(B, S, H, X)`, with candidate `best` of `tried` `(B, S*L, H, X)` where `better`."""
    tried = tried.view(*old.shape[:2], -1, *old.shape[2:])  # (B, S, L, H, X)
    index = best.view(*best.shape, 1, 1, 1).expand(-1, -1, 1, *old.shape[2:])
    return torch.where(better[..., None, None], tried.gather(2, index).squeeze(2), old)


def _adapted(damping: Tensor, better: Tensor, whole: Tensor) -> Tensor:
    """Less damping after a full step, more where no step size was any good."""
    raised = (_RAISE * damping).clamp(min=_FIRST)
    lowered = damping / _RAISE
    lowered = torch.where(lowered < _LEAST, 0.0, lowered)
    return torch.where(better, torch.where(whole, lowered, damping), raised)


def _expansion(problem: Problem, actions: Tensor, states: Tensor, energies: Tensor) -> _Expansion:
    """Expand model and costs around roll-outs; rows that are not finite become flat and stay."""
    low, high = problem.bounds
    size = states.shape[-1]
    scale = torch.cat((low.new_ones(size), 0.5 * (high - low)))  # of (x, v)
    before = _before(problem, states)
    jacobians = _dynamics(problem, before, actions) * scale
    gradients, hessians = _costs(problem, before, actions, states)
    # (x, a, next x) = (x, half_range v, J (x, v)): the costs in terms of (x, v).
    chain = torch.cat((scale.diag().expand(*jacobians.shape[:3], -1, -1), jacobians), -2)
    gradients = (gradients.unsqueeze(-2) @ chain).squeeze(-2)
    hessians = chain.mT @ hessians @ chain
    good = (jacobians.flatten(2).sum(-1) + gradients.flatten(2).sum(-1)).isfinite()
    good &= energies.isfinite()
    curved = hessians.flatten(3).sum(-1).isfinite() & good.unsqueeze(-1)
    hessians = torch.where(curved[..., None, None], hessians, 0.0)
    return _Expansion(
        torch.where(good[..., None, None, None], jacobians, 0.0),
        torch.where(good[..., None, None], gradients, 0.0),
        _convex(0.5 * (hessians + hessians.mT)),
    )


def _dynamics(problem: Problem, before: Tensor, actions: Tensor) -> Tensor:
    """Jacobians of the model's steps in (state, action) `(B, S, H, D, D+A)`."""
    samples = actions.shape[1]
    _, context, latents = _expanded(problem, samples)
    with torch.enable_grad():
        x = before.flatten(0, 1).detach().requires_grad_()  # (N, H, D)
        a = actions.flatten(0, 1).detach().requires_grad_()
        after = [
            problem.step(state, action, None if latents is None else latents[:, t], context, t)
            for t, (state, action) in enumerate(zip(x.unbind(1), a.unbind(1), strict=True))
        ]
        stacked = torch.stack(after, 1)
        if not stacked.requires_grad:
            raise ValueError(_NO_GRADIENT.format("the state that step returns"))
        return cast(Tensor, unflatten(_jacobian(stacked, (x, a)), problem.batch, samples))


def _costs(
    problem: Problem, before: Tensor, actions: Tensor, after: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients and Hessians of the energy's terms in (state, action, next state).

    Returns:
        `(B, S, H, 2D+A)` and `(B, S, H, 2D+A, 2D+A)`, with respect to the three as if they were
        independent; "softmin" enters by its present weights.
    """
    with torch.enable_grad():
        inputs = tuple(x.detach().requires_grad_() for x in (before, actions, after))
        x, a, y = inputs
        stage, goal, latent = problem.stage_cost, problem.goal_cost, problem.latent_energy
        apart = replace(
            problem,
            rollout=lambda *_: y.flatten(0, 1),
            stage_cost=stage and (lambda _s, *seen: stage(x, *seen)),
            latent_energy=latent and (lambda _s, *seen: latent(x, *seen)),
            goal_cost=goal and (lambda _s, *seen: _weighted(problem, goal(x, *seen))),
            reduction="sum",
        )
        energies, _ = evaluate(apart, a)
        if not energies.requires_grad:
            raise ValueError(_NO_GRADIENT.format("the energy"))
        parts = torch.autograd.grad(
            energies.sum(), inputs, create_graph=True, allow_unused=True, materialize_grads=True
        )
        gradients = torch.cat(parts, -1)
        if not gradients.requires_grad:
            size = gradients.shape[-1]
            return gradients, gradients.new_zeros(*gradients.shape, size)
        return gradients.detach(), _jacobian(gradients, inputs)


def _weighted(problem: Problem, costs: Tensor) -> Tensor:
    """Goal costs `(B, S, H)` times what each counts now, for a discounted sum over time."""
    if problem.reduction == "sum":
        return costs
    if problem.reduction == "last":
        weights = torch.zeros_like(costs)
        weights[..., -1] = 1.0
    else:
        weights = (costs.detach() / -problem.softmin_temperature).softmax(-1)
    discounts = [problem.discount**t for t in range(problem.horizon)]
    return torch.where(weights > 0.0, weights * costs / costs.new_tensor(discounts), 0.0)


def _jacobian(outputs: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
    """Derivatives of `(..., K)` in inputs `(..., I)`, row by row of `...`: `(..., K, sum of I)`."""
    rows = []
    for output in outputs.unbind(-1):
        if not output.requires_grad:
            parts: tuple[Tensor, ...] = tuple(torch.zeros_like(x) for x in inputs)
        else:
            parts = torch.autograd.grad(
                output.sum(), inputs, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        rows.append(torch.cat(parts, -1))
    return torch.stack(rows, -2)


def _convex(hessians: Tensor) -> Tensor:
    """Symmetric matrices `(..., K, K)` with negative eigenvalues replaced by zero."""
    limits = torch.finfo(hessians.dtype)
    largest = hessians.diagonal(dim1=-2, dim2=-1).abs().amax(-1)
    shift = (100.0 * limits.eps * largest + limits.tiny)[..., None, None]
    identity = torch.eye(hessians.shape[-1], dtype=hessians.dtype, device=hessians.device)
    _, failed = torch.linalg.cholesky_ex(hessians + shift * identity)
    indefinite = failed > 0
    if not bool(indefinite.any()):
        return hessians
    values, vectors = torch.linalg.eigh(hessians[indefinite])
    convex = hessians.clone()
    convex[indefinite] = (vectors * values.clamp(min=0.0).unsqueeze(-2)) @ vectors.mT
    return convex


def _solve(problem: Problem, local: _Expansion, actions: Tensor, damping: Tensor) -> _Law:
    """Minimise the quadratic model backward in time, within the bounds and without.

    Tassa et al. 2014, section III, with the costs-to-go of the undamped model.
    """
    low, high = problem.bounds
    half_range = 0.5 * (high - low)
    lower, upper = (low - actions) / half_range, (high - actions) / half_range  # (B, S, H, A)
    strength = _strength(local, lower, upper).repeat(1, 2)  # (B, 2S): both laws at once
    damping = damping.repeat(1, 2)
    lower = torch.cat((lower, torch.full_like(lower, -math.inf)), 1)
    upper = torch.cat((upper, torch.full_like(upper, math.inf)), 1)
    local = _Expansion(*(torch.cat((part, part), 1) for part in local))
    limits = torch.finfo(strength.dtype)
    size = local.jacobians.shape[-2]
    identity = torch.eye(actions.shape[-1], dtype=strength.dtype, device=strength.device)
    slope = torch.zeros_like(local.gradients[:, :, 0, :size])  # of the cost-to-go
    curve = torch.zeros_like(local.hessians[:, :, 0, :size, :size])
    opens: list[Tensor] = []
    gains: list[Tensor] = []
    for t in reversed(range(problem.horizon)):
        jacobian = local.jacobians[:, :, t]
        linear = local.gradients[:, :, t] + _times(jacobian.mT, slope)
        square = local.hessians[:, :, t] + jacobian.mT @ curve @ jacobian
        state_slope, action_slope = linear[..., :size], linear[..., size:]
        across, inner = square[..., size:, :size], square[..., size:, size:]
        largest = inner.diagonal(dim1=-2, dim2=-1).amax(-1)
        floor = 10.0 * limits.eps * (strength + largest)
        damped = inner + (damping * strength + floor)[..., None, None] * identity
        change, free = _boxed(damped, action_slope, lower[:, :, t], upper[:, :, t])
        gain = -_solved(damped, across * free.unsqueeze(-1), free)
        change, gain = change.nan_to_num(0.0, 0.0, 0.0), gain.nan_to_num(0.0, 0.0, 0.0)
        inward = _times(inner, change) + action_slope
        slope = state_slope + _times(gain.mT, inward) + _times(across.mT, change)
        mixed = gain.mT @ across
        curve = square[..., :size, :size] + gain.mT @ inner @ gain + mixed + mixed.mT
        curve = 0.5 * (curve + curve.mT)
        opens.append(change)
        gains.append(gain)
    both = (torch.stack(opens[::-1], 2), torch.stack(gains[::-1], 2))
    return _Law(*(torch.stack(part.chunk(2, 1), 2) for part in both))


def _strength(local: _Expansion, lower: Tensor, upper: Tensor) -> Tensor:
    """Largest component of each row's energy gradient that the bounds let it follow `(B, S)`.

    1 where there is none, so that dividing by it is safe.
    """
    gradient = _action_gradient(local)
    blocked = ((lower >= 0.0) & (gradient > 0.0)) | ((upper <= 0.0) & (gradient < 0.0))
    strength = torch.where(blocked, 0.0, gradient).abs().amax(dim=(2, 3))
    return torch.where((strength > 0.0) & strength.isfinite(), strength, 1.0)


def _action_gradient(local: _Expansion) -> Tensor:
    """dE/dv `(B, S, H, A)`, by the adjoint recursion backward in time."""
    size = local.jacobians.shape[-2]
    slope = torch.zeros_like(local.gradients[:, :, 0, :size])
    found: list[Tensor] = []
    for t in reversed(range(local.gradients.shape[2])):
        linear = local.gradients[:, :, t] + _times(local.jacobians[:, :, t].mT, slope)
        slope = linear[..., :size]
        found.append(linear[..., size:])
    return torch.stack(found[::-1], 2)


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """`(..., I, K)` times `(..., K)`."""
    return (matrices @ vectors.unsqueeze(-1)).squeeze(-1)


def _solved(matrices: Tensor, right: Tensor, free: Tensor) -> Tensor:
    """Solve for the rows that are free `(..., A)`; the others come out as `right` has them, 0."""
    both = free.unsqueeze(-1) & free.unsqueeze(-2)
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    factor, _ = torch.linalg.cholesky_ex(torch.where(both, matrices, identity))
    return torch.cholesky_solve(right, factor)


def _boxed(square: Tensor, linear: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Minimise x'Qx/2 + q'x with lower <= x <= upper, by projected Newton steps (Bertsekas 1982).

    Args:
        square: Q, positive definite `(B, S, A, A)`.
        linear: q `(B, S, A)`.
        lower: 0 or less `(B, S, A)`.
        upper: 0 or more `(B, S, A)`.

    Returns:
        x, and which components are not held by a bound, both `(B, S, A)`.
    """
    sizes = linear.new_tensor(_BOX_STEPS).view(-1, 1, 1, 1)
    x = torch.zeros_like(linear)
    done = torch.zeros_like(linear[..., :1], dtype=torch.bool)
    free = _unheld(square, linear, lower, upper, x)
    for _ in range(linear.shape[-1] + 2):
        slope = _times(square, x) + linear
        step = -_solved(square, torch.where(free, slope, 0.0).unsqueeze(-1), free).squeeze(-1)
        whole = x + step
        # Cut off by the bounds a Newton step may lead up; a short gradient step never does.
        trace = square.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
        tries = torch.cat((x + sizes * step, (x - slope / trace).unsqueeze(0)))
        tries = torch.maximum(torch.minimum(tries, upper), lower)  # (7, B, S, A)
        values = ((0.5 * _times(square, tries) + linear) * tries).sum(-1, keepdim=True)
        best = values.nan_to_num(nan=math.inf).argmin(0, keepdim=True).expand_as(tries[:1])
        x = torch.where(done, x, tries.gather(0, best).squeeze(0))
        free = _unheld(square, linear, lower, upper, x)
        # A whole Newton step with all components free and inside is the answer. A row that has it
        # is left alone, so that it does not see how long the others take.
        done = done | ((x == whole) & free).all(-1, keepdim=True)
        if bool(done.all()):
            break
    return x, free


def _unheld(square: Tensor, linear: Tensor, lower: Tensor, upper: Tensor, x: Tensor) -> Tensor:
    """Components that are inside of the bounds or would be better off further inside."""
    slope = _times(square, x) + linear
    return ~(((x <= lower) & (slope > 0.0)) | ((x >= upper) & (slope < 0.0)))
