"""Training: the two stages of a world model, both by the one loop `fit`.

The joint stage learns perception and predictor together from raw windows. The predictor stage
freezes perception, encodes every observation once, and trains the predictor alone on longer
unrolls of cached latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from forethought.envs import Dataset, Windows
from forethought.worldmodel.fit import OnStep, fit, in_mode
from forethought.worldmodel.jepa import JEPA
from forethought.worldmodel.joint_levels import JointLevels
from forethought.worldmodel.latents import (
    CODE,
    LatentData,
    action_tensor,
    check_codes,
    code_size,
    to_tensor,
    told,
)
from forethought.worldmodel.objective import Objective
from forethought.worldmodel.snapshot import Snapshot

_SEEDS = 2**62


@dataclass(frozen=True)
class JointStage:
    """Perception and predictor together, on windows of raw observations.

    Args:
        steps: number of updates.
        batch: windows per update.
        unroll: predicted steps per window.
        learning_rate: peak learning rate of Adam; decays to zero along a cosine.
        teacher_forcing: predict each state of a window from the encoded ones before it, as a
            predictor with a window is trained, instead of from what was predicted for them.
        weight_decay: decay of weights apart from the gradient (AdamW); 0 is Adam.
        warmup: updates in which the learning rate rises to its peak, at most a tenth of all.
        clip: largest norm of the gradient.
        target_decay: share of a slow copy of the encoder that stays at every update; the copy
            encodes what is to be predicted, and no gradient flows there. 0 is the encoder itself
            without gradient, null the encoder itself with gradient.
    """

    steps: int = 1500
    batch: int = 32
    unroll: int = 8
    learning_rate: float = 1e-3
    teacher_forcing: bool = False
    weight_decay: float = 0.0
    warmup: int = 50
    clip: float = 10.0
    target_decay: float | None = None

    def __post_init__(self) -> None:
        _check_stage("stages.joint", self, smallest_batch=2)
        if self.warmup < 1:
            raise ValueError(f"stages.joint.warmup is {self.warmup}: choose 1 or more")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"stages.joint.weight_decay is {self.weight_decay}: choose 0 or more, finite"
            )
        if not 0 < self.clip < math.inf:
            raise ValueError(f"stages.joint.clip is {self.clip}: choose it above 0, finite")
        if self.target_decay is not None and not 0 <= self.target_decay <= 1:
            raise ValueError(
                f"stages.joint.target_decay is {self.target_decay}: choose it in [0, 1], or null"
            )


@dataclass(frozen=True)
class PredictorStage:
    """Predictor alone, on windows of cached latents; 0 steps leaves the stage out.

    Args:
        steps: number of updates.
        batch: windows per update.
        unroll: predicted steps per window; at least the planning horizon works best.
        learning_rate: peak learning rate of Adam; decays to zero along a cosine.
        perturbation: radius of the adversarial push of starts (in standard deviations of the
            latent) and actions; 0 trains on the data alone.
    """

    steps: int = 2500
    batch: int = 128
    unroll: int = 16
    learning_rate: float = 1e-3
    perturbation: float = 0.0

    def __post_init__(self) -> None:
        _check_stage("stages.predictor", self, smallest_batch=1)
        if not 0 <= self.perturbation < math.inf:
            raise ValueError(
                f"stages.predictor.perturbation is {self.perturbation}: choose 0 or more, finite"
            )


def _check_stage(name: str, stage: JointStage | PredictorStage, smallest_batch: int) -> None:
    for field, smallest in (("steps", 0), ("batch", smallest_batch), ("unroll", 1)):
        if getattr(stage, field) < smallest:
            raise ValueError(
                f"{name}.{field} is {getattr(stage, field)}: choose {smallest} or more"
            )
    if not 0 < stage.learning_rate < math.inf:
        raise ValueError(
            f"{name}.learning_rate is {stage.learning_rate}: choose it above 0, finite"
        )


def train_joint(
    model: JEPA,
    objective: Objective,
    dataset: Dataset,
    stage: JointStage,
    generator: np.random.Generator,
    on_step: OnStep | None = None,
    snapshot: Snapshot | None = None,
    *,
    levels: JointLevels | None = None,
    standardise: bool = True,
    bfloat16: bool = False,
) -> None:
    """Train perception, predictor and the objective's heads on raw windows of `dataset`.

    With `stage.target_decay` predictions are compared with states of `objective.slow`, which
    follows the encoder before every update (BYOL, 2006.07733; I-JEPA, 2301.08243).

    Args:
        model: perception and predictor.
        objective: loss terms and the heads they need.
        dataset: where the windows come from.
        stage: lengths and rates.
        generator: source of the windows.
        on_step: see `fit`.
        snapshot: see `fit`.
        levels: the levels above, whose losses are added to those of the model; None: there are
            none, or they are trained afterwards alone.
        standardise: set the encoder's standardisation from the data first.
        bfloat16: run encoder and predictor in bfloat16 where it is safe (autocast); losses stay
            in float32.

    Raises:
        ValueError: the model is modulated, and the data hold no codes that fit; or one of
            `stage.target_decay` and `objective.slow` is there without the other.
    """
    device, slow, decay = model.device, objective.slow, stage.target_decay
    if (slow is None) != (decay is None):
        raise ValueError(
            f"stages.joint.target_decay is {decay}, but the objective has "
            f"{'no' if slow is None else 'a'} slow encoder: give it slow=SlowEncoder("
            "model.perception) with a decay, and none without"
        )
    size = code_size(model)
    check_codes(dataset, size)
    if standardise:
        statistics = dataset.channel_statistics()
        model.perception.standardise_by(statistics)
        if slow is not None:
            slow.perception.standardise_by(statistics)
    stored = [name for name in objective.reads if name in dataset.quantity_names]
    windows = dataset.windows(stage.unroll, [*stored, *([CODE] if size else [])])

    @contextmanager
    def forward() -> Iterator[None]:
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=bfloat16),
            _dropout(model, lambda: int(generator.integers(_SEEDS))),
        ):
            yield

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        batch = windows.sample(stage.batch, generator)
        actions = action_tensor(batch.actions, model, device)
        codes = torch.as_tensor(batch.quantities[CODE], device=device).float() if size else None
        observations, targets = to_tensor(batch.observations, device), None
        with forward():
            encoded = model.encode(observations, told(codes))
            first = None if codes is None else codes[:, 0]
            if stage.teacher_forcing:
                predicted = model.sequence(encoded[:, :-1], actions, told(first))
            else:
                predicted = model.rollout(encoded[:, 0], actions, context=told(first))
            if slow is not None and decay is not None:
                slow.follow(model.perception, decay)
                # All states, as statistics of a batch would otherwise be others than the encoder's.
                targets = slow(observations, told(codes))[:, 1:].float()
        read = _read(batch, objective.reads)
        quantities = {k: torch.as_tensor(v, device=device) for k, v in read.items()}
        total: Tensor
        total, terms = objective(encoded.float(), predicted.float(), actions, quantities, targets)
        if levels is not None:
            above, named = levels.loss(stage.batch, generator, forward)
            total, terms = total + above, terms | named
        return total, terms

    trained = [*model.parameters(), *objective.parameters()]
    if levels is not None:
        trained += levels.parameters()
    with in_mode(model, training=True), in_mode(objective, training=True):
        fit(
            trained,
            loss,
            steps=stage.steps,
            learning_rate=stage.learning_rate,
            on_step=on_step,
            snapshot=snapshot,
            clip=stage.clip,
            warmup=stage.warmup,
            weight_decay=stage.weight_decay,
        )


def _read(batch: Windows, reads: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Quantities `(B, T+1, n)` of windows, `reward` and `terminated` among them where read.

    What was paid for the step before a window is unknown; nothing had ended there.
    """
    read = {name: values for name, values in batch.quantities.items() if name in reads}
    for name, first, values in (
        ("reward", np.nan, batch.rewards),
        ("terminated", 0.0, batch.terminal),
    ):
        if name in reads:
            padded = np.full((len(values), values.shape[1] + 1, 1), first, np.float32)
            padded[:, 1:, 0] = values
            read[name] = padded
    return read


def train_predictor(
    model: JEPA,
    data: LatentData,
    stage: PredictorStage,
    generator: torch.Generator,
    on_step: OnStep | None = None,
    snapshot: Snapshot | None = None,
) -> None:
    """Train the predictor alone on unrolls over cached latents; perception stays as it is.

    With `stage.perturbation` the starts and actions of every batch are first moved along the
    gradient of the loss, within a radius: the predictor is trained where a gradient planner would
    push it (Training World Models to be Planned Through, 2512.09929).
    """
    starts = data.starts(stage.unroll)
    spread = stage.perturbation * data.states.std(0)

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        drawn = data.draw(starts, stage.batch, generator)
        states, actions = data.windows(drawn, stage.unroll)
        context = data.context(drawn)

        def error(state: Tensor, actions: Tensor, after: Tensor) -> Tensor:
            return (model.rollout(state, actions, context=context) - after).square().mean()

        first, after = states[:, 0], states[:, 1:]
        terms = {}
        with _dropout(model.predictor, lambda: int(torch.randint(_SEEDS, (), generator=generator))):
            if stage.perturbation:
                terms["undisturbed"] = error(first, actions, after)
                first, actions = _pushed(error, first, actions, after, spread, stage.perturbation)
            terms["prediction"] = error(first, actions, after)
        return torch.stack(list(terms.values())).mean(), terms

    with in_mode(model.predictor, training=True):
        fit(
            model.predictor.parameters(),
            loss,
            steps=stage.steps,
            learning_rate=stage.learning_rate,
            on_step=on_step,
            snapshot=snapshot,
        )


@contextmanager
def _dropout(module: nn.Module, draw: Callable[[], int]) -> Iterator[None]:
    """Dropout from a seed that `draw` gives; nothing is drawn where nothing is dropped.

    PyTorch's dropout takes no generator: its own is seeded here, and afterwards as it was.
    """
    if not any(_share_dropped(part) for part in module.modules()):
        yield
        return
    seed = draw()
    device = next(module.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _share_dropped(module: nn.Module) -> float:
    """Probability with which a module leaves numbers out in training."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return float(module.p)
    share = getattr(module, "dropout", 0.0)  # a module of that name tells by itself
    return float(share) if isinstance(share, int | float) else 0.0


def _pushed(
    error: Callable[[Tensor, Tensor, Tensor], Tensor],
    first: Tensor,
    actions: Tensor,
    after: Tensor,
    spread: Tensor,
    radius: float,
) -> tuple[Tensor, Tensor]:
    """Start and actions after one signed step up the error, as far as `spread` and `radius`."""
    continuous = actions.is_floating_point()
    moved = [x.detach().requires_grad_() for x in ((first, actions) if continuous else (first,))]
    taken = moved[1] if continuous else actions
    slopes = torch.autograd.grad(error(moved[0], taken, after), moved)
    first = first + spread * slopes[0].sign()
    if continuous:
        actions = (actions + radius * slopes[1].sign()).clamp(-1, 1)
    return first.detach(), actions.detach()
