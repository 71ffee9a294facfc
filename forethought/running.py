"""The verbs on a trained run: `evaluate`, `distill`, `act`, `show`.

Their defaults of `planner` and `cost` are those of the run folder when they are called through the
command line or `forethought.call`, which fills them in.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from rich.console import Console
from rich.table import Table

from forethought import envs, pictures
from forethought.agent import (
    Agent,
    AgentController,
    AgentState,
    Controller,
    Cost,
    Distillation,
    IntrinsicCost,
    Mode,
    Outcome,
    PolicyController,
    held_out_seeds,
    run_episodes,
    summarise,
    time_decisions,
)
from forethought.agent import distill as distill_policy
from forethought.build import build_agent, build_model, build_policy, build_readouts, device_of
from forethought.envs import Dataset, EnvSpec
from forethought.envs.shard import replace_file
from forethought.parser import parse, parser_of, read_yaml, refuse_strangers
from forethought.planners import Gradient, Planner
from forethought.run_folder import Metrics, RunFolder, commit
from forethought.training import progress_bar, set_threads, train
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

    def in_mode(self, mode: Mode) -> Agent:
        """The agent in another mode."""
        return replace(self.agent, configurator=replace(self.agent.configurator, mode=mode))


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
        run: the folder.
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
        _refuse_strangers_in(folder, config)
        refuse_strangers(meta["env"], folder.model)
    arguments, _ = parse(parser_of(train, "train"), ["--config", yaml.safe_dump(config) + "\n"])
    if meta.get("intrinsic_cost") != IntrinsicCost().fingerprint():
        raise ValueError(
            f"{folder.model} was trained with another intrinsic cost: use the version of "
            "forethought that trained it"
        )
    spec, where = EnvSpec.from_json(meta["env"]), device_of(device)
    if arguments["env"].endswith(f":{spec.id}"):  # the module that registers it goes with the id
        spec = replace(spec, id=arguments["env"])
    jepa = build_model(arguments["model"], spec, where, arguments["seed"])
    readouts = build_readouts(jepa, meta["readouts"], arguments["seed"])
    load_checkpoint(folder.model, {"model": jepa, "readouts": readouts})
    policy = None
    if folder.policy.exists():
        policy = build_policy(jepa, arguments["seed"]).eval().requires_grad_(False)
        load_checkpoint(folder.policy, {"policy": policy})
    agent = build_agent(
        jepa, cost or arguments["cost"], planner or arguments["planner"], policy=policy
    )
    return Trained(folder, arguments, spec, readouts.eval().requires_grad_(False), agent)


def _refuse_strangers_in(folder: RunFolder, config: dict[str, Any]) -> None:
    """Refuse a run's configuration that names code of strangers; its paths are no code."""
    named = {key: value for key, value in config.items() if key not in {"run", "data"}}
    refuse_strangers(named, folder.config)


def defaults_from_run(run: Path, *, trust: bool = False) -> list[str]:
    """Command-line words that make the run's planner and cost the defaults of a verb."""
    folder = RunFolder.open(run)
    config = read_yaml(folder.config)
    if not trust:  # parsing them would import them
        _refuse_strangers_in(folder, config)
    kept = {name: config[name] for name in ("planner", "cost") if name in config}
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
            contenders[baseline] = PolicyController(policy, trained.spec.action_dim, rng)
    for mode in chosen:
        generator = torch.Generator().manual_seed(seed)
        contenders[mode] = AgentController(trained.in_mode(mode), generator)
    seeds = held_out_seeds(episodes, seed)
    batch = envs.make(trained.spec.id, min(num_envs, episodes), **options)
    single = envs.make(trained.spec.id, 1, **options)
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
    setting = trained.agent.configurator.cost
    words = ", ".join(f"{key}={value}" for key, value in sorted(options.items()))
    return {
        "environment_steps": training.get("environment_steps"),
        "train_seconds": training.get("train_seconds"),
        "seed": trained.arguments["seed"],
        "commit": commit(),
        "device": str(trained.agent.model.device),
        "protocol": f"held-out seeds from {held_out_seeds(1, seed)[0]}; {words or 'defaults'}; "
        f"goal distance {setting.reduction}, horizon {setting.horizon}; {trained.agent.planner}",
    }


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write result rows as a JSON list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps(rows, indent=2) + "\n").encode())


def table_of(rows: list[Row], title: str) -> Table:
    """The rows as a table for the terminal."""
    table = Table(title=title)
    for column in ("mode", "where", "planner"):
        table.add_column(column)
    for column in ("episodes", "result", "95 %", "ms", "95th ms"):
        table.add_column(column, justify="right")
    for row in rows:
        succeeds = "success_rate" in row
        scale = 100 if succeeds else 1
        value = row["success_rate"] if succeeds else row["return_mean"]
        name = f"Mode-{row['mode']}" if isinstance(row["mode"], int) else row["mode"]
        notable = {"contact=stop": "contact stop", "only where greedy fails": "greedy fails"}
        where = ", ".join(words for key, words in notable.items() if key in row["protocol"])
        table.add_row(
            name,
            where,
            row["planner"] or "",
            str(row["episodes"]),
            f"{scale * value:.0f}" + (" %" if succeeds else ""),
            f"{scale * row['ci95_low']:.0f} to {scale * row['ci95_high']:.0f}",
            f"{row['ms_per_decision']:.2f}",
            f"{row['p95_ms']:.2f}",
        )
    return table


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
    source = data or trained.arguments["data"] or trained.folder.data
    states = encode_dataset(trained.agent.model, Dataset.open(source)).states
    policy = build_policy(trained.agent.model, seed)
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
    trained = load(run, planner=planner, cost=cost, device=device, trust=trust)
    env = envs.make(trained.spec.id, 1, **{**trained.spec.options, **(env_options or {})})
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
            "episode %d: %s after %d steps, return %.2f, %.1f ms per decision",
            outcome.seed,
            {True: "success", False: "no success", None: "done"}[outcome.success],
            outcome.steps,
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


def show(run: Path) -> None:
    """Show what is in a run folder: training, diagnostics, results.

    Args:
        run: run folder.
    """
    folder = RunFolder.open(run)
    console = Console()
    about = folder.read_json("environment.json") or {}
    training = folder.read_json("training.json")
    console.print(f"[bold]{run}[/bold]  commit {about.get('commit')}  {about.get('time')}")
    if training is None:
        console.print("training has not come to its end")
    else:
        console.print(
            f"{training['environment_steps']} environment steps, "
            f"{training['train_seconds']:.0f} s of training"
        )
    report = folder.read_json("diagnostics.json")
    if report:
        table = Table(title="diagnostics")
        table.add_column("name")
        table.add_column("value", justify="right")
        for name, value in report.items():
            table.add_row(name, f"{value:.4g}")
        console.print(table)
    rows = folder.read_json("results.json")
    if rows:
        console.print(table_of(rows, rows[0]["task"]))
    console.print(f"curves: tensorboard --logdir {folder.path / 'tensorboard'}")
