"""Build: the only place that constructs across folders, from records and a run folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from gymnasium.spaces import Box, Discrete
from torch import nn

from forethought import envs
from forethought.agent import (
    Adjustment,
    Agent,
    Configurator,
    Cost,
    Critic,
    CriticStage,
    GoalDistance,
    GoalTerm,
    Hierarchy,
    Mode,
    Policy,
    Recall,
    Task,
    TemporalCost,
    TemporalDistance,
    TemporalStage,
    Thinking,
    TopDown,
)
from forethought.agent.setting_code import setting_size
from forethought.envs import EnvSpec
from forethought.planners import Planner
from forethought.worldmodel import (
    JEPA,
    Actions,
    AutoPerception,
    BeliefStage,
    Correction,
    JointStage,
    Level,
    LevelShape,
    LevelStage,
    Perception,
    Predictor,
    PredictorStage,
    Readouts,
    ResidualMLP,
    is_normalised,
)
from forethought.worldmodel.latents import code_size


@dataclass(frozen=True)
class Collection:
    """What is collected before training.

    Args:
        episodes: number of episodes; by default as many as `decisions` take. Their seeds begin at
            0 and stay below 10^6.
        decisions: number of decisions, where `episodes` is not given; the last episode is finished.
        num_envs: environments side by side, in each process.
        policy: the behaviour policy.
        workers: processes that collect.
        length: decisions after which an episode is cut, if it has not ended by then; by default
            the environment decides.
    """

    episodes: int | None = None
    decisions: int = 20_000
    num_envs: int = 16
    policy: envs.Policy = envs.Smooth()  # noqa: RUF009 - frozen
    workers: int = 1
    length: int | None = None

    def __post_init__(self) -> None:
        for name in ("episodes", "decisions", "num_envs", "workers", "length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"collection.{name} is {value}: choose 1 or more")


@dataclass(frozen=True)
class Round:
    """A later round: the agent collects with its planner, then everything goes on training.

    Args:
        episodes: episodes that the agent collects.
        noise: standard deviation of Gaussian noise on its actions; with discrete actions the
            probability of a random one.
        share: share of every stage's steps that a round takes.
        last: the same for the last round.
        joint_rate: factor of the joint stage's learning rate. Below 1 the encoder moves less from
            round to round, and predictor, readouts and critic keep up with it.
    """

    episodes: int = 4
    noise: float = 0.1
    share: float = 0.5
    last: float = 1.0
    joint_rate: float = 1.0

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"round.episodes is {self.episodes}: choose 1 or more")
        for name in ("noise", "share", "last"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"round.{name} is {getattr(self, name)}: choose 0 or more, finite")
        if not 0 < self.joint_rate < float("inf"):
            raise ValueError(f"round.joint_rate is {self.joint_rate}: choose it above 0, finite")


@dataclass(frozen=True)
class Model:
    """The world model. Sizes known only at run time come from the environment.

    Args:
        perception: encoder class.
        predictor: predictor class.
        action_embedding: size of a learned embedding of discrete actions; 0 takes them one-hot.
        recurrent: whether a belief is a prediction corrected by what is observed, trained in the
            stage `belief`, instead of the encoded observation alone.
        modulation: size M of a code that modulates perception and predictor: what is known of an
            episode's conditions. Data tell it as the quantity `code`, a setting as `modulation`.
            0 reads none.
        levels: levels above the world model (H-JEPA), from the lowest on; by default none.
    """

    perception: Callable[[EnvSpec], Perception] = AutoPerception
    predictor: Callable[[int, int], Predictor] = ResidualMLP
    action_embedding: int = 0
    recurrent: bool = False
    modulation: int = 0
    levels: tuple[LevelShape, ...] = ()

    def __post_init__(self) -> None:
        for name in ("action_embedding", "modulation"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name} is {getattr(self, name)}: choose 0 or more")


@dataclass(frozen=True)
class ReadoutStage:
    """The readouts, on windows of cached latents.

    Args:
        steps: number of updates.
        batch: windows per update.
        unroll: predicted steps per window.
    """

    steps: int = 800
    batch: int = 32
    unroll: int = 8

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "unroll"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"stages.readouts.{name} is {getattr(self, name)}: choose 1 or more"
                )


@dataclass(frozen=True)
class Stages:
    """The training stages, in their order.

    Args:
        joint: perception and predictor together.
        predictor: the predictor alone, on cached latents.
        belief: the correction of a recurrent belief.
        readouts: the heads that read named quantities.
        critic: the critic, where the task has an intrinsic cost.
        critic_from: first round that trains the critic. It predicts what follows from the behaviour
            in the data: in round 0 that is the first collection's, and what follows from random
            actions misleads a planner (LOG.md). 0 suits data of somebody who knew the task.
        critic_members: critics in the ensemble, each of which leaves out some episodes.
        temporal: TC(s, g), the number of decisions from a state to a goal; by default left out.
            Where there are levels above, it is the top level's, in steps of its own.
        levels: each of the levels above, where there are any.
    """

    joint: JointStage = JointStage()  # noqa: RUF009 - frozen
    predictor: PredictorStage = PredictorStage()  # noqa: RUF009 - frozen
    readouts: ReadoutStage = ReadoutStage()
    critic: CriticStage = CriticStage()  # noqa: RUF009 - frozen
    critic_from: int = 1
    critic_members: int = 1
    belief: BeliefStage = BeliefStage()  # noqa: RUF009 - frozen
    temporal: TemporalStage = TemporalStage(steps=0)  # noqa: RUF009 - frozen
    levels: LevelStage = LevelStage()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if self.critic_from < 0:
            raise ValueError(f"stages.critic_from is {self.critic_from}: choose 0 or more")
        if self.critic_members < 1:
            raise ValueError(f"stages.critic_members is {self.critic_members}: choose 1 or more")


Part = TypeVar("Part", Perception, Predictor)


def device_of(name: str) -> torch.device:
    """The device called `auto`, `cpu`, `cuda` or `mps`; the one place where it is chosen.

    Raises:
        ValueError: this machine does not have it.
    """
    have = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in have.items() if there)
    if not have.get(name, False):
        there = ", ".join(kind for kind, is_there in have.items() if is_there)
        raise ValueError(f"device {name!r} is not available here: choose among {there}, auto")
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # set by torchrun: a GPU for each rank
        device = torch.device(name, int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device
    return torch.device(name)


def build_model(model: Model, spec: EnvSpec, device: torch.device, seed: int) -> JEPA:
    """A world model for environments like `spec`, initialised from `seed`.

    Raises:
        ValueError: the action space is neither a box in [-1, 1] nor discrete, or perception or
            predictor cannot be modulated and shall be.
    """
    space = spec.action_space
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(space, Discrete):
            actions = Actions(int(space.n), discrete=True, embedding=model.action_embedding)
        elif isinstance(space, Box) and (space.low == -1).all() and (space.high == 1).all():
            actions = Actions(spec.action_dim)
        else:
            raise ValueError(
                f"{spec.id} has the action space {space}: make it with forethought.envs.make, "
                "which rescales boxes to [-1, 1]"
            )
        perception = _modulated("perception", model.perception, model.modulation, spec)
        sizes = perception.latent_dim, actions.dim
        predictor = _modulated("predictor", model.predictor, model.modulation, *sizes)
        correction = None
        if model.recurrent:
            flat = is_normalised(perception, spec)
            correction = Correction(perception.latent_dim, normalise=flat)
        jepa = JEPA(perception, predictor, actions, correction)
    return jepa.to(device)


def _modulated(field: str, make: Callable[..., Part], modulation: int, *arguments: Any) -> Part:
    """Perception or predictor, told the size of the code only where there is one."""
    if not modulation:
        return make(*arguments)
    refusal = (
        f"model.modulation is {modulation}, but model.{field} takes no argument 'modulation': "
        "choose 0, or a class that has one"
    )
    try:
        part = make(*arguments, modulation=modulation)
    except TypeError as error:
        raise ValueError(refusal) from error
    if part.modulation_dim != modulation:
        raise ValueError(refusal)
    return part


def build_readouts(jepa: JEPA, sizes: Mapping[str, int], seed: int) -> Readouts:
    """Readouts of named quantities, initialised from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        return Readouts(jepa.latent_dim, sizes).to(jepa.device)


def build_critic(jepa: JEPA, task: Task, discount: float, seed: int, members: int = 1) -> Critic:
    """A critic of the task's intrinsic terms, initialised from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 2)
        critic = Critic(jepa.latent_dim, len(task.terms), discount, members=members)
        return critic.to(jepa.device)


def build_temporal(jepa: JEPA, horizon: int, seed: int) -> TemporalDistance:
    """TC(s, g) whose effective horizon 1 / (1 - gamma) is `horizon`, from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 4)
        return TemporalDistance(jepa.latent_dim, 1 - 1 / max(2, horizon)).to(jepa.device)


def build_levels(jepa: JEPA, shapes: Sequence[LevelShape], seed: int) -> nn.ModuleList:
    """Levels above a world model, each over the one before, initialised from `seed`."""
    levels: list[Level] = []
    size, actions, discrete = jepa.latent_dim, jepa.action_dim, jepa.actions.discrete
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 5)
        for shape in shapes:
            levels.append(Level(size, actions, shape, discrete=discrete))
            size, actions, discrete = shape.latent_dim, shape.macro_dim, False
    return nn.ModuleList(levels).to(jepa.device)


def build_probes(levels: nn.ModuleList, sizes: Mapping[str, int], seed: int) -> nn.ModuleList:
    """For each level above, readouts of named quantities: what it still knows, from `seed`."""
    probes = []
    for level in levels:
        assert isinstance(level, Level)
        probes.append(build_readouts(level.model, sizes, seed))
    return nn.ModuleList(probes)


def top_of(
    jepa: JEPA, levels: nn.ModuleList, cost: Cost, top_down: TopDown, stage: TemporalStage
) -> tuple[JEPA, int]:
    """The top level as a world model of its own, and how far its TC(s, g) looks ahead."""
    if not len(levels):
        return jepa, stage.horizon or cost.horizon
    top = levels[-1]
    assert isinstance(top, Level)
    return top.model, stage.horizon or top_down.horizon[min(len(levels), len(top_down.horizon)) - 1]


def hierarchy_of(
    levels: nn.ModuleList,
    planner: Planner,
    top_down: TopDown,
    cost: Cost,
    temporal: TemporalDistance | None,
) -> Hierarchy | None:
    """The levels as they plan, gradients of theirs switched off; None without any.

    `planner` is the agent's; `top_down` may hold another one.
    """
    if not len(levels):
        return None
    levels.eval().requires_grad_(False)
    there = tuple(level for level in levels if isinstance(level, Level))
    return Hierarchy(there, top_down.planner or planner, top_down, goal_term_of(cost, temporal))


def goal_term_of(cost: Cost, temporal: TemporalDistance | None) -> GoalTerm:
    """What tells how far a state is from the goal.

    Raises:
        ValueError: it is to be TC(s, g), which was not trained.
    """
    if cost.goal == "latent":
        return GoalDistance()
    if temporal is None:
        raise ValueError(
            "cost.goal is temporal, but TC(s, g) was not trained: train with "
            "--stages.temporal.steps above 0"
        )
    return TemporalCost(temporal)


def build_policy(jepa: JEPA, task: Task, seed: int, *, settings: bool = False) -> Policy:
    """A policy for the states of `jepa`, initialised from `seed`.

    It reads the model's codes; with `settings` it reads the setting (`Distillation.settings`).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 3)
        policy = Policy(
            jepa.latent_dim,
            jepa.action_dim,
            goal=task.goal,
            discrete=jepa.actions.discrete,
            modulation=setting_size(task) if settings else code_size(jepa),
        )
        return policy.to(jepa.device)


def build_agent(
    jepa: JEPA,
    spec: EnvSpec,
    task: Task,
    cost: Cost,
    planner: Planner,
    *,
    readouts: Readouts | None = None,
    critic: Critic | None = None,
    mode: Mode = 2,
    policy: Policy | None = None,
    recall: Recall | None = None,
    adjust: Adjustment = Adjustment(),  # noqa: B008 - frozen
    thinking: Thinking = Thinking(),  # noqa: B008 - frozen
    goal_term: GoalTerm | None = None,
    hierarchy: Hierarchy | None = None,
) -> Agent:
    """An agent around trained modules, every gradient of theirs switched off."""
    for module in (jepa, readouts, critic):
        if module is not None:
            module.eval().requires_grad_(False)
    configurator = Configurator(
        cost, task, spec.control_step_seconds, mode, adjust=adjust, thinking=thinking
    )
    return Agent(
        jepa,
        configurator,
        planner,
        readouts,
        critic,
        policy,
        recall,
        GoalDistance() if goal_term is None else goal_term,
        hierarchy=hierarchy,
    )
