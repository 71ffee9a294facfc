"""Success against time: which planner to take when a decision may take so many milliseconds.

    python benchmarks/frontier.py --tasks arm two-rooms=two-rooms random=runs/random \
        reacher=runs/reacher --out benchmarks/results/frontier.jsonl
    python benchmarks/frontier.py --table --out benchmarks/results/frontier.jsonl

Each planner plans one problem at a time, as a robot would, with a deadline that includes encoding.
For each task, planner and budget its size (candidates or starts) is chosen on development episodes,
then held-out episodes are played. An iteration that has begun is finished, so that a decision can
take longer than its budget: the measured time is what the Pareto front is drawn over, not the
budget. The file gets a line per measurement as soon as it is made; a second call goes on where the
first one stopped. `FILE.json` beside it holds the rows and the fronts.

`--clock steps` counts the calls of the model instead of seconds, at the price that one call for one
problem had when it was calibrated (lines `calibration` of the file; `--calibrate` makes them and
stops): with the calibration of an idle machine it can be used on one that does other things as
well, and plays `--batch` episodes side by side, each with the calls that it would have had alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from forethought import load, planners
from forethought.agent import (
    AgentController,
    Controller,
    Outcome,
    PolicyController,
    held_out_seeds,
    run_episodes,
    wilson,
)
from forethought.envs import HELD_OUT_SEED, Policy, arm, make
from forethought.envs.arm import model as arm_model
from forethought.planners import Deadline, Plan, Planner, Problem, shift
from forethought.run_folder import commit
from forethought.running import Trained, baselines_of

RESULTS = Path(__file__).parent / "results" / "frontier.jsonl"
BUDGETS = (2.0, 5.0, 10.0, 20.0, 50.0)
DEVELOPMENT = HELD_OUT_SEED - 300_000  # first seed of the episodes that sizes are chosen on
FITS = 1.15  # share of the budget that a decision of a chosen size may take in the median
MANY = 1000  # iterations; the deadline ends them
SHORT = 3  # iterations of a planner that another one goes on from

Row = dict[str, Any]
ClockName = Literal["wall", "steps"]


# --- The arm, with exact dynamics.

# Of 16 development episodes, 60 steps each, CEM (64 candidates, 4 iterations) solved 81 % and
# Gradient (8 starts, 10 iterations) 75 %. With a linear cost of closeness (margin 0.03, weight 10)
# they solved 75 and 69 %, or 75 and 75 % with horizon 20. The differences are within the noise:
# the square is kept because it is smooth.
ARM_HORIZON = 12
ARM_MARGIN = 0.06  # arm lengths from an obstacle at which its cost begins
ARM_WEIGHT = 20.0  # cost of touching an obstacle with one link, in arm lengths from the target


def arm_problem(
    states: Tensor,
    targets: Tensor,
    obstacles: Tensor,
    horizon: int,
    *,
    max_step: float = 0.1,
    contact: bool = False,
    margin: float = ARM_MARGIN,
    weight: float = ARM_WEIGHT,
) -> Problem:
    """The planning problem of `forethought/Arm-v0`: distance to the target, and from obstacles.

    The energy is sum_t |tip_t - target| + weight sum max(0, 1 - clearance / margin)^2, the last
    sum over links, obstacles, and the end and the middle of every step.

    Args:
        states: Angles `(B, 7)`.
        targets: `(B, 2)`.
        obstacles: `(B, K, 3)`.
        horizon: H.
        max_step: Radians that action 1 turns a joint by.
        contact: Let blocked moves not happen, as the environment does: exact for every plan, but
            slow, and without a gradient past a contact. Without it the roll-out is one sum, exact
            for every plan that touches nothing; the cost keeps plans from touching.
        margin: In arm lengths, above 0.
        weight: In arm lengths.
    """
    if not margin > 0:
        raise ValueError(f"margin is {margin}: choose above 0")

    def step(state: Tensor, action: Tensor, latent: Any, context: Any, t: int) -> Tensor:
        if contact:
            return arm_model.step(state, action, context["obstacles"], max_step)
        return state + max_step * action

    def rollout(state: Tensor, actions: Tensor, latents: Any, context: Any) -> Tensor:
        return state.unsqueeze(1) + max_step * actions.cumsum(1)

    def cost(state: Tensor, action: Tensor, after: Tensor, context: Any, t: Tensor) -> Tensor:
        points = arm_model.joints(torch.stack((0.5 * (state + after), after), -2))
        gap = points[..., 1, -1, :] - context["target"]  # (B, S, H, 2)
        distance = (gap.square().sum(-1) + 1e-4).sqrt()  # smooth within 0.01 of the target
        clear = arm_model.clearances(points, context["obstacles"].unsqueeze(-3))
        near = (1.0 - clear / margin).clamp_min(0.0).square()
        return distance + weight * near.sum((-3, -2, -1))

    bound = torch.ones_like(states[0])
    return Problem(
        state=states,
        step=step,
        rollout=None if contact else rollout,
        horizon=horizon,
        low=-bound,
        high=bound,
        stage_cost=cost,
        context={"target": targets, "obstacles": obstacles},
    )


@dataclass(frozen=True)
class ArmController(Controller):
    """Replans at each step from the true configuration, with the shifted last plan among starts."""

    planner: Planner
    generator: torch.Generator
    horizon: int = ARM_HORIZON

    def start(self, observation: Any, info: Mapping[str, Any]) -> Tensor | None:
        """Nothing is planned yet."""
        return None

    def act(
        self, carried: Tensor | None, observation: Any, info: Mapping[str, Any]
    ) -> tuple[np.ndarray, Tensor]:
        """Plan; carry on the rest of the plan, `(B, H, 7)`."""
        true = info["arm"]
        targets = arm.joints(true["goal_angles"])[:, -1]
        parts = (true["angles"], targets, true["obstacles"])
        tensors = [torch.as_tensor(part, dtype=torch.float32) for part in parts]
        problem = arm_problem(*tensors, self.horizon, max_step=float(true["max_step"][0]))
        proposals = None if carried is None else carried.unsqueeze(1)
        plan = self.planner.plan(problem, proposals=proposals, generator=self.generator)
        return plan.actions[:, 0].numpy(), shift(plan.actions)

    def select(self, carried: Tensor | None, index: np.ndarray) -> Tensor | None:
        """See `Controller.select`."""
        return None if carried is None else carried[torch.as_tensor(index)]


# --- Tasks: an environment, and what plans in it.


class Task(ABC):
    """Where planners are compared.

    Attributes:
        baselines: Policies by name that are printed beside.
        decisions: About how many decisions an episode takes, for the estimate of the time.
    """

    baselines: Mapping[str, Policy]
    decisions: int

    @abstractmethod
    def env(self, num_envs: int) -> VectorEnv:
        """The environment."""

    @abstractmethod
    def controller(self, planner: Planner, generator: torch.Generator) -> Controller:
        """What plans with a planner."""


class ArmTask(Task):
    """The arm with exact dynamics: nothing is learned."""

    baselines: Mapping[str, Policy] = baselines_of("forethought/Arm-v0")
    decisions = 50

    def env(self, num_envs: int) -> VectorEnv:
        """See `Task`."""
        return make("forethought/Arm-v0", num_envs)

    def controller(self, planner: Planner, generator: torch.Generator) -> Controller:
        """See `Task`."""
        return ArmController(planner, generator)


class RunTask(Task):
    """A trained run: the agent in Mode-2, replanning at each step.

    Without its policy and its memory, so that the time goes to the planner: the rest of the last
    plan is all that it begins with.
    """

    def __init__(self, run: str) -> None:
        self.trained: Trained = load(run, device="cpu")
        self.baselines = baselines_of(self.trained.spec.id)
        usual = 30 if "scripted" in self.baselines else 10**9
        self.decisions = min(self.trained.spec.episode_limit, usual)

    def env(self, num_envs: int) -> VectorEnv:
        """See `Task`."""
        return self.trained.make_env(num_envs)

    def controller(self, planner: Planner, generator: torch.Generator) -> Controller:
        """See `Task`."""
        agent = self.trained.in_mode(2)
        cost = replace(agent.configurator.cost, replan_every=1)
        configurator = replace(agent.configurator, cost=cost)
        bare = replace(agent, planner=planner, configurator=configurator, policy=None, recall=None)
        return AgentController(bare, generator)


def task_of(text: str) -> tuple[str, Task]:
    """`arm`, or NAME=RUN with a run folder or a packaged run."""
    name, _, run = text.partition("=")
    if not run and name != "arm":
        raise ValueError(f"tasks holds {text!r}: choose arm, or NAME=RUN")
    return name, RunTask(run) if run else ArmTask()


# --- Time.


class Pace:
    """When a decision began, how long it may take, and what a call of the model costs.

    Args:
        budget: Seconds per decision; infinite: no deadline.
        call: Seconds per call of the model; None takes the wall clock.
        around: Seconds of a decision outside of the planner, with `call`.
    """

    def __init__(self, budget: float, call: float | None = None, around: float = 0.0) -> None:
        self.budget, self.call, self.around = budget, call, around
        self.calls = self.decisions = self.model_steps = 0
        self.planning = 0.0
        self._deadline: Deadline | None = None

    def clock(self) -> float:
        """The time, in seconds."""
        return time.perf_counter() if self.call is None else self.calls * self.call

    def begin(self) -> None:
        """A decision begins."""
        self.decisions += 1
        spent = 0.0 if self.call is None else self.around
        self._deadline = Deadline.after(self.budget - spent, self.clock)

    @property
    def deadline(self) -> Deadline | None:
        """The end of the decision that began last."""
        return self._deadline

    def counted(self, problem: Problem) -> Problem:
        """The problem, whose roll-outs are counted."""

        def step(state: Any, action: Any, latent: Any, context: Any, t: int) -> Any:
            self.calls += problem.rollout is None and t == 0
            return problem.step(state, action, latent, context, t)

        def rollout(*parts: Any) -> Any:
            self.calls += 1
            assert problem.rollout is not None
            return problem.rollout(*parts)

        return replace(problem, step=step, rollout=problem.rollout and rollout)


@dataclass(frozen=True)
class Paced(Planner):
    """A planner that keeps the deadline of a pace."""

    planner: Planner
    pace: Pace

    @property
    def room(self) -> int | None:
        """See `Planner`."""
        return self.planner.room

    def plan(self, problem: Problem, **how: Any) -> Plan:
        """Plan until the deadline; see `Planner.plan`."""
        began = time.perf_counter()
        how["deadline"] = self.pace.deadline
        plan = self.planner.plan(self.pace.counted(problem), **how)
        self.pace.planning += time.perf_counter() - began
        self.pace.model_steps += plan.model_steps // problem.batch
        return plan


@dataclass(frozen=True)
class Timed(Controller):
    """A controller whose decisions begin on a pace."""

    controller: Controller
    pace: Pace

    def start(self, observation: Any, info: Mapping[str, Any]) -> Any:
        """See `Controller.start`."""
        return self.controller.start(observation, info)

    def act(self, carried: Any, observation: Any, info: Mapping[str, Any]) -> Any:
        """See `Controller.act`."""
        self.pace.begin()
        return self.controller.act(carried, observation, info)

    def select(self, carried: Any, index: np.ndarray) -> Any:
        """See `Controller.select`."""
        return self.controller.select(carried, index)


# --- Planners by size.

# Sizes to choose from: of planners that iterate, candidates or starts per iteration; of random
# shooting, all its candidates.
SIZES = (4, 16, 64, 256)
SHOOTING_SIZES = (16, 64, 256, 1024, 4096)


def sized(kind: type[Planner], size: int) -> Planner:
    """A planner with `size` candidates (or starts) per iteration, which only a deadline ends.

    Elites are an eighth of the candidates. A planner that begins with another one gets a short
    `CEM` of that size, since what comes after it would never begin after a deadline. A planner
    without any such field comes with its defaults.
    """
    names = _fields(kind)
    values: dict[str, Any] = {name: size for name in ("candidates", "starts") if name in names}
    if "iterations" in names:
        values["iterations"] = MANY
    if "elites" in names:
        values["elites"] = max(2, size // 8)
    if "planner" in names:
        values["planner"] = replace(sized(planners.CEM, size), iterations=SHORT)
    if "gradient" in names:
        values["gradient"] = planners.Gradient(starts=4, iterations=MANY, learning_rate=0.05)
    return kind(**values)


def _fields(kind: type[Planner]) -> set[str]:
    return {entry.name for entry in fields(kind)}  # type: ignore[arg-type]


def exported() -> dict[str, type[Planner]]:
    """Planners of `forethought.planners`, by name."""
    found = {name: getattr(planners, name) for name in planners.__all__}
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, Planner) and kind is not Planner
    }


def sizes_of(kind: type[Planner]) -> tuple[int, ...]:
    """Sizes to try, ascending."""
    names = _fields(kind)
    if not names & {"candidates", "starts", "planner"}:
        return (1,)
    return SIZES if names & {"iterations", "planner"} else SHOOTING_SIZES


# --- The file of lines.


@dataclass
class Ledger:
    """Lines that were measured, and those to come.

    Args:
        path: File with a JSON object per line; a last line that was cut off by a kill is dropped.
    """

    path: Path
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        text = self.path.read_text() if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self.path.write_text(whole)
        self.rows = [json.loads(line) for line in whole.splitlines()]

    def find(self, **key: Any) -> Row | None:
        """The first row that has these values."""
        for row in self.rows:
            if all(row.get(name) == value for name, value in key.items()):
                return row
        return None

    def add(self, row: Row) -> Row:
        """Write one line, and show it."""
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
        return row


# --- Measurements.


@dataclass(frozen=True)
class Bench:
    """What all measurements share.

    Args:
        ledger: Where they go.
        clock: `wall` or `steps`.
        episodes: Test episodes per seed.
        trials: Development episodes per size.
        seeds: Seeds of planning; each has its own held-out episodes.
        batch: Episodes played side by side by the clock `steps`.
    """

    ledger: Ledger
    clock: ClockName
    episodes: int
    trials: int
    seeds: int
    batch: int

    def pace(self, key: Mapping[str, Any], size: int, budget_ms: float) -> Pace:
        """A pace of the chosen clock; `steps` needs the calibration line."""
        if self.clock == "wall":
            return Pace(budget_ms / 1000)
        found = self.ledger.find(kind="calibration", **key, size=size)
        assert found is not None, "calibrate first"
        return Pace(budget_ms / 1000, found["call_ms"] / 1000, found["around_ms"] / 1000)

    def play(
        self, task: Task, planner: Planner, pace: Pace, seeds: Sequence[int], seed: int
    ) -> list[Outcome]:
        """Episodes, one at a time by the wall clock."""
        num_envs = 1 if pace.call is None else max(1, min(self.batch, len(seeds)))
        inner = task.controller(Paced(planner, pace), torch.Generator().manual_seed(seed))
        return run_episodes(task.env(num_envs), Timed(inner, pace), seeds)

    def calibrate(self, name: str, task: Task, kind: str, size: int, planner: Planner) -> None:
        """What a call of the model costs, for the clock that counts them; once per size."""
        key = {"task": name, "planner": kind, "size": size}
        if self.ledger.find(kind="calibration", **key):
            return
        turns = []
        for turn in range(3):
            pace = Pace(0.02)
            outcome = self.play(task, planner, pace, [DEVELOPMENT + turn], 0)[0]
            seconds, decisions = sum(outcome.decision_seconds), outcome.decisions
            turns.append(
                {
                    "decisions": decisions,
                    "calls": pace.calls,
                    "call_ms": 1000 * pace.planning / pace.calls,
                    "around_ms": 1000 * (seconds - pace.planning) / decisions,
                }
            )
        # The fastest one: the first warms up, and others have to do with the machine.
        best = min(turns, key=lambda row: row["call_ms"])
        self.ledger.add({"kind": "calibration", **key, **best} | around())

    def calibrate_all(self, name: str, task: Task, kind: str) -> None:
        """Prices of all sizes of a planner, if it takes such problems at all."""
        made = exported()[kind]
        for size in sizes_of(made):
            try:
                self.calibrate(name, task, kind, size, sized(made, size))
            except (ValueError, TypeError):
                return  # `tune` says why

    def tune(self, name: str, task: Task, kind: str, budget_ms: float) -> Row:
        """Choose the size on development episodes, among those whose decisions fit the budget.

        Where none fits, the smallest is taken. Of equal successes the shorter episodes win.
        """
        key = {"task": name, "planner": kind, "budget_ms": budget_ms, "clock": self.clock}
        done = self.ledger.find(kind="tuned", **key)
        if done is not None:
            return done
        made = exported()[kind]
        trials: list[Row] = []
        for size in sizes_of(made):
            planner = sized(made, size)
            try:
                self.calibrate(name, task, kind, size, planner)
                pace = self.pace({"task": name, "planner": kind}, size, budget_ms)
                seeds = range(DEVELOPMENT, DEVELOPMENT + self.trials)
                first = self.play(task, planner, pace, seeds[:1], 0)
                median = self._milliseconds(first, pace)[1]
                if trials and median > FITS * budget_ms:
                    break  # larger ones take longer still
                outcomes = first + self.play(task, planner, pace, seeds[1:], 0)
            except (ValueError, TypeError) as error:  # a planner that does not take such problems
                return self.ledger.add({"kind": "tuned", **key, "refused": str(error)})
            mean, median, _ = self._milliseconds(outcomes, pace)
            trial = {"size": size, "score": score(outcomes), "ms_median": median, "ms_mean": mean}
            trials.append(trial | {"decisions": decisions_of(outcomes)})
        fitting = [one for one in trials if one["ms_median"] <= FITS * budget_ms] or trials[:1]
        best = max(fitting, key=lambda one: (one["score"], -one["decisions"]))
        return self.ledger.add({"kind": "tuned", **key, "size": best["size"], "trials": trials})

    def test(self, name: str, task: Task, kind: str, budget_ms: float, size: int) -> None:
        """Held-out episodes, a line per seed."""
        planner = sized(exported()[kind], size)
        for seed in range(self.seeds):
            key = {"task": name, "planner": kind, "budget_ms": budget_ms, "clock": self.clock}
            key |= {"seed": seed, "episodes": self.episodes}
            if self.ledger.find(kind="test", **key):
                continue
            pace = self.pace({"task": name, "planner": kind}, size, budget_ms)
            outcomes = self.play(task, planner, pace, held_out_seeds(self.episodes, seed), seed)
            mean, median, high = self._milliseconds(outcomes, pace)
            row = {"kind": "test", **key, "size": size, **summed(outcomes)}
            row |= {"ms_mean": mean, "ms_median": median, "ms_p95": high}
            row |= {"model_steps_per_decision": pace.model_steps / pace.decisions}
            row |= {"calls_per_decision": pace.calls / pace.decisions, "made": str(planner)}
            self.ledger.add(row | around())

    def baselines(self, name: str, task: Task) -> None:
        """Random, greedy and scripted policies on the same episodes."""
        for policy_name, policy in task.baselines.items():
            for seed in range(self.seeds):
                key = {"task": name, "planner": policy_name, "seed": seed}
                key |= {"episodes": self.episodes}
                if self.ledger.find(kind="baseline", **key):
                    continue
                env = task.env(min(50, self.episodes))
                rng = np.random.default_rng(seed)
                controller = PolicyController(policy, env.single_action_space, rng)
                outcomes = run_episodes(env, controller, held_out_seeds(self.episodes, seed))
                self.ledger.add({"kind": "baseline", **key, **summed(outcomes)})

    def _milliseconds(self, outcomes: Sequence[Outcome], pace: Pace) -> tuple[float, float, float]:
        """Mean, median and 95th percentile of a decision; of the counted time, its mean thrice.

        The first decision of the first episode warms up and does not count.
        """
        if pace.call is not None:
            mean = 1000 * (pace.around + pace.call * pace.calls / pace.decisions)
            return mean, mean, mean
        ms = 1000 * np.concatenate([one.decision_seconds for one in outcomes])
        ms = ms[1:] if len(ms) > 1 else ms
        return float(ms.mean()), float(np.median(ms)), float(np.quantile(ms, 0.95))

    def estimate(self, tasks: Mapping[str, Task], kinds: Sequence[str], budgets: Any) -> float:
        """Hours that tuning (three sizes each) and testing take, if every budget is used up."""
        seconds = 0.0
        for task in tasks.values():
            played = (3 * self.trials + self.seeds * self.episodes) * task.decisions
            seconds += played * len(kinds) * sum(budgets) / 1000
        return seconds / 3600


def score(outcomes: Sequence[Outcome]) -> float:
    """Share of successes, or the mean return where there is no such criterion."""
    first = outcomes[0].success
    values = [one.return_ if first is None else float(bool(one.success)) for one in outcomes]
    return float(np.mean(values))


def decisions_of(outcomes: Sequence[Outcome]) -> float:
    """Mean number of decisions of an episode."""
    return float(np.mean([one.decisions for one in outcomes]))


def summed(outcomes: Sequence[Outcome]) -> Row:
    """What episodes came to."""
    measure = "return" if outcomes[0].success is None else "success"
    row: Row = {"measure": measure, "score": score(outcomes), "decisions": decisions_of(outcomes)}
    if measure == "return":
        row["std"] = float(np.std([one.return_ for one in outcomes]))
    return row


def around() -> Row:
    """What numbers of time depend on."""
    load_ = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"load": load_, "machine": f"{platform.machine()}, {os.cpu_count()} cores"}


# --- Fronts and tables.


def points(rows: Sequence[Row]) -> list[Row]:
    """Test lines and baselines, their seeds put together."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["kind"] in ("test", "baseline"):
            key = (row["task"], row["planner"], row.get("budget_ms"), row.get("clock"))
            groups.setdefault(key, []).append(row)
    return [
        dict(zip(("task", "planner", "budget_ms", "clock"), key, strict=True)) | pooled(group)
        for key, group in groups.items()
    ]


def pooled(group: Sequence[Row]) -> Row:
    """One point of several seeds: score, its 95 % interval, times."""
    counts = np.array([row["episodes"] for row in group], float)

    def mean(name: str) -> float:
        return float(np.average([row[name] for row in group], weights=counts))

    point = {"measure": group[0]["measure"], "score": mean("score"), "seeds": len(group)}
    point |= {"episodes": int(counts.sum()), "decisions": mean("decisions")}
    if point["measure"] == "success":
        low, high = wilson(round(point["score"] * point["episodes"]), point["episodes"])
    else:
        variance = mean("std") ** 2 / point["episodes"]
        half = 1.96 * variance**0.5
        low, high = point["score"] - half, point["score"] + half
    point |= {"ci95_low": low, "ci95_high": high}
    if "ms_mean" in group[0]:
        point |= {name: mean(name) for name in ("ms_mean", "ms_median", "ms_p95")}
        point |= {"sizes": sorted({row["size"] for row in group})}
    return point


def front(candidates: Sequence[Row]) -> list[Row]:
    """Points that none beats: no other takes at most their mean time with at least their score."""
    kept: list[Row] = []
    for point in sorted(candidates, key=lambda one: (one["ms_mean"], -one["score"])):
        if not kept or point["score"] > kept[-1]["score"]:
            kept.append(point)
    return kept


def fronts(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The Pareto front of each task and clock."""
    grouped: dict[str, list[Row]] = {}
    for point in points(rows):
        if "ms_mean" in point:
            grouped.setdefault(f"{point['task']}, {point['clock']}", []).append(point)
    return {name: front(group) for name, group in grouped.items()}


def table(rows: Sequence[Row]) -> str:
    """Markdown: a table per task and clock, planners by budgets; points of the front are bold."""
    every, parts = points(rows), []
    for name, best in fronts(rows).items():
        task, clock = name.rsplit(", ", 1)
        here = [one for one in every if one["task"] == task]
        runs = [one for one in here if one["clock"] == clock]
        budgets = sorted({one["budget_ms"] for one in runs})
        base = ", ".join(
            f"{one['planner']} {_shown(one)}" for one in here if one["budget_ms"] is None
        )
        sizes = {one["episodes"] for one in runs}
        parts.append(f"### {task} ({runs[0]['measure']}, clock: {clock})\n")
        parts.append(f"Baselines: {base or 'none'}. Episodes per cell: {_span(sizes)}.\n")
        parts.append("| planner | " + " | ".join(f"{budget:g} ms" for budget in budgets) + " |")
        parts.append("|---|" + "---|" * len(budgets))
        for planner in dict.fromkeys(one["planner"] for one in runs):
            cells = []
            for budget in budgets:
                found = [
                    one for one in runs if (one["planner"], one["budget_ms"]) == (planner, budget)
                ]
                shown = f"{_shown(found[0])}, {found[0]['ms_mean']:.1f} ms" if found else "-"
                cells.append(f"**{shown}**" if found and found[0] in best else shown)
            parts.append(f"| {planner} | " + " | ".join(cells) + " |")
        parts.append("")
    refused = {(row["task"], row["planner"]): row["refused"] for row in rows if row.get("refused")}
    parts += [f"{task}: {planner} was refused: {why}" for (task, planner), why in refused.items()]
    return "\n".join(parts)


def _shown(point: Row) -> str:
    """Score with its interval."""
    if point["measure"] == "success":
        low, high = 100 * point["ci95_low"], 100 * point["ci95_high"]
        return f"{100 * point['score']:.0f} % [{low:.0f}, {high:.0f}]"
    return f"{point['score']:.1f} [{point['ci95_low']:.1f}, {point['ci95_high']:.1f}]"


def _span(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def main(words: Sequence[str] | None = None) -> None:
    """Measure what is missing, write the fronts; or print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tasks", nargs="+", default=["arm", "two-rooms=two-rooms"])
    parser.add_argument("--planners", nargs="+", choices=sorted(exported()), default=None)
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS), help="in ms")
    parser.add_argument("--episodes", type=int, default=100, help="test episodes per seed")
    parser.add_argument("--trials", type=int, default=20, help="development episodes per size")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clock", choices=("wall", "steps"), default="wall")
    parser.add_argument("--batch", type=int, default=25, help="episodes at once, clock steps")
    parser.add_argument("--calibrate", action="store_true", help="find the prices, and stop")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--estimate", action="store_true", help="print how long it takes, and stop")
    parser.add_argument("--table", action="store_true", help="print Markdown of what is there")
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    ledger = Ledger(given.out)
    if given.table:
        print(table(ledger.rows))
        return
    bench = Bench(ledger, given.clock, given.episodes, given.trials, given.seeds, given.batch)
    kinds = given.planners or list(exported())
    tasks = dict(task_of(text) for text in given.tasks)
    hours = bench.estimate(tasks, kinds, given.budgets)
    print(f"at most about {hours:.1f} hours in all, less what is in {given.out}", flush=True)
    if given.estimate:
        return
    if given.calibrate:
        for name, task in tasks.items():
            for kind in kinds:
                bench.calibrate_all(name, task, kind)
        return
    for name, task in tasks.items():
        bench.baselines(name, task)
        for budget in given.budgets:
            for kind in kinds:
                tuned = bench.tune(name, task, kind, budget)
                if "size" in tuned:
                    bench.test(name, task, kind, budget, tuned["size"])
    content = {
        "command": "python benchmarks/frontier.py " + shlex.join(words or sys.argv[1:]),
        "commit": commit(),
        "fronts": fronts(ledger.rows),
        "points": points(ledger.rows),
        "rows": ledger.rows,
    }
    given.out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
