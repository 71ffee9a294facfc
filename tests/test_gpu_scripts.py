"""The scripts for a GPU machine, run small on the CPU, and the recorded search that they time.

What a CUDA graph refuses can be seen without a GPU: values read from Python, and tensors made from
Python's lists, which a GPU would have to wait for.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from forethought import load
from forethought.planners import CEM, MPPI, Gradient, Plan, Problem
from forethought.planners.graphs import GraphedSearch, Recorded

ROOT = Path(__file__).resolve().parents[1]
H, A = 4, 2
PLANNERS = [CEM(candidates=12, iterations=3, elites=3), Gradient(starts=5, iterations=3)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "benchmarks" / "gpu_planning.py"
    spec = importlib.util.spec_from_file_location("gpu_planning", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_planning"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def far(state: Any, action: Any, next_state: Tensor, context: Any, t: Any) -> Tensor:
    return (next_state - context["goal"]).square().sum(-1)


def point(**changes: Any) -> Problem:
    """Two points that move by their actions; every cost and a discount take part."""
    fields: dict[str, Any] = {
        "state": torch.tensor([[0.1, -0.4], [0.3, 0.2]]),
        "step": lambda state, action, latent, context, t: state + 0.3 * action,
        "horizon": H,
        "low": -torch.ones(A),
        "high": torch.ones(A),
        "stage_cost": lambda s, a, n, context, t: 0.1 * a.square().sum(-1) * (1 + t),
        "goal_cost": far,
        "terminal_cost": lambda state, context: state.abs().sum(-1),
        "discount": 0.7,
        "context": {"goal": torch.tensor([[0.5, 0.5], [-0.5, 0.0]])},
    }
    return Problem(**(fields | changes))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_same(got: Plan, expected: Plan) -> None:
    torch.testing.assert_close(got.actions, expected.actions, rtol=0, atol=1e-5)
    torch.testing.assert_close(got.energy, expected.energy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got.states, expected.states, rtol=0, atol=1e-5)
    assert got.trace.shape == expected.trace.shape
    assert got.model_steps == expected.model_steps
    assert got.status == expected.status


class Recordable(TorchDispatchMode):
    """Refuses what cannot be recorded: reads from Python, and tensors made from its numbers."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        name = func.overloadpacket.__name__
        refused = name in ("_local_scalar_dense", "nonzero", "equal")
        # A single number that is filled in is made on the host, and goes along as an argument.
        refused |= name.startswith("lift_fresh") and args[0].ndim > 0
        if name == "index":  # by a mask, which is a hidden `nonzero`
            refused |= any(i is not None and i.dtype == torch.bool for i in args[1])
        if refused:
            raise AssertionError(f"{name} cannot be recorded")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "refused",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: torch.tensor([1.0]),
        lambda x: x[x > 0],
    ],
)
def test_the_check_sees_what_cannot_be_recorded(refused: Callable[[Tensor], object]) -> None:
    with pytest.raises(AssertionError, match="cannot be recorded"), Recordable():
        refused(torch.ones(2))


# ---------------------------------------------------------------------------- the recorded search


@pytest.mark.parametrize("planner", PLANNERS, ids=str)
@pytest.mark.parametrize("reduction", ["sum", "softmin", "last"])
def test_it_plans_as_the_planner_does(planner: Any, reduction: str) -> None:
    problem = point(reduction=reduction)
    search = GraphedSearch(planner, problem, generator=(drawn := generator()))
    drawn.manual_seed(3)
    expected = planner.plan(problem, generator=generator(3))
    assert_same(search.plan(problem.state, problem.context), expected)
    assert not search.recorded  # there is no GPU in this test


@pytest.mark.parametrize("planner", PLANNERS, ids=str)
def test_state_context_and_proposals_of_each_decision_count(planner: Any) -> None:
    problem = point()
    proposals = torch.full((2, 1, H, A), 0.2)
    search = GraphedSearch(planner, problem, generator=(drawn := generator()), proposals=proposals)
    kept = None
    for seed in range(3):
        other = replace(
            problem,
            state=problem.state + 0.1 * seed,
            context={"goal": problem.context["goal"] - 0.3 * seed},
        )
        drawn.manual_seed(seed)
        plan = search.plan(other.state, other.context, proposals - 0.4 * seed)
        expected = planner.plan(other, proposals=proposals - 0.4 * seed, generator=generator(seed))
        assert_same(plan, expected)
        if kept is None:
            kept, first = plan, expected
    assert_same(kept, first)  # plans do not change when others are made


@pytest.mark.parametrize("planner", PLANNERS, ids=str)
def test_each_plan_draws_new_numbers_and_the_example_stays(planner: Any) -> None:
    problem = point()
    search = GraphedSearch(planner, problem, generator=generator())
    before = problem.state.clone()
    plans = [search.plan(problem.state, problem.context) for _ in range(2)]
    assert not torch.equal(plans[0].actions, plans[1].actions)
    search.plan(problem.state + 1, problem.context)
    assert torch.equal(problem.state, before)


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the one question, whether all is finite, that is asked on a CPU alone."""
    monkeypatch.setattr("forethought.planners.rollout._surely_finite", lambda x: False)


@pytest.mark.usefixtures("as_on_cuda")
@pytest.mark.parametrize("planner", PLANNERS, ids=str)
def test_the_search_can_be_recorded(planner: Any) -> None:
    proposals = torch.zeros(2, 1, H, A)
    for given, max_norm in ((None, None), (proposals, None), (None, 0.9)):
        problem = point(max_norm=max_norm)
        search = GraphedSearch(planner, problem, generator=generator(), proposals=given)
        search.search()  # the rehearsal
        with Recordable():
            search.search()


@pytest.mark.usefixtures("as_on_cuda")
@pytest.mark.parametrize("run", ["two-rooms", "cartpole-swingup"])
@pytest.mark.parametrize("planner", PLANNERS, ids=str)
def test_the_search_through_a_packaged_run_can_be_recorded(run: str, planner: Any) -> None:
    trained = load(run, device="cpu")
    agent = trained.agent
    observation = trained.spec.observation_space.sample()[None]
    goal = observation if agent.configurator.task.goal else None
    carried = agent.start(1, goal=goal, generator=generator())
    problem = agent.problem(carried.setting, agent.encode(observation))
    search = GraphedSearch(planner, problem, generator=(drawn := generator()))
    seen = torch.as_tensor(observation)
    search.search()
    with Recordable():
        search.search()
        agent.model.encode(seen)
    drawn.manual_seed(1)
    plan = search.plan(problem.state, problem.context)
    assert_same(plan, planner.plan(problem, generator=generator(1)))


def test_wrong_arguments_say_what_to_choose() -> None:
    problem, drawn = point(), generator()
    with pytest.raises(TypeError, match=r"planner is MPPI.*choose CEM or Gradient"):
        GraphedSearch(MPPI(), problem, generator=drawn)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="control_points is 3: choose None"):
        GraphedSearch(CEM(control_points=3), problem, generator=drawn)
    discrete = point(low=None, high=None, actions=3)
    with pytest.raises(ValueError, match="actions is 3: choose low and high"):
        GraphedSearch(CEM(), discrete, generator=drawn)
    with pytest.raises(ValueError, match="rehearsals is 0: choose at least 1"):
        GraphedSearch(CEM(), problem, generator=drawn, rehearsals=0)
    with pytest.raises(ValueError, match=r"proposals have the shape \(2, 1, 9, 2\)"):
        GraphedSearch(CEM(), problem, generator=drawn, proposals=torch.zeros(2, 1, 9, 2))
    search = GraphedSearch(PLANNERS[0], problem, generator=drawn)
    with pytest.raises(ValueError, match=r"shape \(1, 2\).*choose \(2, 2\)"):
        search.plan(problem.state[:1], problem.context)
    with pytest.raises(ValueError, match=r"torch.float64: choose .*torch.float32"):
        search.plan(problem.state.double(), problem.context)
    with pytest.raises(ValueError, match="proposals were None at first: choose None"):
        search.plan(problem.state, problem.context, torch.zeros(2, 1, H, A))
    with pytest.raises(ValueError, match="nested differently"):
        search.plan(problem.state)
    with pytest.raises(ValueError, match="inputs is on no device: choose tensors on one"):
        Recorded(lambda: None, {})
    with pytest.raises(ValueError, match=r"generator is on cpu: choose torch.Generator\('meta'\)"):
        Recorded(lambda: None, torch.zeros(1, device="meta"), generators=[drawn])


def test_a_recorded_function_reads_its_inputs() -> None:
    inputs = {"x": torch.ones(2), "y": torch.ones(2)}
    double = Recorded(lambda: inputs["x"] + 2 * inputs["y"], inputs)
    new = {"x": torch.tensor([1.0, 2.0]), "y": torch.tensor([3.0, 4.0])}
    assert double(new).tolist() == [7.0, 10.0]


# ---------------------------------------------------------------------------- the scripts


def test_the_large_model_has_18_million_parameters(script: ModuleType) -> None:
    model = script.LargeModel()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == pytest.approx(18e6, rel=0.01)


@torch.no_grad()
def test_the_window_moves_on_and_looks_only_back(script: ModuleType) -> None:
    torch.manual_seed(0)
    predictor = script.WindowPredictor(action_dim=2, dim=8, window=3).eval()
    latents, past, action = torch.randn(4, 3, 8), torch.randn(4, 2, 2), torch.randn(4, 2)
    state = torch.cat((latents.flatten(1), past.flatten(1)), dim=1)
    assert state.shape[1] == predictor.state_dim
    after = predictor(state, action)
    assert torch.equal(after[:, :16], latents[:, 1:].flatten(1))
    assert torch.equal(after[:, 24:26], past[:, 1])
    assert torch.equal(after[:, 26:], action)
    for changed in (
        predictor(state, action + 1),
        predictor(torch.cat((state[:, :24], state[:, 24:] + 1), 1), action),
        predictor(torch.cat((state[:, :8] + torch.randn(8), state[:, 8:]), 1), action),
    ):
        assert not torch.allclose(changed[:, 16:24], after[:, 16:24])
    # Causal: what comes later in a window changes nothing before it.
    x, condition = torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    y = predictor.blocks[0](x, condition, causal=True)
    x[:, 2] += 1.0
    assert torch.allclose(predictor.blocks[0](x, condition, causal=True)[:, :2], y[:, :2])


def test_operations_of_the_linear_layers_are_counted(script: ModuleType) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
    with script.products_of(model) as counted:
        model(torch.zeros(4, 7, 3))
        model(torch.zeros(4, 7, 3))
    model(torch.zeros(1, 3))  # after the end
    assert counted == {(28, 3, 5): 2, (28, 5, 2): 2}
    floor = script.floor_of(counted, torch.device("cpu"), torch.float32)
    assert floor["operations"] == 2 * 2 * 28 * (3 * 5 + 5 * 2)
    rate = floor["operations"] / (floor["floor_ms"] / 1e3) / 1e12
    assert floor["products_tflops_per_second"] == pytest.approx(rate)


def test_large_runs_small(script: ModuleType, tmp_path: Path) -> None:
    target = tmp_path / "large.json"
    words = ["large", "--device", "cpu", "--short", "--ways", "eager", "graphs"]
    assert script.main([*words, "--json", str(target)]) == 0
    record = json.loads(target.read_text())
    assert record["machine"]["device"] == "cpu"
    assert record["short"] is True
    eager, graphs = record["rows"]
    assert (eager["way"], graphs["way"]) == ("eager", "graphs")
    for row in (eager, graphs):
        assert row["ms_low"] <= row["ms"] <= row["ms_high"]
        assert row["times_floor"] == pytest.approx(row["ms"] / row["floor_ms"])
        assert row["decisions_per_second"] == pytest.approx(1e3 / row["ms"])
        assert row["precision"] == "float32"
        assert row["encode_ms"] > 0
        assert row["prepare_seconds"] > 0
        # Of every step: 6 blocks on 3 tokens, and what is embedded before and projected behind.
        block = 192 * 3072 + 1024 * 192 + 2 * 192 * 2048 + 192 * 6 * 192
        token = 6 * block + 10 * 768 + 768 * 192
        steps = row["candidates"] * row["iterations"] * row["horizon"]
        assert row["operations"] == 2 * steps * (3 * token + 2 * 192 * 2048)
    assert graphs["action_gap"] <= 1e-5


def test_small_runs_small_without_the_simulator(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for absent in ("dm_control", "mujoco"):
        monkeypatch.setitem(sys.modules, absent, None)
    target = tmp_path / "small.json"
    assert script.main(["small", "--device", "cpu", "--short", "--json", str(target)]) == 0
    record = json.loads(target.read_text())
    found = {(row["run"], row["planner"], row["way"]) for row in record["rows"]}
    assert found == {
        (run, planner, way)
        for run in ("two-rooms", "cartpole-swingup")
        for planner in ("Gradient", "CEM")
        for way in ("agent", "eager")
    }
    assert all(row["decisions_per_second"] > 0 for row in record["rows"])


def test_a_way_that_fails_leaves_its_error_and_stops_no_other(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("cannot be recorded")

    monkeypatch.setattr(script, "GraphedSearch", refuse)
    target = tmp_path / "small.json"
    words = ["small", "--device", "cpu", "--short", "--runs", "two-rooms", "--json", str(target)]
    assert script.main([*words, "--ways", "graphs", "eager"]) == 1
    rows = json.loads(target.read_text())["rows"]
    assert [row.get("error") for row in rows if row["way"] == "graphs"] == [
        "RuntimeError: cannot be recorded"
    ] * 2
    assert all("ms" in row for row in rows if row["way"] != "graphs")


def test_the_shell_script_is_one() -> None:
    subprocess.run(["bash", "-n", str(ROOT / "benchmarks" / "gpu.sh")], check=True)


def test_the_shell_script_goes_on_after_failures_and_says_so(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\necho "$*" >>"$0.log"\ncase "$*" in *large*|*train*) exit 3;; esac\n'
    )
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh")],
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHON": str(python),
            "OUT": str(tmp_path / "out"),
            "RUN": str(tmp_path / "runs" / "gpu"),
            "DEVICE": "cpu",
            "SHORT": "1",
        },
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    record = json.loads((tmp_path / "out" / "gpu_steps.json").read_text())
    assert (record["device"], record["short"]) == ("cpu", True)
    ended = {step["step"]: step["status"] for step in record["steps"]}
    assert ended == {"planning_large": 3, "planning_small": 0, "train_0": 3, "evaluate_0": 0}
    assert (
        "benchmarks/gpu_planning.py large --device cpu --short"
        in (tmp_path / "python.log").read_text()
    )


def test_the_shell_script_calls_the_scaling_benchmark_alone(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$*" >>"$0.log"\n')
    python.chmod(0o755)
    subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "scaling"],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(python), "OUT": str(tmp_path), "RUN": "runs/x"},
        check=True,
        capture_output=True,
    )
    called = (tmp_path / "python.log").read_text()
    assert "benchmarks/scaling.py --device cuda --large --limit 400 --out" in called
    assert "gpu_planning" not in called


def test_the_shell_script_goes_on_with_leworldmodel_call_by_call(tmp_path: Path) -> None:
    python, run = tmp_path / "python", tmp_path / "gpu-leworldmodel"
    python.write_text('#!/bin/sh\necho "$*" >>"$0.log"\n')
    python.chmod(0o755)
    here = {"PYTHON": str(python), "OUT": str(tmp_path), "RUN": str(tmp_path / "gpu")}
    for made in ("config.yaml", "diagnostics.json", "results.json"):
        subprocess.run(
            ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "leworldmodel"],
            env={"PATH": "/usr/bin:/bin", **here},
            check=True,
            capture_output=True,
        )
        run.mkdir(exist_ok=True)
        (run / made).touch()
    lines = (tmp_path / "python.log").read_text().splitlines()
    called = [line for line in lines if "leworldmodel" in line]
    for line, words in zip(
        called, ("train --config leworldmodel", "train --resume true", "evaluate"), strict=True
    ):
        assert words in line


def test_the_limits_of_the_shell_script_fit_into_ten_minutes() -> None:
    text = (ROOT / "benchmarks" / "gpu.sh").read_text()
    calls = [line.split() for line in text.splitlines() if line.strip().startswith("step ")]
    limits = {words[1]: int(words[2]) for words in calls}
    assert len(limits) == 9
    for alone in ("scaling", "leworldmodel", "evaluate_leworldmodel"):
        assert limits.pop(alone) <= 590  # a call of its own
    assert sum(limits.values()) <= 590
