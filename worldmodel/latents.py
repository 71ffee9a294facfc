"""Cached latents: every observation of a data set, encoded once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forethought.envs import Dataset
from forethought.worldmodel.jepa import JEPA


def to_tensor(observations: Any, device: torch.device) -> Any:
    """Observations, an array or a mapping of arrays, as tensors on `device`."""
    if isinstance(observations, Mapping):
        return {name: to_tensor(part, device) for name, part in observations.items()}
    # Views of a mapped file are read-only, which PyTorch warns of: those are copied.
    writable = observations if observations.flags.writeable else np.array(observations)
    return torch.as_tensor(writable, device=device)


def action_tensor(actions: np.ndarray, model: JEPA, device: torch.device) -> Tensor:
    """Stored actions `(..., A)`, or `(..., 1)` where they are discrete, as `model` takes them."""
    tensor = torch.as_tensor(actions, device=device)
    return tensor.squeeze(-1) if model.actions.discrete else tensor


@dataclass(frozen=True)
class LatentData:
    """Every observation of a data set, encoded once; the cache of the stages after the joint one.

    States and actions share one index: the action at the last observation of an episode is a
    zero that no window reaches.

        index     o_e   o_e+1  ...  o_e+T   o_{e+1} ...
        states    s_0   s_1    ...  s_T     s_0
        actions   a_0   a_1    ...  (0)     a_0

    Args:
        states: `(N, D)`.
        actions: `(N, A)`, or `(N,)` int64 where they are discrete.
        remaining: `(N,)` int64, actions left in the episode at each index.
        terminal: `(N,)` bool, whether the action at this index ended the episode by termination.
    """

    states: Tensor
    actions: Tensor
    remaining: Tensor
    terminal: Tensor

    def starts(self, length: int) -> Tensor:
        """Indices at which a window of `length` actions begins, `(M,)` int64."""
        starts = (self.remaining >= length).nonzero().squeeze(1)
        if not len(starts):
            raise ValueError(
                f"unroll is {length}, but the longest episode has {int(self.remaining.max())} "
                "actions: shorten the unroll or collect longer episodes"
            )
        return starts

    def windows(self, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """States `(B, length+1, D)` and actions `(B, length, A)` of windows at `starts`."""
        index = starts.unsqueeze(1) + torch.arange(length + 1, device=starts.device)
        return self.states[index], self.actions[index[:, :-1]]

    def draw(self, starts: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """`count` of `starts` with replacement, `(count,)`; drawn on the generator's device."""
        return starts[torch.randint(len(starts), (count,), generator=generator).to(starts.device)]


@torch.no_grad()
def encode_dataset(model: JEPA, dataset: Dataset, batch: int = 512) -> LatentData:
    """Encode all observations of `dataset`, in the order of its flat arrays."""
    device = model.device
    states = torch.cat(
        [model.encode(to_tensor(chunk, device)) for chunk in dataset.observation_chunks(batch)]
    )
    remaining = np.concatenate([np.arange(length, -1, -1) for length in dataset.lengths])
    taken = dataset.arrays("actions")
    actions = np.zeros((len(remaining), taken.shape[1]), taken.dtype)
    actions[remaining > 0] = taken
    terminal = (remaining == 1) & np.repeat(dataset.arrays("terminated") > 0, dataset.lengths + 1)
    return LatentData(
        states,
        action_tensor(actions, model, device),
        torch.as_tensor(remaining, device=device),
        torch.as_tensor(terminal, device=device),
    )
