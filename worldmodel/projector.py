"""The projector of a joint embedding: an MLP with batch normalisation, over all ranks.

Batch normalisation lets an encoder that ends in a layer norm give states of any distribution, which
the layer norm alone would hold on a sphere (LeWorldModel, 2603.19312). It takes the statistics of
the batch in training and running ones otherwise, so that planning sees each state for itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from forethought.worldmodel import ranks


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of `(N, W)`, whose N in training are the rows of all ranks.

    N ranks with batch B/N thus train like one with batch B, running statistics included. PyTorch's
    own for several ranks (`SyncBatchNorm`) runs on GPUs alone. A batch that is not finite leaves
    the running statistics finite: else the model would be lost with the update that is refused.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(N, W)`; every rank has to call it equally often, with equally many rows."""
        if not self.training:
            evaluated: Tensor = super().forward(x)
            return evaluated
        mean, var = (held.clone() for held in self._running)
        out = super().forward(x) if ranks.world() == 1 else self._over_ranks(x)
        # New tensors: what was moved is kept for the backward pass and may not change again.
        moved_mean, moved_var = self._running
        self.running_mean = torch.where(moved_mean.isfinite(), moved_mean, mean)
        self.running_var = torch.where(moved_var.isfinite(), moved_var, var)
        return out

    @property
    def _running(self) -> tuple[Tensor, Tensor]:
        assert self.running_mean is not None
        assert self.running_var is not None
        return self.running_mean, self.running_var

    def _over_ranks(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        moments = torch.stack((wide.mean(0), wide.square().mean(0)))[None]
        mean, square = ranks.gather(moments).mean(0)
        var = (square - mean.square()).clamp_min(0)
        self._follow(mean.detach(), var.detach(), len(x) * ranks.world())
        normal = (wide - mean) * torch.rsqrt(var + self.eps)
        out: Tensor = normal * self.weight + self.bias
        return out.to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor, rows: int) -> None:
        """Move the running statistics; that of the variance is unbiased, as in PyTorch."""
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        running_mean, running_var = self._running
        running_mean.lerp_(mean, self.momentum)
        running_var.lerp_(var * rows / max(rows - 1, 1), self.momentum)
        self.num_batches_tracked.add_(1)


class Projector(nn.Sequential):
    """Linear, batch normalisation, GELU, linear.

    Args:
        inputs: numbers that come in.
        hidden: width of the hidden layer, which is normalised.
        outputs: numbers that go out.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        if hidden < 1:
            raise ValueError(f"projector is {hidden}: choose a hidden layer of 1 or more")
        super().__init__(
            nn.Linear(inputs, hidden), BatchNorm(hidden), nn.GELU(), nn.Linear(hidden, outputs)
        )
