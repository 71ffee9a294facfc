"""Readouts: small heads that read named physical quantities from a state (section 4.5.2).

By default they only listen: they are fitted on cached latents, so no gradient reaches the encoder.
With `losses.readout` above 0 they also take part in the joint stage and shape it. Either way they
are fitted to encoded states and to the states that the model predicts, because plans are judged by
what is read from predicted states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from forethought.worldmodel.fit import OnStep, fit
from forethought.worldmodel.jepa import JEPA
from forethought.worldmodel.latents import LatentData
from forethought.worldmodel.perception import mlp
from forethought.worldmodel.snapshot import Snapshot


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

    def standardise_by(self, quantities: Mapping[str, Tensor], *, anew: bool = True) -> None:
        """Set the unit in which errors are measured from values `(N, n)`.

        A component that never varies is read as its constant. Values that are not a number are
        unknown and count nowhere.

        Args:
            quantities: named values.
            anew: set all components; else only those that did not vary when they were set, and may
                have begun to: a sparse reward that was met for the first time.
        """
        if not self.sizes:
            return
        values = torch.cat([quantities[name] for name in self.sizes], dim=-1).to(self.mean)
        # A component that is unknown everywhere is read as zero.
        mean = values.nanmean(0).nan_to_num(0.0)
        std = (values - mean).square().nanmean(0).sqrt().nan_to_num(0.0)
        std = torch.where(_varies(mean, std), std, 0)
        changed = torch.ones_like(std, dtype=torch.bool) if anew else self.std == 0
        self.mean.copy_(torch.where(changed, mean, self.mean))
        self.std.copy_(torch.where(changed, std, self.std))

    def error(self, states: Tensor, quantities: Mapping[str, Tensor]) -> Tensor:
        """Mean squared error in standard deviations, of states `(..., D)` and values `(..., n)`."""
        values = torch.cat([quantities[name] for name in self.sizes], dim=-1).to(states)
        known = values.isfinite() & (self.std > 0)
        targets = torch.where(known, (values - self.mean) / self.std, 0)
        squared = torch.where(known, self.layers(states) - targets, 0).square()
        return squared.sum() / known.sum().clamp_min(1)

    def fit(
        self,
        model: JEPA,
        data: LatentData,
        quantities: Mapping[str, Tensor],
        generator: torch.Generator,
        *,
        steps: int = 800,
        batch: int = 32,
        unroll: int = 8,
        on_step: OnStep | None = None,
        snapshot: Snapshot | None = None,
    ) -> None:
        """Fit to encoded and to predicted states by least squares; only this head learns.

        Args:
            model: the world model, for the predicted states.
            data: cached latents.
            quantities: values in the order of `data`, `(N, n)` each; not-a-number where unknown.
            generator: source of the windows.
            steps: number of updates.
            batch: windows per update.
            unroll: steps of a window, shortened to the longest episode.
            on_step: see `fit`.
            snapshot: see `fit`.
        """
        if not self.sizes:
            return
        length = min(unroll, int(data.remaining.max()))
        # Windows may reach beyond an episode's end, where nothing is known: short episodes count.
        starts = data.starts(1)
        span = torch.arange(length + 1, device=starts.device)
        rows = len(data.states) - 1

        def loss() -> tuple[Tensor, dict[str, Tensor]]:
            index = data.draw(starts, batch, generator)[:, None] + span
            beyond = (data.remaining[index[:, 0], None] < span)[:, :, None]
            index = index.clamp(max=rows)
            with torch.no_grad():
                states = data.states[index]
                actions, context = data.actions[index[:, :-1]], data.context(index[:, 0])
                predicted = model.rollout(states[:, 0], actions, context=context)
            true = {
                name: quantities[name][index].masked_fill(beyond, math.nan) for name in self.sizes
            }
            encoded = self.error(states, true)
            imagined = self.error(predicted, {name: q[:, 1:] for name, q in true.items()})
            return encoded + imagined, {"encoded": encoded, "imagined": imagined}

        fit(
            self.layers.parameters(),
            loss,
            steps=steps,
            learning_rate=3e-3,
            on_step=on_step,
            snapshot=snapshot,
        )


def _varies(mean: Tensor, std: Tensor) -> Tensor:
    """Which components vary by more than the rounding of float32, `(n,)`."""
    return std > 1e-6 * mean.abs().clamp_min(1)


def r_squared(read: Tensor, true: Tensor) -> float | None:
    """Share of the variance explained, averaged over components; None if nothing varies.

    Args:
        read: `(N, n)` values read from states.
        true: `(N, n)` true values; rows that are not a number are unknown and left out.
    """
    known = true.isfinite().all(-1)
    read, true = read[known], true[known]
    if len(true) < 2:
        return None
    var, mean = true.var(0), true.mean(0)
    varies = _varies(mean, var.sqrt())
    if not bool(varies.any()):
        return None
    error = (read - true).square().mean(0)
    return float((1 - error[varies] / var[varies]).mean())
