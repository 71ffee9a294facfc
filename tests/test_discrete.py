"""Planning with discrete actions: each planner keeps the contract, and what is particular to it."""

from __future__ import annotations

import itertools
import math
from typing import Any, ClassVar

import pytest
import torch
from discrete_contract import DiscreteContract, DiscreteRecorder, HiddenPath, Maze
from planner_contract import FLOAT, Recorder, seeded
from torch import Tensor

from forethought.planners import (
    CEM,
    MPPI,
    Gradient,
    Planner,
    Problem,
    RandomShooting,
    evaluate,
    safe_actions,
    shift,
    starts,
)
from forethought.planners.discrete import first_guess, held_actions, one_hot, sample


class TestGradient(DiscreteContract):
    planner = Gradient(starts=5, iterations=6)
    sharp = Gradient(starts=32, iterations=24, betas=(0.5, 0.9))
    sharp_steps = 32 * (24 + 9)
    maze_solved = 0.9
    path_solved = 0.95
    budget_field = "starts"
    other_values: ClassVar[dict[str, Any]] = {
        "starts": 4,
        "iterations": 5,
        "learning_rate": 0.2,
        "knots": 2,
        "betas": (0.8, 0.999),
        "control_points": 3,
    }

    def test_it_takes_the_steps_of_torch_adam(self) -> None:
        """The probabilities it asks about are the softmax of logits under `torch.optim.Adam`."""
        recorder = DiscreteRecorder()
        problem, first = recorder.problem(), recorder.proposals()
        planner = Gradient(starts=2, iterations=5, learning_rate=0.05, betas=(0.8, 0.95))
        planner.plan(problem, proposals=first, generator=seeded())
        # A start's own action has the probability 0.9, each of the four others 0.025.
        logits = math.log(36.0) * torch.nn.functional.one_hot(first, 5).to(FLOAT)
        logits.requires_grad_()
        adam = torch.optim.Adam([logits], lr=0.5, betas=(0.8, 0.95), eps=0.0)
        assert len(recorder.relaxed) == 5
        for seen in recorder.relaxed:
            torch.testing.assert_close(seen, logits.softmax(-1).detach())
            adam.zero_grad()
            evaluate(DiscreteRecorder().problem(), logits.softmax(-1))[0].sum().backward()
            adam.step()
        assert torch.equal(recorder.asked[0], first)
        assert torch.equal(recorder.asked[-1], logits.argmax(-1))

    def test_a_flat_candidate_stays_where_it_is(self) -> None:
        recorder = DiscreteRecorder()
        problem = recorder.problem(stage_cost=lambda s, a, n, c, t: 0.0 * n.sum(-1))
        assert torch.equal(self.plan(problem).actions, torch.zeros(3, 7, dtype=torch.int64))

    def test_a_model_without_a_gradient_is_refused(self) -> None:
        recorder = DiscreteRecorder()

        def step(state: Any, action: Tensor, *seen: Any) -> Tensor:
            hard = action.argmax(-1) if action.is_floating_point() else action
            return recorder.step(state, hard, *seen)

        blind = recorder.problem(step=step, stage_cost=lambda s, a, n, c, t: n.square().sum(-1))
        with pytest.raises(ValueError, match=r"no gradient in the actions.* or plan with CEM"):
            self.plan(blind)


class TestCEM(DiscreteContract):
    planner = CEM(candidates=16, iterations=4, elites=4)
    sharp = CEM(candidates=256, iterations=15, elites=16, momentum=0.5, correlation=0.0)
    sharp_steps = 256 * 15
    maze_solved = 0.9
    path_solved = 0.8
    budget_field = "candidates"
    other_values: ClassVar[dict[str, Any]] = {
        "candidates": 15,
        "iterations": 3,
        "elites": 3,
        "initial_std": 0.6,
        "minimum_std": 0.4,
        "momentum": 0.5,
        "correlation": 0.3,
        "control_points": 3,
    }

    def test_the_fit_against_written_out_numbers(self) -> None:
        planner = CEM(candidates=4, elites=3, momentum=0.25)
        chosen = torch.eye(2, dtype=FLOAT)[[0, 1, 1, 0]].view(1, 4, 1, 2)
        energies = torch.tensor([[5.0, 1.0, 2.0, math.inf]], dtype=FLOAT)
        old = torch.tensor([[[0.5, 0.5]]], dtype=FLOAT)
        # Elites 0, 1, 1: frequencies 1/3 and 2/3.
        fitted = planner._fit_discrete(chosen, energies, old)
        assert fitted.flatten().tolist() == pytest.approx([0.375, 0.625])
        only_one = torch.tensor([[math.inf, 1.0, math.inf, math.inf]], dtype=FLOAT)
        fitted = planner._fit_discrete(chosen, only_one, old)
        assert fitted.flatten().tolist() == pytest.approx([0.125, 0.875])
        none = torch.full((1, 4), math.inf, dtype=FLOAT)
        assert torch.equal(planner._fit_discrete(chosen, none, old), old)

    def test_the_mode_is_a_candidate(self) -> None:
        recorder = DiscreteRecorder()
        planner = CEM(candidates=8, elites=1, iterations=3, momentum=0.0)
        planner.plan(recorder.problem(), generator=seeded())
        assert (recorder.asked[0][:, 0] == 0).all()  # of the uniform distribution: the safe action
        for before, after in itertools.pairwise(recorder.asked):
            energies, _ = evaluate(DiscreteRecorder().problem(), before)
            best = before[torch.arange(3), energies.argmin(1)]
            assert torch.equal(after[:, 0], best)  # one elite: it is the mode


class TestMPPI(DiscreteContract):
    planner = MPPI(candidates=16, iterations=4)
    sharp = MPPI(candidates=256, iterations=15, std=0.1, correlation=0.0)
    sharp_steps = 256 * 15 + 1
    maze_solved = 0.85
    path_solved = 0.75
    budget_field = "candidates"
    other_values: ClassVar[dict[str, Any]] = {
        "candidates": 15,
        "iterations": 3,
        "temperature": 0.3,
        "std": 0.3,
        "correlation": 0.0,
    }


class TestRandomShooting(DiscreteContract):
    planner = RandomShooting(candidates=200)
    sharp = RandomShooting(candidates=1024)
    sharp_steps = 1024
    maze_solved = 0.3
    path_solved = 0.0
    budget_field = "candidates"
    stops_early = False
    other_values: ClassVar[dict[str, Any]] = {"candidates": 20, "knots": 3}


def looked_up(table: Tensor, **changes: Any) -> Problem:
    """Costs looked up in a table `(n,)`: the model knows indices only and has no float state."""
    options: dict[str, Any] = {
        "state": torch.zeros(2, dtype=torch.int64),
        "step": lambda state, action, *_: action,
        "horizon": 3,
        "actions": len(table),
        "stage_cost": lambda s, action, after, c, t: table[action],
    }
    return Problem(**(options | changes))


@pytest.mark.parametrize(
    "planner", [CEM(candidates=64), MPPI(candidates=64), RandomShooting(candidates=64, knots=1)]
)
def test_a_model_may_know_indices_only(planner: Planner) -> None:
    plan = planner.plan(looked_up(torch.tensor([3.0, 1.0, -2.0, 0.5])), generator=seeded())
    assert plan.actions.tolist() == plan.states.tolist() == [[2, 2, 2]] * 2  # type: ignore[union-attr]
    assert plan.energy.tolist() == [-6.0, -6.0]
    assert plan.energy.dtype == torch.float32


def test_dynamic_programming_agrees_with_enumeration() -> None:
    maze = Maze(batch=16, horizon=4)
    every = torch.cartesian_prod(*[torch.arange(5)] * 4).expand(16, -1, -1)
    lowest = evaluate(maze.problem, every)[0].amin(1)
    assert torch.equal(lowest, maze.optimum)


def test_the_hidden_path_costs_nothing() -> None:
    hidden = HiddenPath()
    energies, _ = evaluate(hidden.problem, hidden.answer.unsqueeze(1))
    assert (energies < 1e-12).all()


def test_indices_and_their_one_hot_probabilities_have_one_energy() -> None:
    problem, actions = DiscreteRecorder().problem(), DiscreteRecorder().proposals()
    hard, soft = evaluate(problem, actions), evaluate(problem, one_hot(problem, actions))
    assert torch.equal(hard[0], soft[0])
    assert torch.equal(hard[1], soft[1])  # type: ignore[arg-type]


def test_costs_see_indices_on_every_axis() -> None:
    def cost(state: Any, action: Tensor, after: Any, context: Any, t: Tensor) -> Tensor:
        assert action.shape == after.shape == (2, 1, 3)
        return after.double()

    def rollout(state: Any, actions: Tensor, latents: Any, context: Any) -> Tensor:
        assert actions.shape == (2, 3)
        return actions.cumsum(1)

    def last(state: Any, context: Any) -> Tensor:
        return 100.0 * state.double()

    table = torch.zeros(4)
    problem = looked_up(table, rollout=rollout, stage_cost=cost, goal_cost=cost, terminal_cost=last)
    actions = torch.tensor([[[1, 0, 3]], [[2, 2, 1]]])
    assert evaluate(problem, actions)[0].tolist() == [[412.0], [522.0]]


def test_the_floating_type_of_a_problem() -> None:
    continuous = Recorder().problem()
    assert continuous.float_dtype == FLOAT
    assert DiscreteRecorder().problem().float_dtype == FLOAT
    assert looked_up(torch.zeros(2)).float_dtype == torch.get_default_dtype()
    nested = {"count": torch.zeros(2, dtype=torch.int64), "x": torch.zeros(2, 1).half()}
    assert looked_up(torch.zeros(2), state=nested).float_dtype == torch.float16


@pytest.mark.parametrize(
    "actions",
    [
        torch.zeros(2, 1, 4, dtype=torch.int64),
        torch.zeros(2, 1, 3, 1, dtype=torch.int64),
        torch.zeros(2, 1, 3, dtype=torch.int32),
        torch.zeros(2, 1, 3),
        torch.zeros(2, 1, 3, 5),
    ],
)
def test_wrong_actions_are_refused(actions: Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"give int64 \(B, S, H\), or probabilities \(B, S, H, 4\)"
    ):
        evaluate(looked_up(torch.zeros(4)), actions)


def test_shift_knows_indices_by_their_type() -> None:
    plan = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert shift(plan).tolist() == [[2, 3, 3], [5, 6, 6]]
    assert shift(plan, 2, repeat_last=False).tolist() == [[3, 0, 0], [6, 0, 0]]
    assert shift(plan, 0).tolist() == plan.tolist()
    assert shift(plan, 9).tolist() == [[3, 3, 3], [6, 6, 6]]
    assert shift(plan).dtype == torch.int64


def test_starts_are_proposals_then_safe_then_held_noise() -> None:
    problem, given = DiscreteRecorder().problem(), DiscreteRecorder().proposals()
    found = starts(problem, 6, 2, given, seeded())
    assert found.shape == (3, 6, 7)
    assert torch.equal(found[:, :2], given)
    assert torch.equal(found[:, 2], safe_actions(problem))
    assert torch.equal(found[:, 3:], held_actions(problem, 3, 2, seeded()))
    assert torch.equal(starts(problem, 2, 2, given, seeded()), given)
    assert (safe_actions(problem) == 0).all()


def test_held_actions_are_held_equally_long_and_uniform() -> None:
    problem = DiscreteRecorder().problem(horizon=8)
    held = held_actions(problem, 2000, 3, seeded())
    changes = held.diff(dim=2).ne(0).flatten(0, 1)
    assert changes.any(0).nonzero().flatten().tolist() == [2, 5]
    share = held.flatten().bincount(minlength=5) / held.numel()
    torch.testing.assert_close(share, torch.full((5,), 0.2), atol=0.01, rtol=0.0)
    assert held_actions(problem, 9, 1, seeded()).diff(dim=2).eq(0).all()
    assert held_actions(problem, 9, 99, seeded()).diff(dim=2).ne(0).flatten(0, 1).any(0).all()


def test_the_first_guess() -> None:
    problem, given = DiscreteRecorder().problem(), DiscreteRecorder().proposals()
    assert (first_guess(problem, given[:, :0], 0.5) == 0.2).all()
    guess = first_guess(problem, given, 0.5)
    assert torch.equal(guess, 0.5 * one_hot(problem, given[:, 0]) + 0.1)
    assert torch.equal(first_guess(problem, given, 7.0), torch.full_like(guess, 0.2))


@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_samples_have_the_probabilities_they_are_given(correlation: float) -> None:
    problem = DiscreteRecorder().problem(batch=1)
    wanted = torch.rand(1, 7, 5, generator=seeded(3), dtype=FLOAT)
    wanted[:, :, 2] = 0.0
    wanted /= wanted.sum(-1, keepdim=True)
    drawn = sample(problem, wanted, 40_000, seeded(), spread=0.0, correlation=correlation)
    assert torch.equal(drawn[:, 0], wanted.argmax(-1))
    share = one_hot(problem, drawn).mean(1)
    torch.testing.assert_close(share, wanted, atol=0.015, rtol=0.0)
    assert (share[:, :, 2] == 0.0).all()
    mixed = sample(problem, wanted, 40_000, seeded(), spread=0.5, correlation=correlation)
    share = one_hot(problem, mixed).mean(1)
    torch.testing.assert_close(share, 0.5 * wanted + 0.1, atol=0.015, rtol=0.0)


def test_later_samples_are_held_more_often() -> None:
    problem = DiscreteRecorder().problem(batch=1)
    uniform = torch.full((1, 7, 5), 0.2, dtype=FLOAT)
    drawn = sample(problem, uniform, 40_000, seeded(), spread=0.0, correlation=0.8)
    repeated = drawn.diff(dim=2).eq(0).to(FLOAT).mean(2).view(4, -1).mean(1)
    # Chances of 0.1, 0.3, 0.5 and 0.7 on average; else one draw in five repeats by itself.
    wanted = torch.tensor([0.28, 0.44, 0.6, 0.76], dtype=FLOAT)
    torch.testing.assert_close(repeated, wanted, atol=0.01, rtol=0.0)


def test_continuous_problems_have_no_indices() -> None:
    with pytest.raises(ValueError, match="continuous actions"):
        one_hot(Recorder().problem(), torch.zeros(1, dtype=torch.int64))
