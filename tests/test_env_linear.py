"""The linear-quadratic reference against solutions found without it."""

from __future__ import annotations

import numpy as np
import pytest

from forethought.envs import (
    LinearQuadratic,
    double_integrator,
    finite_horizon_gains,
    make,
    optimal_actions,
    optimal_cost,
    trajectory_cost,
)


def random_system(seed: int, n: int = 3, m: int = 2) -> LinearQuadratic:
    rng = np.random.default_rng(seed)

    def positive(size: int) -> np.ndarray:
        root = rng.normal(size=(size, size))
        return root @ root.T + 0.1 * np.eye(size)

    a = rng.normal(size=(n, n)) / np.sqrt(n)
    return LinearQuadratic(a, rng.normal(size=(n, m)), positive(n), positive(m), positive(n))


def least_squares(
    system: LinearQuadratic, x0: np.ndarray, horizon: int
) -> tuple[np.ndarray, float]:
    """Best actions and cost as one least-squares problem, by unrolling and Cholesky factors."""
    n, m = system.B.shape
    rows, constants = [], []
    effect, drift = np.zeros((n, horizon * m)), x0.copy()  # x_t = drift + effect @ u
    for t in range(horizon + 1):
        weight = np.linalg.cholesky(system.Q if t < horizon else system.Q_final).T
        rows.append(weight @ effect)
        constants.append(weight @ drift)
        if t < horizon:
            pick = np.zeros((m, horizon * m))
            pick[:, t * m : (t + 1) * m] = np.eye(m)
            rows.append(np.linalg.cholesky(system.R).T @ pick)
            constants.append(np.zeros(m))
            effect, drift = system.A @ effect + system.B @ pick, system.A @ drift
    matrix, constant = np.concatenate(rows), np.concatenate(constants)
    best = np.linalg.lstsq(matrix, -constant, rcond=None)[0]
    return best.reshape(horizon, m), float(np.sum((matrix @ best + constant) ** 2))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("horizon", [1, 2, 7])
def test_riccati_agrees_with_least_squares(seed: int, horizon: int) -> None:
    system = random_system(seed)
    x0 = np.random.default_rng(100 + seed).normal(size=(2, 3))
    costs, plans = optimal_cost(system, x0, horizon), optimal_actions(system, x0, horizon)
    for row in range(2):
        actions, cost = least_squares(system, x0[row], horizon)
        np.testing.assert_allclose(plans[row], actions, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(costs[row], cost, rtol=1e-9)
    np.testing.assert_allclose(trajectory_cost(system, x0, plans), costs, rtol=1e-9)


def test_every_other_plan_costs_more() -> None:
    system, horizon = double_integrator(), 12
    x0 = np.array([[1.0, -0.5]])
    best = optimal_actions(system, x0, horizon)
    rng = np.random.default_rng(0)
    others = best + 0.01 * rng.normal(size=(50, horizon, 1))
    costs = trajectory_cost(system, np.repeat(x0, 50, 0), others)
    assert (costs > optimal_cost(system, x0, horizon)).all()


def test_one_step_by_hand() -> None:
    """x = 2, A = B = Q = R = Q_final = 1: minimise 4 + u^2 + (2 + u)^2, so u = -1, cost 6."""
    one = np.ones((1, 1))
    system = LinearQuadratic(one, one, one, one, one)
    gains, costs = finite_horizon_gains(system, 1)
    assert gains.shape == (1, 1, 1)
    assert costs.shape == (2, 1, 1)
    np.testing.assert_allclose(gains[0], 0.5)
    np.testing.assert_allclose(optimal_cost(system, [[2.0]], 1), [6.0])
    np.testing.assert_allclose(trajectory_cost(system, [[2.0]], [[[-1.0]]]), [6.0])


def test_environment_follows_the_system() -> None:
    env = make("forethought/DoubleIntegrator-v0", 4, episode_limit=10)
    system = double_integrator()
    _, info = env.reset(seed=0)
    np.testing.assert_array_equal(info["goal"], 0)
    x0 = env.unwrapped._state.copy()
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 10, 1))
    paid = np.zeros(4)
    for t in range(10):
        observations, rewards, terminated, truncated, info = env.step(actions[:, t])
        paid -= rewards
    final = env.unwrapped._state
    terminal = np.einsum("bi,ij,bj->b", final, system.Q_final, final)
    np.testing.assert_allclose(paid + terminal, trajectory_cost(system, x0, actions), rtol=1e-12)
    np.testing.assert_allclose(observations, final, rtol=1e-6)
    np.testing.assert_array_equal(info["quantities"]["position"][:, 0], observations[:, 0])
    assert truncated.all()
    assert not terminated.any()


def test_environment_clips_and_the_riccati_policy_reaches_the_origin() -> None:
    gain = finite_horizon_gains(double_integrator(), 200)[0][0]
    env = make("forethought/DoubleIntegrator-v0", 32)
    observations, _ = env.reset(seed=0)
    for _ in range(100):
        observations, _, _, _, info = env.step(np.clip(-observations @ gain.T, -1, 1))
    assert info["success"].all()
    one, other = (make("forethought/DoubleIntegrator-v0") for _ in range(2))
    one.reset(seed=0)
    other.reset(seed=0)
    np.testing.assert_array_equal(one.step([[5.0]])[0], other.step([[1.0]])[0])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("A", np.eye(3), "A has shape"),
        ("Q", np.array([[1.0, 1.0], [0.0, 1.0]]), "Q is not symmetric"),
        ("R", np.zeros((1, 1)), "R is not positive definite"),
        ("B", np.ones(2), "B has shape"),
    ],
)
def test_system_refuses(field: str, value: np.ndarray, message: str) -> None:
    good = vars(double_integrator())
    with pytest.raises(ValueError, match=message):
        LinearQuadratic(**{**good, field: value})


def test_functions_refuse() -> None:
    system = double_integrator()
    with pytest.raises(ValueError, match="horizon is 0"):
        finite_horizon_gains(system, 0)
    with pytest.raises(ValueError, match="x0 has shape"):
        optimal_cost(system, [[1.0, 2.0, 3.0]], 2)
    with pytest.raises(ValueError, match="actions have shape"):
        trajectory_cost(system, [[1.0, 2.0]], np.zeros((2, 3, 1)))
