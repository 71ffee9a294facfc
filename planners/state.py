"""States of a world model as planners see them: a tensor or nested mapping of tensors, batch first.

A planner never looks inside a state. It touches one only through the functions here, so that a
recurrent memory, a window of frames, entity slots or the levels of a hierarchy all fit. A mapping
of context tensors is such a state too.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["State", "apply", "expand", "flatten", "leaves", "select", "stack", "unflatten"]

State: TypeAlias = Tensor | Mapping[str, "State"]


def leaves(state: State) -> list[Tensor]:
    """The tensors of `state`, in the order of its keys."""
    if isinstance(state, Tensor):
        return [state]
    return [leaf for part in state.values() for leaf in leaves(part)]


def apply(function: Callable[..., Tensor], *states: State) -> State:
    """Apply `function` to corresponding tensors of `states`, which are nested alike.

    Raises:
        ValueError: the states are not nested alike.
    """
    first = states[0]
    if isinstance(first, Tensor):
        return function(*states)
    for other in states[1:]:
        if isinstance(other, Tensor) or other.keys() != first.keys():
            raise ValueError(
                f"states are nested differently: one has the keys {sorted(first)}, another is "
                f"{'a tensor' if isinstance(other, Tensor) else sorted(other)}; "
                "step and rollout must return states nested like the one they were given"
            )
    return {key: apply(function, *(state[key] for state in states)) for key in first}  # type: ignore[index]


def expand(state: State, samples: int) -> State:
    """Repeat each problem's state for its candidates: `(B, ...)` -> `(B*S, ...)`, problem-major.

    Row `b * samples + s` of the result is problem `b`, as `torch.repeat_interleave` orders it.
    The result may share memory with `state`: read it, do not write it.
    """
    return apply(lambda x: x.unsqueeze(1).expand(-1, samples, *x.shape[1:]).flatten(0, 1), state)


def select(state: State, index: Tensor) -> State:
    """Rows `index` `(M,)` int64 of the leading axis: `(N, ...)` -> `(M, ...)`."""
    return apply(lambda x: x.index_select(0, index), state)


def flatten(state: State) -> State:
    """Merge the axes of problems and candidates: `(B, S, ...)` -> `(B*S, ...)`."""
    return apply(lambda x: x.flatten(0, 1), state)


def unflatten(state: State, batch: int, samples: int) -> State:
    """Undo `flatten`: `(B*S, ...)` -> `(B, S, ...)`."""
    return apply(lambda x: x.unflatten(0, (batch, samples)), state)


def stack(states: Sequence[State], axis: int) -> State:
    """Stack H states along a new `axis`: with axis 1, H times `(N, ...)` -> `(N, H, ...)`."""
    return apply(lambda *parts: torch.stack(parts, axis), *states)
