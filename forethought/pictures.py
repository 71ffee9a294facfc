"""Pictures: training curves, calibration, videos, and the mind at work beside what happens.

One pair of colours throughout: `REAL` is what happened, `IMAGINED` what the agent had in mind.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imageio.v2 as writers
import imageio.v3 as iio
import numpy as np

from forethought.envs.two_rooms.drawing import polyline
from forethought.run_folder import read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REAL = (37, 99, 235)
IMAGINED = (234, 88, 12)
# Subgoals of the levels above, from the lowest on; further ones are not drawn.
WANTED = ((124, 58, 237), (13, 148, 136), (190, 24, 93))
NOW = (120, 120, 120)

# The panel, in pixels: height of a strip and of the lines above, width beside the curves.
STRIP, HEAD, LABELS, NUMBERS = 44, 40, 112, 60
PALE = 0.25  # of the curves that are still to come


@dataclass(frozen=True, eq=False)
class Trace:
    """One strip of the panel: a number over the T decisions of an episode.

    Not-a-number, and nothing where all of it is, is left out.

    Args:
        name: stands beside the strip.
        mind: what the agent says of it at each decision, `(T,)`.
        world: what happened, `(T,)`.
        ahead: for each of the T decisions what is imagined of the next ones, `(H,)` each, the first
            of them one decision ahead; or nothing at all.

    Raises:
        ValueError: lengths do not fit.
    """

    name: str
    mind: np.ndarray
    world: np.ndarray
    ahead: tuple[np.ndarray, ...] = ()

    def __post_init__(self) -> None:
        lengths = [len(self.mind), len(self.world)] + [len(self.ahead)] * bool(self.ahead)
        if len(set(lengths)) > 1:
            raise ValueError(
                f"trace {self.name!r} has lengths {lengths}: choose one number for each decision"
            )

    @property
    def known(self) -> bool:
        """Whether there is anything to draw."""
        return bool(np.isfinite(self.mind).any() or np.isfinite(self.world).any())

    @property
    def span(self) -> tuple[float, float]:
        """Lowest and highest value; zeros where there is none.

        Of what is imagined the outermost 2 % are left out: a course may run off.
        """
        drawn = [part[np.isfinite(part)] for part in (self.mind, self.world)]
        ahead = np.concatenate(self.ahead) if self.ahead else np.empty(0)
        ahead = ahead[np.isfinite(ahead)]
        if len(ahead):
            drawn.append(np.quantile(ahead, [0.02, 0.98]))
        every = np.concatenate(drawn)
        return (float(every.min()), float(every.max())) if len(every) else (0.0, 0.0)


def training_curves(metrics: Path, picture: Path) -> None:
    """Draw every logged loss term of every stage in `metrics` (JSON lines) as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    skip = {"stage", "step", "seconds", "learning_rate", "steps_per_second", "gradient_norm"}
    stages: dict[str, list[dict[str, float]]] = {}
    for record in read_metrics(metrics):
        if record["stage"] != "diagnostics" and not record["stage"].startswith("mind/"):
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


def calibration_plot(report: Mapping[str, Any], path: Path) -> None:
    """Draw what a critic expected against what came, term by term, as a PNG.

    Args:
        report: what `forethought.agent.calibration` returns.
        path: the picture.

    Raises:
        ValueError: the report holds no terms.
    """
    if not report.get("terms"):
        raise ValueError(
            f"report holds {sorted(report)}: give what forethought.agent.calibration returns"
        )
    terms = list(report["terms"].items())
    columns = min(4, len(terms))
    rows = math.ceil(len(terms) / columns)
    figure = _figure(260 * columns, 270 * rows)
    for place, (name, term) in enumerate(terms):
        axis = figure.add_subplot(rows, columns, place + 1)
        told, came, count = (
            np.array([group[key] for group in term["bins"]], float)
            for key in ("predicted", "realised", "count")
        )
        both = np.concatenate((told, came))
        room = 0.05 * float(np.ptp(both)) or 0.05
        ends = (float(both.min()) - room, float(both.max()) + room)
        axis.plot(ends, ends, color="0.7", linewidth=1, label="calibrated")
        axis.plot(told, came, color=_shade(IMAGINED), linewidth=1)
        axis.scatter(told, came, 12 + 30 * count / count.max(), color=_shade(IMAGINED), zorder=3)
        measures = (("slope", term["slope"]), ("correlation", term["correlation"]))
        words = ", ".join(f"{word} {value:.2f}" for word, value in measures if value is not None)
        axis.set_title(f"{name}\n{words or 'constant'}", fontsize=8)
        axis.set(xlim=ends, ylim=ends, aspect="equal")
        axis.set_xlabel("expected", fontsize=8)
        axis.set_ylabel("came", fontsize=8)
        axis.tick_params(labelsize=7)
    figure.tight_layout()
    write_picture(path, _drawn(figure))


def mind_frames(
    traces: Sequence[Trace], words: Sequence[str], *, width: int = 480, height: int = 0
) -> Iterator[np.ndarray]:
    """Draw the mind at work: a panel of curves for each decision of an episode.

    What is still to come is pale. At the present decision begins, as a thin line, what is imagined
    of the next ones.

    Args:
        traces: the strips, from the top; those without a number stay empty.
        words: said above, for each of the T decisions.
        width: of a frame, in pixels.
        height: least height of a frame; more strips make it higher.

    Yields:
        `(H, W, 3)` uint8, T times.

    Raises:
        ValueError: no strip has anything to draw, or lengths do not fit.
    """
    if not any(trace.known for trace in traces):
        raise ValueError("there is nothing to draw: no trace holds a finite number")
    for trace in traces:
        if len(trace.mind) != len(words):
            raise ValueError(
                f"trace {trace.name!r} has {len(trace.mind)} decisions and words {len(words)}: "
                "choose as many of both"
            )
    starts = [time + len(part) for trace in traces for time, part in enumerate(trace.ahead)]
    last = max(len(words) - 1, *starts, 1) if starts else max(len(words) - 1, 1)
    limits = [_limits(trace) for trace in traces]
    strip = max(STRIP, (height - HEAD) // len(traces))
    height = max(height, HEAD + strip * len(traces))
    step = (width - LABELS - NUMBERS) / (last + 1)
    later, past = (
        _curves(traces, limits, last, (width, height), strip, alpha) for alpha in (PALE, 1.0)
    )
    head = _Words(width, HEAD)
    for time, said in enumerate(words):
        frame, now = later.copy(), round(LABELS + (time + 0.5) * step)
        frame[:, :now] = past[:, :now]
        frame[:HEAD] = head(said)
        frame[HEAD : HEAD + strip * len(traces), now] = NOW
        for place, (trace, ends) in enumerate(zip(traces, limits, strict=True)):
            top, bottom = _rows_of(place, strip)
            region = frame[top:bottom, LABELS : width - NUMBERS]
            region[...] = _with_course(region, trace, time, ends, step)
        yield frame


def _with_course(
    region: np.ndarray, trace: Trace, time: int, limits: tuple[float, float], step: float
) -> np.ndarray:
    """The pixels of a strip's curves, `(h, w, 3)` uint8, with what is imagined at `time`.

    Args:
        region: the pixels without.
        trace: what is drawn.
        time: the present decision.
        limits: lowest and highest value of the strip.
        step: pixels between two decisions.
    """
    course = trace.ahead[time] if trace.ahead else np.empty(0)
    if not len(course):
        return region
    present = trace.world[time] if math.isnan(trace.mind[time]) else trace.mind[time]
    values = np.concatenate(([present], course))
    low, high = limits
    # Far outside of the strip nothing is seen, and so long a line would only take time.
    down = np.clip((high - values) * len(region) / (high - low), -1000, 1000)
    along = (time + 0.5 + np.arange(len(values))) * step
    drawn = region.astype(np.float64)
    centres = np.arange(max(region.shape[:2])) + 0.5
    polyline(drawn, centres, np.stack((along, down), axis=1), 1, IMAGINED, width=0.6)
    return np.rint(drawn).astype(np.uint8)


def beside(pictures: Sequence[np.ndarray], gap: int = 8) -> np.ndarray:
    """RGB pictures side by side on a white ground, its sides multiples of 8 as videos want."""
    height = max(len(picture) for picture in pictures)
    width = sum(picture.shape[1] + gap for picture in pictures) - gap
    sheet = np.full((-(-height // 8) * 8, -(-width // 8) * 8, 3), 255, np.uint8)
    left = 0
    for picture in pictures:
        sheet[: len(picture), left : left + picture.shape[1]] = picture
        left += picture.shape[1] + gap
    return sheet


def _limits(trace: Trace) -> tuple[float, float]:
    """Lower and upper edge of a strip: the span of its trace, with some room."""
    low, high = trace.span
    # Noise of float32 about a constant is not worth a scale of its own.
    varies = high - low > 1e-5 * max(abs(low), abs(high))
    room = 0.08 * (high - low) if varies else max(0.5, 1e-5 * abs(high))
    return low - room, high + room


def _rows_of(place: int, strip: int) -> tuple[int, int]:
    """First and behind the last row of pixels of a strip's curves."""
    return HEAD + place * strip + 5, HEAD + (place + 1) * strip - 5


def _curves(
    traces: Sequence[Trace],
    limits: Sequence[tuple[float, float]],
    last: int,
    size: tuple[int, int],
    strip: int,
    alpha: float,
) -> np.ndarray:
    """All strips of an episode, the curves as strong as `alpha`, `(H, W, 3)` uint8."""
    width, height = size
    figure = _figure(width, height)
    for place, (trace, (low, high)) in enumerate(zip(traces, limits, strict=True)):
        top, bottom = _rows_of(place, strip)
        box = (LABELS / width, 1 - bottom / height)
        shape = ((width - NUMBERS - LABELS) / width, (bottom - top) / height)
        axis = figure.add_axes((*box, *shape), xlim=(-0.5, last + 0.5), ylim=(low, high))
        axis.set_axis_off()
        axis.axhspan(low, high, color="0.96", zorder=0)
        # The world's line is the wider one: where both agree, it is seen on either side.
        for values, colour, wide in ((trace.world, REAL, 3.0), (trace.mind, IMAGINED, 1.2)):
            look: dict[str, Any] = {"color": _shade(colour), "linewidth": wide, "alpha": alpha}
            axis.plot(values, marker=".", markersize=wide, **look)
        middle = 1 - (top + bottom) / 2 / height
        name = trace.name if len(trace.name) <= 18 else trace.name[:17] + "\N{HORIZONTAL ELLIPSIS}"
        figure.text((LABELS - 6) / width, middle, name, fontsize=8, ha="right", va="center")
        beyond = (width - NUMBERS + 4) / width
        lowest, highest = trace.span
        figure.text(beyond, 1 - top / height, _short(highest), fontsize=7, va="top", color="0.35")
        figure.text(beyond, 1 - bottom / height, _short(lowest), fontsize=7, color="0.35")
    return _drawn(figure)


class _Words:
    """A line of words, and below it what the colours mean, drawn again and again.

    Args:
        width: of the picture, in pixels.
        height: of the picture.
    """

    def __init__(self, width: int, height: int) -> None:
        self._figure = _figure(width, height)
        self._line = self._figure.text(6 / width, 0.95, "", fontsize=9, weight="bold", va="top")
        legend = (("what the agent has in mind", IMAGINED, LABELS), ("what happened", REAL, 300))
        for said, colour, at in legend:
            self._figure.text(at / width, 0.08, said, fontsize=8, color=_shade(colour))

    def __call__(self, words: str) -> np.ndarray:
        """The picture, `(height, width, 3)` uint8."""
        self._line.set_text(words)
        return _drawn(self._figure)


def _figure(width: int, height: int) -> Figure:
    """An empty figure of so many pixels, that is nobody's current one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    FigureCanvasAgg(figure)
    return figure


def _drawn(figure: Figure) -> np.ndarray:
    """A figure as RGB `(H, W, 3)` uint8."""
    canvas: Any = figure.canvas
    canvas.draw()
    return np.array(np.asarray(canvas.buffer_rgba())[..., :3])


def _shade(colour: tuple[int, int, int]) -> tuple[float, float, float]:
    """A colour as matplotlib wants it."""
    red, green, blue = colour
    return red / 255, green / 255, blue / 255


def _short(value: float) -> str:
    """A number in three digits."""
    return f"{0.0 if abs(value) < 1e-9 else value:.3g}"


def write_video(path: Path, frames: Iterable[np.ndarray], frames_per_second: int = 8) -> None:
    """Write RGB frames `(H, W, 3)` uint8 as `.gif` or `.mp4`, one after the other.

    Raises:
        ValueError: another file ending, or no frames.
    """
    if path.suffix == ".gif":
        options: dict[str, Any] = {"duration": 1000 // frames_per_second, "loop": 0}
    elif path.suffix == ".mp4":
        options = {"fps": frames_per_second, "macro_block_size": 8}
    else:
        raise ValueError(f"video file {path} must end in .gif or .mp4")
    rest = iter(frames)
    first = next(rest, None)
    if first is None:
        raise ValueError(f"there are no frames to write to {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer: Any
    with writers.get_writer(path, **options) as writer:
        writer.append_data(first)
        for frame in rest:
            writer.append_data(frame)


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
