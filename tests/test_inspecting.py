"""The verbs that look at things: `envs`, `data`, `show`; and what the command line says beside."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import LINE, LINE_WORDS

import forethought
from forethought.cli import main
from forethought.envs import Dataset, describe, options_of
from forethought.listing import known_environments, matching
from forethought.pictures import training_curves
from forethought.run_folder import Metrics, RunFolder, read_metrics
from forethought.showing import table_of

ROW = {
    "task": "forethought/Somewhere-v0",
    "mode": 2,
    "planner": "CEM",
    "episodes": 10,
    "success_rate": 0.5,
    "ci95_low": 0.4,
    "ci95_high": 0.6,
    "ms_per_decision": 1.0,
    "p95_ms": 2.0,
    "protocol": "held-out seeds",
}


@pytest.fixture
def two(line_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two runs, `one` and `other`, to be changed."""
    for name in ("one", "other"):
        shutil.copytree(line_run / "run", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(words) == 0
    return capsys.readouterr().out


def lines_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


# --- envs


def test_all_kinds_of_environments_are_listed() -> None:
    known = known_environments()
    assert known[0] == "forethought/TwoRooms-v0"
    assert {"dm_control/cartpole-swingup", "CartPole-v1", LINE} <= set(known)
    assert len(known) == len(set(known)) > 40
    # Out of date, not to be made with what is installed, or of a kind that is not supported.
    assert not {"CartPole-v0", "GymV21Environment-v0", "Blackjack-v1"} & set(known)


@pytest.mark.parametrize(
    ("pattern", "some", "others"),
    [
        ("CARTPOLE", {"CartPole-v1", "dm_control/cartpole-balance"}, {"Pendulum-v1"}),
        ("dm_control/cart*", {"dm_control/cartpole-balance"}, {"CartPole-v1"}),
        ("*-v1", {"CartPole-v1"}, {"dm_control/cartpole-balance"}),
        (None, {"CartPole-v1"}, set()),
    ],
)
def test_patterns(pattern: str | None, some: set[str], others: set[str]) -> None:
    found = set(matching(pattern))
    assert some <= found
    assert not others & found


def test_what_is_packaged_stands_beside(capsys: pytest.CaptureFixture[str]) -> None:
    lines = lines_of(told(capsys, "envs"))
    assert ["forethought/TwoRooms65-v0", "two-rooms-65,", "two-rooms-lewm"] in lines
    assert "two-rooms" in {word for line in lines for word in line[1:]}
    assert ["dm_control/cartpole-swingup", "cartpole-swingup", "cartpole-swingup"] in lines
    assert ["CartPole-v1"] in lines


def test_one_environment(capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, "envs", "dm_control/cartpole-swingup")
    for words in (
        "(5,)",
        "0.01 s",
        "1000 decisions",
        "position (3), velocity (2)",
        "action_repeat",
    ):
        assert words in out
    assert "forethought train --config cartpole-swingup" in out
    out = told(capsys, "envs", f"--env={LINE}", "--env-options.episode-limit=7")
    assert "7 decisions" in out
    assert ["episode_limit", "100", "7"] in lines_of(out)


def test_options_with_their_defaults() -> None:
    assert options_of("forethought/TwoRooms-v0")[0]["contact"] == "slide"
    assert "num_envs" not in options_of(LINE)[0]
    taken, more = options_of("FrozenLake8x8-v1")
    assert (taken["map_name"], taken["action_repeat"], more) == ("8x8", 1, False)
    assert options_of("dm_control/cartpole-swingup")[0]["frame_stack"] == 1
    with pytest.raises(ValueError, match="unknown"):
        options_of("Foo-v0")


@pytest.mark.parametrize("verb", [["envs"], ["data", "DATA"], ["show", "RUN"]])
def test_looking_does_not_load_torch(verb: list[str], line_run: Path) -> None:
    words = [{"DATA": str(line_run / "data"), "RUN": str(line_run / "run")}.get(w, w) for w in verb]
    code = f"import sys; from forethought.cli import main; main({words}); "
    code += "sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == ""


# --- data


def test_a_data_set(line_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep" / "data.json"
    out = told(capsys, "data", str(line_run / "data"), f"--json={path}")
    assert json.loads(path.read_text()) == describe(line_run / "data")
    for words in ("4 (0 terminated, 4 truncated)", "smooth (4)", "0 to 3, 0 held out", "actions"):
        assert words in out
    assert "episode_limit=8" in out
    assert "checksums right, all numbers finite" in out


def test_discrete_actions_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(tmp_path / "data"), "--env=CartPole-v1", "--collection.episodes=3"]
    forethought.call("collect", [*words, "--collection.policy=Random"])
    counts = describe(tmp_path / "data")["actions"]["counts"]
    lines = lines_of(told(capsys, "data", str(tmp_path / "data")))
    assert all([str(action), str(count)] in lines for action, count in enumerate(counts))


def test_own_arrays_become_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    torques = rng.uniform(-3, 3, (10, 2))
    arrays = {"observations": rng.normal(size=(12, 3)), "torques": torques}
    np.savez(tmp_path / "own.npz", episode_lengths=np.array([6, 4]), **arrays)
    words = [str(tmp_path / "own"), f"--import={tmp_path / 'own.npz'}", "--names.actions=torques"]
    words += ["--env-id=own/robot", "--action-low=-6", "--action-high=[6, 3]"]
    out = told(capsys, "data", *words, "--control-step-seconds=0.05", "--behaviour=me")
    held = Dataset.open(tmp_path / "own")
    assert (held.spec.id, held.spec.control_step_seconds) == ("own/robot", 0.05)
    assert held.policies == ["me", "me"]
    np.testing.assert_allclose(held.arrays("actions")[:, 0], torques[:, 0] / 6, atol=1e-6)
    assert "own/robot" in out


def test_data_that_fit_an_environment(
    line_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = Dataset.open(line_run / "data")
    names = ("observations", "actions", "rewards")
    arrays: dict[str, Any] = {name: held.arrays(name) for name in names}
    np.savez(tmp_path / "own.npz", episode_lengths=held.lengths, **arrays)
    told(capsys, "data", str(tmp_path / "new"), f"--import={tmp_path / 'own.npz'}", *LINE_WORDS)
    assert Dataset.open(tmp_path / "new").spec == held.spec


def test_to_minari_and_back(
    line_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    out = told(capsys, "data", str(line_run / "data"), "--export-minari=own/line-v0")
    assert "exported to" in out
    told(capsys, "data", str(tmp_path / "back"), "--import-minari=own/line-v0")
    assert describe(tmp_path / "back")["actions"] == describe(line_run / "data")["actions"]


# --- show


def test_a_run(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ['{"stage": "collect", "step": 1, "return": 12.5, "environment_steps": 99}']
    with (two / "one/metrics.jsonl").open("a") as file:
        file.write("\n".join([*lines, '{"stage": "joi']))  # the last one was cut by a kill
    (two / "one/results.json").write_text(json.dumps([ROW]))
    out = told(capsys, "show", "one")
    report = json.loads((two / "one/diagnostics.json").read_text())
    shown = lines_of(out)
    assert all([name, f"{value:.4g}"] in shown for name, value in report.items())
    assert ["1", "99", "12.5"] in shown
    assert ["Mode-2", "CEM", "10", "50", "%", "40", "to", "60", "1.00", "2.00"] in shown
    assert "task: reach the goal; an end is a failure" in out
    assert "32 environment steps" in out


def test_metrics_survive_a_line_that_was_cut(tmp_path: Path) -> None:
    """A full disk or a power cut leaves half a line; what is logged afterwards is a whole one."""
    folder = RunFolder(tmp_path)
    with Metrics(folder) as metrics:
        metrics.log("joint", 1, {"loss": 2.0})
    with folder.metrics.open("ab") as file:
        file.write(b'{"stage": "joint", "step": 2, "lo\0\xff')
    with Metrics(folder) as metrics:
        metrics.log("joint", 3, {"loss": 1.0})
        metrics.log("joint", 4, {"loss": 0.5, "new": 1.0})
    assert [line["step"] for line in read_metrics(folder.metrics)] == [1, 3, 4]
    assert len(folder.metrics.read_bytes().split(b"\n")) == 5  # no empty lines
    training_curves(folder.metrics, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_a_cut_line_hides_nothing(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (two / "one/metrics.jsonl").open("a") as file:
        file.write('{"stage": "joi\n{"stage": "collect", "step": 1, "return": 12.5}\n')
    assert ["1", "12.5"] in lines_of(told(capsys, "show", "one"))


def test_the_seconds_of_a_training_count_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("forethought.run_folder.time.perf_counter", lambda: clock[0])
    folder = RunFolder(tmp_path)
    for leg, (stage, took) in enumerate((("joint", 30.0), ("distill", 5.0), ("joint", 4.0))):
        with Metrics(folder) as metrics:
            assert metrics.before == (0 if leg == 0 else 30)  # what distils is no training
            clock[0] += took
            metrics.log(stage, leg, {"loss": 1.0})
        clock[0] += 1000  # nobody trains
    assert [line["seconds"] for line in read_metrics(folder.metrics)] == [30, 35, 34]


def test_a_run_that_did_not_finish(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (two / "one/training.json").unlink()
    out = told(capsys, "show", "one")
    assert "has not come to its end (last heard of: diagnostics" in out
    assert "go on with forethought train --resume --run one" in out


def test_two_runs(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load((two / "other/config.yaml").read_text())
    config["cost"]["horizon"], config["run"] = 77, "elsewhere"
    config["collection"]["policy"]["class_path"] = "forethought.envs.Smooth"  # as before
    (two / "other/config.yaml").write_text(yaml.safe_dump(config))
    report = json.loads((two / "other/diagnostics.json").read_text())
    report["latent_std"] *= 1.5
    (two / "other/diagnostics.json").write_text(json.dumps(report))
    for name, low in (("one", 0.4), ("other", 0.61)):
        row = ROW | {"success_rate": low + 0.1, "ci95_low": low, "ci95_high": low + 0.2}
        (two / f"{name}/results.json").write_text(json.dumps([row, ROW | {"mode": "random"}]))
    out = told(capsys, "show", "one", "other")
    shown = lines_of(out)
    assert ["cost.horizon", "2", "77"] in shown
    assert "class_path" not in out
    assert "elsewhere" not in out
    (line,) = (line for line in shown if line[:1] == ["latent_std"])
    assert line[-2:] == ["+50", "%"]
    (line,) = (line for line in shown if line[:1] == ["effective_rank"])
    assert len(line) == 3
    assert any(line[:1] == ["Mode-2"] and line[-2:] == ["second", "better"] for line in shown)
    assert any(line[:1] == ["random"] and line[-1] == "overlap" for line in shown)


def test_the_same_run_twice(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the configurations are the same" in told(capsys, "show", "one", "other")


def test_results_by_return(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    row = {key: value for key, value in ROW.items() if key != "success_rate"}
    row |= {"return_mean": 120.4, "ci95_low": 100.2, "ci95_high": 140.0}
    Console(width=120).print(table_of([row, row | {"task": "x/Other-v0"}], "title"))
    shown = lines_of(capsys.readouterr().out)
    assert ["Other-v0", "Mode-2", "CEM", "10", "120", "100", "to", "140", "1.00", "2.00"] in shown


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals of POSIX")
@pytest.mark.parametrize("names", [["one"], ["one", "other"]])
def test_tensorboard(two: Path, names: list[str]) -> None:
    # A shell that runs tests in the background lets them ignore Ctrl-C, and what they start too.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    start = "import sys; from forethought.cli import main; sys.exit(main(sys.argv[1:]))"
    code = f"{heard}; {start}"
    words = [sys.executable, "-c", code, "show", *names, "--tensorboard"]
    pipe = subprocess.PIPE
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "NO_PROXY": "127.0.0.1"}
    with subprocess.Popen(
        words, cwd=two, stdout=pipe, stderr=pipe, text=True, env=environment
    ) as it:
        try:
            assert it.stdout is not None
            url = it.stdout.readline().split()[1]
            assert url.startswith("http://127.0.0.1:")
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"{url}data/environment", timeout=20) as answer:
                assert answer.status == 200
        finally:
            it.send_signal(signal.SIGINT)
            out, err = it.communicate(timeout=20)
    assert it.returncode == 0
    assert "has ended" in out
    assert "Traceback" not in err


def test_tensorboard_that_is_ended_as_it_says_its_address(
    two: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who has read the address may press Ctrl-C before anything else happens."""
    from tensorboard import program

    from forethought import showing

    monkeypatch.setattr(program.TensorBoard, "launch", lambda self: "http://127.0.0.1:1/")
    made = showing.plain_console()

    def speak(words: str, **options: object) -> None:
        if "Ctrl-C" in words:
            raise KeyboardInterrupt
        sys.stdout.write(f"{words}\n")

    monkeypatch.setattr(made, "print", speak)
    monkeypatch.setattr(showing, "plain_console", lambda: made)
    assert main(["show", "one", "--tensorboard"]) == 0
    assert "has ended" in capsys.readouterr().out


def test_the_critics_calibration_is_shown(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measures = {"slope": 0.75, "correlation": None, "mean_absolute_error": 0.125, "bias": -0.5}
    report = {"count": 321, "terms": {"upright": {"bins": [], **measures}}}
    assert "calibration" not in told(capsys, "show", "one")
    (two / "one/calibration.json").write_text(json.dumps(report))
    out = told(capsys, "show", "one")
    assert "321 states" in out
    assert ["upright", "0.75", "0.125", "-0.5"] in lines_of(out)
    assert "calibration.png" not in out
    (two / "one/calibration.png").touch()
    assert f"expected and realised: {Path('one') / 'calibration.png'}" in told(
        capsys, "show", "one"
    )


def test_tensorboard_on_a_port_that_is_taken(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["show", "one", "--tensorboard", f"--port={port}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"forethought show: TensorBoard cannot be started on port {port}")
    assert said.count("\n") == 1


# --- what the command line says beside


def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    from forethought import cli

    def stop(verb: str, argv: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "call", stop)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("train --run one", "stopped; go on with: forethought train --resume --run one"),
        ("train --run=one", "stopped; go on with: forethought train --resume --run one"),
        ("train --run=nothing-yet", "stopped"),
        ("collect data", "stopped; the same command goes on from the shards that are written"),
        ("evaluate one", "stopped"),
    ],
)
def test_ctrl_c(
    words: str,
    says: str,
    two: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupted(monkeypatch)
    verb = words.split()[0]
    assert main(words.split()) == 130
    assert capsys.readouterr().err == f"forethought {verb}: {says}\n"


def test_a_full_disk_in_training(
    two: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from forethought import cli

    def fail(verb: str, argv: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli, "call", fail)
    assert main(["train", "--run=one"]) == 2
    assert "make room and run it again" in (said := capsys.readouterr().err)
    assert said.endswith("; go on with: forethought train --resume --run one\n")


def test_a_mistake_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    from forethought import cli

    def fail(verb: str, argv: Any) -> None:
        raise AssertionError("that cannot be")

    monkeypatch.setattr(cli, "call", fail)
    with pytest.raises(AssertionError):
        main(["show", "one"])


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ModuleNotFoundError("No module named 'ale_py'", name="ale_py"), "'ale_py': install it"),
        (ImportError("pip install 'forethought[data]'"), "pip install 'forethought[data]'"),
        (PermissionError(13, "Permission denied", "x.json"), "x.json: Permission denied: choose"),
        (OSError(28, "No space left on device"), "make room and run it again"),
        (ChildProcessError("a worker ended: run it again"), "a worker ended: run it again"),
        (MemoryError(), "out of memory (MemoryError): choose smaller"),
    ],
)
def test_one_sentence(
    error: Exception,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from forethought import cli

    def fail(verb: str, argv: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "call", fail)
    assert main(["show", "one"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert says in said


def test_libraries_are_quiet(tmp_path: Path) -> None:
    """No notes of renderers, and no log files of MuJoCo where somebody works."""
    code = "import sys; from forethought.cli import main; sys.exit(main(sys.argv[1:]))"
    without_screen = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MUJOCO_GL")}
    for words in (["envs", "dm_control/cartpole-swingup"], ["envs", "HalfCheetah-v5"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words],
            cwd=tmp_path,
            env=without_screen,
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stderr == ""
        assert "WARNING" not in done.stdout
    assert list(tmp_path.iterdir()) == []
