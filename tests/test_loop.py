"""Acting in environments: the agent as a behaviour policy, and with discrete actions.

The discrete world is a ring of cells, seen as a point on a circle: action 0 steps back, 1 stays, 2
steps on. Which way is the shortest, everyone can count.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec as GymnasiumSpec
from test_agent import Plane, Pushing, Seeing, agent_of, points, policy_of, seeded, setting_of
from torch import Tensor, nn

from forethought import envs
from forethought.agent import (
    REACH,
    Agent,
    AgentController,
    AgentPolicy,
    Configurator,
    Cost,
    Distillation,
    Effort,
    Policy,
    PolicyController,
    Posture,
    Task,
    TaskTerm,
    distill,
    held_out_seeds,
    label,
    problem_of,
    run_episodes,
)
from forethought.agent.loop import count, goal_of, select_rows
from forethought.build import Model, build_model
from forethought.envs.vector import MaskedResetVectorEnv
from forethought.planners import (
    CEM,
    MPPI,
    Gradient,
    Plan,
    Planner,
    Problem,
    RandomShooting,
    evaluate,
)
from forethought.worldmodel import JEPA, Actions, Predictor

CPU = torch.device("cpu")


# --- the ring


CELLS = 8
ANGLE = 2 * math.pi / CELLS


def at(cells: Any) -> Tensor:
    """Points `(..., 2)` of cells on the circle."""
    angle = ANGLE * torch.as_tensor(cells, dtype=torch.float64)
    return torch.stack((angle.cos(), angle.sin()), -1).float()


class Turning(Predictor):
    """Turns by one cell, exact; probabilities mix what their actions would do."""

    def __init__(self) -> None:
        super().__init__()
        self.action_dim = 3
        back, on = (torch.stack((at(by), at(by + CELLS / 4))) for by in (-1, 1))
        self.turns = nn.Parameter(torch.stack((back, torch.eye(2), on)))

    def forward(
        self, state: Tensor, action: Tensor, latent: Any = None, context: Any = None
    ) -> Tensor:
        return torch.einsum("na,nc,acd->nd", action, state, self.turns)


class Ring(MaskedResetVectorEnv):
    """Cells on a circle; the goal is another cell, and reaching it ends the episode."""

    def __init__(self, num_envs: int = 1, *, episode_limit: int = 6) -> None:
        super().__init__(
            num_envs,
            observation_space=spaces.Box(-1, 1, (2,), np.float32),
            action_space=spaces.Discrete(3),
            control_step_seconds=1.0,
            episode_limit=episode_limit,
            render_mode=None,
        )
        self.spec = GymnasiumSpec("tests/Ring-v0")  # type: ignore[assignment]
        self.cells, self.goals = np.zeros((2, num_envs), np.int64)

    def _start(self, row: int, seed: int | None) -> None:
        rng = np.random.default_rng(seed)
        self.cells[row], self.goals[row] = rng.choice(CELLS, 2, replace=False)

    def _advance(self, actions: Any, active: Any) -> Any:
        self.cells = (self.cells + active * (actions - 1)) % CELLS
        self._success |= active & (self.cells == self.goals)
        self._terminated |= self._success & active
        return 1.0 * self._terminated

    def _observe(self) -> Any:
        return at(self.cells).numpy()

    def _info(self) -> dict[str, Any]:
        return {
            "goal": at(self.goals).numpy(),
            "success": self._success.copy(),
            "quantities": {"cell": self.cells[:, None].astype(np.float32)},
        }


def ring_agent(planner: Planner | None = None, **options: Any) -> Agent:
    policy = options.pop("policy", None)
    mode, task = options.pop("mode", 2), options.pop("task", REACH)
    cost = options.pop("cost", Cost(horizon=CELLS // 2, discount=1.0))
    model = JEPA(Seeing(), Turning(), Actions(3, discrete=True)).requires_grad_(False)
    planner = planner or RandomShooting(candidates=512, knots=99)
    return Agent(model, Configurator(cost, task, 1.0, mode), planner, policy=policy)


def ring_policy(seed: int = 0) -> Policy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Policy(2, 3, discrete=True, hidden=32)


def way(start: int, goal: int) -> list[list[int]]:
    """The shortest ways, as actions of one plan: two from the opposite cell."""
    on = (goal - start) % CELLS
    ways = []
    for steps, action in ((on, 2), (CELLS - on, 0)):
        if steps <= CELLS // 2:
            ways.append([action] * steps + [1] * (CELLS // 2 - steps))
    return ways


PAIRS = [(start, goal) for start in range(CELLS) for goal in (0, 3)]
FROM, TO = (np.asarray(cells) for cells in zip(*PAIRS, strict=True))


@pytest.mark.parametrize(
    "planner",
    [
        RandomShooting(candidates=1024, knots=99),
        CEM(candidates=128, iterations=8),
        MPPI(candidates=128, iterations=8),
        Gradient(starts=32, iterations=24),
    ],
    ids=lambda planner: type(planner).__name__,
)
def test_plans_are_the_shortest_ways(planner: Planner) -> None:
    agent = ring_agent(planner)
    carried = agent.start(len(PAIRS), goal=at(TO).numpy(), generator=seeded())
    action, carried = agent.act(carried, at(FROM).numpy())
    assert action.dtype == np.int64
    assert action.shape == (len(PAIRS),)
    # Every one of the 81 plans, written out: none is better, and the first action is of a best one.
    every = torch.tensor(list(itertools.product(range(3), repeat=4))).expand(len(PAIRS), -1, -1)
    energies = evaluate(agent.problem(carried.setting, at(FROM)), every)[0]
    plan = agent.think(carried)
    torch.testing.assert_close(plan.energy, energies.amin(1))
    for index, (start, goal) in enumerate(PAIRS):
        best = way(start, goal)
        assert plan.actions[index].tolist() in best
        assert int(action[index]) in {actions[0] for actions in best}


def test_an_agent_goes_the_shortest_way_round_the_ring() -> None:
    env, agent = Ring(8), ring_agent()
    seeds = held_out_seeds(24)
    outcomes = run_episodes(env, AgentController(agent, seeded()), seeds)
    for outcome in outcomes:
        start, goal = np.random.default_rng(outcome.seed).choice(CELLS, 2, replace=False)
        assert outcome.success
        assert outcome.decisions == min((goal - start) % CELLS, (start - goal) % CELLS)


def test_a_policy_distilled_from_plans_goes_the_shortest_way() -> None:
    agent, states = ring_agent(RandomShooting(candidates=256, knots=99)), at(np.arange(CELLS))
    how = Distillation(
        rounds=3, problems=96, batch=96, steps=120, minibatch=128, learning_rate=1e-2
    )
    learned = distill(agent, ring_policy(), states, how, seeded())
    reactive = replace(learned, configurator=replace(agent.configurator, mode=1))
    untrained = replace(reactive, policy=ring_policy())
    seeds, success = held_out_seeds(40), []
    for one in (reactive, untrained):
        outcomes = run_episodes(Ring(20, episode_limit=4), AgentController(one, seeded()), seeds)
        success.append(np.mean([bool(outcome.success) for outcome in outcomes]))
    assert success[0] == 1.0  # and 4 steps are just enough from the opposite cell
    assert success[1] < 0.6
    action, _ = reactive.act(
        reactive.start(3, goal=at([1, 2, 3]).numpy(), generator=seeded()), at([0, 2, 4]).numpy()
    )
    assert action.dtype == np.int64
    assert action.tolist() == [2, 1, 0]


def test_a_discrete_policy_that_is_right_is_held_there() -> None:
    """Half of the weight is for every plan, also where nothing is gained; half follows the gain."""
    agent, start, goal = ring_agent(), at([0, 0, 4]), at([2, 0, 4])
    still = ring_policy()
    with torch.no_grad():
        still.layers[-1].weight.zero_()  # type: ignore[union-attr, operator]
        still.layers[-1].bias.copy_(torch.tensor([0.0, 1.0, 0.0]))  # type: ignore[union-attr, operator]
    labels = label(agent, still, start, goal, seeded())
    assert labels.weights.tolist() == pytest.approx([2.0] * 4 + [0.5] * 8)
    assert labels.actions.tolist() == [2, 2, 1, 1] + [1] * 8


def test_labels_of_discrete_plans_are_indices() -> None:
    agent, policy = ring_agent(), ring_policy()
    start, goal = at(FROM), at(TO)
    for before in (None, policy):
        labels = label(agent, before, start, goal, seeded())
        assert labels.actions.dtype == torch.int64
        assert labels.actions.shape == (4 * len(PAIRS),)
        assert labels.states.shape == (4 * len(PAIRS), 2)
        for index, pair in enumerate(PAIRS):
            found = labels.actions[4 * index : 4 * index + 4].tolist()
            assert found in way(*pair)
            path = pair[0] + np.cumsum([0, *(a - 1 for a in found[:-1])])
            assert torch.allclose(labels.states[4 * index : 4 * index + 4], at(path), atol=1e-5)


def test_a_discrete_policy_takes_the_action_of_the_largest_logit() -> None:
    policy, state, goal = ring_policy(), at(FROM), {"goal": at(TO)}
    scores = policy.scores(state, goal)
    assert scores.shape == (len(PAIRS), 3)
    action = policy(state, goal)
    assert action.dtype == torch.int64
    assert torch.equal(action, scores.argmax(-1))
    actions, states = policy.rollout(ring_agent().model, state, goal, 5)
    assert actions.dtype == torch.int64
    assert actions.shape == (len(PAIRS), 5)
    assert states.shape == (len(PAIRS), 5, 2)


def test_indices_mean_the_same_as_one_hot_probabilities() -> None:
    agent = ring_agent()
    setting = setting_of(REACH, Cost(horizon=4), at(TO), len(PAIRS))
    problem = problem_of(agent.model, REACH.bank, setting, at(FROM))
    assert problem.actions == 3
    actions = torch.randint(3, (len(PAIRS), 5, 4), generator=seeded())
    soft = nn.functional.one_hot(actions, 3).float()
    for one, other in zip(evaluate(problem, actions), evaluate(problem, soft), strict=True):
        torch.testing.assert_close(one, other)


def test_effort_of_discrete_actions_is_refused_with_a_remedy() -> None:
    task = replace(REACH, terms={"effort": TaskTerm(Effort(), weight=0.1)})
    for planner in (RandomShooting(), Gradient(), CEM(), MPPI()):
        agent = ring_agent(planner, task=task)
        carried = agent.start(2, goal=at([0, 1]).numpy(), generator=seeded())
        with pytest.raises(ValueError, match=r"actions are discrete .* leave that term out"):
            agent.act(carried, at([2, 3]).numpy())


def test_discrete_terms_of_states_are_minimised() -> None:
    task = Task({"there": TaskTerm(Posture("state", tuple(at(3).tolist()), scale=0.5))})
    agent = ring_agent(task=task)
    carried = agent.start(CELLS, generator=seeded())
    _, carried = agent.act(carried, at(np.arange(CELLS)).numpy())
    assert carried.imagined is not None
    assert torch.allclose(carried.imagined[:, -1], at(3).expand(CELLS, 2), atol=1e-5)


def test_discrete_twins_and_their_mode() -> None:
    for mode in (1, 2):
        agent = ring_agent(
            CEM(candidates=6, iterations=1, elites=2), mode=mode, policy=ring_policy()
        )
        paths = []
        for _ in range(2):
            carried, path = agent.start(9, goal=at(np.arange(9)).numpy(), generator=seeded()), []
            for step in range(4):
                action, carried = agent.act(carried, at(np.arange(9) * step).numpy())
                assert action.dtype == np.int64
                assert action.shape == (9,)
                path.append(action)
            paths.append(np.stack(path))
        np.testing.assert_array_equal(*paths)
        assert carried.previous_action is not None
        assert carried.select(torch.tensor([2, 0])).previous_action.shape == (2,)  # type: ignore[union-attr]


# --- the agent as a behaviour policy


def rooms(num_envs: int) -> Any:
    return envs.make("forethought/TwoRooms-v0", num_envs, success="last", episode_limit=5)


def rooms_agent() -> Agent:
    model = build_model(Model(), envs.spec_of(rooms(1)), CPU, seed=0).requires_grad_(False)
    planner = Gradient(starts=3, iterations=3)
    return Agent(model, Configurator(Cost(horizon=4), REACH), planner)


def collected(env: Any, policy: envs.Policy, episodes: int, seed: int = 0) -> list[envs.Episode]:
    rng = np.random.default_rng(seed)
    return list(envs.collect(env, policy, episodes, first_seed=0, generator=rng))


def acted(env: Any, agent: Agent, episodes: int) -> list[np.ndarray]:
    """What `AgentController` does in the same episodes, `(T, A)` or `(T,)` each."""
    done: dict[int, list[np.ndarray]] = {index: [] for index in range(episodes)}

    def on_step(running: np.ndarray, observation: Any, info: Any, carried: Any) -> None:
        for row, action in zip(running, carried.previous_action.numpy(), strict=True):
            done[int(row)].append(action)

    run_episodes(env, AgentController(agent, seeded()), list(range(episodes)), on_step=on_step)
    return [np.stack(actions) for actions in done.values()]


def test_without_noise_it_does_what_the_agent_does() -> None:
    agent = rooms_agent()
    episodes = collected(rooms(3), AgentPolicy(agent, seeded()), 3)
    for episode, actions in zip(episodes, acted(rooms(3), agent, 3), strict=True):
        assert episode.policy == "mode2"
        assert episode.actions.dtype == np.float32
        assert abs(episode.actions).max() > 0.1
        np.testing.assert_array_equal(episode.actions, actions)


def test_without_noise_it_does_what_the_agent_does_with_discrete_actions() -> None:
    """One environment, so that no row begins anew while another goes on."""
    agent = ring_agent(mode=1, policy=ring_policy())
    episodes = collected(Ring(1), AgentPolicy(agent, seeded()), 6)
    controlled = [acted(Ring(6), agent, 6)[index] for index in range(6)]
    for episode, actions in zip(episodes, controlled, strict=True):
        assert episode.policy == "mode1"
        assert episode.actions.dtype == np.int64
        assert episode.actions[:, 0].tolist() == actions.tolist()


def test_it_reaches_goals_while_it_collects() -> None:
    """Rows begin anew at different times, each with a goal of its own."""
    episodes = collected(Ring(5), AgentPolicy(ring_agent(), seeded()), 30)
    assert len({episode.length for episode in episodes}) > 2
    for episode in episodes:
        start, goal = np.random.default_rng(episode.seed).choice(CELLS, 2, replace=False)
        assert episode.success
        assert episode.length == min((goal - start) % CELLS, (start - goal) % CELLS)
    agent = agent_of(Gradient(starts=4, iterations=20), cost=Cost(horizon=5))
    env = Plane(5)
    env.spec = GymnasiumSpec("tests/Plane-v0")  # type: ignore[assignment]
    episodes = collected(env, AgentPolicy(agent, seeded()), 15)
    assert len({episode.length for episode in episodes}) > 2
    assert all(episode.success for episode in episodes)


@pytest.mark.parametrize("world", ["rooms", "ring"])
def test_twins_collect_the_same_and_noise_changes_it(world: str) -> None:
    make, agent = (rooms, rooms_agent()) if world == "rooms" else (Ring, ring_agent())

    def run(noise: float, planning: int = 0, drawing: int = 0) -> list[np.ndarray]:
        policy = AgentPolicy(agent, seeded(planning), noise)
        return [episode.actions for episode in collected(make(3), policy, 7, drawing)]

    def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
        return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))

    clean, noisy = run(0.0), run(0.5)
    assert same(run(0.0), clean)
    assert same(run(0.5), noisy)
    assert not same(clean, noisy)
    assert same(run(0.0, drawing=1), clean)
    assert not same(run(0.5, drawing=1), noisy)
    if world == "rooms":  # on the ring the best plan is found whatever is drawn
        assert not same(run(0.0, planning=1), clean)
        assert all(abs(actions).max() <= 1 for actions in noisy)
        assert any(abs(actions).max() == 1 for actions in noisy)


@dataclass(frozen=True)
class Fixed(Planner):
    """Plans one action everywhere; keeps what was proposed to it and the goals it was given."""

    actions: int | None = None
    level: float = 0.25
    proposals: list[Tensor | None] = field(default_factory=list)
    goals: list[Tensor] = field(default_factory=list)

    def plan(
        self,
        problem: Problem,
        *,
        proposals: Tensor | None = None,
        generator: torch.Generator,
        deadline: Any = None,
    ) -> Plan:
        self.proposals.append(proposals)
        self.goals.append(problem.context["goal"])
        if self.actions is None:
            plan = torch.full((problem.batch, problem.horizon, 2), self.level)
        else:
            plan = torch.full((problem.batch, problem.horizon), self.actions)
        energies, states = evaluate(problem, plan[:, None])
        return Plan(
            actions=plan,
            energy=energies[:, 0],
            states=states[:, 0],  # type: ignore[index]
            status=(),
            trace=energies.T,
            model_steps=0,
            seconds=0.0,
        )


def test_noise_has_the_spread_it_says() -> None:
    agent = agent_of(Fixed())
    policy = AgentPolicy(agent, seeded(), noise=0.2)
    observation, rng = points(4000), np.random.default_rng(0)
    action = policy(observation, {"goal": observation}, np.zeros((4000, 2), np.float32), rng)
    assert action.dtype == np.float32
    assert action.mean(0) == pytest.approx([0.25, 0.25], abs=0.02)
    assert action.std(0) == pytest.approx([0.2, 0.2], abs=0.02)
    loud = AgentPolicy(agent, seeded(), noise=50.0)
    action = loud(observation, {"goal": observation}, np.zeros((4000, 2), np.float32), rng)
    assert abs(action).max() == 1


def test_discrete_noise_is_the_share_of_random_actions() -> None:
    policy = AgentPolicy(ring_agent(Fixed(actions=2)), seeded(), noise=0.3)
    observation, rng = at(np.zeros(9000)).numpy(), np.random.default_rng(0)
    action = policy(observation, {"goal": observation}, np.full((9000, 1), -1), rng)
    assert action.shape == (9000, 1)
    assert action.dtype == np.int64
    share = np.bincount(action[:, 0], minlength=3) / 9000
    assert share == pytest.approx([0.1, 0.1, 0.8], abs=0.02)


@pytest.mark.parametrize("discrete", [False, True])
def test_rows_that_begin_anew_get_a_fresh_plan(discrete: bool) -> None:
    """And their own new goal; the others go on with theirs, and with what they had planned."""
    planner = Fixed(actions=2) if discrete else Fixed()
    agent = ring_agent(planner) if discrete else agent_of(planner)
    policy, rng = AgentPolicy(agent, seeded()), np.random.default_rng(0)
    nothing, level = (-1, 2) if discrete else (0, 0.25)
    goal, previous = points(3, 1), np.full((3, 1 if discrete else 2), nothing)
    for step in range(4):
        if step == 2:  # the row in the middle begins anew
            goal, previous = goal.copy(), previous.copy()
            goal[1], previous[1] = points(1, 9), nothing
        previous = policy(points(3, step), {"goal": goal}, previous, rng)
        assert (previous == level).all()
        assert planner.goals[-1].numpy().tolist() == goal.tolist()
    assert planner.proposals[0] is None
    for step, proposal in enumerate(planner.proposals[1:], start=1):
        assert proposal is not None
        assert proposal.shape[:2] == (3, 1)
        assert (proposal[[0, 2]] == level).all()
        assert (proposal[1] == (0 if step == 2 else level)).all()
    # All rows at once: as if nothing had ever been planned.
    policy(points(3), {"goal": goal}, np.full_like(previous, nothing), rng)
    assert planner.proposals[-1] is None
    policy(points(5), {"goal": points(5)}, np.full((5, previous.shape[1]), nothing), rng)
    assert planner.proposals[-1] is None


def test_the_behaviour_policy_encodes_each_observation_once() -> None:
    for mode in (1, 2):
        agent = agent_of(Fixed(), mode=mode, policy=policy_of())
        policy, previous = AgentPolicy(agent, seeded()), np.zeros((3, 2), np.float32)
        for step in range(3):
            previous = policy(
                points(3, step), {"goal": points(3)}, previous, np.random.default_rng()
            )
        seeing = agent.model.perception
        assert isinstance(seeing, Seeing)
        assert seeing.calls == [3] * 4  # the goals, then one observation per decision


def test_the_behaviour_policy_needs_the_goal_of_its_task() -> None:
    env = envs.make("MountainCarContinuous-v0", 2)
    with pytest.raises(ValueError, match=r"gives no info\['goal'\], but the task has one"):
        collected(env, AgentPolicy(agent_of(), seeded()), 2)


# --- rows of observations


def test_rows_of_observations() -> None:
    plain = np.arange(6).reshape(3, 2)
    named = {"image": plain, "more": {"speed": np.arange(3)}}
    index = np.array([2, 0])
    assert count(plain) == count(named) == 3
    assert select_rows(plain, index).tolist() == [[4, 5], [0, 1]]
    chosen = select_rows(named, index)
    assert isinstance(chosen, Mapping)
    assert chosen["image"].tolist() == [[4, 5], [0, 1]]
    assert chosen["more"]["speed"].tolist() == [2, 0]


def test_a_goal_is_asked_for_where_the_task_has_one() -> None:
    free = agent_of(task=Task({"effort": TaskTerm(Effort())}))
    assert goal_of(free, {"goal": 1}) is None
    assert goal_of(agent_of(), {"goal": points(1)}) is not None
    with pytest.raises(ValueError, match=r"info\['goal'\].* choose a task with --task"):
        goal_of(agent_of(), {})


class Named(gymnasium.vector.VectorWrapper):
    """The plane, with its observations and goals under a name."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        box = env.single_observation_space
        self._single_observation_space = spaces.Dict({"point": box})

    def _name(self, info: dict[str, Any]) -> dict[str, Any]:
        return info | {"goal": {"point": info["goal"]}}

    def reset(self, **options: Any) -> Any:
        observation, info = self.env.reset(**options)
        return {"point": observation}, self._name(info)

    def step(self, actions: Any) -> Any:
        observation, *rest, info = self.env.step(actions)
        return {"point": observation}, *rest, self._name(info)


def test_observations_and_goals_may_be_mappings() -> None:
    agent = agent_of(Gradient(starts=4, iterations=12))
    plain = run_episodes(Plane(4), AgentController(agent, seeded()), list(range(8)))
    named = run_episodes(Named(Plane(4)), AgentController(agent, seeded()), list(range(8)))
    assert [(o.seed, o.success, o.decisions) for o in named] == [
        (o.seed, o.success, o.decisions) for o in plain
    ]
    assert all(outcome.success for outcome in named)


def test_behaviour_policies_control_discrete_environments() -> None:
    controller = PolicyController(
        envs.Random(hold=0.5), spaces.Discrete(3), np.random.default_rng(0)
    )
    outcomes = run_episodes(Ring(4), controller, list(range(12)))
    assert 0 < sum(bool(outcome.success) for outcome in outcomes) < 12
    carried = controller.start(at([0, 1]).numpy(), {})
    assert carried.tolist() == [[-1], [-1]]
    action, carried = controller.act(carried, at([0, 1]).numpy(), {})
    assert action.shape == (2,)
    assert carried.shape == (2, 1)
    assert controller.select(carried, np.array([1])).shape == (1, 1)


def test_the_learned_embedding_of_actions_is_planned_through() -> None:
    """Discrete actions that the predictor sees as pushes in the plane: -1, 0 and 1 along x."""
    actions = Actions(3, discrete=True, embedding=2)
    assert actions.embedding is not None
    with torch.no_grad():
        actions.embedding.weight.copy_(torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    model = JEPA(Seeing(), Pushing(), actions).requires_grad_(False)
    configurator = Configurator(Cost(horizon=4, discount=1.0), REACH)
    goals = np.array([[0.5, 0.0], [-1.0, 0.0], [0.0, 0.0]], np.float32)
    for planner in (RandomShooting(candidates=512, knots=9), Gradient(starts=16), CEM(), MPPI()):
        agent = Agent(model, configurator, planner)
        carried = agent.start(3, goal=goals, generator=seeded())
        _, carried = agent.act(carried, np.zeros((3, 2), np.float32))
        assert carried.imagined is not None
        assert carried.imagined[:, -1, 0].tolist() == pytest.approx([0.5, -1.0, 0.0])
