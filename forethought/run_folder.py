"""Run folders: everything about one run, in one place that can be copied and still be read.

The files of a run:

    RUN/
        config.yaml          resolved configuration of `train`
        environment.json     versions, commit, machine, seed, time
        metrics.jsonl        one JSON object per logged step, with the seconds of training so far;
                             also in tensorboard/
        tensorboard/
        task.yaml            what the agent minimises
        data/                shards, where `train` collected them
        model.safetensors    perception, predictor, readouts, critic
        snapshot.safetensors what an interrupted training goes on from
        policy.safetensors   Mode-1's policy, after `distill`
        rounds.json          where the rounds' seeds begin
        weights.json         what was taken from weights of others, and what not
        diagnostics.json     what the latent state is worth
        results.json         rows of the last evaluation
        *.png, *.gif         plots and videos
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from forethought.envs.shard import replace_file

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

SUBGOALS = "subgoals.png"  # what `act` draws of a run with levels above
PACKAGES = ("forethought", "torch", "numpy", "gymnasium", "mujoco", "dm-control")


def commit() -> str | None:
    """Commit of the source tree this package runs from, with `+` if it was changed; or None."""
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here)]
    try:
        tracked = subprocess.run(
            [*git, "ls-files", "--error-unmatch", "run_folder.py"], capture_output=True, check=False
        )
        if tracked.returncode:
            return None
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if dirty else "")


def environment() -> dict[str, Any]:
    """Versions, commit and machine."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "commit": commit(),
        "versions": versions,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def packaged_runs() -> dict[str, Path]:
    """Runs that ship with the package, by name."""
    folder = Path(str(files("forethought.configs"))) / "runs"
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/config.yaml"))}


def check_place(path: Path) -> None:
    """Refuse a place for a file before the work whose result it is to hold is done.

    Raises:
        OSError: a file cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror}): choose another") from error
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        reason = "it is a folder" if path.is_dir() else f"{path.parent} is read-only"
        raise OSError(f"{path} cannot be written ({reason}): choose another")


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run, and how they are written.

    Args:
        path: the folder.
    """

    path: Path

    @staticmethod
    def create(path: Path, resolved: str, seed: int) -> RunFolder:
        """Begin a run: make the folder, write configuration and environment.

        Raises:
            ValueError: the folder already holds a run.
        """
        folder = RunFolder(path)
        if folder.config.exists():
            raise ValueError(
                f"run folder {path} already holds a run: choose another --run; the data of the old "
                "one can be used with --data"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            replace_file(folder.config, resolved.encode())
        except OSError as error:
            raise OSError(
                f"run folder {path} cannot be written ({error.strerror}): choose another --run"
            ) from error
        folder.write_json("environment.json", environment() | {"seed": seed})
        return folder

    @staticmethod
    def open(path: Path) -> RunFolder:
        """Open a run that exists, or one that ships with the package by its name.

        Raises:
            FileNotFoundError: there is no run at `path`.
        """
        folder = RunFolder(path)
        if not folder.config.is_file():
            if str(path) in packaged_runs():
                return RunFolder(packaged_runs()[str(path)])
            known = ", ".join(packaged_runs()) or "none"
            raise FileNotFoundError(
                f"{path} is no run folder (no config.yaml): train one first, or use one that ships "
                f"with the package ({known})"
            )
        return folder

    @property
    def packaged(self) -> bool:
        """Whether the run ships with the package, and is not to be written to."""
        return self.path in packaged_runs().values()

    @property
    def config(self) -> Path:
        """Resolved configuration."""
        return self.path / "config.yaml"

    @property
    def data(self) -> Path:
        """Shards that this run collected."""
        return self.path / "data"

    @property
    def model(self) -> Path:
        """Checkpoint of the world model and its readouts."""
        return self.path / "model.safetensors"

    @property
    def snapshot(self) -> Path:
        """What an interrupted training goes on from."""
        return self.path / "snapshot.safetensors"

    @property
    def metrics(self) -> Path:
        """What was logged, as JSON lines; see `read_metrics`."""
        return self.path / "metrics.jsonl"

    @property
    def task(self) -> Path:
        """What the agent minimises."""
        return self.path / "task.yaml"

    @property
    def policy(self) -> Path:
        """Checkpoint of the policy."""
        return self.path / "policy.safetensors"

    def write_text(self, path: Path, content: str) -> None:
        """Write a text file whole."""
        replace_file(path, content.encode())

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file whole."""
        replace_file(self.path / name, (json.dumps(content, indent=2) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """Read a JSON file; None if there is none."""
        path = self.path / name
        if not path.is_file():
            return None
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is damaged: remove it and run the verb again") from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Logged lines; those that a kill, a power cut or a full disk has damaged are left out."""
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            lines.append({**record, "stage": record["stage"], "step": record["step"]})
        except (ValueError, KeyError, TypeError):
            continue
    return lines


class Metrics:
    """Writes named numbers to TensorBoard and to JSON lines; a context manager.

    With them go the wall-clock `seconds` of the work so far. Those of a training that is resumed
    count on from the last line before: what a kill lost since that line is not counted.

    Args:
        folder: the run.
        writes: whether this process writes; of several that train together, one does.

    Attributes:
        before: seconds of the training's earlier legs, 0 where it was not interrupted.
    """

    def __init__(self, folder: RunFolder, *, writes: bool = True) -> None:
        self._board: SummaryWriter | None = None
        self._lines: TextIO | None = None
        legs = [
            line
            for line in read_metrics(folder.metrics)
            if line["stage"] != "distill" and not line["stage"].startswith("mind/")
        ]
        self.before = float(legs[-1].get("seconds", 0)) if legs else 0.0
        self._began = time.perf_counter()
        if writes:
            from torch.utils.tensorboard import SummaryWriter  # seconds, for PyTorch

            self._board = SummaryWriter(str(folder.path / "tensorboard"))
            cut = folder.metrics.is_file() and folder.metrics.read_bytes()[-1:] not in (b"", b"\n")
            self._lines = folder.metrics.open("a", encoding="utf-8")
            if cut:
                self._lines.write("\n")

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Log the values of one step under `stage/NAME`."""
        if self._board is None or self._lines is None:
            return
        values = {**values, "seconds": self.before + time.perf_counter() - self._began}
        for name, value in values.items():
            self._board.add_scalar(f"{stage}/{name}", value, step)
        self._lines.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
        self._lines.flush()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._board is not None and self._lines is not None:
            self._lines.close()
            self._board.close()
