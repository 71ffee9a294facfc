"""Pictures: their size and layout, and rendering them where there is no screen."""

from __future__ import annotations

import ctypes.util
import functools
import logging
import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Array = NDArray[Any]


class RenderingError(OSError):
    """Pictures cannot be rendered on this machine, or by this environment."""


def choose_backend() -> None:
    """Let MuJoCo render through EGL on Linux without a screen; to be called before its import.

    `MUJOCO_GL` is left alone where it is set.
    """
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform == "linux" and not screen and ctypes.util.find_library("EGL"):
        os.environ.setdefault("MUJOCO_GL", "egl")


def listen_to_mujoco() -> None:
    """Log what MuJoCo warns of, where it is loaded; by itself it writes files where it runs.

    Models of others that use what MuJoCo calls deprecated are not for users to mend.
    """
    mujoco: Any = sys.modules.get("mujoco")
    if mujoco is not None and mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(
            lambda said: logger.log(
                logging.DEBUG if "deprecated" in said else logging.WARNING, "MuJoCo: %s", said
            )
        )


def cannot_render(id: str, error: Exception, *, with_mujoco: bool) -> RenderingError:
    """The error that says what to do when a renderer fails."""
    remedy = (
        "install an EGL library (Debian: libegl1) and set MUJOCO_GL=egl"
        if with_mujoco
        else "install what its renderer needs"
    )
    reason = " ".join(str(error).split())
    return RenderingError(
        f"pictures of {id} cannot be rendered here ({reason}): {remedy}, or use observe='vector'"
    )


def resize(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Scale a picture `(H, W, C)` to `(size, size, C)` uint8, each pixel the mean of its area.

    The sides are scaled each by its own factor. A picture of that size comes back as it is.
    """
    height, width = picture.shape[:2]
    if (height, width) == (size, size):
        return picture
    scaled = np.tensordot(_areas(height, size), picture.astype(np.float32), axes=(1, 0))
    scaled = np.tensordot(_areas(width, size), scaled, axes=(1, 1)).swapaxes(0, 1)
    return np.asarray(np.rint(scaled), np.uint8)


def channel_first(picture: Array) -> Array:
    """`(H, W, C)` to `(C, H, W)`, in an array of its own."""
    return np.array(picture.transpose(2, 0, 1), order="C")


@functools.cache
def _areas(old: int, new: int) -> NDArray[np.float32]:
    """Weights `(new, old)`: the share of each old pixel in each new one; rows sum to 1."""
    edges = np.linspace(0, old, new + 1)
    begins, ends = edges[:-1, None], edges[1:, None]
    pixels = np.arange(old)
    overlap = np.minimum(ends, pixels + 1) - np.maximum(begins, pixels)
    overlap = np.maximum(overlap, 0)
    return np.asarray(overlap / overlap.sum(axis=1, keepdims=True), np.float32)
