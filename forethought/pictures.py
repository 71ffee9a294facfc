"""Pictures: training curves, real and imagined trajectories, videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as iio
import numpy as np

from forethought.run_folder import read_metrics

REAL = (37, 99, 235)
IMAGINED = (234, 88, 12)


def training_curves(metrics: Path, picture: Path) -> None:
    """Draw every logged loss term of every stage in `metrics` (JSON lines) as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    skip = {"stage", "step", "seconds", "learning_rate", "steps_per_second", "gradient_norm"}
    stages: dict[str, list[dict[str, float]]] = {}
    for record in read_metrics(metrics):
        if record["stage"] != "diagnostics":
            stages.setdefault(record["stage"], []).append(record)
    if not stages:
        return
    figure, axes = plt.subplots(1, len(stages), figsize=(5 * len(stages), 3.5), squeeze=False)
    for axis, (stage, records) in zip(axes[0], stages.items(), strict=True):
        for name in [key for key in records[0] if key not in skip]:
            drawn = [r for r in records if name in r]
            axis.plot([r["step"] for r in drawn], [r[name] for r in drawn], label=name)
        axis.set(title=stage, xlabel="update", yscale="log")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    plt.close(figure)


def write_video(path: Path, frames: Sequence[np.ndarray], frames_per_second: int = 8) -> None:
    """Write RGB frames `(H, W, 3)` uint8 as `.gif` or `.mp4`.

    Raises:
        ValueError: another file ending, or no frames.
    """
    if not frames:
        raise ValueError(f"there are no frames to write to {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gif":
        iio.imwrite(path, np.stack(frames), duration=1000 // frames_per_second, loop=0)
    elif path.suffix == ".mp4":
        iio.imwrite(path, np.stack(frames), fps=frames_per_second, macro_block_size=8)
    else:
        raise ValueError(f"video file {path} must end in .gif or .mp4")


def montage(pictures: Sequence[np.ndarray], columns: int, gap: int = 8) -> np.ndarray:
    """Arrange RGB pictures of one size in rows on a white ground."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write an RGB picture `(H, W, 3)` uint8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    iio.imwrite(path, picture)
