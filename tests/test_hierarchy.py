"""H-JEPA on a point in a plane: data of a level, its training, and plans from the top down.

The world is s' = s + a / 4, seen as it is; episodes are random walks in it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from forethought.agent import (
    REACH,
    Agent,
    Configurator,
    Cost,
    Distillation,
    Hierarchy,
    Policy,
    TemporalCost,
    TemporalDistance,
    TopDown,
    distill,
)
from forethought.planners import CEM, Deadline, Gradient, evaluate
from forethought.worldmodel import (
    JEPA,
    LatentData,
    Level,
    LevelShape,
    LevelStage,
    Perception,
    Predictor,
    effective_rank,
    level_data,
    lifted,
    train_level,
)
from forethought.worldmodel.hierarchy import chains

STEP = 0.25
SHAPE = LevelShape(stride=4, latent_dim=4, macro_dim=2, hidden=32)
STAGE = LevelStage(steps=600, batch=64, unroll=3, learning_rate=3e-3, variance=4.0)


class Seen(Perception):
    """The state is the observation."""

    latent_dim = 2

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, observation: Any, context: Any = None) -> Tensor:
        return observation  # type: ignore[no-any-return]

    def standardise_by(self, statistics: Any) -> None:
        raise NotImplementedError


class Exact(Predictor):
    """The world itself."""

    action_dim = 2

    def forward(
        self, state: Tensor, action: Tensor, latent: Any = None, context: Any = None
    ) -> Tensor:
        return state + STEP * action


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def walks(lengths: tuple[int, ...] = (24,) * 100, seed: int = 0) -> LatentData:
    """Random walks whose actions last for a while."""
    draw = seeded(seed)
    states, actions, remaining = [], [], []
    for length in lengths:
        held = torch.randn((length + 3) // 4, 2, generator=draw).clamp(-1, 1)
        taken = held.repeat_interleave(4, 0)[:length]
        start = torch.randn(1, 2, generator=draw)
        states.append(torch.cat((start, start + STEP * taken.cumsum(0))))
        actions.append(torch.cat((taken, torch.zeros(1, 2))))
        remaining.append(torch.arange(length, -1, -1))
    left = torch.cat(remaining)
    return LatentData(torch.cat(states), torch.cat(actions), left, torch.zeros_like(left) > 0)


@pytest.fixture(scope="module")
def trained() -> Level:
    torch.manual_seed(0)
    level = Level(2, 2, SHAPE)
    train_level(level, walks(), STAGE, seeded())
    return level.eval().requires_grad_(False)


def test_chains_put_what_is_a_step_apart_next_to_each_other() -> None:
    data = walks((7, 3, 0, 5))
    order = chains(data, 3)
    assert order.sort().values.tolist() == list(range(len(data.states)))
    assert order[:8].tolist() == [0, 3, 6, 1, 4, 7, 2, 5]
    assert order[8:12].tolist() == [8, 11, 9, 10]
    left = data.remaining[order]
    for here, there in zip(range(len(order) - 1), range(1, len(order)), strict=True):
        if left[here] >= 3:
            assert order[there] == order[here] + 3


def test_data_of_a_level_are_states_and_codes_of_the_level_below() -> None:
    torch.manual_seed(1)
    level, data = Level(2, 2, SHAPE), walks((9, 4, 3))
    terminal = torch.zeros(len(data.states), dtype=torch.bool)
    terminal[8], terminal[13] = True, True  # both of the long episodes end by termination
    own = level_data(level, replace(data, terminal=terminal))
    starts = own.starts(2)
    assert len(starts) == 2  # from the first and from the second moment of the first episode
    states, macros = own.windows(starts[:1], 2)
    torch.testing.assert_close(states[0], level.encode(data.states[[0, 4, 8]]))
    expected = level.macro(data.actions[:8].reshape(2, 4, 2))
    torch.testing.assert_close(macros[0], expected)
    assert (own.actions[own.remaining == 0] == 0).all()
    # The chunks that end with the episode: 5 to 9 of the first one, all of the second.
    order = chains(data, 4)
    assert order[own.terminal].tolist() == [5, 10]


def test_a_level_learns_what_its_chunks_do(trained: Level) -> None:
    fresh = level_data(trained, walks(seed=1))
    states, macros = fresh.windows(fresh.starts(3), 3)
    predicted = trained.model.rollout(states[:, 0], macros)
    error = (predicted - states[:, 1:]).square().mean()
    still = (states[:, :1] - states[:, 1:]).square().mean()
    assert error < 0.05 * still
    start = walks(seed=1)
    expected = trained.model.predict(trained.encode(start.states[:1]), macros[:1, 0])
    torch.testing.assert_close(trained(start.states[:1], start.actions[None, :4]), expected)
    # Two numbers make all the difference, and neither space has collapsed onto fewer.
    assert states.flatten(0, 1).std(0).mean() > 0.7
    assert effective_rank(fresh.states) > 1.8
    assert macros.flatten(0, 1).std(0).min() > 0.6
    told = trained.told(states[:, 0], states[:, 1])
    assert (told - macros[:, 0]).square().mean() < 0.1
    norms = fresh.actions[fresh.remaining > 0].norm(dim=-1)
    assert 0.9 < (norms <= trained.reach).float().mean() < 0.99
    assert trained.strange(fresh.states).median() < 0.1
    assert trained.strange(fresh.states + 100).min() > 10


def test_a_level_can_stand_on_a_level(trained: Level) -> None:
    torch.manual_seed(2)
    upper = Level(SHAPE.latent_dim, SHAPE.macro_dim, replace(SHAPE, stride=2))
    train_level(upper, level_data(trained, walks()), replace(STAGE, steps=300, unroll=9), seeded())
    data = level_data(upper, level_data(trained, walks(seed=1)))
    states, macros = data.windows(data.starts(2), 2)
    predicted = upper.model.rollout(states[:, 0], macros)
    assert (predicted - states[:, 1:]).square().mean() < 0.2 * states.var()
    assert [x.shape[-1] for x in lifted((trained, upper), torch.zeros(3, 2))] == [2, 4, 4]


ONLY_PREDICTION = replace(
    STAGE, variance=0.0, covariance=0.0, temporal_similarity=0.0, inverse_dynamics=0.0
)


@pytest.mark.parametrize("sigreg", [0.0, 1.0])
def test_sigreg_alone_keeps_a_level_from_collapse(sigreg: float) -> None:
    torch.manual_seed(0)
    level, log = Level(2, 2, SHAPE), dict[str, float]()
    stage = replace(ONLY_PREDICTION, sigreg=sigreg, steps=200)
    train_level(level, walks(), stage, seeded(), lambda _, record: log.update(record))
    own = level_data(level, walks(seed=1))
    states, macros = own.windows(own.starts(3), 3)
    spread = [x.detach().flatten(0, 1).std(0) for x in (states, macros)]
    if not sigreg:
        assert {name for name in log if "macro" in name} == set()
        assert spread[0].max() < 0.03
        return
    assert {name for name in log if "macro" in name} == {"macro_sigreg"}
    predicted = level.model.rollout(states[:, 0], macros)
    assert (predicted - states[:, 1:]).square().mean() < 0.2 * states.var()
    assert min(float(x.min()) for x in spread) > 0.6
    assert max(float(x.max()) for x in spread) < 1.5
    assert effective_rank(own.states) > 1.8


def test_directions_of_sigreg_have_a_source_of_their_own() -> None:
    """Ranks share them, and draw other windows."""
    stage, drawn = replace(ONLY_PREDICTION, sigreg=1.0, steps=2), []
    for directions in (None, seeded(3)):
        draws = seeded()
        train_level(Level(2, 2, SHAPE), walks(), stage, draws, directions=directions)
        drawn.append(draws.get_state())
        if directions is not None:
            assert not torch.equal(directions.get_state(), seeded(3).get_state())
    assert not torch.equal(*drawn)


def test_without_updates_a_level_notes_what_its_data_are_like() -> None:
    torch.manual_seed(0)
    level, data = Level(2, 2, SHAPE), walks()
    before = [parameter.clone() for parameter in level.parameters()]
    train_level(level, data, replace(STAGE, steps=0), seeded())
    assert all(torch.equal(a, b) for a, b in zip(before, level.parameters(), strict=True))
    own = level_data(level, data)
    norms = own.actions[own.remaining > 0].norm(dim=-1)
    assert 0.94 < (norms <= level.reach).float().mean() < 0.96
    assert torch.isin(level.known, own.states).all()


def test_discrete_actions_are_coded_one_hot() -> None:
    level = Level(2, 3, SHAPE, discrete=True)
    index = torch.tensor([[0, 2, 1, 1]])
    soft = torch.nn.functional.one_hot(index, 3).float()
    torch.testing.assert_close(level.macro(index), level.macro(soft))


def agent_of(trained: Level, **how: Any) -> Agent:
    """Looks 4 steps ahead by itself, and 6 x 4 from above."""
    planner = Gradient(starts=8, iterations=10)
    top_down, above = TopDown(horizon=(6,), **how), CEM(candidates=64, iterations=5)
    cost = Cost(horizon=4, discount=1.0)
    configurator = Configurator(cost, REACH, 0.1)
    model = JEPA(Seen(), Exact()).requires_grad_(False)
    return Agent(model, configurator, planner, hierarchy=Hierarchy((trained,), above, top_down))


@pytest.mark.parametrize("condition", ["state", "macro"])
def test_subgoals_lead_to_the_goal(trained: Level, condition: str) -> None:
    agent = agent_of(trained, condition=condition)
    start = torch.tensor([[-2.0, 0.0], [0.0, 1.5], [0.5, 0.5]])
    goal = torch.tensor([[1.5, 1.0], [0.0, -1.5], [0.6, 0.5]])
    carried = agent.start(3, goal=goal.numpy(), generator=seeded())
    position = start.clone()
    for step in range(24):
        action, carried = agent.act(carried, position.numpy())
        assert carried.wanted is not None
        if step == 0:
            wanted = carried.wanted.levels[0]
            assert wanted.near.tolist() == [False, False, True]
            # The subgoal is further on the way than the start, and within reach of one own step.
            subgoal, there = wanted.imagined[:, 0], trained.encode(goal)
            here = trained.encode(start)
            assert ((subgoal - there).norm(dim=1) < (here - there).norm(dim=1))[:2].all()
        position = position + STEP * torch.as_tensor(action)
    assert (position - goal).norm(dim=1).max() < 0.25


def test_levels_plan_at_their_own_rate(trained: Level) -> None:
    agent = agent_of(trained, replan=0.5)
    carried = agent.start(2, goal=torch.full((2, 2), 3.0).numpy(), generator=seeded())
    made = []
    for _ in range(5):
        _, carried = agent.act(carried, torch.zeros(2, 2).numpy())
        assert carried.wanted is not None
        made.append(carried.wanted.levels[0].made)
    assert made == [0, 0, 2, 2, 4]
    half = carried.select(torch.tensor([1]))
    assert half.wanted is not None
    assert half.wanted.levels[0].plan.shape == (1, 6, 2)
    fresh = agent.start(2, goal=torch.zeros(2, 2).numpy(), generator=seeded())
    assert carried.begin(fresh, torch.tensor([True, False])).wanted is None


def test_what_is_wanted_is_an_ordinary_goal_term(trained: Level) -> None:
    """The energy of the level below is the distance from the subgoal, in the space above."""
    agent = agent_of(trained)
    state, goal = torch.zeros(1, 2), torch.full((1, 2), 2.0)
    carried = agent.start(1, goal=goal.numpy(), generator=seeded())
    _, carried = agent.act(carried, state.numpy())
    assert carried.wanted is not None
    assert agent.hierarchy is not None
    problem = agent.hierarchy.towards(agent.problem(carried.setting, state), carried.wanted)
    actions = torch.rand(1, 3, 4, 2, generator=seeded()) - 0.5
    energy, states = evaluate(problem, actions)
    assert isinstance(states, Tensor)
    missed = trained.encode(states) - carried.wanted.levels[0].imagined[:, None, :1]
    torch.testing.assert_close(energy, missed.square().mean(-1).sum(-1))
    leaf = actions.double().requires_grad_()
    assert torch.autograd.grad(evaluate(problem, leaf.float())[0].sum(), leaf)[0].abs().min() > 0


def test_plans_from_the_top_down_are_not_distilled(trained: Level) -> None:
    policy = Policy(2, 2, goal=True)
    with pytest.raises(ValueError, match="such plans cannot be distilled yet"):
        distill(agent_of(trained), policy, torch.zeros(8, 2), Distillation(), seeded())


def test_strange_subgoals_cost(trained: Level) -> None:
    """Far outside of the data the way there is refused by the support term."""
    goal = torch.full((1, 2), 40.0)
    far = []
    for support in (0.0, 1e4):
        hierarchy = agent_of(trained, support=support).hierarchy
        assert hierarchy is not None
        wanted = hierarchy.direct(torch.zeros(1, 2), goal, None, time=0, generator=seeded())
        far.append(float(trained.strange(wanted.levels[0].imagined).max()))
    assert far[1] < 0.5 * far[0]


@pytest.mark.parametrize("condition", ["state", "macro"])
def test_refining_lowers_the_energy_of_all_levels_together(trained: Level, condition: str) -> None:
    agent = agent_of(trained, condition=condition, refine=20)
    assert agent.hierarchy is not None
    state, goal = torch.zeros(3, 2), torch.tensor([[1.5, 1.0], [-1.0, 2.0], [0.1, 0.0]])
    carried = agent.start(3, goal=goal.numpy(), generator=seeded())
    own = agent.problem(carried.setting, state)
    wanted = agent.hierarchy.direct(state, goal, None, time=0, generator=seeded())

    hierarchy, there = agent.hierarchy, trained.encode(goal)

    def energies(wanted: Any, actions: Tensor) -> Tensor:
        above = hierarchy._problem(0, trained.encode(state), there, None)
        first = evaluate(above, wanted.levels[0].plan[:, None])[0]
        return (first + evaluate(hierarchy.towards(own, wanted), actions[:, None])[0])[:, 0]

    draws = seeded()
    wanted = hierarchy.direct(state, goal, None, time=0, generator=draws)
    plan = agent.planner.plan(hierarchy.towards(own, wanted), generator=draws)
    before = energies(wanted, plan.actions)
    actions, energy, states, now = agent.hierarchy.refine(own, plan.actions, wanted, time=0)
    after = energies(now, actions)
    assert (after <= before + 1e-5).all()
    assert (after < before - 1e-3).any()
    assert actions.abs().max() <= 1
    assert now.levels[0].plan.norm(dim=-1).max() <= trained.reach
    told, reached = evaluate(agent.hierarchy.towards(own, now), actions[:, None])
    torch.testing.assert_close(energy, told[:, 0])
    torch.testing.assert_close(states, reached[:, 0])
    # A level that planned before keeps its plan.
    _, _, _, kept = agent.hierarchy.refine(own, plan.actions, wanted, time=1)
    assert torch.equal(kept.levels[0].plan, wanted.levels[0].plan)
    carried = replace(carried, generator=seeded())
    _, refined = agent.act(carried, state.numpy())
    assert refined.wanted is not None
    torch.testing.assert_close(refined.wanted.levels[0].plan, now.levels[0].plan)


def test_time_is_shared_among_the_levels(trained: Level) -> None:
    now = 10.0
    deadline = Deadline(now + 6.0, clock=lambda: now)
    assert deadline.part(3).at == pytest.approx(12.0)
    seen = []

    class Watching(CEM):
        def plan(self, problem: Any, **rest: Any) -> Any:
            seen.append(rest["deadline"].at)
            return super().plan(problem, **rest)

    hierarchy = Hierarchy((trained,), Watching(candidates=8, elites=2), TopDown(horizon=(2,)))
    state = torch.zeros(1, 2)
    hierarchy.direct(state, state + 3, None, time=0, generator=seeded(), deadline=deadline)
    assert seen == [13.0]  # half for the level, half for the world model


class Metric(TemporalDistance):
    """So many decisions that a free step of the level takes several."""

    def steps(self, state: Tensor, goal: Tensor) -> Tensor:
        return 4.0 * (state - goal).norm(dim=-1)


def test_steps_that_the_temporal_distance_calls_long_cost(trained: Level) -> None:
    temporal = Metric(SHAPE.latent_dim, 0.9)
    goal, first = torch.full((1, 2), 3.0), []
    for leaps in (0.0, 20.0):
        free = agent_of(trained).hierarchy
        assert free is not None
        hierarchy = Hierarchy(
            free.levels, free.planner, replace(free.top_down, leaps=leaps), TemporalCost(temporal)
        )
        wanted = hierarchy.direct(torch.zeros(1, 2), goal, None, time=0, generator=seeded())
        path = wanted.levels[0].imagined
        before = torch.cat((wanted.levels[0].state[:, None], path[:, :-1]), 1)
        first.append(float(temporal.steps(before, path).amax()))
    assert first[0] > 3.0
    assert first[1] < 1.7


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LevelShape(stride=1), "stride is 1: choose 2 or more"),
        (lambda: LevelStage(batch=1), r"stages.levels.batch is 1: choose 2 or more"),
        (lambda: LevelStage(sigreg=-1.0), "stages.levels.sigreg is -1.0: a weight is 0 or more"),
        (
            lambda: LevelStage(sigreg_directions=0),
            "stages.levels.sigreg_directions is 0: choose 1 or more",
        ),
        (lambda: TopDown(horizon=()), r"top_down.horizon is \(\): choose 1 or more for each level"),
        (lambda: TopDown(replan=1.5), r"top_down.replan is 1.5: choose it in \(0, 1\]"),
        (lambda: TopDown(condition="way"), "top_down.condition is 'way': use one of"),  # type: ignore[arg-type]
        (lambda: TopDown(support=math.inf), "top_down.support is inf: choose 0 or more, finite"),
        (lambda: TopDown(refine=-1), "top_down.refine is -1: choose 0 or more"),
        (lambda: TopDown(refine_rate=0.0), "top_down.refine_rate is 0.0: choose it above 0"),
        (lambda: TopDown(leaps=-1.0), "top_down.leaps is -1.0: choose 0 or more, finite"),
        (
            lambda: Hierarchy((Level(2, 2, SHAPE),), CEM(), TopDown(leaps=1.0)),
            "top_down.leaps is 1.0, which reads TC",
        ),
        (
            lambda: TopDown(softmin_temperature=0.0),
            "top_down.softmin_temperature is 0.0: choose it above 0, finite",
        ),
        (lambda: Hierarchy((), CEM()), "levels is empty"),
        (
            lambda: train_level(Level(2, 2, SHAPE), walks((3, 3)), STAGE, seeded()),
            "one step of a level is 4 of the level below, but the longest episode has 3",
        ),
    ],
)
def test_wrong_arguments_say_what_to_choose(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
