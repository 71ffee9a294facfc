"""The README's commands and its Python example are run, in a shortened form."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)

# What makes a verb short; the command itself is run as it stands in the README.
BRIEF = {
    "demo": [],
    "train": [
        "--collection.episodes=64",
        "--stages.joint.steps=40",
        "--stages.predictor.steps=40",
        "--planner.iterations=2",
    ],
    "distill": ["--distillation.problems=64", "--distillation.steps=20"],
    "evaluate": ["--episodes=2", "--timed-decisions=2"],
    "act": [],
    "show": [],
}


def commands() -> list[str]:
    lines = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
    return [line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()]


def forethought(words: list[str], folder: Path) -> None:
    start = "import sys; from forethought.cli import main; sys.exit(main())"
    one_thread = [] if words[0] == "show" else ["--threads=1"]
    done = subprocess.run(
        [sys.executable, "-c", start, *words, *BRIEF[words[0]], *one_thread],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.xdist_group("readme")
def test_the_demonstration_runs_short_and_writes_its_rows(tmp_path: Path) -> None:
    assert commands()[:2] == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text()
    assert ".venv/bin/forethought demo $(DEMO_ARGS)" in makefile
    forethought(["demo", "--short"], tmp_path)
    for name in ("results.json", "trajectories.png", "plan.gif", "slide/model.safetensors"):
        assert (tmp_path / "runs/demo" / name).stat().st_size > 0


@pytest.mark.xdist_group("readme")
def test_the_commands_and_the_example_run(tmp_path: Path) -> None:
    for line in commands()[2:]:
        program, *words = shlex.split(line)
        assert program == "forethought"
        forethought(words, tmp_path)
    assert (tmp_path / "mine.gif").stat().st_size > 0
    (example,) = [text for kind, text in BLOCKS if kind == "python"]
    assert len(example.splitlines()) <= 25
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "success_rate" in done.stdout
    assert "torch.Size([8, 20, 2])" in done.stdout


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
