"""The planar arm: kinematics, contact, its model in PyTorch, episodes, and the baselines."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from env_contract import RegisteredEnvContract

from forethought.envs import HELD_OUT_SEED, arm, draw_arm, make, spec_of
from forethought.envs.arm import model
from forethought.envs.arm.geometry import ABSENT, CHECKS, LINK_LENGTH, LINKS, jacobian
from forethought.envs.arm.search import MARGIN
from forethought.planners import CEM, Polish, RandomShooting, evaluate

ID = "forethought/Arm-v0"
NOTHING = np.array([ABSENT])


class TestArm(RegisteredEnvContract):
    id = ID


class TestArmWithOptions(RegisteredEnvContract):
    id = ID
    options: ClassVar[dict[str, Any]] = {"obstacles": 1, "max_step": 0.2}


def begun(count: int = 32, first: int = 0, **options: Any) -> tuple[Any, np.ndarray, Any]:
    """An environment, its observations and infos."""
    env = make(ID, count, **options)
    observations, info = env.reset(seed=first)
    return env, observations, info


def played(name: str, count: int = 32, first: int = 0, **options: Any) -> np.ndarray:
    """Which episodes a controller of the arm solves."""
    env, _, info = begun(count, first, **options)
    for _ in range(env.episode_limit):
        info = env.step(getattr(arm, name)(info["arm"]))[-1]
    return np.asarray(info["success"])


def straight(first: float = 0.0) -> np.ndarray:
    return np.r_[first, np.zeros(LINKS - 1)][None]


# --- Kinematics.


def test_joints_of_known_configurations() -> None:
    points = arm.joints(straight(0.5 * math.pi))[0]
    np.testing.assert_allclose(points[:, 0], 0, atol=1e-12)
    np.testing.assert_allclose(points[:, 1], np.arange(8) / 7)
    bent = np.r_[0, 0, 0, 0, 0.5 * math.pi, 0, 0]
    np.testing.assert_allclose(arm.joints(bent)[-1], [4 / 7, 3 / 7])


def test_jacobian_is_the_derivative_of_the_tip() -> None:
    angles = np.random.default_rng(0).normal(size=LINKS)
    small = 1e-6
    for joint in range(LINKS):
        change = np.eye(LINKS)[joint] * small
        slope = (arm.joints(angles + change)[-1] - arm.joints(angles - change)[-1]) / (2 * small)
        np.testing.assert_allclose(jacobian(angles)[:, joint], slope, atol=1e-8)


@pytest.mark.parametrize(
    ("circle", "expected"),
    [
        ((0.5, 0.3, 0.1), 0.2),  # beside a link
        ((1.3, 0.4, 0.1), 0.4),  # beyond the tip: 0.3, 0.4, 0.5
        ((-0.3, 0.0, 0.1), 0.2),  # behind the base
        ((0.5, 0.05, 0.1), -0.05),  # overlapping
    ],
)
def test_clearance_of_a_straight_arm(circle: tuple[float, ...], expected: float) -> None:
    circles = np.array([ABSENT, circle])
    assert arm.clearance(straight(), circles)[0] == pytest.approx(expected)


# --- Contact.


def test_a_free_step_turns_the_joints_and_clips_actions() -> None:
    moved = arm.move(straight(), np.array([[0.5, -1, 3, 0, 0, 0, 0]]), NOTHING[None], 0.1)
    np.testing.assert_allclose(moved, [[0.05, -0.1, 0.1, 0, 0, 0, 0]])


def test_a_step_that_would_touch_does_not_happen() -> None:
    circles = np.array([[[0.9, 0.06, 0.05]]])  # 0.01 above the arm
    up, down = np.eye(LINKS)[:1], -np.eye(LINKS)[:1]
    np.testing.assert_array_equal(arm.move(straight(), up, circles, 0.1), straight())
    np.testing.assert_array_equal(arm.move(straight(), down, circles, 0.1), straight(-0.1))


def test_contact_on_the_way_counts_too() -> None:
    """A small obstacle that only configurations in the middle of the step touch."""
    end = arm.move(straight(), np.eye(LINKS)[:1], NOTHING[None], 0.2)
    middle = 0.9 * np.array([math.cos(0.1), math.sin(0.1)])
    circles = np.r_[middle, 0.02][None, None]
    assert arm.clearance(straight(), circles[0]) > 0
    assert arm.clearance(end, circles[0]) > 0
    np.testing.assert_array_equal(arm.move(straight(), np.eye(LINKS)[:1], circles, 0.2), straight())


def test_nothing_is_jumped_over_in_play() -> None:
    """Along every step of noisy episodes, tested ten times as finely, hardly anything touches.

    Contact is tested at `CHECKS` configurations; between two of them the tip moves by at most
    0.05, so that it dips into an edge by less than that, and through no obstacle.
    """
    env, _, info = begun(16)
    generator = np.random.default_rng(0)
    for _ in range(40):
        before = info["arm"]["angles"]
        action = arm.greedy(info["arm"]) + 0.3 * generator.normal(size=(16, LINKS))
        info = env.step(action)[-1]
        shares = np.linspace(0, 1, 10 * CHECKS)[:, None]
        between = before[:, None] + shares * (info["arm"]["angles"] - before)[:, None]
        gaps = arm.clearance(between, info["arm"]["obstacles"][:, None])
        assert gaps[:, -1].min() > 0
        assert gaps.min() > -0.025


# --- The model in PyTorch.


def scenes(count: int = 64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Angles, actions and obstacles, so that some steps are blocked and some are not."""
    _, _, info = begun(count)
    generator = np.random.default_rng(1)
    ends = info["arm"]["start_angles"]
    return ends, generator.uniform(-1.3, 1.3, ends.shape), info["arm"]["obstacles"]


def test_model_and_environment_agree() -> None:
    angles, actions, circles = scenes()
    tensors = [torch.as_tensor(x) for x in (angles, actions, circles)]
    blocked = 0
    for _ in range(30):
        moved = arm.move(angles, actions, circles, 0.1)
        predicted = model.step(*tensors, 0.1).numpy()
        np.testing.assert_allclose(predicted, moved, atol=1e-12)
        blocked += (moved == angles).all(axis=1).sum()
        angles, tensors[0] = moved, torch.as_tensor(moved)
    assert 100 < blocked < 64 * 30 - 100  # both branches were taken
    np.testing.assert_allclose(model.joints(tensors[0]).numpy(), arm.joints(angles), atol=1e-12)
    np.testing.assert_allclose(model.tip(tensors[0]).numpy(), arm.joints(angles)[:, -1], atol=1e-12)
    least = model.clearances(model.joints(tensors[0]), tensors[2]).amin((-2, -1))
    np.testing.assert_allclose(least.numpy(), arm.clearance(angles, circles), atol=1e-12)


def test_the_model_is_differentiable() -> None:
    angles, actions, circles = (torch.as_tensor(x[:4]) for x in scenes())
    far = torch.tensor(ABSENT, dtype=torch.float64).expand(4, 1, 3)
    actions = (0.5 * actions).requires_grad_()

    def reached(actions: torch.Tensor) -> torch.Tensor:
        return model.tip(model.step(angles, actions, far, 0.1))

    def cleared(actions: torch.Tensor) -> torch.Tensor:
        return model.clearances(model.joints(angles + 0.1 * actions), circles)

    assert torch.autograd.gradcheck(reached, actions)
    assert torch.autograd.gradcheck(cleared, actions)


def test_an_obstacle_centred_on_a_link_has_a_finite_gradient() -> None:
    angles = torch.zeros(1, LINKS, dtype=torch.float64, requires_grad=True)
    circles = torch.tensor([[[0.5, 0.0, 0.1]]], dtype=torch.float64)
    gaps = model.clearances(model.joints(angles), circles)
    assert gaps.min().item() == pytest.approx(-0.1)
    (gradient,) = torch.autograd.grad(gaps.sum(), angles)
    assert gradient.isfinite().all()


def test_a_blocked_move_has_no_gradient_by_its_action() -> None:
    angles = torch.zeros(2, LINKS, dtype=torch.float64)
    actions = torch.zeros(2, LINKS, dtype=torch.float64)
    actions[:, 0] = torch.tensor([1.0, -1.0])
    actions = (0.9 * actions).requires_grad_()
    circles = torch.tensor([[[0.9, 0.06, 0.05]]], dtype=torch.float64).expand(2, 1, 3)
    (gradient,) = torch.autograd.grad(model.step(angles, actions, circles, 0.1).sum(), actions)
    assert (gradient[0] == 0).all()
    assert (gradient[1] == 0.1).all()


def test_environments_go_without_torch() -> None:
    code = "import sys, forethought.envs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- Episodes.


def test_observation_and_goal_are_what_they_say() -> None:
    _, observations, info = begun()
    angles, circles = info["arm"]["angles"], info["arm"]["obstacles"].reshape(32, -1)
    tips = arm.joints(angles)[:, -1]
    expected = np.concatenate([np.cos(angles), np.sin(angles), circles, tips], axis=1)
    np.testing.assert_allclose(observations, expected, atol=1e-6)
    goal = info["goal"]
    np.testing.assert_array_equal(goal[:, 14:29], observations[:, 14:29])
    np.testing.assert_array_equal(goal[:, 29:], info["quantities"]["goal_position"])
    np.testing.assert_allclose(
        np.arctan2(goal[:, 7:14], goal[:, :7]),
        np.angle(np.exp(1j * info["arm"]["goal_angles"])),
        atol=1e-6,
    )


def test_starts_and_goals_are_free_and_apart() -> None:
    _, _, info = begun(128)
    circles = info["arm"]["obstacles"]
    for name in ("start_angles", "goal_angles"):
        assert arm.clearance(info["arm"][name], circles).min() > 0.03
    gap = np.linalg.norm(info["quantities"]["tip"] - info["quantities"]["goal_position"], axis=1)
    assert gap.min() >= 0.4 - 1e-6
    numbers = (circles[..., 2] > 0).sum(axis=1)
    assert set(numbers) == {3, 4, 5}
    assert (begun(8, obstacles=2)[2]["arm"]["obstacles"][..., 2] > 0).sum() == 16
    assert (begun(8, obstacles=0)[2]["arm"]["obstacles"] == ABSENT).all()


def test_the_tip_at_the_target_ends_the_episode_and_is_paid_once() -> None:
    env, _, info = begun(1, obstacles=0)
    paid = []
    for _ in range(env.episode_limit):
        gap = np.linalg.norm(info["quantities"]["tip"] - info["quantities"]["goal_position"])
        _, reward, terminated, _, info = env.step(arm.greedy(info["arm"]))
        paid.append(float(reward[0]))
        if terminated[0]:
            break
        assert not info["success"][0]
    assert info["success"][0]
    assert gap > arm.SUCCESS_RADIUS
    after = np.linalg.norm(info["quantities"]["tip"] - info["quantities"]["goal_position"])
    assert after <= arm.SUCCESS_RADIUS
    assert sum(paid) == paid[-1] == 1.0
    assert float(env.step(np.ones((1, LINKS)))[1][0]) == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"obstacles": 6}, "obstacles is 6: choose 0 to 5"),
        ({"obstacles": -1}, "obstacles is -1: choose 0 to 5"),
        ({"max_step": 0.0}, "max_step is 0.0: choose above 0 and at most 0.2"),
        ({"max_step": math.nan}, "max_step is nan: choose above 0"),
        ({"episode_limit": 0}, "episode_limit is 0"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(ID, **options)


def test_spec() -> None:
    spec = spec_of(make(ID))
    assert spec.control_step_seconds == 0.1
    assert spec.episode_limit == 100
    assert spec.action_dim == LINKS


# --- Pictures.


def test_pictures_show_what_is_there() -> None:
    circles = np.array([[0.5, -0.5, 0.2], ABSENT])
    empty = draw_arm(None, [ABSENT], None)
    assert (empty == empty[0, 0]).all()
    full = draw_arm(straight()[0], circles, (-0.5, 0.5))

    def at(x: float, y: float) -> bool:
        """Whether something is drawn at a point."""
        row, column = (int((value + 1.1) * 240 / 2.2) for value in (y, x))
        return bool((full[row, column] != empty[0, 0]).any())

    assert at(0.5, -0.5)
    assert at(-0.5, 0.5)
    assert at(0.5, 0.0)
    assert not at(-0.5, 0.0)
    assert not at(-0.5, -0.5)
    with pytest.raises(ValueError, match="size is 0"):
        draw_arm(None, [ABSENT], None, size=0)
    frames = begun(2)[0].render()
    assert frames is not None
    assert frames[0].shape == (240, 240, 3)
    assert make(ID, 1, render_mode=None).render() is None


# --- Controllers.


def test_greedy_solves_what_nothing_blocks_and_not_much_else() -> None:
    assert played("greedy", obstacles=0).all()
    assert played("greedy", 100, HELD_OUT_SEED).mean() < 0.5  # 31 % of 200 others


def test_scripted_solves_nearly_all() -> None:
    assert played("scripted", 20, HELD_OUT_SEED).mean() >= 0.95  # 99.5 % of 200 others


def test_random_solves_hardly_any() -> None:
    env, _, info = begun(32)
    generator = np.random.default_rng(0)
    for _ in range(env.episode_limit):
        info = env.step(generator.uniform(-1, 1, (32, LINKS)))[-1]
    assert info["success"].mean() < 0.1


def test_paths_are_free_and_cut_into_steps() -> None:
    _, _, info = begun(8, HELD_OUT_SEED)
    for row in range(8):
        start, goal, circles = (
            info["arm"][name][row] for name in ("start_angles", "goal_angles", "obstacles")
        )
        path = arm.free_path(start, goal, circles, 0.1, np.random.default_rng(0))
        assert path is not None
        np.testing.assert_array_equal(path[0], start)
        np.testing.assert_array_equal(path[-1], goal)
        assert np.abs(np.diff(path, axis=0)).max() <= 0.1 + 1e-9
        shares = np.linspace(0, 1, CHECKS + 1)[:, None]
        between = path[:-1, None] + shares * np.diff(path, axis=0)[:, None]
        assert arm.clearance(between, circles).min() > 0.5 * MARGIN


def test_a_straight_path_is_found_at_once_and_no_path_is_told() -> None:
    start, goal = straight()[0], straight(1.0)[0]
    path = arm.free_path(start, goal, NOTHING, 0.1, np.random.default_rng(0))
    assert path is not None
    np.testing.assert_allclose(path[:, 0], np.linspace(0, 1, 11), atol=1e-12)
    # The first link cannot turn past obstacles on either side of it.
    cage = np.array(
        [
            [0.5 * LINK_LENGTH * math.cos(a), 0.5 * LINK_LENGTH * math.sin(a), 0.01]
            for a in (0.5, -0.5)
        ]
    )
    generator = np.random.default_rng(0)
    assert arm.free_path(start, goal, cage, 0.1, generator, rounds=100) is None
    assert arm.free_path(straight(0.5)[0], goal, cage, 0.1, generator) is None


# --- Planning with the exact dynamics, and the benchmark of success against time.


@pytest.fixture(scope="module")
def frontier(repository: Path) -> ModuleType:
    """benchmarks/frontier.py as a module."""
    spec = importlib.util.spec_from_file_location(
        "frontier", repository / "benchmarks" / "frontier.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["frontier"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def problem_parts(count: int) -> list[torch.Tensor]:
    """Angles, targets and obstacles of fresh episodes, in float64."""
    _, _, info = begun(count)
    true = info["arm"]
    targets = arm.joints(true["goal_angles"])[:, -1]
    return [torch.as_tensor(part) for part in (true["angles"], targets, true["obstacles"])]


def test_planned_states_are_those_of_the_environment(frontier: ModuleType) -> None:
    """With contact always; without it for sequences of actions that touch nothing."""
    parts = problem_parts(32)
    env, _, _ = begun(32)
    actions = torch.rand(32, 6, LINKS, dtype=torch.float64) * 2 - 1
    exact = frontier.arm_problem(*parts, 6, contact=True)
    easy = frontier.arm_problem(*parts, 6)
    states = evaluate(exact, actions.unsqueeze(1))[1][:, 0].numpy()  # (B, H, 7)
    summed = evaluate(easy, actions.unsqueeze(1))[1][:, 0].numpy()
    free = np.ones(32, np.bool_)
    for time in range(6):
        info = env.step(actions[:, time].numpy())[-1]
        going = ~info["success"]
        now = info["arm"]["angles"]
        np.testing.assert_allclose(states[going, time], now[going], atol=1e-12)
        free &= np.abs(summed[:, time] - states[:, time]).max(axis=1) < 1e-12
    assert 0 < free.sum() < 32


def test_the_energy_has_the_gradient_of_finite_differences(frontier: ModuleType) -> None:
    problem = frontier.arm_problem(*problem_parts(2), 2)
    actions = 0.9 * torch.rand(2, 1, 2, LINKS, dtype=torch.float64)
    actions.requires_grad_()
    assert torch.autograd.gradcheck(lambda a: evaluate(problem, a)[0], actions)


def test_touching_costs_more_than_keeping_away(frontier: ModuleType) -> None:
    still = torch.zeros(1, 1, 1, LINKS, dtype=torch.float64)

    def energy(gap: float) -> float:
        circles = torch.tensor([[[0.5, 0.1 + gap, 0.1]]], dtype=torch.float64)
        target = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        angles = torch.zeros(1, LINKS, dtype=torch.float64)
        return float(evaluate(frontier.arm_problem(angles, target, circles, 1), still)[0])

    assert energy(0.2) == pytest.approx(0.01)  # the smooth distance at the target itself
    assert energy(0.2) == energy(0.07) < energy(0.03) < energy(0.0) < energy(-0.05)
    with pytest.raises(ValueError, match=r"margin is 0\.0: choose above 0"):
        frontier.arm_problem(*problem_parts(1), 1, margin=0.0)


def test_planning_reaches_further_than_greedy_does(frontier: ModuleType) -> None:
    """On episodes with one obstacle, in the way, most of which greedy loses."""
    first = 50
    lost = ~played("greedy", 6, first, obstacles=1)
    assert lost.sum() >= 3
    env, observations, info = begun(6, first, obstacles=1)
    planner = CEM(candidates=32, iterations=2, elites=4)
    controller = frontier.ArmController(planner, torch.Generator().manual_seed(0))
    carried = controller.start(observations, info)
    for _ in range(30):
        actions, carried = controller.act(carried, observations, info)
        info = env.step(actions)[-1]
    assert info["success"][lost].any()


def test_a_counted_clock_ends_searches_after_as_many_calls(frontier: ModuleType) -> None:
    problem = frontier.arm_problem(*problem_parts(1), 4)
    pace = frontier.Pace(budget=0.010, call=0.002, around=0.003)
    planner = frontier.Paced(CEM(candidates=8, iterations=50, elites=2), pace)
    assert planner.room == 8
    for turn in (1, 2):
        pace.begin()
        plan = planner.plan(problem, generator=torch.Generator().manual_seed(0))
        # 7 ms are left for planning: the fourth iteration begins at 6 ms, no fifth at 8.
        assert pace.calls == 4 * turn
        assert plan.model_steps == 4 * 8 * 4
    assert pace.model_steps == 2 * 4 * 8 * 4


def test_sizes_reach_the_fields_of_planners(frontier: ModuleType) -> None:
    made = frontier.sized(CEM, 64)
    assert (made.candidates, made.elites, made.iterations) == (64, 8, frontier.MANY)
    assert frontier.sized(RandomShooting, 256) == RandomShooting(candidates=256)
    polish = frontier.sized(Polish, 16)
    assert polish.planner == CEM(candidates=16, iterations=frontier.SHORT, elites=2)
    assert polish.gradient.iterations == frontier.MANY
    known = frontier.exported()
    assert {"CEM", "Gradient", "MPPI", "RandomShooting"} <= set(known)
    for kind in known.values():
        sizes = frontier.sizes_of(kind)
        assert sizes == tuple(sorted(sizes))
        assert [frontier.sized(kind, size) for size in sizes]


def test_the_front_holds_what_nothing_beats(frontier: ModuleType) -> None:
    pairs = [(1.0, 0.2), (2.0, 0.5), (2.5, 0.5), (3.0, 0.4), (4.0, 0.9), (4.0, 0.8)]
    points = [{"ms_mean": ms, "score": score} for ms, score in pairs]
    assert frontier.front(points) == [points[0], points[1], points[4]]


def test_the_benchmark_goes_on_where_it_stopped(
    frontier: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "frontier.jsonl"
    words = ["--tasks=arm", "--planners", "RandomShooting", "--budgets", "2", "--episodes=1"]
    words += ["--trials=1", "--seeds=1", "--clock=steps", f"--out={out}"]
    # Calls of the model are dear, so that few are made; an idle machine would measure them.
    calibrations = [
        {"kind": "calibration", "task": "arm", "planner": "RandomShooting", "size": size}
        | {"call_ms": 1.0 if size == 16 else 9.0, "around_ms": 0.5}
        for size in frontier.SHOOTING_SIZES
    ]
    out.write_text("".join(json.dumps(row) + "\n" for row in calibrations) + '{"kind": "te')
    frontier.main(words)
    lines = out.read_text().splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    assert kinds[len(calibrations) :] == ["baseline"] * 3 + ["tuned", "test"]
    tested = json.loads(lines[-1])
    assert (tested["size"], tested["ms_mean"], tested["calls_per_decision"]) == (16, 1.5, 1.0)
    frontier.main(words)
    assert out.read_text().splitlines() == lines
    assert json.loads(out.with_suffix(".json").read_text())["fronts"]["arm, steps"]
    # Deterministic: another beginning ends the same, but for the load of the machine.
    out.write_text("\n".join(lines[:-1]) + "\n")
    frontier.main(words)
    again = json.loads(out.read_text().splitlines()[-1])
    assert again | {"load": 0} == tested | {"load": 0}
    capsys.readouterr()
    frontier.main(["--table", f"--out={out}"])
    printed = capsys.readouterr().out
    assert "### arm (success, clock: steps)" in printed
    assert "| planner | 2 ms |" in printed
    assert "| RandomShooting | **" in printed
    assert "random 0 % [0, 79]" in printed


def test_an_unknown_task_is_refused(frontier: ModuleType) -> None:
    with pytest.raises(ValueError, match="tasks holds 'leg': choose arm, or NAME=RUN"):
        frontier.task_of("leg")
