"""The command line's parser: jsonargparse, with dashes, one-line errors and packaged configs."""

from __future__ import annotations

import difflib
import inspect
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import docstring_parser
import yaml
from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    ArgumentParser,
    Namespace,
    set_parsing_settings,
)


def packaged_configs() -> dict[str, Path]:
    """Experiments that ship with the package, by name."""
    folder = Path(str(files("forethought.configs")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def packaged_tasks() -> dict[str, Path]:
    """Tasks that ship with the package, by name."""
    folder = Path(str(files("forethought.configs"))) / "tasks"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


# Parts chosen by class: the last word of their option, where the class lies that they inherit, and
# its name. It is imported when it is asked for, because PyTorch takes seconds.
PARTS: dict[str, tuple[str, str]] = {
    "planner": ("planners", "Planner"),
    "policy": ("envs", "Policy"),
    "perception": ("worldmodel", "Perception"),
    "predictor": ("worldmodel", "Predictor"),
    "term": ("agent", "IntrinsicTerm"),
}


def part_of(key: str) -> type | None:
    """The class that a part must inherit whose option ends in the word `key`."""
    if key not in PARTS:
        return None
    package, name = PARTS[key]
    part: type = getattr(import_module(f"forethought.{package}"), name)
    return part


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
    if found is None or not isinstance(given.get("init_args") or {}, dict):
        return choice
    # The default of a field that is made by a factory is a mark, and no value to be written down.
    known = fields(found) if is_dataclass(found) else ()
    made = {field.name for field in known if field.default is MISSING}
    parameters = inspect.signature(found).parameters.values()
    defaults = {
        p.name: p.default
        for p in parameters
        if p.default is not inspect.Parameter.empty and p.name not in made
    }
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
    return classes_of(base).get(name)


def classes_of(base: type) -> dict[str, type]:
    """Known classes that inherit `base`, by name."""
    known: dict[str, type] = {}
    queue: list[type] = [base]
    while queue:
        children: list[type] = queue.pop().__subclasses__()
        known |= {child.__name__: child for child in children}
        queue += children
    return known


def whole_choices(config: Any, key: str = "") -> Any:
    """A configuration in which every choice of class is whole."""
    part = part_of(key)
    if part is not None:
        return whole_choice(part, config)
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
            if Path(values).is_file():
                content = read_yaml(Path(values))
            else:  # of a whole experiment, what this verb reads
                known = {action.dest.partition(".")[0] for action in parser._actions}
                experiment = read_yaml(packaged[values])
                content = {name: value for name, value in experiment.items() if name in known}
        values = yaml.safe_dump(whole_choices(content)) + "\n"
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]


class Parser(ArgumentParser):
    """Options are written with dashes; an error is a ValueError, which the command line prints."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong with the words as a ValueError."""
        raise ValueError(self._plainly(" ".join(message.split()))) from ex

    def _plainly(self, message: str) -> str:
        """What jsonargparse says, with a remedy; its own words where they are others."""
        for pattern, answer in (
            (r"unrecognized arguments: (--[^\s=]+)", self._no_option),
            (r"Group '([\w.]+)' does not accept option '([\w.]+)'", self._no_option),
            (r'Parser key "([\w.]+)": Option \'([\w.]+)\' is not accepted', self._no_argument),
            (r'Parser key "([\w.]+)": .*: ([\w.]+)$', self._no_class),
            (r'Parser key "([\w.]+)": Expected a (.+)\. Got value: (.*)$', self._no_value),
        ):
            found = re.search(pattern, message)
            sentence = answer(*found.groups()) if found else ""
            if sentence:
                return sentence
        if message.startswith(("the following arguments are", "unrecognized", "argument ")):
            return f"{message}: see {self.prog} --help"
        return message

    def _no_option(self, *path: str) -> str:
        name = ".".join(path)
        dashes = "--" if name.startswith("--") else ""
        if any(a.dest == name.removeprefix("--") for a in self._actions if not a.option_strings):
            return f"no option {name}: leave {name} out and give its value by itself"
        near = self._near(name.removeprefix("--").replace("-", "_"))
        if near and dashes:
            return f"no option {name}: did you mean --{near.replace('_', '-')}?"
        if near:
            return f"no option {name}: did you mean {near}?"
        if dashes:
            return f"no option {name}: see {self.prog} --help"
        return f"{path[-1]!r} is not accepted in {'.'.join(path[:-1])}: leave it out"

    def _near(self, name: str) -> str:
        """The option most like a name: in its own group, else in any other; or nothing."""
        known = [action.dest for action in self._actions if action.option_strings]
        group = name.rpartition(".")[0]
        beside = [dest for dest in known if dest.rpartition(".")[0] == group]
        near = difflib.get_close_matches(name, beside, 1, 0.7)
        near = near or difflib.get_close_matches(name, known, 1, 0.8)
        return near[0] if near else ""

    def _no_argument(self, key: str, name: str) -> str:
        if part_of(key.rpartition(".")[2]) is None:
            return self._no_option(key, name)
        return (
            f"{key} has no option {name!r}: {self.prog} --{key}.help CLASS lists those of a class"
        )

    def _no_class(self, key: str, value: str) -> str:
        word = key.rpartition(".")[2]
        part = part_of(word)
        if part is None:
            return ""
        package = import_module(f"forethought.{PARTS[word][0]}")
        ours = [name for name in classes_of(part) if hasattr(package, name)]
        return (
            f"{key} is {value!r}, which is no class that can be found: use one of "
            f"{', '.join(sorted(ours))}, or the import path of your own"
        )

    def _no_value(self, key: str, expected: str, value: str) -> str:
        kinds = {"int": "a whole number", "float": "a number", "bool": "true or false"}
        choices = re.fullmatch(r"typing\.Literal\[(.*)\]", expected)
        kind = re.fullmatch(r"<class '(\w+)'>", expected)
        if choices:
            return f"{key} is {value}: choose one of {choices.group(1)}"
        if kind and kind.group(1) in kinds:
            return f"{key} is {value}: give {kinds[kind.group(1)]}"
        return ""

    def format_help(self, formatter: Any = None) -> str:
        """Help with dashes in option names."""
        return re.sub(
            r"--[\w.]+",
            lambda m: m.group().rstrip("_").replace("_", "-"),
            super().format_help(formatter),
        )


def normalised(parser: ArgumentParser, argv: Sequence[str]) -> list[str]:
    """Rewrite options as the parser knows them; values stay as they are.

    `--env-options.layout=x` becomes `--env_options.layout=x`, and a boolean option is a flag:
    `--short` and `--no-short` become `--short=true` and `--short=false`.
    """
    known = {action.dest for action in parser._actions}
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
        if f"{name}_" in known:  # a keyword of Python, such as --import
            name += "_"
        part = part_of(name.rpartition(".")[2])
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
    """A parser whose options are the keyword-only parameters of `verb`; the others come first.

    Positional parameters with a default may be left out. The parameter `resolved` is left out: it
    is filled with the parsed configuration. Verbs with a seed are experiments, and read them from
    a `--config`.
    """
    if "" not in sys.path:
        sys.path.append("")  # a user's own class lies in the working directory
    set_parsing_settings(parse_optionals_as_positionals=False, validate_defaults=False)
    summary = (verb.__doc__ or "").split("\n")[0]
    parser = Parser(prog=f"forethought {name}", description=summary)
    parameters = inspect.signature(verb).parameters
    if "seed" in parameters:
        parser.add_argument("--config", action=ConfigFile, help="packaged experiment or YAML file")
    optional = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        and parameter.default is not parameter.empty
    }
    parser.add_function_arguments(
        verb, skip={"resolved", *optional}, as_group=False, as_positional=True, fail_untyped=True
    )
    for action in parser._actions:
        if action.dest.endswith("_"):  # a keyword of Python, such as --import
            action.metavar = action.dest.rstrip("_").upper()
    types = get_type_hints(verb)
    helps = {
        item.arg_name: item.description for item in docstring_parser.parse_from_object(verb).params
    }
    for name, default in optional.items():
        parser.add_argument(
            name, type=types[name], nargs="?", default=default, help=helps.get(name)
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


# Where a class may be named: a part, the mapping that describes it, and a list of cost terms.
_NAME_CLASSES = {*PARTS, "class_path", "terms"}

# Where the configuration of a run holds words of its own: paths and names, which import nothing...
_PATHS = {"run", "data", "task", "weights"}
# ... and choices. A word anywhere else would be the file that a whole group is read from.
_WORDS = {"env", "precision", "device"}


def refuse_strangers(config: Any, source: Path, key: str = "") -> None:
    """Refuse a configuration that could import code from outside of `forethought`.

    Args:
        config: the configuration, or a part of it.
        source: file it comes from.
        key: key that it lies under.

    Raises:
        ValueError: a class is not one of ours, or a text elsewhere is neither plain words nor a
            path into `forethought`.
    """
    if isinstance(config, dict):
        for name, value in config.items():
            refuse_strangers(value, source, str(name))
    elif isinstance(config, list):
        for value in config:
            refuse_strangers(value, source, key)
    elif isinstance(config, str) and not _is_harmless(config, key):
        _refuse(config, source)


def refuse_strangers_in_run(config: dict[str, Any], source: Path) -> None:
    """Refuse a run's configuration that could import code from outside of `forethought`.

    The run's place, its data, the name of its task and weights that it began with are no code: the
    task that counts lies in the run folder and is checked itself, weights are read as tensors.

    Raises:
        ValueError: as `refuse_strangers` says, or another file is to be read.
    """
    for name, value in config.items():
        if isinstance(value, str):
            if name in _PATHS:
                continue
            if name not in _WORDS and not _names_class(str(name)):
                _refuse(value, source)
        refuse_strangers(value, source, str(name))


def _names_class(key: str) -> bool:
    return key.rpartition(".")[2] in _NAME_CLASSES


def _is_harmless(text: str, key: str) -> bool:
    """Whether a text under `key` imports nothing but what is ours."""
    if _names_class(key):
        if "." in text:
            return is_ours(text)
        return any(text in classes_of(part) for part in map(part_of, PARTS) if part is not None)
    # Braces, colons and quotes could hold YAML in a text, in which a class path could hide.
    if not re.fullmatch(r"[\w./ +-]*", text):
        return False
    return "." not in text or _is_number(text) or is_ours(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _refuse(text: str, source: Path) -> NoReturn:
    raise ValueError(
        f"{source} names {text!r}, code from outside of forethought: add --trust if you trust "
        "whoever wrote it"
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
