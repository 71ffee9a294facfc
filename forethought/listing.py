"""The verb `envs`: what environments there are. It needs no PyTorch, which takes long to load."""

from __future__ import annotations

import difflib
import fnmatch
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.registration import load_env_creator

from forethought.envs import (
    make,
    options_of,
    spec_of,
)
from forethought.parser import packaged_configs, packaged_tasks, read_yaml
from forethought.tables import (
    folding_table,
    plain_console,
    print_table,
)


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
    console = plain_console()
    configs, tasks = _written_for(packaged_configs()), _written_for(packaged_tasks())
    groups = {"forethought": "ours", "dm_control": "DeepMind Control Suite"}
    table = folding_table("environment", "--config", "--task")
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
    console = plain_console()
    about = folding_table("", "")
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
    print_table(console, id, about)
    taken, more = options_of(id)
    table = folding_table("name", "default", "here")
    for name, default in sorted(taken.items()):
        table.add_row(name, str(default), str(options[name]) if name in options else "")
    print_table(console, "options (--env-options.NAME)", table)
    if more:
        console.print("other options are handed on to the environment")
    words = f"--env {id}" if config is None else f"--config {config.partition(',')[0]}"
    console.print(f"\ntrain on it: forethought train {words} --run runs/NAME")
