"""Completion: what the shells are offered, without starting Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from forethought.cli import VERBS, main
from forethought.completion import bash, known_words, zsh

BASH, ZSH = shutil.which("bash"), shutil.which("zsh")
needs_bash = pytest.mark.skipif(BASH is None, reason="needs bash")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "forethought.bash"
    path.write_text(bash(known_words()))
    return path


def offered(
    script: Path, line: str, folder: Path, breaks: str = "$' \\t\\n\"\\'><=;|&(:'"
) -> list[str]:
    """What bash offers at the end of a line."""
    code = f"""
        source {script}
        python() {{ echo started >&2; exit 1; }}
        COMP_WORDBREAKS={breaks}
        COMP_LINE={line!r} COMP_POINT={len(line)}
        _forethought
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        [str(BASH), "--norc", "-c", code], cwd=folder, check=True, capture_output=True, text=True
    )
    assert done.stderr == ""
    return done.stdout.split()


@needs_bash
@pytest.mark.parametrize(
    ("line", "some", "others"),
    [
        ("forethought ", {*VERBS, "--help"}, set()),
        ("forethought e", {"evaluate", "envs"}, {"train"}),
        ("forethought train --conf", {"--config"}, {"--run"}),
        ("forethought train --config t", {"two-rooms"}, {"cartpole-swingup"}),
        ("forethought train --config=t", {"two-rooms"}, {"cartpole-swingup"}),
        ("forethought train --config ", {"two-rooms", "own.yaml"}, {"--run"}),
        ("forethought train --weights ", {"own.yaml", "runs"}, {"--run"}),
        ("forethought train --task cart", {"cartpole-swingup"}, {"reach"}),
        ("forethought train --env dm_control/cart", {"dm_control/cartpole-swingup"}, {"own.yaml"}),
        ("forethought train --env forethought/", {"forethought/TwoRooms-v0"}, {"CartPole-v1"}),
        ("forethought train --env Cart", {"CartPole-v1"}, {"CartPole-v0"}),
        ("forethought train --no-", {"--no-resume"}, {"--resume"}),
        ("forethought train --resume --ru", {"--run"}, {"--rounds"}),
        ("forethought train --planner ", {"CEM", "Gradient"}, {"--run", "own.yaml"}),
        ("forethought train --planner.cand", {"--planner.candidates"}, {"--planner.starts"}),
        ("forethought train --model.perception.lat", {"--model.perception.latent-dim"}, set()),
        ("forethought evaluate --cost.reduction=s", {"sum", "softmin"}, {"last"}),
        ("forethought evaluate ru", {"runs"}, {"--run"}),
        ("forethought evaluate runs --json o", {"own.yaml"}, set()),
        ("forethought data some --imp", {"--import", "--import-minari"}, {"--import-"}),
        ("forethought envs Pend", {"Pendulum-v1"}, {"CartPole-v1"}),
        ("forethought completion ", {"bash", "zsh"}, {"own.yaml"}),
        ("forethought completion z", {"zsh"}, {"bash"}),
        ("forethought nonsense --x", set(), {"--run"}),
    ],
)
def test_bash_offers(
    script: Path, line: str, some: set[str], others: set[str], tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").touch()
    (tmp_path / "runs").mkdir()
    found = offered(script, line, tmp_path)
    assert some <= set(found)
    assert not others & set(found)


@needs_bash
def test_bash_that_does_not_break_words_at_equals(script: Path, tmp_path: Path) -> None:
    found = offered(script, "forethought train --config=two", tmp_path, "' '")
    assert "--config=two-rooms" in found
    assert all(word.startswith("--config=two-rooms") for word in found)


def test_every_option_of_the_help_is_offered(capsys: pytest.CaptureFixture[str]) -> None:
    words = known_words()
    for verb in ("train", "evaluate", "data"):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        told = capsys.readouterr().out.split("options:")[1]
        shown = {line.split()[0] for line in told.splitlines() if line.startswith("  --")}
        shown = {option.partition(",")[0].rstrip(",") for option in shown}
        groups = {option for option in shown if any(o.startswith(f"{option}.") for o in shown)}
        flags = {f"--no-{flag[2:]}" for flag in words.flags}
        missing = shown - groups - set(words.options[verb]) - flags
        assert not {o for o in missing if not o.endswith(".help")}, verb


def test_the_verb_prints_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out.endswith("complete -F _forethought forethought\n")
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef forethought\n")


def test_both_shells_are_offered_the_same() -> None:
    """zsh is not on every machine; what it is told is what bash is told, which is tried above."""
    words = known_words()
    told = [script(words).split("case $option in", 1)[1] for script in (bash, zsh)]
    of_bash, of_zsh = (text.split("    [[ -z $names ]]")[0] for text in told)
    assert of_bash == of_zsh
    assert "two-rooms" in of_zsh
    assert "--planner.candidates" in of_zsh


def test_an_unknown_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fish"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "zsh" in said


@pytest.mark.skipif(ZSH is None, reason="needs zsh")
def test_zsh_understands_its_script(tmp_path: Path) -> None:
    path = tmp_path / "_forethought"
    path.write_text(zsh(known_words()))
    subprocess.run([str(ZSH), "-f", "-n", str(path)], check=True)
