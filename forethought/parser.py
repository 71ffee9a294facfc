"""The command line's parser: jsonargparse, with dashes, one-line errors and packaged configs."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any, NoReturn

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


class ConfigFile(ActionConfigFile):
    """`--config NAME|FILE`: a packaged experiment by its name, or any YAML file."""

    def __call__(
        self, parser: Any, cfg: Any, values: Any, option_string: str | None = None
    ) -> None:
        """Apply the file."""
        packaged = packaged_configs()
        if "\n" not in values and not Path(values).is_file():
            if values not in packaged:
                raise TypeError(
                    f"no config {values!r}: give a YAML file or one of {', '.join(packaged)}"
                )
            values = str(packaged[values])
        super().__call__(parser, cfg, values, option_string)  # type: ignore[no-untyped-call]


class Parser(ArgumentParser):
    """Options are written with dashes; an error is one sentence and exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit with 2."""
        fail(self.prog, message)

    def format_help(self, formatter: Any = None) -> str:
        """Help with dashes in option names."""
        return re.sub(
            r"--[\w.]+", lambda m: m.group().replace("_", "-"), super().format_help(formatter)
        )


def fail(program: str, message: str) -> NoReturn:
    """Say on one line of stderr what is wrong and exit with 2."""
    sentence = " ".join(message.split())
    sys.stderr.write(f"{program}: {sentence}\n")
    raise SystemExit(2)


def normalised(parser: ArgumentParser, argv: Sequence[str]) -> list[str]:
    """Rewrite options as the parser knows them; values stay as they are.

    `--env-options.layout=x` becomes `--env_options.layout=x`, and a boolean option is a flag:
    `--short` and `--no-short` become `--short=true` and `--short=false`.
    """
    booleans = {action.dest for action in parser._actions if _is_boolean(action)}
    words: list[str] = []
    for word, following in zip_longest(argv, argv[1:], fillvalue=""):
        if not word.startswith("--"):
            words.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if not equals and following not in {"true", "false"}:
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
        sys.path.insert(0, "")  # a user's own class lies in the working directory
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
    resolved = parser.dump(namespace, skip_none=False)
    built = parser.instantiate(namespace)
    arguments = {key: getattr(built, key) for key in vars(built) if key != "config"}
    return arguments, resolved


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
        if not plain or not all(path.startswith("forethought.") for path in paths):
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
