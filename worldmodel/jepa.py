"""JEPA: a joint-embedding predictive architecture, conditioned on actions (LeCun 2022, fig. 12).

The model is perception and predictor and nothing else: losses, heads and optimisers live in
`objective` and `train`. Its `rollout` is the only roll-out of a world model in the project; it
serves training, evaluation and, handed over as `Problem.rollout`, planning.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from forethought.worldmodel.belief import Correction
from forethought.worldmodel.perception import Perception, encode
from forethought.worldmodel.predictors import Context, Predictor


class Actions(nn.Module):
    """How actions enter the predictor: as they are, one-hot, or embedded.

    Args:
        size: size A of continuous actions, or number n of discrete ones.
        discrete: whether actions are discrete.
        embedding: size of a learned embedding of discrete actions; 0 takes them one-hot.
    """

    def __init__(self, size: int, *, discrete: bool = False, embedding: int = 0) -> None:
        super().__init__()
        self.size, self.discrete = size, discrete
        learned = discrete and embedding
        self.embedding = nn.Linear(size, embedding, bias=False) if learned else None

    @property
    def dim(self) -> int:
        """Size of an action as the predictor sees it."""
        return self.size if self.embedding is None else self.embedding.out_features

    def forward(self, action: Tensor) -> Tensor:
        """Actions `(..., A)`; if discrete, indices `(...)` int64 or probabilities `(..., n)`."""
        if not self.discrete:
            return action
        if not action.is_floating_point():
            action = nn.functional.one_hot(action, self.size).float()
        return action if self.embedding is None else self.embedding(action)


class JEPA(nn.Module):
    """Action-conditioned world model in latent space.

    Args:
        perception: encoder Enc from observations to states.
        predictor: one-step predictor Pred in latent space.
        actions: how actions enter the predictor; by default continuous, as they are.
        correction: makes `observe` recurrent; by default a belief is the encoded observation.
    """

    def __init__(
        self,
        perception: Perception,
        predictor: Predictor,
        actions: Actions | None = None,
        correction: Correction | None = None,
    ) -> None:
        super().__init__()
        self.perception = perception
        self.predictor = predictor
        self.actions = actions or Actions(predictor.action_dim)
        self.correction = correction
        if self.actions.dim != predictor.action_dim:
            raise ValueError(
                f"the predictor takes actions of size {predictor.action_dim}, but they have size "
                f"{self.actions.dim}: build it with that size"
            )
        if correction is not None and correction.state_dim != self.latent_dim:
            raise ValueError(
                f"correction.state_dim is {correction.state_dim}: choose the encoder's "
                f"{self.latent_dim}"
            )

    @property
    def latent_dim(self) -> int:
        """Size D of the latent state."""
        return self.perception.latent_dim

    @property
    def action_dim(self) -> int:
        """Size A of a continuous action, or number n of discrete ones."""
        return self.actions.size

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def encode(
        self, observation: Tensor | Mapping[str, Tensor], context: Context | None = None
    ) -> Tensor:
        """S = Enc(x); see `perception.encode`."""
        return encode(self.perception, observation, context)

    def observe(
        self,
        belief: Tensor | None,
        previous_action: Tensor | None,
        observation: Tensor | Mapping[str, Tensor],
        context: Context | None = None,
    ) -> Tensor:
        """Estimate the state from what was believed, done and seen (section 4.1, first role).

        Args:
            belief: the state estimated one step ago, `(B, D)`, or None at the start.
            previous_action: the action taken since, `(B, A)`, or None at the start.
            observation: `(B, *O)`.
            context: conditioning, tensors with leading axis B, or None.

        Returns:
            The new belief, `(B, D)`; see `update`.
        """
        encoded = self.encode(observation, context)
        return self.update(belief, previous_action, encoded, context)

    def update(
        self,
        belief: Tensor | None,
        previous_action: Tensor | None,
        encoded: Tensor,
        context: Context | None = None,
    ) -> Tensor:
        """`observe` after the encoder: Pred(belief, a) corrected by Enc(x).

        Args:
            belief: the state estimated one step ago, `(B, D)`, or None at the start.
            previous_action: the action taken since, `(B, A)`, discrete ones `(B,)` or `(B, n)`, or
                None at the start.
            encoded: Enc(x), `(B, D)`.
            context: conditioning, tensors with leading axis B, or None.

        Returns:
            The new belief, `(B, D)`: Enc(x) itself at the start and in a model without correction.
        """
        if self.correction is None or belief is None or previous_action is None:
            return encoded
        prior = self.predict(belief, previous_action, context=context)
        corrected: Tensor = self.correction(prior, encoded)
        return corrected

    def predict(
        self,
        state: Tensor,
        action: Tensor,
        latent: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """S' = Pred(s, a, z): states `(N, D)` and actions `(N, A)` to next states `(N, D)`.

        Discrete actions are indices `(N,)` int64 or probabilities `(N, n)`.
        """
        next_state: Tensor = self.predictor(state, self.actions(action), latent, context)
        return next_state

    def sequence(self, states: Tensor, actions: Tensor, context: Context | None = None) -> Tensor:
        """The state after each of the given ones: teacher forcing, keeping the gradient.

        Args:
            states: `(N, T, D)`.
            actions: `(N, T, A)`, discrete ones `(N, T)` or `(N, T, n)`.
            context: conditioning, tensors with leading axis N, or None.

        Returns:
            `(N, T, D)`; see `Predictor.sequence`.
        """
        return self.predictor.sequence(states, self.actions(actions), context)

    def doubt(
        self, states: Tensor, actions: Tensor, next_states: Tensor, context: Context | None = None
    ) -> Tensor:
        """How unusual the predictions of roll-outs are; see `Predictor.doubt`.

        Args:
            states: the T states before each action, from a roll-out's beginning, `(..., T, D)`.
            actions: `(..., T, A)`, discrete ones `(..., T)` int64 or `(..., T, n)`.
            next_states: what was predicted, `(..., T, D)`.
            context: conditioning, or None; a code has leading axes that broadcast with those of
                the states, and is the same for all T.

        Returns:
            `(..., T)` in (0, 1).
        """
        lead, actions = states.shape[:-1], self.actions(actions)

        def rows(x: Tensor) -> Tensor:
            return x.expand(*lead, x.shape[-1]).reshape(-1, lead[-1], x.shape[-1])

        coded = None
        if self.predictor.modulation_dim and context is not None and "modulation" in context:
            coded = {"modulation": rows(context["modulation"])[:, 0]}
        return self.predictor.doubt(rows(states), rows(actions), rows(next_states), coded).view(
            lead
        )

    def rollout(
        self,
        state: Tensor,
        actions: Tensor,
        latents: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """Unroll the predictor, keeping the gradient.

        A predictor may take all steps at once (`Predictor.unroll`): with frozen parameters where
        that is faster, which rounds otherwise; always where it sees earlier states of a roll-out.

        Args:
            state: starting states, `(N, D)`.
            actions: `(N, H, A)`, discrete ones `(N, H)` or `(N, H, n)`.
            latents: `(N, H, Z)` or None.
            context: conditioning, tensors with leading axis N, or None.

        Returns:
            Predicted states after each action, `(N, H, D)`; the starting state is not among them.
        """
        if latents is None and actions.shape[1]:
            at_once = self.predictor.unroll(state, self.actions(actions))
            if at_once is not None:
                return at_once
        states = []
        for step, action in enumerate(actions.unbind(1)):
            latent = None if latents is None else latents[:, step]
            state = self.predict(state, action, latent, context)
            states.append(state)
        return torch.stack(states, dim=1)
