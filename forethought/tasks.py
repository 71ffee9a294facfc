"""Task files: YAML to `Task` and back."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import yaml

from forethought.agent import REACH, IntrinsicTerm, Task
from forethought.parser import (
    Parser,
    packaged_tasks,
    read_yaml,
    refuse_strangers,
    whole_choices,
)

BUILT_IN = {"reach": "reach the goal that the environment gives", "reward": "learned from rewards"}


def task_for(env: str) -> str | None:
    """Name of the packaged task written for an environment, if there is one."""
    for name, path in packaged_tasks().items():
        if read_yaml(path).get("env") == env:
            return name
    return None


def read_task(task: str, *, trust: bool = True) -> Task:
    """A task by its packaged name, `reach`, or a YAML file.

    Raises:
        FileNotFoundError: there is no such task.
        ValueError: the file is damaged, or names what is not there.
    """
    if task == "reach":
        return REACH
    packaged = packaged_tasks()
    path = packaged.get(task, Path(task))
    if not path.is_file():
        known = ", ".join([*BUILT_IN, *packaged])
        raise FileNotFoundError(f"no task {task!r}: give a YAML file or one of {known}")
    content = read_yaml(path)
    if not trust:
        named = {k: v for k, v in content.items() if k != "env" or not isinstance(v, str)}
        refuse_strangers(_nameable(named), path)
    parser = Parser()
    parser.add_class_arguments(Task, as_group=False)
    try:
        built = parser.instantiate(parser.parse_object(whole_choices(content)))
        given = {field.name: getattr(built, field.name) for field in fields(Task)}
        return replace(REACH, **given)
    except ValueError as error:
        raise ValueError(f"task {path}: {error}") from error


def _nameable(config: Any) -> Any:
    """A configuration with `position` for `position[1]`: a component names no code."""
    if isinstance(config, dict):
        return {name: _nameable(value) for name, value in config.items()}
    if isinstance(config, list):
        return [_nameable(value) for value in config]
    return re.sub(r"(?<=\w)\[\d+\]$", "", config) if isinstance(config, str) else config


def task_yaml(task: Task) -> str:
    """A task as the YAML that `read_task` reads."""
    terms = {
        name: {
            "term": _plain(item.term),
            "weight": item.weight,
            "floor": item.floor,
            "ceiling": item.ceiling,
        }
        for name, item in task.terms.items()
    }
    aims = {
        name: {"quantity": aim.quantity, "scale": aim.scale, "at": [*aim.at], "weight": aim.weight}
        for name, aim in task.aims.items()
    }
    content = {"env": task.env, "goal": task.goal, "end": task.end, "terms": terms}
    if aims:
        content["aims"] = aims
    return yaml.safe_dump(content, sort_keys=False)


def _plain(value: Any) -> Any:
    """A term, or an argument of one, as YAML holds it."""
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, IntrinsicTerm):
        arguments = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}  # type: ignore[arg-type]
        kind = type(value)
        return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}
    return value
