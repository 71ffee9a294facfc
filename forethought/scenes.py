"""Scenes: Two-Rooms and mazes with what an agent did, imagined and wanted drawn into them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from forethought import envs, pictures
from forethought.agent import AgentState, Mode
from forethought.running import Trained

Lines = list[tuple[Any, tuple[int, int, int]]]
MAZES = ("forethought/Maze-v0", "forethought/PointMaze-v0")  # they tell `info["maze"]`


@torch.no_grad()
def frame_of(
    trained: Trained,
    env: Any,
    info: Any,
    carried: AgentState,
    path: list[np.ndarray],
    age: int = 0,
) -> np.ndarray:
    """The scene of one decision; Two-Rooms and mazes with the real and the imagined trajectory.

    Args:
        trained: the run.
        env: the vector environment, for its own rendering elsewhere.
        info: what the environment said before the decision.
        carried: what the agent carries after it.
        path: positions so far; this one is appended.
        age: decisions since what `carried` imagined was imagined.
    """
    if not _known(trained, info):
        return np.asarray(env.render()[0])
    position = _quantities(info)["position"]
    path.append(position)
    lines: Lines = [(np.stack(path), pictures.REAL)]
    if carried.imagined is not None and "position" in trained.readouts.sizes:
        imagined = trained.readouts(carried.imagined[0, age:])["position"].cpu().numpy()
        lines.append((np.vstack((position, imagined)), pictures.IMAGINED))
    wanted = () if carried.wanted is None else carried.wanted.levels
    for probes, level, colour in zip(trained.probes, wanted, pictures.WANTED, strict=False):
        if "position" in probes.sizes:
            subgoals = probes(level.imagined[0])["position"].cpu().numpy()
            lines.append((np.vstack((position, subgoals)), colour))
    return _drawn(trained, info, lines)


def _known(trained: Trained, info: Any) -> bool:
    """Whether the environment is one that is drawn here: Two-Rooms or a maze."""
    return trained.spec.id in envs.GEOMETRIES or "maze" in info


def _quantities(info: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(value[0], float) for name, value in info["quantities"].items()}


def _drawn(trained: Trained, info: Any, lines: Lines) -> np.ndarray:
    """Two-Rooms or a maze with these lines in it, `(H, W, 3)` uint8."""
    quantities, maze = _quantities(info), info.get("maze")
    ends = quantities["position"], quantities["goal_position"]
    if maze is not None:
        return np.asarray(envs.draw_maze(maze["walls"][0], *ends, paths=lines))
    wall, door = quantities["wall"].item(), quantities["door"].item()
    geometry = envs.GEOMETRIES[trained.spec.id]
    return np.asarray(envs.draw_scene(geometry, wall, door, *ends, paths=lines))


class Subgoals:
    """Where an agent went, and what each of its levels above wanted on the way, in one picture.

    To be called after every decision of one episode, as `run_episodes` does.

    Args:
        trained: a run with levels above.
    """

    def __init__(self, trained: Trained) -> None:
        self.trained = trained
        self._path: list[np.ndarray] = []
        self._wanted: list[dict[int, np.ndarray]] = [{} for _ in trained.probes]
        self._info: Any = None

    @staticmethod
    def of(trained: Trained, mode: Mode) -> Subgoals | None:
        """One for this run; None where no subgoals are made, or no picture can be kept."""
        probes = [probe for probe in trained.probes if "position" in probe.sizes]
        drawn = trained.spec.id in envs.GEOMETRIES or trained.spec.id in MAZES
        if not probes or mode == 1 or not drawn or trained.folder.packaged:
            return None
        return Subgoals(trained)

    @torch.no_grad()
    def __call__(self, running: np.ndarray, observation: Any, info: Any, carried: Any) -> None:
        """One decision; see `run_episodes`."""
        assert isinstance(carried, AgentState)
        self._info = info
        self._path.append(_quantities(info)["position"])
        assert carried.wanted is not None
        levels = carried.wanted.levels
        for probes, level, made in zip(self.trained.probes, levels, self._wanted, strict=True):
            if level.made not in made:
                found = probes(level.imagined[0, :1])["position"]
                made[level.made] = found[0].cpu().numpy()

    def picture(self) -> np.ndarray:
        """The way, and for each level the line through its subgoals, `(H, W, 3)` uint8."""
        lines: Lines = [
            (np.stack([self._path[0], *made.values()]), colour)
            for made, colour in zip(self._wanted, pictures.WANTED, strict=False)
        ]
        return _drawn(self.trained, self._info, [*lines, (np.stack(self._path), pictures.REAL)])
