"""The README's commands and its Python example are run, in a shortened form."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)

# What makes a verb short; the command itself is run as it stands in the README.
BRIEF = {
    "train": [
        "--collection.episodes=12",
        "--stages.joint.steps=10",
        "--stages.joint.batch=8",
        "--stages.predictor.steps=10",
        "--stages.readouts.steps=10",
        "--stages.critic.steps=10",
        "--stages.temporal.steps=10",
        "--stages.levels.steps=10",
        "--stages.belief.steps=10",
        "--planner.iterations=2",
    ],
    "distill": ["--distillation.problems=64", "--distillation.steps=20"],
    "evaluate": ["--episodes=2", "--timed-decisions=2", "--env-options.episode-limit=30"],
    "act": ["--env-options.episode-limit=30"],
}
BRIEF_WITH_ROUNDS = ["--rounds=1", "--round.episodes=1", "--env-options.episode-limit=60"]
WITHOUT_THREADS = {"show", "data", "envs"}


def commands() -> list[str]:
    lines = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


def forethought(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    start = "import sys; from forethought.cli import main; sys.exit(main())"
    brief = [] if "--resume" in words else BRIEF.get(words[0], [])
    brief = brief + (BRIEF_WITH_ROUNDS if "--rounds" in words else [])
    one_thread = [] if words[0] in WITHOUT_THREADS else ["--threads=1"]
    return subprocess.run(
        [sys.executable, "-c", start, *words, *brief, *one_thread],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,  # a busy machine; what hangs is ended all the same
    )


@pytest.mark.xdist_group("readme")
def test_the_demonstration_runs_short_and_writes_its_rows(tmp_path: Path) -> None:
    assert commands()[:2] == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text()
    assert ".venv/bin/forethought demo $(DEMO_ARGS)" in makefile
    done = forethought(["demo", "--short"], tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("results.json", "trajectories.png", "plan.gif", "slide/model.safetensors"):
        assert (tmp_path / "runs/demo" / name).stat().st_size > 0


@pytest.mark.xdist_group("readme")
def test_the_commands_and_the_example_run(tmp_path: Path) -> None:
    arms = np.random.default_rng(0)
    np.savez(
        tmp_path / "robot.npz",
        observations=arms.normal(size=(40, 3)).astype(np.float32),
        actions=arms.uniform(-1, 1, (40, 2)).astype(np.float32),
        rewards=arms.normal(size=40).astype(np.float32),
        terminals=np.arange(40) % 20 == 19,
    )
    for line in commands()[2:]:
        program, *words = shlex.split(line)
        if program == "torchrun":  # several processes are tested in test_course.py
            assert words[:3] == ["--nproc-per-node", "2", "--"]
            continue
        assert program == "forethought"
        done = forethought(words, tmp_path)
        if "--resume" in words:  # that run has come to its end already
            assert done.returncode == 2
            assert len(done.stderr.splitlines()) == 1
        else:
            assert done.returncode == 0, f"{line}: {done.stderr}"
    assert (tmp_path / "mine.gif").stat().st_size > 0
    short, example = [text for kind, text in BLOCKS if kind == "python"]
    assert len(short.strip().splitlines()) <= 4
    assert len(example.splitlines()) <= 25
    for text, told in ((short, "Outcome(seed=1000000"), (example, "torch.Size([8, 20, 2])")):
        run = subprocess.run(
            [sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        assert told in run.stdout


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
