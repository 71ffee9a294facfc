"""Whether the critic tells the truth: what it expected against what came (section 3.3).

Everything is on the scale of (1 - gamma) TC, averages of future cost in [0, 1], whatever gamma is.
What is returned is plain numbers in plain dictionaries, ready for JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from forethought.agent.cost.critic import Critic
from forethought.worldmodel import LatentData

Numbers = dict[str, Any]


@torch.no_grad()
def realised(
    data: LatentData, costs: Tensor, end: Tensor, discount: float, *, tail: float = 0.1
) -> tuple[Tensor, Tensor]:
    """What came of each state: (1 - gamma) times the discounted sum of costs to the episode's end.

    Nothing is bootstrapped. Behind a termination e_end goes on for ever; behind a truncation there
    is nothing, so that up to gamma^remaining of an average of 1 is missing. States where that is
    `tail` or more do not count.

    Args:
        data: cached latents of whole episodes.
        costs: intrinsic terms of the state after each action, `(N, n)`; rows at the end of an
            episode are not read.
        end: e_end per term, `(n,)`.
        discount: gamma per decision.
        tail: largest share of the weights that may be missing.

    Returns:
        Realised averages `(N, n)`, and which of them count, `(N,)` bool.
    """
    if not 0 < discount < 1:
        raise ValueError(f"discount is {discount}: choose it in (0, 1), the critic's")
    if not 0 < tail <= 1:
        raise ValueError(f"tail is {tail}: choose it in (0, 1]")
    left = data.remaining
    row = torch.arange(len(left), device=left.device)
    ended = data.terminal[(row + left - 1).clamp_min(0)]
    # At an episode's last row stands what comes after it.
    came = torch.where((ended & (left == 0))[:, None], end, torch.zeros_like(costs))
    for steps in range(1, int(left.max()) + 1):
        rows = (left == steps).nonzero().squeeze(1)
        came[rows] = (1 - discount) * costs[rows] + discount * came[rows + 1]
    enough = torch.pow(discount, left.double()) < tail
    return came, (left > 0) & (ended | enough)


@torch.no_grad()
def calibration(
    critic: Critic,
    states: Tensor,
    returns: Tensor,
    *,
    names: Sequence[str] | None = None,
    bins: int = 10,
) -> Numbers:
    """Predicted against realised averages of future cost, term by term.

    Args:
        critic: trained in the form "td"; its `average` is what is predicted.
        states: `(M, D)`.
        returns: realised averages of these states, `(M, n)`; see `realised`.
        names: names of the terms; by default their numbers.
        bins: groups of equally many states, from the lowest prediction to the highest.

    Returns:
        `count` of states, and under `terms`, by name: `bins`, each with the means `predicted` and
        `realised` and its `count`; `slope` of the line of realised upon predicted (1: calibrated);
        `correlation`; `mean_absolute_error`; `bias`, predicted minus realised. Slope and
        correlation are None where nothing varies.

    Raises:
        ValueError: sizes do not fit, or there is no state.
    """
    if not len(states):
        raise ValueError(
            "there are 0 states to calibrate with: give longer episodes, or a larger tail"
        )
    if not 1 <= bins <= len(states):
        raise ValueError(f"bins is {bins}: choose 1 to {len(states)}, the number of states")
    predicted = critic.average(states).double()
    if returns.shape != predicted.shape:
        raise ValueError(
            f"returns are {tuple(returns.shape)}: give {tuple(predicted.shape)}, one for each "
            "state and term"
        )
    names = [str(term) for term in range(returns.shape[1])] if names is None else list(names)
    if len(names) != returns.shape[1]:
        raise ValueError(f"names are {names}: give {returns.shape[1]}, one for each term")
    columns = zip(names, predicted.unbind(1), returns.double().unbind(1), strict=True)
    return {
        "count": len(states),
        "terms": {name: _agreement(told, came, bins) for name, told, came in columns},
    }


@torch.no_grad()
def reweighting(critic: Critic, retrained: Critic, states: Tensor, u: Tensor) -> Numbers:
    """Heads re-weighted by another u against a critic that was trained for their weighted sum.

    Args:
        critic: one output per term.
        retrained: one output, trained with the cost that `weighted` makes of the terms.
        states: `(M, D)`.
        u: the new weights, `(n,)`, not negative, their sum above 0.

    Returns:
        `reweighted` and `retrained`, averages of the weighted cost of each state (lists, in the
        order of `states`), and `slope`, `correlation` and `mean_absolute_error` as in
        `calibration`, with the re-weighted ones as what is predicted.
    """
    one, other = weighted(critic.average(states), u), retrained.average(states)
    if other.shape[1] != 1:
        raise ValueError(
            f"retrained has {other.shape[1]} terms: give a critic of their sum, with 1"
        )
    told, came = one[:, 0].double(), other[:, 0].double()
    agreement = _agreement(told, came, 1)
    del agreement["bins"]
    return {"reweighted": told.tolist(), "retrained": came.tolist(), **agreement}


def weighted(costs: Tensor, u: Tensor) -> Tensor:
    """One cost in [0, 1] of terms `(..., n)`: their mean under the weights u `(n,)`, `(..., 1)`."""
    if bool((u < 0).any()) or not float(u.sum()) > 0:
        raise ValueError(f"u is {u.tolist()}: choose weights of 0 or more, one of them above 0")
    return (costs * (u / u.sum())).sum(-1, keepdim=True)


def _agreement(predicted: Tensor, realised: Tensor, bins: int) -> Numbers:
    """Numbers of one term, of `(M,)` each, in float64."""
    order = predicted.argsort()
    groups = zip(
        predicted[order].tensor_split(bins), realised[order].tensor_split(bins), strict=True
    )
    told, came = predicted - predicted.mean(), realised - realised.mean()
    product, variance, other = (
        float((a * b).mean()) for a, b in ((told, came), (told, told), (came, came))
    )
    error = predicted - realised
    return {
        "bins": [
            {"predicted": float(p.mean()), "realised": float(r.mean()), "count": len(p)}
            for p, r in groups
        ],
        "slope": product / variance if variance > 0 else None,
        "correlation": product / (variance * other) ** 0.5 if variance * other > 0 else None,
        "mean_absolute_error": float(error.abs().mean()),
        "bias": float(error.mean()),
    }
