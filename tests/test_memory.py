"""The associative memory: numbers by hand, properties of its equations, derivatives, bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from forethought.worldmodel.memory import Entries, Memory, MemoryConfig

FLOAT = torch.float64
B, K, D, V = 2, 4, 3, 2
SMALL = MemoryConfig(slots=K, beta=0.7, gamma=0.3, threshold=0.4)
TENSORS = [field.name for field in fields(Memory) if field.name != "config"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=FLOAT)


def entry(
    keys: Any, values: Any, times: Any = 0, *, labels: Any = None, valid: Any = True
) -> Entries:
    """One entry for each row; numbers that stand alone are for all rows."""
    keys, values = torch.as_tensor(keys, dtype=FLOAT), torch.as_tensor(values, dtype=FLOAT)
    batch = len(keys)
    whole = torch.zeros(batch, 0, dtype=torch.int64) if labels is None else torch.as_tensor(labels)
    times, valid = torch.as_tensor(times), torch.as_tensor(valid)
    return Entries(keys, values, times.expand(batch), whole, valid.expand(batch))


def empty(config: MemoryConfig = SMALL, labels: int = 0, batch: int = B) -> Memory:
    return Memory.empty(config, torch.zeros(batch, D, dtype=FLOAT), V, labels)


def filled(config: MemoryConfig = SMALL, seed: int = 0) -> Memory:
    """Slots with random contents; the last slot of row 0 is free."""
    used = torch.ones(B, K, dtype=torch.bool)
    used[0, -1] = False
    return replace(
        empty(config),
        keys=normal(B, K, D, seed=seed) * used.unsqueeze(-1),
        values=normal(B, K, V, seed=seed + 1) * used.unsqueeze(-1),
        times=torch.tensor([[3, 1, 2, 0], [7, 4, 6, 5]]),
        used=used,
    )


def line(keys: list[float], values: list[float], **options: Any) -> Memory:
    """One row with keys on a line and one number in each slot."""
    config = MemoryConfig(**{"slots": len(keys), "beta": math.log(2), "gamma": 0.25} | options)
    memory = Memory.empty(config, torch.zeros(1, 1, dtype=FLOAT), 1)
    for time, (key, value) in enumerate(zip(keys, values, strict=True)):
        memory = memory.allocate(entry([[key]], [[value]], time))
    return memory


def same(one: Memory, other: Memory, rows: Any = slice(None)) -> bool:
    return all(torch.equal(getattr(one, n)[rows], getattr(other, n)[rows]) for n in TENSORS)


# --- numbers


def test_two_slots_on_paper() -> None:
    memory = line([0.0, 1.0], [10.0, 20.0])
    # With beta = ln 2 a match is 2^-distance^2; gamma is 1/4.
    #   q = 0:   1,  1/2, of  7/4:   c = 4/7,  2/7
    #   q = 2: 1/16, 1/2, of 13/16:  c = 1/13, 8/13
    values, coverage = memory.read(torch.tensor([[[0.0], [2.0]]], dtype=FLOAT))
    assert values.flatten().tolist() == pytest.approx([80 / 7, 170 / 13])
    assert coverage.flatten().tolist() == pytest.approx([6 / 7, 9 / 13])
    written = memory.write(entry([[0.0]], [[100.0]], 9))
    # 4/7 100 + 3/7 10, 2/7 100 + 5/7 20: the first slot is rewritten by more than half.
    assert written.values.flatten().tolist() == pytest.approx([430 / 7, 300 / 7])
    assert written.times.tolist() == [[9, 1]]
    assert torch.equal(written.keys, memory.keys)
    # Covered by 6/7, which is above 1/2, so an update writes; at 4 it is 2^-16, 2^-9: a new slot,
    # and the first one is the oldest.
    assert same(memory.update(entry([[0.0]], [[100.0]], 9)), written)
    moved = memory.update(entry([[4.0]], [[100.0]], 9))
    assert moved.keys.flatten().tolist() == [4.0, 1.0]
    assert moved.values.flatten().tolist() == [100.0, 20.0]
    assert moved.times.tolist() == [[9, 1]]


def test_the_equations_by_plain_loops() -> None:
    memory, queries = filled(), normal(B, 5, D, seed=9)
    values, coverages = memory.read(queries)
    for b in range(B):
        for q, query in enumerate(queries[b].tolist()):
            matches = []
            for j in range(K):
                distance = sum((k - x) ** 2 for k, x in zip(memory.keys[b, j], query, strict=True))
                matches.append(math.exp(-0.7 * distance) if memory.used[b, j] else 0.0)
            shares = [match / (0.3 + sum(matches)) for match in matches]
            assert memory.match(queries)[b, q].tolist() == pytest.approx(shares, rel=1e-12)
            assert float(coverages[b, q]) == pytest.approx(sum(shares))
            for v in range(V):
                total = sum(c * float(memory.values[b, j, v]) for j, c in enumerate(shares))
                assert float(values[b, q, v]) == pytest.approx(total)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (0,)])
def test_queries_may_have_any_axes(shape: tuple[int, ...]) -> None:
    memory, queries = filled(), normal(B, *shape, D)
    values, coverage = memory.read(queries)
    assert values.shape == (B, *shape, V)
    assert coverage.shape == (B, *shape)
    flat = memory.read(queries.reshape(B, math.prod(shape), D))
    torch.testing.assert_close(values.reshape(flat[0].shape), flat[0])
    torch.testing.assert_close(coverage.reshape(flat[1].shape), flat[1])
    entries, distance = memory.nearest(queries, 2)
    assert distance.shape == entries.valid.shape == (B, *shape, 2)
    assert entries.keys.shape == (B, *shape, 2, D)


def test_a_new_memory_knows_nothing() -> None:
    values, coverage = empty().read(normal(B, 5, D))
    assert not values.any()
    assert not coverage.any()
    entries, distance = empty().nearest(normal(B, 5, D))
    assert not entries.valid.any()
    assert distance.isinf().all()
    assert not empty().at_time(torch.tensor([[0, 3], [1, 2]])).valid.any()
    assert same(empty().write(entry(normal(B, D), normal(B, V), 3)), empty())


# --- properties of the equations


def test_between_two_keys_a_read_interpolates() -> None:
    memory = line([-1.0, 1.0], [0.0, 1.0], beta=1.3)
    x = torch.linspace(-1, 1, 41, dtype=FLOAT).reshape(1, -1, 1)
    values, coverage = memory.read(x)
    mean = values.squeeze(-1) / coverage
    torch.testing.assert_close(mean + mean.flip(1), torch.ones_like(mean))
    torch.testing.assert_close(coverage, coverage.flip(1))
    assert (mean.diff() > 0).all()
    assert 0 < float(mean.min()) < 0.01
    assert 0.99 < float(mean.max()) < 1
    assert float(mean[0, 20]) == pytest.approx(0.5)


def test_shares_are_bounded() -> None:
    memory, queries = filled(), 3 * normal(B, 200, D, seed=5)
    shares = memory.match(queries)
    assert (shares >= 0).all()
    assert (shares.sum(-1) < 1).all()
    torch.testing.assert_close(shares.sum(-1), memory.read(queries)[1])
    values, coverage = memory.read(queries)
    means = values / coverage.unsqueeze(-1)
    low = memory.values.where(memory.used.unsqueeze(-1), torch.inf).amin(1, keepdim=True)
    high = memory.values.where(memory.used.unsqueeze(-1), -torch.inf).amax(1, keepdim=True)
    assert ((low - 1e-12 <= means) & (means <= high + 1e-12)).all()


def test_one_write_is_enough() -> None:
    """Read where it was allocated: (r + sum_j e^{m_j} v_j) / (1 + gamma + sum_j e^{m_j})."""
    before, query, value = filled().select(torch.tensor([0])), normal(1, D), normal(1, V, seed=3)
    read, coverage = before.allocate(entry(query, value, 9)).read(query)
    matches = (-0.7 * (before.keys - query).square().sum(-1)).exp() * before.used
    others = (matches.unsqueeze(-1) * before.values).sum(1)
    torch.testing.assert_close(read, (value + others) / (1.3 + matches.sum()))
    torch.testing.assert_close(coverage, (1 + matches.sum(1)) / (1.3 + matches.sum(1)))
    alone = empty(batch=1).allocate(entry(query, value)).read(query)
    torch.testing.assert_close(alone[0], value / 1.3)
    assert float(alone[1]) == pytest.approx(1 / 1.3)
    torch.testing.assert_close(alone[0] / alone[1], value)
    errors = []
    for sharp in (1.0, 1e2, 1e4):
        config = replace(SMALL, beta=sharp, gamma=0.3 / sharp)
        there = replace(before, config=config).allocate(entry(query, value, 9))
        errors.append(float((there.read(query)[0] - value).norm()))
    assert errors[0] > errors[1] > errors[2]
    assert errors[-1] < 1e-4


def test_writing_again_and_again_converges_to_what_is_written() -> None:
    memory, value = empty(), normal(B, V, seed=3)
    memory = memory.update(entry(normal(B, D), normal(B, V)))
    for _ in range(40):
        memory = memory.update(entry(normal(B, D), value))
    assert memory.used.sum(1).tolist() == [1, 1]
    torch.testing.assert_close(memory.values[:, 0], value)


def test_the_order_of_slots_changes_nothing() -> None:
    memory, order = filled(), torch.tensor([2, 0, 3, 1])
    shuffled = replace(memory, **{name: getattr(memory, name)[:, order] for name in TENSORS})
    queries, new = normal(B, 7, D, seed=4), entry(normal(B, D, seed=5), normal(B, V, seed=6), 8)
    torch.testing.assert_close(shuffled.match(queries), memory.match(queries)[..., order])
    for one, other in zip(memory.read(queries), shuffled.read(queries), strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(
        memory.write(new).read(queries), shuffled.write(new).read(queries), strict=True
    ):
        torch.testing.assert_close(one, other)
    for one, other in zip(
        memory.allocate(new).read(queries), shuffled.allocate(new).read(queries), strict=True
    ):
        torch.testing.assert_close(one, other)  # the same slot is the oldest, or free
    torch.testing.assert_close(shuffled.nearest(queries, 3)[1], memory.nearest(queries, 3)[1])
    times = torch.tensor([[1, 2], [5, 9]])
    torch.testing.assert_close(shuffled.at_time(times).keys, memory.at_time(times).keys)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [1e2, 1e6, 1e18, 1e30, 1e38])
def test_far_away_nothing_is_known_and_nothing_breaks(far: float, dtype: torch.dtype) -> None:
    memory = filled()
    memory = replace(memory, keys=10 * memory.keys.to(dtype), values=memory.values.to(dtype))
    query = torch.full((B, 1, D), far, dtype=dtype, requires_grad=True)
    values, coverage = memory.read(query)
    assert not values.any()
    assert not coverage.any()
    (gradient,) = torch.autograd.grad(values.sum() + coverage.sum(), query)
    assert not gradient.any()  # zero, and a number


def test_a_coverage_too_small_to_write_down_is_zero_with_finite_gradient() -> None:
    memory = line([0.0], [1.0], beta=1.0)
    query = torch.linspace(0, 60, 241, dtype=FLOAT).reshape(1, -1, 1).requires_grad_()
    values, coverage = memory.read(query)
    (gradient,) = torch.autograd.grad(values.sum(), query)
    assert gradient.isfinite().all()
    assert (coverage.diff() <= 0).all()
    assert float(coverage[0, -1].detach()) == 0


# --- derivatives


def contents(memory: Memory) -> list[Tensor]:
    return [memory.keys.clone().requires_grad_(), memory.values.clone().requires_grad_()]


def reading(query: Tensor, keys: Tensor, values: Tensor) -> Any:
    return replace(filled(), keys=keys, values=values).read(query)


def near(memory: Memory, scale: float = 0.1) -> Tensor:
    return (memory.keys[:, 0] + scale * normal(B, D, seed=8)).requires_grad_()


def test_derivatives_of_reads() -> None:
    query = normal(B, 3, D, seed=8).requires_grad_()
    assert torch.autograd.gradcheck(reading, (query, *contents(filled())))
    assert torch.autograd.gradgradcheck(reading, (query, *contents(filled())))


@pytest.mark.parametrize("verb", ["write", "allocate", "update"])
@pytest.mark.parametrize("scale", [0.1, 5.0])
def test_derivatives_of_writes(verb: str, scale: float) -> None:
    """In the key and value written and in what was there; an update writes near and allocates."""
    probe = normal(B, 3, D, seed=7)

    def written(query: Tensor, value: Tensor, keys: Tensor, values: Tensor) -> Any:
        memory = replace(filled(), keys=keys, values=values)
        memory = getattr(memory, verb)(entry(query, value, 9))
        return (*memory.read(probe), memory.values, memory.keys)

    query, value = near(filled(), scale), normal(B, V, seed=6).requires_grad_()
    assert torch.autograd.gradcheck(written, (query, value, *contents(filled())))


def test_derivatives_through_a_history() -> None:
    """What was written long ago is reached through all that came after it."""
    keys, values = normal(B, 6, D, seed=3), normal(B, 6, V, seed=4)
    probe = normal(B, 2, D, seed=5)

    def last(keys: Tensor, values: Tensor) -> Any:
        memory = empty()
        for time, (key, value) in enumerate(zip(keys.unbind(1), values.unbind(1), strict=True)):
            memory = memory.update(entry(key, value, time))
        return memory.read(probe)

    keys.requires_grad_()
    values.requires_grad_()
    assert torch.autograd.gradcheck(last, (keys, values))


def test_derivatives_of_the_distance_to_what_is_near() -> None:
    def distance(query: Tensor, keys: Tensor) -> Tensor:
        return replace(filled(), keys=keys).nearest(query, 3)[1]

    query = normal(B, 2, D, seed=8).requires_grad_()
    assert torch.autograd.gradcheck(distance, (query, contents(filled())[0]))
    here = filled().keys[:, :1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(filled().nearest(here)[1].sum(), here)
    assert not gradient.any()  # at a key: a number, and zero


def test_descent_on_a_query_finds_the_lower_value() -> None:
    memory, query = line([-1.0, 1.0], [1.0, 0.0]), torch.tensor([[-0.5]], dtype=FLOAT)
    for _ in range(200):
        query.requires_grad_()
        values, coverage = memory.read(query)
        (gradient,) = torch.autograd.grad((values.squeeze(-1) / coverage).sum(), query)
        query = (query - 0.1 * gradient).detach()
    assert float(query) > 1


# --- rows


VERBS: dict[str, Callable[[Memory, Entries], Any]] = {
    "read": lambda memory, new: memory.read(new.keys),
    "write": lambda memory, new: memory.write(new).values,
    "allocate": lambda memory, new: memory.allocate(new).values,
    "update": lambda memory, new: memory.update(new).values,
    "nearest": lambda memory, new: memory.nearest(new.keys, 2)[1],
    "at_time": lambda memory, new: memory.at_time(new.times).values,
}


@pytest.mark.parametrize("name", VERBS)
def test_rows_do_not_leak(name: str) -> None:
    """Neither numbers nor gradient, and not-a-number in one row stays there."""
    memory, new = filled(), entry(normal(B, D, seed=4), normal(B, V, seed=5), 3)
    together, alone = VERBS[name](memory, new), []
    for row in (torch.tensor([0]), torch.tensor([1])):
        part = Entries(*(getattr(new, field.name)[row] for field in fields(Entries)))
        alone.append(VERBS[name](memory.select(row), part))
    if name == "read":
        together, alone = together[0], [value for value, _ in alone]
    torch.testing.assert_close(together, torch.cat(alone))

    keys, values = contents(memory)
    query = new.keys.clone().requires_grad_()
    given = replace(new, keys=query, values=new.values.clone().requires_grad_())
    out = VERBS[name](replace(memory, keys=keys, values=values), given)
    first = (out[0] if isinstance(out, tuple) else out)[0].sum()
    inputs = (query, given.values, keys, values)
    for gradient in torch.autograd.grad(first, inputs, allow_unused=True):
        assert gradient is None or not gradient[1].any()

    broken = replace(new, keys=new.keys.clone(), values=new.values.clone())
    broken.keys[1], broken.values[1] = torch.nan, torch.inf
    out = VERBS[name](memory, broken)
    torch.testing.assert_close((out[0] if isinstance(out, tuple) else out)[0], together[0])


def test_each_row_writes_or_allocates_for_itself() -> None:
    memory = empty().allocate(entry(torch.zeros(B, D), torch.ones(B, V), 0))
    keys = torch.zeros(B, D)
    keys[1] = 3.0
    memory = memory.update(entry(keys, torch.full((B, V), 5.0), [7, 8]))
    assert memory.used.sum(1).tolist() == [1, 2]
    assert memory.times.tolist() == [[7, 0, 0, 0], [0, 8, 0, 0]]
    assert memory.keys[1, :2, 0].tolist() == [0.0, 3.0]
    assert memory.values[1, :2, 0].tolist() == [pytest.approx(1.0, abs=0.02), 5.0]
    skipped = memory.update(entry(torch.full((B, D), -9.0), torch.ones(B, V), 9, valid=[False] * B))
    assert same(skipped, memory)


def test_select_and_forget() -> None:
    memory = filled()
    one = memory.select(torch.tensor([1, 0, 1]))
    for name in TENSORS:
        assert torch.equal(getattr(one, name), getattr(memory, name)[[1, 0, 1]])
    gone = memory.forget(torch.tensor([[False], [True]]))
    assert same(gone, memory, 0)
    assert same(gone, empty(), 1)
    which = torch.zeros(B, K, dtype=torch.bool)
    which[0, 1] = True
    kept = memory.forget(which)
    assert kept.used.tolist() == [[True, False, True, False], [True] * 4]
    assert same(kept, memory, 1)
    assert same(kept.allocate(entry(memory.keys[:, 1], memory.values[:, 1], 1)), memory, 0)
    keys, values = contents(memory)
    kept = replace(memory, keys=keys, values=values).forget(which)
    (gradient,) = torch.autograd.grad(kept.values.sum(), values)
    assert gradient[0, :, 0].tolist() == [1.0, 0.0, 1.0, 1.0]


# --- bounds


def test_it_never_grows_and_the_oldest_goes() -> None:
    memory = empty()
    for time in range(3 * K):
        spot = torch.full((B, D), 10.0 * time)
        memory = memory.update(entry(spot, torch.full((B, V), float(time)), time))
        assert memory.keys.shape == (B, K, D)
        kept = range(max(0, time + 1 - K), time + 1)
        assert memory.used.sum(1).tolist() == [len(kept)] * B
        assert sorted(memory.times[memory.used].tolist()) == sorted([*kept, *kept])
    assert torch.equal(memory.values[..., 0], memory.times.to(FLOAT))


def test_the_oldest_is_told_by_time_not_by_order() -> None:
    memory = line([0.0, 10.0, 20.0], [0.0, 1.0, 2.0])
    memory = replace(memory, times=torch.tensor([[5, -2, 3]]))
    assert memory.allocate(entry([[30.0]], [[3.0]], 6)).keys.flatten().tolist() == [0, 30, 20]
    memory = replace(memory, times=torch.tensor([[5, 5, 5]]))
    assert memory.allocate(entry([[30.0]], [[3.0]], 6)).keys.flatten().tolist() == [30, 10, 20]
    rewritten = memory.update(entry([[0.0]], [[9.0]], 6)).allocate(entry([[30.0]], [[3.0]], 7))
    assert rewritten.keys.flatten().tolist() == [0, 30, 20]  # what was rewritten is young again


def test_only_what_may_be_replaced_is() -> None:
    memory, new = filled(), entry(normal(B, D, seed=4), normal(B, V, seed=5), 9)
    none = torch.zeros(B, K, dtype=torch.bool)
    kept = memory.allocate(new, replaceable=none)
    assert kept.times.tolist() == [[3, 1, 2, 9], [7, 4, 6, 5]]  # row 0 had a free slot
    assert same(kept, memory, 1)
    some = none.clone()
    some[1, 0] = some[1, 2] = True
    assert memory.allocate(new, replaceable=some).times[1].tolist() == [7, 4, 9, 5]
    assert same(memory.update(new, replaceable=some), memory.allocate(new, replaceable=some))


def test_slots_that_do_not_count_are_neither_read_nor_written() -> None:
    memory, queries = filled(), normal(B, 5, D, seed=4)
    among = torch.tensor([[True, False, True, True], [False, False, True, False]])
    new = entry(queries[:, 0], normal(B, V, seed=5), 9)
    fewer = memory.forget(~among)
    for one, other in zip(memory.read(queries, among), fewer.read(queries), strict=True):
        torch.testing.assert_close(one, other)
    written = memory.write(new, among)
    torch.testing.assert_close(written.values[among], fewer.write(new).values[among])
    assert torch.equal(written.values[~among], memory.values[~among])
    entries, distance = memory.nearest(queries, K, among)
    assert entries.valid.sum(-1).tolist() == [[2] * 5, [1] * 5]
    for part in (entries.keys, entries.values, entries.times):
        assert part[entries.valid].all()
        assert not part[~entries.valid].any()
    torch.testing.assert_close(distance, fewer.nearest(queries, K)[1])


@pytest.mark.parametrize("broken", ["keys", "values"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("verb", ["write", "allocate", "update"])
def test_not_a_number_never_gets_in(verb: str, number: float, broken: str) -> None:
    memory, keys, values = filled(), normal(B, D, seed=4), normal(B, V, seed=5)
    (keys if broken == "keys" else values)[1, 0] = number
    keys.requires_grad_()
    values.requires_grad_()
    written = getattr(memory, verb)(entry(keys, values, 9))
    assert same(written, memory, 1)
    assert not same(written, memory, 0)
    total = sum(x.sum() for x in written.read(normal(B, 3, D)))
    assert isinstance(total, Tensor)
    for gradient in torch.autograd.grad(total, (keys, values)):
        assert gradient.isfinite().all()
        assert not gradient[1].any()


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("memory", [empty(), filled()], ids=["empty", "filled"])
def test_what_is_asked_with_not_a_number_reads_so(memory: Memory, number: float) -> None:
    queries = normal(B, 3, D)
    queries[0, 1, 2] = number
    values, coverage = memory.read(queries)
    assert values[0, 1].isnan().all()
    assert coverage[0, 1].isnan()
    fine = torch.ones(B, 3, dtype=torch.bool)
    fine[0, 1] = False
    assert values[fine].isfinite().all()
    assert coverage[fine].isfinite().all()
    assert not memory.nearest(queries)[1][0, 1].isfinite().any()


# --- looking up


def test_times_and_labels_follow_the_larger_part() -> None:
    config = MemoryConfig(slots=2, beta=math.log(2), gamma=0.25)
    memory = Memory.empty(config, torch.zeros(1, 1, dtype=FLOAT), 1, labels=2)
    memory = memory.allocate(entry([[0.0]], [[1.0]], 1, labels=[[3, 4]]))
    memory = memory.allocate(entry([[1.0]], [[2.0]], 2, labels=[[5, 6]]))
    middle = memory.write(entry([[0.5]], [[9.0]], 7, labels=[[8, 8]]))  # both by 0.44
    assert middle.times.tolist() == [[1, 2]]
    assert middle.labels.tolist() == [[[3, 4], [5, 6]]]
    assert (middle.values != memory.values).all()
    ahead = memory.write(entry([[1.0]], [[9.0]], 7, labels=[[8, 8]]))  # 2/7 and 4/7
    assert ahead.times.tolist() == [[1, 7]]
    assert ahead.labels.tolist() == [[[3, 4], [8, 8]]]


def test_the_nearest_keys() -> None:
    memory, queries = filled(), normal(B, 5, D, seed=4)
    entries, distance = memory.nearest(queries, 2)
    for b in range(B):
        for q in range(5):
            every = [
                (float((memory.keys[b, j] - queries[b, q]).square().sum()), j)
                for j in range(K)
                if memory.used[b, j]
            ]
            best = sorted(every)[:2]
            assert distance[b, q].tolist() == pytest.approx([d for d, _ in best])
            for place, (_, j) in enumerate(best):
                assert torch.equal(entries.keys[b, q, place], memory.keys[b, j])
                assert torch.equal(entries.values[b, q, place], memory.values[b, j])
                assert entries.times[b, q, place] == memory.times[b, j]
    entries, distance = memory.nearest(torch.full((B, D), 1e200, dtype=FLOAT), K)
    assert entries.valid.sum(1).tolist() == [3, 4]  # also where distances overflow
    assert not entries.keys[0, -1].any()
    assert not entries.values[0, -1].any()


def test_looking_up_by_time() -> None:
    memory = filled()  # times 3, 1, 2 and a free slot; 7, 4, 6, 5
    found = memory.at_time(torch.tensor([[0, 1, 2, 9], [0, 5, 6, 9]]))
    assert found.times.tolist() == [[1, 1, 2, 3], [4, 5, 6, 7]]
    assert found.valid.all()
    assert torch.equal(found.keys[0], memory.keys[0, [1, 1, 2, 0]])
    assert torch.equal(found.values[1], memory.values[1, [1, 3, 2, 0]])
    among = torch.tensor([[True, True, False, True], [True, True, False, False]])
    between = memory.at_time(torch.tensor([2, 5]), among)  # of 1 and 3 the earlier one
    assert between.times.tolist() == [1, 4]
    later = memory.at_time(torch.tensor([2, 6]), among)
    assert later.times.tolist() == [1, 7]
    values = contents(memory)[1]
    state = replace(memory, values=values).at_time(torch.tensor([2, 6])).values
    (gradient,) = torch.autograd.grad(state.sum(), values)
    assert gradient.sum(-1).nonzero().tolist() == [[0, 2], [1, 2]]


# --- a memory is a value


def history(config: MemoryConfig = SMALL) -> Memory:
    memory = empty(config)
    for time in range(8):
        new = entry(normal(B, D, seed=time), normal(B, V, seed=20 + time), time)
        memory = memory.update(new)
    return memory


def test_twins() -> None:
    assert same(history(), history())
    for one, other in zip(
        history().read(normal(B, 5, D)), history().read(normal(B, 5, D)), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", VERBS)
def test_nothing_is_changed_in_place(name: str) -> None:
    memory, new = filled(), entry(normal(B, D, seed=4), normal(B, V, seed=5), 3)
    before = {name: getattr(memory, name).clone() for name in TENSORS}
    given = [getattr(new, field.name).clone() for field in fields(Entries)]
    VERBS[name](memory, new)
    for key, tensor in before.items():
        assert torch.equal(getattr(memory, key), tensor)
    for field, tensor in zip(fields(Entries), given, strict=True):
        assert torch.equal(getattr(new, field.name), tensor)


OTHER: dict[str, Any] = {"slots": 3, "beta": 2.0, "gamma": 0.05, "threshold": 0.05}


def test_every_option_is_tried_below() -> None:
    assert set(OTHER) == {field.name for field in fields(MemoryConfig)}


@pytest.mark.parametrize("name", OTHER)
def test_every_option_changes_behaviour(name: str) -> None:
    other = history(replace(SMALL, **{name: OTHER[name]}))
    queries = normal(B, 5, D, seed=30)
    assert not torch.allclose(history().read(queries)[0], other.read(queries)[0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"slots": 0}, "memory.slots is 0: choose 1 or more"),
        ({"beta": 0.0}, "memory.beta is 0.0: choose it above 0, finite"),
        ({"beta": math.inf}, "memory.beta is inf"),
        ({"gamma": 0.0}, "memory.gamma is 0.0: choose it above 0, finite"),
        ({"gamma": math.nan}, "memory.gamma is nan"),
        ({"threshold": 0.0}, "memory.threshold is 0.0: choose it above 0"),
        ({"threshold": 0.5, "gamma": 1.0}, "memory.threshold is 0.5.* = 0.5, by which a key"),
        ({"threshold": math.nan}, "memory.threshold is nan"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MemoryConfig(**wrong)


def test_wrong_shapes_and_types_are_refused() -> None:
    memory, good = filled(), entry(normal(B, D), normal(B, V))
    # A single row would broadcast, and mix rows.
    for wrong in (normal(1, D), normal(B, D + 1), normal(B)):
        with pytest.raises(ValueError, match=r"query is \(.*\): give \(B, ..., D\) with B"):
            memory.read(wrong)
    for change, message in (
        ({"keys": normal(1, D)}, r"keys of the entries are torch.float64 \(1, 3\): give one"),
        ({"values": normal(B, V).float()}, "values of the entries are torch.float32"),
        ({"times": torch.zeros(B)}, "times of the entries are torch.float32"),
        ({"labels": torch.zeros(B, 1, dtype=torch.int64)}, r"labels .* torch.int64 \(2, 0\)"),
        ({"valid": torch.ones(B)}, r"valid .*torch.bool \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            memory.write(replace(good, **change))
    for count in (0, K + 1):
        with pytest.raises(ValueError, match=f"count is {count}: choose 1 to 4"):
            memory.nearest(good.keys, count)


def test_it_is_as_exact_far_from_the_origin_and_under_autocast() -> None:
    """Squared distances are multiplied out, which must not cost the digits that matter."""
    config = replace(SMALL, beta=4.0)
    memory, queries = filled(config), normal(B, 6, D, seed=4)
    wanted = memory.read(queries)[0].float()
    keys = (memory.keys + 50) * memory.used.unsqueeze(-1)
    shifted = replace(memory, keys=keys.float(), values=memory.values.float())
    there = (queries + 50).float()
    torch.testing.assert_close(shifted.read(there)[0], wanted, rtol=1e-3, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        shares = shifted.match(there)
    torch.testing.assert_close(shares, shifted.match(there))
