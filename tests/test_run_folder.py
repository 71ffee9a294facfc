"""One tiny run, through every verb: what lies in its folder, and what strangers' folders may do."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import forethought
from forethought import acting, diagnosing, running
from forethought.cli import main
from forethought.envs import HELD_OUT_SEED, Dataset
from forethought.planners import CEM, Gradient
from forethought.run_folder import Metrics, read_metrics

TINY = [
    "--collection.episodes=24",
    "--collection.num-envs=24",
    "--stages.joint.steps=3",
    "--stages.joint.batch=4",
    "--stages.joint.unroll=2",
    "--stages.predictor.steps=3",
    "--stages.predictor.batch=4",
    "--stages.predictor.unroll=3",
    "--stages.readouts.steps=3",
    "--stages.critic.steps=3",
    "--planner.starts=2",
    "--planner.iterations=2",
    "--cost.horizon=4",
    "--cost.reduction=softmin",
    "--cost.softmin-temperature=0.3",
    "--device=cpu",
]
EXPERIMENT = ["--config=two-rooms", "--env-options.episode-limit=12"]
BRIEF = ["--episodes=2", "--num-envs=2", "--timed-decisions=1", "--device=cpu"]
KEYS = {
    "task",
    "mode",
    "planner",
    "episodes",
    "success_rate",
    "ci95_low",
    "ci95_high",
    "ms_per_decision",
    "p95_ms",
    "environment_steps",
    "train_seconds",
    "seed",
    "commit",
    "device",
    "protocol",
    "mind",
}


def train(path: Path, *words: str) -> Path:
    forethought.call("train", [*EXPERIMENT, *TINY, f"--run={path}", "--seed=3", *words])
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, trained and distilled; tests leave it as it is but for `results.json`."""
    folder = train(tmp_path_factory.mktemp("runs") / "tiny")
    brief = ["problems=4", "batch=4", "steps=3", "rounds=2", "minibatch=8"]
    forethought.call("distill", [str(folder), *(f"--distillation.{word}" for word in brief)])
    return folder


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A run of its own, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on stderr with which the command ends, with exit code 2."""
    capsys.readouterr()
    try:
        code: Any = main(words)
    except SystemExit as stopped:
        code = stopped.code
    said = capsys.readouterr()
    assert code == 2, said
    assert said.err.endswith("\n")
    assert said.err.count("\n") == 1
    assert said.err.startswith(f"forethought {words[0]}: ")
    assert "Traceback" not in said.err + said.out
    return said.err


def edit(folder: Path, **changes: Any) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | changes))


# --- what lies in the folder


def test_the_files(tiny: Path) -> None:
    for name in ("model", "policy"):
        assert (tiny / f"{name}.safetensors").stat().st_size > 1000
    config = yaml.safe_load((tiny / "config.yaml").read_text())
    assert config["env"] == "forethought/TwoRooms-v0"
    assert config["env_options"]["episode_limit"] == 12
    assert config["planner"]["init_args"]["starts"] == 2
    assert config["seed"] == 3
    about = json.loads((tiny / "environment.json").read_text())
    assert about["seed"] == 3
    assert about["commit"] is None or len(about["commit"]) in {12, 13}
    assert about["versions"]["torch"] == torch.__version__
    assert {"python", "machine", "cores", "time"} <= set(about)
    training = json.loads((tiny / "training.json").read_text())
    assert training["environment_steps"] == Dataset.open(tiny / "data").steps
    assert 0 < training["train_seconds"] < 100
    report = json.loads((tiny / "diagnostics.json").read_text())
    assert {"latent_std", "effective_rank", "open_loop_ratio", "r2_position"} <= set(report)
    assert iio.imread(tiny / "training.png").ndim == 3


def test_the_metrics_are_in_both_places(tiny: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = [json.loads(line) for line in (tiny / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines] == [
        "joint",
        "predictor",
        "readouts",
        "diagnostics",
        "distill",
        "distill",
    ]
    assert [line["step"] for line in lines] == [3, 3, 3, 3, 3, 6]
    board = EventAccumulator(str(tiny / "tensorboard"))
    board.Reload()
    for line in lines:
        for name in set(line) - {"stage", "step"}:
            events = {e.step: e.value for e in board.Scalars(f"{line['stage']}/{name}")}
            assert events[line["step"]] == pytest.approx(line[name], rel=1e-5)


def test_the_resolved_configuration_makes_the_same_run(tiny: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    words = ["--config", str(tiny / "config.yaml"), f"--run={again}"]
    forethought.call("train", words)
    before, after = (yaml.safe_load((run / "config.yaml").read_text()) for run in (tiny, again))
    assert before | {"run": None} == after | {"run": None}
    # Twins: the same seed gives the same weights, bit by bit.
    one, other = (load_file(run / "model.safetensors") for run in (tiny, again))
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)
    reports = [json.loads((run / "diagnostics.json").read_text()) for run in (tiny, again)]
    assert reports[0] == reports[1]


def test_another_seed_and_data_that_are_there_already(tiny: Path, tmp_path: Path) -> None:
    other = train(tmp_path / "other", f"--data={tiny / 'data'}", "--seed=4")
    assert not (other / "data").exists()
    assert json.loads((other / "training.json").read_text())["environment_steps"] == 24 * 12
    one, two = (load_file(run / "model.safetensors") for run in (tiny, other))
    assert any(not torch.equal(one[name], two[name]) for name in one)
    words = ["--distillation.problems=2", "--distillation.steps=2", "--distillation.rounds=1"]
    forethought.call("distill", [str(other), *words])  # from the data it was trained on
    assert (other / "policy.safetensors").is_file()


def test_collecting_twice_appends_with_fresh_seeds(tmp_path: Path) -> None:
    data = tmp_path / "data"
    words = [str(data), "--collection.episodes=3", "--env-options.episode-limit=5"]
    assert forethought.call("collect", words) == 15
    assert forethought.call("collect", [*words, "--collection.policy=Random"]) == 30  # in all
    held = Dataset.open(data)
    assert held.arrays("seed").tolist() == [0, 1, 2, 3, 4, 5]
    assert held.steps == 30
    actions = np.asarray(held.arrays("actions"))
    assert len(np.unique(actions, axis=0)) == 30


# --- verbs on the run


def test_evaluate_writes_its_rows(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "deep" / "rows.json"
    assert main(["evaluate", str(tiny), *BRIEF, f"--json={elsewhere}"]) == 0
    rows = json.loads((tiny / "results.json").read_text())
    assert json.loads(elsewhere.read_text()) == rows
    assert all(set(row) == KEYS for row in rows)
    whole = [row for row in rows if "greedy fails" not in row["protocol"]]
    assert [row["mode"] for row in whole] == ["random", "greedy", "scripted", 1, 2]
    assert [row["planner"] for row in whole] == [None, None, None, None, "Gradient"]
    for row in rows:
        assert row["task"] == "forethought/TwoRooms-v0"
        assert 0 <= row["ci95_low"] <= row["success_rate"] <= row["ci95_high"] <= 1
        assert row["ms_per_decision"] > 0
        assert row["p95_ms"] > 0
        assert (row["environment_steps"], row["seed"], row["device"]) == (24 * 12, 3, "cpu")
        assert row["train_seconds"] > 0
        assert "held-out seeds from 1000000; contact=slide, episode_limit=12" in row["protocol"]
        assert row["protocol"].split("; ")[2] == "goal distance softmin, horizon 4"
    assert all(row["episodes"] == 2 for row in whole)
    assert "Mode-2" in capsys.readouterr().out


def test_episodes_that_greedy_loses_are_counted_apart(tiny: Path) -> None:
    rows = forethought.call("evaluate", [str(tiny), *BRIEF, "--env-options.episode-limit=2"])
    hard = [row for row in rows if row["protocol"].endswith(", only where greedy fails")]
    assert [row["mode"] for row in hard] == [1, 2]
    assert all(row["episodes"] == 2 for row in hard)
    assert all("episode_limit=2" in row["protocol"] for row in rows)


def test_without_baselines_and_in_one_mode(tiny: Path) -> None:
    rows = forethought.call("evaluate", [str(tiny), *BRIEF, "--no-baselines", "--modes=[1]"])
    assert [row["mode"] for row in rows] == [1]


def test_an_environment_without_pictures_or_baselines(tmp_path: Path) -> None:
    words = ["--env=forethought/DoubleIntegrator-v0", "--env-options.episode-limit=8"]
    words += ["--model.perception=VectorPerception"]
    folder = tmp_path / "line"
    forethought.call("train", [*words, *TINY, f"--run={folder}"])
    rows = forethought.call("evaluate", [str(folder), *BRIEF])
    assert [row["mode"] for row in rows] == ["random", 2]
    assert set(rows[0]) == KEYS
    assert len(forethought.call("act", [str(folder)])) == 1


def captured(monkeypatch: pytest.MonkeyPatch, verb: str, *words: str) -> dict[str, Any]:
    """The planner and the cost that reach `load`."""
    held: dict[str, Any] = {}

    def stop(run: Any, **options: Any) -> None:
        held.update(options)
        raise ValueError("that is enough")

    monkeypatch.setattr(acting if verb == "act" else running, "load", stop)
    with pytest.raises(ValueError, match="that is enough"):
        forethought.call(verb, words)
    return held


@pytest.mark.parametrize("verb", ["evaluate", "act", "distill"])
def test_planner_and_cost_are_the_runs_unless_told(
    verb: str, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = captured(monkeypatch, verb, str(tiny))
    assert held["planner"] == Gradient(starts=2, iterations=2)
    assert (held["cost"].horizon, held["cost"].reduction) == (4, "softmin")
    held = captured(monkeypatch, verb, str(tiny), "--planner.starts=5", "--cost.horizon=5")
    assert held["planner"] == Gradient(starts=5, iterations=2)
    assert (held["cost"].horizon, held["cost"].reduction) == (5, "softmin")
    assert held["cost"].softmin_temperature == 0.3
    words = ("--planner", "CEM", "--planner.candidates", "16")
    held = captured(monkeypatch, verb, str(tiny), *words)
    assert type(held["planner"]) is CEM
    assert held["planner"].candidates == 16


def test_another_planner_really_plans(tiny: Path) -> None:
    words = ["--planner=CEM", "--planner.candidates=8", "--cost.horizon=5", "--no-baselines"]
    rows = forethought.call("evaluate", [str(tiny), *BRIEF, *words, "--modes=[2]"])
    assert [row["planner"] for row in rows] == ["CEM"]
    assert rows[0]["protocol"].split("; ")[2] == "goal distance softmin, horizon 5"


@pytest.mark.parametrize("verb", ["evaluate", "act", "distill"])
def test_the_run_comes_first(verb: str, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After an option, its planner and its cost would not become the defaults."""
    assert "give the run folder first" in refusal(capsys, verb, "--seed=1", str(tiny))


@pytest.mark.parametrize("ending", [".gif", ".mp4"])
@pytest.mark.parametrize("mode", [1, 2])
def test_act_writes_a_video(tiny: Path, tmp_path: Path, mode: int, ending: str) -> None:
    video = tmp_path / "new" / f"video{ending}"
    words = [str(tiny), f"--video={video}", f"--mode={mode}", "--env-options.episode-limit=3"]
    (outcome,) = forethought.call("act", words)
    assert outcome.seed == 1_000_000
    assert outcome.decisions <= 3
    frames = list(iio.imiter(video))
    assert len(frames) == outcome.decisions
    scene, panel = frames[0][:256, :256], frames[0][:, 256:]
    assert scene.shape == (256, 256, 3)
    assert panel.shape[1] >= 480
    assert min(scene.std(), panel.std()) > 5


def test_show(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(tiny)]) == 0
    told = capsys.readouterr().out
    report = json.loads((tiny / "diagnostics.json").read_text())
    for name, value in report.items():
        assert name in told
        assert f"{value:.4g}" in told
    assert "288 environment steps" in told


def test_load_gives_a_working_agent(tiny: Path) -> None:
    trained = forethought.load(tiny)
    assert trained.agent.planner == Gradient(starts=2, iterations=2)
    assert trained.agent.policy is not None
    assert trained.in_mode(1).configurator.mode == 1
    assert not any(p.requires_grad for p in trained.agent.model.parameters())
    stored = load_file(tiny / "model.safetensors")
    for name, value in trained.agent.model.state_dict().items():
        assert torch.equal(value, stored[f"model.{name}"])
    assert trained.spec.options["episode_limit"] == 12


# --- damage


def test_a_damaged_configuration(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in (b"planner: [", b"just words", b"\xff\xfe\x00", b""):
        (copy / "config.yaml").write_bytes(content)
        assert "config.yaml is damaged" in refusal(capsys, "evaluate", str(copy), *BRIEF)
    (copy / "config.yaml").write_text("no_such_option: 1\n")
    assert main(["act", str(copy)]) == 2
    said = capsys.readouterr().err
    assert "no_such_option" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["model", "policy"])
@pytest.mark.parametrize("keep", [0, 4, 200, -8])
def test_a_cut_checkpoint(
    copy: Path, name: str, keep: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy / f"{name}.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    said = refusal(capsys, "act", str(copy))
    assert f"{name}.safetensors is damaged or cut" in said


def test_a_run_that_was_not_finished(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("model.safetensors", "training.json", "diagnostics.json"):
        (copy / name).unlink()
    assert "model.safetensors" in refusal(capsys, "evaluate", str(copy), *BRIEF)
    assert main(["show", str(copy)]) == 0
    assert "training has not come to its end" in capsys.readouterr().out
    (copy / "results.json").write_text("{")
    assert "results.json is damaged" in refusal(capsys, "show", str(copy))


def test_a_run_of_another_shape(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["model"]["predictor"]["init_args"]["hidden"] = 17
    edit(copy, model=config["model"])
    assert "does not fit the module 'model'" in refusal(capsys, "act", str(copy))


def test_mode_1_needs_a_policy(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "policy.safetensors").unlink()
    assert "forethought distill" in refusal(capsys, "act", str(copy), "--mode=1")
    assert "forethought distill" in refusal(capsys, "evaluate", str(copy), "--modes=[1]")


# --- strangers

OWN = '''
from dataclasses import dataclass
from pathlib import Path

import gymnasium
from forethought.envs.two_rooms import TwoRooms, TwoRoomsVectorEnv
from forethought.planners import RandomShooting
from forethought.worldmodel import ImagePerception

Path("imported").touch()


@dataclass(frozen=True)
class Mine(RandomShooting):
    flavour: int = 1


class Eye(ImagePerception):
    """Sees like its parent."""


gymnasium.register("Own-v0", TwoRooms, vector_entry_point=TwoRoomsVectorEnv,
                   max_episode_steps=12)
'''


@pytest.fixture
def own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """A working directory with a user's own classes in `own_parts.py`."""
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    import gymnasium

    sys.modules.pop("own_parts", None)
    gymnasium.registry.pop("Own-v0", None)


def forget(folder: Path) -> None:
    """As in a new process: what was imported is not."""
    import gymnasium

    sys.modules.pop("own_parts", None)
    gymnasium.registry.pop("Own-v0", None)
    (folder / "imported").unlink(missing_ok=True)


def test_a_users_own_classes_by_import_path(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in TINY if not word.startswith("--planner")]
    words += ["--planner=own_parts.Mine", "--planner.flavour=3", "--planner.candidates=4"]
    words += ["--model.perception=own_parts.Eye", "--model.perception.hidden=16"]
    assert main(["train", *EXPERIMENT, *words, "--run=mine"]) == 0
    config = yaml.safe_load((own / "mine/config.yaml").read_text())
    assert config["planner"]["class_path"] == "own_parts.Mine"
    assert config["planner"]["init_args"]["flavour"] == 3
    forget(own)
    for verb in ("evaluate", "act", "distill"):
        said = refusal(capsys, verb, "mine")
        assert "names 'own_parts." in said
        assert "--trust" in said
    with pytest.raises(ValueError, match="own_parts"):
        forethought.load("mine")
    assert not (own / "imported").exists()
    assert main(["evaluate", "mine", *BRIEF, "--no-baselines", "--trust"]) == 0
    rows = json.loads((own / "mine/results.json").read_text())
    assert [row["planner"] for row in rows] == ["Mine"]
    loaded = forethought.load("mine", trust=True)
    assert type(loaded.agent.planner).__name__ == "Mine"
    assert type(loaded.agent.model.perception).__name__ == "Eye"


def test_a_strangers_environment_is_refused(
    own: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(copy, env="own_parts:Own-v0")
    said = refusal(capsys, "act", str(copy))
    assert "'own_parts:Own-v0'" in said
    assert "--trust" in said
    assert not (own / "imported").exists()


def test_a_users_own_environment(own: Path) -> None:
    assert main(["train", *TINY, "--env=own_parts:Own-v0", "--run=mine"]) == 0
    # In a process that has never heard of it, the module must be imported with the id.
    code = "from forethought.cli import main; raise SystemExit(main(['act', 'mine', '--trust']))"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "planner",
    [
        "own_parts.Mine",
        {"class_path": "own_parts.Mine"},
        "{class_path: own_parts.Mine}",
        '{"class_path": "own_parts\\x2eMine"}',
        "own_parts.Mine ",
        "./planner.yaml",
        "planner.yaml",
        {"class_path": "forethought.planners.CEM", "init_args": {"data": "own_parts.Mine"}},
        {"class_path": "own-parts.Mine"},
        {"class_path": "123.Mine"},
        {"class_path": "Nobodys"},
        "own-parts.Mine",
        "123.Mine",
        "planner",
    ],
)
def test_no_spelling_gets_a_strangers_code_imported(
    own: Path, copy: Path, planner: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("planner.yaml", "planner"):
        (own / name).write_text("class_path: own_parts.Mine\n")
    for name in ("own-parts.py", "123.py"):
        (own / name).write_text(OWN)
    edit(copy, planner=planner)
    for words in ((), ("--trust=false",)):
        said = refusal(capsys, "act", str(copy), *words)
        assert "code from outside of forethought" in said
        assert not (own / "imported").exists()


def test_the_environment_of_a_checkpoint_is_checked_too(
    own: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stranger writes the module into the checkpoint and leaves the configuration innocent."""
    path = copy / "model.safetensors"
    content = path.read_bytes()
    before, after = b"forethought/TwoRooms-v0", b"own_parts:ThisIsOwn--v0"
    assert len(before) == len(after)
    assert content.count(before) == 1
    path.write_bytes(content.replace(before, after))
    said = refusal(capsys, "act", str(copy))
    assert "'own_parts:ThisIsOwn--v0'" in said
    assert "--trust" in said
    assert not (own / "imported").exists()


def test_a_run_may_lie_anywhere(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(copy, run="C:/some.where/my runs", data=None)
    assert main(["act", str(copy), "--env-options.episode-limit=1"]) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"config": "planner"},
        {"model": "planner"},
        {"planner.class_path": "own_parts.Mine"},
        {"run": {"planner": "own_parts.Mine"}},
        {"task": {"planner": "own-parts.Mine"}},
        {"data": [{"planner": "own_parts.Mine"}]},
    ],
)
@pytest.mark.parametrize("words", [("act", "copy"), ("train", "--resume", "--run=copy")])
def test_no_key_of_a_configuration_imports_strangers(
    own: Path, copy: Path, change: Any, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (own / "planner").write_text("planner: {class_path: own_parts.Mine}\n")
    (own / "own-parts.py").write_text(OWN)
    edit(copy, trust=True, **change)
    assert "code from outside of forethought: add --trust" in refusal(capsys, *words)
    assert not (own / "imported").exists()


LINE = ["--env=forethought/DoubleIntegrator-v0", "--env-options.episode-limit=8"]
TERM = """
from dataclasses import dataclass
from pathlib import Path

from forethought.agent import IntrinsicTerm

Path("imported").touch()


@dataclass(frozen=True)
class Mind(IntrinsicTerm):
    def __call__(self, quantities, action):
        return action.abs().mean(-1).clamp_max(1)
"""


def unfinished(run: Path) -> Path:
    """A run as if training had been killed after its data were there."""
    for name in ("model.safetensors", "training.json", "diagnostics.json"):
        (run / name).unlink(missing_ok=True)
    return run


@pytest.fixture
def stranger(own: Path) -> Iterator[Path]:
    """A working directory with an unfinished run and a stranger's modules."""
    (own / "evilmod.py").write_text(TERM)
    forethought.call("train", [*LINE, *TINY, "--run=run"])
    unfinished(own / "run")
    yield own
    sys.modules.pop("evilmod", None)


RESUME = ("train", "--resume", "--run=run")


def test_resuming_reads_no_strangers_task(
    stranger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = "terms: {a: {term: {class_path: evilmod.Mind}}}\n"
    (stranger / "run/task.yaml").write_text(task)
    edit(stranger / "run", trust=True)
    for words in ((), ("--trust=false",), ("--trust", "false")):
        assert "names 'evilmod.Mind'" in refusal(capsys, *RESUME, *words)
    assert not (stranger / "imported").exists()
    (stranger / "run/task.yaml").unlink()  # nor where the configuration leads elsewhere
    (stranger / "evil.yaml").write_text(task)
    edit(stranger / "run", task="evil.yaml")
    assert "names 'evilmod.Mind'" in refusal(capsys, *RESUME)
    assert not (stranger / "imported").exists()
    assert main([*RESUME, "--trust", "true"]) == 0
    assert (stranger / "imported").exists()


def rename_env(data: Path, env: str) -> None:
    path = data / "index.json"
    content = path.read_text()
    assert content.count("forethought/DoubleIntegrator-v0") == 1
    path.write_text(content.replace("forethought/DoubleIntegrator-v0", env))


def test_resuming_makes_no_strangers_environment(
    stranger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rename_env(stranger / "run/data", "evilmod:X-v0")
    assert "names 'evilmod:X-v0'" in refusal(capsys, *RESUME)
    shutil.move(stranger / "run/data", stranger / "foreign")
    edit(stranger / "run", data="foreign", env=None, env_options=None, trust=True)
    assert "names 'evilmod:X-v0'" in refusal(capsys, *RESUME)
    said = refusal(capsys, "train", "--data=foreign", "--run=new", *TINY)
    assert "names 'evilmod:X-v0'" in said
    assert "--trust" in said
    assert not (stranger / "imported").exists()
    assert not (stranger / "new").exists()


def test_an_environment_of_ones_own_may_be_named_or_trusted(own: Path) -> None:
    words = ["data", "--env=own_parts:Own-v0", "--collection.episodes=4"]
    forethought.call("collect", words)
    forethought.call("train", [*TINY, "--data=data", "--env=own_parts:Own-v0", "--run=one"])
    forethought.call("train", [*TINY, "--data=data", "--trust", "--run=two"])
    with pytest.raises(ValueError, match="names 'own_parts:Own-v0'"):
        forethought.call("train", [*TINY, "--data=data", "--run=three"])


def test_a_task_file_of_ones_own_goes_with_the_run(own: Path) -> None:
    """`config.yaml` names the file; what counts is the run's task.yaml, without --trust."""
    (own / "my.task.yaml").write_text("terms: {a: {term: Effort}}\ngoal: true\n")
    forethought.call("train", [*LINE, *TINY, "--task=my.task.yaml", "--run=run"])
    (own / "my.task.yaml").unlink()
    assert len(forethought.call("act", ["run", "--env-options.episode-limit=2"])) == 1
    kept = (own / "run/task.yaml").read_text()
    unfinished(own / "run")
    forethought.call("train", ["--resume", "--run=run"])
    assert (own / "run/task.yaml").read_text() == kept
    assert len(forethought.call("act", ["run", "--env-options.episode-limit=2"])) == 1


def test_trust_with_a_space(own: Path) -> None:
    words = [word for word in TINY if not word.startswith("--planner")]
    words += ["--planner=own_parts.Mine", "--planner.candidates=4"]
    forethought.call("train", [*LINE, *words, "--run=mine"])
    short = ["--env-options.episode-limit=2"]
    assert len(forethought.call("act", ["mine", *short, "--trust", "true"])) == 1
    with pytest.raises(ValueError, match=r"own_parts\.Mine"):
        forethought.call("act", ["mine", *short, "--trust", "false"])
    with pytest.raises(ValueError, match=r"own_parts\.Mine"):
        forethought.call("act", ["mine", *short, "--trust", "--no-trust"])


# --- what has to fit together


def test_a_critic_keeps_its_discount(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own / "mine.yaml").write_text("terms: {a: {term: Effort}}\n")
    words = ["--task=mine.yaml", "--stages.critic-from=0", "--cost.discount=0.7", "--run=run"]
    forethought.call("train", [*LINE, *TINY, *words])
    for verb in ("evaluate", "act", "distill"):
        said = refusal(capsys, verb, "run", "--cost.discount=0.9")
        assert "cost.discount is 0.9, but the critic of run was trained with 0.7" in said
        assert "--cost.critic 0" in said
    short = ["--env-options.episode-limit=2"]
    assert len(forethought.call("act", ["run", *short, "--cost.discount=0.7"])) == 1
    words = ["--cost.discount=0.9", "--cost.critic=0"]
    assert len(forethought.call("act", ["run", *short, *words])) == 1


def test_what_lies_in_run_data_is_checked(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forethought.call("collect", ["run/data", *LINE, "--collection.episodes=24"])
    other = ["--env=forethought/DoubleIntegrator-v0", "--env-options.episode-limit=9"]
    for env in (other, ["--env=CartPole-v1"]):
        said = refusal(capsys, "train", *env, *TINY, "--run=run")
        assert f"data set {Path('run/data')} holds forethought/DoubleIntegrator-v0" in said
        assert not (own / "run/config.yaml").exists()
    forethought.call("train", [*LINE, *TINY, "--run=run"])


def test_a_stage_without_steps_needs_no_windows(own: Path) -> None:
    words = ["--stages.predictor.steps=0", "--stages.predictor.unroll=16"]
    forethought.call("train", [*LINE, *TINY, *words, "--run=run"])
    assert (own / "run/model.safetensors").is_file()


# --- how a training ends


def test_a_cut_line_of_metrics_keeps_no_run_from_its_end(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was full: half a line, and nothing after it until there was room again."""
    log, lines = Metrics.log, iter(range(100))

    def cut(self: Metrics, *given: Any) -> None:
        if next(lines) == 1:
            with Path("run/metrics.jsonl").open("a") as file:
                file.write('{"stage": "predictor", "st')
            raise OSError(28, "No space left on device")
        log(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "log", cut)
        with pytest.raises(OSError, match="No space"):
            forethought.call("train", [*LINE, *TINY, "--run=run"])
    (spent,) = [line["seconds"] for line in read_metrics(own / "run/metrics.jsonl")]
    monkeypatch.setattr("forethought.training.time.perf_counter", lambda: 0.0)
    forethought.call("train", ["--resume", "--run=run"])
    assert json.loads((own / "run/training.json").read_text())["train_seconds"] >= spent > 0
    assert (own / "run/training.png").is_file()
    assert not (own / "run/snapshot.safetensors").exists()


def test_a_picture_that_fails_keeps_no_run_from_its_end(
    own: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr("forethought.pictures.training_curves", fail)
    forethought.call("train", [*LINE, *TINY, "--run=run"])
    assert "the curves cannot be drawn: no fonts" in caplog.text
    assert not (own / "run/snapshot.safetensors").exists()


@pytest.mark.parametrize("seed", [0, 99, 100, 123_456])
def test_diagnostics_use_no_held_out_seeds(
    tiny: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, told = forethought.load(tiny), list[int]()

    def listen(agent: Any, make: Any, seeds: list[int], *_: Any, **__: Any) -> dict[str, float]:
        told.extend(seeds)
        return {}

    monkeypatch.setattr(diagnosing, "gradient_agreement", listen)
    diagnosing.agreement(trained.agent, trained.spec, seed)
    assert told == [900_000 + 1000 * (seed % 100) + k for k in range(4)]
    assert max(told) < HELD_OUT_SEED


def test_a_plan_may_be_carried_out_for_several_decisions(
    tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = forethought.load(tiny)
    assert trained.agent.configurator.cost.replan_every == 1
    made = []
    for every in (1, 3):
        seen = list[Any]()
        with pytest.MonkeyPatch.context() as patch:
            plan = Gradient.plan
            patch.setattr(
                Gradient, "plan", lambda *g, p=plan, s=seen, **n: (s.append(1), p(*g, **n))[1]
            )
            words = [f"--cost.replan-every={every}", "--env-options.episode-limit=6"]
            (outcome,) = forethought.call("act", [str(tiny), *words])
        made.append((outcome.decisions, len(seen)))
    assert made == [(6, 6), (6, 2)]
