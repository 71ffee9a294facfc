"""The command line. Only the chosen verb is imported, because PyTorch takes seconds to load."""

from __future__ import annotations

import difflib
import errno
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

VERBS = {
    "demo": ("demo", "learn Two-Rooms from pixels, plan, distill, and show the result"),
    "collect": ("collecting", "collect episodes into a data set"),
    "train": ("training", "train a world model into a run folder"),
    "evaluate": ("running", "evaluate a run on held-out episodes, with baselines"),
    "distill": ("running", "compile a run's plans into a policy"),
    "act": ("acting", "let a run's agent act, with a video if wanted"),
    "show": ("showing", "show what is in a run folder, or compare two"),
    "envs": ("listing", "list environments, or show one"),
    "data": ("describing", "check and describe a data set; import and export"),
    "completion": ("completion", "print a script that lets bash or zsh complete words"),
}
FROM_RUN = {"evaluate", "distill", "act"}


def call(verb: str, argv: Sequence[str]) -> Any:
    """Call a verb with command-line words; returns what the verb returns.

    Raises:
        SystemExit: the words cannot be parsed.
        ValueError, OSError: as the verb says.
    """
    from forethought.parser import normalised, parse, parser_of

    function = getattr(import_module(f"forethought.{VERBS[verb][0]}"), verb)
    words = list(argv)
    parser = parser_of(function, verb)
    if verb in FROM_RUN and words and not {"-h", "--help"} & set(words):
        from forethought.running import defaults_from_run

        if words[0].startswith("-"):
            raise ValueError(f"give the run folder first: forethought {verb} RUN {words[0]} ...")
        trust = _options(normalised(parser, words)).get("trust") == "true"
        words = defaults_from_run(Path(words[0]), verb, trust=trust) + words
    if verb == "train" and "--resume=true" in _joined(normalised(parser, words)):
        words = resumed(parser, words)
    arguments, resolved = parse(parser, words)
    if verb == "train":
        arguments["resolved"] = resolved
    return function(**arguments)


def resumed(parser: Any, words: list[str]) -> list[str]:
    """Words that go on with the run they name: its configuration, and what may differ from it.

    Raises:
        ValueError: an option that the run has decided already.
    """
    from forethought.parser import normalised, read_yaml, refuse_strangers_in_run
    from forethought.run_folder import RunFolder

    given = _options(normalised(parser, words))
    if {"h", "help"} & set(given):
        return words
    decided = sorted(set(given) - {"resume", "run", "device", "threads", "trust"})
    if decided:
        raise ValueError(
            f"--resume goes on with the run's own configuration, so {', '.join(decided)} cannot "
            "be given: leave it out, or train another run"
        )
    if not given.get("run"):
        raise ValueError("--resume needs the run to go on with: give --run RUN")
    folder = RunFolder.open(Path(given["run"]))
    config = read_yaml(folder.config)
    if given.get("trust") != "true":
        refuse_strangers_in_run(config, folder.config)
        words = [*words, "--trust=false"]  # whatever the run says of itself
    return ["--config", folder.config.read_text() + "\n", *words]


def _joined(words: list[str]) -> list[str]:
    """`--name value` as `--name=value`."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _options(words: list[str]) -> dict[str, str]:
    """Options that are given, with the value that counts: the last one."""
    split = (word.lstrip("-").partition("=") for word in _joined(words) if word.startswith("-"))
    return {name: value for name, _, value in split}


def usage() -> str:
    """Help of the command itself."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items()]
    return "\n".join(
        ["usage: forethought VERB [options]", "", "verbs:", *lines, "", "forethought VERB --help"]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 2 after one sentence about what is wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in {"-h", "--help"}:
        sys.stdout.write(usage() + "\n")
        return 0
    verb, *rest = words
    if verb == "--version":
        from importlib.metadata import version

        sys.stdout.write(f"forethought {version('forethought')}\n")
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]}? There are" if near else "use one of"
        sys.stderr.write(f"forethought: no verb {verb!r}: {hint} {', '.join(VERBS)}\n")
        return 2
    be_heard()
    try:
        result = call(verb, rest)
        if verb == "evaluate":
            from rich.console import Console

            from forethought.showing import table_of

            Console().print(table_of(result, result[0]["task"]))
    except KeyboardInterrupt:
        sys.stderr.write(f"forethought {verb}: stopped{how_to_go_on(verb, rest)}\n")
        return 130
    except Exception as error:
        if os.environ.get("FORETHOUGHT_DEBUG") or not is_users(error):
            raise
        said = sentence_of(error)
        if verb == "train" and (isinstance(error, ChildProcessError) or is_full(error)):
            said += how_to_go_on(verb, rest)
        sys.stderr.write(f"forethought {verb}: {said}\n")
        return 2
    return 0


def be_heard() -> None:
    """Let our own messages through to stderr, and of libraries' only warnings that matter."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("forethought").setLevel(logging.INFO)
    # GLFW says so on every machine without a screen, where nobody wants a window.
    warnings.filterwarnings("ignore", message=".*DISPLAY environment variable is missing")


# Errors that users can cause and that are none of Python's, with the module that has them: nobody
# can have raised them before it was loaded.
_OTHERS = (
    ("forethought.worldmodel", "NonFiniteLossError"),
    ("gymnasium.error", "Error"),
    ("safetensors", "SafetensorError"),
    ("torch", "OutOfMemoryError"),
)


def is_users(error: Exception) -> bool:
    """Whether a user can cause such an error, so that one sentence says more than a traceback."""
    kinds = [getattr(sys.modules.get(module), name, None) for module, name in _OTHERS]
    users = (ValueError, OSError, ImportError, MemoryError, *filter(None, kinds))
    return isinstance(error, users)


def sentence_of(error: Exception) -> str:
    """One line about what is wrong, and what can be done."""
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ModuleNotFoundError) and error.name and said.startswith("No module"):
        return f"{said}: install it, or leave out what needs it"
    if type(error).__name__ in {"MemoryError", "OutOfMemoryError"}:
        return f"out of memory ({said}): choose smaller batches, pictures or models"
    if not isinstance(error, OSError) or error.errno is None:
        return said
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    if is_full(error):
        return f"{what}: make room and run it again; files written before are as they were"
    return f"{what}: choose another place, or see who may read and write there"


def is_full(error: Exception) -> bool:
    """Whether there is no room for a file."""
    full = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    return isinstance(error, OSError) and error.errno in full


def how_to_go_on(verb: str, words: Sequence[str]) -> str:
    """What a user can do who has stopped a verb."""
    if verb == "collect":
        return "; the same command goes on from the shards that are written"
    if verb != "train":
        return ""
    options = _options(list(words))
    run = options.get("run") or _run_in_config(options.get("config")) or "runs/run"
    if not (Path(run) / "config.yaml").is_file():
        return ""
    trust = " --trust" if "trust" in options or _needs_trust(Path(run)) else ""
    return f"; go on with: forethought train --resume --run {run}{trust}"


def _run_in_config(config: str | None) -> str | None:
    """The run that a configuration given with `--config` names, if it does."""
    from forethought.parser import packaged_configs, read_yaml

    path = packaged_configs().get(config or "", Path(config or ""))
    named = read_yaml(path).get("run") if path.is_file() else None
    return None if named is None else str(named)


def _needs_trust(run: Path) -> bool:
    """Whether a run names code from outside of forethought."""
    from forethought.parser import read_yaml, refuse_strangers_in_run
    from forethought.tasks import read_task

    try:
        refuse_strangers_in_run(read_yaml(run / "config.yaml"), run / "config.yaml")
        if (run / "task.yaml").is_file():
            read_task(str(run / "task.yaml"), trust=False)
    except ValueError:
        return True
    return False
