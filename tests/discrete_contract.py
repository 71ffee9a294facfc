"""What every planner of discrete actions promises: inherit `DiscreteContract` and name the planner.

Two yardsticks with known optima, both float64: a maze, solved by dynamic programming, and a hidden
path that is to be followed, whose optimum is 0 and which guessing does not find.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any, ClassVar

import pytest
import torch
from planner_contract import FLOAT, CommonContract, Recorder, same, seeded
from torch import Tensor

from forethought.planners import Plan, Planner, Problem, RandomShooting, Status


def chosen(action: Tensor, count: int) -> Tensor:
    """Probabilities `(..., n)`, from indices `(...)` or as they are: models should take both."""
    if action.is_floating_point():
        return action
    assert action.dtype == torch.int64
    assert 0 <= int(action.min()) <= int(action.max()) < count
    return torch.nn.functional.one_hot(action, count).to(FLOAT)


class Maze:
    """Five by five cells with walls; cost: the Manhattan distance to the goal after each step.

    The state is a distribution over cells, so that mixed actions have a meaning: the expectation.
    """

    plan_of_it = (".....", "..#..", "..#..", "..#..", "..#..")
    moves = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))

    def __init__(self, batch: int = 32, horizon: int = 10) -> None:
        free = [(y, x) for y in range(5) for x in range(5) if self.plan_of_it[y][x] == "."]
        at = {cell: i for i, cell in enumerate(free)}
        self.next_cell = torch.tensor(
            [[at.get((y + dy, x + dx), at[y, x]) for y, x in free] for dy, dx in self.moves]
        )  # (n, M)
        self.start = torch.randint(len(free), (batch,), generator=seeded())
        goal = torch.randint(len(free), (batch,), generator=seeded(1))
        cells = torch.tensor(free, dtype=FLOAT)
        self.cost = (cells - cells[goal].unsqueeze(1)).abs().sum(-1)  # (B, M)
        self.transitions = torch.nn.functional.one_hot(self.next_cell).to(FLOAT)  # (n, M, M)
        self.problem = Problem(
            state=torch.nn.functional.one_hot(self.start, len(free)).to(FLOAT),
            step=self.step,
            horizon=horizon,
            actions=len(self.moves),
            stage_cost=lambda s, a, after, context, t: (after * context["cost"]).sum(-1),
            context={"cost": self.cost},
        )
        self.optimum = self.dynamic_programming()  # (B,)

    def step(self, state: Any, action: Tensor, latent: Any, context: Any, t: int) -> Tensor:
        probabilities = chosen(action, len(self.moves))
        return torch.einsum("nk,ni,kij->nj", probabilities, state, self.transitions)

    def dynamic_programming(self) -> Tensor:
        """Lowest sum of costs `(B,)`, by backward induction over cells, without the problem."""
        value = torch.zeros_like(self.cost)
        for _ in range(self.problem.horizon):
            value = (self.cost + value)[:, self.next_cell].amin(1)
        return value.gather(1, self.start.unsqueeze(1)).squeeze(1)

    def solved(self, plan: Plan) -> float:
        """Share of problems solved exactly."""
        above = plan.energy - self.optimum
        assert (above >= -1e-9).all(), "better than the optimum"
        return (above < 1e-9).double().mean().item()


class HiddenPath:
    """Follow a random path of 10 steps, one of 4 pushes each: of 4^10 sequences one costs 0."""

    pushes = torch.tensor([[1.0, 0.0], [-1.0, 0.2], [0.3, 1.0], [0.0, -1.0]], dtype=FLOAT)

    def __init__(self, batch: int = 32) -> None:
        self.answer = torch.randint(4, (batch, 10), generator=seeded())
        self.problem = Problem(
            state=torch.zeros(batch, 2, dtype=FLOAT),
            step=lambda state, action, *_: state + chosen(action, 4) @ self.pushes,
            horizon=10,
            actions=4,
            stage_cost=self.stage_cost,
            context={"path": self.pushes[self.answer].cumsum(1)},
        )

    def stage_cost(self, state: Any, action: Tensor, after: Any, context: Any, t: Tensor) -> Tensor:
        path = context["path"].squeeze(2)  # (B, 1, H, 2), from (B, 1, 1, H, 2)
        return (after - path).square().sum(-1)

    @staticmethod
    def solved(plan: Plan) -> float:
        return (plan.energy < 1e-9).double().mean().item()


class DiscreteRecorder(Recorder):
    """The point of `Recorder`, pushed in one of five directions; mixtures push in between."""

    directions = torch.tensor(
        [[0.0, 0.0], [0.4, 0.1], [-0.9, 0.2], [0.1, 0.8], [0.2, -0.5]], dtype=FLOAT
    )

    def __init__(self) -> None:
        super().__init__()
        self.relaxed: list[Tensor] = []

    def push(self, action: Tensor) -> Tensor:
        kind = self.directions.to(action) if action.is_floating_point() else self.directions
        return chosen(action, 5).to(kind) @ kind

    def stage_cost(self, state: Any, action: Tensor, after: Any, context: Any, t: Tensor) -> Tensor:
        cost = super().stage_cost(state, action, after, context, t)
        if action.is_floating_point():
            self.relaxed.append(self.asked.pop())
        return cost

    def problem(self, batch: int = 3, **changes: Any) -> Problem:
        return super().problem(batch, **({"low": None, "high": None, "actions": 5} | changes))

    def proposals(self) -> Tensor:
        return torch.randint(5, (3, 2, 7), generator=seeded(5))


class DiscreteContract(CommonContract):
    """Inherit this. `sharp` has the budget for the two yardsticks."""

    recorder = DiscreteRecorder
    sharp: ClassVar[Planner]
    sharp_steps: ClassVar[int]  # one-step predictions per problem and step of the horizon
    maze_solved: ClassVar[float]  # least shares of problems solved exactly
    path_solved: ClassVar[float]

    def test_it_solves_the_maze(self) -> None:
        maze = Maze()
        plan = self.sharp.plan(maze.problem, generator=seeded())
        assert maze.solved(plan) >= self.maze_solved, maze.solved(plan)
        assert plan.model_steps == self.sharp_steps * 32 * 10

    def test_it_follows_the_hidden_path(self) -> None:
        hidden = HiddenPath()
        plan = self.sharp.plan(hidden.problem, generator=seeded())
        assert hidden.solved(plan) >= self.path_solved, hidden.solved(plan)

    def test_guessing_as_often_does_not_follow_it(self) -> None:
        hidden = HiddenPath()
        guesses = RandomShooting(self.sharp_steps, knots=10)
        assert hidden.solved(guesses.plan(hidden.problem, generator=seeded())) < 0.1

    def test_candidates_are_indices_and_relaxed_ones_probabilities(self) -> None:
        recorder = self.recorder()
        assert isinstance(recorder, DiscreteRecorder)
        plan = self.plan(recorder.problem())
        assert plan.actions.shape == (3, 7)
        for actions in [plan.actions, *recorder.asked]:
            assert actions.dtype == torch.int64
            assert 0 <= int(actions.min()) <= int(actions.max()) < 5
        assert all(actions.ndim == 3 for actions in recorder.asked)
        for probabilities in recorder.relaxed:
            assert probabilities.shape[2:] == (7, 5)
            assert (probabilities >= 0.0).all()
            total = probabilities.sum(-1)
            torch.testing.assert_close(total, torch.ones_like(total))

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("place", ["cost", "state"])
    def test_not_a_number_loses(self, place: str, value: float) -> None:
        """The cost falls with the index; the last one, where it is lowest, breaks all."""
        pushes = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0], dtype=FLOAT)

        def push(action: Tensor) -> Tensor:
            return chosen(action, 5) @ pushes

        def step(state: Any, action: Tensor, latent: Any, context: Any, t: int) -> Tensor:
            moved = state + push(action).unsqueeze(-1)
            broken = (push(action) > 0.6).unsqueeze(-1) & (place == "state")
            return torch.where(broken, value, moved)

        def cost(state: Any, action: Tensor, after: Any, context: Any, t: Tensor) -> Tensor:
            asked.append(action)
            broken = (push(action) > 0.6) & (place == "cost")
            return torch.where(broken, value, -push(action))

        asked: list[Tensor] = []
        start = torch.zeros(3, 1, dtype=FLOAT)
        problem = self.recorder().problem(state=start, step=step, stage_cost=cost, horizon=4)
        plan = self.plan(problem)
        assert plan.status == (Status.OK,) * 3
        assert (plan.actions < 4).all()
        assert (plan.energy < -0.1).all(), "nothing was found though much is finite"
        assert plan.energy.isfinite().all()
        assert any((actions == 4).any() for actions in asked), "the trap was never met"
        assert all(actions.isfinite().all() for actions in asked), "a candidate was poisoned"

    def test_where_nothing_is_finite_the_action_is_safe(self) -> None:
        problem = self.recorder().problem()
        state = problem.state
        assert isinstance(state, Tensor)
        broken = replace(problem, state=state.index_fill(0, torch.tensor([1]), math.nan))
        plan, whole = self.plan(broken), self.plan(problem)
        assert plan.status == (Status.OK, Status.ALL_NON_FINITE, Status.OK)
        assert plan.actions[1].tolist() == [0] * 7
        assert plan.energy[1] == math.inf
        assert same(plan, whole, 0), "a broken problem leaked into its neighbour"
        assert same(plan, whole, 2), "a broken problem leaked into its neighbour"

    def test_every_option_changes_behaviour(self) -> None:
        def asked(planner: Planner) -> list[Tensor]:
            recorder = DiscreteRecorder()
            planner.plan(recorder.problem(), proposals=recorder.proposals(), generator=seeded())
            return recorder.asked + recorder.relaxed

        names = {field.name for field in fields(self.planner)}  # type: ignore[arg-type]
        assert set(self.other_values) == names, "give every field another value"
        before = asked(self.planner)
        for name, value in self.other_values.items():
            assert getattr(self.planner, name) != value
            after = asked(replace(self.planner, **{name: value}))  # type: ignore[type-var]
            alike = len(before) == len(after) and all(map(torch.equal, before, after))
            assert not alike, f"{name} = {value} changed nothing"

    def test_proposals_are_used(self) -> None:
        hidden = HiddenPath()
        for place in (0, 1):  # first, and behind a useless one
            proposals = torch.full((32, 2, 10), 1)
            proposals[:, place] = hidden.answer
            plan = self.plan(hidden.problem, proposals=proposals)
            assert torch.equal(plan.actions, hidden.answer)
            assert (plan.trace[0] < 1e-9).all(), "not from the start"

    @pytest.mark.parametrize(
        ("proposals", "message"),
        [
            (torch.zeros(3, 7, dtype=torch.int64), r"proposals have the shape \(3, 7\)"),
            (torch.zeros(3, 1, 7, 5), r"proposals have the shape \(3, 1, 7, 5\); give \(B, P, H\)"),
            (torch.zeros(3, 1, 7), "proposals are torch.float32; give int64"),
            (torch.full((3, 1, 7), 5), "indices from 5 to 5; give 0 to 4"),
            (torch.full((3, 1, 7), -1), "indices from -1 to -1; give 0 to 4"),
        ],
    )
    def test_wrong_proposals_are_refused(self, proposals: Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.plan(self.recorder().problem(), proposals=proposals)

    def test_too_many_proposals_are_refused(self) -> None:
        many = torch.zeros(3, getattr(self.planner, self.budget_field) + 1, 7, dtype=torch.int64)
        with pytest.raises(ValueError, match=f"proposals exceed {self.budget_field}"):
            self.plan(self.recorder().problem(), proposals=many)

    def test_one_action_leaves_no_choice(self) -> None:
        problem = Problem(
            state=torch.zeros(2, 1, dtype=FLOAT),
            step=lambda state, action, *_: state + chosen(action, 1),
            horizon=3,
            actions=1,
            stage_cost=lambda s, a, after, context, t: after.squeeze(-1),
        )
        plan = self.plan(problem)
        assert plan.actions.tolist() == [[0, 0, 0]] * 2
        assert plan.energy.tolist() == [6.0, 6.0]

    def test_energies_have_the_type_of_the_state(self) -> None:
        recorder = self.recorder()
        assert isinstance(recorder, DiscreteRecorder)
        problem = recorder.problem()
        assert isinstance(problem.state, Tensor)
        single = replace(
            problem,
            state=problem.state.float(),
            context={"target": problem.context["target"].float()},
            step=lambda state, action, *seen: recorder.step(state, action, *seen).float(),
            stage_cost=lambda *seen: recorder.stage_cost(*seen).float(),
        )
        plan = self.plan(single)
        assert plan.actions.dtype == torch.int64
        assert plan.energy.dtype == plan.trace.dtype == torch.float32
        assert all(soft.dtype == torch.float32 for soft in recorder.relaxed)
