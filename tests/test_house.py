"""House rules as tests: which way imports point, what is never written, what is kept in step."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Each root folder that becomes a sub-package, and the ones it may import besides itself.
MAY_IMPORT: dict[str, set[str]] = {
    "envs": set(),
    "planners": set(),
    "worldmodel": {"envs"},
    "agent": {"worldmodel", "planners", "envs"},
    "configs": set(),
}
ROOMS = set(MAY_IMPORT)
NAMELESS = {"util", "utils", "common", "misc", "helper", "helpers"}
UNSAFE_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "shelve",
    "marshal",
}


def imported(tree: ast.AST) -> Iterator[tuple[int, int, str]]:
    """Yield (line, relative level, dotted name) for each import; `from a import b` yields "a.b"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = f"{node.module}." if node.module else ""
            yield from ((node.lineno, node.level, prefix + alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = ast.unparse(node.func)
            if function.endswith(("import_module", "__import__")) and isinstance(
                node.args[0].value, str
            ):
                yield node.lineno, 0, node.args[0].value


def import_problems(file: Path, tree: ast.AST) -> list[str]:
    """Return what is wrong with the imports of `file`, whose path is relative to the repository."""
    room = file.parts[0] if file.parts[0] in ROOMS else None
    problems = []
    for line, level, name in imported(tree):
        parts = name.split(".")
        if level > len(file.parts) - 1 and file.parts[0] in ROOMS | {"forethought"}:
            problems.append(f"{file}:{line}: relative import leaves {file.parts[0]}/")
        elif level == 0 and parts[0] in ROOMS:
            problems.append(f"{file}:{line}: import forethought.{name}, not {name}")
        elif level == 0 and room and parts[0] == "forethought":
            target = parts[1] if len(parts) > 1 else "forethought"
            if target not in MAY_IMPORT[room] | {room}:
                problems.append(f"{file}:{line}: {room} must not import {name}")
    return problems


@pytest.fixture(scope="module")
def trees(repository: Path, repository_files: list[Path]) -> dict[Path, ast.Module]:
    """The syntax tree of every Python file, by path relative to the repository."""
    files = [
        file for file in repository_files if file.suffix == ".py" and file.parts[0] != "typings"
    ]
    return {file: ast.parse((repository / file).read_text("utf-8"), str(file)) for file in files}


@pytest.fixture(scope="module")
def shipped(trees: dict[Path, ast.Module]) -> dict[Path, ast.Module]:
    """The syntax trees of the files that are installed."""
    return {file: tree for file, tree in trees.items() if file.parts[0] in ROOMS | {"forethought"}}


def setup_rooms(repository: Path) -> set[str]:
    """Return the folders that setup.py maps to sub-packages."""
    for node in ast.parse((repository / "setup.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ROOMS":
            return set(ast.literal_eval(node.value))
    raise AssertionError("setup.py has no ROOMS")


@pytest.mark.parametrize(
    ("file", "source", "wrong"),
    [
        ("envs/a.py", "from forethought.envs import spec", False),
        ("envs/a.py", "from .spec import EnvSpec", False),
        ("envs/a.py", "from forethought.planners import CEM", True),
        ("envs/a.py", "from ..planners import CEM", True),
        ("envs/a.py", "import envs.spec", True),
        ("planners/a.py", "from forethought import envs", True),
        ("planners/a.py", "def f():\n    import forethought.worldmodel", True),
        ("worldmodel/a.py", "from forethought.envs import EnvSpec", False),
        ("worldmodel/a.py", "from forethought import agent", True),
        ("agent/cost/a.py", "from ..memory import Memory", False),
        ("agent/cost/a.py", "from ...worldmodel import JEPA", True),
        ("agent/a.py", "from forethought.worldmodel import JEPA", False),
        ("agent/a.py", "from forethought.build import build", True),
        ("agent/a.py", "import importlib\nimportlib.import_module('forethought.cli')", True),
        ("agent/a.py", "import forethought", True),
        ("forethought/a.py", "from forethought.agent import Agent", False),
        ("tests/test_a.py", "from forethought.cli import main", False),
        ("tests/test_a.py", "from worldmodel import JEPA", True),
    ],
)
def test_import_rule_finds_what_it_should(file: str, source: str, wrong: bool) -> None:
    assert bool(import_problems(Path(file), ast.parse(source))) == wrong


def test_imports_point_one_way(trees: dict[Path, ast.Module]) -> None:
    problems = [problem for file, tree in trees.items() for problem in import_problems(file, tree)]
    assert not problems, "\n".join(problems)


def test_rooms_are_the_same_everywhere(repository: Path) -> None:
    makefile = re.search(
        r"^ROOMS := (.+)$", (repository / "Makefile").read_text("utf-8"), re.MULTILINE
    )
    assert makefile is not None
    assert set(makefile.group(1).split()) == setup_rooms(repository) == ROOMS
    assert [room for room in ROOMS if not (repository / room / "__init__.py").is_file()] == []


def test_library_code_does_not_print(shipped: dict[Path, ast.Module]) -> None:
    problems = [
        f"{file}:{node.lineno}: print"
        for file, tree in shipped.items()
        if file.parts[0] in ROOMS
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    ]
    assert not problems, "\n".join(problems)


def test_modules_are_named_after_concepts(trees: dict[Path, ast.Module]) -> None:
    words = {file: set(re.split(r"[/_.]", file.as_posix())) for file in trees}
    assert [str(file) for file in trees if words[file] & NAMELESS] == []


def test_nothing_is_unpickled(trees: dict[Path, ast.Module]) -> None:
    problems = []
    for file, tree in trees.items():
        if file.parts[0] == "tests":  # a test may prove that records can be sent to another process
            continue
        for line, level, name in imported(tree):
            if level == 0 and (
                name.split(".")[0] in UNSAFE_MODULES or name in ("torch.load", "torch.save")
            ):
                problems.append(f"{file}:{line}: {name}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                function = ast.unparse(node.func)
                pickles = any(
                    keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
                    for keyword in node.keywords
                )
                if file == Path("forethought/foreign.py") and function == "torch.load":
                    # The one exception: files of others, of which nothing but tensors is read.
                    pickles = not any(
                        keyword.arg == "weights_only" and ast.unparse(keyword.value) == "True"
                        for keyword in node.keywords
                    )
                    function = "torch.load without weights_only" if pickles else ""
                if function in ("torch.load", "torch.save") or pickles:
                    problems.append(f"{file}:{node.lineno}: {function}; use safetensors and JSON")
    assert not problems, "\n".join(problems)


def test_no_device_is_named(trees: dict[Path, ast.Module]) -> None:
    problems = [
        f"{file}:{node.lineno}: {node.value!r}"
        for file, tree in trees.items()
        if file.parts[0] != "tests"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.search(r"cuda:\d", node.value)
    ]
    assert not problems, "\n".join(problems)


def written_docstring(thing: object) -> bool:
    """Whether a person wrote the docstring (dataclasses make one up: their signature)."""
    if not inspect.isclass(thing):
        return not inspect.isroutine(thing) or bool(inspect.getdoc(thing))
    text = vars(thing).get("__doc__") or ""
    return bool(text) and not text.startswith(f"{thing.__name__}(")


def test_public_names_exist_and_are_documented(shipped: dict[Path, ast.Module]) -> None:
    problems = []
    for file in (file for file in shipped if file.name == "__init__.py"):
        parents = () if file.parts[0] == "forethought" else ("forethought",)
        package = importlib.import_module(".".join((*parents, *file.parent.parts)))
        if not package.__doc__:
            problems.append(f"{file}: no docstring")
        if not hasattr(package, "__all__"):
            problems.append(f"{file}: no __all__")
        for name in getattr(package, "__all__", ()):
            thing = getattr(package, name, None)
            if not hasattr(package, name):
                problems.append(f"{file}: {name} is in __all__ and does not exist")
            elif callable(thing) and not written_docstring(thing):
                problems.append(f"{file}: {name} has no docstring")
    assert not problems, "\n".join(problems)


def link_targets(repository: Path) -> dict[str, str]:
    """Return the links that typings/forethought must hold: name to relative target."""
    targets = {room: f"../../{room}" for room in setup_rooms(repository)}
    modules = (repository / "forethought").glob("*.py")
    return targets | {module.name: f"../../forethought/{module.name}" for module in modules}


def links(root: Path) -> dict[str, str]:
    """Return the links below typings/forethought, name to target; a plain file has target ""."""
    folder = root / "typings" / "forethought"
    return {
        path.name: str(path.readlink()) if path.is_symlink() else "" for path in folder.iterdir()
    }


def test_type_checkers_see_every_module(repository: Path) -> None:
    assert links(repository) == link_targets(repository), "run: make typings"
    assert all(
        (repository / "typings" / "forethought" / name).exists() for name in links(repository)
    )
    inner = list((repository / "forethought").glob("*/*.py"))
    assert not inner, "forethought/ is flat: its folders would need links of their own"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_typings_mends_the_links(repository: Path, tmp_path: Path) -> None:
    for room in ROOMS:
        (tmp_path / room).mkdir()
    folder = tmp_path / "forethought"
    folder.mkdir()
    for module in ("__init__.py", "build.py"):
        (folder / module).touch()
    (tmp_path / "typings" / "forethought").mkdir(parents=True)
    (tmp_path / "typings" / "forethought" / "removed.py").symlink_to("../../forethought/removed.py")
    for name in ("Makefile", "setup.py"):
        shutil.copy(repository / name, tmp_path)
    for _ in range(2):
        subprocess.run(["make", "--silent", "typings"], cwd=tmp_path, check=True)
        assert links(tmp_path) == link_targets(tmp_path)


def test_constraints_pin_every_direct_dependency(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text("utf-8"))["project"]
    direct = project["dependencies"] + project["optional-dependencies"]["dev"]
    lines = (repository / "constraints.txt").read_text("utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    problems = []
    for pin in pins:
        # "+cpu" and its like exist on one index only; the plain version is satisfied by them too.
        if not re.fullmatch(r"==[^,+*]+", str(pin.specifier)):
            problems.append(f"{pin} is not one portable version")
    for requirement in map(Requirement, direct):
        name = canonicalize_name(requirement.name)
        versions = [str(pin.specifier)[2:] for pin in pins if canonicalize_name(pin.name) == name]
        if not versions:
            problems.append(f"{requirement} has no pin")
        problems += [
            f"{requirement} is pinned to {version}"
            for version in versions
            if not requirement.specifier.contains(version)
        ]
    assert not problems, "\n".join([*problems, "see CONTRIBUTING.md, Dependencies"])


# Written so that no pattern matches itself. Absolute paths alone count: "net/work" is fine.
OF_ONE_MACHINE = re.compile(
    r"(?<![\w.~*\])}<])/(?:[w]ork|[r]oot|[o]pt/(?:wheels|pypi)|[h]ome/\w|[U]sers/\w)\b"
    r"|\.\./[s]hared\b"
    r"|\b(?:[p]ypi\.org|[p]ythonhosted\.org|[d]ownload\.pytorch\.org)"
    r"|://[^\s/]*(?:[a]rtifactory|[d]evpi|[n]exus)"
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see " + "/" + "work/main", True),
        ("file://" + "/" + "opt/wheels", True),
        ("'" + "/" + "root/.cache'", True),
        ("https://" + "pypi" + ".org/simple", True),
        ("the net/work of a/root", False),
        ("docs/workflow.md and /tmp/run", False),
    ],
)
def test_machine_pattern_finds_what_it_should(text: str, found: bool) -> None:
    assert bool(OF_ONE_MACHINE.search(text)) == found


def test_files_name_no_machine_and_no_registry(
    repository: Path, repository_files: list[Path]
) -> None:
    problems = []
    for file in repository_files:
        path = repository / file
        if path.is_symlink() or not path.is_file():
            continue
        try:
            lines = path.read_text("utf-8").splitlines()
        except UnicodeDecodeError:  # a picture
            continue
        problems += [
            f"{file}:{number}: {match.group()}"
            for number, line in enumerate(lines, 1)
            if (match := OF_ONE_MACHINE.search(line))
        ]
    assert not problems, "\n".join(problems)
