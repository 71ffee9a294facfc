"""What people get wrong, through the command line: one line with the value and a remedy, code 2.

`RUN` and `DATA` in the words stand for copies of a tiny run and a tiny data set, which the damage
of a case is done to; `HERE` for the working directory. What lay there before is there afterwards.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import LINE, LINE_WORDS, TINY
from safetensors.numpy import load_file, save_file

from forethought.cli import main
from forethought.envs import Random, collect, make, shard, spec_of, write_shard

TRAIN_LINE = " ".join(["train --run HERE/new", *LINE_WORDS, *TINY])
VIT = "--model.perception ViTPerception --model.perception.patch 16 --model.perception.depth 1"
CAUSAL = "--model.predictor CausalPredictor --model.predictor.depth 1"
TRAIN_VIT = f"train --run HERE/new --env forethought/TwoRooms-v0 {VIT} {CAUSAL}"
TRAIN_POLE = " ".join(["train --run HERE/new --env CartPole-v1", *TINY])


@dataclass(frozen=True)
class Place:
    """Where a case happens."""

    here: Path

    @property
    def run(self) -> Path:
        return self.here / "run"

    @property
    def data(self) -> Path:
        return self.here / "data"

    def shard(self) -> Path:
        return self.data / "shard-00000.safetensors"

    def words(self, line: str) -> list[str]:
        places = {"RUN": self.run, "DATA": self.data, "HERE": self.here}
        return [re.sub("RUN|DATA|HERE", lambda m: str(places[m.group()]), w) for w in line.split()]


@pytest.fixture
def place(line_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for name in ("run", "data"):
        shutil.copytree(line_run / name, tmp_path / name)
    place = Place(tmp_path)
    edited(data=None)(place)
    (tmp_path / "a-file").write_text("a file in the place of a folder\n")
    monkeypatch.chdir(tmp_path)
    return place


def contents(folder: Path) -> dict[Path, str]:
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def only_line(said: str, verb: str) -> str:
    """The one line of stderr."""
    assert "Traceback" not in said
    assert said.endswith("\n")
    assert said.count("\n") == 1, said
    assert said.startswith(f"forethought {verb}: "), said
    return said


def refusal(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    capsys.readouterr()
    code = main(words)
    said = capsys.readouterr().err
    assert code == 2, said
    return said


# --- what is damaged


def edited(**changes: Any) -> Callable[[Place], None]:
    """Change the run's configuration."""

    def damage(place: Place) -> None:
        path = place.run / "config.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))

    return damage


def written(name: str, content: str) -> Callable[[Place], None]:
    def damage(place: Place) -> None:
        (place.here / name).write_text(content)

    return damage


def without(*names: str) -> Callable[[Place], None]:
    def damage(place: Place) -> None:
        for name in names:
            (place.here / name).unlink()

    return damage


def cut(name: str, keep: int) -> Callable[[Place], None]:
    def damage(place: Place) -> None:
        path = place.here / name
        path.write_bytes(path.read_bytes()[:keep])

    return damage


def replaced(name: str, before: bytes, after: bytes) -> Callable[[Place], None]:
    def damage(place: Place) -> None:
        content = (place.here / name).read_bytes()
        assert content.count(before) == 1
        (place.here / name).write_bytes(content.replace(before, after))

    return damage


def weights_of(config: dict[str, Any]) -> Callable[[Place], None]:
    """A checkpoint folder of others, its tensors cut."""

    def damage(place: Place) -> None:
        torch.save({"a": torch.ones(100)}, place.here / "weights.pt")
        cut("weights.pt", 300)(place)
        (place.here / "config.json").write_text(json.dumps(config))

    return damage


CONFIG = {name: dict[str, Any]() for name in ("encoder", "predictor", "action_encoder")}


def flipped(place: Place) -> None:
    """Turn one bit of a shard over; its size stays."""
    content = bytearray(place.shard().read_bytes())
    content[-1] ^= 4
    place.shard().write_bytes(content)


def not_a_number(place: Place) -> None:
    """A shard with not-a-number, and an index that agrees with it."""
    arrays = load_file(place.shard())
    header = _metadata(place.shard())
    arrays["observations"][3, 1] = np.nan
    save_file(arrays, place.shard(), header)
    content = place.shard().read_bytes()
    path = place.data / "index.json"
    index = json.loads(path.read_text())
    index["shards"][0] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(index))


def _metadata(path: Path) -> dict[str, str]:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return dict(json.loads(content[8 : 8 + size])["__metadata__"])


def held_out(place: Place) -> None:
    """A data set of episodes that are kept for evaluation."""
    shutil.rmtree(place.data)
    env = make(LINE, 2, episode_limit=8)
    stream = collect(env, Random(), 2, first_seed=0, generator=np.random.default_rng(0))
    episodes = [replace(episode, seed=1_000_000 + episode.seed) for episode in stream]
    write_shard(place.data, episodes, spec_of(env))


def task_file(term: str, **arguments: Any) -> Callable[[Place], None]:
    part = {"class_path": term, "init_args": arguments}
    return written("own.yaml", yaml.safe_dump({"terms": {"mine": {"term": part}}}))


# --- the cases


@dataclass(frozen=True)
class Bad:
    """Words that are wrong, what the line must name, and what is done before."""

    words: str
    says: str
    damage: Callable[[Place], None] | None = None
    begins: bool = False  # only found out after the run folder was made


BAD = {
    # environments
    "unknown environment": Bad("train --env Foo-v0", "'Foo-v0' is unknown"),
    "unknown dm_control task": Bad(
        "train --env dm_control/cartpole-swingupp", "did you mean dm_control/cartpole-swingup"
    ),
    "unknown domain": Bad("envs dm_control/cartpol-x", "'dm_control/cartpol-x' | did you mean"),
    "no environment like that": Bad("envs nothinglikeit", "'nothinglikeit' | forethought envs"),
    "unknown environment shown": Bad("envs --env CartPol-v1", "did you mean CartPole-v1"),
    "two environments shown": Bad("envs Cart --env CartPole-v1", "give one of them"),
    "options of many environments": Bad("envs Cart --env-options.a 1", "give its whole id"),
    "a module that is not there": Bad("train --env nomodule:Own-v0", "'nomodule' | install it"),
    "unknown option of an environment": Bad(
        f"train --env {LINE} --env-options.colour 1", "colour | it accepts | episode_limit"
    ),
    "no episode limit": Bad("train --env CliffWalking-v1", "CliffWalking-v1 | episode_limit"),
    "pictures that cannot be rendered": Bad(
        "envs CartPole-v1 --env-options.observe=pixels", "cannot be rendered | observe='vector'"
    ),
    # words
    "misspelt option": Bad(
        "train --cost.horizn 3", "no option --cost.horizn: did you mean --cost.horizon?"
    ),
    "a place as an option": Bad("act cartpole-swingup --run x", "no option --run: leave --run out"),
    "no number": Bad("train --seed many", "seed is many: give a whole number"),
    "no whole number": Bad("train --planner.starts 2.5", "starts | 2.5 | whole number"),
    "negative count": Bad("train --stages.joint.steps=-1", "joint.steps is -1: choose"),
    "no episodes": Bad("evaluate RUN --episodes -3", "episodes is -3: choose"),
    "no environments": Bad("collect HERE/new --collection.num-envs=-2", "num_envs is -2: choose"),
    "no learning rate": Bad(
        "train --stages.joint.learning-rate 0", "joint.learning_rate is 0.0: choose"
    ),
    "no threads": Bad("train --threads 0", "threads is 0: choose 1"),
    "unknown planner": Bad(
        "train --planner Gradent",
        "planner is 'Gradent' | use one of CEM, GaussNewton, Gradient | import path of your own",
    ),
    "unknown mode": Bad("evaluate RUN --modes [3]", "modes | 3"),
    "option of another planner": Bad(
        f"{TRAIN_POLE} --planner CEM --planner.starts 3".replace("--planner.starts=2 ", ""),
        "planner has no option 'starts' | --planner.help CLASS",
    ),
    "unknown device": Bad("train --device tpu", "'tpu' is not available here: choose among"),
    "a port that cannot be": Bad("show RUN --tensorboard --port 70000", "port is 70000 | 65535"),
    "unknown shell": Bad("completion fish", "shell is fish: choose one of 'bash', 'zsh'"),
    # configurations
    "unknown config": Bad("train --config nowhere", "no config 'nowhere': give a YAML file"),
    "damaged YAML": Bad(
        "train --config own.yaml", "own.yaml is damaged", written("own.yaml", "planner: [")
    ),
    "YAML without a mapping": Bad(
        "train --config own.yaml", "own.yaml is damaged", written("own.yaml", "just words")
    ),
    "misspelt key": Bad(
        "train --config own.yaml",
        "no option stages.joint.stepps: did you mean stages.joint.steps?",
        written("own.yaml", "stages: {joint: {stepps: 3}}"),
    ),
    "wrong type in YAML": Bad(
        "train --config own.yaml",
        "seed is early: give a whole number",
        written("own.yaml", "seed: early"),
    ),
    # tasks
    "unknown task": Bad(f"{TRAIN_LINE} --task juggle", "no task 'juggle': give a YAML file"),
    "unknown quantity": Bad(
        f"{TRAIN_LINE} --task own.yaml",
        "altitude | position, | choose another task",
        task_file("Tolerance", quantity="altitude"),
    ),
    "a component that is not there": Bad(
        f"{TRAIN_LINE} --check --task own.yaml",
        "own.yaml does not fit forethought/DoubleIntegrator-v0 | 'position[9]' is not there",
        task_file("Tolerance", quantity="position[9]"),
    ),
    "a component that the data have not": Bad(
        f"{TRAIN_LINE} --data DATA --task own.yaml",
        "own.yaml does not fit forethought/DoubleIntegrator-v0 | 'position[9]' is not there",
        task_file("Tolerance", quantity="position[9]"),
    ),
    "a centre of another size": Bad(
        f"{TRAIN_LINE} --task own.yaml",
        "own.yaml does not fit | centre has 5 numbers | give as many",
        task_file("KeepOut", quantity="position", centre=[0.0] * 5),
    ),
    "effort of discrete actions": Bad(
        f"{TRAIN_POLE} --task own.yaml",
        "own.yaml does not fit CartPole-v1 | have no effort: leave that term out",
        task_file("Effort"),
    ),
    "misspelt term": Bad(
        f"{TRAIN_LINE} --task own.yaml",
        "own.yaml | Tolerence",
        task_file("Tolerence", quantity="position"),
    ),
    "misspelt argument of a term": Bad(
        f"{TRAIN_LINE} --task own.yaml",
        "own.yaml | lower",
        task_file("Tolerance", quantity="position", lower=1.0),
    ),
    "a goal where there is none": Bad(
        f"{TRAIN_POLE} --task reach",
        "task reach is to reach a goal, but CartPole-v1 gives none: choose another task",
    ),
    # data
    "no data": Bad("data nowhere", "nowhere | collect one first"),
    "no data to train on": Bad(f"{TRAIN_LINE} --data nowhere", "nowhere | collect one first"),
    "cut shard": Bad(
        "data DATA",
        "shard-00000.safetensors has 500 bytes | restore it or collect again",
        cut("data/shard-00000.safetensors", 500),
    ),
    "missing shard": Bad(
        "data DATA", "is missing: restore it", without("data/shard-00000.safetensors")
    ),
    "flipped bit": Bad("data DATA", "shard-00000.safetensors was changed | SHA-256", flipped),
    "not a number": Bad("data DATA", "numbers in observations that are not finite", not_a_number),
    "not a number to train on": Bad(
        f"{TRAIN_LINE} --data DATA", "nan | forethought data", not_a_number, begins=True
    ),
    "damaged index": Bad(
        "data DATA", "index.json is damaged | collect again", cut("data/index.json", 80)
    ),
    "index of another version": Bad(
        "data DATA",
        "format version 9 | the version that wrote it",
        replaced("data/index.json", b'"format_version": 1', b'"format_version": 9'),
    ),
    "data of another environment": Bad(
        f"{TRAIN_POLE} --data DATA", "holds forethought/DoubleIntegrator-v0 | CartPole-v1 | --env"
    ),
    "held-out data": Bad(f"{TRAIN_LINE} --data DATA", "1000000 | collect other", held_out),
    "rounds on the data of others": Bad(
        f"{TRAIN_LINE} --data DATA --rounds 1", "leave --data out, or copy"
    ),
    "import options without an import": Bad("data DATA --env-id own/x", "env_id | add --import"),
    "a file that cannot be imported": Bad("data HERE/new --import a-file", "a-file | .npz"),
    "no file to import": Bad("data HERE/new --import no.npz", "no.npz is not there"),
    "import into what is there": Bad(
        "data DATA --import-minari own/x-v0 --import a.npz", "give one of them"
    ),
    "a malformed id of Minari": Bad("data DATA --export-minari x", "'x': give NAME-v0"),
    # weights of others
    "no weights": Bad(f"{TRAIN_VIT} --weights nowhere", "nowhere | holds weights.pt and config"),
    "cut weights": Bad(
        f"{TRAIN_VIT} --weights HERE", "weights.pt cannot be read | state dict", weights_of(CONFIG)
    ),
    "weights of another kind": Bad(
        f"{TRAIN_VIT} --weights HERE",
        "config.json describes its.PLDM | only LeWorldModel",
        weights_of({"_target_": "its.PLDM"}),
    ),
    "weights for another model": Bad(
        f"{TRAIN_LINE} --weights HERE",
        "AutoPerception and ResidualMLP: choose ViTPerception",
        weights_of(CONFIG),
    ),
    # runs
    "no run": Bad("evaluate nowhere", "nowhere is no run folder | train one first"),
    "no run to compare with": Bad("show RUN nowhere", "nowhere is no run folder"),
    "no checkpoint": Bad(
        "evaluate RUN", "model.safetensors: train", without("run/model.safetensors")
    ),
    "cut checkpoint": Bad(
        "evaluate RUN", "damaged or cut: restore it", cut("run/model.safetensors", 3000)
    ),
    "checkpoint of another version": Bad(
        "act RUN",
        "format version 7 | use the version that wrote it",
        replaced("run/model.safetensors", b'format_version\\": 1', b'format_version\\": 7'),
    ),
    "checkpoint that does not fit": Bad(
        "act RUN",
        "does not fit the module 'model' | configuration it was trained with",
        edited(model={"predictor": {"class_path": "forethought.worldmodel.GRUPredictor"}}),
    ),
    "another task than trained with": Bad(
        "act RUN",
        "another intrinsic cost | put the run's own task.yaml back",
        written(
            "run/task.yaml",
            "goal: true\nterms: {effort: {term: {class_path: Effort}, floor: 1.0}}\n",
        ),
    ),
    "no policy": Bad("act RUN --mode 1", "forethought distill"),
    "damaged results": Bad("show RUN", "results.json is damaged", written("run/results.json", "{")),
    "foreign code": Bad(
        "act RUN", "'strangers.Planner' | --trust", edited(planner="strangers.Planner")
    ),
    "a run that is there": Bad(f"{TRAIN_LINE} --run RUN", "already holds a run: choose another"),
    "resume without a run": Bad("train --resume", "give --run RUN"),
    "resume what is not there": Bad("train --resume --run nowhere", "nowhere is no run folder"),
    "resume with options": Bad(
        "train --resume --run RUN --seed 3 --rounds 2", "rounds, seed cannot be given: leave"
    ),
    "no curves": Bad(
        "show HERE --tensorboard", "has no curves", written("config.yaml", "seed: 1\n")
    ),
    # places
    "a file in the place of a run": Bad(
        f"{TRAIN_LINE} --run a-file/run", "a-file/run cannot be written | choose"
    ),
    "a file in the place of data": Bad(
        f"collect a-file/data --env {LINE} --collection.episodes 1", "a-file | choose another place"
    ),
    "results where nothing can be": Bad(
        "evaluate RUN --json a-file/x.json", "a-file/x.json cannot be written | choose another"
    ),
    "a description where a folder is": Bad("data DATA --json HERE", "it is a folder"),
    "video with a wrong ending": Bad("act RUN --video film.txt", "film.txt must end in .gif"),
    "video where nothing can be": Bad(
        "act RUN --video a-file/film.gif", "a-file/film.gif cannot be written | choose another"
    ),
}


def test_there_are_enough() -> None:
    assert len(BAD) >= 30


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    case = BAD[name]
    if case.damage is not None:
        case.damage(place)
    before = contents(place.here)
    words = place.words(case.words)
    said = only_line(refusal(capsys, words), words[0])
    for word in case.says.split(" | "):
        assert word in said
    after = contents(place.here)
    assert {path: after.get(path) for path in before} == before
    assert case.begins or set(after) == set(before)


# --- what needs more than words


@pytest.mark.parametrize(("verb", "says"), [("trian", "did you mean train"), ("x", "use one of")])
def test_misspelt_verb(verb: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"'{verb}'" in said
    assert says in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_no_accelerator(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    said = only_line(refusal(capsys, ["evaluate", str(place.run), "--device=cuda"]), "evaluate")
    assert "'cuda' is not available here: choose among cpu, auto" in said


def test_a_missing_extra(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    said = refusal(capsys, ["data", str(place.data), "--export-minari=own/x-v0"])
    assert "pip install 'forethought[data]'" in only_line(said, "data")


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_folder(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.here.chmod(0o555)
    try:
        said = only_line(refusal(capsys, place.words(TRAIN_LINE)), "train")
    finally:
        place.here.chmod(0o755)
    assert "new cannot be written" in said


COLLECT_MORE = f"collect DATA --env {LINE} --env-options.episode-limit=8 --collection.episodes 4"


def test_a_full_disk(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def no_room(file: int) -> None:
        raise full

    before = contents(place.here)
    monkeypatch.setattr(shard.os, "fsync", no_room)
    said = only_line(refusal(capsys, place.words(COLLECT_MORE)), "collect")
    assert "No space left on device: make room and run it again" in said
    assert contents(place.here) == before


RLIMITED = """
import resource, sys
from forethought.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (1200, 1200))
sys.exit(main(sys.argv[1:]))
"""


MAIN = "import sys; from forethought.cli import main; sys.exit(main())"


def in_a_process(*words: str, folder: Path, code: str = MAIN) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of POSIX")
def test_no_room_for_a_shard(place: Place) -> None:
    before = contents(place.here)
    done = in_a_process(*place.words(COLLECT_MORE), code=RLIMITED, folder=place.here)
    assert done.returncode == 2
    assert "File too large: make room" in only_line(done.stderr, "collect")
    after = contents(place.here)
    assert {path: after.get(path) for path in before} == before
    assert {path.name for path in set(after) - set(before)} <= {"collecting.json"}
    assert main(["data", str(place.data)]) == 0


KILLER = """
import os, signal
from dataclasses import dataclass
from forethought.envs import Random

@dataclass(frozen=True)
class Killer(Random):
    def begin(self, *given, **named):
        os.kill(os.getpid(), signal.SIGKILL)
    act = begin
    __call__ = begin
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals of POSIX")
def test_a_worker_that_is_killed(place: Place) -> None:
    (place.here / "killer.py").write_text(KILLER)
    before = contents(place.data)
    words = [*place.words(COLLECT_MORE), "--collection.policy=killer.Killer"]
    words += ["--collection.workers=2"]
    done = in_a_process(*words, folder=place.here)
    assert done.returncode == 2, done.stderr
    said = only_line(done.stderr, "collect")
    assert "exit code -9" in said
    assert "run the same command again" in said
    after = contents(place.data)
    assert {path: after.get(path) for path in before} == before


def test_in_a_process_of_its_own(place: Place) -> None:
    done = in_a_process("evaluate", "nowhere", folder=place.here)
    assert (done.returncode, done.stdout) == (2, "")
    assert "nowhere is no run folder" in only_line(done.stderr, "evaluate")


def test_a_renderer_that_there_is_not(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dm_control")
    monkeypatch.setenv("MUJOCO_GL", "crayon")
    done = in_a_process("envs", "dm_control/cartpole-swingup", folder=place.here)
    assert done.returncode == 2
    said = only_line(done.stderr, "envs")
    assert "MUJOCO_GL: crayon): set it to egl, osmesa or glfw" in said
