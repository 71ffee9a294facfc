"""The examples run as a user runs them, in a shortened form."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import LINE_WORDS, TINY

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))

# What makes a training short; the rest is the example's own.
BRIEF = [word for word in (*LINE_WORDS, *TINY) if not word.startswith("--env=")]


def run(example: str, folder: Path, *words: str) -> str:
    """Run an example in `folder`; what it said, the log included."""
    file = next(file for file in EXAMPLES if file.stem == example)
    command = [sys.executable, str(file), *words, "--threads=1", "--device=cpu"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_every_example_is_tested_and_short() -> None:
    assert [file.stem for file in EXAMPLES] == ["own_planner", "own_predictor", "own_term"]
    for file in EXAMPLES:
        assert len(file.read_text().splitlines()) <= 60, f"{file.name} is too long to be read"


@pytest.mark.slow
def test_a_planner_of_ones_own_acts(tmp_path: Path) -> None:
    said = run("own_planner", tmp_path, "--planner.candidates=32", "--planner.iterations=4")
    assert re.search(r"episode 1000000: success", said)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "where", "named"),
    [
        ("own_term", "task.yaml", "own_term.Away"),
        ("own_predictor", "config.yaml", "own_predictor.Linear"),
    ],
)
def test_a_part_of_ones_own_is_trained_and_planned_with(
    example: str, where: str, named: str, tmp_path: Path
) -> None:
    said = run(example, tmp_path, "mine", *BRIEF)
    assert len(re.findall(r"the mass ends at -?\d+\.\d\d m", said)) == 5
    content = yaml.safe_load((tmp_path / "mine" / where).read_text())
    part = content["terms"]["away"]["term"] if "terms" in content else content["model"]["predictor"]
    assert part["class_path"] == named


def test_the_term_of_the_example() -> None:
    import torch

    sys.path.insert(0, str(EXAMPLES[0].parent))
    try:
        from own_term import Away
    finally:
        sys.path.pop(0)
    position = torch.tensor([[0.5], [1.0], [0.0]])
    cost = Away(place=0.5)({"position": position}, torch.zeros(3, 1))
    torch.testing.assert_close(cost, torch.tensor([0.0, 0.5, 0.5]))
