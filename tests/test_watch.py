"""The watch: imagined beside realised, shares and steps of thinking, curves, rows that leave."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_agent import EFFORT, Plane, agent_of, critic_of, policy_of, seeded
from test_loop import Ring, ring_agent, ring_policy
from torch import nn

from forethought.agent import (
    Adjustment,
    Agent,
    AgentController,
    Cost,
    Effort,
    Outcome,
    Posture,
    Recall,
    Task,
    TaskTerm,
    Thinking,
    Watch,
    run_episodes,
)
from forethought.agent.alarm import Gap, Gaps
from forethought.planners import Gradient
from forethought.worldmodel import Readouts

SEEDS = list(range(36))

HOME = Task(
    {
        "home": TaskTerm(Posture("position", (0.0, 0.0), scale=0.5), weight=0.1),
        "effort": TaskTerm(Effort(), weight=0.01),
    },
    goal=True,
)
"""Reach the goal, and would rather be at home: quantities that the environment tells too."""


def reading(gain: float = 1.0, bias: float = 0.0) -> Readouts:
    """Readouts that tell gain * s + bias as the position: the truth, or a lie."""
    readouts = Readouts(2, {"position": 2})
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(gain * torch.eye(2))
        layer.bias.fill_(bias)
    readouts.layers = nn.Sequential(layer)
    return readouts


def walker(readouts: Readouts | None = None, **options: Any) -> Agent:
    options = {"cost": Cost(horizon=4), "task": HOME} | options
    planner = options.pop("planner", Gradient(starts=3, iterations=10))
    return agent_of(planner, readouts=readouts or reading(), **options)


def watched(agent: Agent, num_envs: int = 16, **options: Any) -> tuple[Watch, list[Outcome]]:
    """Three blocks of episodes, from which rows leave as they reach their goals."""
    watch = Watch(agent, **options)
    controller = AgentController(agent, seeded())
    outcomes = run_episodes(Plane(num_envs), controller, SEEDS, on_step=watch)
    assert len({outcome.decisions for outcome in outcomes}) > 3
    return watch, outcomes


# --- realised beside imagined


def test_an_exact_model_leaves_no_gap_whoever_leaves_and_however_many_blocks() -> None:
    watch, outcomes = watched(walker())
    found = watch.summary()
    for name in ("home", "effort"):
        assert found[f"imagined_{name}"] == pytest.approx(found[f"realised_{name}"], abs=1e-5)
        assert abs(found[f"gap_{name}"]) < 1e-5
    assert found["realised_home"] > 0.1
    assert found["cost_alarms"] == 0
    assert watch.sentence() is None
    # Each decision but an episode's first is compared with the one before it, once.
    assert watch.monitor is not None
    compared = sum(outcome.decisions - 1 for outcome in outcomes)
    assert watch.monitor.found.next.count.tolist() == [compared] * 2
    assert dict(watch.curves())[1]["surprise"] < 1e-10
    # Squares would not cancel: what the readouts told is what the environment told, at each time.
    for _, curve in watch.curves()[1:]:
        assert curve["told_home"] == pytest.approx(curve["realised_home"], abs=1e-5)
        assert curve["told_effort"] == pytest.approx(curve["realised_effort"], abs=1e-5)


def test_rows_are_compared_with_their_own_plans() -> None:
    """Row by row: without a word when a row leaves, another row's plan would be looked at."""
    agent = walker()
    watch, controller = Watch(agent), AgentController(agent, seeded())
    gaps: list[float] = []

    def step(running: Any, observation: Any, info: Any, carried: Any) -> None:
        before = watch.monitor.found.next if watch.monitor is not None else Gap.none(2)
        watch(running, observation, info, carried)
        assert watch.monitor is not None
        after = watch.monitor.found.next
        imagined, realised = after.imagined - before.imagined, after.realised - before.realised
        gaps.append(float((imagined - realised).abs().max()))

    run_episodes(Plane(16), controller, SEEDS, on_step=step)
    assert len(gaps) > 12
    assert max(gaps) < 1e-4


@pytest.mark.parametrize("mode", [2, "auto"])
def test_readouts_that_lie_raise_the_alarm(mode: Any) -> None:
    """They call every place home; the plans believe it."""
    options: dict[str, Any] = {"mode": mode, "policy": policy_of()} if mode == "auto" else {}
    agent = walker(reading(gain=0.0), **options)
    thinking = Thinking(price=0.02, share=1.0)
    agent = replace(agent, configurator=replace(agent.configurator, thinking=thinking))
    watch, _ = watched(agent)
    found = watch.summary()
    assert found["imagined_home"] == pytest.approx(0.0, abs=1e-6)
    assert found["gap_home"] > 0.2
    assert found["gap_home_ahead"] > 0.2
    assert abs(found["gap_effort"]) < 1e-5
    assert watch.monitor is not None
    assert {name for _, name in watch.monitor.alarms} == {"home"}
    sentence = watch.sentence()
    assert sentence is not None
    assert "the planner exploits the model in cost term 'home'" in sentence


def test_a_gap_that_recorded_actions_have_too_is_no_alarm() -> None:
    def gap(value: float) -> Gap:
        one = torch.tensor([value, 0.0]).double()
        return Gap(torch.zeros(2).double(), one, torch.ones(2).double())

    agent = walker(reading(gain=0.0))
    loud, _ = watched(agent)
    gaps = loud.summary()
    base = Gaps(gap(gaps["gap_home"]), gap(gaps["gap_home_ahead"]))
    quiet, _ = watched(agent, baseline=base)
    assert quiet.sentence() is None
    assert quiet.summary()["recorded_gap_home"] == pytest.approx(gaps["gap_home"])


def test_a_model_that_pushes_the_wrong_way_is_noticed() -> None:
    agent = walker(planner=Gradient(starts=3, iterations=10))
    with torch.no_grad():
        agent.model.predictor.push.neg_()  # type: ignore[union-attr, operator]
    watch = Watch(agent)
    run_episodes(Plane(16), AgentController(agent, seeded()), SEEDS, on_step=watch)
    assert abs(watch.summary()["gap_home"]) > 0.01
    assert dict(watch.curves())[1]["surprise"] > 1e-3


def test_ahead_is_shortened_to_the_horizon() -> None:
    watch, _ = watched(walker())
    assert watch.monitor is not None
    assert watch.monitor.ahead == 4
    assert Watch(walker(), ahead=2).monitor.ahead == 2  # type: ignore[union-attr]


def test_a_weight_that_only_a_setting_gives_is_watched_and_one_it_takes_is_not() -> None:
    idle = replace(EFFORT, terms={"effort": TaskTerm(Effort(), weight=0.0)})
    agent = agent_of(task=idle, cost=Cost(horizon=4))
    assert Watch(agent).monitor is None
    for task, weight in ((idle, 0.5), (EFFORT, 0.0)):
        adjust = Adjustment(weights={"effort": weight})
        agent = agent_of(task=task, cost=Cost(horizon=4))
        agent = replace(agent, configurator=replace(agent.configurator, adjust=adjust))
        assert (Watch(agent).monitor is None) == (weight == 0)


# --- shares, steps, curves


def test_shares_and_steps_of_each_mode() -> None:
    planner = Gradient(starts=2, iterations=3)  # 4 evaluations of 2 starts of 4 steps
    two, _ = watched(walker(planner=planner))
    assert two.summary()["thinking_share"] == 1
    assert two.summary()["model_steps_per_decision"] == pytest.approx(32)
    one = Watch(agent := walker(planner=planner, mode=1, policy=policy_of()))
    run_episodes(Plane(16), AgentController(agent, seeded()), SEEDS, on_step=one)
    assert one.summary()["thinking_share"] == one.summary()["model_steps_per_decision"] == 0
    assert "gap_home" not in one.summary()  # nothing was imagined
    agent = walker(planner=planner, mode="auto", policy=policy_of())
    thinking = Thinking("random", price=0.5, share=1.0)
    agent = replace(agent, configurator=replace(agent.configurator, thinking=thinking))
    auto = Watch(agent)
    outcomes = run_episodes(Plane(16), AgentController(agent, seeded()), SEEDS, on_step=auto)
    share, steps = (auto.summary()[k] for k in ("thinking_share", "model_steps_per_decision"))
    assert share == pytest.approx(0.5, abs=0.1)
    # The policy's way and each cheap proposal take 4 steps, a plan 32 more.
    decisions = sum(outcome.decisions for outcome in outcomes)
    assert steps == pytest.approx(12 - 4 * len(SEEDS) / decisions + 32 * share, rel=1e-4)


def test_plans_that_are_carried_out_for_several_steps_are_compared_too() -> None:
    watch, outcomes = watched(walker(cost=Cost(horizon=4, replan_every=3)))
    found = watch.summary()
    thought = sum(-(-outcome.decisions // 3) for outcome in outcomes)
    decisions = sum(outcome.decisions for outcome in outcomes)
    assert found["thinking_share"] == pytest.approx(thought / decisions)
    assert watch.monitor is not None
    assert watch.monitor.found.next.count.tolist() == [decisions - len(outcomes)] * 2
    assert abs(found["gap_home"]) < 1e-5
    assert abs(found["gap_effort"]) < 1e-5


def test_curves_are_means_over_the_episodes_that_last() -> None:
    agent = replace(walker(critic=critic_of(2, 0.8)), recall=Recall())
    watch, outcomes = watched(agent)
    curves = watch.curves()
    assert [time for time, _ in curves] == list(range(max(o.decisions for o in outcomes)))
    first = dict(curves)[0]
    assert first["thought"] == 1
    assert "surprise" not in first  # it is nobody's, and no number
    assert "coverage" not in first
    assert 0 < dict(curves)[1]["coverage"] < 1
    # Where an episode begins, the environment knows; of all blocks alike.
    home = []
    for seed in SEEDS:
        _, info = (env := Plane(1)).reset(seed=seed)
        d = np.square(info["quantities"]["position"][0])
        home.append((d / (d + 0.25)).mean())
        env.close()
    assert first["realised_home"] == pytest.approx(np.mean(home), rel=1e-4)
    assert 0 < first["critic"] < 0.11


def test_who_has_seen_nothing_says_nothing() -> None:
    watch = Watch(walker())
    assert watch.summary() == {}
    assert watch.curves() == []
    assert watch.sentence() is None


def test_discrete_agents_and_tasks_without_costs_are_watched() -> None:
    agent = ring_agent(mode="auto", policy=ring_policy())
    thinking = Thinking(price=0.5, share=1.0)
    agent = replace(agent, configurator=replace(agent.configurator, thinking=thinking))
    there = Task({"there": TaskTerm(Posture("state", (0.0,)), weight=0.1)}, goal=True)
    for task in (agent.configurator.task, there):
        one = replace(agent, configurator=replace(agent.configurator, task=task))
        watch = Watch(one)
        outcomes = run_episodes(
            Ring(5), AgentController(one, seeded()), list(range(12)), on_step=watch
        )
        assert {"thinking_share", "model_steps_per_decision"} <= set(watch.summary())
        assert 0 < watch.summary()["thinking_share"] < 1
        assert len(watch.curves()) == max(o.decisions for o in outcomes)
        # Nobody but the encoder tells the latent state, so there is nothing to compare.
        assert "gap_there" not in watch.summary()
