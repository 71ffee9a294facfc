"""The verbs that look at what is there: `envs`, `data`, `show`.

None of them needs PyTorch, which takes seconds to load.
"""

from __future__ import annotations

import difflib
import fnmatch
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from json import dumps, loads
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.registration import load_env_creator
from rich.console import Console
from rich.table import Table

from forethought.envs import (
    Dataset,
    ImportOptions,
    describe,
    export_minari,
    import_file,
    import_minari,
    make,
    options_of,
    spec_of,
)
from forethought.envs.shard import replace_file
from forethought.parser import packaged_configs, packaged_tasks, read_yaml
from forethought.run_folder import RunFolder, check_place

Row = Mapping[str, Any]

_COLUMNS = 16  # numbers of one array that are shown one by one


# --- envs


def envs(
    pattern: str | None = None,
    *,
    env: str | None = None,
    env_options: dict[str, Any] | None = None,
) -> None:
    """List environments, or show one of them.

    Args:
        pattern: part of an id, or a pattern such as `dm_control/cart*`; a whole id shows that
            environment.
        env: show the environment of this id, of Gymnasium or `dm_control/DOMAIN-TASK`.
        env_options: options of the environment that is shown.
    """
    if env is not None and pattern is not None:
        raise ValueError(f"pattern is {pattern} and env is {env}: give one of them")
    asked = env if env is not None else pattern
    if asked is not None and (env is not None or is_environment(asked)):
        _show_environment(asked, env_options or {})
        return
    if env_options:
        raise ValueError("env_options are of one environment: give its whole id")
    found = list(matching(pattern))
    if not found:
        near = difflib.get_close_matches(pattern or "", known_environments(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "forethought envs lists all"
        raise ValueError(f"no environment matches {pattern!r}: {hint}")
    _list_environments(found)


def is_environment(id: str) -> bool:
    """Whether an id is of one environment; `module:Name-v0` is taken at its word."""
    return ":" in id or id in gymnasium.registry or id in _control_suite(id)


def known_environments() -> list[str]:
    """Ids that `make` knows: ours, those of dm_control, those of Gymnasium that are usable here.

    Of several versions of an environment only the latest is named.
    """
    ours = [id for id, spec in gymnasium.registry.items() if spec.namespace == "forethought"]
    return [*ours, *_control_suite(), *_of_gymnasium()]


def matching(pattern: str | None) -> Iterator[str]:
    """Known ids that contain a text, whatever its case, or that fit a pattern with `*` and `?`."""
    lower = (pattern or "").lower()
    if not any(sign in lower for sign in "*?["):
        lower = f"*{lower}*"
    return (id for id in known_environments() if fnmatch.fnmatchcase(id.lower(), lower))


def _control_suite(asked: str = "dm_control/") -> list[str]:
    """Ids of dm_control's tasks; importing it takes a second, so only if they are asked for."""
    if not asked.startswith("dm_control/") or find_spec("dm_control") is None:
        return []
    from forethought.envs.dm_control_adapter import task_ids

    return task_ids()


def _of_gymnasium() -> list[str]:
    """Ids of Gymnasium whose code can be imported, the latest version of each.

    Environments that take no time to make are made, and left out where that fails.
    """
    latest: dict[tuple[str | None, str], Any] = {}
    for spec in gymnasium.registry.values():
        name, version = (spec.namespace, spec.name), spec.version or 0
        if name not in latest or version > (latest[name].version or 0):
            latest[name] = spec
    return [
        spec.id for spec in latest.values() if spec.namespace != "forethought" and _usable(spec)
    ]


def _usable(spec: Any) -> bool:
    entry = spec.entry_point
    if entry is None or getattr(entry, "__module__", "") == "gymnasium.envs":
        return False  # these only say what has to be installed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not callable(entry):
                load_env_creator(entry)
            if str(entry).startswith(("gymnasium.envs.classic_control", "gymnasium.envs.toy_text")):
                make(spec.id).close()
    except Exception:  # noqa: BLE001 - whatever somebody's module raises, it cannot be made here
        return False
    return True


def _written_for(paths: Mapping[str, Path]) -> dict[str, str]:
    """Names of what ships with the package, by the environment that it is written for."""
    found: dict[str, list[str]] = {}
    for name, path in paths.items():
        found.setdefault(str(read_yaml(path).get("env")), []).append(name)
    return {env: ", ".join(names) for env, names in found.items()}


def _list_environments(ids: Sequence[str]) -> None:
    console = _console()
    configs, tasks = _written_for(packaged_configs()), _written_for(packaged_tasks())
    groups = {"forethought": "ours", "dm_control": "DeepMind Control Suite"}
    table = _table("environment", "--config", "--task")
    last = None
    for id in ids:
        group = groups.get(id.partition("/")[0], "Gymnasium")
        if group != last:
            table.add_section()
            table.add_row(group, style="bold")
        last = group
        table.add_row(f"  {id}", configs.get(id, ""), tasks.get(id, ""))
    console.print(table)
    console.print(f"{len(ids)} environments; forethought envs ID shows one")


def _show_environment(id: str, options: dict[str, Any]) -> None:
    made = make(id, 1, **options)
    try:
        spec = spec_of(made)
        _, info = made.reset(seed=0)
    finally:
        made.close()
    console = _console()
    about = _table("", "")
    config = _written_for(packaged_configs()).get(spec.id)
    quantities = {name: value[0].size for name, value in info.get("quantities", {}).items()}
    for name, value in {
        "observations": spec.observation_space,
        "actions": spec.action_space,
        "control step": f"{spec.control_step_seconds:g} s",
        "episode limit": f"{spec.episode_limit} decisions",
        "quantities": ", ".join(f"{n} ({size})" for n, size in quantities.items()) or "none",
        "goal": "given at the beginning of an episode" if "goal" in info else "none",
        "packaged config": config or "none",
        "packaged task": _written_for(packaged_tasks()).get(spec.id, "none"),
    }.items():
        about.add_row(name, " ".join(str(value).split()))
    _print(console, id, about)
    taken, more = options_of(id)
    table = _table("name", "default", "here")
    for name, default in sorted(taken.items()):
        table.add_row(name, str(default), str(options[name]) if name in options else "")
    _print(console, "options (--env-options.NAME)", table)
    if more:
        console.print("other options are handed on to the environment")
    words = f"--env {id}" if config is None else f"--config {config.partition(',')[0]}"
    console.print(f"\ntrain on it: forethought train {words} --run runs/NAME")


# --- data


def data(
    data: Path,
    *,
    sample: int = 4096,
    json: Path | None = None,
    export_minari: str | None = None,
    import_: Path | None = None,
    import_minari: str | None = None,
    env_id: str | None = None,
    env: str | None = None,
    env_options: dict[str, Any] | None = None,
    control_step_seconds: float | None = None,
    action_low: float | list[float] | None = None,
    action_high: float | list[float] | None = None,
    discrete_actions: int | None = None,
    channels_last: bool | None = None,
    behaviour: str | None = None,
    episodes_per_shard: int | None = None,
    names: dict[str, Any] | None = None,
    quantities: list[str] | None = None,
) -> dict[str, Any]:
    """Check and describe a data set, import one, or export it.

    Every checksum and every number is checked first. The options from `--env-id` on are for
    importing.

    Args:
        data: folder of the data set; a new one when something is imported.
        sample: pictures that are looked at for their statistics.
        json: also write the description to this file.
        export_minari: write the data set as one of Minari's, with this id (`NAME-v0`).
        import_: make the data set of this `.npz`, `.h5` or `.hdf5` file of flat arrays.
        import_minari: make the data set of the one with this id among Minari's on this machine.
        env_id: name of the source, such as `own/robot`, that no environment has.
        env: in its place, the environment that the data fit exactly.
        env_options: options of that environment.
        control_step_seconds: time between two actions, in seconds; 1 where time has no unit.
        action_low: action that becomes -1, one number or one per column; by default the lowest.
        action_high: action that becomes 1, likewise; by default the highest.
        discrete_actions: number of discrete actions; by default the highest plus one.
        channels_last: whether pictures are `(H, W, C)`; by default decided by the sizes.
        behaviour: name of the behaviour policy of episodes that name none.
        episodes_per_shard: most episodes in one shard.
        names: arrays that the file calls otherwise, such as `--names.actions torques`.
        quantities: infos of Minari to keep as quantities, `GROUP/NAME` for nested ones.

    Returns:
        The description.
    """
    options = {
        "env_id": env_id,
        "control_step_seconds": control_step_seconds,
        "action_low": action_low,
        "action_high": action_high,
        "discrete_actions": discrete_actions,
        "channels_last": channels_last,
        "policy": behaviour,
        "episodes_per_shard": episodes_per_shard,
    }
    given = {name: value for name, value in options.items() if value is not None}
    if json is not None:
        check_place(json)
    _import(data, import_, import_minari, given, env, env_options, names, quantities)
    held = Dataset.open(data)
    held.verify()
    described = describe(data, sample)
    if json is not None:
        replace_file(json, (dumps(described, indent=2) + "\n").encode())
    _print_description(data, described)
    if export_minari is not None:
        _console().print(f"exported to {_export(data, export_minari)}")
    return described


_export = export_minari  # the verb has a parameter of that name, as has the import below
_import_minari = import_minari


def _import(
    folder: Path,
    file: Path | None,
    minari: str | None,
    given: dict[str, Any],
    env: str | None,
    env_options: dict[str, Any] | None,
    names: dict[str, Any] | None,
    quantities: list[str] | None,
) -> None:
    """Make the data set of a file or of Minari's, if one is named."""
    if file is not None and minari is not None:
        raise ValueError(f"import is {file} and import_minari is {minari}: give one of them")
    others = {"env": env, "env_options": env_options, "names": names, "quantities": quantities}
    used = sorted({*given, *(name for name, value in others.items() if value is not None)})
    if file is None and minari is None:
        if used:
            raise ValueError(
                f"{', '.join(used)} can only be given to import something: add --import FILE or "
                "--import-minari ID"
            )
        return
    if quantities is not None and minari is None:
        raise ValueError("quantities are chosen among Minari's infos: name them in the file")
    if names is not None and file is None:
        raise ValueError("names are of arrays in a file: leave them out, or give --import FILE")
    if env is None and env_options is not None:
        raise ValueError("env_options are of an environment: give --env, or leave them out")
    options = ImportOptions(**given)  # type: ignore[typeddict-item]
    if env is not None:
        made = make(env, 1, **(env_options or {}))
        options["spec"] = spec_of(made)
        made.close()
    if file is not None:
        import_file(file, folder, keys=names, **options)
    elif minari is not None:
        _import_minari(minari, folder, quantities=quantities or (), **options)


def _print_description(folder: Path, described: dict[str, Any]) -> None:
    console = _console()
    environment, success = described["environment"], described["success"]
    seeds, length, returns = described["seeds"], described["length"], described["return"]
    table = _table("", "")
    for name, value in {
        "environment": environment["id"],
        "options": _words(environment["options"]) or "defaults",
        "observations": _space(environment["observation_space"]),
        "actions": _space(environment["action_space"]),
        "control step": f"{environment['control_step_seconds']:g} s",
        "episodes": f"{described['episodes']} ({described['terminated']} terminated, "
        f"{described['truncated']} truncated)",
        "decisions": f"{described['decisions']} ({described['environment_steps']} environment "
        "steps)",
        "length": f"{length['min']:g} to {length['max']:g}, mean {length['mean']:.4g}, at most "
        f"{environment['episode_limit']}",
        "return": f"{returns['min']:.4g} to {returns['max']:.4g}, mean {returns['mean']:.4g}",
        "success": "no verdicts"
        if success is None
        else f"{100 * success['share']:.1f} % of {success['of']} episodes",
        "policies": ", ".join(f"{name} ({n})" for name, n in described["policies"].items()),
        "seeds": f"{seeds['min']} to {seeds['max']}, {seeds['held_out']} held out",
        "files": f"{described['shards']} shards, {_size(described['bytes'])}: checksums "
        "right, all numbers finite",
    }.items():
        table.add_row(name, value)
    _print(console, f"data set {folder}", table)
    _print(console, "numbers", _numbers(described))
    counts = described["actions"].get("counts")
    if counts is not None:
        table = _table("action", "times")
        for action, count in enumerate(counts):
            table.add_row(str(action), str(count))
        _print(console, "actions", table)


def _numbers(described: dict[str, Any]) -> Table:
    """Statistics of every number; long arrays are cut."""
    table = _table("array", "min", "mean", "std", "max", "at bounds")
    arrays = {
        **described["observations"],
        **{f"quantities.{name}": value for name, value in described["quantities"].items()},
        "rewards": described["rewards"],
        "actions": described["actions"],
    }
    for name, statistics in arrays.items():
        if "counts" in statistics:
            continue
        size = len(statistics["min"])
        for at in range(min(size, _COLUMNS)):
            numbers = [f"{statistics[key][at]:.4g}" for key in ("min", "mean", "std", "max")]
            if "at_bounds" in statistics:
                numbers.append(f"{100 * statistics['at_bounds'][at]:.0f} %")
            table.add_row(name if size == 1 else f"{name}[{at}]", *numbers)
        if size > _COLUMNS:
            table.add_row(f"{name}: {size - _COLUMNS} more, see --json")
    return table


def _space(space: Row) -> str:
    """A space, from its JSON, in a few words."""
    if space["type"] == "Dict":
        return ", ".join(f"{name}: {_space(part)}" for name, part in space["spaces"].items())
    if space["type"] == "Discrete":
        return f"{space['n']} discrete"
    low, high = space["low"], space["high"]
    words = f"{' x '.join(map(str, space['shape']))} {space['dtype']}"
    if isinstance(low, Mapping) or isinstance(high, Mapping):
        return f"{words}, each with its own bounds"
    return words if (low, high) == ("-inf", "inf") else f"{words} in [{low}, {high}]"


def _size(count: int) -> str:
    """A number of bytes."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024  # type: ignore[assignment]
    return f"{count:.4g} GiB"


# --- show


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
    console = _console()
    about = folder.read_json("environment.json") or {}
    config = read_yaml(folder.config)
    console.print(str(folder.path), style="bold")
    words = _words(config.get("env_options") or {})
    console.print(f"environment {config.get('env')}" + (f" ({words})" if words else ""))
    console.print(f"seed {config.get('seed')}, commit {about.get('commit')}, {about.get('time')}")
    console.print(_progress(folder), soft_wrap=True)
    _print_task(console, folder)
    rounds = _rounds(folder)
    if rounds:
        table = _table("round", "environment steps", "return")
        for line in rounds:
            table.add_row(
                *(_number(line.get(key)) for key in ("step", "environment_steps", "return"))
            )
        _print(console, "rounds: what the agent collected", table)
    report = folder.read_json("diagnostics.json")
    if report:
        table = _table("name", "value")
        for name, value in report.items():
            table.add_row(name, _number(value))
        _print(console, "diagnostics", table)
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
    lines = _metrics(folder)
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
    table = _table("term", "cost", "weight")
    for name, item in (task.get("terms") or {}).items():
        term = item.get("term") or {}
        arguments = term.get("init_args") or {}
        kind = str(term.get("class_path", "")).rpartition(".")[2]
        cost = f"{kind} {arguments.get('quantity') or ''}".strip()
        table.add_row(name, cost, _number(item.get("weight", 1.0)))
    _print(console, f"task: {goal}an end is a {task.get('end')}", table)


def _metrics(folder: RunFolder) -> list[dict[str, Any]]:
    """Logged lines; one that was cut by a kill ends them."""
    path = folder.path / "metrics.jsonl"
    if not path.is_file():
        return []
    lines: list[dict[str, Any]] = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = loads(line)
            lines.append({**record, "stage": record["stage"], "step": record["step"]})
        except (ValueError, KeyError, TypeError):
            break
    return lines


def _rounds(folder: RunFolder) -> list[dict[str, Any]]:
    """What was logged of the rounds, the latest line of each."""
    rounds = {line["step"]: line for line in _metrics(folder) if line["stage"] == "collect"}
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
    console, names = _console(), (str(one.path), str(other.path))
    for folder in (one, other):
        if folder.read_json("training.json") is None:
            console.print(f"{folder.path}: {_progress(folder)}", soft_wrap=True)
    configs = [_flat(read_yaml(folder.config)) for folder in (one, other)]
    table = _table("", *names)
    for key in dict.fromkeys((*configs[0], *configs[1])):
        values = [str(config.get(key, "")) for config in configs]
        if key.endswith("class_path"):  # the same class may be found in several modules
            values = [value.rpartition(".")[2] for value in values]
        if key != "run" and values[0] != values[1]:
            table.add_row(key, *values)
    if table.row_count:
        _print(console, "configuration, where it differs", table)
    else:
        console.print("the configurations are the same")
    reports = [
        (folder.read_json("training.json") or {}) | (folder.read_json("diagnostics.json") or {})
        for folder in (one, other)
    ]
    table = _table("", *names, "change")
    for key in dict.fromkeys((*reports[0], *reports[1])):
        before, after = (report.get(key) for report in reports)
        change = _change(before, after)
        style = "bold" if change else None
        table.add_row(key, _number(before), _number(after), change, style=style)
    if table.row_count:
        _print(console, "training and diagnostics", table)
    _print_results(console, one, other)


def _print_results(console: Console, one: RunFolder, other: RunFolder) -> None:
    found = [
        {
            (row["task"], row["mode"], _where(row)): row
            for row in folder.read_json("results.json") or []
        }
        for folder in (one, other)
    ]
    table = _table("", "where", str(one.path), str(other.path), "")
    for key in dict.fromkeys((*found[0], *found[1])):
        first, second = (rows.get(key) for rows in found)
        verdict = _verdict(first, second)
        cells = ["" if row is None else "{} ({})".format(*_result(row)) for row in (first, second)]
        name = _mode(first or second or {})
        style = "bold" if verdict.endswith("better") else None
        table.add_row(name, key[2], *cells, verdict, style=style)
    if table.row_count:
        _print(console, "results, with 95 % intervals", table)


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
    console = _console()
    console.print(f"TensorBoard: {url} (Ctrl-C ends it)", soft_wrap=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        console.print("TensorBoard has ended")


# --- words and tables


def _console() -> Console:
    """A console that takes brackets and numbers as they are."""
    return Console(markup=False, highlight=False)


def _table(*columns: str) -> Table:
    """A table whose columns fold rather than cut."""
    table = Table(box=None, show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(console: Console, title: str, table: Table) -> None:
    console.print()
    console.print(title, style="bold", soft_wrap=True)
    console.print(table)


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _words(options: Row) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(options.items()))


def _flat(config: Row, above: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = value
    return flat
