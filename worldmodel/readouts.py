"""Readouts: small heads that read named physical quantities from a state (section 4.5.2).

They only listen: they are fitted on cached latents, so no gradient reaches the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from forethought.worldmodel.perception import mlp
from forethought.worldmodel.train import fit


class Readouts(nn.Module):
    """Reads named quantities from states.

    Args:
        state_dim: size D of the state.
        sizes: number of components of each named quantity.
        hidden: width of the hidden layer.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, state_dim: int, sizes: Mapping[str, int], *, hidden: int = 64) -> None:
        super().__init__()
        self.sizes = dict(sizes)
        total = sum(self.sizes.values())
        self.layers = mlp(state_dim, [hidden], total)
        self.register_buffer("mean", torch.zeros(total))
        self.register_buffer("std", torch.ones(total))

    def forward(self, state: Tensor) -> dict[str, Tensor]:
        """Read states `(..., D)`; returns `(..., n)` for each quantity, in its own unit."""
        values = self.layers(state) * self.std + self.mean
        return dict(zip(self.sizes, values.split(list(self.sizes.values()), -1), strict=True))

    def varies(self, name: str) -> bool:
        """Whether the quantity `name` varied in the data that this head was fitted to."""
        parts = torch.split(self.std, list(self.sizes.values()))
        return bool((dict(zip(self.sizes, parts, strict=True))[name] > 0).any())

    def fit(
        self,
        states: Tensor,
        quantities: Mapping[str, Tensor],
        generator: torch.Generator,
        *,
        steps: int = 800,
        batch: int = 256,
    ) -> None:
        """Fit to states `(N, D)` and quantities `(N, n)` by least squares; only this head learns.

        A quantity that never varies is read as its constant.
        """
        states = states.detach()
        values = torch.cat([quantities[name] for name in self.sizes], dim=-1).to(states)
        self.mean.copy_(values.mean(0))
        varies = _varies(values)
        self.std.copy_(torch.where(varies, values.std(0), 0))
        targets = torch.where(varies, (values - self.mean) / self.std, 0)

        def loss() -> tuple[Tensor, dict[str, Tensor]]:
            draw = torch.randint(len(states), (batch,), generator=generator).to(states.device)
            error = (self.layers(states[draw]) - targets[draw]).square().mean()
            return error, {"readout": error}

        fit(self.layers.parameters(), loss, steps=steps, learning_rate=3e-3)


def _varies(values: Tensor) -> Tensor:
    """Which components of values `(N, n)` vary by more than the rounding of float32, `(n,)`."""
    return values.std(0) > 1e-6 * values.mean(0).abs().clamp_min(1)


def r_squared(read: Tensor, true: Tensor) -> float | None:
    """Share of the variance explained, averaged over components; None if nothing varies.

    Args:
        read: `(N, n)` values read from states.
        true: `(N, n)` true values.
    """
    var, varies = true.var(0), _varies(true)
    if not bool(varies.any()):
        return None
    error = (read - true).square().mean(0)
    return float((1 - error[varies] / var[varies]).mean())
