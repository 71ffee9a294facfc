"""Forms of an energy E(s, a, y): an MLP of single steps, a transformer of a window of them.

Axes: `N` rows, `T` positions of a sequence, `D` state, `A` action, `W` features.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from forethought.worldmodel.energy import EnergyPredictor, Given
from forethought.worldmodel.modulation import FiLM, condition_of
from forethought.worldmodel.predictors import Context
from forethought.worldmodel.refinement import Refinement
from forethought.worldmodel.transformer import KeysValues, Transformer, causal_mask

Head = Literal["squares", "bowl", "scalar"]


class EnergyMLP(EnergyPredictor):
    """An energy told by an MLP of state, action and next state.

    Args:
        state_dim: size D of the state.
        action_dim: size A of the action.
        refinement: how a prediction is found; None: as `Refinement` has it by default.
        head: how the energy is told from the last hidden layer: half the sum of `squares` of
            y - s - MLP(s, a, y), never below 0; a linear number in a `bowl`, |y - s|^2 / 2; or the
            `scalar` number alone, as in the papers, which nothing holds from below: where it is
            not trained from noise, the descent may run away.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
        normalise: apply the LayerNorm of a normalised encoder to every y on the way.
        modulation: size M of a code `context["modulation"]` `(N, M)` that modulates what the first
            hidden layer takes from state and action; 0 reads none.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        *,
        refinement: Refinement | None = None,
        head: Head = "squares",
        hidden: int = 128,
        layers: int = 2,
        normalise: bool = False,
        modulation: int = 0,
    ) -> None:
        super().__init__(state_dim, action_dim, refinement, hidden=hidden, normalise=normalise)
        _check_head(head)
        if layers < 1:
            raise ValueError(f"layers is {layers}: choose 1 or more")
        if modulation < 0:
            raise ValueError(f"modulation is {modulation}: choose 0 (none) or more")
        self.head, self.modulation_dim = head, modulation
        self.told = nn.Linear(state_dim + action_dim, hidden)
        self.shown = nn.Linear(state_dim, hidden, bias=False)
        inner: list[nn.Module] = [nn.SiLU()]  # a kink has no second derivative
        for _ in range(layers - 1):
            inner += [nn.Linear(hidden, hidden), nn.SiLU()]
        self.layers = nn.Sequential(*inner)
        squares = head == "squares"
        self.out = nn.Linear(hidden, state_dim if squares else 1, bias=squares)
        self.modulation = FiLM(modulation, hidden) if modulation else None

    def given(self, state: Tensor, action: Tensor, context: Context | None) -> Given:
        """The state, and what the first hidden layer takes from state and action, `(N, W)`."""
        told = self.told(torch.cat((state, action), dim=-1))
        if self.modulation is not None:
            condition = condition_of(context, self.modulation_dim, state.shape[:-1])
            told = self.modulation(told, condition)
        return state, told

    def judged(self, given: Given, next_state: Tensor) -> tuple[Tensor, Tensor]:
        """See `EnergyPredictor.judged`."""
        state, told = given
        features = self.layers(told + self.shown(next_state))
        out = self.out(features)
        return _told(out, state, next_state, self.head), features


class EnergyTransformer(EnergyPredictor):
    """An energy told by a transformer: each predicted position sees the real past and itself.

    EBT (2507.02092), section 3: real positions (s_t, a_t) attend to real ones up to themselves,
    and what they keep is computed once a prediction; the predicted position y_{t+1} attends to the
    real ones up to t and to itself, by the same blocks, and no real position sees it. All positions
    of a sequence are thus refined at once.

    In a roll-out its own predictions are the past, at most `window` of them; so are they where it
    tells the energies of one. The unit of its doubt is one for pasts of every length.

    Args:
        state_dim: size D of the state.
        action_dim: size A of the action.
        refinement: how a prediction is found; None: as `Refinement` has it by default.
        head: see `EnergyMLP`.
        window: most states of the past, T.
        width: width W of the blocks.
        depth: number of blocks.
        heads: heads of each attention.
        hidden: width of the blocks' MLPs; 0 takes four times the width.
        normalise: apply the LayerNorm of a normalised encoder to every y on the way.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        *,
        refinement: Refinement | None = None,
        head: Head = "squares",
        window: int = 3,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        hidden: int = 0,
        normalise: bool = False,
    ) -> None:
        super().__init__(state_dim, action_dim, refinement, hidden=width, normalise=normalise)
        _check_head(head)
        if window < 1:
            raise ValueError(f"window is {window}: choose 1 or more")
        self.head, self.window = head, window
        self.told = nn.Linear(state_dim + action_dim, width)
        self.shown = nn.Linear(state_dim, width)
        self.positions = nn.Parameter(0.02 * torch.randn(window, width))
        self.blocks = Transformer(width, depth, heads, hidden=hidden)
        self.out: nn.Module = nn.Linear(width, state_dim)
        if head != "squares":  # without the bend the last norm's bias would have no effect
            self.out = nn.Sequential(nn.SiLU(), nn.Linear(width, 1, bias=False))

    def given(self, state: Tensor, action: Tensor, context: Context | None = None) -> Given:
        """See `EnergyPredictor.given`: a past of one position."""
        return _rows(self._read(state.unsqueeze(1), action.unsqueeze(1)))

    def judged(self, given: Given, next_state: Tensor) -> tuple[Tensor, Tensor]:
        """See `EnergyPredictor.judged`; next states `(N, D)`, or `(N, T, D)` of whole sequences."""
        state, place, mask, *kept = given
        past = tuple(KeysValues(*pair) for pair in zip(kept[::2], kept[1::2], strict=True))
        y = self.shown(next_state)
        single = y.dim() == 2
        x = (y.unsqueeze(1) if single else y) + place
        features = self.blocks(x, mask=mask, past=past)
        features = features.squeeze(1) if single else features
        return _told(self.out(features), state, next_state, self.head), features

    def sequence(self, states: Tensor, actions: Tensor, context: Context | None = None) -> Tensor:
        """All next states at once, each from the real states up to its own.

        Args:
            states: `(N, T, D)`, T at most `window`.
            actions: `(N, T, A)`.
            context: not read.

        Returns:
            `(N, T, D)`.

        Raises:
            ValueError: T is more than `window`.
        """
        given = self._read(states, actions)
        if self.training:
            return self._refined(given, states, actions)
        start = self._start(states, actions, None)
        return self._minimised(_rows(given), start.flatten(0, 1), keep=False)[0].view_as(states)

    def energies(
        self, states: Tensor, actions: Tensor, next_states: Tensor, context: Context | None = None
    ) -> Tensor:
        """See `EnergyPredictor.energies`: each from at most `window` states up to its own."""
        w, length = self.window, states.shape[1]
        first = self._read(states[:, :w], actions[:, :w])
        begun = self.judged(first, next_states[:, :w])[0]
        if length <= w:
            return begun
        # From then on the window moves: windows of w positions, judged at their last one.
        pasts = (x[:, 1:].unfold(1, w, 1).transpose(2, 3).flatten(0, 1) for x in (states, actions))
        moved = self.judged(_last(self._read(*pasts)), next_states[:, w:].flatten(0, 1))[0]
        return torch.cat((begun, moved.view(len(states), -1)), 1)

    def unroll(self, state: Tensor, actions: Tensor) -> Tensor:
        """See `Predictor.unroll`: step by step, with its own predictions as the past.

        What `forward` gives in a loop for the first step alone: later ones see more than one state.
        The derivative reaches the parameters too.
        """
        seen, states = [state], list[Tensor]()
        for step in range(actions.shape[1]):
            seen = seen[-self.window :]
            past, taken = torch.stack(seen, 1), actions[:, step + 1 - len(seen) : step + 1]
            given = _last(self._read(past, taken))
            if self.training:
                found = self._refined(given, past[:, -1], taken[:, -1])
            else:
                start = self._start(past[:, -1], taken[:, -1], None)
                found = self._minimised(given, start, keep=False)[0]
            seen.append(found)
            states.append(found)
        return torch.stack(states, 1)

    def _read(self, states: Tensor, actions: Tensor) -> Given:
        """What predicted positions of a sequence need: the state before each `(N, T, D)`, their
        places `(N, T, W)`, whom they see `(N, 1, T, T)`, and keys and values of every block.
        """
        count, length = states.shape[:2]
        if length > self.window:
            raise ValueError(f"states has {length} positions: give at most {self.window}, window")
        place = self.positions[:length]
        mask = causal_mask(length, states.device)
        x = self.told(torch.cat((states, actions), dim=-1)) + place
        kept = self.blocks.read(x, mask=mask)[1]
        seen = mask.expand(count, 1, length, length)
        return (
            states,
            place.expand(count, -1, -1),
            seen,
            *(part for pair in kept for part in pair),
        )


def _check_head(head: str) -> None:
    if head not in get_args(Head):
        raise ValueError(f"head is {head!r}: choose one of {', '.join(get_args(Head))}")


def _told(out: Tensor, state: Tensor, next_state: Tensor, head: Head) -> Tensor:
    """The energy `(...)` by one of the heads."""
    if head == "scalar":
        return out.squeeze(-1)
    if head == "bowl":
        return 0.5 * (next_state - state).square().sum(-1) + out.squeeze(-1)
    return 0.5 * (next_state - state - out).square().sum(-1)


def _last(given: Given) -> Given:
    """The last position of each sequence, as rows of `EnergyTransformer`."""
    state, place, mask, *kept = given
    return (state[:, -1], place[:, -1:], mask[:, :, -1:], *kept)


def _rows(given: Given) -> Given:
    """Every position of every sequence as a row of its own: N * T rows."""
    state, place, mask, *kept = given
    length = state.shape[1]
    rows = state.flatten(0, 1), place.flatten(0, 1).unsqueeze(1), mask.flatten(0, 2)[:, None, None]
    return (*rows, *(part.repeat_interleave(length, 0) if length > 1 else part for part in kept))
