"""The verb `act`: a trained agent in its environment, with a video of what it had in mind."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from forethought import envs, pictures
from forethought.agent import (
    Adjustment,
    AgentController,
    AgentState,
    Cost,
    Outcome,
    Recall,
    Thinking,
    held_out_seeds,
    run_episodes,
)
from forethought.planners import Gradient, Planner
from forethought.run_folder import check_place
from forethought.running import Trained, load, priced
from forethought.threads import set_threads

logger = logging.getLogger(__name__)


def act(
    run: Path,
    *,
    mode: Literal[1, 2, "auto"] = 2,
    video: Path | None = None,
    episodes: int = 1,
    planner: Planner = Gradient(),  # noqa: B008 - frozen
    cost: Cost = Cost(),  # noqa: B008 - frozen
    recall: Recall = Recall(),  # noqa: B008 - frozen
    adjust: Adjustment = Adjustment(),  # noqa: B008 - frozen
    thinking: Thinking = Thinking(),  # noqa: B008 - frozen
    env_options: dict[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    trust: bool = False,
) -> list[Outcome]:
    """Let a trained agent act in its environment.

    Args:
        run: run folder.
        mode: 1 acts by the policy, 2 plans, `auto` plans where it is worth it.
        video: write a `.gif` or `.mp4` of what happened and what was imagined.
        episodes: number of held-out episodes.
        planner: Mode-2's planner; by default the run's.
        cost: what is minimised; by default the run's.
        recall: what is remembered, and what for; by default the run's.
        adjust: weights, aims and modulation other than the task's.
        thinking: when mode `auto` plans.
        env_options: options of the environment that replace the run's.
        seed: which block of held-out seeds, and the planner's randomness.
        device: `auto`, `cpu`, `cuda` or `mps`.
        threads: CPU threads of PyTorch; by default its own choice.
        trust: allow the run to import classes from outside of `forethought`.

    Returns:
        Outcomes of the episodes.
    """
    set_threads(threads)
    if video is not None and video.suffix not in {".gif", ".mp4"}:
        raise ValueError(f"video file {video} must end in .gif or .mp4")
    if video is not None:
        check_place(video)
    trained = load(
        run,
        planner=planner,
        cost=cost,
        recall=recall,
        adjust=adjust,
        thinking=thinking,
        device=device,
        trust=trust,
    )
    env = trained.make_env(1, **(env_options or {}))
    if mode == "auto":
        trained = priced(trained, env, seed)
    drawn_here = trained.spec.id in envs.GEOMETRIES
    if video is not None and not drawn_here and env.render_mode != "rgb_array":
        raise ValueError(
            f"{trained.spec.id} draws no pictures: leave --video out, or add "
            "--env-options.render_mode=rgb_array where the environment knows it"
        )
    controller = AgentController(trained.in_mode(mode), torch.Generator().manual_seed(seed))
    seeds, frames = held_out_seeds(episodes, seed), list[np.ndarray]()
    outcomes: list[Outcome] = []
    for episode_seed in seeds:
        path: list[np.ndarray] = []

        def draw(
            running: np.ndarray,
            observation: np.ndarray,
            info: Any,
            carried: AgentState,
            path: list[np.ndarray] = path,
        ) -> None:
            frames.append(frame_of(trained, env, info, carried, path))

        outcomes += run_episodes(
            env, controller, [episode_seed], on_step=draw if video is not None else None
        )
    if video is not None:
        pictures.write_video(video, frames)
    for outcome in outcomes:
        logger.info(
            "episode %d: %s after %d environment steps, return %.2f, %.1f ms per decision",
            outcome.seed,
            {True: "success", False: "no success", None: "done"}[outcome.success],
            outcome.decisions * trained.spec.action_repeat,
            outcome.return_,
            1000 * float(np.mean(outcome.decision_seconds)),
        )
    return outcomes


@torch.no_grad()
def frame_of(
    trained: Trained, env: Any, info: Any, carried: AgentState, path: list[np.ndarray]
) -> np.ndarray:
    """One video frame; Two-Rooms is drawn with the real and the imagined trajectory.

    Args:
        trained: the run.
        env: the vector environment, for its own rendering elsewhere.
        info: what the environment said before the decision.
        carried: what the agent carries after it.
        path: positions so far; this one is appended.
    """
    geometry = envs.GEOMETRIES.get(trained.spec.id)
    if geometry is None:
        return np.asarray(env.render()[0])
    quantities = {name: np.asarray(value[0], float) for name, value in info["quantities"].items()}
    path.append(quantities["position"])
    lines: list[tuple[Any, tuple[int, int, int]]] = [(np.stack(path), pictures.REAL)]
    if carried.imagined is not None:
        imagined = trained.readouts(carried.imagined[0])["position"].cpu().numpy()
        lines.append((np.vstack((quantities["position"], imagined)), pictures.IMAGINED))
    return np.asarray(
        envs.draw_scene(
            geometry,
            quantities["wall"].item(),
            quantities["door"].item(),
            quantities["position"],
            quantities["goal_position"],
            paths=lines,
        )
    )
