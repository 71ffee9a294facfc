"""The verb `data`: check and describe a data set, bring one in or out. It does not need PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from json import dumps
from pathlib import Path
from typing import Any

from rich.table import Table

from forethought.envs import (
    Dataset,
    ImportOptions,
    describe,
    export_minari,
    import_file,
    import_minari,
    make,
    spec_of,
)
from forethought.envs.shard import replace_file
from forethought.run_folder import check_place
from forethought.tables import (
    Row,
    folding_table,
    option_text,
    plain_console,
    print_table,
)

_COLUMNS = 16  # numbers of one array that are shown one by one


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
        plain_console().print(f"exported to {_export(data, export_minari)}")
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
    console = plain_console()
    environment, success = described["environment"], described["success"]
    seeds, length, returns = described["seeds"], described["length"], described["return"]
    table = folding_table("", "")
    for name, value in {
        "environment": environment["id"],
        "options": option_text(environment["options"]) or "defaults",
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
    print_table(console, f"data set {folder}", table)
    print_table(console, "numbers", _numbers(described))
    counts = described["actions"].get("counts")
    if counts is not None:
        table = folding_table("action", "times")
        for action, count in enumerate(counts):
            table.add_row(str(action), str(count))
        print_table(console, "actions", table)


def _numbers(described: dict[str, Any]) -> Table:
    """Statistics of every number; long arrays are cut."""
    table = folding_table("array", "min", "mean", "std", "max", "at bounds")
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
