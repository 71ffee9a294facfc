"""What the agent remembers: moments, energies, looking up, encoder versions, starts of plans."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from forethought.agent.configurator import Cost, Setting
from forethought.agent.cost import Critic
from forethought.agent.memory import Moments, ShortTermMemory
from forethought.worldmodel.memory import MemoryConfig

FLOAT = torch.float64
B, D, TERMS, A = 2, 2, 2, 1
CONFIG = MemoryConfig(slots=4, beta=1.0, gamma=0.1, threshold=0.5)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=FLOAT)


def rows(*numbers: float) -> Tensor:
    """The same numbers in each row, `(B, n)`."""
    return torch.tensor([numbers] * B, dtype=FLOAT)


def empty(slots: int = 4, **options: Any) -> ShortTermMemory:
    options = {"terms": TERMS, "action_dim": A} | options
    return ShortTermMemory.empty(replace(CONFIG, slots=slots), rows(0.0, 0.0), **options)


def moment(memory: ShortTermMemory, x: float, time: Any, **options: Any) -> ShortTermMemory:
    """At (x, 0): intrinsic terms (x / 10, 0), TC (x, 2 x), action x / 10."""
    told: dict[str, Any] = {
        "state": rows(x, 0.0),
        "action": rows(x / 10),
        "costs": rows(x / 10, 0.0),
        "expected": rows(x, 2 * x),
    }
    return memory.remember(**told | {"time": time} | options)


def walk(*xs: float, slots: int = 8) -> ShortTermMemory:
    """The moments of a walk, from time 0 on."""
    memory = empty(slots)
    for time, x in enumerate(xs):
        memory = moment(memory, x, time)
    return memory


def gloomy(state: Tensor) -> Tensor:
    """A critic that expects (50, 7) everywhere, whatever it is shown."""
    return torch.tensor([50.0, 7.0], dtype=FLOAT).expand(*state.shape[:-1], TERMS)


def count(memory: ShortTermMemory) -> list[int]:
    return memory.slots.used.sum(1).tolist()


# --- what is stored


def test_a_moment_comes_back_as_it_was() -> None:
    state, action = normal(B, D), normal(B, A, seed=1)
    costs, expected = normal(B, TERMS, seed=2), normal(B, TERMS, seed=3)
    memory = empty(version=6).remember(
        state, action, costs, expected, time=torch.tensor([4, 9]), observation=torch.tensor([2, -1])
    )
    moments, distance = memory.neighbours(state)
    assert not distance.any()
    told = {"state": state, "action": action, "costs": costs, "expected": expected}
    for name, value in told.items():
        assert torch.equal(getattr(moments, name).squeeze(1), value)
    assert moments.time.tolist() == [[4], [9]]
    assert moments.observation.tolist() == [[2], [-1]]
    assert moments.version.tolist() == [[6], [6]]
    assert not moments.imagined.any()
    assert moments.found.all()
    assert torch.equal(memory.slots.keys[:, 0], state)
    means, coverage = memory.recall(state)
    for name, value in told.items():
        torch.testing.assert_close(means[name], value)
    assert coverage.tolist() == pytest.approx([1 / 1.1] * B)


def test_discrete_actions_are_kept_as_probabilities() -> None:
    memory = empty(action_dim=3, discrete=True)
    memory = moment(memory, 1.0, 0, action=torch.tensor([2, 0]))
    moments, _ = memory.neighbours(rows(1.0, 0.0))
    assert moments.action.squeeze(1).tolist() == [[0, 0, 1], [1, 0, 0]]
    memory = moment(memory, 1.0, 1, action=torch.tensor([1, 0]))
    blended = memory.neighbours(rows(1.0, 0.0))[0].action.squeeze(1)
    assert blended[0].tolist() == pytest.approx([0, 10 / 11, 1 / 11])
    torch.testing.assert_close(blended.sum(-1), torch.ones(B, dtype=FLOAT))


def test_moments_nearby_are_blended_and_others_get_their_own_slot() -> None:
    memory = walk(1.0, 1.1, 4.0)
    assert count(memory) == [2, 2]
    share = math.exp(-0.01) / (0.1 + math.exp(-0.01))
    moments = memory.moments_at(torch.tensor([0, 0]))
    assert moments.time.tolist() == [1, 1]  # the second one was the larger part
    assert moments.state[:, 0].tolist() == pytest.approx([1 + 0.1 * share] * B)
    assert memory.slots.keys[:, 0, 0].tolist() == [1.0, 1.0]
    assert moments.expected[0].tolist() == pytest.approx([1 + 0.1 * share, 2 + 0.2 * share])


def test_without_a_critic_there_is_nothing_to_expect() -> None:
    memory = empty(critic=False)
    memory = memory.remember(rows(1.0, 0.0), rows(0.1), rows(0.1, 0.0), time=0)
    assert memory.moments_at(torch.tensor([0, 0])).expected.shape == (B, 0)
    with pytest.raises(ValueError, match="no expected costs are remembered: make the memory with"):
        memory.energy_of(rows(1.0, 0.0), rows(1.0, 1.0), gloomy)


def test_wrong_shapes_are_refused() -> None:
    for name, wrong in (
        ("state", rows(1.0)),
        ("action", rows(1.0, 2.0)),
        ("costs", rows(1.0)),
        ("expected", None),
    ):
        with pytest.raises(ValueError, match=rf"{name} has the shape .*: give \(2, "):
            moment(empty(), 1.0, 0, **{name: wrong})
    with pytest.raises(ValueError, match=r"times of the entries are torch\.float"):
        moment(empty(), 1.0, torch.tensor([0.5, 1.0]))


@pytest.mark.parametrize("name", ["state", "action", "costs", "expected"])
def test_a_moment_that_is_not_a_number_is_not_remembered(name: str) -> None:
    told = {"state": rows(1.0, 0.0), "action": rows(0.1), "costs": rows(0.1, 0.0)}
    told |= {"expected": rows(1.0, 2.0)}
    told[name][1, 0] = math.nan
    assert count(moment(empty(), 1.0, 0, **told)) == [1, 0]


# --- energies


def test_the_energy_of_a_state_is_remembered_or_the_critics() -> None:
    memory, v = walk(1.0, 4.0), rows(2.0, 0.5)
    states = torch.tensor([[[1.0, 0.0], [4.0, 0.0], [30.0, 0.0]]] * B, dtype=FLOAT)
    energies = memory.energy_of(states, v, gloomy)
    # 2 x + 2 x / 2, next to the other moment at a squared distance of 9; far away 2 50 + 7 / 2.
    one, other = 3.0, 12.0
    seen = math.exp(-9)
    near = [(one + seen * other) / (1 + seen), (other + seen * one) / (1 + seen)]
    for row in energies.tolist():
        assert row == pytest.approx([*near, 103.5])
    assert memory.energy_of(states[:, 0], v, gloomy).shape == (B,)
    plans = states.unsqueeze(1).expand(B, 5, 3, D)
    again = memory.energy_of(plans, v, gloomy)
    torch.testing.assert_close(again, energies.unsqueeze(1).expand(B, 5, 3))
    # Weights as a planner's context shows them, with axes for candidates and time.
    torch.testing.assert_close(memory.energy_of(plans, v[:, None, None], gloomy), again)


def test_who_knows_nothing_asks_the_critic() -> None:
    energies = empty().energy_of(normal(B, 5, D), rows(1.0, 1.0), gloomy)
    assert energies.tolist() == [[57.0] * 5] * B


def test_energies_have_a_gradient_everywhere_and_at_the_border_both_sides_do() -> None:
    memory, v = walk(1.0, 1.9, 3.5), rows(2.0, 0.5)

    def critic(state: Tensor) -> Tensor:
        return state.square()

    def energy(state: Tensor) -> Tensor:
        return memory.energy_of(state, v, critic)

    states = torch.tensor([[[1.2, 0.1], [2.5, -0.3], [9.0, 1.0], [50.0, 0.0]]] * B, dtype=FLOAT)
    states.requires_grad_()
    assert torch.autograd.gradcheck(energy, (states,))
    (gradient,) = torch.autograd.grad(energy(states).sum(), states)
    assert gradient.abs().sum(-1).min() > 0
    torch.testing.assert_close(gradient[:, 3], (2 * states * v[:, None])[:, 3].detach())
    far = torch.full((B, 1, D), 1e30, dtype=torch.float32, requires_grad=True)
    half = ShortTermMemory.empty(CONFIG, torch.zeros(B, D), terms=TERMS, action_dim=A)
    half = half.remember(
        torch.zeros(B, D), torch.zeros(B, A), torch.zeros(B, 2), torch.ones(B, 2), time=0
    )
    value = half.energy_of(far, v.float(), lambda state: 0 * state)
    (gradient,) = torch.autograd.grad(value.sum(), far)
    assert gradient.isfinite().all()


def test_energies_send_gradient_into_what_was_remembered() -> None:
    state, expected = rows(1.0, 0.0).requires_grad_(), rows(1.0, 2.0).requires_grad_()
    memory = moment(empty(), 1.0, 0, state=state, expected=expected)
    memory = moment(memory, 2.0, 1)
    value = memory.energy_of(rows(1.4, 0.0), rows(1.0, 1.0), gloomy)
    for gradient in torch.autograd.grad(value.sum(), (state, expected)):
        assert gradient.abs().sum() > 0


def test_the_real_critic_fits_and_stays_out_of_what_is_remembered() -> None:
    critic = Critic(D, TERMS, 0.9).double()
    memory, v = walk(1.0), rows(2.0, 0.5)
    states = torch.tensor([[[1.0, 0.0], [30.0, 0.0]]] * B, dtype=FLOAT)
    energies = memory.energy_of(states, v, critic)
    torch.testing.assert_close(energies[:, 1], (critic(states[:, 1]) * v).sum(-1))
    weight = critic.layers[0].weight
    (near,) = torch.autograd.grad(energies[:, 0].sum(), weight, retain_graph=True)
    (far,) = torch.autograd.grad(energies[:, 1].sum(), weight)
    assert not near.any()
    assert far.any()


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_the_energy_of_not_a_number_is_not_a_number(number: float) -> None:
    states = torch.ones(B, 3, D, dtype=FLOAT)
    states[1, 2, 0] = number
    for memory in (empty(), walk(1.0)):
        energies = memory.energy_of(states, rows(1.0, 1.0), gloomy)  # a critic that would not mind
        assert energies[1, 2].isnan()
        energies[1, 2] = 0
        assert energies.isfinite().all()


# --- looking up


def test_looking_up_by_time() -> None:
    memory = walk(0.0, 3.0, 6.0)
    time = torch.tensor([[0, 2, 9], [1, -5, 1]])
    assert memory.state_at(time)[..., 0].tolist() == [[0, 6, 6], [3, 0, 3]]
    assert memory.moments_at(time).time.tolist() == [[0, 2, 2], [1, 0, 1]]
    assert empty().state_at(time).isnan().all()
    assert not empty().moments_at(time).found.any()


def test_the_critic_can_be_trained_from_it() -> None:
    """Figure 7: a past state, and the intrinsic cost at a later time."""
    memory = walk(0.0, 3.0, 6.0, 9.0)
    time, later = torch.tensor([[0, 1, 2]] * B), 1
    state, cost = memory.state_at(time), memory.moments_at(time + later).costs
    torch.testing.assert_close(cost[..., 0], (state[..., 0] + 3) / 10)


def test_neighbours_are_nearest_first() -> None:
    moments, distance = walk(0.0, 3.0, 7.0).neighbours(rows(2.0, 0.0), 4)
    assert moments.state[..., 0].tolist() == [[3.0, 0.0, 7.0, 0.0]] * B
    assert moments.found.tolist() == [[True, True, True, False]] * B
    assert distance.tolist() == [[1.0, 4.0, 25.0, math.inf]] * B


def test_what_was_imagined_stays_apart() -> None:
    memory = moment(walk(1.0, slots=4), 1.05, 1, imagined=True)
    assert count(memory) == [2, 2]  # near the perceived one, and not written over it
    time, state = torch.tensor([1, 1]), rows(1.05, 0.0)
    assert memory.state_at(time)[0].tolist() == [1.0, 0.0]
    assert memory.state_at(time, imagined=True)[0].tolist() == [1.05, 0.0]
    assert memory.state_at(time, imagined=None)[0].tolist() == [1.05, 0.0]
    assert memory.neighbours(state)[0].imagined.tolist() == [[False]] * B
    assert memory.neighbours(state, imagined=True)[0].imagined.tolist() == [[True]] * B
    both = memory.neighbours(state, 3, imagined=None)[0]
    assert both.imagined.tolist() == [[True, False, False]] * B
    assert both.found.tolist() == [[True, True, False]] * B
    energies = [
        float(memory.energy_of(state, rows(1.0, 0.0), gloomy, imagined)[0])
        for imagined in (False, True, None)
    ]
    assert energies[:2] == pytest.approx([1.0, 1.05])
    assert energies[0] < energies[2] < energies[1]
    again = moment(memory, 1.06, 2, imagined=True)
    assert count(again) == [2, 2]
    assert again.moments_at(time, imagined=True).time.tolist() == [2, 2]


def test_what_was_imagined_gives_way() -> None:
    memory = walk(0.0, 3.0, slots=4)
    for step in range(5):
        memory = moment(memory, 100.0 + 3 * step, 2 + step, imagined=True)
    assert memory.neighbours(rows(0.0, 0.0), 4)[0].found.sum(1).tolist() == [2, 2]
    imagined = memory.neighbours(rows(112.0, 0.0), 4, imagined=True)[0]
    assert imagined.time.tolist() == [[6, 5, 0, 0]] * B  # the oldest of them went
    memory = moment(memory, 6.0, 2)
    assert memory.neighbours(rows(112.0, 0.0), 4, imagined=True)[0].time[0].tolist() == [6, 0, 0, 0]
    memory = moment(moment(memory, 9.0, 3), 12.0, 4)
    assert memory.neighbours(rows(0.0, 0.0), 4)[0].time.tolist() == [[1, 2, 3, 4]] * B
    full = moment(memory, 100.0, 9, imagined=True)  # nothing that it may replace
    assert torch.equal(full.slots.keys, memory.slots.keys)
    assert torch.equal(full.slots.times, memory.slots.times)


# --- versions of the encoder


def versions() -> ShortTermMemory:
    """Version 0: an observation kept, none kept, and something imagined."""
    memory = moment(empty(), 1.0, 0, observation=torch.tensor([1, 0]))
    memory = moment(memory, 4.0, 1)
    return moment(memory, 7.0, 2, imagined=True, observation=torch.tensor([-1, -1]))


KEPT = torch.tensor([[20.0], [30.0]], dtype=FLOAT)


def encode(observation: Tensor) -> Tensor:
    return torch.cat((observation, -observation), dim=-1)


def test_nothing_is_read_across_versions() -> None:
    memory = replace(versions(), version=1)
    state = rows(1.0, 0.0)
    assert not memory.recall(state)[1].any()
    assert not memory.moments_at(torch.tensor([0, 0])).found.any()
    assert memory.energy_of(state, rows(1.0, 0.0), gloomy).tolist() == [50.0, 50.0]
    memory = moment(memory, 1.0, 5)  # is not written over the old one
    assert count(memory) == [4, 4]
    assert memory.moments_at(torch.tensor([0, 0])).version.tolist() == [1, 1]


@pytest.mark.parametrize("kept", [KEPT, {"x": KEPT}])
def test_refreshing_encodes_what_was_kept_and_forgets_the_rest(kept: Any) -> None:
    before = versions()
    calls: list[int] = []

    def encoder(observation: Any) -> Tensor:
        x = observation["x"] if isinstance(observation, dict) else observation
        calls.append(len(x))
        return encode(x)

    memory = before.refresh(1, encoder, kept)
    assert calls == [2]
    assert count(memory) == [1, 1]
    moments = memory.moments_at(torch.tensor([9, 9]), imagined=None)
    assert moments.state.tolist() == [[30.0, -30.0], [20.0, -20.0]]
    assert torch.equal(memory.slots.keys[:, 0], moments.state)
    assert moments.version.tolist() == [1, 1]
    assert moments.observation.tolist() == [1, 0]
    old = before.moments_at(torch.tensor([0, 0]))
    for name in ("costs", "expected", "action", "time"):
        assert torch.equal(getattr(moments, name), getattr(old, name))
    for name in ("keys", "values", "times", "labels"):
        assert not getattr(memory.slots, name)[:, 1:].any()
    again = memory.refresh(1, encoder, kept)
    assert calls == [2]
    assert torch.equal(again.slots.keys, memory.slots.keys)
    assert count(before) == [3, 3]


def test_refreshing_without_observations_forgets_all_of_another_version() -> None:
    memory = moment(versions().refresh(1, encode), 2.0, 3)
    assert count(memory) == [1, 1]
    assert count(memory.refresh(1, encode)) == [1, 1]
    assert count(memory.refresh(2, encode)) == [0, 0]


def test_refreshing_drops_what_does_not_encode() -> None:
    def broken(observation: Tensor) -> Tensor:
        return encode(observation).where(observation < 25, math.nan)

    memory = versions().refresh(1, broken, KEPT)
    assert count(memory) == [0, 1]
    for name in ("keys", "values"):
        assert getattr(memory.slots, name).isfinite().all()


def test_refreshing_needs_all_that_was_kept() -> None:
    with pytest.raises(ValueError, match="a moment names observation 1, but 1 are given: give all"):
        versions().refresh(1, encode, KEPT[:1])


def test_gradient_reaches_the_encoder() -> None:
    scale = torch.tensor(2.0, dtype=FLOAT, requires_grad=True)
    memory = versions().refresh(1, lambda x: scale * encode(x), KEPT)
    state = memory.state_at(torch.tensor([0, 0]))
    (gradient,) = torch.autograd.grad(state[:, 0].sum(), scale)
    assert float(gradient) == 50


# --- starts of plans


def setting(horizon: int = 2, discount: float = 0.5, goal: Tensor | None = None) -> Setting:
    return Setting(
        u=rows(1.0, 0.0), v=rows(0.0, 0.0), goal=goal, cost=Cost(horizon=horizon), discount=discount
    )


def forked() -> ShortTermMemory:
    """Twice near the same state: after the first visit it was dear, after the second cheap."""
    memory = empty(slots=12)
    costs = [0.0, 9.0, 9.0, 9.0, 0.0, 1.0, 2.0, 0.0]
    places = [0.0, 10.0, 20.0, 30.0, 2.0, 12.0, 22.0, 32.0]
    for time, (x, cost) in enumerate(zip(places, costs, strict=True)):
        memory = moment(memory, x, time, costs=rows(cost, 0.0), action=rows(time / 10))
    return memory


def test_proposals_are_what_came_out_best() -> None:
    found = forked().proposals(rows(0.5, 0.0), setting(), count=2, neighbours=2)
    assert found.shape == (B, 2, 2, A)
    # From time 4: 1 + 2/2; from time 0: 9 + 9/2.
    assert found[0, :, :, 0].tolist() == pytest.approx(torch.tensor([[0.4, 0.5], [0.0, 0.1]]))
    nearest = forked().proposals(rows(0.5, 0.0), setting(), neighbours=1)
    assert nearest[0, 0, :, 0].tolist() == pytest.approx([0.0, 0.1])


def test_proposals_weigh_goal_discount_and_what_the_critic_expected() -> None:
    state, memory = rows(0.5, 0.0), forked()

    def first(**options: Any) -> float:
        return float(memory.proposals(state, replace(setting(), **options), neighbours=2)[0, 0, 0])

    assert first() == pytest.approx(0.4)
    # From time 4 the way costs 2 and ends at 22, from time 0 it costs 13.5 and ends at 20.
    assert first(goal=rows(16.0, 0.0)) == pytest.approx(0.4)  # (36 - 16) / 2 is not enough,
    assert first(goal=rows(15.0, 0.0)) == pytest.approx(0.0)  # (49 - 25) / 2 is
    assert first(v=rows(20.0, 0.0)) == pytest.approx(0.4)  # 20 (22 - 20) / 4 is not enough,
    assert first(v=rows(24.0, 0.0)) == pytest.approx(0.0)  # 24 (22 - 20) / 4 is
    assert first(u=rows(0.0, 0.0), goal=rows(20.0, 0.0)) == pytest.approx(0.0)


def test_only_whole_stretches_are_proposed() -> None:
    memory = forked()
    late = memory.proposals(rows(22.0, 0.0), setting(), count=8)
    # Times 6 and 7 have no two steps after them.
    starts = {round(10 * x) for x in late[0, :, 0, 0].tolist()}
    assert starts == {0, 1, 2, 3, 4, 5}
    assert late[0, -2:].tolist() == [[[0.0]] * 2] * 2  # eight were asked for, and six are there
    assert not memory.proposals(rows(0.0, 0.0), setting(horizon=9)).any()
    assert not empty().proposals(rows(0.0, 0.0), setting()).any()


def test_discrete_proposals() -> None:
    memory = empty(slots=8, action_dim=3, discrete=True)
    for time in range(4):
        memory = moment(memory, 5.0 * time, time, action=torch.full((B,), time % 3))
    found = memory.proposals(rows(5.0, 0.0), setting(), neighbours=1)
    assert found.dtype == torch.int64
    assert found.tolist() == [[[1, 2]]] * B
    with pytest.raises(ValueError, match="count is 3: choose 1 to 2, the neighbours"):
        memory.proposals(rows(5.0, 0.0), setting(), count=3, neighbours=2)


def test_imagined_moments_are_not_proposed() -> None:
    memory = empty(slots=8)
    for time in range(4):
        memory = moment(memory, 5.0 * time, time, imagined=True)
    assert not memory.proposals(rows(5.0, 0.0), setting()).any()


# --- a memory is a value


def test_rows_are_selected_and_forgotten() -> None:
    memory = walk(0.0, 3.0)
    memory = moment(memory, 6.0, 2, state=torch.tensor([[6.0, 0.0], [9.0, 0.0]], dtype=FLOAT))
    one = memory.select(torch.tensor([1]))
    assert one.state_at(torch.tensor([2])).tolist() == [[9.0, 0.0]]
    assert one.sizes == memory.sizes
    fresh = memory.forget(torch.tensor([False, True]))
    assert count(fresh) == [3, 0]
    assert fresh.state_at(torch.tensor([2, 2])).isnan().all(-1).tolist() == [False, True]
    assert count(memory) == [3, 3]


def test_rows_do_not_leak() -> None:
    one, other = walk(1.0, 4.0), walk(1.0, 4.0)
    state = rows(2.0, 0.0)
    state[1] = -50.0
    other = moment(other, 2.0, 2, state=state)
    one = moment(one, 2.0, 2)
    queries = normal(B, 9, D)
    for name in ("state", "costs", "expected", "action"):
        same, different = (memory.recall(queries)[0][name] for memory in (one, other))
        assert torch.equal(same[0], different[0])
        assert not torch.equal(same[1], different[1])


def test_twins() -> None:
    one, other = forked(), forked()
    for name in ("keys", "values", "times", "labels", "used"):
        assert torch.equal(getattr(one.slots, name), getattr(other.slots, name))
    pair = [memory.proposals(rows(3.0, 1.0), setting(), count=3) for memory in (one, other)]
    assert torch.equal(*pair)


def test_moments_name_everything_that_is_stored() -> None:
    memory = walk(1.0)
    moments = memory.moments_at(torch.tensor([[0], [0]]))
    assert isinstance(moments, Moments)
    stored = sum(x.shape[-1] for x in (moments.state, moments.costs, moments.expected))
    assert stored + moments.action.shape[-1] == memory.slots.values.shape[-1]
    assert memory.slots.labels.shape[-1] == 3
