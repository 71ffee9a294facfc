"""Planners of other libraries and ours, in one run: time per plan, overhead, and energy reached.

    pip install 'forethought[peers]'        # what is missing is left out, and said
    python benchmarks/planning.py
    python benchmarks/planning.py --quick   # seconds; the numbers mean nothing

All contenders plan the same problems, starts and goals of held-out Two-Rooms episodes encoded by
the packaged run, with the same model, cost, candidates, iterations and horizon. All are at their
best: of the options that decide how good a plan is, the ones with the lowest energy on other
episodes are taken (`setting`). stable-worldmodel's solvers run at
several batch sizes over problems, their default among them, and the best of these counts; and with
the model in two ways: stepped, as that library's own models are rolled out, and by our roll-out.

The overhead is the time of a plan minus that of the bare model: its steps in the same batches,
forward, and backward where the planner asked for gradients, recorded from the planner and taken
again without it. Repetitions of all contenders take turns in a random order, a plan and its bare
steps side by side, so that what else the machine does hits all; medians and minima are told (of
the overhead the difference of the minima). `--clock cpu` counts the time of this process alone,
for a busy machine; it says nothing on a GPU.
Energies are those of the returned plans, clamped to the bounds, by our model and cost, the mean
over problems and repetitions.

Aims, against the best peer of the same family: overhead at most 1/5, at least 2 times as fast with
50 problems, not slower with one, energy equal or lower.

Writes `benchmarks/results/planning.json` and prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from peers import ours
from peers.task import Budget, Call, Contender, Task, task_from
from torch import Tensor

from forethought.run_folder import commit

RESULTS = Path(__file__).parent / "results"
OVERHEAD_AIM, SPEED_AIM = 1 / 5, 2.0
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Clock = Callable[[], float]
Row = dict[str, Any]


def main() -> None:
    """Run everything and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", default="two-rooms", help="trained run")
    parser.add_argument("--problems", type=int, nargs="+", default=[1, 8, 50])
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--elites", type=int, default=8)
    parser.add_argument("--starts", type=int, default=16, help="of gradient planners")
    parser.add_argument("--descents", type=int, default=12, help="steps of gradient planners")
    parser.add_argument("--horizon", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--tuning", type=int, default=50, help="problems that options are chosen on"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    parser.add_argument("--json", type=Path, default=None, help="where the rows go")
    given = parser.parse_args()
    if given.quick:
        given.problems, given.repeats, given.tuning = [1, 3], 2, 2
        given.candidates, given.iterations, given.elites = 8, 2, 3
        given.starts, given.descents, given.horizon = 3, 2, 4
    torch.set_num_threads(given.threads)
    budget = Budget(given.candidates, given.iterations, given.elites, given.starts, given.descents)
    tuning = task_from(given.run, given.tuning, given.horizon, block=1, device=given.device)
    rows: list[Row] = []
    for problems in given.problems:
        task = task_from(given.run, problems, given.horizon, block=0, device=given.device)
        fielded = chosen([*ours.contenders(budget), *peers(budget, problems)], tuning)
        rows += compared(fielded, task, given.repeats, CLOCKS[given.clock])
    told = {
        "command": " ".join(["python", "benchmarks/planning.py", *sys.argv[1:]]),
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch threads {given.threads}",
        "device": given.device,
        "clock": given.clock,
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "budget": {**vars(budget), "horizon": given.horizon, "repeats": given.repeats},
        "rows": rows,
        "aims": verdicts(rows),
    }
    # A smoke test does not replace the results.
    path = given.json or (None if given.quick else RESULTS / "planning.json")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told, indent=2) + "\n")
    print(table(rows))
    print()
    print(aims_table(told["aims"]))


def peers(budget: Budget, problems: int) -> list[list[Contender]]:
    """Configurations to choose from, per contender of the libraries that are installed."""
    found: list[list[Contender]] = []
    for name, arguments in (("stable_worldmodel", (problems,)), ("pytorch_mppi", ())):
        try:
            adapter = import_module(f"peers.{name}")
        except ImportError as error:
            print(
                f"{name} is left out ({error}): pip install 'forethought[peers]'", file=sys.stderr
            )
            continue
        found += adapter.contenders(budget, *arguments)
    return found


_CHOSEN: dict[tuple[str, str], int] = {}


def chosen(groups: Sequence[Sequence[Contender]], task: Task) -> list[Contender]:
    """Of each group the configuration with the lowest mean energy on `task`.

    Batch sizes of a solver do not differ in what they find, so the choice is made once for all.
    """
    best: list[Contender] = []
    for group in groups:
        key = group[0].library, group[0].family
        if key not in _CHOSEN:
            energies = [
                float(task.energy(contender.plans(task, 1)()).mean()) for contender in group
            ]
            _CHOSEN[key] = min(range(len(group)), key=energies.__getitem__)
        best.append(group[_CHOSEN[key]])
    return best


def compared(contenders: Sequence[Contender], task: Task, repeats: int, clock: Clock) -> list[Row]:
    """A row for each contender on one task."""
    plans = [contender.plans(task, 0) for contender in contenders]
    recorded = [recorded_calls(plan, task) for plan in plans]
    bare = [task.model.replay(calls, task.state, task.action_dim) for calls in recorded]
    planned: list[list[float]] = [[] for _ in contenders]
    stepped: list[list[float]] = [[] for _ in contenders]
    found: list[list[Tensor]] = [[] for _ in contenders]
    order = random.Random(0)
    for steps in bare:
        steps()
    for _ in range(repeats):
        for place in order.sample(range(len(contenders)), len(contenders)):
            seconds, actions = timed(plans[place], task, clock)
            planned[place].append(1e3 * seconds)
            found[place].append(actions)
            stepped[place].append(1e3 * timed(bare[place], task, clock)[0])
    rows = []
    for place, contender in enumerate(contenders):
        actions = torch.stack(found[place]).to(task.state)  # (R, B, H, A)
        energies = torch.stack([task.energy(one) for one in actions])
        over = [one - other for one, other in zip(planned[place], stepped[place], strict=True)]
        calls = recorded[place]
        rows.append(
            {
                "family": contender.family,
                "library": contender.library,
                "model": contender.model,
                "problems": task.batch,
                "batch_size": contender.batch_size or task.batch,
                "setting": contender.setting,
                "model_steps": sum(call.rows * call.steps for call in calls),
                "plan_ms": spread(planned[place]),
                "bare_ms": spread(stepped[place]),
                "overhead_ms": {
                    "median": statistics.median(over),
                    "minimum": min(planned[place]) - min(stepped[place]),
                },
                "energy": float(energies.mean()),
                "outside": float((actions.abs() > 1 + 1e-6).float().mean()),
            }
        )
    return rows


def recorded_calls(plan: Callable[[], Tensor], task: Task) -> list[Call]:
    """Calls of the model in one plan; the first one, which warms up, is not recorded."""
    plan()
    task.model.calls = calls = []
    plan()
    task.model.calls = None
    return calls


def timed(function: Callable[[], Any], task: Task, clock: Clock) -> tuple[float, Any]:
    """Seconds that a call takes, the GPU's work included, and what it returns."""
    if task.state.is_cuda:
        torch.cuda.synchronize(task.state.device)
    began = clock()
    result = function()
    if task.state.is_cuda:
        torch.cuda.synchronize(task.state.device)
    return clock() - began, result


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and minimum."""
    return {"median": statistics.median(values), "minimum": min(values)}


def verdicts(rows: Sequence[Row]) -> list[Row]:
    """Ours against the best peer of each family: in time, in overhead and in energy.

    Twice: against peers that step the model, and against all, those on our roll-out among them.
    """
    found = []
    for own in rows:
        if not own["library"].startswith("forethought "):
            continue
        every = [
            row
            for row in rows
            if (row["family"], row["problems"]) == (own["family"], own["problems"])
            and row["library"].split()[0] != "forethought"
        ]
        stepping = [row for row in every if row["model"] == "steps"]
        for (against, same), kind in product(
            (("peers", stepping), ("peers on our roll-out", every)), ("median", "minimum")
        ):
            if not same:
                continue
            fastest = min(same, key=lambda row: float(row["plan_ms"][kind]))
            leanest = min(same, key=lambda row: float(row["overhead_ms"][kind]))
            lowest = min(same, key=lambda row: float(row["energy"]))
            speed = fastest["plan_ms"][kind] / own["plan_ms"][kind]
            overhead = own["overhead_ms"][kind] / leanest["overhead_ms"][kind]
            needed = SPEED_AIM if own["problems"] >= 50 else 1.0
            found.append(
                {
                    "family": own["family"],
                    "problems": own["problems"],
                    "against": against,
                    "of": kind,
                    "times_faster": speed,
                    "times_faster_aim": needed,
                    "overhead_share": overhead,
                    "overhead_share_aim": OVERHEAD_AIM,
                    "energy": own["energy"],
                    "best_peer_energy": lowest["energy"],
                    "kept": {
                        "speed": speed >= needed,
                        "overhead": overhead <= OVERHEAD_AIM,
                        "energy": own["energy"] <= lowest["energy"],
                    },
                    "fastest_peer": f"{fastest['library']}, batch {fastest['batch_size']}",
                }
            )
    return found


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown: medians, minima in brackets."""
    lines = [
        "| family | problems | library | batch | setting | plan, ms | bare model, ms "
        "| overhead, ms | energy | outside |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["family"], row["problems"], row["library"])):
        times = (
            f"{row[name]['median']:.2f} ({row[name]['minimum']:.2f})"
            for name in ("plan_ms", "bare_ms", "overhead_ms")
        )
        cells = [row["family"], row["problems"], row["library"], row["batch_size"], row["setting"]]
        cells += [*times, f"{row['energy']:.4f}", f"{100 * row['outside']:.0f} %"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def aims_table(found: Sequence[Row]) -> str:
    """The aims as Markdown, by medians and by minima."""
    lines = [
        "| family | problems | against | of | times as fast as the fastest peer "
        "| share of the least overhead | energy, best peer's | aims missed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        missed = ", ".join(name for name, kept in row["kept"].items() if not kept) or "none"
        lines.append(
            f"| {row['family']} | {row['problems']} | {row['against']} | {row['of']} "
            f"| {row['times_faster']:.2f} "
            f"(aim {row['times_faster_aim']:.0f}) | {row['overhead_share']:.2f} "
            f"(aim {row['overhead_share_aim']:.1f}) | {row['energy']:.4f}, "
            f"{row['best_peer_energy']:.4f} | {missed} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
