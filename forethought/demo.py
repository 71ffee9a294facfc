"""The verb `demo`: the whole path on Two-Rooms, from random roll-outs to two acting modes."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from forethought import envs, pictures
from forethought.agent import AgentController, AgentState, held_out_seeds, run_episodes
from forethought.cli import call
from forethought.running import Row, load, write_rows
from forethought.scenes import frame_of
from forethought.showing import table_of

logger = logging.getLogger(__name__)


def demo(
    *,
    run: Path = Path("runs/demo"),
    short: bool = False,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
) -> list[Row]:
    """Learn Two-Rooms from pixels and cartpole from vectors: train, plan, distill, evaluate, show.

    Args:
        run: folder of the demonstration; an earlier one there is replaced.
        short: a few seconds of everything, to see that it runs; the numbers mean nothing.
        seed: seed of everything.
        device: `auto`, `cpu`, `cuda` or `mps`.
        threads: CPU threads of PyTorch; by default its own choice.

    Returns:
        The rows of `results.json`.
    """
    options = [f"--seed={seed}", f"--device={device}"]
    options += [] if threads is None else [f"--threads={threads}"]
    brief_train = [
        "--collection.episodes=64",
        "--stages.joint.steps=60",
        "--stages.predictor.steps=60",
    ]
    brief_distill = ["--distillation.problems=64", "--distillation.steps=60"]
    brief_evaluate = ["--episodes=4", "--timed-decisions=5"]
    rows: list[Row] = []
    for contact in ("slide", "stop"):
        folder = run / contact
        if (folder / "config.yaml").is_file():
            shutil.rmtree(folder)
        train = ["--config=two-rooms", f"--run={folder}", f"--env-options.contact={contact}"]
        call("train", [*train, *options, *(brief_train if short else [])])
        if contact == "slide":
            call("distill", [str(folder), *options, *(brief_distill if short else [])])
        rows += call("evaluate", [str(folder), *options, *(brief_evaluate if short else [])])
    rows += _control(run / "cartpole", options, short=short)
    write_rows(run / "results.json", rows)
    picture_of(run / "slide", run, device=device, episodes=2 if short else 8, seed=seed)
    console = Console()
    console.print(table_of(rows, "Two-Rooms from pixels and cartpole, held-out episodes"))
    console.print(f"rows: {run / 'results.json'}   picture: {run / 'trajectories.png'}")
    console.print(f"watch it plan: {run / 'plan.gif'}   details: forethought show {run / 'slide'}")
    return rows


def _control(folder: Path, options: list[str], *, short: bool) -> list[Row]:
    """Cartpole-swingup from vectors: a hard-wired cost, a critic, rounds with the planner."""
    if (folder / "config.yaml").is_file():
        shutil.rmtree(folder)
    brief_train = [
        "--collection.episodes=8",
        "--rounds=1",
        "--round.episodes=1",
        "--stages.joint.steps=20",
        "--stages.predictor.steps=20",
        "--stages.readouts.steps=20",
        "--stages.critic.steps=20",
        "--planner.starts=2",
        "--planner.iterations=1",
    ]
    # One round and half of the labels less than the experiment, which takes two minutes longer.
    train = ["--config=cartpole-swingup", f"--run={folder}"]
    call("train", [*train, *options, *(brief_train if short else ["--rounds=4"])])
    labels = ["--distillation.problems=512", "--distillation.steps=2000"]
    brief_distill = ["--distillation.problems=64", "--distillation.steps=60"]
    call("distill", [str(folder), *options, *(brief_distill if short else labels)])
    episodes = ["--episodes=2", "--timed-decisions=5"] if short else ["--episodes=20"]
    rows: list[Row] = call("evaluate", [str(folder), *options, *episodes])
    return rows


def picture_of(trained_run: Path, target: Path, *, device: str, episodes: int, seed: int) -> None:
    """Draw held-out episodes of Mode-2: a sheet of first plans and whole paths, and a video."""
    trained = load(trained_run, device=device)
    env = envs.make(trained.spec.id, 1, **trained.spec.options)
    controller = AgentController(trained.agent, torch.Generator().manual_seed(seed))
    sheets: list[np.ndarray] = []
    frames: list[np.ndarray] = []
    for episode_seed in held_out_seeds(episodes, seed):
        path: list[np.ndarray] = []
        begun: list[tuple[Any, AgentState]] = []

        def watch(
            running: np.ndarray,
            observation: np.ndarray,
            info: Any,
            carried: AgentState,
            path: list[np.ndarray] = path,
            begun: list[tuple[Any, AgentState]] = begun,
        ) -> None:
            begun.append((info, carried))
            frames.append(frame_of(trained, env, info, carried, path))

        (outcome,) = run_episodes(env, controller, [episode_seed], on_step=watch)
        # The first decision's plan over the whole real path, drawn back from its end.
        info, carried = begun[0]
        whole = [*path[1:], np.asarray(outcome.quantities["position"], float)]
        sheets.append(frame_of(trained, env, info, carried, whole[::-1]))
    pictures.write_picture(target / "trajectories.png", pictures.montage(sheets, columns=4))
    pictures.write_video(target / "plan.gif", frames)
