"""A trained run, loaded, and the verbs `evaluate` and `distill`; `act` is in `acting`.

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

from forethought import envs
from forethought.agent import (
    Adjustment,
    Agent,
    AgentController,
    Controller,
    Cost,
    Distillation,
    Mode,
    Outcome,
    PolicyController,
    Recall,
    Task,
    Thinking,
    TopDown,
    Watch,
    held_out_seeds,
    price_for,
    run_episodes,
    summarise,
    time_decisions,
)
from forethought.agent import distill as distill_policy
from forethought.agent.alarm import Gap, Gaps
from forethought.build import (
    build_agent,
    build_critic,
    build_levels,
    build_model,
    build_policy,
    build_probes,
    build_readouts,
    build_temporal,
    device_of,
    goal_term_of,
    hierarchy_of,
    top_of,
)
from forethought.course import progress_bar
from forethought.envs import HELD_OUT_SEED, Dataset, EnvSpec
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
from forethought.threads import set_threads
from forethought.training import train
from forethought.worldmodel import (
    JEPA,
    Readouts,
    encode_dataset,
    load_checkpoint,
    read_meta,
    save_checkpoint,
)

logger = logging.getLogger(__name__)

_ORACLES = (
    "forethought/TwoRooms",
    "forethought/Maze",
    "forethought/PointMaze",
    "forethought/Arm",
)
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
        probes: for each level above the world model, heads that read named quantities from its
            states.
    """

    folder: RunFolder
    arguments: dict[str, Any]
    spec: EnvSpec
    readouts: Readouts
    agent: Agent
    probes: tuple[Readouts, ...] = ()

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
    recall: Recall | None = None,
    top_down: TopDown | None = None,
    adjust: Adjustment = Adjustment(),  # noqa: B008 - frozen
    thinking: Thinking = Thinking(),  # noqa: B008 - frozen
    device: str = "auto",
    trust: bool = False,
) -> Trained:
    """Load a run folder.

    Args:
        run: the folder, or the name of a run that ships with the package.
        planner: plan with this instead of with the run's own planner.
        cost: minimise this instead of the run's own cost.
        recall: remember this way instead of the run's own.
        top_down: plan on the levels above in this way instead of the run's own.
        adjust: weights, aims and modulation other than the task's.
        thinking: when mode `auto` plans.
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
        members = arguments["stages"].critic_members
        critic = build_critic(jepa, task, meta["discount"], seed, members)
        modules["critic"] = critic
    levels = build_levels(jepa, arguments["model"].levels, seed)
    probes = build_probes(levels, meta["readouts"], seed)
    if len(levels):
        modules |= {"levels": levels, "probes": probes}
    temporal = None
    if task.goal and arguments["stages"].temporal.steps:
        stage = arguments["stages"].temporal
        top = top_of(jepa, levels, arguments["cost"], arguments["top_down"], stage)
        temporal = build_temporal(*top, seed)
        modules["temporal"] = temporal
    load_checkpoint(folder.model, modules)
    _check_cost(meta, task, readouts, jepa, folder)
    policy = None
    if folder.policy.exists():
        settings = bool(read_meta(folder.policy).get("reads_settings"))
        policy = build_policy(jepa, task, seed, settings=settings).eval().requires_grad_(False)
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
        recall=recall or arguments["recall"],
        goal_term=None if len(levels) else goal_term_of(cost or arguments["cost"], temporal),
        hierarchy=hierarchy_of(
            levels,
            planner or arguments["planner"],
            top_down or arguments["top_down"],
            cost or arguments["cost"],
            temporal,
        ),
        adjust=adjust,
        thinking=thinking,
    )
    probes.eval().requires_grad_(False)
    told = tuple(probe for probe in probes if isinstance(probe, Readouts))
    return Trained(folder, arguments, spec, readouts, agent, told)


def _check_cost(
    meta: dict[str, Any], task: Task, readouts: Readouts, jepa: JEPA, folder: RunFolder
) -> None:
    """Refuse readouts or an encoder other than those that the intrinsic cost was stored with.

    Raises:
        ValueError: they differ.
    """
    stored = meta.get("intrinsic_cost_reads")
    now = task.bank.fingerprint(readouts=readouts, perception=jepa.perception)
    if stored not in (None, now):
        raise ValueError(
            f"{folder.model} holds other readouts or another encoder than its intrinsic cost was "
            f"stored with (fingerprint {stored[:12]}, found {now[:12]}): restore the file from a "
            "copy, or train again"
        )


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
    own = ("distillation",) if verb == "distill" else ("recall", "top_down")
    choices = ("planner", "cost", *own)
    kept = {name: config[name] for name in choices if name in config}
    return ["--config", yaml.safe_dump(kept) + "\n"]


def evaluate(
    run: Path,
    *,
    modes: Sequence[Literal[1, 2, "auto"]] | None = None,
    baselines: bool = True,
    planner: Planner = Gradient(),  # noqa: B008 - frozen
    cost: Cost = Cost(),  # noqa: B008 - frozen
    recall: Recall = Recall(),  # noqa: B008 - frozen
    top_down: TopDown = TopDown(),  # noqa: B008 - frozen
    adjust: Adjustment = Adjustment(),  # noqa: B008 - frozen
    thinking: Thinking = Thinking(),  # noqa: B008 - frozen
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
        baselines: run the random policy too, and those that know the true state where there are.
        planner: Mode-2's planner; by default the run's.
        cost: what is minimised; by default the run's.
        recall: what is remembered, and what for; by default the run's.
        top_down: how levels above the world model plan; by default the run's.
        adjust: weights, aims and modulation other than the task's.
        thinking: when mode `auto` plans.
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
    trained = load(
        run,
        planner=planner,
        cost=cost,
        recall=recall,
        top_down=top_down,
        adjust=adjust,
        thinking=thinking,
        device=device,
        trust=trust,
    )
    options = {**trained.spec.options, **(env_options or {})}
    chosen: Sequence[Mode] = modes or ((1, 2) if trained.agent.policy is not None else (2,))
    seeds = held_out_seeds(episodes, seed)
    batch = trained.make_env(min(num_envs, episodes), **options)
    single = trained.make_env(1, **options)
    if "auto" in chosen:
        trained = priced(trained, batch, seed)
    contenders: dict[str | Mode, Controller] = {}
    if baselines:
        block = int(options.get("block", 1))
        for baseline, policy in baselines_of(trained.spec.id, block).items():
            rng = np.random.default_rng(seed)
            contenders[baseline] = PolicyController(policy, trained.spec.action_space, rng)
    for mode in chosen:
        generator = torch.Generator().manual_seed(seed)
        contenders[mode] = AgentController(trained.in_mode(mode), generator)
    outcomes: dict[str | Mode, list[Outcome]] = {}
    rows: list[Row] = []
    for name, controller in contenders.items():
        watch = None
        if isinstance(controller, AgentController):
            watch = Watch(controller.agent, _recorded_gaps(trained))
        with progress_bar(f"evaluate: {name}", episodes) as bar:
            outcomes[name] = run_episodes(
                batch, controller, seeds, on_step=watch, on_progress=bar.by
            )
        timing = time_decisions(single, controller, held_out_seeds(50, 999), timed_decisions)
        planned = type(trained.agent.planner).__name__ if name == 2 else None
        common = _common_keys(trained, seed, options)
        rows.append(
            {"task": trained.spec.id, "mode": name, "planner": planned}
            | summarise(outcomes[name])
            | {"ms_per_decision": timing.ms_per_decision, "p95_ms": timing.p95_ms}
            | {"mind": {} if watch is None else watch.summary()}
            | common
        )
        if watch is not None:
            _tell(trained, name, watch)
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


def priced(trained: Trained, env: VectorEnv[Any, Any, Any], seed: int) -> Trained:
    """The run with a price of thinking, found on episodes that are not held out."""
    configurator = trained.agent.configurator
    if configurator.thinking.price is not None:
        return trained
    first = HELD_OUT_SEED - 200_000 + 100 * (seed % 1000)
    generator = torch.Generator().manual_seed(seed)
    seeds = list(range(first, first + env.num_envs))
    price = price_for(trained.in_mode("auto"), env, seeds, generator)
    logger.info("price of thinking: %.4g, for a share of %g", price, configurator.thinking.share)
    thinking = replace(configurator.thinking, price=price, share=1.0)
    configurator = replace(configurator, thinking=thinking)
    return replace(trained, agent=replace(trained.agent, configurator=configurator))


def _recorded_gaps(trained: Trained) -> Gaps | None:
    """The gaps of cost along recorded actions, as the training's diagnostics have them."""
    report = trained.folder.read_json("diagnostics.json") or {}
    names = trained.agent.bank.names
    if not all(f"recorded_gap_{name}_ahead" in report for name in names):
        return None

    def gap(end: str) -> Gap:
        means = torch.tensor([report[f"recorded_gap_{name}{end}"] for name in names]).double()
        return Gap(torch.zeros_like(means), means, torch.ones_like(means))

    return Gaps(gap(""), gap("_ahead"))


def _tell(trained: Trained, mode: str | Mode, watch: Watch) -> None:
    """Log what went on in the mind, and raise the alarm where there is one."""
    if not trained.folder.packaged:
        with Metrics(trained.folder) as metrics:
            for decision, values in watch.curves():
                metrics.log(f"mind/mode_{mode}", decision, values)
    if (alarm := watch.sentence()) is not None:
        logger.warning("%s", alarm)


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


def baselines_of(env_id: str, block: int = 1) -> dict[str, envs.Policy]:
    """Policies to be shown beside an agent, those that know the true state where there are.

    In blocks of actions those are left out: they look at the state before every action.
    """
    if block > 1:
        return {"random": envs.Random()}
    known = {"greedy": envs.Greedy(), "scripted": envs.Scripted()}
    return {"random": envs.Random()} | (known if env_id.startswith(_ORACLES) else {})


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
    model, bank = trained.agent.model, trained.agent.bank
    latents = encode_dataset(model, Dataset.open(source))
    settings = distillation.settings > 0
    policy = build_policy(model, trained.agent.configurator.task, seed, settings=settings)
    generator = torch.Generator().manual_seed(seed)
    total = distillation.rounds * distillation.problems
    with (
        Metrics(trained.folder) as metrics,
        progress_bar("distill: plans", total) as bar,
        bank.unchanged("distill", readouts=trained.readouts, perception=model.perception),
    ):
        distill_policy(
            trained.agent,
            policy,
            latents.states,
            distillation,
            generator,
            on_step=lambda step, values: metrics.log("distill", step, values),
            on_progress=bar.by,
            codes=latents.codes,
        )
    meta = {"seed": seed, "reads_settings": settings}
    save_checkpoint(trained.folder.policy, {"policy": policy}, meta)
    return trained.folder
