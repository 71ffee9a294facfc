"""Snapshots: an interrupted training goes on to the weights of an undisturbed one, bit for bit."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_train import D, collect_rooms, new_model, same, seeded, weights_of
from torch import Tensor, nn

from forethought.envs import Dataset
from forethought.worldmodel import (
    Actions,
    JointStage,
    Losses,
    NonFiniteLossError,
    Objective,
    PredictorStage,
    SlowEncoder,
    Snapshot,
    encode_dataset,
    fit,
    save_checkpoint,
    train_joint,
    train_predictor,
)


class Kill(BaseException):
    """What stands for a kill in these tests: nobody can react to it."""


class Fit:
    """A small fit that draws from both kinds of generators, made anew like a process would."""

    def __init__(self, path: Path | None, every_seconds: float = 30.0) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.torch, self.numpy = seeded(1), np.random.default_rng([7, 1])
        generators = {"torch": self.torch, "numpy": self.numpy}
        modules = {"model": self.model}
        self.snapshot = Snapshot(path, modules, generators, every_seconds=every_seconds)
        self.drawn: list[float] = []

    def loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        x = torch.randn(16, 3, generator=self.torch)
        noise = float(self.numpy.standard_normal())
        self.drawn.append(noise)
        return (self.model(x) - x[:, :1] + 0.1 * noise).square().mean(), {}

    def run(
        self,
        steps: int = 12,
        loss: Callable[[], tuple[Tensor, dict[str, Tensor]]] | None = None,
        stage: str = "only",
        **how: Any,
    ) -> bool:
        if not self.snapshot.enter(stage):
            return False
        fit(
            self.model.parameters(),
            loss or self.loss,
            steps=steps,
            learning_rate=0.05,
            snapshot=self.snapshot,
            **how,
        )
        return True

    @property
    def weights(self) -> dict[str, Tensor]:
        return weights_of(self.model)

    def dying(self, call: int, error: BaseException) -> Callable[[], tuple[Tensor, dict[str, Any]]]:
        """The loss, which fails in the middle of its call number `call`."""
        calls = 0

        def loss() -> tuple[Tensor, dict[str, Tensor]]:
            nonlocal calls
            calls += 1
            value = self.loss()
            if calls == call:
                raise error
            return value

        return loss


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "snapshot.safetensors"


@pytest.fixture(scope="module")
def undisturbed() -> Fit:
    one = Fit(None)
    one.run()
    return one


# ---- one fit -------------------------------------------------------------------------------------


def test_a_snapshot_changes_nothing(path: Path, undisturbed: Fit) -> None:
    one = Fit(path, every_seconds=0)
    assert not one.snapshot.restore()  # there is none yet
    assert one.run()
    assert same(one.weights, undisturbed.weights)
    assert one.drawn == undisturbed.drawn
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("killed", [1, 2, 7, 12])
def test_a_fit_killed_at_any_step_ends_with_the_same_bits(
    killed: int, path: Path, undisturbed: Fit
) -> None:
    first = Fit(path, every_seconds=0)
    with pytest.raises(Kill):
        first.run(loss=first.dying(killed, Kill()))
    again = Fit(path)
    assert again.snapshot.restore()
    assert again.snapshot.replaying
    assert again.run()
    assert not again.snapshot.replaying
    assert again.drawn == undisturbed.drawn[killed - 1 :]  # nothing is done twice
    assert same(again.weights, undisturbed.weights)
    assert torch.equal(again.torch.get_state(), undisturbed.torch.get_state())
    assert again.numpy.bit_generator.state == undisturbed.numpy.bit_generator.state


def test_between_two_snapshots_work_is_repeated_and_not_lost(path: Path, undisturbed: Fit) -> None:
    first = Fit(path, every_seconds=1e9)  # only when the stage begins
    with pytest.raises(Kill):
        first.run(loss=first.dying(9, Kill()))
    again = Fit(path)
    assert again.snapshot.restore()
    again.run()
    assert again.drawn == undisturbed.drawn
    assert same(again.weights, undisturbed.weights)


def test_killed_twice(path: Path, undisturbed: Fit) -> None:
    for call in (5, 4):  # in the second life, the fourth call is the eighth step
        one = Fit(path, every_seconds=0)
        one.snapshot.restore()
        with pytest.raises(Kill):
            one.run(loss=one.dying(call, Kill()))
    last = Fit(path)
    last.snapshot.restore()
    last.run()
    assert last.drawn == undisturbed.drawn[7:]
    assert same(last.weights, undisturbed.weights)


def test_the_file_holds_weights_optimiser_and_position(path: Path) -> None:
    one = Fit(path, every_seconds=0)
    with pytest.raises(Kill):
        one.run(loss=one.dying(6, Kill()))
    tensors = load_file(path)
    for name, value in one.weights.items():
        assert torch.equal(tensors[f"modules.model.{name}"], value)
    # Adam's two averages and its count of steps, for each parameter.
    assert {key for key in tensors if key.startswith("optimiser.0.")} == {
        "optimiser.0.step",
        "optimiser.0.exp_avg",
        "optimiser.0.exp_avg_sq",
    }
    assert tensors["optimiser.3.step"].item() == 5
    assert tensors["optimiser.0.exp_avg"].shape == (8, 3)


def test_the_rate_and_the_reports_go_on_where_they_were(path: Path) -> None:
    whole, log, rest = Fit(None), list[Any](), list[Any]()
    whole.run(log_every=2, on_step=lambda step, r: log.append((step, r["learning_rate"])))
    one = Fit(path, every_seconds=0)
    with pytest.raises(Kill):
        one.run(loss=one.dying(6, Kill()))
    again = Fit(path)
    again.snapshot.restore()
    again.run(log_every=2, on_step=lambda step, r: rest.append((step, r["learning_rate"])))
    assert [step for step, _ in rest] == [6, 8, 10, 12]
    assert rest == log[2:]


# ---- stages --------------------------------------------------------------------------------------


def test_stages_that_are_done_are_skipped(path: Path) -> None:
    whole = Fit(None)
    for stage in "abc":
        whole.run(4, stage=stage)
    one = Fit(path, every_seconds=0)
    one.run(4, stage="a")
    with pytest.raises(Kill):
        one.run(4, one.dying(3, Kill()), stage="b")
    again = Fit(path)
    assert again.snapshot.restore()
    assert [again.run(4, stage=stage) for stage in "abc"] == [False, True, True]
    assert same(again.weights, whole.weights)
    assert again.drawn == whole.drawn[6:]


def test_killed_between_two_stages(path: Path) -> None:
    whole, one = Fit(None), Fit(path)
    for stage in "ab":
        whole.run(4, stage=stage)
    one.run(4, stage="a")
    assert one.snapshot.enter("b")  # and then it was killed
    again = Fit(path)
    assert again.snapshot.restore()
    assert again.snapshot.replaying
    assert [again.run(4, stage=stage) for stage in "ab"] == [False, True]
    assert same(again.weights, whole.weights)


def test_a_process_that_does_not_write(path: Path) -> None:
    one = Fit(None)
    quiet = Snapshot(path, {"model": one.model}, {}, every_seconds=0, writes=False)
    assert quiet.enter("a")
    fit(one.model.parameters(), one.loss, steps=2, learning_rate=0.1, snapshot=quiet)
    assert not path.exists()


# ---- losses without a number, and Ctrl-C ---------------------------------------------------------


def test_a_loss_that_is_not_finite_leaves_the_last_good_weights(path: Path) -> None:
    one, good = Fit(path, every_seconds=1e9), Fit(None)
    calls = 0

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal calls
        calls += 1
        value, terms = one.loss()
        return (value * float("nan") if calls == 6 else value), terms

    with pytest.raises(NonFiniteLossError, match="at step 6"):
        one.run(loss=loss)
    with pytest.raises(Kill):
        good.run(loss=good.dying(6, Kill()))
    again = Fit(path)
    assert again.snapshot.restore()
    assert same(again.weights, good.weights)  # after five updates
    assert not same(again.weights, Fit(None).weights)
    again.run()  # with other data, it can go on
    assert len(again.drawn) == 7
    assert all(tensor.isfinite().all() for tensor in again.weights.values())


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """As in a terminal; what runs in the background may be told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_waits_for_the_update_and_loses_nothing(path: Path, undisturbed: Fit) -> None:
    one = Fit(path, every_seconds=1e9)
    calls = 0

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal calls
        calls += 1
        if calls == 6:  # after something has been drawn, before the weights move
            value = one.loss()
            os.kill(os.getpid(), signal.SIGINT)
            return value
        return one.loss()

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        one.run(loss=loss)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(one.drawn) == 6
    again = Fit(path)
    assert again.snapshot.restore()
    assert same(again.weights, one.weights)
    again.run()
    assert again.drawn == undisturbed.drawn[6:]
    assert same(again.weights, undisturbed.weights)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_in_the_last_update(path: Path, undisturbed: Fit) -> None:
    one = Fit(path)
    with pytest.raises(KeyboardInterrupt):
        one.run(on_step=lambda *_: os.kill(os.getpid(), signal.SIGINT))
    again = Fit(path)
    assert again.snapshot.restore()
    assert again.run()
    assert again.drawn == []
    assert same(again.weights, undisturbed.weights)


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_does_not_wait(path: Path) -> None:
    one = Fit(path, every_seconds=0)

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        value = one.loss()
        if len(one.drawn) == 3:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("it went on")
        return value

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        one.run(loss=loss)
    assert signal.getsignal(signal.SIGINT) is before
    again = Fit(path)
    assert again.snapshot.restore()
    again.run()
    assert len(again.drawn) == 10  # the third is made anew


def test_who_ignores_ctrl_c_goes_on_ignoring_it(undisturbed: Fit) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        one = Fit(None)
        one.run(on_step=lambda *_: os.kill(os.getpid(), signal.SIGINT), log_every=3)
    finally:
        signal.signal(signal.SIGINT, before)
    assert same(one.weights, undisturbed.weights)


# ---- files that are no good ----------------------------------------------------------------------


@pytest.fixture
def written(path: Path) -> Path:
    one = Fit(path, every_seconds=0)
    one.run(3)
    return path


@pytest.mark.parametrize("kept", [0, 5, 100, -200, -1])
def test_a_cut_snapshot_is_refused(written: Path, kept: int) -> None:
    written.write_bytes(written.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"snapshot\.safetensors is damaged or cut: restore it"):
        Fit(written).snapshot.restore()


def test_a_checkpoint_is_no_snapshot(written: Path) -> None:
    save_checkpoint(written, {"model": Fit(None).model}, {})
    with pytest.raises(ValueError, match=r"(?s)does not fit the module 'model'.*resume with"):
        Fit(written).snapshot.restore()


@pytest.mark.parametrize("lacks", ["module", "shape", "torch", "numpy"])
def test_the_snapshot_of_another_training_is_refused(written: Path, lacks: str) -> None:
    modules: dict[str, nn.Module] = {"model": Fit(None).model}
    generators: dict[str, Any] = {"torch": seeded()}
    if lacks == "module":
        modules["critic"] = nn.Linear(2, 2)
    elif lacks == "shape":
        modules["model"] = nn.Sequential(nn.Linear(3, 9), nn.Tanh(), nn.Linear(9, 1))
    elif lacks == "torch":
        generators["directions"] = seeded()
    else:
        generators["other"] = np.random.default_rng(0)
    with pytest.raises(ValueError, match="resume with the configuration and version") as caught:
        Snapshot(written, modules, generators).restore()
    assert str(written) in str(caught.value)
    named = {"module": "'critic'", "shape": "'model'", "torch": "directions", "numpy": "other"}
    assert named[lacks] in str(caught.value)


def test_the_header_is_plain_json(written: Path) -> None:
    raw = written.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    meta = json.loads(header["__metadata__"]["forethought"])
    assert (meta["stage"], meta["step"]) == ("only", 3)
    assert meta["generators"]["numpy"]["bit_generator"] == "PCG64"


# ---- a whole world model -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return collect_rooms(tmp_path_factory.mktemp("rooms"))


class Training:
    """Both stages of a world model, with SIGReg's own generator, a head and a slow encoder."""

    def __init__(self, rooms: Dataset, path: Path | None) -> None:
        self.rooms = rooms
        self.jepa = new_model(rooms, width=4)
        self.directions, self.torch, self.numpy = seeded(1), seeded(2), np.random.default_rng(3)
        weights = replace(Losses(), sigreg=0.1, expander=8)
        slow = SlowEncoder(self.jepa.perception)
        self.heads = Objective(weights, D, Actions(2), self.directions, slow=slow)
        self.snapshot = Snapshot(
            path,
            {"model": self.jepa, "objective": self.heads},
            {"torch": self.torch, "numpy": self.numpy, "directions": self.directions},
            every_seconds=0,
        )

    def run(self, killed: tuple[str, int] | None = None) -> None:
        def killing(module: nn.Module, inputs: Any, output: Any) -> None:
            self.calls += 1
            if self.calls == killed_at:
                raise Kill

        for stage in ("joint", "predictor"):
            self.calls, killed_at = 0, -1
            module: nn.Module = self.heads if stage == "joint" else self.jepa.predictor
            unroll = 2 if stage == "joint" else 4
            if killed and killed[0] == stage:  # the predictor is called once for each step
                killed_at = killed[1] * (1 if stage == "joint" else unroll)
            hook = module.register_forward_hook(killing)
            try:
                if self.snapshot.enter(stage):
                    self.train(stage, unroll)
            finally:
                hook.remove()

    def train(self, stage: str, unroll: int) -> None:
        snapshot = self.snapshot
        if stage == "joint":
            how = JointStage(steps=6, batch=4, unroll=unroll, target_decay=0.9)
            train_joint(self.jepa, self.heads, self.rooms, how, self.numpy, snapshot=snapshot)
        else:
            late = PredictorStage(steps=6, batch=4, unroll=unroll)
            data = encode_dataset(self.jepa, self.rooms)
            train_predictor(self.jepa, data, late, self.torch, snapshot=snapshot)


@pytest.mark.parametrize("killed", [("joint", 1), ("joint", 4), ("predictor", 1), ("predictor", 5)])
def test_a_world_model_ends_with_the_same_bits(
    rooms: Dataset, path: Path, killed: tuple[str, int]
) -> None:
    whole = Training(rooms, None)
    whole.run()
    first = Training(rooms, path)
    with pytest.raises(Kill):
        first.run(killed)
    again = Training(rooms, path)
    assert again.snapshot.restore()
    again.run()
    assert same(weights_of(again.jepa), weights_of(whole.jepa))
    assert same(weights_of(again.heads), weights_of(whole.heads))
    assert torch.equal(again.directions.get_state(), whole.directions.get_state())
    assert not same(weights_of(first.jepa), weights_of(whole.jepa))
