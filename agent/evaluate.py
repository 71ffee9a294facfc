"""Evaluation: success with Wilson intervals, returns with bootstrap intervals, time beside both.

Held-out means environment seeds of 10^6 and above, which collection never uses. Success is the
environment's own criterion. Milliseconds per decision are measured with one environment, encoder
included, because that is what an agent in the world would wait for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from forethought.agent.agent import Agent, AgentState
from forethought.agent.loop import AgentController, Controller, Outcome, run_episodes
from forethought.envs import HELD_OUT_SEED


def held_out_seeds(episodes: int, seed: int = 0) -> list[int]:
    """Seeds of held-out episodes; evaluations with different `seed` do not overlap."""
    if not 0 < episodes <= 10_000:
        raise ValueError(f"episodes is {episodes}: choose between 1 and 10000")
    if seed < 0:
        raise ValueError(f"seed is {seed}: choose 0 or more")
    first = HELD_OUT_SEED + 10_000 * seed
    return list(range(first, first + episodes))


def wilson(successes: int, episodes: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927); 95 % with the default `z`."""
    if episodes < 1:
        raise ValueError("an interval needs at least one episode")
    p, n = successes / episodes, episodes
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_mean(
    groups: Sequence[Sequence[float]], *, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a mean, resampling groups (training seeds), then episodes in each."""
    if not groups or not all(len(group) for group in groups):
        raise ValueError("an interval needs at least one episode in every group")
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(group, float) for group in groups]
    means = np.empty(draws)
    for draw in range(draws):
        chosen = rng.integers(len(arrays), size=len(arrays))
        means[draw] = np.mean([rng.choice(arrays[i], len(arrays[i])).mean() for i in chosen])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Timing:
    """Milliseconds per decision of one environment: mean and 95th percentile."""

    ms_per_decision: float
    p95_ms: float


def time_decisions(
    env: VectorEnv, controller: Controller, seeds: Sequence[int], decisions: int
) -> Timing:
    """Time single decisions, encoder included, after one episode to warm up.

    Args:
        env: a vector environment with one environment.
        controller: what acts.
        seeds: seeds of the episodes to use; at least two.
        decisions: stop after the episode that completes this many.
    """
    if env.num_envs != 1:
        raise ValueError(f"decisions are timed with 1 environment, not {env.num_envs}")
    run_episodes(env, controller, seeds[:1])
    seconds: list[float] = []
    for seed in seeds[1:]:
        seconds += run_episodes(env, controller, [seed])[0].decision_seconds
        if len(seconds) >= decisions:
            break
    ms = 1000 * np.asarray(seconds)
    return Timing(float(ms.mean()), float(np.quantile(ms, 0.95)))


def summarise(outcomes: Sequence[Outcome]) -> dict[str, float | int]:
    """Success rate (or mean return where there is no criterion) with its 95 % interval."""
    n = len(outcomes)
    if outcomes[0].success is not None:
        wins = sum(bool(outcome.success) for outcome in outcomes)
        low, high = wilson(wins, n)
        return {"episodes": n, "success_rate": wins / n, "ci95_low": low, "ci95_high": high}
    returns = [outcome.return_ for outcome in outcomes]
    low, high = bootstrap_mean([returns])
    return {
        "episodes": n,
        "return_mean": float(np.mean(returns)),
        "ci95_low": low,
        "ci95_high": high,
    }


def price_for(
    agent: Agent,
    env: VectorEnv,
    seeds: Sequence[int],
    generator: torch.Generator,
    *,
    passes: int = 6,
    tolerance: float = 0.02,
) -> float:
    """The price of thinking at which mode `auto` thinks about the share that it is told.

    Runs the episodes with a price and takes a quantile of the signals seen there for the next one.
    What is thought about changes where the agent goes, and so the signals: thinking lowers them,
    and the quantile at the share itself falls short again and again (on a toy, 16 % instead of 40
    after three passes). Hence the quantile is taken as far beyond the share as the last one fell
    short; and between a price that thought too little and one that thought too much the next one
    is interpolated.

    Args:
        agent: in mode `auto`; its own price is not read.
        env: a vector environment.
        seeds: seeds of the episodes, which should not be held out.
        generator: source of the planner's randomness.
        passes: how often at most, 2 or more; the first pass never thinks (almost).
        tolerance: how far from the share is near enough.

    Returns:
        Of the prices that were tried the one whose share came nearest.
    """
    if passes < 2:
        raise ValueError(f"passes is {passes}: choose 2 or more, the first one tries no price")
    if not seeds:
        raise ValueError("seeds are none: give at least one episode to find a price with")
    thinking = agent.configurator.thinking
    if thinking.signal == "random":
        return 1 - thinking.share
    low, high = (-_NEVER, 1.0), (_NEVER, 0.0)  # prices that bound all later ones, their shares
    price, nearest, best = _NEVER, math.inf, _NEVER
    every = np.zeros(0)
    for _ in range(passes):
        signals, share = _signals(agent, env, seeds, generator, price)
        if abs(share - thinking.share) < nearest:
            nearest, best = abs(share - thinking.share), price
        if nearest <= tolerance:
            break
        low, high = (low, (price, share)) if share < thinking.share else ((price, share), high)
        every = np.concatenate((every, signals))
        if low[0] > -_NEVER and high[0] < _NEVER:
            price = _between(low, high, thinking.share)
        elif thinking.signal == "regret" and thinking.share:
            # It grows by so much in each decision: the price is the time between plans. But what
            # has been planned grows more slowly, hence the square. Where nothing was, half of
            # what it grew to is its median.
            grown = 2 * float(np.median(signals)) * len(seeds) / len(signals)
            price = price * (share / thinking.share) ** 2 if share else grown / thinking.share
        else:
            # As far again beyond the share as it was missed by, but no more than half the rest.
            beyond = thinking.share * (thinking.share / share if share else 1.0)
            beyond = min(beyond, 0.5 * (1 + thinking.share))
            price = float(np.quantile(signals, 1 - beyond))
        if not low[0] < price < high[0]:
            between = every[(every > low[0]) & (every < high[0])]
            if not len(between):
                break
            price = float(np.median(between))
    return best


def _between(low: tuple[float, float], high: tuple[float, float], share: float) -> float:
    """A price between two with their shares, by powers where that makes sense."""
    prices, shares = np.array((high[0], low[0])), np.array((high[1], low[1]))
    if min(low[0], high[1], share) > 0:
        return float(np.exp(np.interp(np.log(share), np.log(shares), np.log(prices))))
    return float(np.interp(share, shares, prices))


_NEVER = 1e30  # a price that only an infinite signal exceeds


def _signals(
    agent: Agent, env: VectorEnv, seeds: Sequence[int], generator: torch.Generator, price: float
) -> tuple[np.ndarray, float]:
    """Signals at the decisions of mode `auto` with a price, and the share thought about."""
    thinking = replace(agent.configurator.thinking, price=price, share=1.0)
    configurator = replace(agent.configurator, mode="auto", thinking=thinking)
    signals: list[Tensor] = []
    thought: list[Tensor] = []

    def note(running: Any, observation: Any, info: Any, carried: AgentState) -> None:
        assert carried.mind is not None
        signals.append(carried.mind.signal.cpu())
        thought.append(carried.mind.thought.cpu())

    controller = AgentController(replace(agent, configurator=configurator), generator)
    run_episodes(env, controller, seeds, on_step=note)
    seen = torch.cat(signals).double().nan_to_num(0.0, _NEVER, -_NEVER).numpy()
    return seen, float(torch.cat(thought).double().mean())


Positions = np.ndarray
Crosses = Callable[[Positions, Positions], np.ndarray]


def violation_rate(path: np.ndarray, crosses: Crosses) -> float:
    """Share of imagined trajectories that pass through a wall at some step.

    Losses and probes do not show that a wall is permeable in the model; this does.

    Args:
        path: positions read from imagined states, `(N, H+1, 2)`.
        crosses: tells for starts `(N, 2)` and ends `(N, 2)` whether the way between is blocked.
    """
    hit = np.zeros(len(path), bool)
    for t in range(path.shape[1] - 1):
        hit |= crosses(path[:, t], path[:, t + 1])
    return float(hit.mean())
