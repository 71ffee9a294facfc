"""Training: one loop, `fit`, and the two stages of a world model that use it.

The joint stage learns perception and predictor together from raw windows. The predictor stage
freezes perception, encodes every observation once, and trains the predictor alone on longer
unrolls of cached latents.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from forethought.envs import Dataset
from forethought.worldmodel.jepa import JEPA
from forethought.worldmodel.objective import Objective

OnStep = Callable[[int, dict[str, float]], None]


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient is not finite; the parameters are those before that step."""


@dataclass(frozen=True)
class JointStage:
    """Perception and predictor together, on windows of raw observations.

    Args:
        steps: number of updates.
        batch: windows per update.
        unroll: predicted steps per window.
        learning_rate: peak learning rate of Adam; decays to zero along a cosine.
    """

    steps: int = 1500
    batch: int = 32
    unroll: int = 8
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        _check_stage("stages.joint", self, smallest_batch=2)


@dataclass(frozen=True)
class PredictorStage:
    """Predictor alone, on windows of cached latents; 0 steps leaves the stage out.

    Args:
        steps: number of updates.
        batch: windows per update.
        unroll: predicted steps per window; at least the planning horizon works best.
        learning_rate: peak learning rate of Adam; decays to zero along a cosine.
    """

    steps: int = 2500
    batch: int = 128
    unroll: int = 16
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        _check_stage("stages.predictor", self, smallest_batch=1)


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


def fit(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[], tuple[Tensor, dict[str, Tensor]]],
    *,
    steps: int,
    learning_rate: float,
    on_step: OnStep | None = None,
    log_every: int = 50,
    clip: float = 10.0,
    warmup: int = 50,
) -> None:
    """Minimise `loss` by Adam with a linear warm-up and a cosine decay to zero.

    Args:
        parameters: what is trained.
        loss: draws a batch and returns its scalar loss and named terms.
        steps: number of updates; 0 does nothing.
        learning_rate: peak learning rate.
        on_step: called every `log_every` steps and after the last one with the number of updates
            done and the named terms, `loss`, `gradient_norm`, `learning_rate` and
            `steps_per_second`.
        log_every: steps between two calls of `on_step`.
        clip: largest norm of the gradient.
        warmup: steps of linear warm-up.

    Raises:
        NonFiniteLossError: the loss or its gradient is not finite; nothing was updated with it.
    """
    if not steps:
        return
    trained = [p for p in parameters if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=learning_rate, fused=True)
    warmup = min(warmup, max(1, steps // 10))

    def rate(step: int) -> float:
        ramp = min(1.0, (step + 1) / warmup)
        return ramp * 0.5 * (1 + math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    began, done = time.perf_counter(), 0
    for step in range(1, steps + 1):
        total, terms = loss()
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(total)
        norm = torch.nn.utils.clip_grad_norm_(trained, clip)
        if not torch.isfinite(total + norm):
            values = ", ".join(f"{name} {term.item():.4g}" for name, term in terms.items())
            raise NonFiniteLossError(
                f"the loss is {total.item()} and its gradient's norm {norm.item()} at step {step} "
                f"({values}): lower the learning rate, or check the data with `Dataset.verify`"
            )
        optimiser.step()
        if on_step and (step % log_every == 0 or step == steps):
            now = time.perf_counter()
            record = {name: float(term.detach()) for name, term in terms.items()}
            record |= {"loss": float(total.detach()), "gradient_norm": norm.item()}
            record["learning_rate"] = float(schedule.get_last_lr()[0])
            record["steps_per_second"] = (step - done) / max(now - began, 1e-9)
            on_step(step, record)
            began, done = now, step
        schedule.step()


def train_joint(
    model: JEPA,
    objective: Objective,
    dataset: Dataset,
    stage: JointStage,
    generator: np.random.Generator,
    on_step: OnStep | None = None,
) -> None:
    """Train perception, predictor and the objective's heads on raw windows of `dataset`.

    Sets the encoder's standardisation from the data first.
    """
    device = model.device
    mean, std = dataset.channel_statistics()
    model.perception.standardise.fit(
        torch.as_tensor(mean, device=device), torch.as_tensor(std, device=device)
    )
    windows = dataset.windows(stage.unroll)

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        batch = windows.sample(stage.batch, generator)
        actions = torch.as_tensor(batch.actions, device=device)
        encoded = model.encode(torch.as_tensor(batch.observations, device=device))
        predicted = model.rollout(encoded[:, 0], actions)
        total: Tensor
        total, terms = objective(encoded, predicted, actions)
        return total, terms

    fit(
        [*model.parameters(), *objective.parameters()],
        loss,
        steps=stage.steps,
        learning_rate=stage.learning_rate,
        on_step=on_step,
    )


@dataclass(frozen=True)
class LatentData:
    """Every observation of a data set, encoded once; the cache of the predictor stage.

    States and actions share one index: the action at the last observation of an episode is a
    zero that no window reaches.

        index     o_e   o_e+1  ...  o_e+T   o_{e+1} ...
        states    s_0   s_1    ...  s_T     s_0
        actions   a_0   a_1    ...  (0)     a_0

    Args:
        states: `(N, D)`.
        actions: `(N, A)`.
        remaining: `(N,)` int64, actions left in the episode at each index.
    """

    states: Tensor
    actions: Tensor
    remaining: Tensor

    def starts(self, length: int) -> Tensor:
        """Indices at which a window of `length` actions begins, `(M,)` int64."""
        starts = (self.remaining >= length).nonzero().squeeze(1)
        if not len(starts):
            raise ValueError(
                f"unroll is {length}, but the longest episode has {int(self.remaining.max())} "
                "actions: shorten the unroll or collect longer episodes"
            )
        return starts

    def windows(self, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """States `(B, length+1, D)` and actions `(B, length, A)` of windows at `starts`."""
        index = starts.unsqueeze(1) + torch.arange(length + 1, device=starts.device)
        return self.states[index], self.actions[index[:, :-1]]


@torch.no_grad()
def encode_dataset(model: JEPA, dataset: Dataset, batch: int = 512) -> LatentData:
    """Encode all observations of `dataset`, in the order of its flat arrays."""
    observations = dataset.observations()
    states = torch.cat(
        [
            model.encode(torch.as_tensor(np.array(observations[i : i + batch])).to(model.device))
            for i in range(0, len(observations), batch)
        ]
    )
    remaining = np.concatenate([np.arange(length, -1, -1) for length in dataset.lengths])
    taken = dataset.arrays("actions")
    actions = np.zeros((len(observations), taken.shape[1]), np.float32)
    actions[remaining > 0] = taken
    return LatentData(
        states,
        torch.as_tensor(actions).to(model.device),
        torch.as_tensor(remaining).to(model.device),
    )


def train_predictor(
    model: JEPA,
    data: LatentData,
    stage: PredictorStage,
    generator: torch.Generator,
    on_step: OnStep | None = None,
) -> None:
    """Train the predictor alone on unrolls over cached latents; perception stays as it is."""
    starts = data.starts(stage.unroll)

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        draw = torch.randint(len(starts), (stage.batch,), generator=generator).to(starts.device)
        states, actions = data.windows(starts[draw], stage.unroll)
        error = (model.rollout(states[:, 0], actions) - states[:, 1:]).square().mean()
        return error, {"prediction": error}

    fit(
        model.predictor.parameters(),
        loss,
        steps=stage.steps,
        learning_rate=stage.learning_rate,
        on_step=on_step,
    )
