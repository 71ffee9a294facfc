"""What every test sees: one torch thread, off-screen rendering, the repository, a seeded generator.

torch is imported only by the tests that need it (it takes three seconds), so the number of its
threads is set through the environment, which child processes inherit as well.
"""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
if "torch" in sys.modules:
    sys.modules["torch"].set_num_threads(1)

# mujoco reads this when it is imported. Without an EGL library it is left alone: mujoco then looks
# for a display.
if sys.platform == "linux" and "MUJOCO_GL" not in os.environ and ctypes.util.find_library("EGL"):
    os.environ["MUJOCO_GL"] = "egl"

REPOSITORY = Path(__file__).resolve().parent.parent

# Words of the command line: an environment without pictures, and the briefest training.
LINE = "forethought/DoubleIntegrator-v0"
LINE_WORDS = [f"--env={LINE}", "--env-options.episode-limit=8"]
TINY = [
    "--collection.episodes=4",
    "--collection.num-envs=4",
    "--stages.joint.steps=1",
    "--stages.joint.batch=4",
    "--stages.joint.unroll=2",
    "--stages.predictor.steps=1",
    "--stages.predictor.batch=4",
    "--stages.predictor.unroll=2",
    "--stages.readouts.steps=1",
    "--stages.readouts.unroll=2",
    "--planner.starts=2",
    "--planner.iterations=1",
    "--cost.horizon=2",
    "--device=cpu",
]

# Contracts are inherited by tests, so their failed asserts should show values as those of tests do.
for contract in Path(__file__).parent.glob("*_contract.py"):
    pytest.register_assert_rewrite(contract.stem)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "slow: seconds rather than milliseconds (-m 'not slow' leaves them out)"
    )


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def repository_files(repository: Path) -> list[Path]:
    """Files of the repository, relative to its root: known to git, or new and not ignored."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(
            command, cwd=repository, check=True, capture_output=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout")
    files = [Path(name) for name in sorted(set(listing.split("\0")) - {""})]
    return [file for file in files if os.path.lexists(repository / file)]


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh torch generator with seed 0."""
    import torch

    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def line_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny data set, `data`, and a run trained on it, `run`; not to be changed."""
    import forethought

    folder = tmp_path_factory.mktemp("line")
    forethought.call("collect", [str(folder / "data"), *LINE_WORDS, "--collection.episodes=4"])
    words = [f"--run={folder / 'run'}", f"--data={folder / 'data'}", *LINE_WORDS, *TINY]
    forethought.call("train", words)
    return folder
