"""Diagnostics: is the latent state alive, does it know where it is, can it be unrolled?

Prediction loss alone says nothing: a collapsed encoder predicts itself perfectly.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from forethought.worldmodel.jepa import JEPA
from forethought.worldmodel.latents import LatentData
from forethought.worldmodel.readouts import Readouts, r_squared

logger = logging.getLogger(__name__)

COLLAPSED_STD = 0.05
COLLAPSED_RANK = 3.0  # inverse dynamics alone leaves 2 to 3 (LOG.md)
IGNORED_ACTIONS = 0.1


def latent_std(states: Tensor) -> float:
    """Standard deviation of states `(N, D)` over N, averaged over D."""
    return float(states.std(dim=0).mean())


def effective_rank(states: Tensor) -> float:
    """Effective rank of the covariance of `(N, D)`: exp of the entropy of its normalised spectrum.

    Roy and Vetterli, "The effective rank" (2007), applied to the covariance, so that a dimension
    counts by its variance. 1 for a line, D for a sphere.
    """
    centred = (states - states.mean(0)).cpu().double()  # no float64 on some accelerators
    variances = torch.linalg.svdvals(centred).square()
    p = variances / variances.sum().clamp_min(1e-300)
    return float(torch.exp(-(p * p.clamp_min(1e-300).log()).sum()))


@torch.no_grad()
def open_loop(
    model: JEPA,
    data: LatentData,
    horizon: int,
    generator: torch.Generator,
    *,
    readouts: Readouts | None = None,
    samples: int = 512,
) -> dict[str, float]:
    """Error of long unrolls against copying the first state, and the weight actions have.

    Args:
        model: the world model.
        data: cached latents.
        horizon: steps to unroll.
        generator: source of the windows.
        readouts: if given, errors are also reported in the unit of each quantity.
        samples: number of windows.

    Returns:
        `open_loop_ratio`: squared error at the horizon over that of copying (below 1 is better
        than copying); `action_sensitivity`: spread of the prediction at the horizon under
        shuffled actions over the true change (0 means that actions are ignored);
        `open_loop_NAME`: mean Euclidean error of each quantity at the horizon.
    """
    starts = data.starts(horizon)
    draw = torch.randint(len(starts), (samples,), generator=generator).to(starts.device)
    states, actions = data.windows(starts[draw], horizon)
    context = data.context(starts[draw])
    first, last = states[:, 0], states[:, -1]
    predicted = model.rollout(first, actions, context=context)[:, -1]
    order = torch.randperm(samples, generator=generator).to(starts.device)
    shuffled = model.rollout(first, actions[order], context=context)[:, -1]
    change = (last - first).square().sum(-1).mean().clamp_min(1e-12)
    report = {
        "open_loop_ratio": float((predicted - last).square().sum(-1).mean() / change),
        "action_sensitivity": float((shuffled - predicted).square().sum(-1).mean() / change),
    }
    if readouts is not None:
        true, read = readouts(last), readouts(predicted)
        report |= {
            f"open_loop_{name}": float((read[name] - true[name]).norm(dim=-1).mean())
            for name in readouts.sizes
            if readouts.varies(name)
        }
    return report


@torch.no_grad()
def probe_scores(
    readouts: Readouts, states: Tensor, quantities: Mapping[str, Tensor]
) -> dict[str, float]:
    """R^2 of each named quantity read from states `(N, D)`; constant quantities are left out."""
    read = readouts(states)
    scores = {name: r_squared(read[name], quantities[name].to(states)) for name in readouts.sizes}
    return {f"r2_{name}": score for name, score in scores.items() if score is not None}


def warnings(report: Mapping[str, float]) -> list[str]:
    """Sentences for the user where a report shows a collapsed latent or ignored actions."""
    found = []
    if report["latent_std"] < COLLAPSED_STD:
        found.append(
            f"the latent has collapsed (std {report['latent_std']:.4f} < {COLLAPSED_STD}): raise "
            "losses.variance or losses.sigreg"
        )
    if report["effective_rank"] < COLLAPSED_RANK:
        found.append(
            f"the latent has collapsed to {report['effective_rank']:.1f} dimensions: raise "
            "losses.covariance or losses.sigreg"
        )
    if report["action_sensitivity"] < IGNORED_ACTIONS:
        found.append(
            f"predictions ignore the actions (sensitivity {report['action_sensitivity']:.3f} < "
            f"{IGNORED_ACTIONS}): raise losses.inverse_dynamics or lengthen the unroll"
        )
    return found


def diagnose(
    model: JEPA,
    data: LatentData,
    readouts: Readouts,
    quantities: Mapping[str, Tensor],
    horizon: int,
    generator: torch.Generator,
) -> dict[str, float]:
    """All of the above in one flat report; logs a warning for each alarm."""
    report = examine(model, data, readouts, quantities, horizon, generator)
    for sentence in warnings(report):
        logger.warning(sentence)
    return report


def examine(
    model: JEPA,
    data: LatentData,
    readouts: Readouts,
    quantities: Mapping[str, Tensor],
    horizon: int,
    generator: torch.Generator,
) -> dict[str, float]:
    """The report of `diagnose`, without a word."""
    return {
        "latent_std": latent_std(data.states),
        "effective_rank": effective_rank(data.states[:: 1 + len(data.states) // 8192]),
        **open_loop(model, data, horizon, generator, readouts=readouts),
        **probe_scores(readouts, data.states, quantities),
    }
