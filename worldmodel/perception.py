"""Perception: s = Enc(x), from raw observations to latent states.

The encoders here are small and shallow on purpose, so that they are cheap on a CPU.
Standardisation is part of the module, so a checkpoint carries the statistics it was trained with.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Dict
from torch import Tensor, nn

from forethought.envs import EnvSpec
from forethought.worldmodel.modulation import FiLM, Modulation, condition_of


class Standardise(nn.Module):
    """Per-channel standardisation, (x - mean) / std, with statistics stored as buffers.

    Args:
        channels: number of channels C.
        trailing: number of axes after the channel axis (2 for images, 0 for vectors).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, trailing: int) -> None:
        super().__init__()
        shape = (channels,) + (1,) * trailing
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    def fit(self, mean: Tensor, std: Tensor) -> None:
        """Set the statistics, each `(C,)`. A channel that never varies keeps a std of 1."""
        if mean.shape != self.mean.shape[:1] or std.shape != self.std.shape[:1]:
            raise ValueError(
                f"statistics have shapes {tuple(mean.shape)} and {tuple(std.shape)}, "
                f"but the encoder expects {tuple(self.mean.shape[:1])}: compute them per channel"
            )
        constant = std < 1e-6
        self.mean.copy_(mean.view(self.mean.shape))
        self.std.copy_(torch.where(constant, torch.ones_like(std), std).view(self.std.shape))

    def forward(self, x: Tensor) -> Tensor:
        """Standardise `x`, shape `(..., C, *trailing)`, any dtype; returns the dtype of `mean`."""
        return (x.to(self.mean.dtype) - self.mean) / self.std


Statistics = tuple[np.ndarray, np.ndarray]
Context = Mapping[str, Tensor]


class Perception(nn.Module, ABC):
    """Encoder of single observations to states; sub-classes set `latent_dim`.

    Attributes:
        latent_dim: size D of the state.
        modulation_dim: size M of the code `context["modulation"]` that it reads; 0: it reads none.
    """

    latent_dim: int
    modulation_dim: int = 0

    @abstractmethod
    def forward(self, observation: Any, context: Context | None = None) -> Tensor:
        """Encode observations with any leading axes: `(..., *O)` to `(..., D)`.

        Args:
            observation: an array, or a mapping of arrays.
            context: conditioning, or None. A modulated encoder reads `context["modulation"]`, whose
                leading axes are the first ones of the observations: `(B, M)` for `(B, T, *O)`.

        Raises:
            ValueError: an observation or a code is missing or has a wrong shape.
        """

    @abstractmethod
    def standardise_by(self, statistics: Any) -> None:
        """Set the standardisation from mean and std per channel, as `Dataset` computes them."""


def encode(
    perception: Perception,
    observation: Tensor | Mapping[str, Tensor],
    context: Context | None = None,
) -> Tensor:
    """S = Enc(x): observations `(..., *O)`, or a mapping of them, to states `(..., D)`.

    `context` holds the conditioning of a modulated encoder, tensors with the leading axis; others
    are not shown it.
    """
    modulated = getattr(perception, "modulation_dim", 0)
    state: Tensor = perception(observation, *((context,) if modulated else ()))
    return state


class BoxPerception(Perception):
    """Encoder of observations that are one array. Sub-classes implement `encode`."""

    standardise: Standardise
    observation_shape: tuple[int, ...]

    @abstractmethod
    def encode(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map standardised observations `(N, *O)` to states `(N, D)`.

        `condition` holds codes `(N, M)` where the encoder is modulated.
        """

    def forward(self, observation: Tensor, context: Context | None = None) -> Tensor:
        """See `Perception.forward`."""
        shape = self.observation_shape
        if tuple(observation.shape[-len(shape) :]) != shape:
            raise ValueError(
                f"observation has shape {tuple(observation.shape)}, but the encoder was built for "
                f"(..., {', '.join(map(str, shape))}): use the environment it was trained on"
            )
        lead = observation.shape[: observation.dim() - len(shape)]
        x = self.standardise(observation.reshape(-1, *shape))
        size = self.modulation_dim
        condition = condition_of(context, size, lead)
        if condition is not None:  # flat, as the observations are
            condition = condition.expand(*lead, size).reshape(-1, size)
        return self.encode(x, condition).view(*lead, self.latent_dim)

    def standardise_by(self, statistics: Statistics) -> None:
        """See `Perception`; mean and std are `(C,)` each."""
        mean, std = (torch.as_tensor(x, device=self.standardise.mean.device) for x in statistics)
        self.standardise.fit(mean, std)


def _box_shape(spec: EnvSpec, axes: int, kind: str) -> tuple[int, ...]:
    space = spec.observation_space
    if not isinstance(space, Box) or len(space.shape) != axes:
        raise ValueError(
            f"{kind} needs observations with {axes} axes, but {spec.id} has {space}: "
            "choose another model.perception"
        )
    return tuple(space.shape)


def _checked_gains(gains: Sequence[float] | None, channels: int) -> tuple[float, ...]:
    """One factor per channel.

    Raises:
        ValueError: their number is another one, or one is not above 0 and finite.
    """
    if gains is None:
        return (1.0,) * channels
    found = tuple(float(gain) for gain in gains)
    if len(found) != channels:
        raise ValueError(
            f"gains={found} for images of {channels} channels: choose one number per channel"
        )
    if not all(0 < gain < math.inf for gain in found):
        raise ValueError(f"gains={found}: choose numbers above 0, finite")
    return found


class ImagePerception(BoxPerception):
    """Patch convolutions with ReLU, then a two-layer head, for images `(C, H, W)`.

    Args:
        spec: the environment's description; gives C, H and W.
        latent_dim: size D of the latent state.
        channels: output channels of each patch convolution.
        patches: kernel and stride of each patch convolution.
        hidden: width of the layer between the convolutions and the latent state.
        normalise: apply LayerNorm (without affine parameters) to the state.
        modulation: size M of a code `context["modulation"]` that modulates the last hidden layer;
            0 reads none.
        gains: factor of each channel after it is standardised, `(C,)`; None leaves all at 1. What
            is large is learned first: without, a channel in which little differs from episode to
            episode may never be encoded beside one in which much moves.
    """

    def __init__(
        self,
        spec: EnvSpec,
        *,
        latent_dim: int = 32,
        channels: Sequence[int] = (32, 64),
        patches: Sequence[int] = (4, 2),
        hidden: int = 64,
        normalise: bool = False,
        modulation: int = 0,
        gains: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if len(channels) != len(patches):
            raise ValueError(
                f"channels={tuple(channels)} and patches={tuple(patches)} must have equal length"
            )
        self.observation_shape = _box_shape(spec, 3, "ImagePerception")
        self.gains = _checked_gains(gains, self.observation_shape[0])
        self.latent_dim, self.modulation_dim = latent_dim, modulation
        depth, height, width = self.observation_shape
        self.standardise = Standardise(depth, trailing=2)
        layers: list[nn.Module] = []
        for out, patch in zip(channels, patches, strict=True):
            layers += [nn.Conv2d(depth, out, patch, stride=patch), nn.ReLU()]
            depth, height, width = out, height // patch, width // patch
        if not height * width:
            raise ValueError(
                f"patches={tuple(patches)} leave nothing of an image of shape "
                f"{self.observation_shape}: use fewer or smaller patches"
            )
        layers += [nn.Flatten(), nn.Linear(depth * height * width, hidden), nn.ReLU()]
        layers += [nn.Linear(hidden, latent_dim)]
        if normalise:
            layers += [nn.LayerNorm(latent_dim, elementwise_affine=False)]
        self.layers = nn.Sequential(*layers)
        self.modulation = Modulation(self.layers, modulation, last=True)

    def standardise_by(self, statistics: Statistics) -> None:
        """See `Perception`; the gains become a part of the stored std."""
        super().standardise_by(statistics)
        std = self.standardise.std
        std.div_(std.new_tensor(self.gains).view(std.shape))

    def encode(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map standardised images `(N, C, H, W)` to states `(N, D)`; see `BoxPerception`."""
        x = x.contiguous(memory_format=torch.channels_last)
        state: Tensor = self.modulation(self.layers, x, condition)
        return state


class VectorPerception(BoxPerception):
    """Multi-layer perceptron with ReLU for vectors `(O,)`.

    Args:
        spec: the environment's description; gives O.
        latent_dim: size D of the latent state.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
        normalise: apply LayerNorm (without affine parameters) to the state.
        modulation: size M of a code `context["modulation"]` that modulates the last hidden layer;
            0 reads none.
    """

    def __init__(
        self,
        spec: EnvSpec,
        *,
        latent_dim: int = 32,
        hidden: int = 128,
        layers: int = 2,
        normalise: bool = True,
        modulation: int = 0,
    ) -> None:
        super().__init__()
        self.observation_shape = _box_shape(spec, 1, "VectorPerception")
        self.latent_dim, self.modulation_dim = latent_dim, modulation
        size = math.prod(self.observation_shape)
        self.standardise = Standardise(size, trailing=0)
        stack = mlp(size, [hidden] * layers, latent_dim)
        self.layers = nn.Sequential(
            *stack, *([nn.LayerNorm(latent_dim, elementwise_affine=False)] if normalise else [])
        )
        self.modulation = Modulation(self.layers, modulation, last=True)

    def encode(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map standardised vectors `(N, O)` to states `(N, D)`; see `BoxPerception`."""
        state: Tensor = self.modulation(self.layers, x, condition)
        return state


class MixedPerception(Perception):
    """One encoder per entry of a dictionary of observations, merged by one linear layer.

    Args:
        spec: the environment's description; gives the entries.
        latent_dim: size D of the latent state.
        normalise: apply LayerNorm (without affine parameters) to the state.
        modulation: size M of a code `context["modulation"]` that modulates what the entries'
            encoders give, before it is merged; 0 reads none.
    """

    def __init__(
        self,
        spec: EnvSpec,
        *,
        latent_dim: int = 32,
        normalise: bool = True,
        modulation: int = 0,
    ) -> None:
        super().__init__()
        space = spec.observation_space
        if not isinstance(space, Dict):
            raise ValueError(
                f"MixedPerception needs a dictionary of observations, but {spec.id} has {space}: "
                "choose another model.perception"
            )
        if modulation < 0:
            raise ValueError(f"modulation is {modulation}: choose 0 (none) or more")
        self.latent_dim, self.modulation_dim = latent_dim, modulation
        # A module's name may hold no dot, an entry's may.
        self.names = tuple(space.spaces)
        self.parts = nn.ModuleList(
            AutoPerception(replace(spec, observation_space=part), latent_dim=latent_dim).inner
            for part in space.spaces.values()
        )
        self.merge = nn.Linear(latent_dim * len(self.names), latent_dim)
        self.modulation = FiLM(modulation, self.merge.in_features) if modulation else None
        self.norm = nn.LayerNorm(latent_dim, elementwise_affine=False) if normalise else None

    def forward(self, observation: Mapping[str, Tensor], context: Context | None = None) -> Tensor:
        """Encode a mapping of observations, each `(..., *O_name)`, to `(..., D)`."""
        missing = set(self.names) - set(observation)
        if missing:
            raise ValueError(
                f"observation has no entries {sorted(missing)}: use the environment it was "
                "trained on"
            )
        parts = [part(observation[name]) for name, part in zip(self.names, self.parts, strict=True)]
        features = torch.cat(parts, dim=-1)
        if self.modulation is not None:
            condition = condition_of(context, self.modulation_dim, features.shape[:-1])
            features = self.modulation(features, condition)
        state: Tensor = self.merge(features)
        return state if self.norm is None else self.norm(state)

    def standardise_by(self, statistics: Mapping[str, Statistics]) -> None:
        """See `Perception`; one pair of mean and std per entry."""
        for name, part in zip(self.names, self.parts, strict=True):
            assert isinstance(part, Perception)
            part.standardise_by(statistics[name])


class AutoPerception(Perception):
    """The encoder that fits the observation space: images, vectors, or a dictionary of both.

    Args:
        spec: the environment's description.
        latent_dim: size D of the latent state.
        modulation: size M of a code `context["modulation"]` that the encoder reads; 0 reads none.
    """

    inner: Perception

    def __init__(self, spec: EnvSpec, *, latent_dim: int = 32, modulation: int = 0) -> None:
        super().__init__()
        space = spec.observation_space
        self.latent_dim, self.modulation_dim = latent_dim, modulation
        if isinstance(space, Dict):
            self.inner = MixedPerception(spec, latent_dim=latent_dim, modulation=modulation)
        elif isinstance(space, Box) and len(space.shape) == 3:
            self.inner = ImagePerception(spec, latent_dim=latent_dim, modulation=modulation)
        elif isinstance(space, Box) and len(space.shape) == 1:
            self.inner = VectorPerception(spec, latent_dim=latent_dim, modulation=modulation)
        else:
            raise ValueError(
                f"{spec.id} has observations {space}, for which no encoder is known: use vectors, "
                "images (C, H, W) or a dictionary of them, or choose another model.perception"
            )

    def forward(self, observation: Any, context: Context | None = None) -> Tensor:
        """Encode observations; see the encoder inside."""
        state: Tensor = self.inner(observation, context)
        return state

    def standardise_by(self, statistics: Any) -> None:
        """See `Perception`."""
        self.inner.standardise_by(statistics)


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Linear layers with ReLU between them: `(N, inputs)` to `(N, outputs)`."""
    sizes = [inputs, *hidden]
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))
