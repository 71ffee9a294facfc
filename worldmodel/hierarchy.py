"""H-JEPA: several levels of representation, each a JEPA over the one below (LeCun 2022, fig. 15).

Level 1 is the world model itself. A level above re-encodes every k-th state of the level below into
a space of its own and predicts one of its own steps, which is k of theirs. Its action is a
macro-action: a learned code of the k actions in between.

    level 2    S_0 --------- m_0 --------> S_1 --------- m_1 --------> S_2
                ^             ^             ^             ^             ^     S = Enc(s)
    level 1    s_0 a_0 s_1 .. a_{k-1} ---> s_k a_k ..                  s_2k   m = Code(a_0..a_{k-1})

A level's states and macro-actions, cached, are `LatentData` like those of the world model: whatever
is trained on those (predictor, readouts, TC(s, g), another level) is trained on these by the same
code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from forethought.worldmodel import losses, ranks
from forethought.worldmodel.fit import OnStep, fit
from forethought.worldmodel.jepa import JEPA, Actions
from forethought.worldmodel.latents import LatentData
from forethought.worldmodel.objective import Losses, Objective
from forethought.worldmodel.perception import Context, Perception, mlp
from forethought.worldmodel.predictors import ResidualMLP
from forethought.worldmodel.snapshot import Snapshot

REACH = 0.95  # share of the data's macro-actions that lie within a level's `reach`
BATCH = 65536  # states that are re-encoded at once
KNOWN = 512  # states of the data that a level keeps, to stay near


@dataclass(frozen=True)
class LevelShape:
    """Sizes of one level above the world model.

    Args:
        stride: k, the steps of the level below that are one of its own.
        latent_dim: size D of its states.
        macro_dim: size M of its macro-actions.
        hidden: width of the hidden layers of its networks.
    """

    stride: int = 8
    latent_dim: int = 16
    macro_dim: int = 4
    hidden: int = 128

    def __post_init__(self) -> None:
        for name, smallest in (("stride", 2), ("latent_dim", 1), ("macro_dim", 1), ("hidden", 1)):
            if getattr(self, name) < smallest:
                raise ValueError(
                    f"model.levels: {name} is {getattr(self, name)}: choose {smallest} or more"
                )


@dataclass(frozen=True)
class LevelStage:
    """Training of each level above, on windows of the level below.

    Args:
        steps: number of updates of re-encoder, macro-actions and predictor together.
        together: train all levels in the joint stage too, on windows of raw observations with its
            batch, their gradient reaching the encoder. `steps` may then be 0.
        batch: windows per update.
        unroll: predicted steps of its own per window; less where no episode is long enough.
        learning_rate: peak learning rate of Adam; decays to zero along a cosine.
        prediction: weight of the multi-step prediction error.
        variance: weight of VICReg's variance term, on states and on macro-actions.
        covariance: weight of VICReg's covariance term, on states and on macro-actions.
        temporal_similarity: weight of the squared change of the state per own step.
        inverse_dynamics: weight of the error of the macro-action read from consecutive states.
        sigreg: weight of SIGReg, on states and on macro-actions.
        sigreg_directions: number of random directions of SIGReg.
    """

    steps: int = 3000
    together: bool = False
    batch: int = 128
    unroll: int = 4
    learning_rate: float = 1e-3
    prediction: float = 1.0
    variance: float = 4.0
    covariance: float = 0.1
    temporal_similarity: float = 1.0
    inverse_dynamics: float = 1.0
    sigreg: float = 0.0
    sigreg_directions: int = 48

    def __post_init__(self) -> None:
        for name, smallest in (
            ("steps", 0),
            ("batch", 2),
            ("unroll", 1),
            ("sigreg_directions", 1),
        ):
            if getattr(self, name) < smallest:
                raise ValueError(
                    f"stages.levels.{name} is {getattr(self, name)}: choose {smallest} or more"
                )
        for field in fields(Losses):
            weight = getattr(self, field.name, 0)
            if not weight >= 0:
                raise ValueError(f"stages.levels.{field.name} is {weight}: a weight is 0 or more")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"stages.levels.learning_rate is {self.learning_rate}: choose it above 0, finite"
            )

    @property
    def losses(self) -> Losses:
        """The weights of the terms that the joint stage of the world model has too."""
        return Losses(
            prediction=self.prediction,
            variance=self.variance,
            covariance=self.covariance,
            temporal_similarity=self.temporal_similarity,
            inverse_dynamics=self.inverse_dynamics,
            sigreg=self.sigreg,
            sigreg_directions=self.sigreg_directions,
        )


class Reencoder(Perception):
    """S = Enc(s): a multi-layer perceptron with ReLU over states of the level below.

    Args:
        below_dim: size of the states of the level below.
        latent_dim: size D of its own.
        hidden: width of the two hidden layers.
    """

    def __init__(self, below_dim: int, latent_dim: int, *, hidden: int = 128) -> None:
        super().__init__()
        self.below_dim, self.latent_dim = below_dim, latent_dim
        self.layers = mlp(below_dim, [hidden, hidden], latent_dim)

    def forward(self, observation: Tensor, context: Context | None = None) -> Tensor:
        """Re-encode states `(..., D_below)`; `context` is not read."""
        encoded: Tensor = self.layers(observation)
        return encoded

    def standardise_by(self, statistics: object) -> None:
        """Nothing: states of a level are near unit variance already."""


class Level(nn.Module):
    """One level above the world model.

    Args:
        below_dim: size of the states of the level below.
        action_dim: size A of its actions, or number n of discrete ones.
        shape: sizes of this level.
        discrete: whether the actions below are indices.

    Attributes:
        model: the level as a world model of its own: observations are states of the level below,
            actions are macro-actions `(..., M)`.
        reach: norm of macro-actions within which `REACH` of the data's lie; `()`. Beyond it the
            predictor was never shown anything.
        known: states of the data, `(K, D)`, drawn once the level is trained; not-a-number before.
    """

    reach: Tensor
    known: Tensor

    def __init__(
        self, below_dim: int, action_dim: int, shape: LevelShape, *, discrete: bool = False
    ) -> None:
        super().__init__()
        self.shape, self.action_dim, self.discrete = shape, action_dim, discrete
        hidden = shape.hidden
        self.model = JEPA(
            Reencoder(below_dim, shape.latent_dim, hidden=hidden),
            ResidualMLP(shape.latent_dim, shape.macro_dim, hidden=hidden),
            Actions(shape.macro_dim),
        )
        self.code = mlp(shape.stride * action_dim, [hidden], shape.macro_dim)
        self.inverse = mlp(2 * shape.latent_dim, [hidden], shape.macro_dim)
        self.register_buffer("reach", torch.tensor(float(shape.macro_dim) ** 0.5))
        self.register_buffer("known", torch.full((KNOWN, shape.latent_dim), math.nan))

    def forward(self, below: Tensor, actions: Tensor) -> Tensor:
        """The state `(N, D)` that comes k steps after states `(N, D_below)`.

        Args:
            below: states of the level below.
            actions: the k actions of that level in between, `(N, k, A)`, or int64 `(N, k)`.
        """
        return self.model.predict(self.encode(below), self.macro(actions))

    def encode(self, below: Tensor) -> Tensor:
        """States `(..., D)` of states `(..., D_below)`."""
        return self.model.encode(below)

    def macro(self, actions: Tensor) -> Tensor:
        """Macro-actions `(..., M)` of chunks `(..., k, A)`, or int64 `(..., k)`."""
        if self.discrete and not actions.is_floating_point():
            actions = nn.functional.one_hot(actions, self.action_dim).float()
        coded: Tensor = self.code(actions.flatten(-2))
        return coded

    def macros(self, actions: Tensor) -> Tensor:
        """Macro-actions `(B, T, M)` of T chunks in a row: `(B, T*k, A)`, or int64 `(B, T*k)`."""
        own = len(actions), -1, self.shape.stride, *actions.shape[2:]
        return self.macro(actions.reshape(own))

    def strange(self, state: Tensor) -> Tensor:
        """Mean squared distance `(...)` of states `(..., D)` from the nearest known one."""
        flat = state.reshape(-1, state.shape[-1])
        near = torch.cdist(flat, self.known).amin(1)
        return (near.square() / state.shape[-1]).reshape(state.shape[:-1])

    def told(self, before: Tensor, after: Tensor) -> Tensor:
        """The macro-action `(..., M)` that leads from one state `(..., D)` to another one."""
        read: Tensor = self.inverse(torch.cat((before, after), -1))
        return read


def level_objective(level: Level, stage: LevelStage, directions: torch.Generator) -> Objective:
    """The loss terms of a level; the head that reads macro-actions is the level's own.

    Args:
        level: the level.
        stage: their weights.
        directions: source of SIGReg's directions.
    """
    objective = Objective(stage.losses, level.shape.latent_dim, level.model.actions, directions)
    objective.inverse_dynamics = level.inverse  # planning reads it too
    return objective


def level_loss(
    level: Level, objective: Objective, below: Tensor, actions: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Total loss of a level on windows of the level below.

    The terms are those of the world model's joint stage: the prediction error of an unroll, VICReg
    or SIGReg against collapse, and the action read from consecutive states. VICReg and SIGReg are
    asked of macro-actions too, whose gradient comes from everything: what of the k actions makes no
    difference to the states is not worth a code.

    Args:
        level: the level.
        objective: see `level_objective`.
        below: every k-th state of the level below, `(B, T+1, D_below)`.
        actions: all actions of that level in between, `(B, T*k, A)`, or int64 `(B, T*k)`.

    Returns:
        The scalar total, and each term before weighting under its own name.
    """
    macros = level.macros(actions)  # (B, T, M)
    encoded = level.encode(below)  # (B, T+1, D)
    predicted = level.model.rollout(encoded[:, 0], macros)
    total: Tensor
    total, terms = objective(encoded, predicted, macros)
    w, asked = objective.weights, {}
    gathered = ranks.gather(macros)
    if w.variance:
        asked["variance"] = losses.variance(gathered, flatten=True)
    if w.covariance:
        asked["covariance"] = losses.covariance(gathered, flatten=True)
    if w.sigreg:
        asked["sigreg"] = losses.sigreg(
            gathered, generator=objective.generator, directions=w.sigreg_directions, flatten=True
        )
    for name, term in asked.items():
        total = total + getattr(w, name) * term
        terms[f"macro_{name}"] = term
    return total, terms


def train_level(
    level: Level,
    data: LatentData,
    stage: LevelStage,
    generator: torch.Generator,
    on_step: OnStep | None = None,
    snapshot: Snapshot | None = None,
    *,
    directions: torch.Generator | None = None,
) -> None:
    """Train one level on the cached level below, which stays as it is; see `level_loss`.

    Args:
        level: what is trained, in place.
        data: cached latents of the level below.
        stage: lengths, rates and weights; with 0 steps only `reach` and `known` are set.
        generator: source of the windows; on the CPU.
        on_step: see `fit`.
        snapshot: see `fit`.
        directions: source of SIGReg's directions, which ranks share; by default `generator`.

    Raises:
        ValueError: no episode is as long as one step of the level.
    """
    stride = level.shape.stride
    longest = int(data.remaining.max()) // stride
    if longest < 1:
        raise ValueError(
            f"model.levels: one step of a level is {stride} of the level below, but the longest "
            f"episode has {int(data.remaining.max())}: choose a shorter stride"
        )
    length = min(stage.unroll, longest) * stride
    starts = data.starts(length)
    objective = level_objective(level, stage, directions or generator)

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        states, actions = data.windows(data.draw(starts, stage.batch, generator), length)
        return level_loss(level, objective, states[:, ::stride], actions)

    fit(
        level.parameters(),
        loss,
        steps=stage.steps,
        learning_rate=stage.learning_rate,
        on_step=on_step,
        snapshot=snapshot,
    )
    _note(level, level_data(level, data), generator)


@torch.no_grad()
def _note(level: Level, own: LatentData, generator: torch.Generator) -> None:
    """Set `reach` and `known` by the level's own data."""
    norms = own.actions[own.remaining > 0].norm(dim=-1)
    # Enough for a quantile, and no more than torch sorts.
    drawn = torch.randint(len(norms), (min(len(norms), 2**20),), generator=generator)
    level.reach.copy_(norms[drawn.to(norms.device)].quantile(REACH))
    drawn = torch.randint(len(own.states), (KNOWN,), generator=generator)
    level.known.copy_(own.states[drawn.to(own.states.device)])
    ranks.share(level)  # which each drew by itself


def chains(data: LatentData, stride: int) -> Tensor:
    """Indices `(N,)` that put every k-th moment of an episode next to each other.

    Of each episode first the moments 0, k, 2k, ..., then 1, k + 1, and so on: what is one step of
    the level apart is one index apart.
    """
    ends = data.remaining == 0
    episode = ends.cumsum(0) - ends.long()
    number = torch.arange(len(ends), device=ends.device)
    first = torch.full((int(episode.max()) + 1,), len(ends), device=ends.device)
    first = first.scatter_reduce(0, episode, number, "amin")
    moment = number - first[episode]
    longest = int(moment.max()) + 1
    # Sorted by episode, then phase, then time.
    return ((episode * stride + moment % stride) * longest + moment).argsort()


@torch.no_grad()
def level_data(level: Level, data: LatentData) -> LatentData:
    """The level's own states and macro-actions, for all moments of the level below.

    Args:
        level: the level.
        data: cached latents of the level below.

    Returns:
        Data of the same length, in the order of `chains`; an index is a moment of the level below,
        the next one is k moments later.
    """
    stride = level.shape.stride
    order = chains(data, stride)
    steps = torch.arange(stride, device=order.device)
    last = len(data.states) - 1
    chunks = (
        data.actions[(part[:, None] + steps).clamp(max=last)] for part in torch.split(order, BATCH)
    )
    remaining = data.remaining[order] // stride
    macros = torch.cat([level.macro(chunk) for chunk in chunks])
    macros = torch.where(remaining[:, None] > 0, macros, 0.0)
    states = torch.cat([level.encode(part) for part in torch.split(data.states, BATCH)])
    ending = data.terminal[(order + stride - 1).clamp(max=last)]
    return LatentData(
        states[order],
        macros,
        remaining,
        ending & (remaining == 1) & (data.remaining[order] == stride),
        None if data.codes is None else data.codes[order],
    )


def lifted(levels: Sequence[Level], state: Tensor) -> list[Tensor]:
    """A state `(..., D)` of the world model on every level, from the lowest on."""
    states = [state]
    for level in levels:
        states.append(level.encode(states[-1]))
    return states
