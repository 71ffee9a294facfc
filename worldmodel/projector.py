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
    own for several ranks (`SyncBatchNorm`) runs on GPUs alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `(N, W)`; every rank has to call it equally often, with equally many rows."""
        if not self.training or ranks.world() == 1:
            local: Tensor = super().forward(x)
            return local
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
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * rows / max(rows - 1, 1), self.momentum)
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
