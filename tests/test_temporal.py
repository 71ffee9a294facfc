"""The temporal distance: a quasi-metric by construction, and the shortest paths of small worlds.

Worlds are cells seen as one-hot states; the model moves between them exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from forethought.agent.cost.temporal import (
    TemporalCost,
    TemporalDistance,
    TemporalStage,
    train_temporal,
)
from forethought.planners import Gradient, Problem
from forethought.worldmodel import JEPA, Actions, LatentData, Perception, Predictor

GAMMA = 0.9
STAGE = TemporalStage(steps=500, batch=32, window=2, learning_rate=1e-2, weight=10.0)
TINY = TemporalStage(steps=4, batch=8, window=4, actions=2)
Move = Callable[[int, int], int]


class Cells(Perception):
    """The state is the observation."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.latent_dim = number
        self.gain = nn.Parameter(torch.ones(number))

    def forward(self, observation: Any) -> Tensor:
        return self.gain * observation  # type: ignore[no-any-return]

    def standardise_by(self, statistics: Any) -> None:
        raise NotImplementedError


class Table(Predictor):
    """Exact moves `(A, cells, cells)` between cells."""

    def __init__(self, moves: Tensor) -> None:
        super().__init__()
        self.action_dim = len(moves)
        self.moves = nn.Parameter(moves)

    def forward(
        self, state: Tensor, action: Tensor, latent: Any = None, context: Any = None
    ) -> Tensor:
        return torch.einsum("na,nc,acd->nd", action, state, self.moves)


def world(cells: int, actions: int, move: Move) -> JEPA:
    moves = torch.zeros(actions, cells, cells)
    for action, cell in itertools.product(range(actions), range(cells)):
        moves[action, cell, move(cell, action)] = 1
    model = JEPA(Cells(cells), Table(moves), Actions(actions, discrete=True))
    return model.requires_grad_(False)


def walks(
    cells: int, actions: int, move: Move, episodes: int = 60, length: int = 30, seed: int = 0
) -> LatentData:
    """Random walks from all cells in turn; every episode is truncated."""
    rng = np.random.default_rng(seed)
    path: list[int] = []
    taken: list[int] = []
    for episode in range(episodes):
        path.append(episode % cells)
        for action in rng.integers(actions, size=length).tolist():
            taken.append(action)
            path.append(move(path[-1], action))
        taken.append(0)
    left = torch.arange(length, -1, -1).repeat(episodes)
    ended = torch.zeros(len(left), dtype=torch.bool)
    return LatentData(torch.eye(cells)[path], torch.tensor(taken), left, ended)


def shortest(cells: int, actions: int, move: Move) -> Tensor:
    """Fewest decisions between all cells, `(cells, cells)`; infinite where there is no way."""
    steps = torch.full((cells, cells), math.inf)
    steps.fill_diagonal_(0)
    for cell, action in itertools.product(range(cells), range(actions)):
        if move(cell, action) != cell:
            steps[cell, move(cell, action)] = 1
    for by in range(cells):  # Floyd and Warshall
        steps = torch.minimum(steps, steps[:, by, None] + steps[None, by])
    return steps


def distance_of(
    cells: int, seed: int = 0, discount: float = GAMMA, **sizes: int
) -> TemporalDistance:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TemporalDistance(cells, discount, **({"hidden": 64, "layers": 1} | sizes))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def told(module: TemporalDistance) -> Tensor:
    """d between all cells, `(cells, cells)`."""
    cells = torch.eye(module.layers[0].in_features)  # type: ignore[arg-type]
    return module.steps(cells[:, None], cells)


def learned(cells: int, actions: int, move: Move, stage: TemporalStage = STAGE) -> Tensor:
    module = distance_of(cells)
    data = walks(cells, actions, move)
    train_temporal(module, world(cells, actions, move), data, stage, seeded())
    return told(module)


# --- worlds


def ring(cell: int, action: int) -> int:
    """A ring of 6 cells in which one can only go on, or wait."""
    return (cell + action) % 6


def line(cell: int, action: int) -> int:
    """A line of 9 cells: back, wait, on."""
    return min(max(cell + action - 1, 0), 8)


def rooms(cell: int, action: int) -> int:
    """A grid of 5 x 5 with a wall in the middle column, open in its top row."""
    x, y = cell % 5, cell // 5
    dx, dy = ((1, 0), (-1, 0), (0, 1), (0, -1))[action]
    new_x, new_y = min(max(x + dx, 0), 4), min(max(y + dy, 0), 4)
    return cell if new_x == 2 and new_y > 0 else 5 * new_y + new_x


def islands(cell: int, action: int) -> int:
    """Two lines of 3 cells; no way leads from one to the other."""
    return 3 * (cell // 3) + min(max(cell % 3 + action - 1, 0), 2)


# --- by construction


@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_a_quasi_metric_before_it_has_learned_anything(seed: int) -> None:
    module = distance_of(5, seed)
    a, b, c = torch.randn(3, 200, 5, generator=seeded(seed))
    d = module.steps
    assert torch.equal(d(a, a), torch.zeros(200))
    assert bool((d(a, b) > 0).all())
    assert bool((d(a, c) <= d(a, b) + d(b, c) + 1e-4).all())
    assert not torch.allclose(d(a, b), d(b, a), rtol=0.1)


def test_the_three_readings_agree() -> None:
    """TC = 1 + gamma + gamma^2 where the goal is three decisions away."""
    module = distance_of(5, discount=0.5)
    a, b = torch.randn(2, 7, 5, generator=seeded())
    d, average = module.steps(a, b), module.average(a, b)
    torch.testing.assert_close(average, 1 - 0.5**d)
    torch.testing.assert_close(module(a, b), average / 0.5)
    beyond = torch.where(d > 1, 1 - 0.5 ** (d - 1), 0.0)
    torch.testing.assert_close(module.excess(a, b), beyond)
    assert bool((beyond > 0).any())
    torch.testing.assert_close(d, torch.log(1 - average) / math.log(0.5))
    module.steps = lambda state, goal: torch.tensor(3.0)  # type: ignore[method-assign]
    assert module(a, b).item() == pytest.approx(1 + 0.5 + 0.25)


def test_it_is_bounded_far_from_all_data() -> None:
    module = distance_of(5)
    far = 1e6 * torch.randn(50, 5, generator=seeded())
    average = module.average(far, torch.zeros(5))
    assert bool(((average >= 0) & (average <= 1)).all())
    assert bool((module(far, torch.zeros(5)) <= 1 / (1 - GAMMA) + 1e-4).all())


def test_gradients_reach_state_and_goal_and_are_right() -> None:
    module = distance_of(4, seed=3).double()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    state, goal = torch.randn(2, 3, 4, generator=seeded()).double()
    state, goal = 0.3 * state.requires_grad_(), 0.3 * goal.requires_grad_()
    assert torch.autograd.gradcheck(module.average, (state, goal))
    (slope,) = torch.autograd.grad(module.average(state, goal).sum(), state)
    assert bool((slope != 0).any(-1).all())


def test_the_gradient_at_the_goal_is_finite() -> None:
    state = torch.randn(3, 5, generator=seeded(), requires_grad=True)
    distance_of(5).average(state, state.detach()).sum().backward()
    assert state.grad is not None
    assert bool(state.grad.isfinite().all())


def test_the_cost_of_a_step_reads_the_next_state_and_broadcasts() -> None:
    module = distance_of(5)
    before, after = torch.randn(2, 2, 3, 4, 5, generator=seeded())  # (B, S, H, D)
    goal = torch.randn(2, 1, 1, 5, generator=seeded(1))
    action, t = torch.zeros(2, 3, 4, 1), torch.arange(4)
    cost = TemporalCost(module)
    found = cost(before, action, after, {"goal": goal}, t)
    assert found.shape == (2, 3, 4)
    torch.testing.assert_close(found[1, 2, 3], module.average(after[1, 2, 3], goal[1, 0, 0]))
    assert torch.equal(found, cost(after, action, after, {"goal": goal}, t))
    with pytest.raises(FrozenInstanceError):
        cost.module = distance_of(5)  # type: ignore[misc]


# --- known optima


def test_on_a_one_way_ring_the_way_back_is_the_long_way() -> None:
    found, true = learned(6, 2, ring), shortest(6, 2, ring)
    assert true[0, 5] == 5
    assert true[5, 0] == 1
    assert (found - true).abs().max() < 0.7


def test_random_walks_along_a_line_teach_the_shortest_path() -> None:
    """A random walk that waits a third of its time needs 108 decisions for the 8 cells."""
    found, true = learned(9, 3, line), shortest(9, 3, line)
    assert (found - true).abs().max() < 0.8


def test_paths_lead_round_the_wall() -> None:
    found, true = learned(25, 4, rooms), shortest(25, 4, rooms)
    free = true.isfinite().sum(0) > 1  # walks begin in the cells of the wall, none returns
    found, true = found[free][:, free], true[free][:, free]
    assert true.max() == 12  # from corner to corner, 4 if there were no wall
    assert (found - true).abs().mean() < 0.5
    ranks = torch.stack([x.flatten().argsort().argsort().double() for x in (found, true)])
    assert torch.corrcoef(ranks)[0, 1] > 0.95


def test_what_no_walk_reached_is_as_far_as_the_horizon() -> None:
    """Episodes on both islands follow each other in the data: a truncation reaches nothing."""
    found = learned(6, 3, islands)
    assert (found - shortest(6, 3, islands))[:3, :3].abs().max() < 0.5
    assert bool((1 - GAMMA ** found[:3, 3:] > 0.9).all())
    assert bool((1 - GAMMA ** found[3:, :3] > 0.9).all())


def test_imagined_actions_find_ways_that_nobody_went() -> None:
    """In the data one only ever goes on; the model knows that one can step back too."""
    data = walks(6, 2, ring)

    def both(cell: int, action: int) -> int:
        return (cell + (0, 1, -1)[action]) % 6

    found = {}
    for actions in (0, 8):
        module = distance_of(6)
        stage = replace(STAGE, actions=actions)
        train_temporal(module, world(6, 3, both), data, stage, seeded())
        found[actions] = told(module)
    assert (found[0] - shortest(6, 2, ring)).abs().max() < 0.7
    assert (found[8] - shortest(6, 3, both)).abs().max() < 0.7


def test_predicted_states_are_learned_too() -> None:
    """A model that shows cells in another place than perception does: what follows is known, and
    the two faces of one cell are at most the decision to wait apart."""
    model = world(12, 2, lambda cell, action: 6 + ring(cell % 6, action))
    seen = walks(6, 2, ring)
    data = replace(seen, states=nn.functional.pad(seen.states, (0, 6)))
    module = distance_of(12)
    train_temporal(module, model, data, STAGE, seeded())
    found, true = told(module), shortest(6, 2, ring)
    assert (found[:6, :6] - true).abs().mean() < 0.2
    assert (found[6:, :6] - true)[true > 0].abs().mean() < 0.2
    assert bool((found[6:, :6].diagonal() < 1.2).all())


# --- training


def test_nothing_but_the_distance_learns_and_twins_are_equal() -> None:
    data, model = walks(6, 2, ring), world(6, 2, ring).requires_grad_(True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twins = [distance_of(6), distance_of(6)]
    start = told(twins[0])
    for twin in twins:
        train_temporal(twin, model, data, TINY, seeded())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(told(twins[0]), told(twins[1]))
    assert not torch.equal(told(twins[0]), start)


@pytest.mark.parametrize(
    "change",
    [{"batch": 16}, {"window": 2}, {"actions": 0}, {"weight": 1.0}, {"learning_rate": 1e-2}],
)
def test_every_option_counts(change: dict[str, Any]) -> None:
    data, model = walks(6, 2, ring), world(6, 2, ring)
    plain, other = distance_of(6), distance_of(6)
    train_temporal(plain, model, data, TINY, seeded())
    train_temporal(other, model, data, replace(TINY, **change), seeded())
    assert not torch.equal(told(plain), told(other))


def test_what_lies_behind_an_episode_is_not_read() -> None:
    """Actions at the last observation were never taken, and short episodes serve long windows."""
    data = walks(6, 2, ring, episodes=40, length=3)
    spoilt = replace(data, actions=torch.where(data.remaining > 0, data.actions, 1))
    found = []
    for one in (data, spoilt):
        module = distance_of(6)
        train_temporal(module, world(6, 2, ring), one, replace(TINY, window=9), seeded())
        found.append(told(module))
    assert torch.equal(found[0], found[1])


def test_zero_steps_leave_it_as_it_was() -> None:
    module = distance_of(6)
    before = told(module)
    train_temporal(module, world(6, 2, ring), walks(6, 2, ring), replace(TINY, steps=0), seeded())
    assert torch.equal(told(module), before)


def test_it_logs_its_terms() -> None:
    seen: list[dict[str, float]] = []
    train_temporal(
        distance_of(6),
        world(6, 2, ring),
        walks(6, 2, ring),
        TINY,
        seeded(),
        on_step=lambda step, terms: seen.append(terms),
    )
    assert {"too_long", "too_long_imagined", "average", "loss"} <= set(seen[-1])


# --- planning


class Corridor(Predictor):
    """A point that moves by a fifth of its action; a wall, |x| < 0.2, is open above y = 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.action_dim = 2

    def forward(
        self, state: Tensor, action: Tensor, latent: Any = None, context: Any = None
    ) -> Tensor:
        after = (state + 0.2 * action).clamp(-1, 1)
        # A blocked move loses its x; what steps down into the wall inside the door loses its y.
        x, y = after.split(1, -1)
        old_x, old_y = state.split(1, -1)
        blocked = (x.abs() < 0.2) & (y < 0.5)
        inside = old_x.abs() < 0.2
        return torch.where(
            blocked,
            torch.cat((torch.where(inside, x, old_x), torch.where(inside, old_y, y)), -1),
            after,
        )


def test_a_short_plan_goes_round_a_wall_that_stops_the_latent_distance() -> None:
    model = JEPA(Cells(2), Corridor()).requires_grad_(False)
    drawn = seeded()
    start = 2 * torch.rand(400, 2, generator=drawn) - 1
    start[:, 0] += 0.2 * start[:, 0].sign()  # not in the wall
    actions = (2 * torch.rand(400, 1, 2, generator=drawn) - 1).repeat(1, 8, 1)
    actions = (actions + torch.randn(400, 8, 2, generator=drawn)).clamp(-1, 1)
    states = torch.cat((start[:, None], model.rollout(start, actions)), 1)
    data = LatentData(
        states.flatten(0, 1),
        nn.functional.pad(actions, (0, 0, 0, 1)).flatten(0, 1),
        torch.arange(8, -1, -1).repeat(400),
        torch.zeros(400 * 9, dtype=torch.bool),
    )
    module = distance_of(2, discount=0.95, layers=2)
    stage = replace(STAGE, batch=64, window=4, learning_rate=3e-3)
    train_temporal(module, model, data, stage, seeded())

    def reached(cost: Any) -> float:
        state, goal = torch.tensor([[-0.5, -0.5]]), torch.tensor([[0.5, -0.5]])
        for step in range(25):
            problem = Problem(
                state=state,
                step=lambda s, a, z, context, t: model.predict(s, a),
                goal_cost=cost,
                horizon=6,
                low=-torch.ones(2),
                high=torch.ones(2),
                context={"goal": goal},
            )
            with torch.no_grad():
                plan = Gradient(starts=8, iterations=6).plan(problem, generator=seeded(step))
                state = model.predict(state, plan.actions[:, 0])
        return float((state - goal).norm())

    def straight(s: Tensor, a: Tensor, after: Tensor, context: Any, t: Tensor) -> Tensor:
        return (after - context["goal"]).square().mean(-1)

    assert reached(straight) > 0.4
    assert reached(TemporalCost(module)) < 0.2


# --- errors


@pytest.mark.parametrize("discount", [0.0, 1.0, 1.5, math.nan])
def test_a_discount_outside_its_range_is_refused(discount: float) -> None:
    with pytest.raises(ValueError, match=rf"discount is {discount} per decision: choose it in"):
        TemporalDistance(3, discount)


@pytest.mark.parametrize("name", ["groups", "width"])
def test_sizes_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0: choose 1 or more"):
        TemporalDistance(3, 0.9, **{name: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("steps", -1, "choose 0 or more"),
        ("batch", 1, "choose 2 or more"),
        ("window", 0, "choose 1 or more"),
        ("horizon", -1, "choose 0 or more"),
        ("actions", -1, "choose 0 or more"),
        ("weight", 0.0, "choose it above 0, finite"),
        ("weight", math.nan, "choose it above 0, finite"),
        ("learning_rate", math.inf, "choose it above 0, finite"),
    ],
)
def test_a_stage_says_what_is_wrong(name: str, value: Any, remedy: str) -> None:
    with pytest.raises(ValueError, match=f"stages.temporal.{name} is {value}: {remedy}"):
        replace(TemporalStage(), **{name: value})
