"""The verb `completion`: a script that lets a shell complete the words of the command line.

All words are written into the script, so that completing them starts no Python.
"""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from forethought.cli import VERBS
from forethought.listing import known_environments
from forethought.parser import (
    PARTS,
    Parser,
    classes_of,
    packaged_configs,
    packaged_tasks,
    parser_of,
    part_of,
)

DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass
class Words:
    """What can be completed.

    Attributes:
        options: Options of each verb, with dashes.
        flags: Options that take no value.
        values: Values of an option.
        files: Options whose value may be a file or a folder.
        positional: Values of a verb's first words, if there are any but folders.
    """

    options: dict[str, list[str]] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)
    values: dict[str, list[str]] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    positional: dict[str, list[str]] = field(default_factory=dict)


def completion(shell: Literal["bash", "zsh"]) -> None:
    """Print a script for a shell that completes verbs, options, names and files.

    bash: `forethought completion bash > ~/.local/share/bash-completion/completions/forethought`.
    zsh: `forethought completion zsh > DIR/_forethought`, for a DIR in `$fpath`. Write it again
    after an update, or when other environments are installed.

    Args:
        shell: the shell.
    """
    words = known_words()
    sys.stdout.write(bash(words) if shell == "bash" else zsh(words))


def known_words() -> Words:
    """Words of all verbs; imports every one of them, which takes seconds."""
    words = Words()
    environments = known_environments()
    for verb, (module, _) in VERBS.items():
        parser = parser_of(getattr(import_module(f"forethought.{module}"), verb), verb)
        options = ["--help"]
        for action in parser._actions:
            if action.option_strings and not action.dest.endswith("help"):
                options += _read_option(action, words)
        words.options[verb] = options
        words.positional[verb] = _positional(parser, environments)
    words.flags.add("--help")
    words.values["--env"] = environments
    words.values["--device"] = list(DEVICES)
    words.values["--config"] = list(packaged_configs())
    words.values["--task"] = ["reach", "reward", *packaged_tasks()]
    words.files |= {"--config", "--task"}
    return words


def _read_option(action: Any, words: Words) -> list[str]:
    """The option of a parser's action, and those of the classes that can be chosen by it."""
    option = _dashed(action.dest)
    kind = getattr(action, "_typehint", None)
    if is_dataclass(kind) or "ConfigLoad" in type(action).__name__:  # a group, such as --losses
        return []
    if kind is bool:
        words.flags |= {option, f"--no-{option[2:]}"}
        return [option, f"--no-{option[2:]}"]
    if Path in _parts(kind):
        words.files.add(option)
    choices = [str(choice) for choice in _choices(kind)]
    if choices:
        words.values[option] = choices
    part = part_of(action.dest.rpartition(".")[2])
    if part is None:
        return [option]
    package = import_module(f"forethought.{PARTS[action.dest.rpartition('.')[2]][0]}")
    classes = {
        name: found
        for name, found in classes_of(part).items()
        if getattr(package, name, None) is found and not inspect.isabstract(found)
    }
    words.values[option] = sorted(classes)
    arguments = {
        name: None
        for found in classes.values()
        for name, parameter in inspect.signature(found).parameters.items()
        if parameter.default is not parameter.empty
    }
    return [option, *(f"{option}.{name.replace('_', '-')}" for name in arguments)]


def _positional(parser: Parser, environments: list[str]) -> list[str]:
    """Values of the words without an option: ids, choices, or none where they are folders."""
    found: list[str] = []
    for action in parser._actions:
        if not action.option_strings:
            found += [str(choice) for choice in _choices(getattr(action, "_typehint", None))]
            found += environments if action.dest == "pattern" else []
    return found


def _dashed(dest: str) -> str:
    return "--" + dest.rstrip("_").replace("_", "-")


def _parts(kind: Any) -> tuple[Any, ...]:
    """A type, or the types of which a value may be one."""
    union = get_origin(kind) is Union or type(kind).__name__ == "UnionType"
    return get_args(kind) if union else (kind,)


def _choices(kind: Any) -> list[Any]:
    """The values of literal types."""
    return [
        value for part in _parts(kind) if get_origin(part) is Literal for value in get_args(part)
    ]


def _quoted(words: Iterable[str]) -> str:
    """Words as one word of a shell."""
    return shlex.quote(" ".join(words))


def _cases(words: Words) -> str:
    """Branches of a `case` over options: what their values may be."""
    lines = []
    for option in sorted({*words.values, *words.files}):
        does = []
        if option in words.values:
            does.append(f"names={_quoted(words.values[option])}")
        if option in words.files:
            does.append("files=1")
        lines.append(f"        {option}) {'; '.join(does)} ;;")
    return "\n".join(lines)


def _by_verb(found: dict[str, list[str]], beside: str = "") -> str:
    """Branches of a `case` over verbs: the names that may stand there, and a statement beside."""
    return "\n".join(
        f"        {verb}) names={_quoted(given)}{beside} ;;"
        for verb, given in found.items()
        if given
    )


def _table(words: Words) -> str:
    """What may stand at the cursor, in the words that both shells know.

    It reads the shell's variables `verb`, `word` (what is being written) and `option` (whose value
    it is, if it is one), and sets `names` and `files`.
    """
    return f"""\
    case $option in
        {"|".join(sorted(words.flags))}) option="" ;;
    esac
    case $option in
{_cases(words)}
    esac
    if [[ -z $option && $word == -* ]]; then
        case $verb in
{_by_verb(words.options)}
        esac
    elif [[ -z $option ]]; then
        files=1
        case $verb in
{_by_verb(words.positional, ' files=""')}
        esac
    fi"""


def bash(words: Words) -> str:
    """The script for bash."""
    return f"""\
# bash completion of forethought, written by `forethought completion bash`.
_forethought() {{
    local line=${{COMP_LINE:0:COMP_POINT}} word option="" prefix="" names="" files="" verb
    local -a before
    word=${{line##*[[:space:]]}}
    read -ra before <<< "${{line:0:${{#line}}-${{#word}}}}"
    COMPREPLY=()
    if (( ${{#before[@]}} < 2 )); then
        COMPREPLY=($(compgen -W {_quoted([*VERBS, "--help", "--version"])} -- "$word"))
        return
    fi
    verb=${{before[1]}}
    if [[ $word == --*=* ]]; then
        option=${{word%%=*}}
        word=${{word#*=}}
        [[ $COMP_WORDBREAKS == *=* ]] || prefix="$option="
    elif [[ ${{before[-1]}} == --* && ${{before[-1]}} != *=* ]]; then
        option=${{before[-1]}}
    fi
{_table(words)}
    [[ -z $names ]] || COMPREPLY=($(compgen -P "$prefix" -W "$names" -- "$word"))
    if [[ -n $files ]]; then
        compopt -o filenames 2> /dev/null
        local IFS=$'\\n'
        COMPREPLY+=($(compgen -P "$prefix" -f -- "$word"))
    fi
}}
complete -F _forethought forethought
"""


def zsh(words: Words) -> str:
    """The script for zsh."""
    verbs = " ".join(shlex.quote(f"{verb}:{told}") for verb, (_, told) in VERBS.items())
    return f"""\
#compdef forethought
# zsh completion of forethought, written by `forethought completion zsh`.
_forethought() {{
    local word=${{words[CURRENT]}} previous=${{words[CURRENT-1]}} verb=${{words[2]}} option=""
    local names="" files=""
    local -a verbs
    if (( CURRENT == 2 )); then
        verbs=({verbs})
        _describe verb verbs
        return
    fi
    if [[ $word == --*=* ]]; then
        option=${{word%%=*}}
        compset -P '*='
    elif [[ $previous == --* && $previous != *=* ]]; then
        option=$previous
    fi
{_table(words)}
    [[ -z $names ]] || compadd -- ${{(s: :)names}}
    [[ -z $files ]] || _files
}}
if [[ ${{funcstack[1]}} == _forethought ]]; then
    _forethought "$@"
else
    compdef _forethought forethought
fi
"""
