"""Cached latents: every observation of a data set, encoded once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forethought.envs import Dataset
from forethought.worldmodel.fit import in_mode
from forethought.worldmodel.jepa import JEPA

CODE = "code"  # the named quantity that holds what a setting tells modulated modules


def code_size(model: JEPA) -> int:
    """Size M of the code that perception and predictor read; 0: neither is modulated."""
    parts = model.perception, model.predictor
    return max(int(getattr(part, "modulation_dim", 0)) for part in parts)


def check_codes(dataset: Dataset, size: int) -> None:
    """Refuse data that do not hold codes of M numbers for a model that reads them.

    Raises:
        ValueError: the quantity `code` is missing, or has another size.
    """
    if not size:
        return
    if CODE not in dataset.quantity_names:
        raise ValueError(
            f"model.modulation is {size}, but the data hold no quantity {CODE!r}: choose 0, or an "
            f"environment whose info['quantities'] tells {CODE!r} of {size} numbers"
        )
    there = dataset.arrays(f"quantities.{CODE}").shape[1]
    if there != size:
        raise ValueError(
            f"model.modulation is {size}, but the quantity {CODE!r} of the data has {there} "
            f"numbers: choose {there}"
        )


def codes_of(dataset: Dataset, size: int, device: torch.device) -> Tensor | None:
    """Codes at all observations, `(N, M)` float32; None where M = `size` is 0.

    Raises:
        ValueError: see `check_codes`.
    """
    if not size:
        return None
    check_codes(dataset, size)
    return torch.as_tensor(np.array(dataset.arrays(f"quantities.{CODE}"), np.float32)).to(device)


def told(codes: Tensor | None) -> dict[str, Tensor] | None:
    """The context in which modulated modules read `codes` `(..., M)`; None without codes."""
    return None if codes is None else {"modulation": codes}


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
        codes: `(N, M)`, what the configurator knows of the conditions at each index, for modulated
            models; None: nothing is told.
    """

    states: Tensor
    actions: Tensor
    remaining: Tensor
    terminal: Tensor
    codes: Tensor | None = None

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

    def context(self, index: Tensor) -> dict[str, Tensor] | None:
        """What the model is told in roll-outs from `index` `(...)`: codes `(..., M)`, or None.

        The code at the start holds for the whole roll-out, as a setting does for a plan.
        """
        return None if self.codes is None else told(self.codes[index])

    def draw(self, starts: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """`count` of `starts` with replacement, `(count,)`; drawn on the generator's device."""
        return starts[torch.randint(len(starts), (count,), generator=generator).to(starts.device)]


@torch.no_grad()
def encode_dataset(model: JEPA, dataset: Dataset, batch: int = 512) -> LatentData:
    """Encode all observations of `dataset`, in the order of its flat arrays.

    Each for itself, whatever mode the model is in: no dropout, no statistics of a batch.

    Raises:
        ValueError: the model is modulated, and the data hold no codes that fit.
    """
    device = model.device
    codes = codes_of(dataset, code_size(model), device)
    chunks = dataset.observation_chunks(batch)
    told_each = repeat(None) if codes is None else torch.split(codes, batch)
    with in_mode(model.perception, training=False):
        states = torch.cat(
            [
                model.encode(to_tensor(chunk, device), told(code))
                for chunk, code in zip(chunks, told_each, strict=False)
            ]
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
        codes,
    )
