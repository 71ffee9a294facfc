"""JEPA: a joint-embedding predictive architecture, conditioned on actions (LeCun 2022, fig. 12).

The model is perception and predictor and nothing else: losses, heads and optimisers live in
`objective` and `train`. Its `rollout` is the only roll-out of a world model in the project; it
serves training, evaluation and, handed over as `Problem.rollout`, planning.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from forethought.worldmodel.perception import Perception
from forethought.worldmodel.predictors import Context, Predictor


class JEPA(nn.Module):
    """Action-conditioned world model in latent space.

    Args:
        perception: encoder Enc from observations to states.
        predictor: one-step predictor Pred in latent space.
    """

    def __init__(self, perception: Perception, predictor: Predictor) -> None:
        super().__init__()
        self.perception = perception
        self.predictor = predictor

    @property
    def latent_dim(self) -> int:
        """Size D of the latent state."""
        return self.perception.latent_dim

    @property
    def action_dim(self) -> int:
        """Size A of the action."""
        return self.predictor.action_dim

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def encode(self, observation: Tensor) -> Tensor:
        """S = Enc(x): observations `(..., *O)` to states `(..., D)`."""
        state: Tensor = self.perception(observation)
        return state

    def observe(
        self, belief: Tensor | None, previous_action: Tensor | None, observation: Tensor
    ) -> Tensor:
        """Estimate the state from what was believed, done and seen (section 4.1, first role).

        Args:
            belief: the state estimated one step ago, `(B, D)`, or None at the start.
            previous_action: the action taken since, `(B, A)`, or None at the start.
            observation: `(B, *O)`.

        Returns:
            The new belief, `(B, D)`. This model is memoryless: the belief is Enc(x).
        """
        return self.encode(observation)

    def predict(
        self,
        state: Tensor,
        action: Tensor,
        latent: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """S' = Pred(s, a, z): states `(N, D)` and actions `(N, A)` to next states `(N, D)`."""
        next_state: Tensor = self.predictor(state, action, latent, context)
        return next_state

    def rollout(
        self,
        state: Tensor,
        actions: Tensor,
        latents: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """Unroll the predictor, keeping the gradient.

        Args:
            state: starting states, `(N, D)`.
            actions: `(N, H, A)`.
            latents: `(N, H, Z)` or None.
            context: conditioning, tensors with leading axis N, or None.

        Returns:
            Predicted states after each action, `(N, H, D)`; the starting state is not among them.
        """
        states = []
        for step, action in enumerate(actions.unbind(1)):
            latent = None if latents is None else latents[:, step]
            state = self.predict(state, action, latent, context)
            states.append(state)
        return torch.stack(states, dim=1)
