"""Pictures: the panel of the mind at work, calibration, videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest

from forethought.pictures import (
    HEAD,
    IMAGINED,
    LABELS,
    NUMBERS,
    REAL,
    STRIP,
    Trace,
    beside,
    calibration_plot,
    mind_frames,
    training_curves,
    write_video,
)

NOTHING = np.full(4, np.nan)


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Pixels of a colour, `(H, W)` bool; smooth edges do not count."""
    return np.asarray(np.abs(picture.astype(int) - colour).max(axis=-1) < 25)


def trace(name: str = "energy", **parts: Any) -> Trace:
    return Trace(name, **{"mind": NOTHING, "world": NOTHING} | parts)


def strip(frame: np.ndarray, place: int = 0) -> np.ndarray:
    """The pixels of a strip's curves."""
    top = HEAD + place * STRIP
    return frame[top : top + STRIP, LABELS : frame.shape[1] - NUMBERS]


# --- the panel


def test_a_frame_for_each_decision_of_one_size() -> None:
    shown = [trace(mind=np.arange(4.0)), trace("cost calm", world=np.ones(4))]
    frames = list(mind_frames(shown, ["planned"] * 4, width=400))
    assert len(frames) == 4
    assert {frame.shape for frame in frames} == {(HEAD + 2 * STRIP, 400, 3)}
    assert all(frame.dtype == np.uint8 for frame in frames)
    assert next(mind_frames(shown, ["planned"] * 4, height=300)).shape == (300, 480, 3)


def test_the_mind_and_the_world_have_their_colours() -> None:
    shown = [trace(mind=np.arange(4.0)), trace("other", world=np.arange(4.0))]
    *_, last = mind_frames(shown, [""] * 4)
    assert near(strip(last, 0), IMAGINED).any()
    assert not near(strip(last, 0), REAL).any()
    assert near(strip(last, 1), REAL).any()
    assert not near(strip(last, 1), IMAGINED).any()


def test_what_is_still_to_come_is_pale() -> None:
    first, *_, last = (
        near(strip(frame), IMAGINED)
        for frame in mind_frames([trace(mind=np.arange(4.0))], [""] * 4)
    )
    half = first.shape[1] // 2
    assert not first[:, half:].any()
    assert last[:, half:].any()


def test_higher_numbers_stand_higher() -> None:
    *_, last = mind_frames([trace(mind=np.array([0.0, 0.0, 9.0, 9.0]))], [""] * 4)
    rows, columns = np.nonzero(near(strip(last), IMAGINED))
    middle = strip(last).shape[1] / 2
    assert rows[columns > 0.7 * 2 * middle].max() < rows[columns < 0.3 * 2 * middle].min()


def test_what_is_imagined_begins_at_the_present() -> None:
    """A course that rises to where a line of the world already is, with nothing in the mind."""
    world = np.array([0.0, 0.0, 0.0, 4.0])
    ahead = (np.array([2.0, 4.0]), *[np.empty(0)] * 3)
    courses = [trace(world=world, ahead=ahead), trace("without", world=world)]
    first, second, *_ = mind_frames(courses, [""] * 4)
    found = near(strip(first), IMAGINED)
    columns = found.shape[1] / 4
    assert found.any()
    xs, ys = np.nonzero(found.any(axis=0))[0], np.nonzero(found.any(axis=1))[0]
    assert xs.min() == pytest.approx(0.5 * columns, abs=4)
    assert xs.max() == pytest.approx(2.5 * columns, abs=4)
    assert ys.max() - ys.min() > 20  # from the lowest to the highest value of the strip
    assert not near(strip(first, 1), IMAGINED).any()
    assert not near(strip(second), IMAGINED).any()  # imagined at the first decision only


def test_words_are_drawn() -> None:
    one, other, same, _ = mind_frames(
        [trace(mind=np.ones(4))], ["thought", "did not", "did not", ""]
    )
    assert (one[:HEAD] != other[:HEAD]).any()
    assert (other[:HEAD] == same[:HEAD]).all()


def test_a_course_that_runs_off_hides_nothing() -> None:
    ahead = tuple(np.array([0.5] * 60 + [1e9, np.nan, np.inf]) for _ in range(4))
    one = trace(mind=np.arange(4.0), ahead=ahead)
    assert one.span == (0.0, 3.0)
    assert len(list(mind_frames([one], [""] * 4))) == 4


@pytest.mark.parametrize("value", [0.0, 7.0, -1e12, 1e-300])
def test_constants_are_drawn_in_the_middle(value: float) -> None:
    *_, last = mind_frames([trace(mind=np.full(4, value))], [""] * 4)
    rows = np.nonzero(near(strip(last), IMAGINED).any(axis=1))[0]
    assert rows.mean() == pytest.approx(STRIP / 2, abs=2)


def test_refusals_of_the_panel() -> None:
    with pytest.raises(ValueError, match=r"'energy' has lengths \[4, 3\]: choose"):
        trace(world=np.zeros(3))
    with pytest.raises(ValueError, match=r"lengths \[4, 4, 1\]"):
        trace(ahead=(np.zeros(2),))
    with pytest.raises(ValueError, match="nothing to draw"):
        next(mind_frames([trace()], [""] * 4))
    with pytest.raises(ValueError, match="4 decisions and words 3: choose"):
        next(mind_frames([trace(mind=np.ones(4))], [""] * 3))


# --- calibration


def report(*terms: str, slope: float | None = 0.8) -> dict[str, Any]:
    bins = [{"predicted": x, "realised": x**2, "count": 5} for x in (0.1, 0.4, 0.9)]
    measures = {"slope": slope, "correlation": slope, "mean_absolute_error": 0.1, "bias": 0.0}
    return {"count": 15, "terms": {name: {"bins": bins, **measures} for name in terms}}


@pytest.mark.parametrize("terms", [("upright",), ("a", "b", "c", "d", "e")])
def test_a_calibration_plot(terms: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "new" / "calibration.png"
    calibration_plot(report(*terms), path)
    picture = iio.imread(path)
    assert picture.shape[1] >= 250 * min(4, len(terms))
    # In every plot there are points.
    for column in range(min(4, len(terms))):
        assert near(picture[:270, 260 * column : 260 * (column + 1), :3], IMAGINED).sum() > 20


def test_a_constant_term_can_be_drawn(tmp_path: Path) -> None:
    told = report("calm", slope=None)
    told["terms"]["calm"]["bins"] = [{"predicted": 0.0, "realised": 0.0, "count": 3}]
    calibration_plot(told, tmp_path / "calibration.png")
    assert near(iio.imread(tmp_path / "calibration.png")[..., :3], IMAGINED).any()


def test_no_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds \['count'\]: give what"):
        calibration_plot({"count": 0}, tmp_path / "calibration.png")


# --- videos and curves


def test_pictures_beside_each_other() -> None:
    one, other = np.full((10, 4, 3), 9, np.uint8), np.full((20, 7, 3), 7, np.uint8)
    sheet = beside([one, other])
    assert sheet.shape == (24, 24, 3)  # multiples of 8, for mp4
    assert (sheet[:10, :4] == 9).all()
    assert (sheet[:20, 12:19] == 7).all()
    sheet[:10, :4] = sheet[:20, 12:19] = 255
    assert (sheet == 255).all()


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_frames_are_written_one_after_the_other(ending: str, tmp_path: Path) -> None:
    """No list of them is needed, which for an episode of 1000 decisions is a gigabyte."""
    path = tmp_path / "new" / f"film.{ending}"
    write_video(path, (np.full((48, 64, 3), 40 * k, np.uint8) for k in range(5)))
    read = np.stack(list(iio.imiter(path)))[..., :3]
    assert read.shape == (5, 48, 64, 3)
    assert read.mean(axis=(1, 2, 3)) == pytest.approx([0, 40, 80, 120, 160], abs=4)


def test_refusals_of_videos(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no frames"):
        write_video(tmp_path / "film.gif", iter([]))
    with pytest.raises(ValueError, match=r"must end in \.gif or \.mp4"):
        write_video(tmp_path / "film.avi", [np.zeros((8, 8, 3), np.uint8)])
    assert not list(tmp_path.iterdir())


def test_what_the_mind_did_is_no_training_curve(tmp_path: Path) -> None:
    joint = '{"stage": "joint", "step": 1, "loss": 2.0}\n'
    mind = '{"stage": "mind/mode_2", "step": 0, "energy": -1.0}\n'
    for name, text in (("one", joint), ("both", joint + mind)):
        (tmp_path / f"{name}.jsonl").write_text(text)
        training_curves(tmp_path / f"{name}.jsonl", tmp_path / f"{name}.png")
    one, both = (iio.imread(tmp_path / f"{name}.png") for name in ("one", "both"))
    assert one.shape == both.shape
    training_curves(tmp_path / "none.jsonl", tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
