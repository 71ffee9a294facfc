"""The training objective: weighted loss terms over a window of encoded and predicted states.

Heads that only training needs (inverse dynamics, expander) live here and not in the model.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from forethought.worldmodel import losses
from forethought.worldmodel.perception import mlp


@dataclass(frozen=True)
class Losses:
    """Weights of the loss terms; a term with weight 0 is neither computed nor logged.

    Args:
        prediction: multi-step prediction error.
        variance: VICReg's variance term.
        covariance: VICReg's covariance term (divided by D).
        temporal_similarity: squared change of the state per step.
        inverse_dynamics: error of the action read from two consecutive states.
        sigreg: sketched isotropic Gaussian regularisation.
        flatten: take batch statistics over B*T instead of over B for each time step.
        expander: width of VICReg's expander; 0 applies variance and covariance to the state itself.
        sigreg_directions: number of random directions of SIGReg.
    """

    prediction: float = 1.0
    variance: float = 4.0
    covariance: float = 0.0645
    temporal_similarity: float = 5.0
    inverse_dynamics: float = 10.0
    sigreg: float = 0.0
    flatten: bool = False
    expander: int = 0
    sigreg_directions: int = 48

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value >= 0:
                raise ValueError(f"losses.{field.name} is {value}: a weight is 0 or more")


class Objective(nn.Module):
    """Total loss of the joint stage, with the heads it needs.

    Trains: encoder and predictor through every term (no stop-gradient, no moving average),
    the expander through variance and covariance, the inverse dynamics through its own term.

    Args:
        weights: weights of the terms.
        state_dim: size D of the state.
        action_dim: size A of the action.
        generator: source of SIGReg's directions.
    """

    def __init__(
        self, weights: Losses, state_dim: int, action_dim: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.weights = weights
        self.generator = generator
        width = weights.expander
        self.expander = mlp(state_dim, [width], width) if width else nn.Identity()
        self.inverse_dynamics = mlp(2 * state_dim, [128], action_dim)

    def forward(
        self, encoded: Tensor, predicted: Tensor, actions: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the terms.

        Args:
            encoded: states of all observations of the window, `(B, T+1, D)`.
            predicted: states unrolled from the first one, `(B, T, D)`.
            actions: `(B, T, A)`.

        Returns:
            The scalar total, and each term before weighting under its own name.
        """
        w = self.weights
        terms: dict[str, Tensor] = {}
        if w.prediction:
            terms["prediction"] = losses.multi_step_prediction(predicted, encoded[:, 1:])
        if w.variance or w.covariance:
            expanded = self.expander(encoded)
            if w.variance:
                terms["variance"] = losses.variance(expanded, flatten=w.flatten)
            if w.covariance:
                terms["covariance"] = losses.covariance(expanded, flatten=w.flatten)
        if w.temporal_similarity:
            terms["temporal_similarity"] = losses.temporal_similarity(encoded)
        if w.inverse_dynamics:
            pairs = torch.cat((encoded[:, :-1], encoded[:, 1:]), dim=-1)
            terms["inverse_dynamics"] = (self.inverse_dynamics(pairs) - actions).square().mean()
        if w.sigreg:
            terms["sigreg"] = losses.sigreg(
                encoded,
                generator=self.generator,
                directions=w.sigreg_directions,
                flatten=w.flatten,
            )
        if not terms:
            raise ValueError("losses: every weight is 0: give at least one term a weight")
        total = torch.stack([getattr(w, name) * term for name, term in terms.items()]).sum()
        return total, terms
