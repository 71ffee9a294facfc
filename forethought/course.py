"""The course of a training: collect, then stage after stage, round after round; resumable.

    round 0   data are there      -> joint -> predictor -> heads -> checkpoint
    round r   the agent collects  -> joint -> predictor -> heads -> checkpoint

Heads are the belief's correction, readouts, critic, the levels above and TC(s, g), as far as they
are wanted.

Every stage goes on from the weights of the round before. A snapshot is written when a stage begins
and every half minute inside of it; after a kill the same course is walked again, and what was
done is skipped.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from forethought import envs
from forethought.agent import (
    AgentPolicy,
    Cost,
    Critic,
    CriticStage,
    Hierarchy,
    Recall,
    Task,
    TemporalDistance,
    TemporalStage,
    TopDown,
    recollect,
    remember_episodes,
    terminations,
    train_critic,
    train_temporal,
)
from forethought.build import (
    ReadoutStage,
    Round,
    Stages,
    build_agent,
    build_critic,
    build_levels,
    build_probes,
    build_readouts,
    build_temporal,
    goal_term_of,
    hierarchy_of,
    top_of,
)
from forethought.envs import Dataset
from forethought.planners import Planner
from forethought.run_folder import Metrics, RunFolder
from forethought.worldmodel import (
    JEPA,
    JointLevels,
    LatentData,
    Level,
    LevelShape,
    LevelStage,
    Losses,
    Objective,
    OnStep,
    Readouts,
    SlowEncoder,
    Snapshot,
    chains,
    encode_dataset,
    encoded_blank,
    level_data,
    ranks,
    save_checkpoint,
    train_belief,
    train_joint,
    train_level,
    train_predictor,
)
from forethought.worldmodel.latents import CODE, check_codes, code_size

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bar:
    """A progress bar: `to` says how much is done in all, `by` how much more."""

    progress: Progress
    task: TaskID

    def to(self, done: int) -> None:
        """So much is done in all."""
        self.progress.update(self.task, completed=done)

    def by(self, more: int) -> None:
        """So much more is done."""
        self.progress.advance(self.task, more)


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Bar]:
    """A progress bar in the terminal."""
    columns = (TextColumn("{task.description:<26}"), BarColumn(), TextColumn("{task.completed}"))
    with Progress(*columns, TimeElapsedColumn(), disable=ranks.rank() > 0) as progress:
        yield Bar(progress, progress.add_task(title, total=total))


@dataclass(frozen=True)
class Plan:
    """What a course is to do; the arguments of `train` that it needs.

    Args:
        losses: weights of the joint stage's loss terms.
        stages: lengths and rates.
        rounds: rounds of collecting with the planner, after the first training.
        round: how such a round goes.
        cost: how energies are summed up.
        planner: what the agent plans with.
        recall: what the agent remembers, and what for.
        levels: sizes of the levels above the world model.
        top_down: how those plan.
        seed: seed of everything.
        bfloat16: whether the joint stage runs in bfloat16.
        standardise: whether the data set the encoder's standardisation; not where weights of
            others came with theirs.
    """

    losses: Losses
    stages: Stages
    rounds: int
    round: Round
    cost: Cost
    planner: Planner
    recall: Recall
    levels: tuple[LevelShape, ...]
    top_down: TopDown
    seed: int
    bfloat16: bool = False
    standardise: bool = True


@dataclass
class Course:
    """One training in the making.

    Args:
        folder: the run folder.
        data: where the shards lie.
        task: what the agent will minimise.
        plan: what is to be done.
        jepa: the world model.
        held: the data set as it is at the beginning.
    """

    folder: RunFolder
    data: Any
    task: Task
    plan: Plan
    jepa: JEPA
    held: Dataset
    readouts: Readouts = field(init=False)
    critic: Critic | None = field(init=False)
    levels: nn.ModuleList = field(init=False)
    probes: nn.ModuleList = field(init=False)
    temporal: TemporalDistance | None = field(init=False)
    _latents: LatentData | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        seed, rank = self.plan.seed, ranks.rank()
        device = self.jepa.device
        check_codes(self.held, code_size(self.jepa))
        if code_size(self.jepa) and self.plan.stages.critic.source == "memory":
            raise ValueError(
                f"stages.critic.source is 'memory', which keeps no codes, but model.modulation is "
                f"{code_size(self.jepa)}: choose episodes"
            )
        sizes = {name: value.shape[1] for name, value in quantities_of(self.held, device).items()}
        missing = set(self.task.reads) - set(sizes) - {"state"}
        if missing:
            raise ValueError(
                f"the task reads {', '.join(sorted(missing))}, but the data hold "
                f"{', '.join(sizes) or 'no quantities'}: choose another task or other data"
            )
        self.readouts = build_readouts(self.jepa, sizes, seed)
        self.discount = self.plan.cost.per_decision(self.held.spec.control_step_seconds)
        stage = self.plan.stages.critic
        wanted = self.task.has_cost and self.plan.cost.critic and stage.steps
        wanted = wanted and self.plan.stages.critic_from <= self.plan.rounds
        if wanted and self.discount >= 1:
            logger.info("cost.discount is 1: there is no critic")
            wanted = 0
        elif self.task.has_cost and not wanted:
            logger.info("no critic: it would begin in round %d", self.plan.stages.critic_from)
        members = self.plan.stages.critic_members
        self.critic = (
            build_critic(self.jepa, self.task, self.discount, seed, members) if wanted else None
        )
        if self.plan.levels and not self.task.goal:
            raise ValueError(
                "model.levels are given, but the task has no goal: choose no levels, or a task "
                "with a goal"
            )
        above = self.plan.stages.levels
        if self.plan.levels and not above.steps and not above.together:
            raise ValueError(
                "model.levels are given, but stages.levels.steps is 0: choose 1 or more, "
                "stages.levels.together true, or no levels"
            )
        self.levels = build_levels(self.jepa, self.plan.levels, seed)
        self.probes = build_probes(self.levels, sizes, seed)
        self.temporal = None
        if self.task.goal and self.plan.stages.temporal.steps:
            self.temporal = build_temporal(*self._top, seed)
        elif self.plan.cost.goal == "temporal":
            raise ValueError(
                "cost.goal is temporal, but TC(s, g) is not trained: choose stages.temporal.steps "
                "above 0, and a task with a goal"
            )
        self.generator = torch.Generator().manual_seed(seed * 1000 + rank)
        self.rng = np.random.default_rng([seed, 1, rank])
        decay = self.plan.stages.joint.target_decay
        slow = None if decay is None else SlowEncoder(self.jepa.perception)
        # Directions are shared by all ranks, windows are not.
        self.directions = torch.Generator().manual_seed(seed * 1000 + 999)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.objective = Objective(
                self.plan.losses,
                self.jepa.latent_dim,
                self.jepa.actions,
                self.directions,
                self.readouts,
                slow,
            ).to(device)
        modules: dict[str, nn.Module] = {"model": self.jepa, "objective": self.objective}
        if self.objective.readouts is None:  # else they are a part of it
            modules["readouts"] = self.readouts
        if self.critic is not None:
            modules["critic"] = self.critic
        if len(self.levels):
            modules |= {"levels": self.levels, "probes": self.probes}
        if self.temporal is not None:
            modules["temporal"] = self.temporal
        self.snapshot = Snapshot(
            self.folder.snapshot,
            modules,
            {"torch": self.generator, "numpy": self.rng, "directions": self.directions},
            writes=rank == 0,
        )
        if self.snapshot.restore():
            logger.info("resumed from %s", self.folder.snapshot)
            if rank:  # the snapshot holds the generators of rank 0
                self.generator.manual_seed(seed * 1000 + rank)
                self.rng = np.random.default_rng([seed, 2, rank])
        for module in modules.values():
            ranks.share(module)

    def run(self, metrics: Metrics) -> LatentData:
        """Walk the whole course; the cached latents of the last round."""
        for round_ in range(self.plan.rounds + 1):
            if round_:
                self._collect(round_, metrics)
            self._train(round_, metrics)
        return self.latents

    @property
    def latents(self) -> LatentData:
        """Every observation, encoded by the present encoder."""
        if self._latents is None:
            self._latents = encode_dataset(self.jepa, self.held)
        return self._latents

    @property
    def _top(self) -> tuple[JEPA, int]:
        """What TC(s, g) is learned on, and how far that looks ahead."""
        plan = self.plan
        return top_of(self.jepa, self.levels, plan.cost, plan.top_down, plan.stages.temporal)

    def data_of(self, place: int) -> tuple[LatentData, dict[str, Tensor]]:
        """Cached latents of the world model (0) or of a level above, and the quantities there."""
        data, quantities = self.latents, quantities_of(self.held, self.jepa.device)
        for level in list(self.levels)[:place]:
            assert isinstance(level, Level)
            order = chains(data, level.shape.stride)
            quantities = {name: values[order] for name, values in quantities.items()}
            data = level_data(level, data)
        return data, quantities

    def hierarchy(self) -> Hierarchy | None:
        """The levels above as they plan; None without any."""
        plan = self.plan
        return hierarchy_of(self.levels, plan.planner, plan.top_down, plan.cost, self.temporal)

    def _train(self, round_: int, metrics: Metrics) -> None:
        """All stages of one round."""
        stages = self.scaled(round_)
        heads = (self.readouts, self.critic, self.levels, self.probes, self.temporal)
        for module in (self.jepa, *heads):
            if module is not None:
                module.train().requires_grad_(True)
        self.jepa.eval()  # the stages that train it say so; the others only look
        if self.critic is not None:
            self.critic.slow.requires_grad_(False)
        device = self.jepa.device
        quantities = quantities_of(self.held, device)
        if not self.snapshot.replaying:
            self.readouts.standardise_by(quantities, anew=round_ == 0)
        train: dict[str, Callable[[OnStep], None]] = {
            "joint": lambda on_step: self._train_joint(round_, stages, on_step),
            "predictor": lambda on_step: train_predictor(
                self.jepa, self.latents, stages.predictor, self.generator, on_step, self.snapshot
            ),
            "belief": lambda on_step: train_belief(
                self.jepa,
                self.latents,
                encoded_blank(self.jepa, self.held.spec, self.latents.codes),
                stages.belief,
                self.generator,
                on_step,
                self.snapshot,
            ),
            "readouts": lambda on_step: self.readouts.fit(
                self.jepa,
                self.latents,
                quantities,
                self.generator,
                steps=stages.readouts.steps,
                batch=stages.readouts.batch,
                unroll=stages.readouts.unroll,
                on_step=on_step,
                snapshot=self.snapshot,
            ),
            "critic": lambda on_step: self._train_critic(quantities, stages.critic, on_step),
        }
        for place in range(len(self.levels)):
            train[f"levels {place + 2}"] = partial(self._train_level, place, stages.levels)
            train[f"probes {place + 2}"] = partial(self._train_probes, place, stages.readouts)
        train["temporal"] = lambda on_step: self._train_temporal(stages.temporal, on_step)
        there = {
            "belief": self.jepa.correction is not None,
            "readouts": bool(self.readouts.sizes),
            "critic": self.critic is not None,
            "temporal": self.temporal is not None,
        }
        moved = stages.levels.together and stages.joint.steps > 0
        for name, run in train.items():
            steps = _steps(stages, name)
            # A level that the joint stage trained notes what its data are like, by 0 steps too.
            if there.get(name, True) and (steps or (moved and name.startswith("levels"))):
                if name in ("critic", "temporal"):  # the cost that they learn from stays as it is
                    with self.task.bank.unchanged(
                        name, readouts=self.readouts, perception=self.jepa.perception
                    ):
                        self._stage(round_, metrics, name, steps, run)
                else:
                    self._stage(round_, metrics, name, steps, run)
            if name == "joint":
                self._latents = None
        if self.snapshot.enter(f"{round_}/done"):
            self.save(round_)

    def _train_joint(self, round_: int, stages: Stages, on_step: OnStep) -> None:
        above = None
        if stages.levels.together:
            levels = [level for level in self.levels if isinstance(level, Level)]
            above = JointLevels(self.jepa, levels, self.held, stages.levels, self.directions)
        train_joint(
            self.jepa,
            self.objective,
            self.held,
            stages.joint,
            self.rng,
            on_step,
            self.snapshot,
            levels=above,
            standardise=self.plan.standardise and round_ == 0,
            bfloat16=self.plan.bfloat16,
        )

    def _train_critic(
        self, quantities: Mapping[str, Tensor], stage: CriticStage, on_step: OnStep
    ) -> None:
        """From whole episodes, or from what a short-term memory keeps of each."""
        assert self.critic is not None
        data, costs = self.latents, self.costs(quantities)
        if stage.source == "memory":
            discrete = self.jepa.action_dim if self.jepa.actions.discrete else None
            memory = remember_episodes(
                self.plan.recall.memory, data, costs, discrete_actions=discrete
            )
            data, costs = recollect(memory, terminations(data))
        train_critic(
            self.critic,
            self.jepa,
            data,
            costs,
            self.task.lasting.to(self.jepa.device),
            stage,
            self.generator,
            on_step,
            self.snapshot,
        )

    def _train_level(self, place: int, stage: LevelStage, on_step: OnStep) -> None:
        level = self.levels[place]
        assert isinstance(level, Level)
        data, _ = self.data_of(place)
        train_level(
            level,
            data,
            stage,
            self.generator,
            on_step,
            self.snapshot,
            directions=self.directions,
        )

    def _train_probes(self, place: int, stage: ReadoutStage, on_step: OnStep) -> None:
        """What a level above still knows; nothing but the eye of an observer depends on it."""
        level, probes = self.levels[place], self.probes[place]
        assert isinstance(level, Level)
        assert isinstance(probes, Readouts)
        data, quantities = self.data_of(place + 1)
        if not self.snapshot.replaying:
            probes.standardise_by(quantities)
        probes.fit(
            level.model,
            data,
            quantities,
            self.generator,
            steps=stage.steps,
            batch=stage.batch,
            unroll=stage.unroll,
            on_step=on_step,
            snapshot=self.snapshot,
        )

    def _train_temporal(self, stage: TemporalStage, on_step: OnStep) -> None:
        assert self.temporal is not None
        data, _ = self.data_of(len(self.levels))
        train_temporal(
            self.temporal, self._top[0], data, stage, self.generator, on_step, self.snapshot
        )

    def _stage(
        self,
        round_: int,
        metrics: Metrics,
        name: str,
        steps: int,
        train: Callable[[OnStep], None],
    ) -> None:
        """One stage, unless it is done: logged, with a progress bar."""
        if not self.snapshot.enter(f"{round_}/{name}"):
            return
        before = sum(_steps(self.scaled(r), name) for r in range(round_))
        with progress_bar(f"train: {name}" + (f", round {round_}" if round_ else ""), steps) as bar:

            def on_step(step: int, values: dict[str, float]) -> None:
                metrics.log(name, before + step, values)
                bar.to(step)

            train(on_step)

    def scaled(self, round_: int) -> Stages:
        """The stages with the number of steps that they take in a round."""
        stages = self.plan.stages
        first = stages.critic_from
        critic = stages.critic if round_ >= first else replace(stages.critic, steps=0)
        if not round_:
            return replace(stages, critic=critic)
        share = self.plan.round.last if round_ == self.plan.rounds else self.plan.round.share

        def shorter(stage: Any) -> Any:
            return replace(stage, steps=math.ceil(share * stage.steps))

        rate = self.plan.round.joint_rate * stages.joint.learning_rate
        return replace(
            stages,
            joint=replace(shorter(stages.joint), learning_rate=rate),
            predictor=shorter(stages.predictor),
            belief=shorter(stages.belief),
            readouts=shorter(stages.readouts),
            critic=shorter(critic) if round_ > first else critic,
            temporal=shorter(stages.temporal),
            levels=shorter(stages.levels),
        )

    @torch.no_grad()
    def costs(self, quantities: Mapping[str, Tensor]) -> Tensor:
        """Intrinsic terms of what follows each action, `(N, n)`, in the order of the latents.

        From the quantities that the environment gave, not from what the readouts make of them.
        """
        after = {name: torch.cat((q[1:], q[-1:])) for name, q in quantities.items()}
        states = self.latents.states
        after["state"] = torch.cat((states[1:], states[-1:]))
        costs = self.task.bank.values(after, self.latents.actions)
        # The row at an episode's end belongs to no action.
        return torch.where(self.latents.remaining[:, None] > 0, costs, 0.0)

    def _collect(self, round_: int, metrics: Metrics) -> None:
        """Let the agent act, with its planner and some noise, and append what happened."""
        how, first = self.plan.round, self._first_seed(round_)
        there = first in self.held.arrays("seed")
        entered = self.snapshot.enter(f"{round_}/collect")
        if entered and not there:
            agent = build_agent(
                self.jepa,
                self.held.spec,
                self.task,
                self.plan.cost,
                self.plan.planner,
                readouts=self.readouts,
                critic=self.trained_critic(round_ - 1),
                recall=self.plan.recall,
                goal_term=None if len(self.levels) else goal_term_of(self.plan.cost, self.temporal),
                hierarchy=self.hierarchy(),
            )
            planning = torch.Generator().manual_seed(self.plan.seed * 1000 + 500 + round_)
            spec = self.held.spec
            if ranks.rank() == 0:
                with progress_bar(f"collect: round {round_}", how.episodes) as bar:
                    envs.collect_to(
                        self.data,
                        lambda count: envs.make(spec.id, count, **spec.options),
                        AgentPolicy(agent, planning, how.noise),
                        how.episodes,
                        first_seed=first,
                        seed=self.plan.seed,
                        num_envs=how.episodes,
                        episodes_per_shard=how.episodes,
                        on_progress=bar.to,
                    )
            ranks.wait()
        self.held = Dataset.open(self.data)
        if entered:
            returns = episode_returns(self.held)[-how.episodes :]
            found = {
                "return": float(returns.mean()),
                "environment_steps": float(environment_steps(self.held)),
            }
            metrics.log("collect", round_, found)
            logger.info(
                "round %d: mean return %.1f after %d environment steps in all",
                round_,
                found["return"],
                environment_steps(self.held),
            )

    def _first_seed(self, round_: int) -> int:
        """Seed of the first episode that a round collects; kept, as data grow."""
        noted = self.folder.read_json("rounds.json")
        if noted is None:
            noted = {"first_seed": int(self.held.arrays("seed").max()) + 1}
            if ranks.rank() == 0:
                self.folder.write_json("rounds.json", noted)
        first = int(noted["first_seed"]) + (round_ - 1) * self.plan.round.episodes
        envs.check_seeds(first, self.plan.round.episodes)
        return first

    def trained_critic(self, round_: int) -> Critic | None:
        """The critic after a round, if it has learned anything by then."""
        return self.critic if round_ >= self.plan.stages.critic_from else None

    def save(self, round_: int) -> None:
        """Write the checkpoint that agents are made of."""
        if ranks.rank():
            return
        modules: dict[str, nn.Module] = {"model": self.jepa, "readouts": self.readouts}
        meta: dict[str, Any] = {
            "env": self.held.spec.to_json(),
            "seed": self.plan.seed,
            "readouts": self.readouts.sizes,
            "intrinsic_cost": self.task.bank.fingerprint(),
            "intrinsic_cost_reads": self.task.bank.fingerprint(
                readouts=self.readouts, perception=self.jepa.perception
            ),
            "discount": None,
        }
        critic = self.trained_critic(round_)
        if critic is not None:
            modules["critic"] = critic
            meta["discount"] = self.discount
        if len(self.levels):
            modules |= {"levels": self.levels, "probes": self.probes}
        if self.temporal is not None:
            modules["temporal"] = self.temporal
        save_checkpoint(self.folder.model, modules, meta)


def _steps(stages: Stages, name: str) -> int:
    """Updates of a stage, by its name in the log: `joint`, or `levels 2` and `probes 2`."""
    kind = name.split()[0]
    steps: int = getattr(stages, "readouts" if kind == "probes" else kind).steps
    return steps


def quantities_of(dataset: Dataset, device: torch.device) -> dict[str, Tensor]:
    """Named quantities that a state could tell, `(N, n)` float32 each.

    The goal's are left out, and `code`: what a setting tells is not to be read from states.
    `reward` is what was paid for the step that led to a state, not-a-number at an episode's first
    one; `terminated` is 1 where the task ended the episode.
    """
    found = {
        name: torch.as_tensor(np.array(dataset.arrays(f"quantities.{name}"), np.float32))
        for name in dataset.quantity_names
        if not name.startswith("goal") and name != CODE
    }
    first = np.zeros(int(dataset.observation_offsets[-1]), bool)
    first[dataset.observation_offsets[:-1]] = True
    rewards = np.full(len(first), np.nan, np.float32)
    rewards[~first] = dataset.arrays("rewards")
    found["reward"] = torch.as_tensor(rewards)[:, None]
    ended = np.zeros(len(first), np.float32)
    ended[~first] = dataset.terminal()
    found["terminated"] = torch.as_tensor(ended)[:, None]
    return {name: value.to(device) for name, value in found.items()}


def episode_returns(dataset: Dataset) -> np.ndarray:
    """Sum of rewards of each episode, `(E,)`."""
    sums = np.add.reduceat(dataset.arrays("rewards"), dataset.step_offsets[:-1], dtype=np.float64)
    return np.asarray(sums)


def environment_steps(dataset: Dataset) -> int:
    """Control steps of the task, before action repeat, that the data took."""
    return dataset.steps * dataset.spec.action_repeat
