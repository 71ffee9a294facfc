"""Losses for learning a latent state without contrast and without collapse.

Every function is pure and takes states with axes `(B, T, D)`. Statistics are taken over B for each
time step by default; `flatten=True` takes them over B*T, which mixes slow and fast factors.
"""

from __future__ import annotations

import torch
from torch import Tensor


def multi_step_prediction(predicted: Tensor, encoded: Tensor) -> Tensor:
    """Mean squared error of an unroll, D(s_y, Pred(s_x, a)) of eq. 10 (LeCun 2022).

    Args:
        predicted: `(B, T, D)` states predicted after each action.
        encoded: `(B, T, D)` states encoded from what was then observed.

    Returns:
        A scalar, the mean over all axes. Gradient flows into both arguments.
    """
    return (predicted - encoded).square().mean()


def _samples_last_but_one(states: Tensor, flatten: bool) -> Tensor:
    """Bring `(B, T, D)` to `(T, B, D)`, or to `(1, B*T, D)` if flattened."""
    return states.reshape(1, -1, states.shape[-1]) if flatten else states.transpose(0, 1)


def variance(
    states: Tensor, *, flatten: bool = False, gamma: float = 1.0, eps: float = 1e-4
) -> Tensor:
    """VICReg's variance term, mean_j max(0, gamma - sqrt(Var_j + eps)) (2105.04906, eq. 1).

    Args:
        states: `(B, T, D)` with B >= 2 (or B*T >= 2 if flattened).
        flatten: take the variance over B*T instead of over B for each time step.
        gamma: standard deviation below which a dimension is pushed apart.
        eps: keeps the square root differentiable at zero.

    Returns:
        A scalar, averaged over dimensions and time steps; the variance is unbiased.
    """
    std = (_samples_last_but_one(states, flatten).var(dim=1) + eps).sqrt()
    return (gamma - std).clamp_min(0).mean()


def covariance(states: Tensor, *, flatten: bool = False) -> Tensor:
    """VICReg's covariance term, sum_{i != j} Cov_ij^2 / D (2105.04906, eq. 3 and 4).

    Args:
        states: `(B, T, D)` with B >= 2 (or B*T >= 2 if flattened).
        flatten: take the covariance over B*T instead of over B for each time step.

    Returns:
        A scalar, averaged over time steps. Other code divides by D(D-1): a weight w there is
        w / (D-1) here.
    """
    x = _samples_last_but_one(states, flatten)
    x = x - x.mean(dim=1, keepdim=True)
    cov = x.transpose(1, 2) @ x / (x.shape[1] - 1)  # (T, D, D)
    diagonal = cov.diagonal(dim1=1, dim2=2)
    return (cov.square().sum((1, 2)) - diagonal.square().sum(1)).mean() / x.shape[-1]


def temporal_similarity(states: Tensor) -> Tensor:
    """Mean of (s_{t+1} - s_t)^2 over `(B, T, D)`; keeps the state slow (PLDM, 2502.14819)."""
    return (states[:, 1:] - states[:, :-1]).square().mean()


def sigreg(
    states: Tensor,
    *,
    generator: torch.Generator | None = None,
    directions: int = 48,
    flatten: bool = False,
) -> Tensor:
    """Sketched isotropic Gaussian regularisation (LeJEPA, 2511.08544; used by 2603.19312).

    The Epps-Pulley statistic of the projections on random unit directions u against N(0, 1):
    B * sum_k w_k [(mean_b cos(t_k u.s_b) - exp(-t_k^2/2))^2 + (mean_b sin(t_k u.s_b))^2]
    with 17 knots t_k in [0, 3] and w the trapezoidal weights (2 dt inside, dt at both ends) times
    exp(-t^2/2). About 1.0 on data drawn from N(0, I).

    Args:
        states: `(B, T, D)`.
        generator: source of the directions, drawn anew at each call.
        directions: number of unit directions.
        flatten: take the statistic over B*T instead of over B for each time step.

    Returns:
        A scalar, the mean over directions and time steps, computed in float32 at least.
    """
    x = _samples_last_but_one(states, flatten)
    x = x if x.dtype == torch.float64 else x.float()
    device = x.device if generator is None else generator.device
    u = torch.randn(x.shape[-1], directions, generator=generator, device=device).to(x)
    u = u / u.norm(dim=0, keepdim=True)
    t = torch.linspace(0, 3, 17, dtype=x.dtype, device=x.device)
    dt = 3 / 16
    weights = torch.full_like(t, 2 * dt)
    weights[0] = weights[-1] = dt
    target = torch.exp(-t.square() / 2)
    angles = (x @ u).unsqueeze(-1) * t  # (T, B, directions, knots)
    error = (angles.cos().mean(1) - target).square() + angles.sin().mean(1).square()
    statistic: Tensor = x.shape[1] * (error @ (weights * target)).mean()
    return statistic
