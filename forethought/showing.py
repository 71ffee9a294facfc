"""The verb `show`: what is in a run folder, or in two. It does not need PyTorch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from forethought.parser import read_yaml
from forethought.run_folder import SUBGOALS, RunFolder, read_metrics
from forethought.tables import (
    Row,
    flattened,
    folding_table,
    number_text,
    option_text,
    plain_console,
    print_table,
)


def show(
    run: Path,
    other: Path | None = None,
    *,
    tensorboard: bool = False,
    port: int = 0,
) -> None:
    """Show what is in a run folder: training, task, diagnostics, results; or compare two of them.

    Args:
        run: run folder.
        other: another one, to be shown beside it.
        tensorboard: serve the curves in TensorBoard, to this machine only, until Ctrl-C.
        port: TensorBoard's port; 0 for a free one.
    """
    if not 0 <= port < 65536:
        raise ValueError(f"port is {port}: choose 1 to 65535, or 0 for a free one")
    folder = RunFolder.open(run)
    against = None if other is None else RunFolder.open(other)
    if tensorboard:
        _serve([folder] if against is None else [folder, against], port)
    elif against is None:
        _show_one(folder)
    else:
        _show_two(folder, against)


def _show_one(folder: RunFolder) -> None:
    console = plain_console()
    about = folder.read_json("environment.json") or {}
    config = read_yaml(folder.config)
    console.print(str(folder.path), style="bold")
    words = option_text(config.get("env_options") or {})
    console.print(f"environment {config.get('env')}" + (f" ({words})" if words else ""))
    console.print(f"seed {config.get('seed')}, commit {about.get('commit')}, {about.get('time')}")
    console.print(_progress(folder), soft_wrap=True)
    _print_task(console, folder)
    rounds = _rounds(folder)
    if rounds:
        table = folding_table("round", "environment steps", "return")
        for line in rounds:
            table.add_row(
                *(number_text(line.get(key)) for key in ("step", "environment_steps", "return"))
            )
        print_table(console, "rounds: what the agent collected", table)
    report = folder.read_json("diagnostics.json")
    if report:
        table = folding_table("name", "value")
        for name, value in report.items():
            table.add_row(name, number_text(value))
        print_table(console, "diagnostics", table)
    _print_calibration(console, folder)
    _print_subgoals(console, folder)
    rows = folder.read_json("results.json")
    if rows:
        console.print()
        console.print(table_of(rows, f"results in {rows[0]['task']}"))
    console.print(f"\ncurves: forethought show {folder.path} --tensorboard", soft_wrap=True)


def _progress(folder: RunFolder) -> str:
    """How far the training of a run has come."""
    training = folder.read_json("training.json")
    if training is not None:
        return (
            f"{training.get('environment_steps')} environment steps, "
            f"{training.get('train_seconds', 0):.0f} s of training"
        )
    lines = read_metrics(folder.metrics)
    at = f" (last heard of: {lines[-1]['stage']}, {lines[-1]['step']})" if lines else ""
    return (
        f"training has not come to its end{at}: go on with "
        f"forethought train --resume --run {folder.path}"
    )


def _print_task(console: Console, folder: RunFolder) -> None:
    """What the agent minimises, where the run holds it."""
    if not folder.task.is_file():
        return
    task = read_yaml(folder.task)
    goal = "reach the goal; " if task.get("goal") else ""
    table = folding_table("term", "cost", "weight")
    for name, item in (task.get("terms") or {}).items():
        term = item.get("term") or {}
        arguments = term.get("init_args") or {}
        kind = str(term.get("class_path", "")).rpartition(".")[2]
        cost = f"{kind} {arguments.get('quantity') or ''}".strip()
        table.add_row(name, cost, number_text(item.get("weight", 1.0)))
    print_table(console, f"task: {goal}an end is a {task.get('end')}", table)


def _print_calibration(console: Console, folder: RunFolder) -> None:
    """Whether the critic tells the truth, where the run says."""
    report = folder.read_json("calibration.json")
    if report:
        columns = ("slope", "correlation", "mean_absolute_error", "bias")
        table = folding_table("term", *(name.replace("_", " ") for name in columns))
        for name, term in (report.get("terms") or {}).items():
            table.add_row(name, *(number_text(term.get(column)) for column in columns))
        print_table(console, f"critic, on {report.get('count')} states: 1 is a true slope", table)
    if (folder.path / "calibration.png").is_file():
        console.print(f"expected and realised: {folder.path / 'calibration.png'}", soft_wrap=True)


def _print_subgoals(console: Console, folder: RunFolder) -> None:
    """Where the picture of the last `act` is, in a run with levels above."""
    if (folder.path / SUBGOALS).is_file():
        console.print(f"subgoals: {folder.path / SUBGOALS}", soft_wrap=True)


def _rounds(folder: RunFolder) -> list[dict[str, Any]]:
    """What was logged of the rounds, the latest line of each."""
    lines = read_metrics(folder.metrics)
    rounds = {line["step"]: line for line in lines if line["stage"] == "collect"}
    return [rounds[step] for step in sorted(rounds)]


def table_of(rows: Sequence[Row], title: str) -> Table:
    """Result rows as a table for the terminal."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    several = len({row["task"] for row in rows}) > 1
    for column in (*(("task",) if several else ()), "mode", "where", "planner"):
        table.add_column(column, no_wrap=column != "where")
    for column in ("episodes", "result", "95 %", "ms", "95th ms"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        result, interval = _result(row)
        table.add_row(
            *((row["task"].rpartition("/")[2],) if several else ()),
            _mode(row),
            _where(row),
            row["planner"] or "",
            str(row["episodes"]),
            result,
            interval,
            f"{row['ms_per_decision']:.2f}",
            f"{row['p95_ms']:.2f}",
        )
    return table


def _mode(row: Row) -> str:
    return f"Mode-{row['mode']}" if isinstance(row["mode"], int) else str(row["mode"])


def _where(row: Row) -> str:
    notable = {"contact=stop": "contact stop", "only where greedy fails": "greedy fails"}
    return ", ".join(words for key, words in notable.items() if key in row["protocol"])


def _result(row: Row) -> tuple[str, str]:
    """The result of a row and its interval, in words."""
    succeeds = "success_rate" in row
    scale = 100 if succeeds else 1
    value = row["success_rate"] if succeeds else row["return_mean"]
    return (
        f"{scale * value:.0f}" + (" %" if succeeds else ""),
        f"{scale * row['ci95_low']:.0f} to {scale * row['ci95_high']:.0f}",
    )


def _show_two(one: RunFolder, other: RunFolder) -> None:
    console, names = plain_console(), (str(one.path), str(other.path))
    for folder in (one, other):
        if folder.read_json("training.json") is None:
            console.print(f"{folder.path}: {_progress(folder)}", soft_wrap=True)
    configs = [flattened(read_yaml(folder.config)) for folder in (one, other)]
    table = folding_table("", *names)
    for key in dict.fromkeys((*configs[0], *configs[1])):
        values = [str(config.get(key, "")) for config in configs]
        if key.endswith("class_path"):  # the same class may be found in several modules
            values = [value.rpartition(".")[2] for value in values]
        if key != "run" and values[0] != values[1]:
            table.add_row(key, *values)
    if table.row_count:
        print_table(console, "configuration, where it differs", table)
    else:
        console.print("the configurations are the same")
    reports = [
        (folder.read_json("training.json") or {}) | (folder.read_json("diagnostics.json") or {})
        for folder in (one, other)
    ]
    table = folding_table("", *names, "change")
    for key in dict.fromkeys((*reports[0], *reports[1])):
        before, after = (report.get(key) for report in reports)
        change = _change(before, after)
        style = "bold" if change else None
        table.add_row(key, number_text(before), number_text(after), change, style=style)
    if table.row_count:
        print_table(console, "training and diagnostics", table)
    _print_results(console, one, other)


def _print_results(console: Console, one: RunFolder, other: RunFolder) -> None:
    found = [
        {
            (row["task"], row["mode"], _where(row)): row
            for row in folder.read_json("results.json") or []
        }
        for folder in (one, other)
    ]
    table = folding_table("", "where", str(one.path), str(other.path), "")
    for key in dict.fromkeys((*found[0], *found[1])):
        first, second = (rows.get(key) for rows in found)
        verdict = _verdict(first, second)
        cells = ["" if row is None else "{} ({})".format(*_result(row)) for row in (first, second)]
        name = _mode(first or second or {})
        style = "bold" if verdict.endswith("better") else None
        table.add_row(name, key[2], *cells, verdict, style=style)
    if table.row_count:
        print_table(console, "results, with 95 % intervals", table)


def _verdict(one: Row | None, other: Row | None) -> str:
    """Which of two results is better, if their intervals tell."""
    if one is None or other is None:
        return ""
    if ("success_rate" in one) != ("success_rate" in other):
        return "other kind"
    if other["ci95_low"] > one["ci95_high"]:
        return "second better"
    if one["ci95_low"] > other["ci95_high"]:
        return "first better"
    return "overlap"


def _change(before: Any, after: Any) -> str:
    """How much a number differs from another; empty where it does not, or one is not there."""
    if before == after or before is None or after is None:
        return ""
    if not all(isinstance(value, int | float) for value in (before, after)) or before * after <= 0:
        return "differs"
    ratio = after / before
    if 1 / 3 < ratio < 3:
        return f"{100 * (ratio - 1):+.3g} %"
    return f"{ratio:.3g} times"


def _serve(folders: Sequence[RunFolder], port: int) -> None:
    """Serve curves to this machine alone, until Ctrl-C."""
    for folder in folders:
        if not (folder.path / "tensorboard").is_dir():
            raise FileNotFoundError(f"{folder.path} has no curves (tensorboard/): train it first")
    logs = {str(folder.path): str((folder.path / "tensorboard").resolve()) for folder in folders}
    if len(logs) > 1 and any(
        sign in word for pair in logs.items() for word in pair for sign in ",:"
    ):
        raise ValueError("TensorBoard cannot show two runs with , or : in their paths: show one")
    where = (
        ["--logdir", *logs.values()]
        if len(logs) == 1
        else ["--logdir_spec", ",".join(f"{name}:{path}" for name, path in logs.items())]
    )
    # The host is not an option: nothing leaves the machine.
    words = ["tensorboard", *where, "--host", "127.0.0.1", "--port", str(port)]
    try:
        from tensorboard import program  # type: ignore[import-untyped]

        board = program.TensorBoard()
        board.configure(argv=[*words, "--load_fast", "false"])
        url = board.launch()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"TensorBoard cannot be started on port {port} ({reason}): choose another --port, or "
            "0 for a free one"
        ) from error
    console = plain_console()
    try:  # the address is in it: who has read it may end this at once
        console.print(f"TensorBoard: {url} (Ctrl-C ends it)", soft_wrap=True)
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        console.print("TensorBoard has ended")
