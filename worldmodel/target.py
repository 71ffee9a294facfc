"""The slow encoder: a moving average of the encoder, which encodes what is to be predicted.

With no gradient through what is predicted, a constant state is no longer the nearest way to a small
prediction error (BYOL, 2006.07733; I-JEPA, 2301.08243). Only training needs it: it belongs to the
objective, and the model that is saved holds the encoder that learns by gradient.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from forethought.worldmodel.perception import Context, Perception, encode


class SlowEncoder(nn.Module):
    """Moving average of an encoder's parameters, without gradient.

    Only parameters are averaged. Standardisation is a copy, and statistics of batches are those of
    its own states: it normalises its batches as the encoder does, in the same mode.

    Args:
        perception: the encoder; copied as it is now.
    """

    def __init__(self, perception: Perception) -> None:
        super().__init__()
        self.perception = copy.deepcopy(perception).requires_grad_(False)

    @torch.no_grad()
    def follow(self, perception: Perception, decay: float) -> None:
        """One update, slow <- decay slow + (1 - decay) fast (2006.07733, eq. 1).

        Args:
            perception: the encoder, after an update of its own.
            decay: share that stays, in [0, 1].
        """
        pairs = zip(self.perception.parameters(), perception.parameters(), strict=True)
        for slow, fast in pairs:
            slow.lerp_(fast, 1 - decay)

    @torch.no_grad()
    def forward(
        self, observation: Tensor | Mapping[str, Tensor], context: Context | None = None
    ) -> Tensor:
        """Observations `(..., *O)`, or a mapping of them, to states `(..., D)`; see `encode`."""
        return encode(self.perception, observation, context)
