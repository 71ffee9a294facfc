"""The command line: what it accepts, what it refuses in one line, and what it leaves unloaded."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_perception import image_spec
from test_run_folder import TINY, refusal, train
from torch import nn

import forethought
from forethought import planners
from forethought.acting import act
from forethought.agent import Cost, Distillation
from forethought.build import Collection, Model, Round, Stages
from forethought.cli import VERBS, how_to_go_on, main
from forethought.collecting import collect
from forethought.completion import completion
from forethought.demo import demo
from forethought.describing import data
from forethought.listing import envs
from forethought.parser import normalised, packaged_configs, parse, parser_of, refuse_strangers
from forethought.planners import CEM, ICEM, Gradient, Planner, Polish
from forethought.running import distill, evaluate
from forethought.showing import show
from forethought.training import train as train_verb
from forethought.worldmodel import Losses

FUNCTIONS = {
    "demo": demo,
    "collect": collect,
    "train": train_verb,
    "evaluate": evaluate,
    "distill": distill,
    "act": act,
    "show": show,
    "envs": envs,
    "data": data,
    "completion": completion,
}


def parsed(verb: str, *words: str) -> dict[str, Any]:
    return parse(parser_of(FUNCTIONS[verb], verb), words)[0]


def loaded_after(code: str, *names: str) -> list[bool]:
    """Which modules a new process has loaded after `code`."""
    code += f"; import sys; print([name in sys.modules for name in {names}])"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return [word == "True" for word in told.stdout.strip().splitlines()[-1][1:-1].split(", ")]


# --- help, and what it costs


@pytest.mark.parametrize("argv", [[], ["--help"], ["--version"], ["nonsense"]])
def test_help_does_not_load_torch(argv: list[str]) -> None:
    code = f"from forethought.cli import main; main({argv})"
    assert loaded_after(code, "torch", "jsonargparse", "forethought.cli") == [False, False, True]


def test_the_package_itself_is_light() -> None:
    assert loaded_after("import forethought", "torch", "numpy") == [False, False]


def test_only_the_modules_of_the_verb_are_loaded() -> None:
    code = (
        "from forethought.cli import main\n"
        "try: main(['collect', '--help'])\n"
        "except SystemExit: pass\n"
        "1"
    )
    verbs = ("collecting", "training", "running", "demo")
    names = (*(f"forethought.{verb}" for verb in verbs), "matplotlib")
    assert loaded_after(code, *names) == [True, False, False, False, False]


def test_the_usage_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    told = capsys.readouterr().out
    assert all(f"\n  {verb} " in told for verb in VERBS)
    assert set(FUNCTIONS) == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    assert told.startswith(f"usage: forethought {verb}")
    options = [word for word in told.split() if word.startswith("--")]
    assert not any("_" in option.split("=")[0] for option in options)
    assert "resolved" not in told


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("forethought 0.")


# --- refusals: one line, exit code 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("train --bogus 1", "--bogus"),
        ("train --seed x", "seed"),
        ("train --stages.joint.steps many", "steps"),
        ("train --cost.reduction max", "reduction"),
        ("train --cost.horizon 0", "cost.horizon is 0"),
        ("train --collection.episodes 0", "collection.episodes is 0"),
        ("train --collection.num-envs 0", "collection.num_envs is 0"),
        ("train --losses.variance -1", "losses.variance is -1"),
        ("train --config nowhere", "no config 'nowhere': give a YAML file or one of"),
        ("train --planner Nope", "Nope"),
        ("train --planner.starts 0", "starts = 0"),
        ("train --env Foo-v0", "'Foo-v0' is unknown"),
        ("train", "env is not given: choose an environment with --env ID"),
        ("train --env forethought/TwoRooms-v0 --env-options.foo 1", "unknown options foo"),
        ("train --env forethought/TwoRooms-v0 --env-options.layout round", "layout"),
        ("train --config two-rooms --model.perception VectorPerception", "another model.perce"),
        ("train --config two-rooms --task nothing", "no task 'nothing': give a YAML file or one"),
        ("train --config two-rooms --precision half", "half"),
        ("train --config two-rooms --rounds -1", "rounds is -1: choose 0 or more"),
        ("train --round.episodes 0", "round.episodes is 0"),
        ("train --round.share -1", "round.share is -1"),
        ("train --stages.predictor.perturbation -1", "stages.predictor.perturbation is -1"),
        ("train --stages.readouts.steps 0", "stages.readouts.steps is 0"),
        ("train --stages.critic.trace 2", "stages.critic.trace is 2"),
        ("train --model.action-embedding -1", "model.action_embedding is -1"),
        ("train --losses.readout -1", "losses.readout is -1"),
        ("train --resume", "--resume needs the run to go on with: give --run RUN"),
        ("train --resume --run nowhere", "nowhere is no run folder"),
        ("train --resume --run nowhere --seed 1", "so seed cannot be given"),
        ("train --device tpu", "'tpu' is not available"),
        ("train --threads 0", "threads is 0"),
        ("train --data nodata", "nodata"),
        ("train --config two-rooms --weights noweights", "the model has AutoPerception"),
        ("evaluate", "run"),
        ("evaluate nowhere", "nowhere is no run folder"),
        ("act nowhere", "nowhere is no run folder"),
        ("distill nowhere", "nowhere is no run folder"),
        ("show nowhere", "nowhere is no run folder"),
        ("show", "run"),
        ("collect", "data"),
        ("collect here --collection.episodes 0", "collection.episodes is 0"),
        ("collect here --collection.policy Nope", "Nope"),
        ("collect here --env Foo-v0", "'Foo-v0' is unknown"),
        ("demo --short maybe", "maybe"),
    ],
)
def test_refusals(
    words: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refusal(capsys, *words.split())
    assert list(tmp_path.iterdir()) == []  # nothing was begun


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("evaluate RUN --episodes 0", "episodes is 0"),
        ("evaluate RUN --num-envs 0", "num_envs is 0"),
        ("evaluate RUN --modes [3]", "modes"),
        ("evaluate RUN --cost.discount 2", "cost.discount is 2"),
        ("act RUN --mode 3", "mode"),
        ("act RUN --video film.txt", "must end in .gif or .mp4"),
        ("distill RUN --distillation.rounds 0", "distillation.rounds is 0"),
        ("train --config two-rooms --run RUN", "already holds a run"),
        ("train --resume --run RUN", "has come to its end already"),
    ],
)
def test_refusals_with_a_run(
    words: str, says: str, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refusal(capsys, *words.replace("RUN", str(small)).split())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["--collection.episodes=2", "--stages.joint.steps=1", "--stages.predictor.steps=1"]
    return train(tmp_path_factory.mktemp("cli") / "small", *words)


def test_an_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "'trian'" in said
    assert "train" in said


def test_a_wrong_environment_does_not_block_the_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    refusal(capsys, "train", f"--run={folder}", "--env=forethought/TwoRoom-v0")
    words = ["--collection.episodes=2", "--stages.joint.steps=1", "--stages.predictor.steps=1"]
    assert (train(folder, *words) / "model.safetensors").is_file()


def test_the_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORETHOUGHT_DEBUG", "1")
    with pytest.raises(FileNotFoundError, match="no run folder"):
        main(["show", "nowhere"])


# --- words


@pytest.mark.parametrize("verb", ["demo", "train", "evaluate"])
def test_a_verb_without_words_is_parsed(verb: str) -> None:
    assert normalised(parser_of(FUNCTIONS[verb], verb), []) == []


def test_demo_needs_no_options() -> None:
    assert parsed("demo") == {
        "run": Path("runs/demo"),
        "short": False,
        "seed": 0,
        "device": "auto",
        "threads": None,
    }


@pytest.mark.parametrize(
    ("words", "short"),
    [
        (["--short"], True),
        (["--no-short"], False),
        (["--short=true"], True),
        (["--short", "false"], False),
        (["--short", "--seed", "1"], True),
        (["--seed=1"], False),
    ],
)
def test_flags(words: list[str], short: bool) -> None:
    assert parsed("demo", *words)["short"] is short


def test_flags_with_dashes_and_values_that_keep_theirs() -> None:
    held = parsed("evaluate", "some-run", "--no-baselines", "--num-envs=4", "--json", "a-b.json")
    assert (held["run"], held["json"]) == (Path("some-run"), Path("a-b.json"))
    assert held["baselines"] is False
    assert held["num_envs"] == 4
    assert parsed("evaluate", "some-run", "--num_envs=4")["baselines"] is True
    held = parsed("train", "--losses.flatten", "--losses.sigreg-directions=7")
    assert held["losses"] == Losses(flatten=True, sigreg_directions=7)
    assert parsed("train", "--config=two-rooms", "--no-losses.flatten")["losses"].flatten is False


# --- configurations


def test_a_packaged_configuration_by_name_and_by_path(tmp_path: Path) -> None:
    assert "two-rooms" in packaged_configs()
    own = tmp_path / "mine.yaml"
    own.write_bytes(packaged_configs()["two-rooms"].read_bytes())
    held = parsed("train", "--config=two-rooms")
    again = parsed("train", "--config", str(own))
    model: Model = again.pop("model")
    assert {key: value for key, value in held.items() if key != "model"} == again
    assert callable(model.perception)
    content = yaml.safe_load(own.read_text())
    assert held["env_options"] == content["env_options"]
    assert held["cost"] == Cost(**content["cost"])
    assert held["losses"] == Losses(**content["losses"])


@pytest.mark.parametrize("name", packaged_configs())
def test_every_verb_reads_its_part_of_an_experiment(name: str) -> None:
    whole = parsed("train", "--config", name)
    held = parsed("collect", "here", "--config", name)
    assert {key: held[key] for key in ("env", "env_options", "collection")} == {
        key: whole[key] for key in ("env", "env_options", "collection")
    }
    held = parsed("evaluate", "there", "--config", name)
    assert held["cost"] == whole["cost"]


def test_words_beat_the_configuration_and_leave_the_rest() -> None:
    packaged = parsed("train", "--config=two-rooms")
    words = ["--cost.discount=0.7", "--env-options.contact=stop"]
    held = parsed("train", "--config=two-rooms", *words)
    assert held["cost"] == dataclasses.replace(packaged["cost"], discount=0.7)
    assert held["env_options"] == packaged["env_options"] | {"contact": "stop"}
    assert packaged["env_options"]["contact"] == "slide"


@pytest.mark.parametrize("name", packaged_configs())
def test_the_resolved_configuration_resolves_to_itself(name: str, tmp_path: Path) -> None:
    words = ["--config", name, "--planner=CEM", "--planner.candidates=9", "--seed=5"]
    words += ["--planner.iterations=3"]
    words += ["--model.perception=ImagePerception", "--model.perception.channels=[4]"]
    words += ["--model.perception.latent-dim=6", "--rounds=2", "--round.noise=0.3"]
    words += ["--model.perception.patches=[8]"]
    first = parse(parser_of(train_verb, "train"), words)
    path = tmp_path / "config.yaml"
    path.write_text(first[1])
    second = parse(parser_of(train_verb, "train"), ["--config", str(path)])
    assert second[1] == first[1]
    kept = ("planner", "cost", "losses", "stages", "collection", "env_options", "seed")
    for key in (*kept, "env", "task", "rounds", "round", "precision"):
        assert second[0][key] == first[0][key], key
    assert second[0]["planner"] == CEM(candidates=9, iterations=3)


def scalars(record: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Dotted option, its value and its type, for every field outside of collections."""
    hints = typing.get_type_hints(type(record))
    for field in dataclasses.fields(record):
        value, hint = getattr(record, field.name), hints[field.name]
        option = f"{path}.{field.name}"
        if dataclasses.is_dataclass(value):
            yield from scalars(value, option)
        elif isinstance(value, int | float | str):
            yield option, value, hint


def other(value: Any, hint: Any) -> Any:
    """Another value of the same type."""
    if typing.get_origin(hint) is typing.Literal:
        return next(choice for choice in typing.get_args(hint) if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 2
    return value + 0.25 if value > 1 else value * 0.5 + 0.125


RECORDS = {
    "train": {
        "collection": Collection(),
        "losses": Losses(),
        "stages": Stages(),
        "round": Round(),
        "cost": Cost(),
        "planner": Gradient(),
    },
    "distill": {"distillation": Distillation(), "planner": Gradient(), "cost": Cost()},
}


@pytest.mark.parametrize("verb", RECORDS)
def test_every_field_is_reached_by_a_dotted_option(verb: str) -> None:
    found = [item for path, record in RECORDS[verb].items() for item in scalars(record, path)]
    assert len(found) > 12
    words = [] if verb == "train" else ["run"]
    held = parsed(
        verb,
        *words,
        *(f"--{option.replace('_', '-')}={str(other(v, h)).lower()}" for option, v, h in found),
    )
    for option, value, hint in found:
        reached: Any = held[option.split(".")[0]]
        for name in option.split(".")[1:]:
            reached = getattr(reached, name)
        assert reached == other(value, hint) != value, option


FOUND = [getattr(planners, name) for name in planners.__all__]
OTHERS = [p for p in FOUND if isinstance(p, type) and issubclass(p, Planner)]
OTHERS = [p for p in OTHERS if p not in (Planner, Gradient, Polish)]
PLANNERS = pytest.mark.parametrize("planner", [p() for p in OTHERS], ids=lambda p: type(p).__name__)


def test_a_planner_within_a_planner() -> None:
    words = ["--planner=Polish", "--planner.planner=ICEM", "--planner.planner.candidates=32"]
    held = parsed("train", *words, "--planner.gradient.iterations=5")
    polish = Polish(ICEM(candidates=32))
    gradient = dataclasses.replace(polish.gradient, iterations=5)
    assert held["planner"] == dataclasses.replace(polish, gradient=gradient)
    assert parsed("train", "--planner=Polish", "--planner.planner=CEM")["planner"] == Polish(CEM())


@PLANNERS
def test_every_field_of_other_planners(planner: Any) -> None:
    for option, value, hint in scalars(planner, "--planner"):
        changed = other(value, hint)
        words = [f"--planner={type(planner).__name__}"]
        held = parsed("train", *words, f"{option}={str(changed).lower()}")
        name = option.split(".")[-1]
        assert held["planner"] == dataclasses.replace(planner, **{name: changed})


@PLANNERS
def test_another_planner_has_its_own_defaults(planner: Any) -> None:
    assert parsed("train", f"--planner={type(planner).__name__}")["planner"] == planner


def test_every_argument_of_the_model() -> None:
    words = ["--model.perception=ImagePerception", "--model.perception.normalise=true"]
    words += ["--model.perception.latent-dim=5", "--model.action-embedding=7"]
    words += ["--model.perception.channels=[3]", "--model.perception.patches=[4]"]
    words += ["--model.predictor=GRUPredictor", "--model.predictor.hidden=11"]
    model: Model = parsed("train", *words)["model"]
    perception: Any = model.perception(image_spec(2, 8, 8))
    assert perception.latent_dim == 5
    assert type(perception.layers[-1]) is nn.LayerNorm
    assert model.action_embedding == 7
    predictor: Any = model.predictor(5, 2)
    assert predictor.cell.hidden_size == 11
    assert predictor.action_dim == 2


@pytest.mark.parametrize(
    "config",
    [
        {"planner": {"class_path": "forethought.planners.CEM", "init_args": {"elites": 3}}},
        {"env": "forethought/TwoRooms-v0", "env_options": {"layout": "fixed", "limit": 1.5}},
        {"env": "ALE/Breakout-v5", "device": "auto", "threads": None, "betas": [0.9, 0.999]},
        {"planner": "CEM", "perception": {"class_path": "AutoPerception"}, "rate": "1.5e-3"},
    ],
)
def test_our_own_configurations_are_no_strangers(config: Any) -> None:
    refuse_strangers(config, Path("config.yaml"))


@pytest.mark.parametrize("value", ["os.system", "a:B-v0", "évil.Thing", "forethoughts.x", "x\ny"])
@pytest.mark.parametrize("place", [lambda v: {"a": {"b": v}}, lambda v: {"a": [{"b": [v]}]}])
def test_strangers_are_found_wherever_they_hide(value: str, place: Any) -> None:
    with pytest.raises(ValueError, match="--trust"):
        refuse_strangers(place(value), Path("config.yaml"))


@pytest.mark.parametrize("value", ["123.Planner", "evil-.Planner", "Nobody", "CEM ", "1.5"])
@pytest.mark.parametrize("key", ["class_path", "planner", "collection.policy", "terms"])
def test_where_a_class_is_named_only_known_ones_pass(key: str, value: str) -> None:
    for config in ({key: value}, {"a": [{key: [value]}]}):
        with pytest.raises(ValueError, match="--trust"):
            refuse_strangers(config, Path("config.yaml"))


def test_what_to_say_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for run, planner in (("mine", "CEM"), ("theirs", "evil-.Planner")):
        Path(run).mkdir()
        Path(run, "config.yaml").write_text(f"planner: {{class_path: {planner}}}\n")
    Path("own.yaml").write_text("run: mine\n")
    begin = "; go on with: forethought train --resume --run"
    assert how_to_go_on("train", ["--config", "own.yaml"]) == f"{begin} mine"
    assert how_to_go_on("train", ["--config=own.yaml", "--run=theirs"]) == f"{begin} theirs --trust"
    assert how_to_go_on("train", ["--config=two-rooms"]) == ""
    term = "terms: {a: {term: {class_path: evilmod.Mind}}}\n"
    Path("mine/task.yaml").write_text(term)
    assert how_to_go_on("train", ["--run", "mine"]) == f"{begin} mine --trust"


def test_python_calls_a_verb_like_the_shell(tmp_path: Path) -> None:
    words = ["--collection.episodes=2", "--env-options.episode-limit=3"]
    assert forethought.call("collect", [str(tmp_path / "data"), *words]) == 6
    with pytest.raises(AttributeError, match="nothing"):
        forethought.nothing  # noqa: B018
    assert all(word.startswith("--") for word in TINY)
