"""The command line's parser: jsonargparse, with dashes, one-line errors and packaged configs."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    ArgumentParser,
    Namespace,
    set_parsing_settings,
)

from forethought.envs import Policy
from forethought.planners import Planner
from forethought.worldmodel import Perception, Predictor


def packaged_configs() -> dict[str, Path]:
    """Experiments that ship with the package, by name."""
    folder = Path(str(files("forethought.configs")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


# Parts chosen by class, by the last word of their option.
PARTS: dict[str, type] = {
    "planner": Planner,
    "policy": Policy,
    "perception": Perception,
    "predictor": Predictor,
}


def whole_choice(base: type, choice: Any) -> Any:
    """A choice of class with every argument that has a default.

    jsonargparse keeps the arguments of the class chosen before wherever the new one has an argument
    of the same name: `--planner CEM` would plan with the iterations of `Gradient`.

    Args:
        base: class that the part must inherit.
        choice: a class by name or import path, or a mapping with `class_path` and `init_args`.

    Returns:
        The mapping; or `choice` itself where no class is found, for the parser to complain about.
    """
    given = {"class_path": choice} if isinstance(choice, str) else choice
    if not isinstance(given, dict) or not isinstance(given.get("class_path"), str):
        return choice
    found = _class_of(base, given["class_path"])
    if found is None:
        return choice
    parameters = inspect.signature(found).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    arguments = {**defaults, **(given.get("init_args") or {})}
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in arguments.items()}
    return {"class_path": f"{found.__module__}.{found.__qualname__}", "init_args": plain}


def _class_of(base: type, name: str) -> type | None:
    """The class called `name`: an import path, or the name of a known sub-class of `base`."""
    module, _, last = name.rpartition(".")
    if module:
        try:
            found = getattr(import_module(module), last, None)
        except ImportError:
            return None
        return found if isinstance(found, type) and issubclass(found, base) else None
    known: dict[str, type] = {}
    queue: list[type] = [base]
    while queue:
        children: list[type] = queue.pop().__subclasses__()
        known |= {child.__name__: child for child in children}
        queue += children
    return known.get(name)


def whole_choices(config: Any, key: str = "") -> Any:
    """A configuration in which every choice of class is whole."""
    if key in PARTS:
        return whole_choice(PARTS[key], config)
    if isinstance(config, dict):
        return {name: whole_choices(value, str(name)) for name, value in config.items()}
    return config


class ConfigFile(ActionConfigFile):
    """`--config NAME|FILE`: a packaged experiment by its name, or any YAML file."""

    def __call__(
        self, parser: Any, cfg: Any, values: Any, option_string: str | None = None
    ) -> None:
        """Apply the file."""
        if "\n" in values:
            content = yaml.safe_load(values)
        else:
            packaged = packaged_configs()
            if not Path(values).is_file() and values not in packaged:
                raise TypeError(
                    f"no config {values!r}: give a YAML file or one of {', '.join(packaged)}"
                )
            content = read_yaml(Path(values) if Path(values).is_file() else packaged[values])
        values = yaml.safe_dump(whole_choices(content)) + "\n"
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]


class Parser(ArgumentParser):
    """Options are written with dashes; an error is a ValueError, which the command line prints."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong with the words as a ValueError."""
        raise ValueError(" ".join(message.split())) from ex

    def format_help(self, formatter: Any = None) -> str:
        """Help with dashes in option names."""
        return re.sub(
            r"--[\w.]+", lambda m: m.group().replace("_", "-"), super().format_help(formatter)
        )


def normalised(parser: ArgumentParser, argv: Sequence[str]) -> list[str]:
    """Rewrite options as the parser knows them; values stay as they are.

    `--env-options.layout=x` becomes `--env_options.layout=x`, and a boolean option is a flag:
    `--short` and `--no-short` become `--short=true` and `--short=false`.
    """
    booleans = {action.dest for action in parser._actions if _is_boolean(action)}
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            words.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        part = PARTS.get(name.rpartition(".")[2])
        if part is not None and (equals or rest):
            chosen = whole_choice(part, yaml.safe_load(value if equals else rest.pop(0)))
            equals, value = "=", chosen if isinstance(chosen, str) else json.dumps(chosen)
        elif not equals and rest[:1] not in (["true"], ["false"]):
            if name in booleans:
                equals, value = "=", "true"
            elif name.removeprefix("no_") in booleans:
                name, equals, value = name.removeprefix("no_"), "=", "false"
        words.append(f"--{name}{equals}{value}")
    return words


def _is_boolean(action: Any) -> bool:
    return getattr(action, "_typehint", None) is bool


def parser_of(verb: Callable[..., Any], name: str) -> Parser:
    """A parser whose options are the parameters of `verb`; parameters without default come first.

    The parameter `resolved` is left out: it is filled with the parsed configuration.
    """
    if "" not in sys.path:
        sys.path.append("")  # a user's own class lies in the working directory
    set_parsing_settings(parse_optionals_as_positionals=False, validate_defaults=False)
    summary = (verb.__doc__ or "").split("\n")[0]
    parser = Parser(prog=f"forethought {name}", description=summary)
    parser.add_argument("--config", action=ConfigFile, help="packaged experiment or YAML file")
    parser.add_function_arguments(
        verb, skip={"resolved"}, as_group=False, as_positional=True, fail_untyped=True
    )
    return parser


def parse(parser: Parser, argv: Sequence[str]) -> tuple[dict[str, Any], str]:
    """Parse and build the arguments.

    Returns:
        Keyword arguments, and the resolved configuration as YAML.
    """
    namespace: Namespace = parser.parse_args(normalised(parser, argv))
    resolved = parser.dump(namespace)
    built = parser.instantiate(namespace)
    arguments = {key: getattr(built, key) for key in vars(built) if key != "config"}
    return arguments, resolved


def is_ours(class_path: str) -> bool:
    """Whether a dotted path leads to a class that `forethought` itself defines."""
    module, _, name = class_path.rpartition(".")
    if module.split(".")[0] != "forethought":
        return False
    try:
        found = getattr(import_module(module), name, None)
    except ImportError:
        return False
    return isinstance(found, type) and found.__module__.split(".")[0] == "forethought"


def refuse_strangers(config: Any, source: Path) -> None:
    """Refuse a configuration that could import code from outside of `forethought`.

    Raises:
        ValueError: a text is neither plain words nor a path into `forethought`.
    """
    if isinstance(config, dict):
        for value in config.values():
            refuse_strangers(value, source)
    elif isinstance(config, list):
        for value in config:
            refuse_strangers(value, source)
    elif isinstance(config, str):
        # Braces, colons and quotes could hold YAML in a text, in which a class path could hide.
        plain = re.fullmatch(r"[\w./ +-]*", config)
        paths = re.findall(r"[^\W\d]\w*(?:\.\w+)+", config)
        if not plain or not all(is_ours(path) for path in paths):
            raise ValueError(
                f"{source} names {config!r}, code from outside of forethought: add --trust if you "
                "trust whoever wrote that run"
            )


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ValueError: the file is no YAML mapping.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: it is no YAML ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no mapping")
    return content
