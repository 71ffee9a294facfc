"""All modules at work together: memory in the agent, and the energy's gradient at everything.

The world is the plane of `test_agent`: a point that actions push, s' = s + a / 4, seen as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from test_agent import (
    CALM,
    STEP,
    Repeating,
    agent_of,
    begin,
    critic_of,
    points,
    policy_of,
    readouts_of,
    seeded,
)
from test_loop import at, ring_agent
from torch import Tensor, nn

from forethought.agent import (
    Adjustment,
    Agent,
    AgentPolicy,
    Aim,
    Configurator,
    Cost,
    Policy,
    Recall,
    ShortTermMemory,
    Thinking,
    problem_of,
)
from forethought.planners import CEM, Gradient, evaluate
from forethought.worldmodel import JEPA, Entries, Memory, MemoryConfig, Perception, ResidualMLP
from forethought.worldmodel.modulation import FiLM

FLOAT = torch.float64
SHARP = MemoryConfig(slots=16, beta=1e4)  # no two states of the tests are near


def remembering(recall: Recall | None = None, planner: Any = None, **options: Any) -> Agent:
    """An agent that counts four terms, has a critic, and remembers."""
    options = {
        "task": replace(CALM, goal=True),
        "readouts": readouts_of(),
        "critic": critic_of(4, 0.8),
        "cost": Cost(horizon=2),
    } | options
    agent = agent_of(planner or Gradient(starts=6, iterations=2), **options)
    return replace(agent, recall=recall or Recall(SHARP))


# --- what is remembered


def test_moments_hold_state_costs_expectation_and_action() -> None:
    agent = remembering()
    carried, actions, states = begin(agent, points(3, 9)), [], []
    for step in range(4):
        states.append(torch.as_tensor(points(3, step)))
        action, carried = agent.act(carried, points(3, step))
        actions.append(torch.as_tensor(action))
    memory, critic, readouts = carried.memory, agent.critic, agent.readouts
    assert memory is not None
    assert critic is not None
    assert readouts is not None
    assert memory.slots.used.sum(1).tolist() == [4] * 3
    for step, state in enumerate(states):
        moments = memory.moments_at(torch.full((3,), step))
        assert moments.time.tolist() == [step] * 3
        assert torch.equal(moments.state, state)
        assert torch.equal(moments.action, actions[step])
        assert not moments.imagined.any()
        with torch.no_grad():
            torch.testing.assert_close(moments.expected, critic(state))
            # The action that led there, and nobody's at first.
            led = actions[step - 1] if step else torch.zeros(3, 2)
            told = agent.bank.values({"state": state} | readouts(state), led)
        torch.testing.assert_close(moments.costs, told)
    assert carried.mind is not None
    assert float(carried.mind.coverage.max()) < 0.5  # before it was remembered
    _, carried = agent.act(carried, points(3, 2))
    assert carried.mind is not None
    assert carried.mind.coverage.tolist() == pytest.approx([1 / 1.1] * 3, rel=1e-3)


def test_a_discrete_agent_remembers_what_it_did() -> None:
    agent = replace(ring_agent(), recall=Recall(SHARP))
    carried = agent.start(3, goal=at([2, 3, 4]).numpy(), generator=seeded())
    action, carried = agent.act(carried, at([0, 1, 2]).numpy())
    assert carried.memory is not None
    found = carried.memory.moments_at(torch.zeros(3, dtype=torch.int64))
    assert found.action.argmax(-1).tolist() == action.tolist() == [2, 2, 2]
    assert found.expected.shape == (3, 0)
    action, carried = agent.act(carried, at([1, 2, 3]).numpy())
    assert action.tolist() == [2, 2, 2]


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_with_noise_what_was_done_is_remembered_and_not_what_was_decided(noise: float) -> None:
    agent = remembering(mode=1, policy=policy_of(), recall=Recall(SHARP, in_mode_1=True))
    policy, rng = AgentPolicy(agent, seeded(), noise), np.random.default_rng(0)
    previous, done = np.zeros((3, 2), np.float32), []
    for step in range(3):
        previous = policy(points(3, step), {"goal": points(3, 9)}, previous, rng)
        done.append(torch.as_tensor(previous))
    carried = policy._carried
    assert carried is not None
    assert carried.memory is not None
    assert carried.time == 3
    assert carried.memory.slots.used.sum(1).tolist() == [3] * 3
    for step, action in enumerate(done):
        moments = carried.memory.moments_at(torch.full((3,), step))
        assert torch.equal(moments.action, action)
    decided = agent.act(begin(agent, points(3, 9)), points(3))[0]
    assert (abs(decided - done[0].numpy()).max() > 0.1) == bool(noise)


def test_rows_that_begin_are_forgotten_and_rows_that_leave_take_theirs_along() -> None:
    agent = remembering()
    carried = begin(agent, points(3, 9))
    for step in range(2):
        _, carried = agent.act(carried, points(3, step))
    begun = carried.begin(begin(agent, points(3, 8)), torch.tensor([False, True, False]))
    assert begun.memory is not None
    assert begun.memory.slots.used.sum(1).tolist() == [2, 0, 2]
    _, begun = agent.act(begun, points(3, 2))
    assert begun.memory is not None
    assert begun.memory.slots.used.sum(1).tolist() == [3, 1, 3]
    assert begun.memory.moments_at(torch.full((3,), 2)).found.all()  # one clock for all
    kept = begun.select(torch.tensor([2, 1]))
    assert kept.memory is not None
    assert kept.memory.slots.used.sum(1).tolist() == [3, 1]
    assert torch.equal(kept.memory.slots.keys[0], begun.memory.slots.keys[2])
    agent.act(kept, points(2))


# --- what it is for


def test_what_was_done_near_by_is_among_the_starts_where_there_is_room() -> None:
    @dataclass(frozen=True)
    class Roomy(Repeating):
        places: int | None = None

        @property
        def room(self) -> int | None:
            return self.places

    for places, given in ((None, 4), (4, 4), (3, 3), (2, 2)):
        planner = Roomy(places=places)
        agent = remembering(Recall(SHARP, proposals=2), planner, policy=policy_of())
        carried = begin(agent, points(3, 9))
        for step in (0, 1, 2, 3, 0):
            _, carried = agent.act(carried, points(3, step))
        last = planner.proposals[-1]
        assert last is not None
        assert last.shape == (3, given, 2, 2)
        if given < 4:
            continue
        # Two moments have two steps after them; the plans are ramps by the number of the call.
        ways = {tuple(way.flatten().tolist()) for way in last[:, 2:].flatten(0, 1).double()}
        wanted = [
            torch.tensor([first, first, first + 0.1, first + 0.1]).double() for first in (0.1, 0.2)
        ]
        for way in ways:
            assert any(torch.allclose(torch.tensor(way).double(), w, atol=1e-6) for w in wanted)
        assert len(ways) == 2


def test_any_number_of_proposals_that_a_recall_takes_can_be_made() -> None:
    agent = remembering(Recall(SHARP, proposals=12), Gradient(starts=20, iterations=1))
    carried = begin(agent, points(2, 9))
    for step in range(3):
        _, carried = agent.act(carried, points(2, step))
    assert carried.plan is not None


@pytest.mark.parametrize("energy", [False, True])
def test_the_end_of_a_plan_has_the_energy_remembered_where_it_is_known(energy: bool) -> None:
    agent = remembering(Recall(MemoryConfig(slots=4), energy=energy))
    critic = agent.critic
    assert critic is not None
    ends = torch.tensor([[0.3, 0.2], [0.3, 0.2]])
    memory = ShortTermMemory.empty(MemoryConfig(slots=4), ends, terms=4, action_dim=2)
    where = torch.tensor([[0.3, 0.2], [9.0, 9.0]])  # the second row knows nothing near
    told = torch.tensor([[4.0, 3.0, 2.0, 1.0]] * 2)
    memory = memory.remember(where, torch.zeros(2, 2), torch.zeros(2, 4), told, time=0)
    setting = begin(agent, points(2, 9)).setting
    actions = torch.zeros(2, 1, 2, 2)  # nothing moves: the end is the start

    def of(memory: ShortTermMemory | None) -> Tensor:
        with torch.no_grad():
            return evaluate(agent.problem(setting, ends, memory), actions)[0][:, 0]

    gap = (of(memory) - of(None)) / setting.discount**2
    with torch.no_grad():
        wanted = ((told - critic(ends)) * setting.v).sum(-1) * torch.tensor([energy, False])
    torch.testing.assert_close(gap, wanted, atol=1e-4, rtol=1e-4)
    assert bool(wanted.any()) == energy


@pytest.mark.parametrize("planner", [Gradient(starts=4, iterations=60), CEM()])
def test_a_support_term_keeps_plans_near_what_is_remembered(planner: Any) -> None:
    """A goal is far to the right; what was seen lies around the start."""
    found = []
    for support in (0.0, 50.0):
        recall = Recall(MemoryConfig(slots=8, beta=50.0), support=support, scale=0.5)
        agent = replace(agent_of(planner, cost=Cost(horizon=8, discount=1.0)), recall=recall)
        memory = ShortTermMemory.empty(
            recall.memory, torch.zeros(2, 2), terms=1, action_dim=2, critic=False
        )
        for time, x in enumerate((-0.2, 0.0, 0.2)):
            seen = torch.tensor([[x, 0.0], [x, 0.0]])
            memory = memory.remember(seen, torch.zeros(2, 2), torch.zeros(2, 1), time=time)
        memory = memory.forget(torch.tensor([False, True]))  # one row remembers nothing
        carried = begin(agent, np.full((2, 2), [2.0, 0.0], np.float32))
        _, carried = agent.act(replace(carried, memory=memory), np.zeros((2, 2), np.float32))
        assert carried.imagined is not None
        found.append(carried.imagined[:, :, 0].amax(1).tolist())
    (far, same), (near, free) = found
    assert far > 1.5
    assert near < 0.6
    assert same == pytest.approx(free, abs=0.1)  # where nothing is known, nothing holds


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"proposals": 17}, "recall.proposals is 17: choose 0 to 16, the slots"),
        ({"support": -1.0}, "recall.support is -1.0: choose 0 or more, finite"),
        ({"support": math.nan}, "recall.support is nan"),
        ({"scale": 0.0}, "recall.scale is 0.0: choose it above 0, finite"),
    ],
)
def test_wrong_recalls_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recall(SHARP, **wrong)


# --- the distance from what is remembered


def stored(keys: list[float], beta: float = 2.0, rows: int = 2) -> Memory:
    """Keys on a line, the same in each row."""
    memory = Memory.empty(MemoryConfig(slots=4, beta=beta), torch.zeros(rows, 1, dtype=FLOAT), 1)
    for time, key in enumerate(keys):
        one, when = torch.full((rows, 1), key, dtype=FLOAT), torch.full((rows,), time)
        labels, valid = torch.zeros(rows, 0, dtype=torch.int64), torch.ones(rows).bool()
        memory = memory.allocate(Entries(one, one, when, labels, valid))
    return memory


def column(*xs: float) -> Tensor:
    return torch.tensor([xs, xs], dtype=FLOAT).unsqueeze(-1)


def test_distances_by_hand() -> None:
    query = column(0.0, 1.0, 5.0)
    one = stored([2.0]).distance(query)
    assert one[0].tolist() == pytest.approx([4.0, 1.0, 9.0])
    assert one[1].tolist() == pytest.approx([4.0, 1.0, 9.0])
    both = stored([2.0, 4.0]).distance(query)[0].tolist()
    soft = [-math.log(sum(math.exp(-2 * (k - q) ** 2) for k in (2, 4))) / 2 for q in (0, 1, 5)]
    assert both == pytest.approx(soft)
    # A soft minimum lies below the least, by ln 2 / beta at most; it is never below 0.
    assert all(s <= h for s, h in zip(both, (4.0, 1.0, 1.0), strict=True))
    twins = stored([2.0, 2.0]).distance(column(2.0, 3.0))[0]
    assert twins.tolist() == pytest.approx([0.0, 1 - math.log(2) / 2])
    hard = stored([2.0, 4.0], beta=1e3).distance(query)[0]
    assert hard.tolist() == pytest.approx([4.0, 1.0, 1.0])
    assert stored([2.0]).distance(query[:, 0]).shape == (2,)
    few = stored([2.0, 4.0]).distance(query, torch.tensor([[True, False, True, True]] * 2))
    torch.testing.assert_close(few, one)


def test_distances_have_the_gradient_of_finite_differences() -> None:
    memory = stored([2.0, 4.0])
    query = column(0.3, 1.2, 3.1, 7.0).requires_grad_()
    keys = memory.keys.clone().requires_grad_()

    def distance(query: Tensor, keys: Tensor) -> Tensor:
        return replace(memory, keys=keys).distance(query)

    assert torch.autograd.gradcheck(distance, (query, keys))


def test_where_nothing_is_stored_the_distance_and_its_slope_are_zero() -> None:
    memory = stored([2.0]).forget(torch.tensor([[False], [True]]))
    query = column(0.0, 1.0).requires_grad_()
    distance = memory.distance(query)
    assert distance.tolist() == [[4.0, 1.0], [0.0, 0.0]]
    (slope,) = torch.autograd.grad(distance.sum(), query)
    assert slope.squeeze(-1).tolist() == [[-4.0, -2.0], [0.0, 0.0]]


def test_far_away_the_distance_still_leads_back() -> None:
    """Where the coverage is 0 to the last bit, and has no slope."""
    memory, query = stored([2.0, 4.0]), column(1e3, -1e4).requires_grad_()
    assert not memory.read(query)[1].any()
    (slope,) = torch.autograd.grad(memory.distance(query).sum(), query)
    torch.testing.assert_close(slope[0, :, 0], torch.tensor([2 * 996.0, -2 * 10002.0]).double())


# --- the energy's gradient at everything (fig. 2)


class Glance(Perception):
    """S = W x + b, small."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_dim = 2
        self.layer = nn.Linear(3, 2)

    def forward(self, observation: Tensor, context: Any = None) -> Tensor:
        state: Tensor = self.layer(observation)
        return state

    def standardise_by(self, statistics: Any) -> None:
        raise NotImplementedError


class Whole:
    """An agent with every module, in float64, and the energy of its policy's roll-out.

    Row 0 ends where its memory knows, row 1 where only the critic does.
    """

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = JEPA(Glance(), ResidualMLP(2, 2, hidden=6, layers=1, modulation=2))
            self.policy = Policy(2, 2, hidden=6, layers=1, modulation=2)
            for module in (self.model, self.policy):
                for part in module.modules():
                    if isinstance(part, FiLM):
                        nn.init.normal_(part.weight, std=0.5)
        self.readouts, self.critic = readouts_of(), critic_of(4, 0.8)
        for module in (self.model, self.policy, self.readouts, self.critic):
            module.double()
        self.task = replace(CALM, goal=True, aims={"place": Aim("position", weight=1.0)})
        adjust = Adjustment(modulation=(0.3, -0.7))
        configurator = Configurator(Cost(horizon=3), self.task, adjust=adjust)
        self.recall = Recall(MemoryConfig(slots=4, beta=1.0), energy=True, support=0.3)
        goal = torch.randn(2, 2, generator=seeded(1), dtype=FLOAT)
        self.setting = configurator.configure(goal, 2, torch.device("cpu"))
        self.observation = torch.randn(2, 3, generator=seeded(2), dtype=FLOAT)
        with torch.no_grad():
            state = self.model.encode(self.observation)
            path = self.policy.rollout(self.model, state, self._setting({}).context, 4)[1]
        near, far = path[:, 3] + 0.1, path[:, 3] + 30.0
        first = torch.stack((near[0], far[1]))
        self.leaves = {
            "goal": goal,
            "code": torch.tensor([[0.3, -0.7]] * 2, dtype=FLOAT),
            "aim": torch.tensor([[0.5, -0.5]] * 2, dtype=FLOAT),
            "keys": torch.stack((first, first + 1.2), 1),
            "expected": 5 * torch.rand(2, 2, 4, generator=seeded(3), dtype=FLOAT),
            "nudge": torch.zeros(2, 3, 2, dtype=FLOAT),
        }
        modules = {
            "encoder": self.model.perception,
            "predictor": self.model.predictor,
            "readouts": self.readouts,
            "critic": self.critic.layers,
            "policy": self.policy,
        }
        for owner, module in modules.items():
            assert isinstance(module, nn.Module)
            for name, parameter in module.named_parameters():
                self.leaves[f"{owner}.{name}"] = parameter
        for leaf in self.leaves.values():
            leaf.requires_grad_()

    def _setting(self, leaves: dict[str, Tensor]) -> Any:
        given: dict[str, Any] = {}
        if leaves:
            given = {"goal": leaves["goal"], "aims": {"place": leaves["aim"]}}
            given["modulation"] = leaves["code"]
        return replace(self.setting, **given)

    def energies(self) -> Tensor:
        """Energies `(2,)`; actions are the policy's, plus a nudge of 0."""
        leaves = self.leaves
        setting = self._setting(leaves)
        state = self.model.encode(self.observation, setting.context)
        memory = ShortTermMemory.empty(self.recall.memory, state.detach(), terms=4, action_dim=2)
        for time in range(2):
            memory = memory.remember(
                leaves["keys"][:, time],
                torch.zeros_like(state),
                torch.zeros(2, 4, dtype=FLOAT),
                leaves["expected"][:, time],
                time=time,
            )
        assert memory.slots.used.sum(1).tolist() == [2, 2]
        actions, _ = self.policy.rollout(self.model, state, setting.context, 3)
        problem = problem_of(
            self.model,
            self.task.bank,
            setting,
            state,
            readouts=self.readouts,
            critic=self.critic,
            task=self.task,
            memory=memory,
            recall=self.recall,
        )
        energies, states = evaluate(problem, (actions + leaves["nudge"])[:, None])
        assert isinstance(states, Tensor)
        covered = memory.recall(states[:, :, -1])[1][:, 0] >= self.recall.memory.threshold
        assert covered.tolist() == [True, False]
        return energies[:, 0]


def difference(energy: Callable[[], Tensor], leaf: Tensor, way: Tensor, h: float = 1e-6) -> float:
    """Derivative of the energy along `way`, by central differences."""
    found = []
    with torch.no_grad():
        for sign in (1.0, -1.0):
            leaf += sign * h * way
            found.append(float(energy()))
            leaf -= sign * h * way
    return (found[0] - found[1]) / (2 * h)


def test_the_energys_gradient_reaches_everything() -> None:
    """Every arrow of fig. 2: actions, policy, predictor, encoder, readouts, critic, memory, goal,

    the aim's argument and the modulation code; all finite, not zero, and equal to differences.
    """
    whole = Whole()
    energies = whole.energies()
    slopes = torch.autograd.grad(energies.sum(), list(whole.leaves.values()))
    for (name, leaf), slope in zip(whole.leaves.items(), slopes, strict=True):
        assert slope.isfinite().all(), name
        assert bool(slope.any()), name
        way = torch.randn(leaf.shape, generator=seeded(7), dtype=FLOAT)
        found = difference(lambda: whole.energies().sum(), leaf, way)
        assert found == pytest.approx(float((slope * way).sum()), rel=1e-5, abs=1e-7), name


def test_the_end_sends_gradient_to_the_memory_or_to_the_critic() -> None:
    """Row 0 is covered by its memory; row 1 is not, and asks the critic."""
    whole = Whole()
    critic = [leaf for name, leaf in whole.leaves.items() if name.startswith("critic")]
    expected = whole.leaves["expected"]
    for row in range(2):
        energy = whole.energies()[row]
        told, *asked = torch.autograd.grad(energy, [expected, *critic], allow_unused=True)
        slopes = [0.0 if slope is None else float(slope.abs().sum()) for slope in asked]
        assert bool(told.any()) == (row == 0)
        assert all((slope > 0) == (row == 1) for slope in slopes)
        assert not told[1 - row].any()


def test_rows_send_no_gradient_to_each_other() -> None:
    whole = Whole()
    names = ("goal", "code", "aim", "keys", "nudge")
    leaves = [whole.leaves[name] for name in names]
    for row in range(2):
        for slope in torch.autograd.grad(whole.energies()[row], leaves):
            assert slope[row].any()
            assert not slope[1 - row].any()


def test_a_step_along_the_gradient_lowers_the_energy_whatever_is_moved() -> None:
    """Not only a number: each module alone can be improved through the energy."""
    whole = Whole()
    before = float(whole.energies().sum().detach())
    for owner in ("encoder", "predictor", "policy", "goal", "code", "nudge"):
        moved = [leaf for name, leaf in whole.leaves.items() if name.startswith(owner)]
        slopes = torch.autograd.grad(whole.energies().sum(), moved)
        with torch.no_grad():
            for leaf, slope in zip(moved, slopes, strict=True):
                leaf -= 1e-4 * slope
        after = float(whole.energies().sum().detach())
        with torch.no_grad():
            for leaf, slope in zip(moved, slopes, strict=True):
                leaf += 1e-4 * slope
        assert after < before, owner


def test_all_modules_act_together() -> None:
    """Memory with energy and support, critic, aims, policy, mode `auto`, rows that come and go."""
    recall = Recall(MemoryConfig(slots=6), proposals=2, energy=True, support=0.2)
    agent = remembering(recall, mode="auto", policy=policy_of())
    thinking = Thinking(price=0.1, share=0.7)
    agent = replace(agent, configurator=replace(agent.configurator, thinking=thinking))
    carried = begin(agent, points(4, 9))
    x = points(4)
    for step in range(8):
        action, carried = agent.act(carried, x)
        assert np.isfinite(action).all()
        assert abs(action).max() <= 1
        assert carried.mind is not None
        assert carried.mind.energy.isfinite().all()
        x = x + STEP * action
        if step == 3:
            mask = torch.tensor([True, False, False, False])
            carried = carried.begin(begin(agent, points(4, 11)), mask)
        if step == 5:
            carried, x = carried.select(torch.tensor([3, 0])), x[[3, 0]]
    assert carried.memory is not None
    assert carried.memory.slots.used.shape == (2, 6)
