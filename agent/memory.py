"""What short-term memory holds: moments of an episode (LeCun 2022, sections 3.3 and 4.9, fig. 7).

A moment is stored under its state. Its numbers are blended with those of moments near it, what kind
of moment it is, is not:

    key      state
    value    state | intrinsic terms | critic's terms | action
    labels   imagined | encoder version | observation

Unusual here: what was perceived and what was only imagined never mix. An imagined moment blends
into imagined ones alone, and when the memory is full it is the first to go. Nothing is read across
versions of the encoder: their states cannot be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from forethought.agent.configurator import Setting
from forethought.worldmodel import Entries, Memory, MemoryConfig

IMAGINED, VERSION, OBSERVATION = range(3)  # places among the labels


@dataclass(frozen=True, eq=False)
class Moments:
    """What the memory knows of some moments; zeros where nothing was found.

    Args:
        time: when, in decisions, `(B, ...)` int64.
        state: `(B, ..., D)`; its own copy, blended where later moments were written over it.
        costs: intrinsic terms of the state and the action that led to it, `(B, ..., n)`.
        expected: the critic's terms, `(B, ..., n)`, or `(B, ..., 0)` without a critic.
        action: what was done there, `(B, ..., A)`; discrete ones as probabilities.
        imagined: `(B, ...)` bool; otherwise perceived.
        version: version of the encoder, `(B, ...)` int64.
        observation: index of a kept observation, `(B, ...)` int64; -1: none is kept.
        found: `(B, ...)` bool.
    """

    time: Tensor
    state: Tensor
    costs: Tensor
    expected: Tensor
    action: Tensor
    imagined: Tensor
    version: Tensor
    observation: Tensor
    found: Tensor


@dataclass(frozen=True, eq=False)
class ShortTermMemory:
    """B short-term memories side by side; like `Memory` a value, passed in and returned.

    Times have to rise within a row; one that begins another episode is forgotten, or counts on.
    `imagined` says in each method what is looked at: False what was perceived, True what was
    imagined, None both.

    Args:
        slots: the associative memory, keys and values packed as above.
        sizes: sizes of state, intrinsic terms, critic's terms and action in a value.
        discrete: whether actions are discrete.
        version: version of the encoder that states come from now.
    """

    slots: Memory
    sizes: tuple[int, int, int, int]
    discrete: bool = False
    version: int = 0

    @staticmethod
    def empty(
        config: MemoryConfig,
        state: Tensor,
        *,
        terms: int,
        action_dim: int,
        critic: bool = True,
        discrete: bool = False,
        version: int = 0,
    ) -> ShortTermMemory:
        """Memories of nothing, for states like `state` `(B, D)`, on its device.

        There are n = `terms` intrinsic terms, as many of the critic if there is one, and actions of
        size `action_dim`, or that many discrete ones.
        """
        sizes = (state.shape[-1], terms, terms * critic, action_dim)
        return ShortTermMemory(Memory.empty(config, state, sum(sizes), 3), sizes, discrete, version)

    def remember(
        self,
        state: Tensor,
        action: Tensor,
        costs: Tensor,
        expected: Tensor | None = None,
        *,
        time: int | Tensor,
        imagined: bool = False,
        observation: Tensor | None = None,
    ) -> ShortTermMemory:
        """Store one moment in each row: written where the state is covered, else a new slot.

        Args:
            state: `(B, D)`.
            action: `(B, A)`, discrete ones `(B,)` int64 or probabilities `(B, A)`.
            costs: intrinsic terms of the state and the action that led to it, `(B, n)`.
            expected: the critic's terms, `(B, n)`; None where there is no critic.
            time: in decisions, `(B,)` int64 or one for all rows.
            imagined: whether the model made it up.
            observation: index of a kept observation to encode anew later, `(B,)` int64; -1 or
                None: none.
        """
        if not action.is_floating_point():
            action = torch.nn.functional.one_hot(action, self.sizes[-1]).to(state)
        expected = state.new_empty(len(state), 0) if expected is None else expected
        parts = {"state": state, "costs": costs, "expected": expected, "action": action}
        for (name, part), size in zip(parts.items(), self.sizes, strict=True):
            wanted = (len(self.slots.keys), size)
            if part.shape != wanted:
                raise ValueError(f"{name} has the shape {tuple(part.shape)}: give {wanted}")
        values = torch.cat(tuple(parts.values()), dim=-1)
        now = torch.as_tensor(time, device=state.device).expand(len(state))
        labels = self.slots.labels.new_zeros(len(state), 3)
        labels[:, IMAGINED], labels[:, VERSION] = int(imagined), self.version
        labels[:, OBSERVATION] = -1 if observation is None else observation
        entries = Entries(state, values, now, labels, torch.ones_like(now, dtype=torch.bool))
        slots = self.slots.update(entries, self._among(imagined), self._replaceable(imagined))
        return replace(self, slots=slots)

    def recall(
        self, state: Tensor, imagined: bool | None = False
    ) -> tuple[dict[str, Tensor], Tensor]:
        """What is known near states `(B, ..., D)`: (1 / coverage) sum_j c_j v_j.

        Returns:
            Means `state`, `costs`, `expected` and `action`, `(B, ..., *)` each, and the coverages
            `(B, ...)`. Where the coverage is below the threshold the means fall to 0 with it.
        """
        values, coverage = self.slots.read(state, self._among(imagined))
        # Divided by at least the threshold, so that a far state has no infinite gradient.
        means = values / coverage.clamp_min(self.slots.config.threshold).unsqueeze(-1)
        names = ("state", "costs", "expected", "action")
        return dict(zip(names, torch.split(means, list(self.sizes), -1), strict=True)), coverage

    def energy_of(
        self,
        state: Tensor,
        weights: Tensor,
        critic: Callable[[Tensor], Tensor],
        imagined: bool | None = False,
    ) -> Tensor:
        """The energy to come after states, sum_i v_i TC_i, `(B, ...)`: remembered, or estimated.

        What is remembered counts where the coverage reaches the threshold, elsewhere the critic's
        word: a far state must not read 0, the best there is. Both are the same quantity, so that
        a planner gains nothing by going from one source to the other. At the border the energy
        jumps; on either side its gradient is exact.

        Args:
            state: `(B, ..., D)`. One that is not finite has the energy not-a-number.
            weights: v, or u, `(B, n)`; axes of 1 between the two are as good.
            critic: TC of every term, `(B, ..., n)`, for states `(B, ..., D)`.
            imagined: see the class.
        """
        if not self.sizes[2]:
            raise ValueError("no expected costs are remembered: make the memory with critic=True")
        means, coverage = self.recall(state, imagined)
        enough = coverage >= self.slots.config.threshold
        # A coverage that is not a number stands in for a critic that would not mind such a state.
        estimate = critic(state).where(coverage.isfinite().unsqueeze(-1), torch.nan)
        terms = torch.where(enough.unsqueeze(-1), means["expected"], estimate)
        weights = weights.reshape(len(state), *[1] * (state.ndim - 2), -1)
        return (terms * weights).sum(-1)

    def moments_at(self, time: Tensor, imagined: bool | None = False) -> Moments:
        """Moments `(B, ...)` nearest to `time` `(B, ...)` int64; of two as near, the earlier."""
        return self._moments(self.slots.at_time(time, self._among(imagined)))

    def state_at(self, time: Tensor, imagined: bool | None = False) -> Tensor:
        """States `(B, ..., D)` at `time` `(B, ...)` int64; not-a-number where nothing is stored."""
        moments = self.moments_at(time, imagined)
        return moments.state.where(moments.found.unsqueeze(-1), torch.nan)

    def neighbours(
        self, state: Tensor, count: int = 1, imagined: bool | None = False
    ) -> tuple[Moments, Tensor]:
        """Moments `(B, ..., count)` nearest to `(B, ..., D)`; |s_j - s|^2, infinite if none."""
        entries, distance = self.slots.nearest(state, count, self._among(imagined))
        return self._moments(entries), distance

    def distance(self, state: Tensor, imagined: bool | None = False) -> Tensor:
        """How far states `(B, ..., D)` are from those remembered, squared, softly; `(B, ...)`."""
        return self.slots.distance(state, self._among(imagined))

    @torch.no_grad()
    def proposals(
        self, state: Tensor, setting: Setting, *, count: int = 1, neighbours: int = 8
    ) -> Tensor:
        """What was done from the nearest past states on, where it came out best, to start plans.

        Args:
            state: states to plan from, `(B, D)`.
            setting: weights, goal, discount and horizon H.
            count: number of proposals P.
            neighbours: how many of the nearest moments with H steps after them are compared: by
                the discounted intrinsic cost of these steps, what the critic expected at the end,
                and the distance of the end to the goal where there is one.

        Returns:
            Actions `(B, P, H, A)`, discrete ones `(B, P, H)` int64, best first; zeros where there
            is no such moment.
        """
        neighbours = min(neighbours, self.slots.config.slots)
        if not 1 <= count <= neighbours:
            raise ValueError(f"count is {count}: choose 1 to {neighbours}, the neighbours")
        horizon, row = setting.cost.horizon, torch.arange(len(state), device=state.device)[:, None]
        times, perceived = self.slots.times, self.slots.used & self._among(False)
        latest = times.where(perceived, -1).amax(1, keepdim=True)
        whole = perceived & (times + horizon <= latest)
        near, _ = self.slots.nearest(state, neighbours, whole)
        steps = torch.arange(horizon + 1, device=state.device)
        discounts = setting.discount**steps
        path = self.moments_at(near.times.unsqueeze(-1) + steps)  # (B, N, H+1)
        costs = (path.costs[:, :, 1:] * setting.u[:, None, None]).sum(-1)
        outcome = (costs * discounts[:-1]).sum(-1)  # (B, N)
        if self.sizes[2]:
            end = (path.expected[:, :, -1] * setting.v[:, None]).sum(-1)
            outcome = outcome + discounts[-1] * end
        if setting.goal is not None:
            outcome = outcome + (path.state[:, :, -1] - setting.goal[:, None]).square().mean(-1)
        best = outcome.where(near.valid, torch.inf).topk(count, largest=False).indices
        actions = path.action[row, best, :-1] * near.valid[row, best, None, None]
        return actions.argmax(-1) if self.discrete else actions

    def refresh(
        self, version: int, encode: Callable[[Any], Tensor], observations: Any = None
    ) -> ShortTermMemory:
        """Follow the encoder to another version: encode kept observations anew, forget the rest.

        Costs, actions and what the critic expected stay as they were. What was imagined has no
        observation and is forgotten, and so is what does not encode to something finite.

        Args:
            version: version of the encoder from now on.
            encode: observations `(M, *O)`, or mappings of them, to states `(M, D)`.
            observations: the kept ones, `(N, *O)` or a mapping of such tensors; None: none.
        """
        labels, keys = self.slots.labels, self.slots.keys
        stale = self.slots.used & (labels[..., VERSION] != version)
        kept = stale & (labels[..., OBSERVATION] >= 0) & (observations is not None)
        if kept.any():
            encoded = encode(_rows(observations, labels[..., OBSERVATION][kept]))
            keys = keys.index_put((kept,), encoded.to(keys))
        own, other = self.slots.values.tensor_split([self.sizes[0]], -1)
        values = torch.cat((torch.where(kept.unsqueeze(-1), keys, own), other), -1)
        lost = stale & ~(kept & keys.isfinite().all(-1))
        slots = replace(self.slots, keys=keys, values=values).forget(lost)
        labels = slots.labels.clone()
        labels[..., VERSION] = version * slots.used
        return replace(self, slots=replace(slots, labels=labels), version=version)

    def select(self, index: Tensor) -> ShortTermMemory:
        """The rows `index` of the batch; the others are dropped."""
        return replace(self, slots=self.slots.select(index))

    def forget(self, rows: Tensor) -> ShortTermMemory:
        """Empty the rows under the mask `rows` `(B,)`, such as those that begin an episode."""
        return replace(self, slots=self.slots.forget(rows.unsqueeze(1)))

    def _among(self, imagined: bool | None) -> Tensor:
        """Slots that may be read: of this version, and of the kind asked for, `(B, K)`."""
        labels = self.slots.labels
        current = labels[..., VERSION] == self.version
        return current if imagined is None else current & (labels[..., IMAGINED] == imagined)

    def _replaceable(self, imagined: bool) -> Tensor:
        """Slots that give way: imagined ones first, perceived ones only to the perceived."""
        ghosts = self.slots.used & (self.slots.labels[..., IMAGINED] == 1)
        return ghosts if imagined else ghosts | ~ghosts.any(1, keepdim=True)

    def _moments(self, entries: Entries) -> Moments:
        state, costs, expected, action = torch.split(entries.values, list(self.sizes), -1)
        imagined, version, observation = entries.labels.unbind(-1)
        parts = (state, costs, expected, action, imagined == 1, version, observation)
        return Moments(entries.times, *parts, entries.valid)


def _rows(observations: Any, index: Tensor) -> Any:
    """The rows `index` `(M,)` of observations `(N, *O)`, or of a mapping of them."""
    if isinstance(observations, Mapping):
        return {name: _rows(part, index) for name, part in observations.items()}
    if len(index) and int(index.max()) >= len(observations):
        raise ValueError(
            f"a moment names observation {int(index.max())}, but {len(observations)} are given: "
            "give all that were kept"
        )
    return observations[index]
