"""The sdist is complete, the wheel built from it holds everything, and both installs work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

# One process builds for all (`--dist loadgroup`).
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("packaging")]

ROOMS = ("agent", "worldmodel", "envs", "planners", "configs")


@dataclass(frozen=True)
class Distributions:
    """Both archives, and the names in them (the sdist's without its top folder)."""

    wheel: Path
    wheel_names: frozenset[str]
    sdist_names: frozenset[str]


def run_python(*arguments: str | Path, cwd: Path, path: Path | None = None) -> str:
    """Run this interpreter in `cwd` with `path` alone on PYTHONPATH; return what it wrote."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def distributions(
    repository: Path, repository_files: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Distributions:
    """Build the sdist from a copy of the repository's files, and the wheel from the sdist."""
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for file in repository_files:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(repository / file, copy / file, follow_symlinks=False)
    run_python("-m", "build", "--no-isolation", "--outdir", out, copy, cwd=out)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        wheel_names = frozenset(archive.namelist())
    with tarfile.open(sdist) as archive:
        sdist_names = frozenset(name.partition("/")[2] for name in archive.getnames())
    return Distributions(wheel, wheel_names, sdist_names)


def installed_names(files: list[Path]) -> set[str]:
    """Return where the wheel must hold each of the repository's modules and configurations."""
    names = set()
    for file in files:
        data = file.parts[0] == "configs" and file.suffix in {".yaml", ".json", ".safetensors"}
        shipped = file.suffix == ".py" or data
        if shipped and file.parts[0] in ROOMS:
            names.add(f"forethought/{file.as_posix()}")
        elif shipped and file.parts[0] == "forethought":
            names.add(file.as_posix())
    return names


def test_wheel_holds_every_module_under_one_name(
    distributions: Distributions, repository_files: list[Path]
) -> None:
    names = {name for name in distributions.wheel_names if ".dist-info/" not in name}
    assert names == installed_names(repository_files) | {"forethought/py.typed"}
    assert {f"forethought/{room}/__init__.py" for room in ROOMS} <= names
    assert any(name.endswith("licenses/LICENSE") for name in distributions.wheel_names)


def test_sdist_is_complete(distributions: Distributions, repository_files: list[Path]) -> None:
    wanted = {"setup.py", "pyproject.toml", "README.md", "LICENSE", "forethought/py.typed"}
    for file in repository_files:
        if file.match("tests/test_*.py") or file.parts[0] in (*ROOMS, "forethought"):
            wanted.add(file.as_posix())
    assert wanted - distributions.sdist_names == set()


def test_installed_wheel_is_imported_from_where_it_was_put(
    distributions: Distributions, tmp_path: Path
) -> None:
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run_python(
        *("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"),
        *("--disable-pip-version-check", "--target", target, distributions.wheel),
        cwd=elsewhere,
    )
    code = (
        "import forethought.envs as e, forethought as f; print(f.__file__, e.__file__, sep='\\n')"
    )
    files = run_python("-c", code, cwd=elsewhere, path=target).splitlines()
    assert [Path(file).relative_to(target).as_posix() for file in files] == [
        "forethought/__init__.py",
        "forethought/envs/__init__.py",
    ]


def test_editable_install_is_the_repository(repository: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.util as u\n"
        f"for room in {ROOMS!r}: print(u.find_spec('forethought.' + room).origin)"
    )
    files = run_python("-c", code, cwd=tmp_path).splitlines()
    assert [Path(file).resolve() for file in files] == [
        repository / room / "__init__.py" for room in ROOMS
    ]
