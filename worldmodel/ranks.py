"""Several processes, one training: what `torchrun` starts.

Every rank draws its own windows; statistics over a batch (VICReg, SIGReg) are taken over the
batches of all ranks, and gradients are averaged, so that N ranks with batch B/N train like one
with batch B. With one process all functions here do nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def start(backend: str) -> None:
    """Join the process group that `torchrun` describes in the environment, if it started us."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        # Rank 0 collects while the others wait, which may take longer than the usual timeout.
        dist.init_process_group(backend, timeout=timedelta(hours=12))


def world() -> int:
    """Number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's rank, from 0."""
    return dist.get_rank() if world() > 1 else 0


def wait() -> None:
    """Wait until all ranks are here."""
    if world() > 1:
        dist.barrier()


class _Gather(torch.autograd.Function):
    """All ranks' rows; the gradient of a rank's rows is the sum over all ranks' losses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.chunk(world())[rank()]


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks, `(B, ...)` to `(B * world, ...)`, with gradient.

    The loss of the gathered rows is the same on every rank. Its gradient arrives `world` times at
    each rank's rows, which `average_gradients` divides out.
    """
    if world() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)  # type: ignore[no-untyped-call]
    return gathered


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over ranks, in one message."""
    if world() == 1:
        return
    held = [p for p in parameters if p.grad is not None]
    flat = torch.cat([p.grad.flatten() for p in held if p.grad is not None])
    dist.all_reduce(flat)
    flat /= world()
    parts = torch.split(flat, [p.numel() for p in held])
    for parameter, part in zip(held, parts, strict=True):
        assert parameter.grad is not None
        parameter.grad.copy_(part.view_as(parameter))


@torch.no_grad()
def share(module: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0."""
    if world() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)
