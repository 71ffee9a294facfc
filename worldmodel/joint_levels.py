"""Joint training of levels: their losses on windows of raw observations, through the encoder.

    moment        0            K            2K   ...   TK
    seen          x_0          x_K          x_2K       x_TK     K: decisions of one own step
    below         s_0          s_K          s_2K       s_TK     s = Enc(x), re-encoded up to below
    done          a_0 .. a_K-1 a_K ..                           coded up to below: T * k actions

Level-wise training (`train_level`) leaves the levels below as they are; here every level's loss
trains all that lies below it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forethought.envs import Dataset
from forethought.worldmodel.hierarchy import (
    Level,
    LevelStage,
    level_loss,
    level_objective,
    lifted,
)
from forethought.worldmodel.jepa import JEPA
from forethought.worldmodel.latents import CODE, action_tensor, code_size, to_tensor, told


class JointLevels:
    """The levels above a world model, as the joint stage trains them.

    Args:
        model: the world model.
        levels: the levels above it, from the lowest on.
        dataset: where windows come from; each level draws its own.
        stage: weights and unroll; its lengths and rates are those of training each level alone.
        directions: source of SIGReg's directions, which ranks share.

    Raises:
        ValueError: no episode is as long as one step of the top level.
    """

    def __init__(
        self,
        model: JEPA,
        levels: Sequence[Level],
        dataset: Dataset,
        stage: LevelStage,
        directions: torch.Generator,
    ) -> None:
        self.model, self.levels = model, tuple(levels)
        strides = [level.shape.stride for level in levels]
        self._spans = [math.prod(strides[: place + 1]) for place in range(len(strides))]
        longest = int(dataset.lengths.max())
        if self._spans[-1] > longest:
            raise ValueError(
                f"model.levels: one step of the top level is {self._spans[-1]} decisions, but the "
                f"longest episode has {longest}: choose shorter strides, or longer episodes"
            )
        self._told = bool(code_size(model))
        self._windows = [
            dataset.windows(min(stage.unroll, longest // span) * span, [CODE] if self._told else [])
            for span in self._spans
        ]
        self._objectives = [level_objective(level, stage, directions) for level in levels]

    def parameters(self) -> list[nn.Parameter]:
        """What is trained beside the world model."""
        return [parameter for level in self.levels for parameter in level.parameters()]

    def loss(
        self,
        batch: int,
        generator: np.random.Generator,
        forward: Callable[[], AbstractContextManager[None]],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of all levels' losses on fresh windows.

        Args:
            batch: windows B of each level.
            generator: source of the windows.
            forward: in what context the encoder runs (precision, dropout); levels run in float32.

        Returns:
            The scalar total, and the terms of level l as `levelL_...`, the world model being 1.
        """
        totals, device = [], self.model.device
        terms: dict[str, Tensor] = {}
        for place, (level, objective) in enumerate(zip(self.levels, self._objectives, strict=True)):
            drawn, span = self._windows[place].sample(batch, generator), self._spans[place]
            codes = None
            if self._told:
                codes = torch.as_tensor(drawn.quantities[CODE][:, ::span], device=device).float()
            with forward():
                seen = to_tensor(_every(drawn.observations, span), device)
                states = self.model.encode(seen, told(codes))
            actions = action_tensor(drawn.actions, self.model, device)
            for below in self.levels[:place]:
                actions = below.macros(actions)
            states = lifted(self.levels[:place], states.float())[-1]
            total, named = level_loss(level, objective, states, actions)
            totals.append(total)
            terms |= {f"level{place + 2}_{name}": term for name, term in named.items()}
        return torch.stack(totals).sum(), terms


def _every(observations: Any, span: int) -> Any:
    """Moments 0, K, 2K, ... of windows `(B, TK+1, ...)`, or of a mapping of them."""
    if isinstance(observations, Mapping):
        return {name: _every(part, span) for name, part in observations.items()}
    return observations[:, ::span]
