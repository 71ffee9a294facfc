"""Energy-based predictors: the next state is where a learned energy E(s, a, y) is low.

    y_0 = start;  y_{k+1} = y_k - rate dE/dy(s, a, y_k);  s' = the last y

In training few steps are made and the error of the last y is minimised; no other states are pushed
up (EBWM, 2406.08862; EBT, 2507.02092). In evaluation the descent goes on for as long as the energy
falls, for each row by itself: a step that would raise it is refused, and the rate halved from there
on.

What such a predictor has over one that tells s' at once: its features depend on what is predicted,
it can judge a prediction, it takes as many steps as a prediction needs, and its energy may tell how
sure it is. Whether that is of use is for the data to say: see `benchmarks/energy.py`.

Axes: `N` rows, `D` state, `A` action, `K` steps of the descent, `W` features.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from forethought.worldmodel import ranks
from forethought.worldmodel.modulation import FiLM, condition_of
from forethought.worldmodel.perception import mlp
from forethought.worldmodel.predictors import Context, Predictor, Usual
from forethought.worldmodel.transformer import KeysValues, Transformer, causal_mask

Start = Literal["previous", "noise", "proposal"]
Head = Literal["squares", "bowl", "scalar"]
Given = tuple[Tensor, ...]


@dataclass(frozen=True)
class Refinement:
    """How a prediction is found by descent on the energy.

    Args:
        start: where it begins: at the `previous` state, at Gaussian `noise`, or at a `proposal`,
            what a residual MLP of its own says. In evaluation the noise is the same for all rows,
            drawn when the predictor was made.
        steps: steps in training.
        fewest: in training each row makes a random number of steps from here to `steps`; None
            makes all of them.
        most: largest number of steps in evaluation, refused ones among them.
        tolerance: in evaluation a row stops when a step lowers its energy by no more than this.
            With a rate near 1, where training leaves it, that is about the squared length of the
            step.
        halvings: how often a row's step size is halved before it stops: so many refused steps,
            and one more.
        rate: step size at first; it is learned and stays positive.
        rate_spread: in training the step size of each row is multiplied by a number between
            1 / spread and spread, uniform in its logarithm; 1 leaves it as it is.
        langevin: standard deviation of noise added before each step in training.
        unrolled: in training the gradient goes through all steps; else through the last alone,
            and passes the steps before as if they were constants.
    """

    start: Start = "previous"
    steps: int = 3
    fewest: int | None = None
    most: int = 16
    tolerance: float = 1e-3
    halvings: int = 4
    rate: float = 1.0
    rate_spread: float = 1.0
    langevin: float = 0.0
    unrolled: bool = True

    def __post_init__(self) -> None:
        if self.start not in get_args(Start):
            raise ValueError(
                f"refinement.start is {self.start!r}: choose one of {', '.join(get_args(Start))}"
            )
        for name in ("steps", "most"):
            if getattr(self, name) < 1:
                raise ValueError(f"refinement.{name} is {getattr(self, name)}: choose 1 or more")
        if self.fewest is not None and not 0 <= self.fewest <= self.steps:
            raise ValueError(
                f"refinement.fewest is {self.fewest}: choose 0 to {self.steps}, the steps, or none"
            )
        if self.halvings < 0:
            raise ValueError(f"refinement.halvings is {self.halvings}: choose 0 or more")
        if not 0 < self.rate < math.inf:
            raise ValueError(f"refinement.rate is {self.rate}: choose it above 0, finite")
        if not 1 <= self.rate_spread < math.inf:
            raise ValueError(
                f"refinement.rate_spread is {self.rate_spread}: choose 1 (none) or more, finite"
            )
        for name in ("tolerance", "langevin"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"refinement.{name} is {getattr(self, name)}: choose 0 or more, finite"
                )

    @property
    def random(self) -> bool:
        """Whether training draws random numbers."""
        return self.start == "noise" or self.langevin > 0 or self.rate_spread > 1 or self.varied

    @property
    def varied(self) -> bool:
        """Whether rows make different numbers of steps in training."""
        return self.fewest is not None and self.fewest < self.steps


@dataclass(frozen=True, eq=False)
class Thought:
    """One prediction and how it was come by.

    Args:
        prediction: the next state, `(N, D)`.
        energy: E of it, `(N,)`.
        steps: gradient steps that were taken, refused ones left out, `(N,)` int64.
        refused: steps that would have raised the energy, `(N,)` int64.
        trace: energy at the start and after every step, `(K+1, N)`; a row that has stopped keeps
            its energy.
        path: predictions at the same moments, `(K+1, N, D)`.
    """

    prediction: Tensor
    energy: Tensor
    steps: Tensor
    refused: Tensor
    trace: Tensor
    path: Tensor


class EnergyPredictor(Predictor):
    """Prediction by descent on an energy. Sub-classes define the energy.

    Random numbers in training come from a seed and a count of calls that are part of the state
    dictionary, so that a training that goes on after a kill draws what it would have drawn.

    Args:
        state_dim: size D of the state.
        action_dim: size A of the action.
        refinement: how a prediction is found.
        hidden: width of the proposal's hidden layers.
        normalise: apply the LayerNorm of a normalised encoder to every y on the way.
    """

    log_rate: nn.Parameter
    noise: Tensor
    seed: Tensor
    draws: Tensor
    doubts = True

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        refinement: Refinement,
        *,
        hidden: int,
        normalise: bool,
    ) -> None:
        super().__init__()
        self.action_dim, self.state_dim, self.refinement = action_dim, state_dim, refinement
        self.norm = nn.LayerNorm(state_dim, elementwise_affine=False) if normalise else None
        self.log_rate = nn.Parameter(torch.tensor(math.log(refinement.rate)))
        proposed = refinement.start == "proposal"
        self.proposal = mlp(state_dim + action_dim, [hidden] * 2, state_dim) if proposed else None
        self.register_buffer("noise", torch.randn(state_dim))
        self.register_buffer("seed", torch.randint(2**31, ()))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        self.usual = Usual()

    @abstractmethod
    def given(self, state: Tensor, action: Tensor, context: Context | None) -> Given:
        """What the energy needs of state `(N, D)` and action `(N, A)`, computed once a prediction.

        Returns:
            Tensors with leading axis N.
        """

    @abstractmethod
    def judged(self, given: Given, next_state: Tensor) -> tuple[Tensor, Tensor]:
        """Energy `(N,)` of next states `(N, D)`, and the features `(N, W)` it is told from.

        It has to be differentiable twice in `next_state`.
        """

    @property
    def rate(self) -> Tensor:
        """The learned step size, above 0."""
        return self.log_rate.exp()

    def energy(
        self, state: Tensor, action: Tensor, next_state: Tensor, context: Context | None = None
    ) -> Tensor:
        """E(s, a, y) of states `(N, D)`, actions `(N, A)` and next states `(N, D)`: `(N,)`."""
        return self.judged(self.given(state, action, context), next_state)[0]

    def internal(
        self, state: Tensor, action: Tensor, next_state: Tensor, context: Context | None = None
    ) -> Tensor:
        """Features `(N, W)` that the energy is told from: they depend on what is predicted."""
        return self.judged(self.given(state, action, context), next_state)[1]

    def doubt(
        self, state: Tensor, action: Tensor, next_state: Tensor, context: Context | None = None
    ) -> Tensor:
        """See `Predictor.doubt`: by the energy of the prediction.

        1 / (1 + exp(-(E - mean) / std)), with mean and std of predictions in training, which make
        fewer steps: those of evaluation lie a little lower, and their doubt below a half.
        """
        doubt: Tensor = self.usual(self.energy(state, action, next_state, context))
        return doubt

    def forward(
        self,
        state: Tensor,
        action: Tensor,
        latent: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """Predict the next state; see `Predictor.forward`. Uses no latent.

        The derivative in state and action is that of the steps that were taken; in evaluation their
        number is a constant of it.
        """
        given = self.given(state, action, context)
        if self.training:
            return self._refined(given, state, action)
        return self._minimised(given, self._start(state, action, None), keep=False)[0]

    def think(
        self,
        state: Tensor,
        action: Tensor,
        latent: Tensor | None = None,
        context: Context | None = None,
        *,
        start: Tensor | None = None,
    ) -> Thought:
        """Predict as in evaluation, and tell how.

        Args:
            state: `(N, D)`.
            action: `(N, A)`.
            latent: not used.
            context: conditioning, tensors with leading axis N, or None.
            start: where the descent begins, `(N, D)`; None: where `refinement.start` says.
        """
        given = self.given(state, action, context)
        start = self._start(state, action, None) if start is None else self._normed(start)
        _, thought = self._minimised(given, start, keep=True)
        assert thought is not None
        return thought

    # --- training

    def _refined(self, given: Given, state: Tensor, action: Tensor) -> Tensor:
        """The fixed or random number of steps of training, `(N, D)`; or `(N, T, D)` of `(N, T)`."""
        r, rows = self.refinement, (*state.shape[:-1], 1)
        generator = self._generator() if r.random else None

        def drawn(draw: Callable[..., Tensor], *shape: int) -> Tensor:
            return draw(*shape, generator=generator).to(state)

        y, rate = self._start(state, action, generator), self.rate
        if r.rate_spread > 1:
            rate = rate * r.rate_spread ** (2 * drawn(torch.rand, *rows) - 1)
        idle = None
        if r.varied:
            # All rows end at the last step; who makes fewer begins later.
            fewest = r.fewest or 0
            idle = (drawn(torch.rand, *rows) * (r.steps - fewest + 1)).floor()
        for step in range(r.steps):
            before = y
            if r.langevin:
                y = y + r.langevin * drawn(torch.randn, *y.shape)
            wanted = torch.is_grad_enabled() and (r.unrolled or step == r.steps - 1)
            with torch.set_grad_enabled(wanted):
                slope = self._slope(given, y)[1]
            y = self._normed(y - (rate if wanted else rate.detach()) * slope)
            if idle is not None:
                y = torch.where(idle > step, before, y)
        with torch.no_grad():
            self.usual.listen(self.judged(given, y)[0])
        return y

    def _generator(self) -> torch.Generator:
        """A fresh source of random numbers for each call."""
        self.draws += 1
        # Ranks share the buffers and must not share the draws.
        own = 31 * int(self.draws) + ranks.rank()
        return torch.Generator().manual_seed(int(self.seed) * 1_000_003 + own)

    # --- evaluation

    def _minimised(self, given: Given, y: Tensor, *, keep: bool) -> tuple[Tensor, Thought | None]:
        """Descend until the energy stops falling, each row by itself: `(N, D)`."""
        r = self.refinement
        energy, slope = self._slope(given, y)
        rate = self.rate.expand(len(y))
        steps = torch.zeros(len(y), dtype=torch.int64, device=y.device)
        refused, going = steps.clone(), torch.ones_like(steps, dtype=torch.bool)
        trace, path = [energy], [y]
        for _ in range(r.most):
            rows = going.nonzero().squeeze(1)
            if not len(rows):
                break
            every = len(rows) == len(y)  # indexing costs about as much as a small layer
            here = given if every else tuple(part[rows] for part in given)
            at = (y, slope, rate) if every else (y[rows], slope[rows], rate[rows])
            trial = self._normed(at[0] - at[2].unsqueeze(1) * at[1])
            reached, next_slope = self._slope(here, trial)
            before = energy[rows]
            falls = reached <= before  # not-a-number never is
            enough = before - reached <= r.tolerance
            won = rows[falls]
            if every and len(won) == len(y):
                y, energy, slope = trial, reached, next_slope
            else:
                y = y.index_put((won,), trial[falls])
                energy = energy.index_put((won,), reached[falls])
                slope = slope.index_put((won,), next_slope[falls])
                lost = rows[~falls]
                rate = rate.index_put((lost,), rate[lost] / 2)
                refused[lost] += 1
            steps[won] += 1
            going = going.index_put(
                (rows,), torch.where(falls, ~enough, refused[rows] <= r.halvings)
            )
            if keep:
                trace.append(energy)
                path.append(y)
        if not keep:
            return y, None
        return y, Thought(y, energy, steps, refused, torch.stack(trace), torch.stack(path))

    # --- both

    def _slope(self, given: Given, y: Tensor) -> tuple[Tensor, Tensor]:
        """E `(N,)`, without gradient, and dE/dy `(N, D)`, which has one.

        `torch.func.grad` works where gradients are switched off, and within `torch.compile`.
        """

        def total(y: Tensor) -> tuple[Tensor, Tensor]:
            energy = self.judged(given, y)[0]
            return energy.sum(), energy

        slope, energy = torch.func.grad(total, has_aux=True)(y)
        return energy.detach(), slope

    def _start(self, state: Tensor, action: Tensor, generator: torch.Generator | None) -> Tensor:
        """Where the descent begins, `(N, D)`."""
        if self.proposal is not None:
            return self._normed(state + self.proposal(torch.cat((state, action), dim=-1)))
        if self.refinement.start == "previous":
            return self._normed(state)
        if generator is None:
            return self._normed(self.noise.to(state).expand_as(state))
        return self._normed(torch.randn(state.shape, generator=generator).to(state))

    def _normed(self, y: Tensor) -> Tensor:
        return y if self.norm is None else self.norm(y)


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
        refinement = refinement or Refinement()
        super().__init__(state_dim, action_dim, refinement, hidden=hidden, normalise=normalise)
        if head not in get_args(Head):
            raise ValueError(f"head is {head!r}: choose one of {', '.join(get_args(Head))}")
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

    In a roll-out its own predictions are the past, at most `window` of them.

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

    # Its energies have a longer past in a roll-out than `doubt` knows of: no common unit.
    doubts = False

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
        refinement = refinement or Refinement()
        super().__init__(state_dim, action_dim, refinement, hidden=width, normalise=normalise)
        if head not in get_args(Head):
            raise ValueError(f"head is {head!r}: choose one of {', '.join(get_args(Head))}")
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
