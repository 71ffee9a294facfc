"""Predictors: s' = Pred(s, a, z), one step of the world model in latent space.

All of them share one signature, `predict(state, action, latent=None, context=None)`, so that
recurrent, latent-variable and energy-based predictors can take each other's place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from forethought.worldmodel import ranks
from forethought.worldmodel.analytic import ResidualStack, unroll
from forethought.worldmodel.modulation import FiLM, Modulation, condition_of
from forethought.worldmodel.perception import mlp

Context = Mapping[str, Tensor]


class Predictor(nn.Module, ABC):
    """One step of the world model in latent space. Sub-classes set `action_dim`.

    Attributes:
        action_dim: size A of the action.
        modulation_dim: size M of the code `context["modulation"]` that it reads; 0: it reads none.
        window: number of states that a step of a roll-out sees: the last one, or some before too.
        doubts: whether it can tell how sure it is of a prediction.
    """

    action_dim: int
    modulation_dim: int = 0
    window: int = 1
    doubts: bool = False

    @abstractmethod
    def forward(
        self,
        state: Tensor,
        action: Tensor,
        latent: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """Predict the next state.

        Args:
            state: `(N, D)`.
            action: `(N, A)`.
            latent: `(N, Z)` or None; what the action does not explain.
            context: conditioning, tensors with leading axis N, or None.

        Returns:
            The next state, `(N, D)`.

        Raises:
            ValueError: the predictor is modulated, and `context["modulation"]` is missing or not
                `(N, M)`.
        """

    def sequence(self, states: Tensor, actions: Tensor, context: Context | None = None) -> Tensor:
        """The state after each of the given ones (teacher forcing), from it and those before.

        By default a step from each alone. A predictor with a window sees the states before, at
        most as many as the window holds.

        Args:
            states: `(N, T, D)`.
            actions: `(N, T, A)`.
            context: conditioning, tensors with leading axis N, or None.

        Returns:
            `(N, T, D)`; row t follows state t and depends on nothing after it.
        """
        rows, length = states.shape[:2]
        after = self(states.flatten(0, 1), actions.flatten(0, 1), None, repeated(context, length))
        return torch.unflatten(after, 0, (rows, length))

    def doubt(
        self, states: Tensor, actions: Tensor, next_states: Tensor, context: Context | None = None
    ) -> Tensor:
        """How unusual predictions are, in (0, 1): a half as in training, near 1 far from it.

        A predictor with a window needs the whole roll-out up to each of them.

        Args:
            states: the T states of a roll-out before each action, `(N, T, D)`.
            actions: `(N, T, A)`.
            next_states: what was predicted, `(N, T, D)`.
            context: conditioning, tensors with leading axis N, or None.

        Returns:
            `(N, T)`.

        Raises:
            ValueError: this kind of predictor cannot tell.
        """
        self.check_doubts()
        raise NotImplementedError(f"{type(self).__name__} sets doubts: write its doubt too")

    def check_doubts(self, *asking: str) -> None:
        """Refuse to be asked for doubt where `doubts` is false.

        Args:
            asking: what asks for it, such as "cost.doubt is 0.5".

        Raises:
            ValueError: it is false.
        """
        if not self.doubts:
            because, instead = "", ""
            if asking:
                because, instead = f"{' and '.join(asking)}, but ", ", or leave it out"
            raise ValueError(
                f"{because}{type(self).__name__} does not tell how sure it is: choose "
                f"model.predictor EnergyMLP, EnergyTransformer or Ensemble{instead}"
            )

    def unroll(self, state: Tensor, actions: Tensor) -> Tensor | None:
        """All steps of a roll-out at once: where that is faster, or where a step sees earlier ones.

        A predictor of single states gives what `forward` gives in a loop without latent and
        context, up to rounding, with the same derivatives in state and actions; it may have none
        in the parameters and then gives None unless they are frozen. A predictor with a window
        sees the states of the roll-out before: its first step is `forward`, later ones are not.

        Args:
            state: starting states, `(N, D)`.
            actions: `(N, H, A)`.

        Returns:
            The states after each action, `(N, H, D)`; None: take one step after the other.
        """
        return None


def repeated(context: Context | None, times: int) -> Context | None:
    """A context for sequences, for each of their `times` steps as a row of its own."""
    if context is None:
        return None
    return {name: held.repeat_interleave(times, 0) for name, held in context.items()}


class Usual(nn.Module):
    """Mean and variance of a signal in training, the unit in which it is told afterwards."""

    moments: Tensor
    heard: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("moments", torch.tensor([0.0, 1.0]))
        self.register_buffer("heard", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def listen(self, signal: Tensor) -> None:
        """Take a batch of signals `(...)` into moving averages; over the first 100, plain ones.

        A batch in which not all is finite is left out. Ranks hear the signals of all.
        """
        signal = ranks.gather(signal.flatten())
        heard = self.heard + 1
        share = torch.clamp(1 / heard, min=0.01)
        mean, variance = self.moments.unbind()
        away = signal - mean
        new = mean + share * away.mean()
        spread = (1 - share) * variance + share * (away * (signal - new)).mean()
        spread = torch.where(heard == 1, signal.var(correction=0), spread)
        found = torch.stack((new, spread))
        whole = found.isfinite().all()
        self.moments.copy_(torch.where(whole, found, self.moments))
        self.heard += whole

    def forward(self, signal: Tensor) -> Tensor:
        """1 / (1 + exp(-(x - mean) / std)) of signals `(...)`."""
        mean, variance = self.moments.unbind()
        return torch.sigmoid((signal - mean) / (variance + 1e-12).sqrt())


class ResidualMLP(Predictor):
    """s' = s + MLP([s, a]).

    Args:
        state_dim: size D of the state.
        action_dim: size A of the action.
        hidden: width of the hidden layers.
        layers: number of hidden layers.
        normalise: apply the LayerNorm of a normalised encoder to s', which keeps long unrolls
            in range.
        modulation: size M of a code `context["modulation"]` `(N, M)` that modulates every hidden
            layer; 0 reads none.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        *,
        hidden: int = 128,
        layers: int = 2,
        normalise: bool = False,
        modulation: int = 0,
    ) -> None:
        super().__init__()
        self.action_dim, self.modulation_dim = action_dim, modulation
        self.layers = mlp(state_dim + action_dim, [hidden] * layers, state_dim)
        self.norm = nn.LayerNorm(state_dim, elementwise_affine=False) if normalise else None
        self.modulation = Modulation(self.layers, modulation)

    def forward(
        self,
        state: Tensor,
        action: Tensor,
        latent: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """Predict the next state; see `Predictor.forward`. Uses no latent."""
        x = torch.cat((state, action), dim=-1)
        condition = condition_of(context, self.modulation_dim, x.shape[:-1])
        next_state: Tensor = state + self.modulation(self.layers, x, condition)
        return next_state if self.norm is None else self.norm(next_state)

    def unroll(self, state: Tensor, actions: Tensor) -> Tensor | None:
        """See `Predictor.unroll` and `analytic`; None where the module is not what it was built as.

        That is: modulated, in training, a sub-class, with hooks or other layers, or under autocast.
        """
        plain = type(self) is ResidualMLP and not self.modulation_dim
        if not plain or torch.is_autocast_enabled(state.device.type):
            return None
        stack = self._stack()
        if stack is None or not stack.frozen or not stack.takes(state, actions):
            return None
        return unroll(stack, state, actions)

    def _stack(self) -> ResidualStack | None:
        """The weights, if the layers are linear ones with ReLU between, and no hook listens."""
        layers = [*self.layers]
        kinds = [nn.ReLU if place % 2 else nn.Linear for place in range(len(layers))]
        # By hand: `self.modules()` takes longer than the products of a step.
        every = [self, self.layers, self.modulation, *layers]
        if self.norm is not None:
            every.append(self.norm)
        if [type(layer) for layer in layers] != kinds or any(
            module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
            for module in every
        ):
            return None
        linear = layers[::2]
        return ResidualStack(
            tuple(layer.weight for layer in linear),
            tuple(layer.bias for layer in linear),
            None if self.norm is None else self.norm.eps,
        )


class GRUPredictor(Predictor):
    """Gated recurrent unit driven by the action, memoryless between steps.

    h = W_in s; h' = GRU(a, h); s' = s + W_out (h' - h). The gates let the model keep parts of the
    state untouched, which a residual MLP has to learn as an exact zero.

    Args:
        state_dim: size D of the state.
        action_dim: size A of the action.
        hidden: size of the recurrent state.
        normalise: apply the LayerNorm of a normalised encoder to s'.
        modulation: size M of a code `context["modulation"]` `(N, M)` that modulates h; 0 reads
            none. It stands before the gates, which can still keep the state as it is.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        *,
        hidden: int = 256,
        normalise: bool = False,
        modulation: int = 0,
    ) -> None:
        super().__init__()
        if modulation < 0:
            raise ValueError(f"modulation is {modulation}: choose 0 (none) or more")
        self.action_dim, self.modulation_dim = action_dim, modulation
        self.lift = nn.Linear(state_dim, hidden)
        self.cell = nn.GRUCell(action_dim, hidden)
        self.project = nn.Linear(hidden, state_dim)
        self.norm = nn.LayerNorm(state_dim, elementwise_affine=False) if normalise else None
        self.modulation = FiLM(modulation, hidden) if modulation else None

    def forward(
        self,
        state: Tensor,
        action: Tensor,
        latent: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """Predict the next state; see `Predictor.forward`. Uses no latent."""
        hidden = self.lift(state)
        if self.modulation is not None:
            condition = condition_of(context, self.modulation_dim, state.shape[:-1])
            hidden = self.modulation(hidden, condition)
        next_state: Tensor = state + self.project(self.cell(action, hidden) - hidden)
        return next_state if self.norm is None else self.norm(next_state)


class Ensemble(Predictor):
    """Several residual MLPs, whose disagreement tells how sure they are.

    In training row n is predicted by member n modulo their number alone, so that they learn from
    different rows; in evaluation by the mean of all.

    Args:
        state_dim: size D of the state.
        action_dim: size A of the action.
        members: how many.
        hidden: width of the hidden layers of each.
        layers: number of hidden layers of each.
        normalise: apply the LayerNorm of a normalised encoder to s'.
    """

    doubts = True

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        *,
        members: int = 3,
        hidden: int = 128,
        layers: int = 2,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        if members < 2:
            raise ValueError(f"members is {members}: choose 2 or more, one cannot disagree")
        self.action_dim = action_dim
        self.members = nn.ModuleList(
            ResidualMLP(state_dim, action_dim, hidden=hidden, layers=layers, normalise=normalise)
            for _ in range(members)
        )
        self.norm = nn.LayerNorm(state_dim, elementwise_affine=False) if normalise else None
        self.usual = Usual()

    def forward(
        self,
        state: Tensor,
        action: Tensor,
        latent: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """Predict the next state; see `Predictor.forward`. Uses no latent."""
        if self.training:
            return self._shared_out(state, action)
        mean = self._each(state, action).mean(0)
        next_state: Tensor = mean if self.norm is None else self.norm(mean)
        return next_state

    def doubt(
        self, states: Tensor, actions: Tensor, next_states: Tensor, context: Context | None = None
    ) -> Tensor:
        """See `Predictor.doubt`: by the logarithm of the members' variance. Reads no next state."""
        doubt: Tensor = self.usual(_spread(self._each(states, actions)))
        return doubt

    def _each(self, state: Tensor, action: Tensor) -> Tensor:
        """What each member says, `(members, ..., D)`."""
        return torch.stack([member(state, action) for member in self.members])

    def _shared_out(self, state: Tensor, action: Tensor) -> Tensor:
        """Each row by the member whose turn it is, `(N, D)`."""
        count = len(self.members)
        next_state = torch.empty_like(state)
        for place, member in enumerate(self.members):
            rows = torch.arange(place, len(state), count, device=state.device)
            if len(rows):
                next_state = next_state.index_copy(0, rows, member(state[rows], action[rows]))
        with torch.no_grad():  # a few rows tell enough
            self.usual.listen(_spread(self._each(state[:32], action[:32])))
        return next_state


def _spread(told: Tensor) -> Tensor:
    """Logarithm of the mean variance, `(...)`, of what members say, `(members, ..., D)`."""
    return (told.var(0).mean(-1) + 1e-12).log()
