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

import torch
from torch import Tensor, nn

from forethought.worldmodel import ranks
from forethought.worldmodel.perception import mlp
from forethought.worldmodel.predictors import Context, Predictor, Usual, repeated
from forethought.worldmodel.refinement import Refinement, Thought

Given = tuple[Tensor, ...]


class EnergyPredictor(Predictor):
    """Prediction by descent on an energy. Sub-classes define the energy.

    Random numbers in training come from a seed and a count of calls that are part of the state
    dictionary, so that a training that goes on after a kill draws what it would have drawn.

    It is built from what every form takes (see `EnergyMLP`); `hidden` is the width of the
    proposal's hidden layers.
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
        refinement: Refinement | None,
        *,
        hidden: int,
        normalise: bool,
    ) -> None:
        super().__init__()
        refinement = refinement or Refinement()
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

    def energies(
        self, states: Tensor, actions: Tensor, next_states: Tensor, context: Context | None = None
    ) -> Tensor:
        """Energies `(N, T)` of a roll-out's predictions; arguments as of `Predictor.doubt`.

        By default each is told from the state before it alone.
        """
        state, action, after = (x.flatten(0, 1) for x in (states, actions, next_states))
        energies = self.energy(state, action, after, repeated(context, states.shape[1]))
        return energies.view(states.shape[:2])

    def doubt(
        self, states: Tensor, actions: Tensor, next_states: Tensor, context: Context | None = None
    ) -> Tensor:
        """See `Predictor.doubt`: by the energies of the predictions.

        1 / (1 + exp(-(E - mean) / std)), with mean and std of predictions in training, which make
        fewer steps: those of evaluation lie a little lower, and their doubt below a half.
        """
        doubt: Tensor = self.usual(self.energies(states, actions, next_states, context))
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
