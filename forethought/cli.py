"""The command line. Only the chosen verb is imported, because PyTorch takes seconds to load."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

VERBS = {
    "demo": ("demo", "learn Two-Rooms from pixels, plan, distill, and show the result"),
    "collect": ("training", "collect episodes into a data set"),
    "train": ("training", "train a world model into a run folder"),
    "evaluate": ("running", "evaluate a run on held-out episodes, with baselines"),
    "distill": ("running", "compile a run's plans into a policy"),
    "act": ("running", "let a run's agent act, with a video if wanted"),
    "show": ("running", "show what is in a run folder"),
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
        trust = "--trust=true" in normalised(parser, words)
        words = defaults_from_run(Path(words[0]), trust=trust) + words
    arguments, resolved = parse(parser, words)
    if verb == "train":
        arguments["resolved"] = resolved
    return function(**arguments)


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
        sys.stderr.write(f"forethought: no verb {verb!r}: use one of {', '.join(VERBS)}\n")
        return 2
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from forethought.worldmodel import NonFiniteLossError

    try:
        result = call(verb, rest)
    except (ValueError, OSError, NonFiniteLossError) as error:
        if os.environ.get("FORETHOUGHT_DEBUG"):
            raise
        sentence = " ".join(str(error).split())
        sys.stderr.write(f"forethought {verb}: {sentence}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"forethought {verb}: stopped\n")
        return 130
    if verb == "evaluate":
        from rich.console import Console

        from forethought.running import table_of

        Console().print(table_of(result, result[0]["task"]))
    return 0
