"""The arm's dynamics in PyTorch: exact, batched and differentiable, for planning without learning.

The same mathematics as `forethought.envs.arm.geometry`; a test holds them to each other. With them
an error of planning is told from an error of a learned model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from forethought.envs.arm.geometry import CHECKS, LINK_LENGTH

__all__ = ["clearances", "joints", "step", "sweep", "tip"]


def joints(angles: Tensor) -> Tensor:
    """Ends of all links, the base first: `(..., 7)` to `(..., 8, 2)`."""
    headings = angles.cumsum(-1)
    links = LINK_LENGTH * torch.stack((headings.cos(), headings.sin()), -1)
    return torch.nn.functional.pad(links.cumsum(-2), (0, 0, 1, 0))


def tip(angles: Tensor) -> Tensor:
    """Position of the end effector: `(..., 7)` to `(..., 2)`."""
    headings = angles.cumsum(-1)
    return LINK_LENGTH * torch.stack((headings.cos().sum(-1), headings.sin().sum(-1)), -1)


def clearances(points: Tensor, circles: Tensor) -> Tensor:
    """Signed distance of every link from every obstacle, below 0 where they overlap.

    Args:
        points: What `joints` gives, `(..., 8, 2)`.
        circles: `(..., K, 3)`, to be broadcast to the leading axes of `points`.

    Returns:
        `(..., 7, K)`, in arm lengths. The gradient is zero where a centre lies on a link.
    """
    starts = points[..., :-1, None, :]
    links = points[..., 1:, None, :] - starts  # (..., 7, 1, 2)
    offsets = circles[..., None, :, :2] - starts  # (..., 7, K, 2)
    along = ((links * offsets).sum(-1, keepdim=True) / LINK_LENGTH**2).clamp(0.0, 1.0)
    square = (offsets - along * links).square().sum(-1)
    # The root of zero has an infinite slope, which times the zero inside is not a number.
    return square.clamp_min(torch.finfo(square.dtype).tiny).sqrt() - circles[..., None, :, 2]


def sweep(angles: Tensor, turns: Tensor, checks: int = CHECKS) -> Tensor:
    """Configurations along a move, its end included: `(..., 7)` twice to `(..., checks, 7)`."""
    shares = torch.arange(1, checks + 1, dtype=angles.dtype, device=angles.device) / checks
    return angles.unsqueeze(-2) + shares.unsqueeze(-1) * turns.unsqueeze(-2)


def step(angles: Tensor, actions: Tensor, circles: Tensor, max_step: float) -> Tensor:
    """One step of the environment: a move that would touch an obstacle does not happen.

    The gradient is that of the branch taken: a blocked move has none by its action.

    Args:
        angles: `(N, 7)`.
        actions: `(N, 7)`, clipped to [-1, 1].
        circles: `(N, K, 3)`.
        max_step: Radians that action 1 turns a joint by.

    Returns:
        New angles `(N, 7)`.
    """
    turns = max_step * actions.clamp(-1.0, 1.0)
    with torch.no_grad():
        between = joints(sweep(angles, turns))  # (N, CHECKS, 8, 2)
        free = (clearances(between, circles.unsqueeze(1)) > 0).flatten(1).all(1, keepdim=True)
    return torch.where(free, angles + turns, angles)
