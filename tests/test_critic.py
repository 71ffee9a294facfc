"""The critic: returns written out, closed forms of small chains, and nothing else that learns.

The world is a ring of cells, seen as a one-hot state: action 0 steps back, 1 stays, 2 steps on.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from forethought.agent import Critic, CriticStage, lambda_returns, train_critic
from forethought.agent.cost.critic import _each_returns, later_costs
from forethought.worldmodel import JEPA, Actions, LatentData, Perception, Predictor

CELLS = 5
GAMMA = 0.8
STAGE = CriticStage(steps=400, batch=64, window=6, learning_rate=1e-2, target_rate=0.1)
SIMPLE = replace(STAGE, form="simple", steps=200)
TINY = CriticStage(steps=4, batch=8, window=4, target_rate=0.3)


class Cell(Perception):
    """The state is the observation."""

    def __init__(self) -> None:
        super().__init__()
        self.latent_dim = CELLS
        self.gain = nn.Parameter(torch.ones(CELLS))

    def forward(self, observation: Any) -> Tensor:
        return self.gain * observation  # type: ignore[no-any-return]

    def standardise_by(self, statistics: Any) -> None:
        raise NotImplementedError


class Turning(Predictor):
    """One step round the ring, exact."""

    def __init__(self) -> None:
        super().__init__()
        self.action_dim = 3
        self.moves = nn.Parameter(torch.stack([torch.eye(CELLS).roll(by, 1) for by in (-1, 0, 1)]))

    def forward(
        self, state: Tensor, action: Tensor, latent: Any = None, context: Any = None
    ) -> Tensor:
        return torch.einsum("na,nc,acd->nd", action, state, self.moves)


def ring() -> JEPA:
    return JEPA(Cell(), Turning(), Actions(3, discrete=True))


def critic_of(terms: int = 1, discount: float = GAMMA, seed: int = 0, members: int = 1) -> Critic:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Critic(CELLS, terms, discount, hidden=32, layers=1, members=members)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data_of(paths: list[tuple[list[int], list[int]]], *, terminated: bool = False) -> LatentData:
    """Latents of episodes, each its cells and its actions, one fewer."""
    cells = [cell for path, _ in paths for cell in path]
    remaining = [left for path, _ in paths for left in range(len(path) - 1, -1, -1)]
    left = torch.tensor(remaining)
    return LatentData(
        torch.eye(CELLS)[cells],
        torch.tensor([action for _, actions in paths for action in [*actions, 0]]),
        left,
        (left == 1) & terminated,
    )


def walks(policy: list[float], episodes: int = 60, length: int = 40, seed: int = 0) -> LatentData:
    """Walks round the ring, from all cells, with these probabilities of the three actions."""
    rng, paths = np.random.default_rng(seed), []
    for episode in range(episodes):
        actions = rng.choice(3, length, p=policy).tolist()
        path = np.cumsum([episode % CELLS, *(action - 1 for action in actions)]) % CELLS
        paths.append((path.tolist(), actions))
    return data_of(paths)


def costs_of(data: LatentData, table: Tensor) -> Tensor:
    """Terms `(N, n)` of the state after each action, from a table `(CELLS, n)`; a row that belongs
    to no action is not a number, so that reading it would show."""
    after = torch.cat((data.states[1:], data.states[-1:])) @ table
    return torch.where(data.remaining[:, None] > 0, after, torch.nan)


def trained(critic: Critic, data: LatentData, table: Tensor, **options: Any) -> Critic:
    end = options.pop("end", torch.zeros(table.shape[1]))
    stage = options.pop("stage", STAGE)
    generator = seeded(options.pop("seed", 0))
    model = options.pop("model", None) or ring().requires_grad_(False)
    train_critic(critic, model, data, costs_of(data, table), end, stage, generator, **options)
    return critic


@torch.no_grad()
def told(critic: Critic, factor: float = 1.0) -> Tensor:
    """TC `(CELLS, n)` of every cell, or of its state scaled."""
    return critic(factor * torch.eye(CELLS))  # type: ignore[no-any-return]


# --- the targets


def forward_view(
    costs: Tensor, values: Tensor, terminal: Tensor, end: Tensor, gamma: float, trace: float
) -> Tensor:
    """Sutton and Barto (2018), eqs 12.9 and 12.1, of (1 - gamma) TC: n-step returns, weighted."""
    steps = costs.shape[1]
    targets = torch.zeros_like(costs)
    for b in range(costs.shape[0]):
        for t in range(steps):
            returns = []
            for n in range(1, steps - t + 1):
                total = torch.zeros_like(costs[b, t])
                over = False
                for k in range(n):
                    total += gamma**k * (1 - gamma) * (end if over else costs[b, t + k])
                    over = over or bool(terminal[b, t + k])
                returns.append(total + gamma**n * (end if over else values[b, t + n - 1]))
            weights = [(1 - trace) * trace ** (n - 1) for n in range(1, len(returns))]
            weights.append(trace ** (len(returns) - 1))
            targets[b, t] = sum(w * r for w, r in zip(weights, returns, strict=True))
    return targets


@pytest.mark.parametrize("trace", [0.0, 0.3, 0.9, 1.0])
def test_lambda_returns_are_the_forward_view(trace: float) -> None:
    drawn = torch.rand(2, 6, 7, 3, generator=seeded()).double()
    terminal = torch.zeros(6, 7, dtype=torch.bool)
    terminal[1, 6] = terminal[2, 3] = terminal[3, 0] = True
    end = torch.tensor([0.0, 1.0, 0.4]).double()
    arguments = (drawn[0], drawn[1], terminal, end, 0.7, trace)
    torch.testing.assert_close(lambda_returns(*arguments), forward_view(*arguments))


def test_lambda_returns_by_hand() -> None:
    """Two steps that cost 1 and 0, values 0.5 and 0.25 after them; gamma 1/2."""
    costs, values = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[0.5], [0.25]]])
    on, end = torch.zeros(1, 2, dtype=torch.bool), torch.tensor([1.0])

    def targets(terminal: Tensor, trace: float) -> list[float]:
        found: list[float] = (
            lambda_returns(costs, values, terminal, end, 0.5, trace).flatten().tolist()
        )
        return found

    # lambda 0: 1/2 + 0.5 / 2, 0 + 0.25 / 2. lambda 1: 1/2 + (0 + 0.25 / 2) / 2. Then between.
    assert targets(on, 0.0) == [0.75, 0.125]
    assert targets(on, 1.0) == [0.5625, 0.125]
    assert targets(on, 0.5) == [0.65625, 0.125]
    last = torch.tensor([[False, True]])  # the end costs 1 ever after, whatever was expected
    assert targets(last, 0.0) == [0.75, 0.5]
    assert targets(last, 1.0) == [0.75, 0.5]
    assert targets(torch.tensor([[True, False]]), 0.9) == [1.0, 0.125]


def test_with_lambda_1_values_count_at_the_end_of_the_window_only() -> None:
    costs, values = torch.rand(2, 3, 5, 2, generator=seeded())
    on, end = torch.zeros(3, 5, dtype=torch.bool), torch.zeros(2)
    other = torch.cat((torch.rand(3, 4, 2), values[:, -1:]), 1)
    found = lambda_returns(costs, values, on, end, 0.9, 1.0)
    assert torch.equal(found, lambda_returns(costs, other, on, end, 0.9, 1.0))
    assert not torch.equal(found, lambda_returns(costs, other + 1, on, end, 0.9, 1.0))


def test_with_lambda_0_a_target_looks_one_step_ahead() -> None:
    costs, values = torch.rand(2, 3, 5, 2, generator=seeded()).double()
    on, end = torch.zeros(3, 5, dtype=torch.bool), torch.zeros(2).double()
    found = lambda_returns(costs, values, on, end, 0.9, 0.0)
    torch.testing.assert_close(found, 0.1 * costs + 0.9 * values)


def test_a_constant_cost_is_its_own_average() -> None:
    """(1 - gamma) TC of a cost that never changes is that cost, whatever gamma and lambda are."""
    same = torch.full((2, 6, 1), 0.3).double()
    on, end = torch.zeros(2, 6, dtype=torch.bool), torch.zeros(1).double()
    for gamma, trace in ((0.1, 0.0), (0.5, 1.0), (0.99, 0.7)):
        torch.testing.assert_close(lambda_returns(same, same, on, end, gamma, trace), same)


def test_rows_of_a_batch_do_not_leak() -> None:
    costs, values = torch.rand(2, 4, 5, 2, generator=seeded())
    terminal = torch.zeros(4, 5, dtype=torch.bool)
    terminal[2, 4] = True
    end = torch.ones(2)
    whole = lambda_returns(costs, values, terminal, end, 0.9, 0.8)
    costs[1] = values[1] = torch.nan
    spoilt = lambda_returns(costs, values, terminal, end, 0.9, 0.8)
    assert torch.equal(spoilt[[0, 2, 3]], whole[[0, 2, 3]])
    assert bool(spoilt[1].isnan().all())


# --- the network


def test_the_critic_is_the_average_over_one_minus_gamma() -> None:
    critic = critic_of(3, 0.9)
    state = torch.randn(4, 2, 7, CELLS, generator=seeded())
    average = critic.average(state)
    assert average.shape == (4, 2, 7, 3)
    assert torch.equal(average, torch.sigmoid(critic.layers(state)))
    assert torch.allclose(critic(state), average / (1 - 0.9))
    far = critic(1e6 * state)  # no state promises less than nothing, or more than for ever
    assert bool((far >= 0).all())
    assert bool((far <= 10.0 + 1e-4).all())


@pytest.mark.parametrize("discount", [0.0, 1.0, -0.5, float("nan")])
def test_a_critic_needs_a_discount(discount: float) -> None:
    with pytest.raises(ValueError, match=rf"discount is {discount} per decision: .* \(0, 1\)"):
        Critic(2, 1, discount)


def test_the_critic_of_what_is_not_a_number_is_none() -> None:
    state = torch.randn(3, CELLS, generator=seeded())
    critic = critic_of(2)
    whole = critic(state)
    state[1] = torch.nan
    assert critic(state).isnan().all(-1).tolist() == [False, True, False]
    assert torch.equal(critic(state)[[0, 2]], whole[[0, 2]])


# --- what it learns


def test_it_learns_the_future_cost_of_a_chain() -> None:
    """A random walk: (I - gamma P) TC = P c has one solution, for each of two terms of its own.

    Every walk is truncated, not terminated: its last state goes on being worth what it is worth.
    """
    steps = [0.2, 0.3, 0.5]
    chain = sum(p * torch.eye(CELLS).roll(by, 1) for p, by in zip(steps, (-1, 0, 1), strict=True))
    table = torch.stack((torch.eye(CELLS)[1], torch.linspace(0, 1, CELLS)), 1)
    true = torch.linalg.solve(torch.eye(CELLS) - GAMMA * chain, chain @ table)
    data = walks(steps)
    critic = trained(critic_of(2), data, table)
    found = told(critic)
    assert float((true.amax(0) - true.amin(0)).min()) > 0.5
    assert found.shape == true.shape
    assert float((found - true).abs().max()) < 0.15  # of at most 5, the value of a cost of 1
    assert float((found - true).abs().mean()) < 0.08
    other = trained(critic_of(2), data, table.flip(1))  # each head has a term of its own
    assert float((told(other).flip(1) - true).abs().max()) < 0.15


@pytest.mark.parametrize("trace", [0.0, 1.0])
def test_it_learns_the_future_cost_of_a_loop(trace: float) -> None:
    """Always on: TC(i) = sum_k gamma^(k-1) c(i + k), without noise, so without error."""
    data = walks([0.0, 0.0, 1.0], episodes=10, length=12)
    table = torch.tensor([[0.0], [0.0], [1.0], [0.5], [0.0]])
    once = [
        sum(GAMMA ** (k - 1) * table[(i + k) % CELLS, 0] for k in range(1, 6)) for i in range(5)
    ]
    true = torch.tensor(once) / (1 - GAMMA**CELLS)
    critic = trained(critic_of(), data, table, stage=replace(STAGE, trace=trace))
    found = told(critic)[:, 0]
    assert float((found - true).abs().max()) < 0.01


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_an_end_stands_for_its_cost_ever_after(end: float) -> None:
    """0, 1, 2, 3, over: each step costs 0.2, and the end e for ever."""
    table = torch.full((CELLS, 1), 0.2)
    path = ([0, 1, 2, 3], [2, 2, 2])
    critic = trained(
        critic_of(), data_of([path] * 4, terminated=True), table, end=torch.tensor([end])
    )
    ahead = [0.2 * (1 - GAMMA) + GAMMA * end]
    for _ in range(2):
        ahead.append(0.2 * (1 - GAMMA) + GAMMA * ahead[-1])
    true = torch.tensor(ahead[::-1]) / (1 - GAMMA)
    found = told(critic)[:3, 0]
    assert float((found - true).abs().max()) < 0.05
    # Nearer to the end it is worse where the end is bad, and better where it is good.
    assert bool((found.diff() > 0).all()) == bool(end)


def test_a_truncation_is_no_end() -> None:
    """The same episodes, broken off by the clock: the value of a cost of 0.2 for ever is 1."""
    table = torch.full((CELLS, 1), 0.2)
    data = walks([0.0, 0.0, 1.0], episodes=10, length=3)
    for end in (0.0, 1.0):
        critic = trained(critic_of(), data, table, end=torch.tensor([end]))
        assert float((told(critic) - 1.0).abs().max()) < 0.05


def test_the_model_is_believed_for_predicted_states() -> None:
    """It is fitted to predicted states too: a model that drifts off the data is seen to do so."""
    model = ring().requires_grad_(False)
    model.predictor.moves.mul_(1.5)  # type: ignore[union-attr, operator]
    data, table = walks([0.0, 0.0, 1.0], episodes=10, length=12), torch.eye(CELLS)[:, :1]
    alone, both = (trained(critic_of(), data, table, model=m) for m in (ring(), model))
    true = told(alone)
    for factor in (1.5, 1.5**2, 1.5**3):  # the states that such a model predicts
        off, far = ((told(critic, factor) - true).abs().max() for critic in (both, alone))
        assert float(off) < 0.5 * float(far)


# --- the simple form


def test_later_costs_by_hand() -> None:
    """One episode cut off after three actions, then the same one terminated."""
    path = ([0, 1, 2, 3], [2, 2, 2])
    table = torch.tensor([[0.0], [0.1], [0.2], [0.3], [0.4]])
    for terminated, known in ((False, [1, 1, 0, 0]), (True, [1, 1, 1, 0])):
        data = data_of([path] * 2, terminated=terminated)
        later, there = later_costs(data, costs_of(data, table), torch.tensor([0.9]), 2)
        assert there.tolist() == [bool(x) for x in known * 2]
        expected = [0.2, 0.3, 0.9] if terminated else [0.2, 0.3]
        for row in (0, 4):
            found = later[row : row + 4][there[row : row + 4], 0].tolist()
            assert found == pytest.approx(expected)


@pytest.mark.parametrize("delay", [1, 3])
def test_the_simple_form_learns_the_cost_at_a_later_time(delay: int) -> None:
    """Always on, so IC(s_{t+delay}) is that of the cell `delay` further."""
    data = walks([0.0, 0.0, 1.0], episodes=10, length=12)
    table = torch.stack((torch.tensor([0.0, 0.1, 1.0, 0.5, 0.0]), torch.linspace(0, 1, CELLS)), 1)
    stage = replace(SIMPLE, delay=delay)
    critic = trained(critic_of(2), data, table, stage=stage)
    found = told(critic) * (1 - GAMMA)
    assert float((found - table.roll(-delay, 0)).abs().max()) < 0.06


def test_the_simple_form_of_a_random_step_is_the_mean() -> None:
    steps = [0.2, 0.3, 0.5]
    chain = sum(p * torch.eye(CELLS).roll(by, 1) for p, by in zip(steps, (-1, 0, 1), strict=True))
    table = torch.eye(CELLS)[:, :1]
    critic = trained(critic_of(), walks(steps), table, stage=replace(SIMPLE, delay=2))
    error = (told(critic) * (1 - GAMMA) - chain @ chain @ table).abs()  # of 0.04 to 0.33
    assert float(error.max()) < 0.1
    assert float(error.mean()) < 0.05


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_the_simple_form_knows_the_end(end: float) -> None:
    data = data_of([([0, 1, 2, 3], [2, 2, 2])] * 4, terminated=True)
    critic = trained(
        critic_of(),
        data,
        torch.full((CELLS, 1), 0.2),
        stage=replace(SIMPLE, delay=2),
        end=torch.tensor([end]),
    )
    found = told(critic)[:3, 0] * (1 - GAMMA)
    torch.testing.assert_close(found, torch.tensor([0.2, 0.2, end]), atol=0.05, rtol=0)


def test_a_delay_beyond_every_episode_is_refused() -> None:
    data, stage = data_of([([0, 1], [2])]), replace(TINY, form="simple", delay=3)
    with pytest.raises(ValueError, match=r"stages.critic.delay is 3, but .* has 1 actions"):
        trained(critic_of(), data, torch.eye(CELLS)[:, :1], stage=stage)


# --- an ensemble


def test_one_member_is_called_as_before() -> None:
    """Checkpoints of a critic without members fit; those of more have another shape."""
    names = {
        f"{part}.{i}.{w}" for part in ("layers", "slow") for i in (0, 2) for w in ("weight", "bias")
    }
    assert set(critic_of().state_dict()) == names
    assert not set(critic_of(members=2).state_dict()) & names


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    critic, state = critic_of(2, members=3), torch.randn(4, 7, CELLS, generator=seeded())
    alone = []
    for member in critic.layers:
        one = critic_of(2)
        one.layers.load_state_dict(member.state_dict())
        alone.append(one(state))
    assert not torch.equal(alone[0], alone[1])
    stacked = torch.stack(alone)
    assert critic.averages(state).shape == (3, 4, 7, 2)
    torch.testing.assert_close(critic(state), stacked.mean(0))
    torch.testing.assert_close(critic.average(state), stacked.mean(0) * (1 - GAMMA))
    torch.testing.assert_close(critic.spread(state), stacked.std(0, correction=0))
    assert torch.equal(critic.averages(state, slow=True), critic.averages(state))


def test_the_spread_has_a_gradient_and_is_0_where_members_agree() -> None:
    state = torch.randn(3, CELLS, generator=seeded(), dtype=torch.float64, requires_grad=True)
    critic = critic_of(members=3).double()
    assert torch.autograd.gradcheck(critic.spread, (state,))
    for agreed in (critic_of().double(), critic):
        spread = agreed.spread(1e6 * state if agreed is critic else state)
        (gradient,) = torch.autograd.grad(spread.sum(), state)
        assert bool(gradient.isfinite().all())
    assert critic_of()(state.float()).shape == critic_of().spread(state.float()).shape
    assert not critic_of().spread(state.float()).any()
    broken = state.detach().clone()
    broken[1] = torch.nan
    assert critic.spread(broken).isnan().squeeze(1).tolist() == [False, True, False]


def test_every_member_learns_by_itself() -> None:
    """Always on, a cost in one cell: without noise all members come to the same values."""
    data, table = walks([0.0, 0.0, 1.0], episodes=10, length=12), torch.eye(CELLS)[:, 2:3]
    true = GAMMA ** torch.tensor([1.0, 0.0, 4.0, 3.0, 2.0])[:, None] / (1 - GAMMA**CELLS)
    critic = trained(critic_of(members=3), data, table, stage=replace(STAGE, steps=250))
    with torch.no_grad():
        each = critic.averages(torch.eye(CELLS)) / (1 - GAMMA)
        assert float((each - true).abs().max()) < 0.05
        known = critic.spread(torch.eye(CELLS)).max()
        far = critic.spread(-torch.eye(CELLS)).min()
    assert float(far) > 5 * float(known)  # where nothing was seen they differ


def test_every_member_has_targets_of_its_own() -> None:
    costs, values = torch.rand(4, 5, 2, generator=seeded()), torch.rand(3, 4, 5, 2)
    last = torch.zeros(4, 5, dtype=torch.bool)
    last[1, 2] = last[2, 4] = True
    rest = (torch.ones(2), 0.9, 0.7)
    found = _each_returns(costs, values, last, *rest, last.roll(1, 0))
    for member, own in enumerate(values):
        alone = lambda_returns(costs, own, last, *rest, last.roll(1, 0))
        assert torch.equal(found[member], alone)


def test_a_member_does_not_see_the_episodes_that_are_not_for_it() -> None:
    """Episodes 0 and 2 are not for member 0, episode 1 is not for member 1."""
    paths = [([0, 1], [2]), ([2, 3], [2]), ([0, 1], [2])]
    table = torch.tensor([[0.0], [1.0], [0.0], [0.0], [0.0]])
    stage = replace(SIMPLE, window=1, delay=1)
    brief, critic = replace(stage, steps=30), critic_of(members=2)
    before = critic.averages(torch.eye(CELLS)).detach()
    trained(critic, data_of(paths), table, stage=stage)
    after = critic.averages(torch.eye(CELLS)).detach()
    assert float((after[1, 0] - 1).abs()) < 0.05  # saw what cell 0 leads to
    assert float(after[0, 0]) < 0.6  # did not
    assert float(after[0, 2]) < 0.05
    assert float(after[1, 2]) > float(before[1, 2]) - 0.2
    for members in (1, 2, 5):  # one episode is for all
        alone = trained(critic_of(members=members), data_of(paths[:1]), table, stage=brief)
        moved = alone.averages(torch.eye(CELLS)[:1]) - critic_of(members=members).averages(
            torch.eye(CELLS)[:1]
        )
        assert moved.abs().min() > 0.05


@pytest.mark.parametrize("members", [0, -1])
def test_a_critic_has_members(members: int) -> None:
    with pytest.raises(ValueError, match=f"members is {members}: choose 1 or more"):
        Critic(2, 1, 0.9, members=members)


# --- how it learns


def weights(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


class Watched(JEPA):
    """Writes down the critic's weights whenever the critic asks it to predict."""

    def __init__(self, critic: Critic) -> None:
        super().__init__(Cell(), Turning(), Actions(3, discrete=True))
        self.history: list[tuple[Tensor, Tensor]] = []
        self.watched = [critic]

    def rollout(self, *arguments: Any, **options: Any) -> Tensor:
        (critic,) = self.watched
        self.history.append((weights(critic.layers), weights(critic.slow)))
        return super().rollout(*arguments, **options)


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_the_slow_target_follows_at_its_rate(rate: float) -> None:
    critic, table = critic_of(), torch.eye(CELLS)[:, :1]
    first = weights(critic.layers)
    assert torch.equal(weights(critic.slow), first)
    model = Watched(critic)
    trained(
        critic, walks([0.3, 0.3, 0.4]), table, model=model, stage=replace(TINY, target_rate=rate)
    )
    slow = first
    assert len(model.history) == TINY.steps
    for fast, seen in model.history:
        slow = slow + rate * (fast - slow)
        torch.testing.assert_close(seen, slow)
    moved, behind = (float((w - first).norm()) for w in (weights(critic.layers), slow))
    assert 0 < behind < moved


def test_only_the_critic_learns() -> None:
    critic, model, data = critic_of(2), ring(), walks([0.3, 0.3, 0.4])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given = {field.name: getattr(data, field.name) for field in fields(data)}
    held = {name: value.clone() for name, value in given.items() if value is not None}
    fast, slow = weights(critic.layers), weights(critic.slow)
    trained(critic, data, torch.rand(CELLS, 2, generator=seeded()), model=model, stage=TINY)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())  # as it came
    for name, value in held.items():
        assert torch.equal(getattr(data, name), value)
    assert not torch.equal(weights(critic.layers), fast)
    assert not torch.equal(weights(critic.slow), slow)  # follows, but has no gradient
    assert all(p.grad is None and not p.requires_grad for p in critic.slow.parameters())


def test_twins() -> None:
    data, table = walks([0.3, 0.3, 0.4]), torch.eye(CELLS)[:, :1]
    one, same, other = (
        weights(trained(critic_of(), data, table, stage=TINY, seed=seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


OTHER: dict[str, Any] = {
    "steps": 5,
    "batch": 9,
    "window": 3,
    "trace": 0.1,
    "target_rate": 0.9,
    "learning_rate": 2e-3,
    "form": "simple",
    "delay": 2,
}
ELSEWHERE = {"source"}  # whoever hands over the experience reads it


def test_every_option_is_tried_below() -> None:
    assert set(OTHER) | ELSEWHERE == {field.name for field in fields(CriticStage)}


@pytest.mark.parametrize("name", OTHER)
def test_every_option_changes_behaviour(name: str) -> None:
    data, table = walks([0.3, 0.3, 0.4]), torch.eye(CELLS)[:, :1]
    base = replace(TINY, form="simple") if name == "delay" else TINY
    one, other = (
        weights(trained(critic_of(), data, table, stage=stage).layers)
        for stage in (base, replace(base, **{name: OTHER[name]}))
    )
    assert not torch.equal(one, other)


@pytest.mark.parametrize("window", [1, 4, 99])
def test_windows_shrink_to_the_longest_episode(window: int) -> None:
    """Short episodes among longer ones, and a window of one step, which predicts nothing."""
    data = data_of([([0, 1], [2]), ([2, 3, 4, 0], [2, 2, 2])])
    terms: list[set[str]] = []
    trained(
        critic_of(),
        data,
        torch.eye(CELLS)[:, :1],
        stage=replace(TINY, window=window),
        on_step=lambda _, values: terms.append(set(values)),
    )
    assert "encoded" in terms[-1]
    assert ("imagined" in terms[-1]) == (window > 1)


def test_no_steps_leave_everything_as_it_is() -> None:
    critic = critic_of()
    before = weights(critic)
    trained(critic, walks([0.3, 0.3, 0.4]), torch.eye(CELLS)[:, :1], stage=replace(TINY, steps=0))
    assert torch.equal(weights(critic), before)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": -1}, "stages.critic.steps is -1: choose 0 or more"),
        ({"batch": 0}, "stages.critic.batch is 0: choose 1 or more"),
        ({"window": 0}, "stages.critic.window is 0: choose 1 or more"),
        ({"trace": 1.1}, r"stages.critic.trace is 1.1: choose it in \[0, 1\]"),
        ({"trace": float("nan")}, "stages.critic.trace is nan"),
        ({"target_rate": 0.0}, r"stages.critic.target_rate is 0.0: choose it in \(0, 1\]"),
        ({"target_rate": float("nan")}, "stages.critic.target_rate is nan"),
        ({"learning_rate": 0.0}, "stages.critic.learning_rate is 0.0: choose it above 0, finite"),
        ({"learning_rate": float("inf")}, "stages.critic.learning_rate is inf"),
        ({"form": "plain"}, r"stages.critic.form is 'plain': choose one of \('td', 'simple'\)"),
        ({"delay": 0}, "stages.critic.delay is 0: choose 1 or more"),
        ({"source": "disk"}, r"stages.critic.source is 'disk': choose one of \('episodes', 'memo"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CriticStage(**wrong)
