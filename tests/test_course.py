"""The course of a training: rounds, going on after a kill at any moment, and what is left."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_run_folder import refusal

import forethought
from forethought.agent import TemporalCost
from forethought.build import Round
from forethought.cli import main
from forethought.course import environment_steps, episode_returns, quantities_of
from forethought.envs import Dataset
from forethought.running import Trained
from forethought.worldmodel import Snapshot

TINY = [
    "--collection.episodes=4",
    "--collection.num-envs=2",
    "--stages.joint.steps=4",
    "--stages.joint.batch=4",
    "--stages.joint.unroll=2",
    "--stages.predictor.steps=4",
    "--stages.predictor.batch=4",
    "--stages.predictor.unroll=3",
    "--stages.readouts.steps=4",
    "--stages.readouts.batch=4",
    "--stages.critic.steps=4",
    "--stages.critic.batch=4",
    "--round.episodes=2",
    "--cost.horizon=3",
    "--device=cpu",
    "--seed=3",
]
FAST = ["--planner.iterations=2", "--planner.starts=2"]
LINE = ["--env=forethought/DoubleIntegrator-v0", "--env-options.episode-limit=6", *FAST]
CRITIC = "--stages.critic-from=0"  # in the first round too
PENDULUM = ["--env=Pendulum-v1", "--env-options.episode-limit=6", CRITIC, *FAST]
CARTPOLE = ["--env=CartPole-v1", "--env-options.episode-limit=20"]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the curves takes longer than such a training."""
    monkeypatch.setattr("forethought.pictures.training_curves", lambda *_: None)


def trained(run: Path, *words: str) -> Path:
    forethought.call("train", [*TINY, *words, f"--run={run}"])
    return run


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def equal(one: Path, other: Path) -> bool:
    first, second = (load_file(run / "model.safetensors") for run in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def same_episodes(one: Path, other: Path) -> bool:
    """Shard by shard; their bytes differ, because safetensors keeps metadata in no order."""
    folders = [sorted((run / "data").glob("*.safetensors")) for run in (one, other)]
    assert [path.name for path in folders[0]] == [path.name for path in folders[1]]
    for paths in zip(*folders, strict=True):
        first, second = (load_file(path) for path in paths)
        if first.keys() != second.keys():
            return False
        if not all(torch.equal(first[k], second[k]) for k in first):
            return False
    return True


# ---- rounds --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first training, a short round and a last one."""
    words = ["--rounds=2", "--round.share=0.5", "--round.last=1.5", "--losses.readout=0.5"]
    return trained(tmp_path_factory.mktemp("rounds") / "run", *LINE, *words)


def test_rounds_append_shards_with_seeds_of_their_own(rounds: Path) -> None:
    data = Dataset.open(rounds / "data")
    data.verify()
    assert [record.episodes for record in data.shards] == [4, 2, 2]
    assert data.arrays("seed").tolist() == list(range(8))
    assert data.policies == ["smooth"] * 4 + ["mode2"] * 4
    assert sorted(path.name for path in (rounds / "data").iterdir()) == [
        "index.json",
        *(f"shard-0000{index}.safetensors" for index in range(3)),
    ]
    actions = [data.episode(index).actions for index in range(8)]
    assert max(np.abs(action).max() for action in actions) <= 1
    for index in range(8):  # every episode has noise of its own
        assert not any(np.array_equal(actions[index], other) for other in actions[:index])


def test_rounds_take_their_share_of_every_stage(rounds: Path) -> None:
    lines = metrics_of(rounds)
    for stage in ("joint", "predictor", "readouts"):
        steps = [line["step"] for line in lines if line["stage"] == stage]
        assert steps == [4, 4 + 2, 4 + 2 + 6], stage  # 1, 0.5 and 1.5 times 4: one axis
    order = [line["stage"] for line in lines]
    once = ["joint", "predictor", "readouts"]
    assert order == [*once, "collect", *once, "collect", *once, "diagnostics"]
    assert lines[-1]["step"] == 12


def test_what_a_round_found_is_reported(rounds: Path) -> None:
    found = [line for line in metrics_of(rounds) if line["stage"] == "collect"]
    data = Dataset.open(rounds / "data")
    returns = [float(data.episode(index).rewards.sum()) for index in range(8)]
    np.testing.assert_allclose(episode_returns(data), returns, rtol=1e-6)
    assert [line["step"] for line in found] == [1, 2]
    assert [line["environment_steps"] for line in found] == [36, 48]
    assert found[0]["return"] == pytest.approx(np.mean(returns[4:6]))
    assert found[1]["return"] == pytest.approx(np.mean(returns[6:8]))


def test_readouts_that_shape_the_encoder_are_in_the_log(rounds: Path) -> None:
    joint = [line for line in metrics_of(rounds) if line["stage"] == "joint"]
    assert all(np.isfinite(line["readout"]) for line in joint)
    assert {"r2_position", "r2_reward"} <= set(
        json.loads((rounds / "diagnostics.json").read_text())
    )


def test_a_round_goes_on_from_the_weights_and_changes_them(rounds: Path, tmp_path: Path) -> None:
    none = trained(tmp_path / "none", *LINE, "--losses.readout=0.5")
    one, other = (load_file(run / "model.safetensors") for run in (none, rounds))
    for name in one:
        constant = "standardise" in name or name in {"readouts.mean", "readouts.std"}
        # Statistics stay those of the first data, so that a weight means the same in every round.
        assert torch.equal(one[name], other[name]) == constant, name


def test_a_slow_encoder_counts_and_is_not_in_the_model(rounds: Path, tmp_path: Path) -> None:
    words = ["--rounds=2", "--round.share=0.5", "--round.last=1.5", "--losses.readout=0.5"]
    slow = trained(tmp_path / "slow", *LINE, *words, "--stages.joint.target_decay=0.9")
    one, other = (load_file(run / "model.safetensors") for run in (rounds, slow))
    assert one.keys() == other.keys()
    assert not equal(rounds, slow)


def test_twin_courses_are_equal(rounds: Path, tmp_path: Path) -> None:
    words = ["--rounds=2", "--round.share=0.5", "--round.last=1.5", "--losses.readout=0.5"]
    twin = trained(tmp_path / "twin", *LINE, *words)
    assert equal(twin, rounds)
    assert same_episodes(twin, rounds)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"episodes": 0}, "round.episodes is 0"),
        ({"noise": -0.1}, "round.noise is -0.1"),
        ({"share": float("nan")}, "round.share is nan"),
        ({"last": float("inf")}, "round.last is inf"),
    ],
)
def test_rounds_that_make_no_sense_are_refused(option: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says.replace(".", r"\.")):
        Round(**option)


def test_rounds_want_data_of_their_own(
    rounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", *LINE, *TINY, "--rounds=1", f"--run={tmp_path / 'run'}"]
    said = refusal(capsys, *words, f"--data={rounds / 'data'}")
    assert "rounds append to the data" in said
    assert "--data" in said
    assert not (tmp_path / "run").exists()
    assert "rounds is -1" in refusal(capsys, *words[:-1], "--rounds=-1")


# ---- what the data tell --------------------------------------------------------------------------


def test_quantities_are_those_of_the_data_and_what_was_paid(rounds: Path) -> None:
    data = Dataset.open(rounds / "data")
    told = quantities_of(data, torch.device("cpu"))
    assert set(told) == {"position", "velocity", "reward", "terminated"}
    assert not told["terminated"].any()  # nothing ever terminated here, and might in a later round
    row = 0
    for index in range(data.episodes):
        episode = data.episode(index)
        rows = slice(row, row + episode.length + 1)
        row += episode.length + 1
        np.testing.assert_array_equal(told["position"][rows], episode.quantities["position"])
        assert told["reward"][rows][0].isnan()
        np.testing.assert_array_equal(told["reward"][rows][1:, 0], episode.rewards)
    assert all(len(value) == row for value in told.values())
    assert all(value.dtype == torch.float32 for value in told.values())


# ---- other environments --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Torque, no goal and no quantities of ours: the cost is learned from the reward."""
    words = [*PENDULUM, "--env-options.action-repeat=2", "--rounds=1"]
    return trained(tmp_path_factory.mktemp("pendulum") / "run", *words)


def test_the_reward_becomes_a_task(pendulum: Path) -> None:
    task = yaml.safe_load((pendulum / "task.yaml").read_text())
    assert (task["env"], task["goal"], list(task["terms"])) == ("Pendulum-v1", False, ["reward"])
    first = [Dataset.open(pendulum / "data").episode(index).rewards for index in range(4)]
    ends = task["terms"]["reward"]["term"]["init_args"]
    assert ends["worst"] == pytest.approx(float(np.concatenate(first).min()))
    low, high = float(np.concatenate(first).min()), float(np.concatenate(first).max())
    assert ends["best"] == pytest.approx(high + (high - low))


def test_environment_steps_are_those_before_action_repeat(pendulum: Path) -> None:
    data = Dataset.open(pendulum / "data")
    assert data.steps == 6 * 3  # six episodes of six steps, two steps to a decision
    assert environment_steps(data) == 36
    assert json.loads((pendulum / "training.json").read_text())["environment_steps"] == 36
    (found,) = [line for line in metrics_of(pendulum) if line["stage"] == "collect"]
    assert found["environment_steps"] == 36


def test_act_tells_environment_steps(pendulum: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (outcome,) = forethought.call("act", [str(pendulum)])
    repeat = Dataset.open(pendulum / "data").spec.action_repeat
    assert repeat > 1
    assert f"after {outcome.decisions * repeat} environment steps" in caplog.text


def test_the_critic_is_saved_and_loaded(pendulum: Path) -> None:
    loaded: Trained = forethought.load(pendulum)
    critic = loaded.agent.critic
    assert critic is not None
    # Discounted by time: two steps of 0.05 s make a decision.
    assert critic.discount == pytest.approx(0.8**0.1)
    stored = load_file(pendulum / "model.safetensors")
    state = critic.state_dict()
    assert {f"critic.{name}" for name in state} == {k for k in stored if k.startswith("critic.")}
    assert all(torch.equal(value, stored[f"critic.{name}"]) for name, value in state.items())
    assert any(name.startswith("slow.") for name in state)
    assert not any(parameter.requires_grad for parameter in critic.parameters())
    assert [line["step"] for line in metrics_of(pendulum) if line["stage"] == "critic"] == [4, 8]
    value = critic(torch.zeros(3, loaded.agent.model.latent_dim))
    assert value.shape == (3, 1)
    (outcome,) = forethought.call("act", [str(pendulum)])
    assert outcome.success is None
    assert outcome.return_ < 0


def test_without_a_weight_there_is_no_critic(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", *PENDULUM, "--cost.critic=0")
    assert forethought.load(run).agent.critic is None
    assert not any(k.startswith("critic.") for k in load_file(run / "model.safetensors"))
    patient = trained(tmp_path / "patient", *PENDULUM, "--cost.discount=1")
    assert forethought.load(patient).agent.critic is None


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two actions, and episodes that end when the pole falls."""
    words = [*CARTPOLE, "--rounds=1", "--model.action-embedding=3", "--losses.readout=0.5"]
    words += ["--planner=CEM", "--planner.candidates=8", "--planner.iterations=2"]
    return trained(tmp_path_factory.mktemp("cartpole") / "run", *words)


def test_discrete_actions_from_data_to_deed(cartpole: Path) -> None:
    data = Dataset.open(cartpole / "data")
    assert data.episodes == 6
    actions = np.asarray(data.arrays("actions"))
    assert actions.dtype == np.int64
    assert actions.shape == (data.steps, 1)
    assert set(actions.ravel()) == {0, 1}
    loaded = forethought.load(cartpole)
    model = loaded.agent.model
    assert model.actions.discrete
    assert (model.action_dim, model.predictor.action_dim) == (2, 3)
    task = yaml.safe_load((cartpole / "task.yaml").read_text())
    assert task["end"] == "failure"  # it is paid for staying up
    assert set(task["terms"]) == {"reward", "ended"}
    assert set(loaded.readouts.sizes) == {"observation", "reward", "terminated"}
    outcomes = forethought.call("act", [str(cartpole), "--episodes=2"])
    assert all(1 <= outcome.decisions <= 20 for outcome in outcomes)
    assert all(outcome.return_ == outcome.decisions for outcome in outcomes)


def test_terminations_are_told_and_read(cartpole: Path) -> None:
    data = Dataset.open(cartpole / "data")
    ended = quantities_of(data, torch.device("cpu"))["terminated"]
    assert ended.sum() == data.arrays("terminated").sum() > 0
    last = data.observation_offsets[1:] - 1
    assert (ended[last, 0].numpy() == data.arrays("terminated")).all()


def test_discrete_actions_are_distilled_and_evaluated(cartpole: Path) -> None:
    brief = ["problems=2", "batch=2", "steps=2", "rounds=1", "minibatch=4"]
    words = [f"--distillation.{word}" for word in brief]
    forethought.call("distill", [str(cartpole), *words])
    words = ["--episodes=2", "--num-envs=2", "--timed-decisions=1"]
    rows = forethought.call("evaluate", [str(cartpole), *words])
    assert [row["mode"] for row in rows] == ["random", 1, 2]
    assert all(1 <= row["return_mean"] <= 20 for row in rows)


BLOCKS = [
    "--env=forethought/TwoRooms-v0",
    "--env-options.episode-limit=18",
    "--env-options.block=5",
    "--collection.policy=InBlocks",
    "--collection.policy.block=5",
    "--model.perception=ViTPerception",
    *(f"--model.perception.{word}" for word in ("latent-dim=8", "patch=8", "width=8", "depth=1")),
    *(f"--model.perception.{word}" for word in ("heads=2", "projector=8")),
    "--model.predictor=CausalPredictor",
    *(f"--model.predictor.{word}" for word in ("heads=2", "depth=1", "projector=8", "dropout=0.2")),
    "--stages.joint.teacher-forcing=true",
    "--stages.joint.weight-decay=0.01",
    "--losses.sigreg=0.1",
    "--rounds=1",
    *FAST,
]


@pytest.mark.slow
def test_blocks_and_a_window_from_data_to_deed(tmp_path: Path) -> None:
    """Batch normalisation and dropout are part of it: nothing but the joint stage sees them."""
    run = trained(tmp_path / "run", *BLOCKS)
    data = Dataset.open(run / "data")
    assert data.arrays("actions").shape == (6 * 4, 10)  # 18 actions are four decisions
    assert json.loads((run / "training.json").read_text())["environment_steps"] == 6 * 20
    loaded = forethought.load(run)
    model = loaded.agent.model
    assert not model.training
    normalised = model.perception.project[1]
    assert normalised.num_batches_tracked == 8  # updates of the joint stage, in both rounds
    words = ["--episodes=2", "--num-envs=2", "--timed-decisions=1"]
    rows = forethought.call("evaluate", [str(run), *words])
    assert [row["mode"] for row in rows] == ["random", 2]  # no oracle acts in blocks
    assert equal(run, trained(tmp_path / "again", *BLOCKS))


# ---- only checking -------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [LINE, PENDULUM, CARTPOLE])
def test_a_check_writes_nothing_and_says_what_would_be(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.INFO):
        forethought.call("train", [*words, *TINY, "--check", "--rounds=3", "--run=new"])
    assert list(tmp_path.iterdir()) == []
    said = caplog.text
    limit = int(words[1].partition("=")[2])
    assert f"environment steps: at most {(4 + 3 * 2) * limit}" in said
    assert words[0].partition("=")[2] in said
    assert "nothing was written" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--env=Nowhere-v0"], "Nowhere-v0"),
        ([*LINE, "--task=nothing"], "no task 'nothing'"),
        ([*LINE, "--model.perception=ImagePerception"], "choose another model.perception"),
    ],
)
def test_a_check_finds_what_does_not_fit(
    words: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refusal(capsys, "train", *words, "--check")
    assert list(tmp_path.iterdir()) == []


# ---- killed, and gone on with --------------------------------------------------------------------

# Every run is a child of one process that has imported everything already. A moment has a name;
# a child kills itself when it gets there.
SERVER = '''
import json, os, signal, sys, time
from pathlib import Path

import torch._dynamo  # what the first optimiser would import
import torch.utils.tensorboard
from forethought import course, pictures, running, training
from forethought.cli import main
from forethought.envs import index, resumable
from forethought.worldmodel import Snapshot

pictures.training_curves = lambda *_: moment("curves")
resumable.default_shard = lambda *_: 2  # episodes
os.fsync = lambda _: None  # a killed process loses nothing that it gave to the kernel
seen, kill_at, slow = [], None, 0.0


def moment(name):
    seen.append(name)
    if name == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)


def around(owner, name, called):
    function = getattr(owner, name)
    times = 0

    def wrapper(*args, **options):
        nonlocal times
        times += 1
        moment(f"before {called} {times}")
        result = function(*args, **options)
        moment(f"after {called} {times}")
        return result

    setattr(owner, name, wrapper)


around(resumable, "write_shard", "shard")
around(index, "write_index", "index")
around(course, "save_checkpoint", "checkpoint")
enter = Snapshot.enter


def entered(self, stage):
    begun = enter(self, stage)
    moment(f"enter {stage}")
    return begun


def passed(self, step, optimiser):
    time.sleep(slow)
    if step % 2 == 0:  # for the clock of half a minute
        self.save(step, optimiser)
    moment(f"{self._stage} step {step}")


Snapshot.enter, Snapshot.passed = entered, passed


def child(words, errors, at=None, wait=0.0):
    """Start a training in a child."""
    global kill_at, slow
    process = os.fork()
    if process:
        return process
    kill_at, slow = at, wait
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal
    sys.stdout = open(os.devnull, "w")
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    code = main(words)
    Path(errors + ".moments").write_text(json.dumps(seen))
    sys.stderr.flush()
    os._exit(code)


def ended(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


plan = json.loads(sys.stdin.read())
main(["train", *plan["words"], f"--run={plan['folder']}/nothing", "--check"])  # imports the rest
codes = {}
for name, moments in plan["runs"].items():
    run = str(Path(plan["folder"]) / name)
    errors = run + ".err"
    words = ["train", *plan["words"], f"--run={run}"]
    codes[name] = []
    for at in moments:
        if isinstance(at, int):  # a signal from outside, in the middle of some stage
            process = child(words, errors, wait=0.05)
            while not Path(run, "snapshot.safetensors").exists():
                time.sleep(0.01)
            time.sleep(0.35)
            os.kill(process, at)
        else:
            process = child(words, errors, at)
        codes[name].append(ended(process))
        words = ["train", "--resume", f"--run={run}"]
    codes[name].append(ended(child(words, errors)))
print(json.dumps(codes))
'''

KILLS: dict[str, list[str | int]] = {
    "undisturbed": [],
    "after the first shard": ["after shard 1"],
    "between shard and index": ["before index 2"],
    "after the first collection": ["after shard 2"],
    "before the joint stage": ["enter 0/joint"],
    "in the joint stage": ["0/joint step 3"],
    "in the predictor stage": ["0/predictor step 3"],
    "in the readouts": ["0/readouts step 2"],
    "in the critic": ["0/critic step 3"],
    "before the checkpoint": ["before checkpoint 1"],
    "as the round collects": ["before shard 3"],
    "after the round's shard": ["after shard 3"],
    "in the round's joint stage": ["1/joint step 3"],
    "before the curves": ["curves"],
    "three times": ["0/predictor step 1", "before shard 1", "1/readouts step 3"],
    "from outside": [9],
    "by Ctrl-C": [2, "1/joint step 1"],
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[int]]]:
    """Runs that were killed and gone on with, and the exit codes of their lives."""
    folder = tmp_path_factory.mktemp("killed")
    names = {name.replace(" ", "-").replace("'", ""): moments for name, moments in KILLS.items()}
    told = {"folder": str(folder), "runs": names, "words": [*PENDULUM, *TINY, "--rounds=1"]}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SERVER],
        input=json.dumps(told),
        check=False,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout.splitlines()[-1])
    return folder, dict(zip(KILLS, codes.values(), strict=True))


def run_of(folder: Path, name: str) -> Path:
    return folder / name.replace(" ", "-").replace("'", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in KILLS if name != "undisturbed"])
def test_a_training_killed_at_any_moment_ends_with_the_same_bits(
    name: str, killed: tuple[Path, dict[str, list[int]]]
) -> None:
    folder, codes = killed
    run, whole = run_of(folder, name), run_of(folder, "undisturbed")
    expected = [130 if moment == 2 else -9 for moment in KILLS[name]]
    errors = run.with_name(run.name + ".err").read_text()
    assert codes[name] == [*expected, 0], errors
    assert "Traceback" not in errors
    assert equal(run, whole)
    assert same_episodes(run, whole)
    left, wanted = (
        {path.name for path in [*r.iterdir(), *(r / "data").iterdir()]} for r in (run, whole)
    )
    assert left == wanted  # no snapshot, no note, no file half written
    reports = [json.loads((path / "diagnostics.json").read_text()) for path in (run, whole)]
    assert reports[0] == reports[1]
    # Reports may come twice where work was repeated; the same ones.
    known = {(line["stage"], line["step"]): line for line in metrics_of(whole)}
    seen = {(line["stage"], line["step"]): line for line in metrics_of(run)}
    assert seen.keys() - {("collect", 1)} == known.keys() - {("collect", 1)}
    for key, line in seen.items():
        clock = {"steps_per_second": 0, "seconds": 0}
        assert line | clock == known[key] | clock


@pytest.mark.slow
def test_an_undisturbed_run_passes_every_moment(
    killed: tuple[Path, dict[str, list[int]]],
) -> None:
    folder, codes = killed
    assert codes["undisturbed"] == [0]
    moments = json.loads((folder / "undisturbed.err.moments").read_text())
    wanted = {moment for name, kinds in KILLS.items() for moment in kinds if name != "three times"}
    assert {moment for moment in wanted if isinstance(moment, str)} <= set(moments)
    assert len(Dataset.open(folder / "undisturbed/data").shards) == 3
    stages = [moment.split("/")[1] for moment in moments if moment.startswith("enter 1/")]
    assert stages == ["collect", "joint", "predictor", "readouts", "critic", "done"]


@pytest.mark.slow
def test_ctrl_c_says_one_line(killed: tuple[Path, dict[str, list[int]]]) -> None:
    folder, _ = killed
    errors = run_of(folder, "by Ctrl-C").with_name("by-Ctrl-C.err").read_text()
    assert errors.count("forethought train: stopped") == 1
    assert "--resume" in errors
    assert "KeyboardInterrupt" not in errors


def test_resuming_takes_the_runs_own_configuration(
    rounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--seed=4"], ["--stages.joint.steps", "9"], ["--config=two-rooms"]):
        for flag in (["--resume"], ["--resume", "true"], ["--resume=true"]):
            said = refusal(capsys, "train", *flag, f"--run={rounds}", *words)
            name = words[0].removeprefix("--").partition("=")[0]
            assert f"so {name} cannot be given: leave it out" in said
    for words in (["--resume"], ["--resume", "some/run"], ["--resume", "--run"]):
        assert "give --run RUN" in refusal(capsys, "train", *words)
    assert "is no run folder" in refusal(capsys, "train", "--resume", f"--run={tmp_path / 'no'}")
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--resume", "--help"])
    assert stopped.value.code == 0


def test_a_run_that_has_ended_is_not_trained_again(
    rounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in rounds.iterdir() if path.is_file()}
    said = refusal(capsys, "train", "--resume", f"--run={rounds}")
    assert str(rounds) in said
    assert {path: path.read_bytes() for path in rounds.iterdir() if path.is_file()} == before


def test_a_damaged_snapshot_is_named(
    rounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_bytes((rounds / "config.yaml").read_bytes())
    (run / "snapshot.safetensors").write_bytes(b"no snapshot at all")
    assert "snapshot.safetensors is damaged or cut" in refusal(
        capsys, "train", "--resume", f"--run={run}"
    )


LEVELS = [
    "--env=forethought/DoubleIntegrator-v0",
    "--env-options.episode-limit=14",
    *FAST,
    "--model.levels=[{stride: 2, latent_dim: 4, macro_dim: 2}, {stride: 2, latent_dim: 3}]",
    "--stages.levels.steps=4",
    "--stages.levels.batch=4",
    "--stages.temporal.steps=4",
    "--stages.temporal.batch=4",
    "--stages.temporal.horizon=9",
    "--cost.goal=temporal",
    "--top_down.horizon=[3, 2]",
    "--top_down.planner=Gradient",
    "--top_down.planner.iterations=2",
    "--top_down.planner.starts=2",
]


def test_levels_above_are_trained_kept_and_planned_with(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", *LEVELS, "--rounds=1")
    stages = list(dict.fromkeys(row["stage"] for row in metrics_of(run)))
    order = ["levels 2", "probes 2", "levels 3", "probes 3", "temporal"]
    assert [stage for stage in stages if stage in order] == order
    report = json.loads((run / "diagnostics.json").read_text())
    assert report["level2_horizon"] == 12.0  # six steps of two decisions
    assert report["level3_horizon"] == 12.0  # three of four
    assert {"level3_latent_std", "level3_effective_rank", "level2_open_loop_ratio"} <= set(report)
    held = Trained.load(run)
    hierarchy = held.agent.hierarchy
    assert hierarchy is not None
    assert [level.shape.stride for level in hierarchy.levels] == [2, 2]
    assert hierarchy.top_down.horizon == (3, 2)
    assert isinstance(hierarchy.top, TemporalCost)
    assert hierarchy.top.module.discount == pytest.approx(1 - 1 / 9)
    assert [probe.sizes for probe in held.probes] == [held.readouts.sizes] * 2
    stored = load_file(run / "model.safetensors")
    assert torch.equal(stored["levels.1.reach"], hierarchy.levels[1].reach)
    outcome = held.play(1)[0]
    assert outcome.decisions > 0
    # Another way to plan, on the levels as they are.
    other = Trained.load(run, top_down=replace(hierarchy.top_down, horizon=(1,))).agent.hierarchy
    assert other is not None
    assert other.top_down.horizon == (1,)
    again = trained(tmp_path / "again", *LEVELS, "--rounds=1")
    assert equal(run, again)


TOGETHER = [*LEVELS, "--stages.levels.together=true", "--stages.levels.steps=0"]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Levels that the joint stage alone trains, in two rounds."""
    return trained(tmp_path_factory.mktemp("together") / "run", *TOGETHER, "--rounds=1")


def test_levels_are_trained_together_with_the_world_model(together: Path) -> None:
    lines = metrics_of(together)
    assert not [line for line in lines if line["stage"].startswith("levels")]
    joint = [line for line in lines if line["stage"] == "joint"]
    assert [line["step"] for line in joint] == [4, 8]
    for level in (2, 3):
        assert all(np.isfinite(line[f"level{level}_macro_variance"]) for line in joint)
    held = Trained.load(together)
    hierarchy = held.agent.hierarchy
    assert hierarchy is not None
    for level in hierarchy.levels:
        assert level.known.isfinite().all()
        assert level.reach != level.shape.macro_dim**0.5
    assert held.play(1)[0].decisions > 0


@pytest.mark.parametrize("moment", ["0/joint step 3", "0/levels 3", "1/joint step 1"])
def test_levels_trained_together_go_on_with_the_same_bits(
    moment: str, together: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kill(BaseException):
        pass

    def passed(self: Snapshot, step: int, optimiser: torch.optim.Optimizer) -> None:
        self.save(step, optimiser)
        if f"{self._stage} step {step}" == moment:
            raise Kill

    def entered(self: Snapshot, stage: str) -> bool:
        begun = enter(self, stage)
        if stage == moment:
            raise Kill
        return begun

    enter, run = Snapshot.enter, tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Snapshot, "passed", passed)
        patch.setattr(Snapshot, "enter", entered)
        with pytest.raises(Kill):
            trained(run, *TOGETHER, "--rounds=1")
    assert not (run / "training.json").exists()
    forethought.call("train", ["--resume", f"--run={run}"])
    assert equal(run, together)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            [*LINE, "--stages.levels.together=true"],
            "stages.levels.together is true, but model.levels is empty: give levels, or choose",
        ),
        (
            [*TOGETHER, "--stages.joint.steps=0"],
            "stages.levels.together is true, but stages.joint.steps is 0: choose 1 or more, or",
        ),
        (
            [
                *PENDULUM,
                "--model.predictor=CausalPredictor",
                "--stages.joint.unroll=4",
                "--stages.joint.teacher_forcing=true",
            ],
            "stages.joint.unroll is 4 with teacher_forcing, but the predictor's window is 3",
        ),
        ([*PENDULUM, "--cost.doubt=0.5"], "cost.doubt is 0.5, but ResidualMLP does not tell"),
        (
            [*LEVELS, "--cost.goal=latent", "--top_down.leaps=1"],
            "top_down.leaps is 1.0, which reads TC(s, g): choose cost.goal temporal, or 0",
        ),
        (
            ["--env=CartPole-v1", "--model.levels=[{stride: 2}]", "--top_down.refine=3"],
            "top_down.refine is 3, but indices of actions have no slope: choose 0",
        ),
    ],
)
def test_what_the_model_cannot_do_is_refused_before_anything_is_made(
    words: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refusal(capsys, "train", *TINY, *words, f"--run={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_levels_need_a_goal_and_long_enough_episodes(tmp_path: Path) -> None:
    words = [*TINY, *PENDULUM, "--model.levels=[{stride: 2}]"]
    with pytest.raises(ValueError, match=r"model.levels are given, but the task has no goal"):
        forethought.call("train", [*words, f"--run={tmp_path / 'pendulum'}"])
    words = [*TINY, *LEVELS, "--stages.levels.steps=0", f"--run={tmp_path / 'untrained'}"]
    with pytest.raises(ValueError, match=r"stages.levels.steps is 0: choose 1 or more"):
        forethought.call("train", words)
    words = [*TINY, *LEVELS, "--model.levels=[{stride: 20}]"]
    with pytest.raises(ValueError, match=r"one step of the top level is 20 decisions"):
        forethought.call("train", [*words, f"--run={tmp_path / 'short'}"])
