"""Linear systems with quadratic cost, where the best plan is known in closed form.

A planner that does not reach `optimal_cost` here has no excuse in the model: every planner is
held to it. Mathematics in float64; costs are sums of

    x_t' Q x_t + u_t' R u_t   over t = 0..H-1,   and   x_H' Q_final x_H

with x_{t+1} = A x_t + B u_t. Source: Bertsekas, Dynamic Programming and Optimal Control, vol. 1,
section 3.1 (4th edition).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray

from forethought.envs.vector import Bools, EpisodicVectorEnv, SingleEnv

Array = NDArray[Any]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LinearQuadratic:
    """A discrete-time linear system and its quadratic cost.

    Attributes:
        A: `(n, n)`.
        B: `(n, m)`.
        Q: `(n, n)`, symmetric and positive semi-definite.
        R: `(m, m)`, symmetric and positive definite.
        Q_final: `(n, n)`, symmetric and positive semi-definite.

    Raises:
        ValueError: A matrix has the wrong shape, is not symmetric, or R is not positive definite.
    """

    A: Floats
    B: Floats
    Q: Floats
    R: Floats
    Q_final: Floats

    def __post_init__(self) -> None:
        for name in ("A", "B", "Q", "R", "Q_final"):
            object.__setattr__(self, name, np.array(getattr(self, name), np.float64))
        if self.B.ndim != 2:
            raise ValueError(f"B has shape {self.B.shape}: give (n, m)")
        n, m = self.B.shape
        expected = {"A": (n, n), "Q": (n, n), "R": (m, m), "Q_final": (n, n)}
        for name, shape in expected.items():
            matrix = getattr(self, name)
            if matrix.shape != shape:
                raise ValueError(f"{name} has shape {matrix.shape}: B {(n, m)} needs {shape}")
            if name != "A" and not np.allclose(matrix, matrix.T):
                raise ValueError(f"{name} is not symmetric: give (M + M') / 2")
        if np.linalg.eigvalsh(self.R).min() <= 0:
            raise ValueError("R is not positive definite: every action must cost something")


def double_integrator(step_seconds: float = 0.1) -> LinearQuadratic:
    """A point (position, velocity) pushed along a line; action 1 accelerates by 1 per s^2."""
    dt = step_seconds
    return LinearQuadratic(
        A=np.array([[1.0, dt], [0.0, 1.0]]),
        B=np.array([[0.5 * dt**2], [dt]]),
        Q=np.diag([1.0, 0.1]),
        R=np.array([[0.01]]),
        Q_final=np.diag([10.0, 1.0]),
    )


def finite_horizon_gains(system: LinearQuadratic, horizon: int) -> tuple[Floats, Floats]:
    """Solve the backward Riccati recursion.

    Args:
        system: Dynamics and cost.
        horizon: Steps `H`.

    Returns:
        Gains `(H, m, n)`, the best action being u_t = -gains[t] x_t, and costs-to-go
        `(H+1, n, n)`, the best remaining cost being x_t' costs[t] x_t.

    Raises:
        ValueError: `horizon` is below 1.
    """
    if horizon < 1:
        raise ValueError(f"horizon is {horizon}: it must be at least 1")
    a, b = system.A, system.B
    n, m = b.shape
    gains, costs = np.empty((horizon, m, n)), np.empty((horizon + 1, n, n))
    costs[horizon] = system.Q_final
    for t in reversed(range(horizon)):
        ahead = costs[t + 1]
        gains[t] = np.linalg.solve(system.R + b.T @ ahead @ b, b.T @ ahead @ a)
        cost = system.Q + a.T @ ahead @ (a - b @ gains[t])
        costs[t] = 0.5 * (cost + cost.T)  # symmetric in exact arithmetic: keep it so
    return gains, costs


def optimal_cost(system: LinearQuadratic, x0: ArrayLike, horizon: int) -> Floats:
    """Lowest cost from the states `x0` `(B, n)` over `horizon` steps. Returns `(B,)`."""
    states = _states(system, x0)
    _, costs = finite_horizon_gains(system, horizon)
    return np.asarray(np.einsum("bi,ij,bj->b", states, costs[0], states), np.float64)


def optimal_actions(system: LinearQuadratic, x0: ArrayLike, horizon: int) -> Floats:
    """Best actions `(B, H, m)` from the states `x0` `(B, n)`, without bounds on actions."""
    states = _states(system, x0)
    gains, _ = finite_horizon_gains(system, horizon)
    actions = np.empty((len(states), horizon, system.B.shape[1]))
    for t in range(horizon):
        actions[:, t] = -states @ gains[t].T
        states = states @ system.A.T + actions[:, t] @ system.B.T
    return actions


def trajectory_cost(system: LinearQuadratic, x0: ArrayLike, actions: ArrayLike) -> Floats:
    """Cost of given actions.

    Args:
        system: Dynamics and cost.
        x0: `(B, n)`.
        actions: `(B, H, m)`.

    Returns:
        `(B,)`.

    Raises:
        ValueError: A shape is wrong.
    """
    states, plan = _states(system, x0), np.asarray(actions, np.float64)
    if plan.ndim != 3 or plan.shape[::2] != (len(states), system.B.shape[1]):
        raise ValueError(
            f"actions have shape {plan.shape}: give ({len(states)}, H, {system.B.shape[1]})"
        )
    total = np.zeros(len(states))
    for t in range(plan.shape[1]):
        total += _quadratic(states, system.Q) + _quadratic(plan[:, t], system.R)
        states = states @ system.A.T + plan[:, t] @ system.B.T
    return total + _quadratic(states, system.Q_final)


def _quadratic(vectors: Floats, matrix: Floats) -> Floats:
    return np.asarray(np.einsum("bi,ij,bj->b", vectors, matrix, vectors), np.float64)


def _states(system: LinearQuadratic, x0: ArrayLike) -> Floats:
    states = np.asarray(x0, np.float64)
    if states.ndim != 2 or states.shape[1] != len(system.A):
        raise ValueError(f"x0 has shape {states.shape}: give (B, {len(system.A)})")
    return states


class DoubleIntegratorVectorEnv(EpisodicVectorEnv):
    """`N` points to be brought to rest at the origin.

    Observation: float32 `(2,)`: position and velocity. Action: `(1,)` in [-1, 1] (clipped), the
    acceleration. Reward: minus the quadratic cost of the step. Starts are uniform in [-1, 1].
    `info["success"]`: within 0.1 of the origin now; episodes have full length.
    `info["quantities"]`: `position`, `velocity` `(N, 1)`.

    Args:
        num_envs: `N`.
        episode_limit: Steps.
        render_mode: Only None: there is nothing to see.
    """

    SUCCESS_RADIUS = 0.1

    def __init__(
        self, num_envs: int = 1, *, episode_limit: int = 100, render_mode: str | None = None
    ) -> None:
        if render_mode is not None:
            raise ValueError(f"render_mode is {render_mode!r}: this environment has no pictures")
        super().__init__(
            num_envs,
            observation_space=spaces.Box(-np.inf, np.inf, (2,), np.float32),
            action_dim=1,
            control_step_seconds=0.1,
            episode_limit=episode_limit,
            render_mode=None,
        )
        self.metadata["render_modes"] = []
        self.system = double_integrator(self.control_step_seconds)
        self._state = np.zeros((num_envs, 2))
        self._origin = np.zeros((num_envs, 2), np.float32)

    def _begin(self, row: int, generator: Generator) -> None:
        self._state[row] = generator.uniform(-1.0, 1.0, 2)

    def _advance(self, actions: Array, active: Bools) -> Array:
        actions = np.clip(actions, -1.0, 1.0)
        cost = _quadratic(self._state, self.system.Q) + _quadratic(actions, self.system.R)
        moved = self._state @ self.system.A.T + actions @ self.system.B.T
        self._state = np.where(active[:, None], moved, self._state)
        self._success = np.linalg.norm(self._state, axis=1) <= self.SUCCESS_RADIUS
        return -cost

    def _observe(self) -> Array:
        return self._state.astype(np.float32)

    def _goals(self) -> Array:
        return self._origin

    def _quantities(self) -> dict[str, Array]:
        state = self._state.astype(np.float32)
        return {"position": state[:, :1], "velocity": state[:, 1:]}


class DoubleIntegrator(SingleEnv):
    """One episode as a `gymnasium.Env`; see `DoubleIntegratorVectorEnv`."""

    def __init__(self, *, episode_limit: int = 100, render_mode: str | None = None) -> None:
        vector = DoubleIntegratorVectorEnv(1, episode_limit=episode_limit, render_mode=render_mode)
        super().__init__(vector, None)
        self.metadata["render_modes"] = []
