"""Short-term memory: a bounded associative store, differentiable (LeCun 2022, section 4.9).

A query reads the values of the keys near it (eqs 15 to 17), a write blends into them (eqs 18 to
20), and what is far from all keys gets a slot of its own:

    m_j = -beta |k_j - q|^2      c_j = exp(m_j) / (gamma + sum_k exp(m_k))
    read    sum_j c_j v_j        coverage    sum_j c_j, in [0, 1)
    write   v_j <- c_j r + (1 - c_j) v_j

Unusual here: a memory is a value. Nothing is changed in place; what writes returns another memory,
through which gradient flows to everything in it. Nothing is random, rows of the batch never meet.

Times and labels are never blended. Labels are whole numbers that only the caller understands: a
flag, a version, an index. Both follow the larger part: a write replaces them in the one slot that
it rewrites by more than half (c_j > 1/2), if there is one.

Axes: `B` rows, `K` slots, `D` key, `V` value, `G` labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class MemoryConfig:
    """How a memory is addressed, and how large it is.

    A query that hits the only key is covered by 1 / (1 + gamma), one at beta |k - q|^2 =
    ln(1 / gamma) by half. By default that is at |k - q|^2 = 0.58: consecutive states of a trained
    world model (cartpole, 32 dimensions, each of variance 1) lie 0.66 apart, states at random 37.

    Args:
        slots: number of slots K.
        beta: sharpness of the match, per squared unit of the keys, summed over D.
        gamma: weight of knowing nothing, against which all matches compete.
        threshold: coverage from which on an update rewrites; below, it takes a slot of its own.
    """

    slots: int = 256
    beta: float = 4.0
    gamma: float = 0.1
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"memory.slots is {self.slots}: choose 1 or more")
        for name in ("beta", "gamma"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"memory.{name} is {value}: choose it above 0, finite")
        if not 0 < self.threshold < 1 / (1 + self.gamma):
            raise ValueError(
                f"memory.threshold is {self.threshold}: choose it above 0 and below 1 / (1 + gamma)"
                f" = {1 / (1 + self.gamma):.4g}, by which a key covers itself"
            )


@dataclass(frozen=True, eq=False)
class Entries:
    """What goes into slots, one for each row `(B,)`, and what comes out of them, any `(B, ...)`.

    Args:
        keys: `(B, ..., D)`.
        values: `(B, ..., V)`.
        times: `(B, ...)` int64, in steps of the caller's choice.
        labels: `(B, ..., G)` int64.
        valid: `(B, ...)` bool: whether to write it, or whether it was found; if not, zeros.
    """

    keys: Tensor
    values: Tensor
    times: Tensor
    labels: Tensor
    valid: Tensor


@dataclass(frozen=True, eq=False)
class Memory:
    """B memories side by side; `Memory.empty` makes them.

    Args:
        config: how they are addressed.
        keys: `(B, K, D)`.
        values: `(B, K, V)`.
        times: when a slot was allocated, or last rewritten by more than half, `(B, K)` int64.
        labels: `(B, K, G)` int64.
        used: `(B, K)` bool; a slot that is not used holds zeros and counts nowhere.
    """

    config: MemoryConfig
    keys: Tensor
    values: Tensor
    times: Tensor
    labels: Tensor
    used: Tensor

    @staticmethod
    def empty(config: MemoryConfig, like: Tensor, value_dim: int, labels: int = 0) -> Memory:
        """B memories that hold nothing.

        Args:
            config: how they are addressed.
            like: keys `(B, D)`, of which batch, size, type and device are taken.
            value_dim: size V of a value.
            labels: number G of labels.
        """
        shape = (len(like), config.slots)
        keys, values = (like.new_zeros(*shape, size) for size in (like.shape[1], value_dim))
        times = torch.zeros(shape, device=like.device, dtype=torch.int64)
        return Memory(config, keys, values, times, times.new_zeros(*shape, labels), times.bool())

    def match(self, query: Tensor, among: Tensor | None = None) -> Tensor:
        """How much of each slot a query gets: c_j of eqs 16 and 17.

        Args:
            query: `(B, ..., D)`. One that is not finite gets not-a-number, whatever is stored.
            among: slots that count, `(B, K)` bool; None: all that are used.

        Returns:
            Coefficients `(B, ..., K)`, none below 0; their sum is below 1.
        """
        logits = -self.config.beta * self._squared_distances(query, self._counted(among))
        # gamma is one more slot, with the logit ln gamma: then a query far from everything gets 0
        # with the gradient 0, not 0 / 0. Zero times a finite number is 0, times another is NaN.
        nothing = math.log(self.config.gamma) + (0 * query).sum(-1, keepdim=True)
        return torch.cat((logits, nothing), dim=-1).softmax(-1)[..., :-1]

    def read(self, query: Tensor, among: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mem(q) = sum_j c_j v_j (eq. 15), and how much is known there.

        A read where r was just allocated is (r + sum_j e^{m_j} v_j) / (1 + gamma + sum_j e^{m_j}),
        j over the other slots: r / (1 + gamma) if they are far, r as beta grows and gamma falls.
        Divided by its coverage a read is the mean of what is near, without the pull towards 0.

        Args:
            query: `(B, ..., D)`.
            among: see `match`.

        Returns:
            Values `(B, ..., V)` and coverages `(B, ...)`. Far from all keys both are 0, which is an
            estimate of nothing: look at the coverage.
        """
        shares = self.match(query, among)
        return torch.einsum("b...k,bkv->b...v", shares, self.values), shares.sum(-1)

    def write(self, entries: Entries, among: Tensor | None = None) -> Memory:
        """Blend values into the slots near their keys: v_j <- c_j r + (1 - c_j) v_j (eqs 18 to 20).

        The slots' own keys stay where they are. Not-a-number never gets in: a row whose key or
        value is not finite stays as it is and sends no gradient.

        Args:
            entries: one for each row.
            among: slots that are written to; see `match`.
        """
        new = self._admitted(entries)
        share = torch.where(new.valid, self.match(new.keys.squeeze(1), among), 0)
        values = self.values.lerp(new.values, share.unsqueeze(-1))
        return replace(self._stamped(new, share > 0.5), values=values)

    def allocate(self, entries: Entries, replaceable: Tensor | None = None) -> Memory:
        """Give each entry a slot of its own.

        The first free slot is taken, else the one with the earliest time: counting its uses instead
        would make reading a change of state.

        Args:
            entries: one for each row; what is not finite is left out.
            replaceable: slots that may be replaced, `(B, K)` bool; None: all. Where none is free
                and none may be, the row stays as it is.
        """
        new = self._admitted(entries)
        allowed = torch.ones_like(self.used) if replaceable is None else ~self.used | replaceable
        limits = torch.iinfo(torch.int64)
        age = self.times.masked_fill(~self.used, limits.min).masked_fill(~allowed, limits.max)
        oldest = age.argmin(1, keepdim=True)  # the first of equals
        place = torch.arange(self.config.slots, device=oldest.device) == oldest
        place = place & allowed.any(1, keepdim=True) & new.valid
        keys = torch.where(place.unsqueeze(-1), new.keys, self.keys)
        values = torch.where(place.unsqueeze(-1), new.values, self.values)
        memory = replace(self, keys=keys, values=values, used=self.used | place)
        return memory._stamped(new, place)

    def update(
        self, entries: Entries, among: Tensor | None = None, replaceable: Tensor | None = None
    ) -> Memory:
        """Write where a key is covered, allocate where it is not; each row for itself.

        Differentiable in keys and values along the branch that a row takes: they move the values of
        a write, and become the key and value of a new slot. Which branch, and which slot, is a
        choice and has no derivative. `among` is that of `write`, `replaceable` that of `allocate`.
        """
        covered = self.read(entries.keys, among)[1] >= self.config.threshold
        written = self.write(replace(entries, valid=entries.valid & covered), among)
        return written.allocate(replace(entries, valid=entries.valid & ~covered), replaceable)

    def nearest(
        self, query: Tensor, count: int = 1, among: Tensor | None = None
    ) -> tuple[Entries, Tensor]:
        """The `count` slots whose keys are nearest to `(B, ..., D)`; a support term for plans.

        Returns:
            Entries `(B, ..., count)`, nearest first, and |k - q|^2, `(B, ..., count)`, infinite
            where nothing was found; with gradient to query and keys.
        """
        if not 1 <= count <= self.config.slots:
            raise ValueError(f"count is {count}: choose 1 to {self.config.slots}, the slots")
        counted = self._counted(among)
        # Finite first, so that slots which do not count come last for every query.
        order = self._squared_distances(query.detach(), counted).nan_to_num()
        order = order.masked_fill(~_beside(counted, query), math.inf)
        entries = self._take(order.topk(count, dim=-1, largest=False).indices, counted)
        distance = (query.unsqueeze(-2) - entries.keys).square().sum(-1)
        return entries, distance.masked_fill(~entries.valid, math.inf)

    def distance(self, query: Tensor, among: Tensor | None = None) -> Tensor:
        """How far queries `(B, ..., D)` are from what is stored, smoothly; `(B, ...)`.

        The squared distance |k_j - q|^2 to the nearest key, with a soft minimum at the sharpness
        beta: -log(sum_j exp(m_j)) / beta, 0 where that is below. Unlike the coverage it has a
        slope far away, which leads back. 0 where nothing is stored.
        """
        counted = self._counted(among)
        logits = -self.config.beta * self._squared_distances(query, counted)
        empty = ~counted.any(1).reshape(-1, *[1] * (query.ndim - 2))
        # Rows without a key would have the gradient of -infinity: they get a logit of their own.
        logits = torch.where(empty.unsqueeze(-1), 0.0, logits)
        return torch.where(empty, 0.0, -logits.logsumexp(-1) / self.config.beta).clamp_min(0)

    def at_time(self, time: Tensor, among: Tensor | None = None) -> Entries:
        """The slots `(B, ...)` nearest in time to `time` `(B, ...)` int64; of two, the earlier."""
        counted, time = self._counted(among), time.unsqueeze(-1)
        apart = _beside(self.times, time) - time
        order = 2 * apart.abs() + (apart > 0)  # the earlier is what was known by then
        order = order.masked_fill(~_beside(counted, time), torch.iinfo(torch.int64).max)
        return self._take(order.argmin(-1), counted)

    def select(self, index: Tensor) -> Memory:
        """The rows `index` of the batch; the others are dropped."""
        return Memory(self.config, *(x[index] for x in self._held))

    def forget(self, which: Tensor) -> Memory:
        """Free the slots `which`, `(B, K)` bool, or `(B, 1)`: whole rows."""
        return Memory(self.config, *(x.masked_fill(_wide(which, x), 0) for x in self._held))

    @property
    def _held(self) -> tuple[Tensor, ...]:
        return self.keys, self.values, self.times, self.labels, self.used

    def _counted(self, among: Tensor | None) -> Tensor:
        return self.used if among is None else self.used & among

    def _squared_distances(self, query: Tensor, counted: Tensor) -> Tensor:
        """|k_j - q|^2 up to rounding, `(B, ..., K)`; infinite for slots that do not count."""
        rows, slots, size = self.keys.shape
        if query.ndim < 2 or query.shape[0] != rows or query.shape[-1] != size:
            raise ValueError(
                f"query is {tuple(query.shape)}: give (B, ..., D) with B = {rows}, D = {size}"
            )
        # Multiplied out: for 256 queries and slots 16 times as fast as by differences. Seen from
        # the middle of the keys, where it loses least to rounding; beyond all numbers it is far.
        wide = counted.unsqueeze(2)
        middle = (self.keys * wide).sum(1, keepdim=True) / wide.sum(1, keepdim=True).clamp_min(1)
        keys = self.keys - middle.detach()
        flat = query.reshape(rows, math.prod(query.shape[1:-1]), size) - middle.detach()
        with torch.autocast(keys.device.type, enabled=False):
            apart = flat.square().sum(-1, keepdim=True) + keys.square().sum(-1).unsqueeze(1)
            apart = (apart - 2 * flat @ keys.mT).nan_to_num(math.inf, math.inf)
        return apart.masked_fill(~counted.unsqueeze(1), math.inf).reshape(*query.shape[:-1], slots)

    def _admitted(self, entries: Entries) -> Entries:
        """`entries`, checked, with an axis for the slots; what is not finite becomes not valid."""
        names = ("keys", "values", "times", "labels", "valid")
        for name, tensor in zip(names, self._held, strict=True):
            given, wanted = getattr(entries, name), (len(tensor), *tensor.shape[2:])
            if given.shape != wanted or given.dtype != tensor.dtype:
                raise ValueError(
                    f"{name} of the entries are {given.dtype} {tuple(given.shape)}: give one for "
                    f"each row, {tensor.dtype} {wanted}"
                )
        finite = (entries.keys.isfinite().all(1) & entries.values.isfinite().all(1)).unsqueeze(1)
        keys, values = (torch.where(finite, x, 0) for x in (entries.keys, entries.values))
        valid = entries.valid & finite.squeeze(1)
        new = (keys, values, entries.times, entries.labels, valid)
        return Entries(*(x.unsqueeze(1) for x in new))

    def _stamped(self, new: Entries, place: Tensor) -> Memory:
        """This memory with the times and labels of `new` in the slots `place` `(B, K)`."""
        labels = torch.where(place.unsqueeze(-1), new.labels, self.labels)
        return replace(self, times=torch.where(place, new.times, self.times), labels=labels)

    def _take(self, index: Tensor, counted: Tensor) -> Entries:
        """The slots `index` `(B, ...)` of each row; zeros where they do not count."""
        row = _wide(torch.arange(len(index), device=index.device), index)
        valid = counted[row, index]
        taken = [x[row, index] for x in self._held[:-1]]
        return Entries(*(*(x.masked_fill(~_wide(valid, x), 0) for x in taken), valid))


def _beside(held: Tensor, query: Tensor) -> Tensor:
    """What slots hold, `(B, K)`, with axes for those of queries `(B, ..., D)`."""
    return held.reshape(len(held), *[1] * (query.ndim - 2), *held.shape[1:])


def _wide(mask: Tensor, held: Tensor) -> Tensor:
    """`(B, ...)` with axes for those that `held` `(B, ..., *)` has beyond it."""
    return mask.reshape(*mask.shape, *[1] * (held.ndim - mask.ndim))
