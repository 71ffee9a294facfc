"""The verb `act`: what is kept of every decision, what came of it, and the video."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from torch import Tensor

import forethought
from forethought import envs
from forethought.acting import Recorder, components_of, quantities_of, words_of
from forethought.agent import (
    AgentState,
    Cost,
    CriticStage,
    Effort,
    Mind,
    Outcome,
    Task,
    TaskTerm,
    Tolerance,
)
from forethought.agent.configurator import Configurator
from forethought.pictures import IMAGINED, REAL, WANTED
from forethought.scenes import Subgoals, frame_of

LINE = "forethought/DoubleIntegrator-v0"
FAR = Tolerance("position", margin=1.0, value_at_margin=0.0, sigmoid="linear")  # cost |position|
TERMS = {"far": TaskTerm(FAR), "effort": TaskTerm(Effort(), weight=0.5)}


class Doubling:
    """Readouts that tell twice the state's first component as position, and a constant."""

    sizes: ClassVar = {"position": 1, "constant": 2}

    def __call__(self, state: Tensor) -> dict[str, Tensor]:
        return {"position": 2 * state[..., :1], "constant": state.new_ones(*state.shape[:-1], 2)}

    def varies(self, name: str) -> bool:
        return name == "position"


class Told:
    """A critic that expects 0.4 of the first term and 0.2 of the second."""

    discount = 0.5

    def average(self, state: Tensor) -> Tensor:
        return torch.tensor([0.4, 0.2]).expand(len(state), 2)


def recorder(
    *, limit: int = 50, stage: CriticStage | None = None, task: Task | None = None, **more: Any
) -> Recorder:
    task = Task(terms=TERMS) if task is None else task
    agent = SimpleNamespace(
        bank=task.bank,
        configurator=Configurator(Cost(horizon=2, critic=0.0), task),
        critic=Told(),
        readouts=Doubling(),
        model=SimpleNamespace(action_dim=1),
    )
    for name, value in more.items():
        setattr(agent, name, value)
    trained = SimpleNamespace(
        spec=SimpleNamespace(id=LINE),
        readouts=agent.readouts,
        arguments={"stages": SimpleNamespace(critic=stage or CriticStage())},
    )
    return Recorder(trained, agent, envs.make(LINE, 1, episode_limit=limit))  # type: ignore[arg-type]


def mind(**parts: Any) -> Mind:
    known: dict[str, Any] = {
        "energy": torch.tensor([3.0]),
        "signal": torch.tensor([torch.nan]),
        "thought": torch.tensor([True]),
        "evaluations": torch.tensor([10.0]),
        "costs": torch.tensor([[0.7, 0.0]]),
        "imagined_costs": torch.tensor([[[0.6, 0.1], [0.5, 0.1]]]),
        "coverage": torch.tensor([0.25]),
        "surprise": torch.tensor([torch.nan]),
    }
    return Mind(**known | parts)


def decide(
    it: Recorder, position: float, action: float, imagined: Tensor | None = None, **parts: Any
) -> None:
    """One decision at a position; the agent believes in (position, 0)."""
    carried = AgentState(
        it.agent.configurator.configure(None, 1, torch.device("cpu")),
        torch.Generator(),
        belief=torch.tensor([[position, 0.0]]),
        previous_action=torch.tensor([[action]]),
        imagined=imagined,
        mind=mind(**parts),
    )
    info = {"quantities": {"position": np.array([[position]])}}
    it(np.array([0]), None, info, carried)


def end(it: Recorder, position: float, decisions: int) -> np.ndarray:
    """The episode's last position; returns what came of each state."""
    it.end(Outcome(0, None, 0.0, decisions, quantities={"position": np.array([position])}))
    return it._episodes[-1][1]


# --- what came of each state


def test_what_came_is_the_discounted_sum_of_what_was_realised() -> None:
    """Terms of a state are those of the action that led to it; a failure stays for ever."""
    it = recorder()
    for position, action in ((0.9, 1.0), (0.8, 0.5), (0.6, 0.0)):
        decide(it, position, action)
    came = end(it, 0.3, decisions=3)
    costs = [0.8 + 0.5 * 1.0, 0.6 + 0.5 * 0.25, 0.3 + 0.0]
    for_ever = 1 + 0.5
    expected = [
        sum(0.5 * 0.5**k * cost for k, cost in enumerate(costs[t:])) + 0.5 ** (3 - t) * for_ever
        for t in range(3)
    ]
    assert came == pytest.approx(expected)


def test_after_a_success_nothing_comes() -> None:
    it = recorder(task=Task(terms=TERMS, end="success"))
    decide(it, 0.9, 0.0)
    assert end(it, 0.3, decisions=1) == pytest.approx([0.5 * 0.3])


def test_near_a_truncation_nothing_is_known() -> None:
    """At 0.5 per decision four decisions are needed for 90 % of the weights."""
    it = recorder(limit=6)
    for _ in range(6):
        decide(it, 0.5, 0.0)
    came = end(it, 0.5, decisions=6)
    assert np.isfinite(came).tolist() == [True] * 3 + [False] * 3
    assert came[0] == pytest.approx(0.5 * (1 - 0.5**6))


def test_the_simple_form_is_a_later_cost() -> None:
    it = recorder(stage=CriticStage(form="simple", delay=2))
    for position in (0.9, 0.8, 0.6):
        decide(it, position, 0.0)
    came = end(it, 0.3, decisions=3)
    assert came[:2] == pytest.approx([0.6, 0.3])
    assert np.isnan(came[2])


def test_a_term_that_the_environment_does_not_tell() -> None:
    """It counts only where it has a weight."""
    unknown = Tolerance("nowhere", value_at_margin=0.0, sigmoid="linear")
    for weight, known in ((0.0, True), (0.1, False)):
        task = Task(terms={"far": TERMS["far"], "unknown": TaskTerm(unknown, weight=weight)})
        it = recorder(task=task)
        decide(it, 0.9, 0.0)
        assert np.isfinite(end(it, 0.3, decisions=1)).all() == known


# --- what is kept of a decision


def test_a_decision_is_kept() -> None:
    it = recorder()
    imagined = torch.tensor([[[1.0, 0.0], [2.0, 0.0]]])
    decide(it, 0.9, -0.5, imagined)
    decide(it, 0.8, 0.0, imagined, costs=torch.tensor([[0.75, 0.2]]))
    first, second = it._moments
    assert first.words == "Mode-2: planned"
    assert first.mind["", "energy"] == 3.0
    assert first.mind["", "memory coverage"] == 0.25
    assert first.mind["", "future cost"] == pytest.approx(0.4 + 0.5 * 0.2)
    assert second.mind["cost", "far"] == pytest.approx(0.75)
    assert first.world["cost", "effort"] == 0.0  # nobody had acted
    assert second.world["cost", "far"] == pytest.approx(0.8)
    assert second.world["cost", "effort"] == pytest.approx(0.25)
    assert first.ahead["cost", "far"] == pytest.approx([0.6, 0.5])
    assert first.mind["quantity", "position"] == pytest.approx(1.8)
    assert first.world["quantity", "position"] == pytest.approx(0.9)


def test_of_a_plan_that_is_carried_out_the_rest_is_ahead() -> None:
    it = recorder()
    imagined = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]])
    for _ in range(3):
        decide(it, 0.5, 0.0, imagined)
    decide(it, 0.5, 0.0, imagined.clone())  # another plan
    courses = [moment.ahead["quantity", "position"].tolist() for moment in it._moments]
    assert courses == [[2, 4, 6], [4, 6], [6], [2, 4, 6]]
    end(it, 0.5, 4)
    decide(it, 0.5, 0.0, imagined)
    assert it._moments[0].ahead["quantity", "position"].tolist() == [2, 4, 6]


def test_words() -> None:
    asleep = mind(thought=torch.tensor([False]))
    assert words_of(1, asleep) == "Mode-1: the policy acts"
    assert words_of(2, mind()) == "Mode-2: planned"
    assert words_of(2, asleep) == "Mode-2: goes on with its plan"
    assert words_of("auto", mind()) == "auto: thought (Mode-2)"
    assert words_of("auto", asleep) == "auto: did not think"


def test_which_quantities_are_shown() -> None:
    many = SimpleNamespace(sizes={"a": 3, "b": 1, "still": 1}, varies=lambda name: name != "still")
    terms = (SimpleNamespace(term=SimpleNamespace(reads=("a[2]", "elsewhere", "b"))),)
    agent: Any = SimpleNamespace(readouts=many, bank=SimpleNamespace(terms=terms))
    assert components_of(agent) == [("a", 2), ("b", 0), ("a", 0)]
    assert components_of(SimpleNamespace(readouts=None)) == []  # type: ignore[arg-type]


def test_goals_and_marks_are_no_quantities() -> None:
    info = {"quantities": {"x": [[1]], "goal_x": [[2]], "_x": [True]}}
    assert list(quantities_of(info)) == ["x"]
    assert quantities_of({}) == {}


# --- the frames


def test_frames_of_several_episodes_have_one_size() -> None:
    """The memory is known in the second episode only, and has its strip in the first one too."""
    it = recorder()
    unknown = torch.tensor([torch.nan])
    decide(it, 0.9, 0.0, coverage=unknown)
    end(it, 0.3, 1)
    for _ in range(2):
        decide(it, 0.9, 0.0)
    end(it, 0.3, 2)
    frames = list(it.frames())
    assert len(frames) == 3
    assert len({frame.shape for frame in frames}) == 1
    alone = recorder()
    decide(alone, 0.9, 0.0, coverage=unknown)
    end(alone, 0.3, 1)
    assert len(next(alone.frames())) < len(frames[0])


def test_nothing_at_all_to_draw_is_refused() -> None:
    it = recorder(readouts=None, critic=None, task=Task(goal=True))
    unknown = torch.tensor([torch.nan])
    setting = SimpleNamespace(mode=1, cost=Cost(horizon=2))
    carried = AgentState(
        setting,  # type: ignore[arg-type]
        torch.Generator(),
        previous_action=torch.zeros(1, 1),
        mind=mind(energy=unknown, coverage=unknown, imagined_costs=None),
    )
    it(np.array([0]), None, {}, carried)
    it.end(Outcome(0, None, 0.0, 1))
    with pytest.raises(ValueError, match=r"nothing to draw .*: leave --video out"):
        list(it.frames())


def test_a_renderer_that_fails_leaves_the_panel(caplog: pytest.LogCaptureFixture) -> None:
    it = recorder()

    class Broken:
        render_mode = "rgb_array"

        def render(self) -> None:
            raise envs.RenderingError("install an EGL library")

    line, it.env = it.env, Broken()
    with caplog.at_level(logging.INFO):
        decide(it, 0.9, 0.0)
        decide(it, 0.8, 0.0)
    it.env = line
    end(it, 0.3, 2)
    assert [frame.shape[1] for frame in it.frames()] == [480, 480]
    said = [record.message for record in caplog.records]
    assert len(said) == 1
    assert "the mind alone: install an EGL library" in said[0]


def count(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(picture.astype(int) - colour).max(axis=-1) < 25).sum())


def test_mazes_show_both_paths() -> None:
    env = envs.make("forethought/Maze-v0", 1, observe="vector", render_mode=None)
    _, info = env.reset(seed=[3])
    start = info["quantities"]["position"][0].astype(float)
    course = torch.as_tensor(start + np.array([[0.5, 0.0], [1.0, 0.0], [1.0, 1.0]])).unsqueeze(0)

    class Reading:
        sizes: ClassVar = {"position": 2}

        def __call__(self, states: Tensor) -> dict[str, Tensor]:
            return {"position": states}

    spec = SimpleNamespace(id="forethought/Maze-v0")
    trained: Any = SimpleNamespace(spec=spec, readouts=Reading(), probes=())
    blank: Any = SimpleNamespace(imagined=None, wanted=None)
    carried: Any = SimpleNamespace(imagined=course, wanted=None)
    path = [start + np.array([0.0, 1.5])]
    frame = frame_of(trained, env, info, carried, path)
    assert len(path) == 2
    assert frame.shape[0] == frame.shape[1] > 200
    assert count(frame, REAL) > 20
    whole = count(frame, IMAGINED)
    rest = count(frame_of(trained, env, info, carried, path, age=2), IMAGINED)
    nothing = count(frame_of(trained, env, info, blank, []), IMAGINED)
    assert whole > rest > nothing == 0


def test_subgoals_are_drawn_once_each_time_one_is_made(tmp_path: Path) -> None:
    env = envs.make("forethought/Maze-v0", 1, observe="vector", render_mode=None)
    _, info = env.reset(seed=[3])
    start = info["quantities"]["position"][0].astype(float)

    class Reading:
        sizes: ClassVar = {"position": 2}

        def __call__(self, states: Tensor) -> dict[str, Tensor]:
            return {"position": states}

    folder = SimpleNamespace(packaged=False, path=tmp_path)
    trained: Any = SimpleNamespace(
        spec=SimpleNamespace(id="forethought/Maze-v0"), probes=(Reading(),), folder=folder
    )
    subgoals = Subgoals.of(trained, 2)
    assert subgoals is not None
    for made in (0, 0, 4):
        ahead = torch.as_tensor(start + np.array([1.0, 0.2 * made])).expand(1, 3, 2)
        level: Any = SimpleNamespace(made=made, imagined=ahead)
        carried: Any = object.__new__(AgentState)
        object.__setattr__(carried, "wanted", SimpleNamespace(levels=(level,)))
        subgoals(np.arange(1), None, info, carried)
    assert [list(made) for made in subgoals._wanted] == [[0, 4]]
    assert count(subgoals.picture(), WANTED[0]) > 20
    # Who plans nothing, has no levels, or is a part of the package, draws nothing.
    assert Subgoals.of(trained, 1) is None
    trained.folder = SimpleNamespace(packaged=True)
    assert Subgoals.of(trained, 2) is None


# --- the verb


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_an_environment_without_pictures_shows_the_mind_alone(
    ending: str, line_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    video = tmp_path / f"film.{ending}"
    words = [str(line_run / "run"), f"--video={video}", "--episodes=2"]
    with caplog.at_level(logging.INFO, logger="forethought"):
        outcomes = forethought.call("act", words)
    frames = list(iio.imiter(video))
    assert len(frames) == sum(outcome.decisions for outcome in outcomes)
    assert frames[0].shape[1] == 480
    # Video codecs blur colours.
    assert (frames[-1][..., 0].astype(int) - frames[-1][..., 2] > 60).sum() > 50
    said = [record.message for record in caplog.records if "mind alone" in record.message]
    assert len(said) == 1
    assert "render_mode=rgb_array" in said[0]


def test_recording_changes_nothing(line_run: Path, tmp_path: Path) -> None:
    words = [str(line_run / "run"), "--seed=3"]
    (without,) = forethought.call("act", words)
    (recorded,) = forethought.call("act", [*words, f"--video={tmp_path / 'film.gif'}"])
    assert recorded.return_ == without.return_
    assert recorded.decisions == without.decisions
