"""Short-term memory as experience: there and back, gaps, ends, and what is known in hindsight."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from forethought.agent import Critic, CriticStage, ShortTermMemory, lambda_returns, train_critic
from forethought.agent.recollection import (
    hindsight,
    recollect,
    remember_episodes,
    terminations,
)
from forethought.worldmodel import JEPA, LatentData, MemoryConfig, Perception, ResidualMLP

SHARP = MemoryConfig(slots=64, beta=1e4)  # no two states of the tests are near
GAMMA = 0.8


class Seen(Perception):
    """The state is the observation."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_dim = 4

    def forward(self, observation: Any) -> Tensor:
        return observation  # type: ignore[no-any-return]

    def standardise_by(self, statistics: Any) -> None:
        raise NotImplementedError


def data_of(lengths: list[int], *, terminated: tuple[int, ...] = (), dim: int = 2) -> LatentData:
    """Episodes of so many actions; state (episode, step), action step / 10."""
    rows = [(e, t, n - t) for e, n in enumerate(lengths) for t in range(n + 1)]
    left = torch.tensor([row[2] for row in rows])
    states = torch.tensor([row[:2] for row in rows], dtype=torch.float32)
    last = torch.tensor([row[0] in terminated for row in rows]) & (left == 1)
    actions = states[:, 1:] / 10 * (left > 0)[:, None]
    return LatentData(states.repeat(1, dim // 2), actions, left, last)


def costs_of(data: LatentData) -> Tensor:
    """Of the state after each action: (its step / 20, 1 / 2); no number where there is none."""
    after = torch.cat((data.states[1:], data.states[-1:]))[:, 1:2] / 20
    costs = torch.cat((after, torch.full_like(after, 0.5)), 1)
    return torch.where(data.remaining[:, None] > 0, costs, torch.nan)


def expecting(data: LatentData, seed: int = 0) -> Critic:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Critic(data.states.shape[1], 2, GAMMA, hidden=8)


def by_hand(xs: list[float], times: list[int], **options: Any) -> ShortTermMemory:
    """One row: at (x, 0), action x / 10, cost x / 20, expected x."""
    memory = ShortTermMemory.empty(SHARP, torch.zeros(1, 2), terms=1, action_dim=1, **options)
    for x, time in zip(xs, times, strict=True):
        row = torch.tensor([[x, 0.0]])
        told = (row[:, :1] / 10, row[:, :1] / 20, row[:, :1])
        memory = memory.remember(row, *told, time=time)
    return memory


def column(tensor: Tensor) -> list[float]:
    found: list[float] = tensor[:, 0].tolist()
    return found


# --- there and back


def test_what_is_remembered_whole_comes_back_whole() -> None:
    data = data_of([4, 2, 7], terminated=(1,))
    costs = costs_of(data)
    memory = remember_episodes(SHARP, data, costs)
    assert memory.slots.used.sum(1).tolist() == [5, 3, 8]
    for reach in (0, None):
        found, came = recollect(memory, terminations(data), reach=reach)
        for name in ("states", "remaining", "terminal"):
            assert torch.equal(getattr(found, name), getattr(data, name))
        within = data.remaining > 0
        assert torch.equal(found.actions[within], data.actions[within])
        assert torch.equal(came[within], costs[within])
        assert not came[~within].any()


def test_terminations() -> None:
    assert terminations(data_of([4, 2, 0, 7], terminated=(1,))).tolist() == [
        False,
        True,
        False,
        False,
    ]
    assert terminations(data_of([3], terminated=(0,))).tolist() == [True]


def test_a_moment_holds_the_cost_of_the_action_that_led_to_it() -> None:
    data = data_of([3])
    memory = remember_episodes(SHARP, data, costs_of(data), critic=(critic := expecting(data)))
    moments = memory.moments_at(torch.arange(4)[None])
    # No action led to the first; the cost of the second stands for its own.
    assert moments.costs[0, :, 0].tolist() == pytest.approx([0.05, 0.05, 0.1, 0.15])
    assert moments.action[0, :3, 0].tolist() == pytest.approx([0.0, 0.1, 0.2])
    torch.testing.assert_close(moments.expected[0], critic(data.states).detach())
    assert moments.time[0].tolist() == [0, 1, 2, 3]


def test_discrete_actions_come_back_as_indices() -> None:
    data = data_of([3, 2])
    taken = torch.tensor([2, 0, 1, 0, 1, 2, 0])
    data = replace(data, actions=taken)
    memory = remember_episodes(SHARP, data, costs_of(data), discrete_actions=3)
    found, _ = recollect(memory)
    assert found.actions.dtype == torch.int64
    assert torch.equal(found.actions, taken)
    with pytest.raises(ValueError, match="discrete_actions is None, but actions are"):
        remember_episodes(SHARP, data, costs_of(data))
    with pytest.raises(ValueError, match="discrete_actions is 3, but actions are"):
        remember_episodes(SHARP, data_of([3]), costs_of(data_of([3])), discrete_actions=3)


def test_the_memory_is_bounded() -> None:
    data = data_of([9, 3])
    memory = remember_episodes(replace(SHARP, slots=5), data, costs_of(data))
    assert memory.slots.used.sum(1).tolist() == [5, 4]
    found, _ = recollect(memory)  # the first episode begins where memory does
    assert column(found.states) == [0.0] * 5 + [1.0] * 4
    assert found.states[:5, 1].tolist() == [5, 6, 7, 8, 9]
    assert found.remaining.tolist() == [4, 3, 2, 1, 0, 3, 2, 1, 0]


# --- gaps


def test_the_moment_nearest_in_time_stands_in() -> None:
    memory = by_hand([1.0, 2.0, 3.0], [0, 3, 4])
    found, costs = recollect(memory)
    assert column(found.states) == [1, 1, 2, 2, 3]
    assert column(found.actions)[:4] == pytest.approx([0.1, 0.1, 0.2, 0.2])
    assert column(costs) == pytest.approx([0.05, 0.1, 0.1, 0.15, 0.0])
    assert found.remaining.tolist() == [4, 3, 2, 1, 0]
    assert torch.equal(recollect(memory, reach=1)[0].states, found.states)


def test_beyond_reach_the_episode_is_cut_and_only_the_last_part_ends() -> None:
    memory, ended = by_hand([1.0, 2.0, 3.0, 4.0], [5, 6, 9, 10]), torch.tensor([True])
    found, costs = recollect(memory, ended, reach=0)
    assert column(found.states) == [1, 2, 3, 4]
    assert found.remaining.tolist() == [1, 0, 1, 0]
    assert found.terminal.tolist() == [False, False, True, False]
    assert column(costs) == pytest.approx([0.1, 0.0, 0.2, 0.0])
    assert not recollect(memory, reach=0)[0].terminal.any()
    whole, _ = recollect(memory, ended)
    assert column(whole.states) == [1, 2, 2, 3, 3, 4]
    assert whole.terminal.tolist() == [False] * 4 + [True, False]


def test_what_was_imagined_is_no_experience() -> None:
    memory = by_hand([1.0, 2.0], [0, 1])
    row = torch.tensor([[9.0, 0.0]])
    memory = memory.remember(row, row[:, :1], row[:, :1], row[:, :1], time=2, imagined=True)
    found, _ = recollect(memory)
    assert column(found.states) == [1, 2]


def test_rows_that_hold_nothing_are_left_out() -> None:
    data = data_of([3, 2])
    memory = remember_episodes(SHARP, data, costs_of(data)).forget(torch.tensor([True, False]))
    found, _ = recollect(memory, torch.tensor([True, True]))
    assert column(found.states) == [1, 1, 1]
    assert found.terminal.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("xs", "times", "reach"), [([], [], None), ([1.0], [0], None), ([1.0, 2.0], [0, 5], 0)]
)
def test_moments_that_nothing_follows_are_refused(
    xs: list[float], times: list[int], reach: int | None
) -> None:
    with pytest.raises(ValueError, match=f"no two moments within reach = {reach} of each other"):
        recollect(by_hand(xs, times), torch.tensor([True]), reach=reach)
    with pytest.raises(ValueError, match="reach is -1: choose 0 or more, or None"):
        recollect(by_hand([1.0, 2.0], [0, 1]), reach=-1)


# --- learning from it


def test_the_critic_learns_the_same_from_a_memory_that_holds_all() -> None:
    data = data_of([12, 5, 8], terminated=(1,), dim=4)
    costs = costs_of(data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = JEPA(Seen(), ResidualMLP(4, 1, hidden=8))
    model.requires_grad_(False)
    weights = []
    recalled = recollect(remember_episodes(SHARP, data, costs), terminations(data))
    for experience in ((data, costs), recalled):
        critic, generator = expecting(data), torch.Generator().manual_seed(0)
        stage = CriticStage(steps=10, batch=8, window=4)
        train_critic(critic, model, *experience, torch.ones(2), stage, generator)
        weights.append(torch.cat([p.detach().flatten() for p in critic.parameters()]))
    assert torch.equal(*weights)


# --- hindsight


def expected_of(memory: ShortTermMemory, times: int) -> Tensor:
    return memory.moments_at(torch.arange(times).expand(len(memory.slots.keys), -1)).expected


@pytest.mark.parametrize("trace", [0.0, 0.7, 1.0])
def test_hindsight_gives_the_lambda_returns(trace: float) -> None:
    data, end = data_of([6, 3, 1, 0], terminated=(1, 2)), torch.tensor([1.0, 0.0])
    costs, critic = costs_of(data), expecting(data)
    before = remember_episodes(SHARP, data, costs, critic=critic)
    memory = hindsight(before, GAMMA, trace=trace, ended=terminations(data), end=end)
    at = 0
    for row, length in enumerate((6, 3, 1, 0)):
        average = critic.average(data.states[at : at + length + 1]).detach()
        terminal = data.terminal[at : at + length]
        stop = end if bool(terminal.any()) else average[-1]
        if length:
            told = (costs[at : at + length][None], average[None, 1:], terminal[None], end)
            came = lambda_returns(*told, GAMMA, trace)[0]
            average = torch.cat((came, stop[None]))
        found = expected_of(memory.select(torch.tensor([row])), length + 1)[0]
        torch.testing.assert_close(found, average / (1 - GAMMA))
        at += length + 1


def test_hindsight_changes_nothing_else_and_not_in_place() -> None:
    data = data_of([6, 3])
    before = remember_episodes(SHARP, data, costs_of(data), critic=expecting(data))
    row = torch.full((2, 2), 9.0)
    before = before.remember(row, row[:, :1], row, row, time=7, imagined=True)
    held = before.slots.values.clone()
    memory = hindsight(before, GAMMA)
    assert torch.equal(before.slots.values, held)
    changed = (memory.slots.values != held).any(1)  # (B, V), over slots
    assert changed.tolist() == [[False] * 4 + [True] * 2 + [False]] * 2  # state, costs, expected, a
    ghosts = memory.neighbours(row, imagined=True)[0]
    assert torch.equal(ghosts.expected[:, 0], row)
    for name in ("keys", "times", "labels", "used"):
        assert torch.equal(getattr(memory.slots, name), getattr(before.slots, name))


def test_hindsight_fills_gaps_with_the_nearest() -> None:
    """Costs at times 1 to 3: of x = 1, 4, 4; expected at the end: 4."""
    memory = hindsight(by_hand([1.0, 4.0], [0, 3]), 0.5, trace=1.0)
    came = 0.05 + 0.2 / 2 + 0.2 / 4 + 4.0 / 8
    found = memory.moments_at(torch.tensor([[0, 3]])).expected[0, :, 0].tolist()
    assert found == pytest.approx([came, 4.0])


def test_rows_do_not_leak() -> None:
    data = data_of([6, 3])
    memory = remember_episodes(SHARP, data, costs_of(data), critic=expecting(data))
    both = hindsight(memory, GAMMA)
    for row in range(2):
        index = torch.tensor([row])
        alone = hindsight(memory.select(index), GAMMA)
        assert torch.equal(alone.slots.values, both.select(index).slots.values)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"discount": 1.0}, r"discount is 1.0: choose it in \(0, 1\)"),
        ({"trace": 1.5}, r"trace is 1.5: choose it in \[0, 1\]"),
        ({"ended": torch.tensor([True])}, "ended is given, but end is None: give e_end"),
    ],
)
def test_hindsight_refuses(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hindsight(by_hand([1.0, 2.0], [0, 1]), **{"discount": 0.9} | wrong)
    without = ShortTermMemory.empty(SHARP, torch.zeros(1, 2), terms=1, action_dim=1, critic=False)
    with pytest.raises(ValueError, match="make the memory with critic=True"):
        hindsight(without, 0.9)
