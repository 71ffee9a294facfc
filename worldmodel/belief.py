"""Belief: what is taken for the state where the observation does not show it.

    prior = Pred(belief, a);   belief' = prior + gate(prior, Enc(x)) * (Enc(x) - prior)

Estimating what perception misses is the first role of the world model (LeCun 2022, section 4.1).
The gate is a Kalman gain that is learned instead of solved for (Kalman 1960), one number per
dimension: 1 takes the encoded observation, 0 goes on imagining. It is a function of both states and
of how far they are apart, not of a covariance, which this model does not carry: a useless
observation is told by its looks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from gymnasium import Space, spaces
from torch import Tensor, nn

from forethought.envs import EnvSpec
from forethought.worldmodel.fit import OnStep, fit, in_mode
from forethought.worldmodel.perception import Context, Perception, mlp
from forethought.worldmodel.snapshot import Snapshot

if TYPE_CHECKING:  # a JEPA holds a Correction
    from forethought.worldmodel.jepa import JEPA
    from forethought.worldmodel.latents import LatentData

# sigmoid(3) = 0.95: an untrained correction is nearly memoryless, and its gate can still move.
# On the circle of the tests the mean square at blanks after 300 updates was 0.010 from a bias of 4,
# 0.0042 from 3, 0.0046 from 2.
_TRUST = 3.0


class Correction(nn.Module):
    """Corrects a predicted state by an encoded observation.

    Args:
        state_dim: size D of the state.
        hidden: width of the gate's hidden layer.
        normalise: apply the LayerNorm of a normalised encoder to the belief. Such states lie on a
            sphere; what is between two of them lies inside, where neither predictor nor heads were
            trained. `is_normalised` tells whether an encoder has it.
    """

    def __init__(self, state_dim: int, *, hidden: int = 64, normalise: bool = False) -> None:
        super().__init__()
        self.state_dim = state_dim
        self.layers = mlp(3 * state_dim, [hidden], state_dim)
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, _TRUST)
        self.norm = nn.LayerNorm(state_dim, elementwise_affine=False) if normalise else None

    def gate(self, prior: Tensor, encoded: Tensor) -> Tensor:
        """Trust in the observation, `(..., D)` in [0, 1]."""
        surprise = (encoded - prior).abs()
        return torch.sigmoid(self.layers(torch.cat((prior, encoded, surprise), dim=-1)))

    def forward(self, prior: Tensor, encoded: Tensor) -> Tensor:
        """The belief `(..., D)` from Pred(belief, a) and Enc(x), each `(..., D)`."""
        belief = prior + self.gate(prior, encoded) * (encoded - prior)
        return belief if self.norm is None else self.norm(belief)


@torch.no_grad()
def is_normalised(perception: Perception, spec: EnvSpec) -> bool:
    """Whether an encoder of observations like `spec`'s ends in a LayerNorm, as its states show."""
    device = next(perception.parameters()).device
    size = perception.modulation_dim
    context = ({"modulation": torch.zeros(1, size, device=device)},) if size else ()
    with in_mode(perception, training=False):
        state = perception(_zeros(spec.observation_space, device), *context)[0]
    off = torch.stack((state.mean(), state.var(unbiased=False) - 1))
    return bool((off.abs() < 1e-2).all())


@dataclass(frozen=True)
class BeliefStage:
    """The correction alone, on windows of cached latents; 0 steps leaves the stage out.

    Args:
        steps: number of updates.
        batch: windows per update.
        window: actions per window, shortened to the longest episode.
        probability: of a window to have a run of blank observations; others begin with a wrong
            belief.
        longest: largest number of blank observations in a run; fewer where the window ends.
        learning_rate: peak learning rate of Adam; decays to zero along a cosine.
    """

    steps: int = 1000
    batch: int = 64
    window: int = 20
    probability: float = 0.5
    longest: int = 12
    learning_rate: float = 3e-3

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("batch", 1), ("window", 1), ("longest", 1)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"stages.belief.{name} is {getattr(self, name)}: choose {least} or more"
                )
        if not 0 <= self.probability <= 1:
            raise ValueError(
                f"stages.belief.probability is {self.probability}: choose it between 0 and 1"
            )
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(
                f"stages.belief.learning_rate is {self.learning_rate}: choose it above 0, finite"
            )


@torch.no_grad()
def encoded_blank(
    model: JEPA, spec: EnvSpec, codes: Tensor | None = None, batch: int = 512
) -> Tensor:
    """Enc of an observation that is zero everywhere: vectors, pictures, or both.

    Args:
        model: the world model.
        spec: says what observations are.
        codes: `(N, M)`; to a modulated encoder a blank looks otherwise under every code. Each that
            is there is encoded once.
        batch: blanks encoded side by side.

    Returns:
        `(D,)`; `(N, D)`, one for each code, where the encoder reads codes.

    Raises:
        ValueError: observations are neither `Box` nor a dictionary of them.
    """
    space, device = spec.observation_space, model.device
    if codes is None or not model.perception.modulation_dim:
        return model.encode(_zeros(space, device))[0]
    each, which = torch.unique(codes, dim=0, return_inverse=True)
    blanks = [
        model.encode(_zeros(space, device, len(part)), {"modulation": part})
        for part in torch.split(each, batch)
    ]
    return torch.cat(blanks)[which]


def _zeros(space: Space[Any], device: torch.device, count: int = 1) -> Any:
    if isinstance(space, spaces.Dict):
        return {name: _zeros(part, device, count) for name, part in space.spaces.items()}
    if not isinstance(space, spaces.Box):
        raise ValueError(f"observation_space is {space}, which has no zero: use Box or Dict of Box")
    return torch.zeros((count, *space.shape), device=device)


def draw_blanks(count: int, length: int, stage: BeliefStage, generator: torch.Generator) -> Tensor:
    """Which observations of `count` windows of `length` actions are blank, `(B, length+1)` bool.

    A window has one run or none. The first observation is never blank: without it there is nothing
    to imagine from.
    """
    device = generator.device
    first = torch.randint(1, length + 1, (count, 1), generator=generator, device=device)
    run = torch.randint(1, stage.longest + 1, (count, 1), generator=generator, device=device)
    has = torch.rand((count, 1), generator=generator, device=device) < stage.probability
    time = torch.arange(length + 1, device=device)
    return has & (time >= first) & (time < first + run)


def track(model: JEPA, encoded: Tensor, actions: Tensor, context: Context | None = None) -> Tensor:
    """Beliefs along windows, keeping the gradient.

    Args:
        model: with a correction; without one the beliefs are `encoded`.
        encoded: Enc(x), `(B, T+1, D)`.
        actions: `(B, T, A)`, discrete ones `(B, T)`.
        context: conditioning, tensors with leading axis B, or None.

    Returns:
        `(B, T+1, D)`, the first being `encoded`'s.
    """
    beliefs = [encoded[:, 0]]
    for step, action in enumerate(actions.unbind(1)):
        beliefs.append(model.update(beliefs[-1], action, encoded[:, step + 1], context))
    return torch.stack(beliefs, dim=1)


def train_belief(
    model: JEPA,
    data: LatentData,
    blank: Tensor,
    stage: BeliefStage,
    generator: torch.Generator,
    on_step: OnStep | None = None,
    snapshot: Snapshot | None = None,
) -> None:
    """Train the correction to see through blank observations; nothing else learns.

    In a random run of observations the latent is replaced by `blank`. The loss is the mean square
    of belief minus the state that would have been seen, over all times but the first. Windows
    without such a run begin with the wrong belief, another window's, and must be put right by what
    is seen. Else a good predictor loses little by never looking again, and the gate stays shut.

    Args:
        model: with a correction; encoder and predictor stay as they are.
        data: cached latents.
        blank: what a blank observation is encoded to, `(D,)`, or at each index of `data`,
            `(N, D)`; see `encoded_blank`.
        stage: lengths and rates.
        generator: source of windows and blanks.
        on_step: see `fit`; the terms are the errors at blank and at other observations.
        snapshot: see `fit`.

    Raises:
        ValueError: the model has no correction, or `blank` has another shape.
    """
    correction = model.correction
    if correction is None:
        raise ValueError("model.correction is None: choose Correction(state_dim) to train a belief")
    if blank.shape not in (data.states.shape[1:], data.states.shape):
        raise ValueError(
            f"blank has shape {tuple(blank.shape)}: choose {tuple(data.states.shape[1:])}, as "
            "encoded_blank returns it"
        )
    length = min(stage.window, int(data.remaining.max()))
    starts = data.starts(length)

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        drawn = data.draw(starts, stage.batch, generator)
        states, actions = data.windows(drawn, length)
        unseen = blank if blank.dim() == 1 else blank[drawn, None]
        hidden = draw_blanks(len(states), length, stage, generator).to(states.device)
        encoded = torch.where(hidden[..., None], unseen, states)
        sighted = ~hidden.any(1, keepdim=True)
        encoded[:, 0] = torch.where(sighted, states[:, 0].roll(1, 0), states[:, 0])
        believed = track(model, encoded, actions, data.context(drawn))
        error = (believed - states)[:, 1:].square().mean(-1)
        at_blank = hidden[:, 1:]
        terms = {
            "blank": error[at_blank].sum() / at_blank.sum().clamp_min(1),
            "seen": error[~at_blank].sum() / (~at_blank).sum().clamp_min(1),
        }
        return error.mean(), terms

    with _frozen(model.predictor, model.actions):
        fit(
            correction.parameters(),
            loss,
            steps=stage.steps,
            learning_rate=stage.learning_rate,
            on_step=on_step,
            snapshot=snapshot,
        )


@contextmanager
def _frozen(*modules: nn.Module) -> Iterator[None]:
    """No gradient is collected in these modules, though it passes through them."""
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
