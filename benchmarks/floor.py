"""How near the gradient planner comes to the floor of its arithmetic, on one thread.

    python benchmarks/floor.py --json benchmarks/results/floor.json

The floor of a plan is the time of the matrix products that its roll-outs cannot do without, forward
and, for the gradient in states and actions, backward: measured here, with the model's own shapes,
on buffers that are already there, in the same turns as the plans. `share` is floor / plan. The
products of the readouts and the critic are no part of it and stand beside it.

Everything is measured in turns, many times, and the fastest turn counts. `before` is the same plan
with the model stepped by autograd, `after` with its own roll-out (`worldmodel.analytic`). Parts are
those of one iteration. With `--clock cpu` time counts only while this thread runs, which helps on a
machine that is shared, though caches and memory are shared all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

import forethought
from forethought.agent.agent import Agent
from forethought.planners import Gradient, Problem
from forethought.planners.incumbent import Incumbent
from forethought.planners.rollout import evaluate
from forethought.worldmodel import ResidualMLP

Row = dict[str, Any]
Call = Callable[[], object]
CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}


def fastest(
    calls: Mapping[str, Call], seconds: float, clock: Callable[[], float]
) -> dict[str, float]:
    """Milliseconds of each call: the least over turns that take `seconds` in all, 5 at least."""
    for call in calls.values():
        call()
    least = dict.fromkeys(calls, float("inf"))
    turns, ends = 0, time.perf_counter() + seconds
    while turns < 5 or time.perf_counter() < ends:
        for name, call in calls.items():
            began = clock()
            call()
            least[name] = min(least[name], 1e3 * (clock() - began))
        turns += 1
    return least


def problem_of(agent: Agent, problems: int) -> Problem:
    """Problems between random states; how long a plan takes does not depend on them."""
    generator = torch.Generator().manual_seed(0)
    state, goal = torch.randn(2, problems, agent.model.latent_dim, generator=generator)
    task = agent.configurator.task
    setting = agent.configurator.configure(goal if task.goal else None, problems, state.device)
    return agent.problem(setting, state)


def products(network: nn.Module, rows: int, repeats: int, *, inputs: bool = False) -> Call:
    """The matrix products of the linear layers on `(rows, ...)`, `repeats` times.

    `inputs`: those of the gradient in the input, instead of those of the values.
    """
    weights = [layer.weight.detach() for layer in network.modules() if isinstance(layer, nn.Linear)]
    pairs = [
        (torch.randn(rows, w.shape[0]), w) if inputs else (torch.randn(rows, w.shape[1]), w.t())
        for w in weights
    ]
    made = [torch.empty(rows, w.shape[1]) for _, w in pairs]

    def call() -> None:
        for _ in range(repeats):
            for (x, w), out in zip(pairs, made, strict=True):
                torch.mm(x, w, out=out)

    return call


def operations(network: nn.Module, rows: int) -> int:
    """Floating-point operations of one way through the linear layers."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    return sum(2 * rows * layer.weight.numel() for layer in layers)


def parts(problem: Problem, planner: Gradient) -> dict[str, Call]:
    """What one iteration of the planner is made of, each part alone."""
    rows, horizon = problem.batch * planner.starts, problem.horizon
    shape = (problem.batch, planner.starts, horizon, problem.action_dim)
    actions = torch.rand(shape, generator=torch.Generator().manual_seed(1)) - 0.5
    stepwise = replace(problem, rollout=None)
    with torch.no_grad():
        energies, states = evaluate(problem, actions)
    assert isinstance(states, Tensor)
    slope = torch.ones(rows, horizon, states.shape[-1])
    fixed = states.flatten(0, 1)

    def roll(chosen: Problem, *, back: bool) -> Call:
        state = chosen.state.repeat_interleave(planner.starts, 0)  # type: ignore[union-attr]
        context = {k: x.repeat_interleave(planner.starts, 0) for k, x in chosen.context.items()}

        def forward(a: Tensor) -> Tensor:
            if chosen.rollout is not None:
                rolled: Tensor = chosen.rollout(state, a, None, context)
                return rolled
            at, found = state, []
            for t, one in enumerate(a.unbind(1)):
                at = chosen.step(at, one, None, context, t)
                found.append(at)
            return torch.stack(found, 1)

        def call() -> None:
            with torch.set_grad_enabled(back):
                leaf = actions.flatten(0, 1).requires_grad_(back)
                rolled = forward(leaf)
                if back:
                    torch.autograd.grad(rolled, leaf, slope)

        return call

    def costs() -> None:
        with torch.enable_grad():
            leaf, reached = actions.clone().requires_grad_(), fixed.clone().requires_grad_()
            total = evaluate(replace(problem, rollout=lambda *_: reached), leaf)[0].sum()
            torch.autograd.grad(total, (leaf, reached), allow_unused=True)

    incumbent = Incumbent(problem, None)
    return {
        "rollout_forward_before": roll(stepwise, back=False),
        "rollout_forward_after": roll(problem, back=False),
        "rollout_and_gradient_before": roll(stepwise, back=True),
        "rollout_and_gradient_after": roll(problem, back=True),
        "costs_and_gradient": costs,
        "offer": lambda: incumbent.offer(actions, energies, states),
    }


def measured(
    run: str, agent: Agent, problems: int, seconds: float, clock: Callable[[], float]
) -> Row:
    """One row: plans, floor and parts at one number of problems."""
    planner, model = agent.planner, agent.model.predictor
    if not isinstance(planner, Gradient) or not isinstance(model, ResidualMLP):
        raise TypeError(
            f"{run} plans by {type(planner).__name__} through {type(model).__name__}: choose a run "
            "that plans by Gradient through ResidualMLP"
        )
    problem = problem_of(agent, problems)
    rows, horizon = problems * planner.starts, problem.horizon

    def plan(chosen: Problem) -> Call:
        return lambda: planner.plan(chosen, generator=torch.Generator().manual_seed(0))

    calls = {
        "before": plan(replace(problem, rollout=None)),
        "after": plan(problem),
        "forward": products(model, rows, horizon),
        "backward": products(model, rows, horizon, inputs=True),
        **parts(problem, planner),
    }
    counted = planner.iterations, planner.iterations + 1  # ways back, ways forward
    heads = []
    if agent.readouts is not None and problem.stage_cost is not None:
        heads.append(("readouts", agent.readouts.layers, rows * horizon))
    if agent.critic is not None and problem.terminal_cost is not None:
        heads.append(("critic", agent.critic.layers, rows))
    for name, network, seen in heads:
        calls[f"{name}_forward"] = products(network, seen, 1)
        calls[f"{name}_backward"] = products(network, seen, 1, inputs=True)
    with torch.no_grad():
        found = fastest(calls, seconds, clock)
    floor = counted[0] * found["backward"] + counted[1] * found["forward"]
    of_costs = sum(
        counted[0] * found[f"{name}_backward"] + counted[1] * found[f"{name}_forward"]
        for name, *_ in heads
    )
    work = operations(model, rows) * horizon * sum(counted)
    one = found["after"] / planner.iterations
    known = found["rollout_and_gradient_after"] + found["costs_and_gradient"] + found["offer"]
    return {
        "run": run,
        "problems": problems,
        "rows": rows,
        "horizon": horizon,
        "iterations": planner.iterations,
        "gigaflop": work / 1e9,
        "gigaflop_per_s_of_floor": work / 1e6 / floor,
        "plan_ms_before": found["before"],
        "plan_ms": found["after"],
        "speed_up": found["before"] / found["after"],
        "floor_ms": floor,
        "share_before": floor / found["before"],
        "share": floor / found["after"],
        "cost_floor_ms": of_costs,
        "share_with_costs": (floor + of_costs) / found["after"],
        "iteration_ms": {
            "floor": found["forward"] + found["backward"],
            **{name: found[name] for name in parts(problem, planner)},
            "rest": max(0.0, one - known),  # Adam, bounds, starts and the last evaluation's share
        },
    }


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit or None,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def main() -> None:
    """Measure, show, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", nargs="+", default=["two-rooms", "cartpole-swingup"])
    parser.add_argument("--problems", type=int, nargs="+", default=[1, 8, 50])
    parser.add_argument("--seconds", type=float, default=20.0, help="for each row")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    around, rows = machine() | {"clock": given.clock}, []
    for run in given.runs:
        agent = forethought.load(run, device="cpu").agent
        for problems in given.problems:
            rows.append(measured(run, agent, problems, given.seconds, CLOCKS[given.clock]))
            print(json.dumps(rows[-1]), flush=True)
    if given.json is not None:
        command = " ".join(["python", "benchmarks/floor.py", *sys.argv[1:]])
        record = {"command": command, "machine": around, "rows": rows}
        given.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
