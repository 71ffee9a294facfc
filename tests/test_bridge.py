"""The bridge: models that tell only costs, models of mappings, and our planners as their solver."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from forethought.bridge import Solver, bounds_of, problem_from_cost, problem_from_model
from forethought.planners import CEM, MPPI, Gradient, Planner, evaluate

HORIZON = 5
LOW, HIGH = -torch.ones(2), torch.ones(2)
PLANNERS = [CEM(candidates=48, iterations=12), MPPI(candidates=48, iterations=12), Gradient()]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positions(batch: int = 3, seed: int = 1) -> Tensor:
    return torch.rand(batch, 2, generator=seeded(seed)) - 0.5


class CostOnly:
    """A point that moves by 0.2 a; its cost is the squared distance to the goal after the last."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []
        self.encodings = 0

    def get_cost(self, info: dict[str, Any], candidates: Tensor) -> Tensor:
        self.asked.append(tuple(candidates.shape))
        if "code" not in info:
            self.encodings += 1
            info["code"] = info["position"]
        end = info["code"] + 0.2 * candidates.sum(2)
        return (end - torch.as_tensor(info["goal"])).square().sum(-1)


def info_of(batch: int = 3) -> dict[str, Any]:
    """As their environments give it: tensors and arrays, and what is neither."""
    return {"position": positions(batch), "goal": positions(batch, 2).numpy(), "id": "Point-v0"}


def exact(info: dict[str, Any], actions: Tensor) -> Tensor:
    """Cost `(B,)` of actions `(B, H, 2)`, written out."""
    end = info["position"] + 0.2 * actions.sum(1)
    return (end - torch.as_tensor(info["goal"])).square().sum(-1)


def cost_problem(batch: int = 3, **changes: Any) -> Any:
    options = {"horizon": HORIZON, "low": LOW, "high": HIGH} | changes
    return problem_from_cost(CostOnly().get_cost, info_of(batch), **options)


# --- models that tell only costs


@pytest.mark.parametrize("planner", PLANNERS, ids=lambda planner: type(planner).__name__)
def test_planners_reach_the_goal_of_a_model_that_tells_only_costs(planner: Planner) -> None:
    plan = planner.plan(cost_problem(), generator=seeded())
    still = exact(info_of(), torch.zeros(3, HORIZON, 2))
    assert (plan.energy < 0.05 * still).all()
    torch.testing.assert_close(plan.energy, exact(info_of(), plan.actions))
    torch.testing.assert_close(plan.states, plan.actions)


def test_the_energy_is_the_models_cost_and_its_gradient() -> None:
    actions = torch.rand(3, 4, HORIZON, 2, generator=seeded(), requires_grad=True)
    energy, _ = evaluate(cost_problem(), actions)
    info = info_of()
    for sample in range(4):
        torch.testing.assert_close(energy[:, sample], exact(info, actions[:, sample]))
    (slope,) = torch.autograd.grad(energy.sum(), actions)
    away = (
        info["position"].unsqueeze(1)
        + 0.2 * actions.sum(2)
        - torch.as_tensor(info["goal"])[:, None]
    )
    torch.testing.assert_close(slope, (0.4 * away).unsqueeze(2).expand_as(slope))


def test_what_a_model_writes_into_the_info_stays_for_the_next_evaluation() -> None:
    model, info = CostOnly(), info_of()
    problem = problem_from_cost(model.get_cost, info, horizon=HORIZON, low=LOW, high=HIGH)
    CEM(candidates=8, elites=2, iterations=4).plan(problem, generator=seeded())
    assert model.asked == [(3, 8, HORIZON, 2)] * 4
    assert model.encodings == 1
    assert set(info) == {"position", "goal", "id"}, "the caller's mapping was written to"


@pytest.mark.parametrize("order", [[2, 0, 1], [1], [0, 0, 2]])
def test_a_part_of_the_problems_keeps_its_own_costs(order: list[int]) -> None:
    for problem in (cost_problem(), mapped_problem()):
        rows = torch.tensor(order)
        part = replace(
            problem,
            state=problem.state[rows],
            context={name: x[rows] for name, x in problem.context.items()},
        )
        actions = torch.rand(3, 4, HORIZON, 2, generator=seeded())
        whole, _ = evaluate(problem, actions)
        assert len(set(whole.flatten().tolist())) == 12
        torch.testing.assert_close(evaluate(part, actions[rows])[0], whole[rows])


def test_so_many_problems_are_asked_at_once() -> None:
    model, actions = CostOnly(), torch.rand(3, 4, HORIZON, 2, generator=seeded())
    sizes = {"horizon": HORIZON, "low": LOW, "high": HIGH}
    problem = problem_from_cost(model.get_cost, info_of(), at_once=2, **sizes)
    for _ in range(2):
        energy, _ = evaluate(problem, actions)
        torch.testing.assert_close(energy, evaluate(cost_problem(), actions)[0])
    assert [shape[0] for shape in model.asked] == [2, 1, 2, 1]
    assert model.encodings == 2, "one for each part of the problems"
    with pytest.raises(ValueError, match="at_once is 0: choose"):
        problem_from_cost(model.get_cost, info_of(), at_once=0, **sizes)


@pytest.mark.parametrize(
    ("get_cost", "said"),
    [
        (lambda info, actions: actions.sum((1, 2, 3)), r"get_cost returned \(3,\): choose"),
        (lambda info, actions: 0.0, "get_cost returned float: choose"),
    ],
)
def test_a_cost_of_a_wrong_shape_is_refused(get_cost: Any, said: str) -> None:
    problem = problem_from_cost(get_cost, info_of(), horizon=HORIZON, low=LOW, high=HIGH)
    with pytest.raises(ValueError, match=said):
        CEM().plan(problem, generator=seeded())


@pytest.mark.parametrize("info", [{}, {"id": "x"}, {"a": torch.ones(2, 1), "b": np.ones((3, 1))}])
def test_an_info_without_one_leading_axis_is_refused(info: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"info has the leading axes .*: choose"):
        problem_from_cost(CostOnly().get_cost, info, horizon=HORIZON, low=LOW, high=HIGH)


def test_a_single_step_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"Problem\.rollout"):
        cost_problem().step(torch.zeros(3, 2), torch.zeros(3, 2), None, {}, 0)


def test_bounds_of_a_box() -> None:
    box = Box(np.float32([-1.0, 0.0]), np.float32([1.0, 2.0]))
    low, high = bounds_of(box, block=2)
    assert low.tolist() == [-1.0, 0.0, -1.0, 0.0]
    assert high.tolist() == [1.0, 2.0, 1.0, 2.0]
    vector = Box(np.stack([box.low] * 3), np.stack([box.high] * 3))
    assert bounds_of(vector, batched=True)[1].tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match=r"Discrete\(3\): choose a Box"):
        bounds_of(Discrete(3))
    with pytest.raises(ValueError, match="not bounded: choose"):
        bounds_of(Box(-np.inf, np.inf, (2,)))


# --- models that encode and roll out


class Mapped(nn.Module):
    """The interface of stable-worldmodel's models: mappings in, mappings out, one frame."""

    def __init__(self, history: int = 1) -> None:
        super().__init__()
        self.push = nn.Linear(2, 2, bias=False)
        self.history = history
        nn.init.constant_(self.push.weight, 0.0)
        with torch.no_grad():
            self.push.weight.copy_(0.2 * torch.eye(2))

    def encode(self, info: dict[str, Any]) -> dict[str, Any]:
        info["emb"] = info["pixels"].flatten(2)[..., :2]  # (B, T, 2)
        return info

    def rollout(self, info: dict[str, Any], candidates: Tensor) -> dict[str, Any]:
        start = info["pixels"].flatten(3)[..., :2]  # (B, S, T, 2)
        moved = start + self.push(candidates).cumsum(2)
        info["predicted_emb"] = torch.cat([start] * self.history + [moved], dim=2)
        return info


def pixels(batch: int = 3, seed: int = 1) -> Tensor:
    """Pictures `(B, T, C, H, W)` whose first two values are the state."""
    return positions(batch, seed).reshape(batch, 1, 2, 1, 1)


def mapped_problem(model: Any = None, **changes: Any) -> Any:
    options: dict[str, Any] = {
        "goal": {"pixels": pixels(seed=2)},
        "horizon": HORIZON,
        "low": LOW,
        "high": HIGH,
        "reduction": "last",
    }
    return problem_from_model(model or Mapped(), {"pixels": pixels()}, **(options | changes))


class Plain(nn.Module):
    """The interface of our own world model, without latents: tensors in, tensors out."""

    def encode(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def rollout(self, state: Tensor, actions: Tensor) -> Tensor:
        return state.unsqueeze(1) + 0.2 * actions.cumsum(1)


def plain_problem() -> Any:
    return problem_from_model(
        Plain(),
        pixels(),
        goal=pixels(seed=2),
        horizon=HORIZON,
        low=LOW,
        high=HIGH,
        reduction="last",
    )


def test_both_kinds_of_model_have_the_same_states_and_energies() -> None:
    actions = torch.rand(3, 4, HORIZON, 2, generator=seeded(), requires_grad=True)
    end = positions().unsqueeze(1) + 0.2 * actions.sum(2)
    wanted = (end - positions(seed=2).unsqueeze(1)).square().mean(-1)
    (slope,) = torch.autograd.grad(wanted.sum(), actions, retain_graph=True)
    for problem in (mapped_problem(), plain_problem()):
        energy, states = evaluate(problem, actions)
        torch.testing.assert_close(energy, wanted)
        torch.testing.assert_close(states[:, :, -1], end)
        torch.testing.assert_close(torch.autograd.grad(energy.sum(), actions)[0], slope)


@pytest.mark.parametrize("problem", [mapped_problem(), plain_problem()], ids=["mapped", "plain"])
@pytest.mark.parametrize("planner", PLANNERS, ids=lambda planner: type(planner).__name__)
def test_planners_reach_the_goal_of_a_model(planner: Planner, problem: Any) -> None:
    plan = planner.plan(problem, generator=seeded())
    still, _ = evaluate(problem, torch.zeros(3, 1, HORIZON, 2))
    assert (plan.energy < 0.05 * still[:, 0]).all()


def test_our_own_world_model_is_such_a_model() -> None:
    from forethought.worldmodel import JEPA, Perception, ResidualMLP

    class Eye(Perception):
        latent_dim = 2

        def forward(self, observation: Any) -> Tensor:
            seen: Tensor = observation[..., :2]
            return seen

        def standardise_by(self, observations: Any) -> None:
            """Nothing to do."""

    model = JEPA(Eye(), ResidualMLP(2, 2, hidden=8))
    problem = problem_from_model(
        model, positions(), goal=positions(seed=2), horizon=HORIZON, low=LOW, high=HIGH
    )
    actions = torch.rand(3, 4, HORIZON, 2, generator=seeded())
    _, states = evaluate(problem, actions)
    alone = model.rollout(positions()[1:2], actions[1:2, 2])
    torch.testing.assert_close(states[1:2, 2], alone)


def test_a_cost_of_ones_own_reads_the_models_states() -> None:
    def stage_cost(state: Any, action: Tensor, after: Any, context: Any, t: Tensor) -> Tensor:
        return after[..., 0].square()

    problem = mapped_problem(goal=None, stage_cost=stage_cost, discount=0.5)
    actions = torch.rand(3, 4, HORIZON, 2, generator=seeded())
    energy, states = evaluate(problem, actions)
    weights = 0.5 ** torch.arange(HORIZON)
    torch.testing.assert_close(energy, (states[..., 0].square() * weights).sum(-1))


def test_models_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="CostOnly, which has no method 'encode': choose"):
        mapped_problem(CostOnly())
    with pytest.raises(ValueError, match="goal is None and there is no cost: choose"):
        mapped_problem(goal=None)
    with pytest.raises(ValueError, match=r"returned \(3, 1, 7, 2\) .* one frame of history"):
        evaluate(mapped_problem(Mapped(history=2)), torch.zeros(3, 1, HORIZON, 2))


# --- our planners as their solver


@dataclass(frozen=True)
class Config:
    """As their PlanConfig."""

    horizon: int = HORIZON
    receding_horizon: int = 2
    action_block: int = 1
    warm_start: bool = True


def box(batch: int = 3, size: int = 2) -> Box:
    return Box(-1.0, 1.0, (batch, size), np.float32)


def solver(model: Any = None, planner: Planner = PLANNERS[0], **options: Any) -> Solver:
    made = Solver(model or CostOnly(), planner, **options)
    made.configure(action_space=box(), n_envs=3, config=Config())
    return made


@pytest.mark.parametrize("planner", PLANNERS, ids=lambda planner: type(planner).__name__)
def test_a_solver_solves(planner: Planner) -> None:
    made = solver(planner=planner)
    assert (made.n_envs, made.horizon, made.action_dim) == (3, HORIZON, 2)
    out = made(info_of())
    actions = out["actions"]
    assert actions.shape == (3, HORIZON, 2)
    assert actions.abs().max() <= 1
    assert not actions.requires_grad
    torch.testing.assert_close(torch.tensor(out["costs"]), exact(info_of(), actions))
    still = exact(info_of(), torch.zeros(3, HORIZON, 2))
    assert (torch.tensor(out["costs"]) < 0.05 * still).all()
    assert len(out["status"]) == 3


def test_two_solvers_of_one_seed_agree_and_two_solves_differ() -> None:
    one, other = solver(), solver()
    first = one(info_of())["actions"]
    assert torch.equal(first, other(info_of())["actions"])
    assert not torch.equal(first, one(info_of())["actions"])
    assert not torch.equal(first, solver(seed=1)(info_of())["actions"])


def test_the_start_of_the_search_is_what_is_given_then_zeros_or_the_model() -> None:
    least = CEM(candidates=2, elites=1, iterations=1, initial_std=1e-6, minimum_std=0.0)
    given = 0.5 * torch.ones(3, 2, 2)
    out = solver(planner=least)(info_of(), init_action=given)["actions"]
    torch.testing.assert_close(out[:, :2], given, atol=1e-4, rtol=0)
    assert out[:, 2:].abs().max() < 1e-4

    class Acts(CostOnly):
        def get_action(
            self, info: Any, horizon: int = 1, prefix_actions: Tensor | None = None
        ) -> Tensor:
            done = 0 if prefix_actions is None else prefix_actions.shape[1]
            return torch.full((3, horizon, 2), 0.1 * done)

    out = solver(Acts(), planner=least)(info_of(), init_action=given)["actions"]
    torch.testing.assert_close(out[:, 2:], torch.full((3, 3, 2), 0.2), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=r"init_action has the shape \(2, 2, 2\): choose"):
        solver()(info_of(), init_action=given[:2])


def test_blocks_and_bounds_of_a_solver() -> None:
    class Model(nn.Linear):
        def get_cost(self, info: dict[str, Any], candidates: Tensor) -> Tensor:
            assert candidates.dtype == torch.float64
            assert info["position"].dtype == torch.float64
            return -candidates.sum((2, 3))

    made = Solver(
        Model(1, 1, dtype=torch.float64),
        Gradient(iterations=40),
        low=torch.tensor([-3.0, -1.0]),
        high=torch.tensor([2.0, 4.0]),
    )
    made.configure(action_space=box(), n_envs=3, config=Config(action_block=2))
    assert made.action_dim == 4
    out = made(info_of())["actions"]
    torch.testing.assert_close(out[0, 0].float(), torch.tensor([2.0, 4.0, 2.0, 4.0]))


def test_a_solver_solves_for_some_of_the_environments_and_within_its_time() -> None:
    info = {name: x[:1] if name != "id" else x for name, x in info_of().items()}
    assert solver()(info)["actions"].shape == (1, HORIZON, 2)
    out = solver(planner=CEM(iterations=10**6), deadline_seconds=1e-9)(info_of())
    assert all("deadline" in sentence for sentence in out["status"])


def test_solvers_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="Plain, which has no method 'get_cost': choose"):
        Solver(Plain(), CEM())
    with pytest.raises(ValueError, match="choose both"):
        Solver(CostOnly(), CEM(), low=LOW)
    with pytest.raises(ValueError, match="deadline_seconds is 0: choose"):
        Solver(CostOnly(), CEM(), deadline_seconds=0)
    with pytest.raises(RuntimeError, match="call configure first"):
        Solver(CostOnly(), CEM()).solve(info_of())


# --- the real package


@pytest.mark.parametrize("planner", PLANNERS, ids=lambda planner: type(planner).__name__)
def test_their_policy_acts_with_our_planner(planner: Planner) -> None:
    """stable-worldmodel's own policy, in a vector of points."""
    pytest.importorskip(
        "stable_worldmodel", reason="needs stable-worldmodel: pip install 'forethought[peers]'"
    )
    from stable_worldmodel.policy import PlanConfig, WorldModelPolicy
    from stable_worldmodel.solver import Solver as Protocol

    made = Solver(CostOnly(), planner)
    policy = WorldModelPolicy(made, PlanConfig(horizon=HORIZON, receding_horizon=2))
    env = SimpleNamespace(
        num_envs=3, action_space=box(), single_action_space=Box(-1.0, 1.0, (2,), np.float32)
    )
    policy.set_env(env)
    assert isinstance(made, Protocol)
    info = {name: x for name, x in info_of().items() if name != "id"}
    info["position"] = info["position"].numpy()
    began = np.linalg.norm(info["position"] - info["goal"], axis=1)
    for _ in range(6):
        action = policy.get_action(dict(info))
        assert action.shape == (3, 2)
        assert np.abs(action).max() <= 1
        info["position"] = info["position"] + 0.2 * action
    assert (np.linalg.norm(info["position"] - info["goal"], axis=1) < 0.3 * began).all()


@pytest.mark.parametrize("planner", PLANNERS, ids=lambda planner: type(planner).__name__)
def test_their_world_model_in_our_planners(planner: Planner) -> None:
    """LeWM with small stand-ins for its parts: by its costs and by its states the same energy."""
    pytest.importorskip(
        "stable_worldmodel", reason="needs stable-worldmodel: pip install 'forethought[peers]'"
    )
    from stable_worldmodel.wm.lewm import LeWM

    class Eye(nn.Linear):
        def forward(self, pixels: Tensor, interpolate_pos_encoding: bool = False) -> Any:
            return SimpleNamespace(last_hidden_state=super().forward(pixels.flatten(1))[:, None])

    class Next(nn.Module):
        num_frames = 1

        def forward(self, emb: Tensor, action: Tensor) -> Tensor:
            return emb + action

    torch.manual_seed(0)
    model = LeWM(Eye(2, 4), Next(), nn.Linear(2, 4, bias=False)).requires_grad_(False)
    info = {"pixels": pixels(), "goal": pixels(seed=2), "action": torch.zeros(3, 1, 2)}
    sizes = {"horizon": HORIZON, "low": LOW, "high": HIGH}
    by_cost = problem_from_cost(model.get_cost, info, at_once=1, **sizes)
    by_state = problem_from_model(
        model,
        {"pixels": pixels()},
        goal={"pixels": pixels(seed=2)},
        reduction="last",
        **sizes,
    )
    actions = torch.rand(3, 4, HORIZON, 2, generator=seeded())
    energy, _ = evaluate(by_cost, actions)
    torch.testing.assert_close(4 * evaluate(by_state, actions)[0], energy)
    plan = planner.plan(by_cost, generator=seeded())
    still, _ = evaluate(by_cost, torch.zeros(3, 1, HORIZON, 2))
    assert (plan.energy < still[:, 0]).all()


# --- the comparison with peers


@pytest.mark.slow
def test_the_comparison_runs_and_says_which_peers_are_missing(
    repository: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.json"
    command = [sys.executable, str(repository / "benchmarks/planning.py"), "--quick"]
    done = subprocess.run(
        [*command, f"--json={out}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text())
    libraries = {row["library"].split()[0] for row in told["rows"]}
    for name in ("stable_worldmodel", "pytorch_mppi"):
        left_out = f"{name} is left out" in done.stderr
        assert left_out == (name.replace("_", "-") not in libraries)
    ours = {row["family"]: row for row in told["rows"] if row["library"].startswith("forethought")}
    assert {"CEM", "MPPI", "gradient"} <= set(ours)
    # Three problems, 8 candidates, 2 iterations, 4 steps; MPPI evaluates its last mean as well.
    assert ours["CEM"]["model_steps"] == 3 * 8 * 2 * 4
    assert ours["MPPI"]["model_steps"] == 3 * (8 * 2 + 1) * 4
    assert all(row["outside"] == 0.0 for row in ours.values())
