"""The verbs on a trained run: `evaluate`, `distill`, `act`.

Their defaults of `planner` and `cost` are those of the run folder when they are called through the
command line or `forethought.call`, which fills them in.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from gymnasium.vector import VectorEnv
from torch import nn

from forethought import envs, pictures
from forethought.agent import (
    Agent,
    AgentController,
    AgentState,
    Controller,
    Cost,
    Distillation,
    Mode,
    Outcome,
    PolicyController,
    held_out_seeds,
    run_episodes,
    summarise,
    time_decisions,
)
from forethought.agent import distill as distill_policy
from forethought.build import (
    build_agent,
    build_critic,
    build_model,
    build_policy,
    build_readouts,
    device_of,
)
from forethought.course import progress_bar
from forethought.envs import Dataset, EnvSpec
from forethought.envs.shard import replace_file
from forethought.parser import (
    parse,
    parser_of,
    read_yaml,
    refuse_strangers,
    refuse_strangers_in_run,
)
from forethought.planners import Gradient, Planner
from forethought.run_folder import Metrics, RunFolder, check_place, commit
from forethought.tasks import read_task
from forethought.training import set_threads, train
from forethought.worldmodel import (
    Readouts,
    encode_dataset,
    load_checkpoint,
    read_meta,
    save_checkpoint,
)

logger = logging.getLogger(__name__)

BASELINES = {"random": envs.Random(), "greedy": envs.Greedy(), "scripted": envs.Scripted()}
Row = dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """A trained run, loaded.

    Args:
        folder: the run folder.
        arguments: arguments of the `train` call that made it.
        spec: the environment's description.
        readouts: heads that read named quantities from states.
        agent: the agent in Mode-2, with its policy where there is one.
    """

    folder: RunFolder
    arguments: dict[str, Any]
    spec: EnvSpec
    readouts: Readouts
    agent: Agent

    @staticmethod
    def load(run: str | Path, **options: Any) -> Trained:
        """Load a run folder, or a run that ships with the package; see `forethought.load`."""
        return load(run, **options)

    def in_mode(self, mode: Mode) -> Agent:
        """The agent in another mode."""
        return replace(self.agent, configurator=replace(self.agent.configurator, mode=mode))

    def make_env(self, num_envs: int = 1, **options: Any) -> VectorEnv[Any, Any, Any]:
        """The environment the run was trained in, with options that replace the run's."""
        return envs.make(self.spec.id, num_envs, **{**self.spec.options, **options})

    def controller(self, mode: Mode = 2, seed: int = 0) -> AgentController:
        """What acts in such environments."""
        return AgentController(self.in_mode(mode), torch.Generator().manual_seed(seed))

    def play(self, episodes: int = 1, *, mode: Mode = 2, seed: int = 0) -> list[Outcome]:
        """Act in held-out episodes."""
        env = self.make_env(min(episodes, 50))
        return run_episodes(env, self.controller(mode, seed), held_out_seeds(episodes, seed))


def load(
    run: str | Path,
    *,
    planner: Planner | None = None,
    cost: Cost | None = None,
    device: str = "auto",
    trust: bool = False,
) -> Trained:
    """Load a run folder.

    Args:
        run: the folder, or the name of a run that ships with the package.
        planner: plan with this instead of with the run's own planner.
        cost: minimise this instead of the run's own cost.
        device: `auto`, `cpu`, `cuda` or `mps`.
        trust: allow the run to import classes from outside of `forethought`.

    Raises:
        FileNotFoundError: there is no run, or it was not trained to its end.
        ValueError: a file is damaged or does not fit, or a class comes from elsewhere.
    """
    folder = RunFolder.open(Path(run))
    config = read_yaml(folder.config)
    meta = read_meta(folder.model)
    if not trust:
        refuse_strangers_in_run(config, folder.config)
        refuse_strangers(meta["env"], folder.model)
    task = read_task(str(folder.task), trust=trust)
    arguments, _ = parse(parser_of(train, "train"), ["--config", yaml.safe_dump(config) + "\n"])
    if meta.get("intrinsic_cost") != task.bank.fingerprint():
        raise ValueError(
            f"{folder.model} was trained with another intrinsic cost than {folder.task} holds: put "
            "the run's own task.yaml back, or use the version of forethought that trained it"
        )
    spec, where = EnvSpec.from_json(meta["env"]), device_of(device)
    if (arguments["env"] or "").endswith(
        f":{spec.id}"
    ):  # the module that registers it goes with the id
        spec = replace(spec, id=arguments["env"])
    seed = arguments["seed"]
    jepa = build_model(arguments["model"], spec, where, seed)
    readouts = build_readouts(jepa, meta["readouts"], seed)
    modules: dict[str, nn.Module] = {"model": jepa, "readouts": readouts}
    critic = None
    if meta["discount"] is not None:
        seconds = spec.control_step_seconds
        _check_discount(cost or arguments["cost"], meta["discount"], seconds, folder)
        critic = build_critic(jepa, task, meta["discount"], seed)
        modules["critic"] = critic
    load_checkpoint(folder.model, modules)
    policy = None
    if folder.policy.exists():
        policy = build_policy(jepa, task, seed).eval().requires_grad_(False)
        load_checkpoint(folder.policy, {"policy": policy})
    agent = build_agent(
        jepa,
        spec,
        task,
        cost or arguments["cost"],
        planner or arguments["planner"],
        readouts=readouts,
        critic=critic,
        policy=policy,
    )
    return Trained(folder, arguments, spec, readouts, agent)


def _check_discount(cost: Cost, discount: float, seconds: float, folder: RunFolder) -> None:
    """Refuse a cost with another discount than the critic was trained with.

    Args:
        cost: what is to be minimised.
        discount: the critic's, per decision.
        seconds: time between two decisions.
        folder: the run.

    Raises:
        ValueError: they differ, and the critic counts.
    """
    if cost.critic and not math.isclose(cost.per_decision(seconds), discount, rel_tol=1e-6):
        raise ValueError(
            f"cost.discount is {cost.discount}, but the critic of {folder.path} was trained with "
            f"{discount ** (1 / seconds):.6g}: choose that, or --cost.critic 0"
        )


def defaults_from_run(run: Path, verb: str, *, trust: bool = False) -> list[str]:
    """Command-line words that make the run's own choices the defaults of a verb."""
    folder = RunFolder.open(run)
    config = read_yaml(folder.config)
    if not trust:  # parsing them would import them
        refuse_strangers_in_run(config, folder.config)
    choices = ("planner", "cost", *(("distillation",) if verb == "distill" else ()))
    kept = {name: config[name] for name in choices if name in config}
    return ["--config", yaml.safe_dump(kept) + "\n"]


def evaluate(
    run: Path,
    *,
    modes: Sequence[Literal[1, 2]] | None = None,
    baselines: bool = True,
    planner: Planner = Gradient(),  # noqa: B008 - frozen
    cost: Cost = Cost(),  # noqa: B008 - frozen
    episodes: int = 100,
    num_envs: int = 50,
    env_options: dict[str, Any] | None = None,
    timed_decisions: int = 100,
    json: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    trust: bool = False,
) -> list[Row]:
    """Evaluate a run on held-out episodes, with baselines beside it.

    Args:
        run: run folder.
        modes: modes of the agent; by default 2, and 1 where the run has a policy.
        baselines: run the random policy too, and in Two-Rooms greedy and scripted.
        planner: Mode-2's planner; by default the run's.
        cost: what is minimised; by default the run's.
        episodes: number of held-out episodes.
        num_envs: environments side by side.
        env_options: options of the environment that replace the run's.
        timed_decisions: decisions timed one by one, encoder included.
        json: also write the rows to this file.
        seed: which block of held-out seeds, and the planner's randomness.
        device: `auto`, `cpu`, `cuda` or `mps`.
        threads: CPU threads of PyTorch; by default its own choice.
        trust: allow the run to import classes from outside of `forethought`.

    Returns:
        One row per controller, also written to `results.json` in the run folder.
    """
    if json is not None:
        check_place(json)
    set_threads(threads)
    trained = load(run, planner=planner, cost=cost, device=device, trust=trust)
    options = {**trained.spec.options, **(env_options or {})}
    chosen: Sequence[Mode] = modes or ((1, 2) if trained.agent.policy is not None else (2,))
    contenders: dict[str | Mode, Controller] = {}
    if baselines:
        known = trained.spec.id.startswith("forethought/TwoRooms")
        for baseline in BASELINES if known else ("random",):
            rng = np.random.default_rng(seed)
            policy = BASELINES[baseline]
            contenders[baseline] = PolicyController(policy, trained.spec.action_space, rng)
    for mode in chosen:
        generator = torch.Generator().manual_seed(seed)
        contenders[mode] = AgentController(trained.in_mode(mode), generator)
    seeds = held_out_seeds(episodes, seed)
    batch = trained.make_env(min(num_envs, episodes), **options)
    single = trained.make_env(1, **options)
    outcomes: dict[str | Mode, list[Outcome]] = {}
    rows: list[Row] = []
    for name, controller in contenders.items():
        with progress_bar(f"evaluate: {name}", episodes) as bar:
            outcomes[name] = run_episodes(batch, controller, seeds, on_progress=bar.by)
        timing = time_decisions(single, controller, held_out_seeds(50, 999), timed_decisions)
        planned = type(trained.agent.planner).__name__ if name == 2 else None
        common = _common_keys(trained, seed, options)
        rows.append(
            {"task": trained.spec.id, "mode": name, "planner": planned}
            | summarise(outcomes[name])
            | {"ms_per_decision": timing.ms_per_decision, "p95_ms": timing.p95_ms}
            | common
        )
        hard = _where_greedy_fails(outcomes, name)
        if hard:
            subset = rows[-1] | summarise(hard)
            subset["protocol"] = f"{common['protocol']}, only where greedy fails"
            rows.append(subset)
    if not trained.folder.packaged:
        trained.folder.write_json("results.json", rows)
    if json is not None:
        write_rows(json, rows)
    return rows


def _where_greedy_fails(
    outcomes: dict[str | Mode, list[Outcome]], name: str | Mode
) -> list[Outcome]:
    """Outcomes of an agent on the episodes that greedy loses, if greedy ran and lost any."""
    if "greedy" not in outcomes or isinstance(name, str):
        return []
    return [
        outcome
        for outcome, greedy in zip(outcomes[name], outcomes["greedy"], strict=True)
        if not greedy.success
    ]


def _common_keys(trained: Trained, seed: int, options: dict[str, Any]) -> Row:
    """What all rows of one evaluation share."""
    training = trained.folder.read_json("training.json") or {}
    setting, task = trained.agent.configurator.cost, trained.agent.configurator.task
    minimised = (f"goal distance {setting.reduction}, " if task.goal else "") + (
        f"terms {', '.join(task.terms)}, " if task.has_cost else ""
    )
    words = ", ".join(f"{key}={value}" for key, value in sorted(options.items()))
    return {
        "environment_steps": training.get("environment_steps"),
        "train_seconds": training.get("train_seconds"),
        "seed": trained.arguments["seed"],
        "commit": commit(),
        "device": str(trained.agent.model.device),
        "protocol": f"held-out seeds from {held_out_seeds(1, seed)[0]}; {words or 'defaults'}; "
        f"{minimised}horizon {setting.horizon}; {trained.agent.planner}",
    }


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write result rows as a JSON list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(rows, indent=2) + "\n").encode())


def distill(
    run: Path,
    *,
    distillation: Distillation = Distillation(),  # noqa: B008 - frozen
    planner: Planner = Gradient(),  # noqa: B008 - frozen
    cost: Cost = Cost(),  # noqa: B008 - frozen
    data: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    trust: bool = False,
) -> RunFolder:
    """Compile Mode-2's plans into a Mode-1 policy.

    Args:
        run: run folder; the policy is written there.
        distillation: rounds, sizes and rates.
        planner: labels the states; by default the run's.
        cost: what is minimised; by default the run's.
        data: data set that starts and goals are drawn from; by default the one trained on.
        seed: seed of everything.
        device: `auto`, `cpu`, `cuda` or `mps`.
        threads: CPU threads of PyTorch; by default its own choice.
        trust: allow the run to import classes from outside of `forethought`.

    Returns:
        The run folder.
    """
    set_threads(threads)
    trained = load(run, planner=planner, cost=cost, device=device, trust=trust)
    if trained.folder.packaged:
        raise ValueError(f"{run} ships with the package and is not changed: copy its folder first")
    source = data or trained.arguments["data"] or trained.folder.data
    states = encode_dataset(trained.agent.model, Dataset.open(source)).states
    policy = build_policy(trained.agent.model, trained.agent.configurator.task, seed)
    generator = torch.Generator().manual_seed(seed)
    total = distillation.rounds * distillation.problems
    with Metrics(trained.folder) as metrics, progress_bar("distill: plans", total) as bar:
        distill_policy(
            trained.agent,
            policy,
            states,
            distillation,
            generator,
            on_step=lambda step, values: metrics.log("distill", step, values),
            on_progress=bar.by,
        )
    save_checkpoint(trained.folder.policy, {"policy": policy}, {"seed": seed})
    return trained.folder


def act(
    run: Path,
    *,
    mode: Literal[1, 2] = 2,
    video: Path | None = None,
    episodes: int = 1,
    planner: Planner = Gradient(),  # noqa: B008 - frozen
    cost: Cost = Cost(),  # noqa: B008 - frozen
    env_options: dict[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    trust: bool = False,
) -> list[Outcome]:
    """Let a trained agent act in its environment.

    Args:
        run: run folder.
        mode: 1 acts by the policy, 2 plans.
        video: write a `.gif` or `.mp4` of what happened and what was imagined.
        episodes: number of held-out episodes.
        planner: Mode-2's planner; by default the run's.
        cost: what is minimised; by default the run's.
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
    trained = load(run, planner=planner, cost=cost, device=device, trust=trust)
    env = trained.make_env(1, **(env_options or {}))
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
