"""Losses: numbers computed by plain loops, derivatives, and what each loss wants."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from forethought.worldmodel import losses

B, T, D = 5, 3, 4
Loss = Callable[[Tensor], Tensor]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def groups(states: Tensor, flatten: bool) -> list[np.ndarray]:
    """The samples `(n, D)` over which statistics are taken, one array for each time step."""
    x = states.numpy()
    if flatten:
        return [np.array([x[b, t] for b in range(len(x)) for t in range(x.shape[1])])]
    return [np.array([x[b, t] for b in range(len(x))]) for t in range(x.shape[1])]


def covariance_by_hand(samples: np.ndarray, i: int, j: int) -> float:
    mean_i = sum(row[i] for row in samples) / len(samples)
    mean_j = sum(row[j] for row in samples) / len(samples)
    return sum((row[i] - mean_i) * (row[j] - mean_j) for row in samples) / (len(samples) - 1)


def test_prediction_and_temporal_similarity_by_hand() -> None:
    one, other = normal(B, T, D), normal(B, T, D, seed=1)
    total, change = 0.0, 0.0
    for b in range(B):
        for d in range(D):
            for t in range(T):
                total += float(one[b, t, d] - other[b, t, d]) ** 2
            for t in range(T - 1):
                change += float(one[b, t + 1, d] - one[b, t, d]) ** 2
    assert losses.multi_step_prediction(one, other).item() == pytest.approx(total / (B * T * D))
    assert losses.temporal_similarity(one).item() == pytest.approx(change / (B * (T - 1) * D))


def test_small_numbers_on_paper() -> None:
    states = torch.tensor([[[1.0, 2.0]], [[3.0, 6.0]]], dtype=torch.float64)
    # Var = 2 and 8, Cov = 4: two entries of 16 off the diagonal, divided by D = 2.
    assert losses.covariance(states).item() == pytest.approx(16.0)
    assert losses.variance(states, gamma=3.0, eps=0.0).item() == pytest.approx(
        (3 - math.sqrt(2) + 3 - math.sqrt(8)) / 2
    )
    assert losses.multi_step_prediction(states, states + 0.5).item() == pytest.approx(0.25)
    assert losses.temporal_similarity(states.transpose(0, 1)).item() == pytest.approx(10.0)


@pytest.mark.parametrize("flatten", [False, True])
def test_variance_by_hand(flatten: bool) -> None:
    states = normal(B, T, D) * torch.tensor([0.2, 0.7, 1.0, 3.0], dtype=torch.float64)
    states = states + torch.arange(T, dtype=torch.float64).view(T, 1)  # moves with time
    for gamma, eps in ((1.0, 1e-4), (2.0, 0.1)):
        terms = [
            max(0.0, gamma - math.sqrt(covariance_by_hand(samples, j, j) + eps))
            for samples in groups(states, flatten)
            for j in range(D)
        ]
        value = losses.variance(states, flatten=flatten, gamma=gamma, eps=eps)
        assert value.item() == pytest.approx(sum(terms) / len(terms), rel=1e-12)
    assert losses.variance(states, flatten=flatten).item() == pytest.approx(
        losses.variance(states, flatten=flatten, gamma=1.0, eps=1e-4).item()
    )
    assert losses.variance(states).item() > losses.variance(states, flatten=True).item() + 0.01


@pytest.mark.parametrize("flatten", [False, True])
def test_covariance_by_hand(flatten: bool) -> None:
    states = normal(B, T, D)
    states[..., 1] += states[..., 0]
    states = states + torch.arange(T, dtype=torch.float64).view(T, 1)
    sums = []
    for samples in groups(states, flatten):
        pairs = [(i, j) for i in range(D) for j in range(D) if i != j]
        sums.append(sum(covariance_by_hand(samples, i, j) ** 2 for i, j in pairs) / D)
    value = losses.covariance(states, flatten=flatten).item()
    assert value == pytest.approx(sum(sums) / len(sums), rel=1e-12)


@pytest.mark.parametrize("flatten", [False, True])
def test_sigreg_by_hand(flatten: bool) -> None:
    states, directions = normal(B, T, D), 3
    value = losses.sigreg(states, generator=seeded(7), directions=directions, flatten=flatten)
    drawn = torch.randn(D, directions, generator=seeded(7)).double().numpy()
    knots = [3 * k / 16 for k in range(17)]
    values = []
    for samples in groups(states, flatten):
        for column in drawn.T:
            unit = column / math.sqrt(sum(x * x for x in column))
            projected = [sum(a * b for a, b in zip(row, unit, strict=True)) for row in samples]
            statistic = 0.0
            for k, t in enumerate(knots):
                target = math.exp(-t * t / 2)
                weight = (1 if k in (0, 16) else 2) * (3 / 16) * target
                cos = sum(math.cos(t * x) for x in projected) / len(projected)
                sin = sum(math.sin(t * x) for x in projected) / len(projected)
                statistic += weight * ((cos - target) ** 2 + sin**2)
            values.append(len(projected) * statistic)
    assert value.item() == pytest.approx(sum(values) / len(values), rel=1e-9)


def test_sigreg_is_one_on_a_gaussian_and_large_elsewhere() -> None:
    x = normal(256, 16, 8)
    gaussian = losses.sigreg(x, generator=seeded()).item()
    assert gaussian == pytest.approx(1.05, abs=0.15)
    wrong = {
        "collapsed": torch.zeros_like(x),
        "shifted": x + 1,
        "narrow": 0.3 * x,
        "wide": 3 * x,
        "a line": x[..., :1].expand_as(x),
    }
    for name, states in wrong.items():
        assert losses.sigreg(states, generator=seeded()).item() > 10 * gaussian, name


def test_sigreg_draws_new_directions_and_computes_in_float32_at_least() -> None:
    x, generator = normal(16, 1, 8), seeded()
    first, second = (losses.sigreg(x, generator=generator) for _ in range(2))
    assert first != second
    assert first == losses.sigreg(x, generator=seeded())
    assert losses.sigreg(x, generator=seeded(), directions=1) != first
    low = x.to(torch.bfloat16)
    value = losses.sigreg(low, generator=seeded())
    assert value.dtype == torch.float32
    assert value == losses.sigreg(low.float(), generator=seeded())
    assert first.dtype == torch.float64


OVER_BATCH: dict[str, Loss] = {
    "variance": losses.variance,
    "variance, flattened": lambda x: losses.variance(x, flatten=True),
    "covariance": losses.covariance,
    "covariance, flattened": lambda x: losses.covariance(x, flatten=True),
    "sigreg": lambda x: losses.sigreg(x, generator=seeded(), directions=4),
    "sigreg, flattened": lambda x: losses.sigreg(x, generator=seeded(), flatten=True),
    "temporal similarity": losses.temporal_similarity,
    "prediction": lambda x: losses.multi_step_prediction(x, normal(1, 1, D).expand_as(x)),
}


@pytest.mark.parametrize("name", OVER_BATCH)
def test_derivatives_agree_with_finite_differences(name: str) -> None:
    states = (0.5 * normal(B, T, D)).requires_grad_()
    assert torch.autograd.gradcheck(OVER_BATCH[name], (states,))


def test_prediction_sends_gradient_into_both_arguments() -> None:
    pair = (normal(B, T, D).requires_grad_(), normal(B, T, D, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(losses.multi_step_prediction, pair)
    losses.multi_step_prediction(*pair).backward()
    assert pair[0].grad is not None
    assert pair[1].grad is not None
    torch.testing.assert_close(pair[0].grad, -pair[1].grad)
    assert pair[0].grad.abs().min() > 0


@pytest.mark.parametrize("name", OVER_BATCH)
def test_the_order_of_the_batch_does_not_matter(name: str) -> None:
    states, order = normal(B, T, D), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(OVER_BATCH[name](states[order]), OVER_BATCH[name](states))


def test_variance_pushes_a_collapsed_batch_apart_and_leaves_a_wide_one() -> None:
    collapsed = (1e-3 * normal(B, T, D)).requires_grad_()
    value = losses.variance(collapsed)
    assert value.item() > 0.95
    (gradient,) = torch.autograd.grad(value, collapsed)
    centred = (collapsed - collapsed.mean(0)).detach()
    assert (gradient * centred <= 0).all()  # descent moves every state away from the mean
    assert (gradient * centred).sum() < 0
    wide = normal(64, T, D)
    wide = ((wide - wide.mean(0)) / wide.std(0)).requires_grad_()  # a std of 1
    assert losses.variance(wide).item() == 0
    assert losses.variance(0.9 * wide).item() == pytest.approx(0.1, abs=1e-3)
    assert losses.variance(wide, gamma=2.0).item() == pytest.approx(1.0, abs=1e-3)


def test_variance_is_finite_where_all_states_are_equal() -> None:
    states = torch.ones(B, T, D, requires_grad=True)
    losses.variance(states).backward()
    assert states.grad is not None
    assert states.grad.isfinite().all()


def test_covariance_is_zero_for_decorrelated_states_and_falls_along_its_gradient() -> None:
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    states = corners.unsqueeze(1).repeat(1, T, 1) * torch.tensor([2.0, 5.0]) + 7
    assert losses.covariance(states).item() == 0
    assert losses.covariance(states, flatten=True).item() == 0
    tied = normal(64, 1, 1).repeat(1, 1, D) + 0.1 * normal(64, 1, D, seed=1)
    tied.requires_grad_()
    value = losses.covariance(tied)
    (gradient,) = torch.autograd.grad(value, tied)
    assert losses.covariance(tied - 0.1 * gradient / gradient.abs().max()) < value


def test_time_steps_are_apart_unless_flattened() -> None:
    still = torch.arange(T, dtype=torch.float64).view(1, T, 1).expand(B, T, D)  # only time moves
    assert losses.variance(still).item() == pytest.approx(0.99)
    assert losses.variance(still, flatten=True).item() < 0.2
    assert losses.covariance(still).item() == pytest.approx(0, abs=1e-20)
    assert losses.covariance(still, flatten=True).item() > 1
