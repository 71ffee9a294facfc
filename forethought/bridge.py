"""Bridge to other people's models: their model in our planners, our planners in their policy.

Nothing of theirs is imported; what counts is which methods an object has. In the order of how much
a model must tell of itself:

    get_cost(info, candidates) -> cost          `problem_from_cost`, `Solver`
    encode(info), rollout(info, candidates)     `problem_from_model`, costs of ours on their states
    encode(x), rollout(state, actions)          `problem_from_model`, as our own `JEPA` does

`info` is a mapping of tensors and arrays with the leading axis B, candidates are `(B, S, H, A)` and
costs `(B, S)`: the interface of stable-worldmodel 0.1 (Costable and Solver). What such a model
writes into the mapping, an encoded observation say, is kept from one evaluation to the next for
the same number of candidates, so that nothing is encoded twice.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from gymnasium.spaces import Box
from torch import Tensor

from forethought.planners import Context, Deadline, Planner, Problem, Reduction, State

__all__ = ["Solver", "bounds_of", "problem_from_cost", "problem_from_model"]

GetCost = Callable[[dict[str, Any], Tensor], Tensor]
Bounds = tuple[Tensor, Tensor]
StepCost = Callable[[Any, Tensor, Any, Context, Tensor], Tensor]

# Context tensor that says which of the problems a row is, so that a part of them can be planned.
_ROW = "bridge.row"


def bounds_of(space: Space[Any], block: int = 1, *, batched: bool = False) -> Bounds:
    """Lower and upper bounds `(block * A,)` of the actions of a box.

    Args:
        space: Box of shape `(A,)`, or of B environments `(B, A)`.
        block: actions that stand side by side in one planned action.
        batched: whether the first axis of the space is that of B environments.

    Raises:
        ValueError: the space is no box, or not bounded.
    """
    if not isinstance(space, Box):
        raise ValueError(f"action_space is {space}: choose a Box")
    low, high = (np.asarray(x[0] if batched else x).reshape(-1) for x in (space.low, space.high))
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(
            f"action_space is {space}, which is not bounded: choose finite low and high"
        )
    floats = (torch.as_tensor(x, dtype=torch.float32).repeat(block) for x in (low, high))
    return next(floats), next(floats)


def problem_from_cost(
    get_cost: GetCost,
    info: Mapping[str, Any],
    *,
    horizon: int,
    low: Tensor,
    high: Tensor,
    at_once: int | None = None,
) -> Problem:
    """The planning problem of a model that tells what action sequences cost, and nothing else.

    Such a model has no states that a planner could see: the actions themselves stand for them, so
    that `Plan.states` equals `Plan.actions`. The cost enters once, at the last step, undiscounted.
    Gradients reach the actions where `get_cost` keeps them. The problem has no `step`; asked for
    one step a time, it refuses.

    Args:
        get_cost: `get_cost(info, candidates) -> costs`, with `(B, S, H, A)` and `(B, S)`.
        info: tensors and arrays `(B, ...)`, repeated for the candidates to `(B, S, ...)` (tensors
            without a copy) and handed over as a dict; floating tensors get the type and device of
            the bounds. Entries of other kinds are handed over as they are.
        horizon: H.
        low: lower bounds `(A,)`, where the plan is to be made.
        high: upper bounds `(A,)`.
        at_once: problems in one call of `get_cost`; None for all. 1 is for models that do not keep
            problems apart: in stable-worldmodel 0.1, LeWM compares them with each other's goals.

    Raises:
        ValueError: `info` holds no tensor or array, or they differ in B; while planning: a cost of
            a wrong shape.
    """
    if at_once is not None and at_once < 1:
        raise ValueError(f"at_once is {at_once}: choose 1 or more, or None for all problems")
    rows = _Rows(info, low)

    def rollout(state: Tensor, actions: Tensor, latents: Tensor | None, context: Context) -> Tensor:
        return actions

    def goal_cost(
        state: Tensor, action: Tensor, next_state: Tensor, context: Context, t: Tensor
    ) -> Tensor:
        row = context[_ROW].flatten()
        count = at_once or len(row)
        parts = [
            _checked_costs(get_cost(rows.for_candidates(some, few.shape[1]), few), few)
            for some, few in zip(torch.split(row, count), torch.split(action, count), strict=True)
        ]
        costs = torch.cat(parts) if len(parts) > 1 else parts[0]
        return costs.to(action.dtype).unsqueeze(-1).expand(action.shape[:3])

    return Problem(
        state=low.new_zeros(rows.batch, low.shape[0]),
        step=_no_step,
        rollout=rollout,
        goal_cost=goal_cost,
        reduction="last",
        horizon=horizon,
        low=low,
        high=high,
        context={_ROW: torch.arange(rows.batch, device=low.device)},
    )


def problem_from_model(
    model: Any,
    observation: Any,
    *,
    horizon: int,
    low: Tensor,
    high: Tensor,
    goal: Any = None,
    goal_cost: StepCost | None = None,
    stage_cost: StepCost | None = None,
    reduction: Reduction = "sum",
    discount: float = 1.0,
) -> Problem:
    """The planning problem of a model that encodes observations and predicts states.

    Two kinds are told apart by what `encode` returns:

    - a state, tensors `(B, ...)`: then `rollout(state, actions)` takes `(N, ...)` and `(N, H, A)`
      and returns the states after each action `(N, H, ...)`, as `JEPA.rollout` does;
    - a mapping with `emb` `(B, T, ...)`, of a mapping `info`: then `rollout(info, candidates)`
      takes `(B, S, ...)` and `(B, S, H, A)` and returns a mapping with `predicted_emb`, or
      `predicted_embedding`, `(B, S, 1 + H, ...)`, as models of stable-worldmodel do. T is 1: one
      frame of history, since candidates hold no past actions.

    Observation and goal are encoded once, without a gradient.

    Args:
        model: has `encode` and `rollout`.
        observation: what `encode` takes, leading axis B.
        horizon: H.
        low: lower bounds `(A,)`, where the plan is to be made.
        high: upper bounds `(A,)`.
        goal: an observation of the same kind to come near to; its state lies in
            `context["goal"]`. Where it is None, there must be a `stage_cost` or a `goal_cost`.
        goal_cost: distance of a state to the goal, see `Problem.goal_cost`; by default the squared
            distance to it, averaged over all axes of the state.
        stage_cost: cost of each step, see `Problem.stage_cost`.
        reduction: of the goal's cost over time.
        discount: per planning step.

    Raises:
        ValueError: the model lacks a method, nothing is to be minimised, or `rollout` returns
            states of other sizes.
    """
    for name in ("encode", "rollout"):
        if not callable(getattr(model, name, None)):
            raise ValueError(
                f"model is {type(model).__name__}, which has no method {name!r}: choose a model "
                "that has, or problem_from_cost"
            )
    if goal is None and goal_cost is None and stage_cost is None:
        raise ValueError("goal is None and there is no cost: choose a goal, or pass stage_cost")
    with torch.no_grad():
        state, mapped = _encoded(model, observation)
        target = None if goal is None else _encoded(model, goal)[0]
    if target is not None and not isinstance(target, Tensor):
        raise ValueError(
            "goal is encoded as a mapping: choose a goal_cost, and put what it reads in its closure"
        )
    context: dict[str, Tensor] = {} if target is None else {"goal": target}
    rollout = model.rollout
    if mapped:
        rows = _Rows(observation, low)
        context[_ROW] = torch.arange(rows.batch, device=low.device)
        rollout = _mapped_rollout(model, rows, horizon)
    else:
        rollout = _plain_rollout(model)
    return Problem(
        state=state,
        step=_no_step,
        rollout=rollout,
        goal_cost=goal_cost or (None if target is None else _distance),
        stage_cost=stage_cost,
        reduction=reduction,
        discount=discount,
        horizon=horizon,
        low=low,
        high=high,
        context=context,
    )


class Solver:
    """A planner of ours where stable-worldmodel expects a solver: `WorldModelPolicy(solver=...)`.

    Unlike their solvers it returns the best sequence it has evaluated, never leaves the bounds,
    and plans all environments in one batch. If the model has their `get_action`, the rest of the
    starting sequence comes from it, else it is zero.

    Args:
        model: has `get_cost(info, candidates)`; see `problem_from_cost`.
        planner: the planner.
        low: lower bounds of one action `(A,)` in the unit that the model takes; by default those
            of the action space. To be given where the policy normalises actions.
        high: upper bounds `(A,)`.
        device: where to plan.
        seed: of the planner's randomness.
        deadline_seconds: time after which a solve begins no further iteration; None without one.
        at_once: environments in one call of `get_cost`; see `problem_from_cost`.
    """

    def __init__(
        self,
        model: Any,
        planner: Planner,
        *,
        low: Tensor | None = None,
        high: Tensor | None = None,
        device: str | torch.device = "cpu",
        seed: int = 0,
        deadline_seconds: float | None = None,
        at_once: int | None = None,
    ) -> None:
        if not callable(getattr(model, "get_cost", None)):
            raise ValueError(
                f"model is {type(model).__name__}, which has no method 'get_cost': choose one that "
                "has, or plan with problem_from_model"
            )
        if (low is None) != (high is None):
            raise ValueError(
                f"low is {low} and high is {high}: choose both, or neither to take the action "
                "space's"
            )
        if deadline_seconds is not None and not deadline_seconds > 0:
            raise ValueError(f"deadline_seconds is {deadline_seconds}: choose more than 0, or None")
        self.model, self.planner = model, planner
        self.device = torch.device(device)
        self.deadline_seconds, self.at_once = deadline_seconds, at_once
        self.generator = torch.Generator().manual_seed(seed)
        self._given = None if low is None or high is None else (low, high)
        self._bounds: Bounds | None = None
        self._n_envs = 0
        self._config: Any = None

    def configure(self, *, action_space: Space[Any], n_envs: int, config: Any) -> None:
        """Take the action space `(B, A)` and the configuration of a policy.

        Args:
            action_space: that of the vector environment.
            n_envs: B.
            config: has `horizon`, and `action_block`: actions within one planned action.

        Raises:
            ValueError: the action space is no box, or unbounded without bounds given.
        """
        block = int(getattr(config, "action_block", 1))
        if self._given is not None:
            low, high = (bound.repeat(block) for bound in self._given)
        else:
            low, high = bounds_of(action_space, block, batched=True)
        kind = _kind_of(self.model)
        self._bounds = low.to(self.device, kind), high.to(self.device, kind)
        self._n_envs, self._config = n_envs, config

    @property
    def n_envs(self) -> int:
        """Number of environments."""
        return self._n_envs

    @property
    def action_dim(self) -> int:
        """Size of a planned action, its block included; 0 before `configure`."""
        return 0 if self._bounds is None else self._bounds[0].shape[0]

    @property
    def horizon(self) -> int:
        """Planned actions; 0 before `configure`."""
        return 0 if self._config is None else int(self._config.horizon)

    def __call__(
        self, info_dict: Mapping[str, Any], init_action: Tensor | None = None
    ) -> dict[str, Any]:
        """See `solve`."""
        return self.solve(info_dict, init_action)

    def solve(
        self, info_dict: Mapping[str, Any], init_action: Tensor | None = None
    ) -> dict[str, Any]:
        """Plan for the environments of `info_dict`, all or some of them.

        Args:
            info_dict: tensors and arrays `(B, ...)`.
            init_action: start of the search `(B, t, A)` with t <= H, or None.

        Returns:
            `actions` `(B, H, A)` on the CPU; `costs`, a float for each problem; `status`, a
            sentence for each; `model_steps`.

        Raises:
            RuntimeError: `configure` was not called.
            ValueError: `init_action` or a cost of a wrong shape.
        """
        if self._bounds is None:
            raise RuntimeError("the solver has no action space: call configure first")
        low, high = self._bounds
        problem = problem_from_cost(
            self.model.get_cost,
            info_dict,
            horizon=self.horizon,
            low=low,
            high=high,
            at_once=self.at_once,
        )
        deadline = None
        if self.deadline_seconds is not None:
            deadline = Deadline.after(self.deadline_seconds)
        plan = self.planner.plan(
            problem,
            proposals=self._first_guess(info_dict, init_action, problem),
            generator=self.generator,
            deadline=deadline,
        )
        return {
            "actions": plan.actions.detach().cpu(),
            "costs": plan.energy.detach().tolist(),
            "status": [status.value for status in plan.status],
            "model_steps": plan.model_steps,
        }

    def _first_guess(
        self, info: Mapping[str, Any], given: Tensor | None, problem: Problem
    ) -> Tensor | None:
        """Proposals `(B, 1, H, A)`: what is given, then what the model would do, or zeros."""
        shape = (problem.batch, problem.horizon, problem.action_dim)
        known = 0 if given is None else given.shape[1]
        if given is not None and (
            given.ndim != 3 or given.shape[::2] != shape[::2] or known > shape[1]
        ):
            raise ValueError(
                f"init_action has the shape {tuple(given.shape)}: choose (B, t, A) with B = "
                f"{shape[0]}, t <= {shape[1]}, A = {shape[2]}"
            )
        acts = callable(getattr(self.model, "get_action", None))
        if given is None and not acts:
            return None
        low = problem.bounds[0]
        parts = [] if given is None else [given.to(low)]
        missing = shape[1] - known
        if missing and acts:
            with torch.no_grad():
                tail = self.model.get_action(dict(info), horizon=missing, prefix_actions=given)
            parts.append(tail.reshape(shape[0], missing, shape[2]).to(low))
        elif missing:
            parts.append(low.new_zeros(shape[0], missing, shape[2]))
        return torch.cat(parts, dim=1).unsqueeze(1)


def _checked_costs(costs: Any, candidates: Tensor) -> Tensor:
    """Costs of candidates `(B, S, H, A)`, if they are `(B, S)`."""
    if not isinstance(costs, Tensor) or costs.shape != candidates.shape[:2]:
        said = tuple(costs.shape) if isinstance(costs, Tensor) else type(costs).__name__
        raise ValueError(
            f"get_cost returned {said}: choose one that returns {tuple(candidates.shape[:2])}, "
            "one cost for each problem and candidate"
        )
    return costs


class _Rows:
    """The info of B problems, repeated for candidates on demand.

    Whoever evaluates candidates may write into the mapping it is given: it is made once for the
    same problems and number of candidates, and stays.
    """

    def __init__(self, info: Mapping[str, Any], like: Tensor) -> None:
        self._info = {name: _placed(value, like) for name, value in info.items()}
        sizes = {name: len(x) for name, x in self._info.items() if _has_rows(x)}
        if not sizes or len(set(sizes.values())) != 1:
            raise ValueError(
                f"info has the leading axes {sizes}: choose tensors or arrays with the same B"
            )
        self.batch = next(iter(sizes.values()))
        self._kept: dict[tuple[tuple[int, ...], int], dict[str, Any]] = {}

    def for_candidates(self, rows: Tensor, samples: int) -> dict[str, Any]:
        """The info of the problems `rows` `(B,)`, `(B, S, ...)`."""
        chosen = tuple(rows.tolist())
        if (chosen, samples) not in self._kept:
            # A slice is a view, where rows lie in their order; an index copies.
            ordered = chosen == tuple(range(chosen[0], chosen[0] + len(chosen)))
            index = slice(chosen[0], chosen[0] + len(chosen)) if ordered else rows
            self._kept[chosen, samples] = {
                name: _repeated(_chosen(x, index), samples) for name, x in self._info.items()
            }
        return self._kept[chosen, samples]


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) and value.ndim > 0


def _placed(value: Any, like: Tensor) -> Any:
    """A tensor on the device, and if floating of the type, of `like`; others as they are."""
    if not isinstance(value, Tensor):
        return value
    return value.to(like) if value.is_floating_point() else value.to(like.device)


def _chosen(value: Any, index: Tensor | slice) -> Any:
    if not _has_rows(value):
        return value
    if isinstance(value, np.ndarray) and isinstance(index, Tensor):
        return value[index.cpu().numpy()]
    return value[index]


def _repeated(value: Any, samples: int) -> Any:
    """`(B, ...)` -> `(B, S, ...)`, tensors without a copy."""
    if not _has_rows(value):
        return value
    if isinstance(value, Tensor):
        return value.unsqueeze(1).expand(-1, samples, *value.shape[1:])
    return np.repeat(value[:, None], samples, axis=1)  # a view of numpy's could not be written to


def _encoded(model: Any, observation: Any) -> tuple[State, bool]:
    """State `(B, ...)` of an observation, and whether the model speaks in mappings."""
    if not isinstance(observation, Mapping):
        state: State = model.encode(observation)
        return state, False
    encoded = model.encode(dict(observation))
    if not isinstance(encoded, Mapping) or "emb" not in encoded:
        return encoded, False
    return encoded["emb"][:, -1], True


def _plain_rollout(model: Any) -> Callable[[Any, Tensor, Tensor | None, Context], Any]:
    """The model's roll-out, with latents and context if it takes them, as ours do."""
    parameters = inspect.signature(model.rollout).parameters.values()
    taken = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)

    def rollout(state: Any, actions: Tensor, latents: Tensor | None, context: Context) -> Any:
        if taken >= 4:
            return model.rollout(state, actions, latents, context)
        return model.rollout(state, actions)

    return rollout


def _mapped_rollout(
    model: Any, rows: _Rows, horizon: int
) -> Callable[[Any, Tensor, Tensor | None, Context], Any]:
    """Roll-out `(N, H, ...)` by a model that takes an info and candidates `(B, S, H, A)`."""

    def rollout(state: Tensor, actions: Tensor, latents: Tensor | None, context: Context) -> Tensor:
        row = context[_ROW]
        samples = _run_length(row)
        info = rows.for_candidates(row[::samples], samples)
        rolled = model.rollout(info, actions.reshape(-1, samples, *actions.shape[1:]))
        found = [rolled[name] for name in _PREDICTED if name in rolled]
        if not found or found[0].shape[2] != horizon + 1:
            said = tuple(found[0].shape) if found else "nothing"
            raise ValueError(
                f"rollout returned {said} as {' or '.join(_PREDICTED)}: choose a model that "
                f"returns (B, S, 1 + H, ...) with H = {horizon}, for one frame of history"
            )
        states: Tensor = found[0][:, :, 1:].flatten(0, 1)
        return states

    return rollout


def _run_length(row: Tensor) -> int:
    """S, if every problem's rows lie side by side, S of them; else 1: each row for itself."""
    samples = int((row == row[0]).sum())
    whole = len(row) % samples == 0
    return samples if whole and torch.equal(row, row[::samples].repeat_interleave(samples)) else 1


_PREDICTED = ("predicted_emb", "predicted_embedding")


def _distance(
    state: Tensor, action: Tensor, next_state: Tensor, context: Context, t: Tensor
) -> Tensor:
    """Squared distance to the goal `(B, S, H)`, averaged over all axes of the state."""
    return (next_state - context["goal"]).square().flatten(3).mean(-1)


def _no_step(state: Any, action: Tensor, latent: Any, context: Context, t: int) -> Any:
    raise ValueError(
        "the model rolls whole sequences out and has no single step: choose a planner that uses "
        "Problem.rollout"
    )


def _kind_of(model: Any) -> torch.dtype:
    """Floating type of a model's parameters; float32 without any."""
    parameters = getattr(model, "parameters", None)
    first = next(iter(parameters()), None) if callable(parameters) else None
    return first.dtype if isinstance(first, Tensor) else torch.float32
