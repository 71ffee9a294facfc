"""How many CPU threads PyTorch uses; every verb that computes takes it as an argument."""

from __future__ import annotations

import torch


def set_threads(threads: int | None) -> None:
    """Let PyTorch use this many CPU threads; None leaves its own choice."""
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads is {threads}: choose 1 or more")
        torch.set_num_threads(threads)
