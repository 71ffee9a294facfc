"""The training objective: weighted loss terms over a window of encoded and predicted states.

Heads that only training needs (inverse dynamics, expander) live here and not in the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from forethought.worldmodel import losses, ranks
from forethought.worldmodel.jepa import Actions
from forethought.worldmodel.perception import mlp
from forethought.worldmodel.readouts import Readouts
from forethought.worldmodel.target import SlowEncoder


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
        readout: error of the named quantities read from encoded and predicted states. Above 0 the
            readouts shape the encoder; at 0 they only listen, fitted afterwards.
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
    readout: float = 0.0
    flatten: bool = False
    expander: int = 0
    sigreg_directions: int = 48

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value >= 0:
                raise ValueError(f"losses.{field.name} is {value}: a weight is 0 or more")
        if self.sigreg and not self.sigreg_directions:
            raise ValueError("losses.sigreg_directions is 0: SIGReg needs at least 1")


class Objective(nn.Module):
    """Total loss of the joint stage, with the heads it needs.

    Trains: encoder and predictor through every term (no stop-gradient, but at targets where they
    are given), the expander through variance and covariance, inverse dynamics and readouts through
    their own terms.

    Args:
        weights: weights of the terms.
        state_dim: size D of the state.
        actions: how actions enter the model; gives their size and kind.
        generator: source of SIGReg's directions.
        readouts: heads that shape the encoder where `weights.readout` is above 0, or None.
        slow: moving average of the encoder that gives the targets of predictions
            (`JointStage.target_decay`), or None.
    """

    def __init__(
        self,
        weights: Losses,
        state_dim: int,
        actions: Actions,
        generator: torch.Generator,
        readouts: Readouts | None = None,
        slow: SlowEncoder | None = None,
    ) -> None:
        super().__init__()
        self.weights = weights
        self.generator = generator
        width = weights.expander
        self.expander = mlp(state_dim, [width], width) if width else nn.Identity()
        self.inverse_dynamics = mlp(2 * state_dim, [128], actions.size)
        self.readouts = readouts if weights.readout else None
        self.slow = slow

    @property
    def reads(self) -> tuple[str, ...]:
        """Named quantities that the loss needs with every window."""
        return () if self.readouts is None else tuple(self.readouts.sizes)

    def forward(
        self,
        encoded: Tensor,
        predicted: Tensor,
        actions: Tensor,
        quantities: Mapping[str, Tensor] | None = None,
        targets: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the terms.

        Args:
            encoded: states of all observations of the window, `(B, T+1, D)`.
            predicted: states unrolled from the first one, `(B, T, D)`.
            actions: `(B, T, A)`, or `(B, T)` int64 where they are discrete.
            quantities: `(B, T+1, n)` each; read where `readout` has a weight.
            targets: what is to be predicted, `(B, T, D)`; by default the encoded states after the
                first, with gradient.

        Returns:
            The scalar total, and each term before weighting under its own name. Batch statistics
            are taken over the batches of all ranks.
        """
        w = self.weights
        terms: dict[str, Tensor] = {}
        if w.prediction:
            after = encoded[:, 1:] if targets is None else targets
            terms["prediction"] = losses.multi_step_prediction(predicted, after)
        if w.variance or w.covariance:
            expanded = ranks.gather(self.expander(encoded))
            if w.variance:
                terms["variance"] = losses.variance(expanded, flatten=w.flatten)
            if w.covariance:
                terms["covariance"] = losses.covariance(expanded, flatten=w.flatten)
        if w.temporal_similarity:
            terms["temporal_similarity"] = losses.temporal_similarity(encoded)
        if w.inverse_dynamics:
            pairs = torch.cat((encoded[:, :-1], encoded[:, 1:]), dim=-1)
            terms["inverse_dynamics"] = action_error(self.inverse_dynamics(pairs), actions)
        if w.sigreg:
            terms["sigreg"] = losses.sigreg(
                ranks.gather(encoded),
                generator=self.generator,
                directions=w.sigreg_directions,
                flatten=w.flatten,
            )
        if self.readouts is not None and quantities is not None:
            states = torch.cat((encoded, predicted), dim=1)
            true = {name: torch.cat((q, q[:, 1:]), dim=1) for name, q in quantities.items()}
            terms["readout"] = self.readouts.error(states, true)
        if not terms:
            raise ValueError("losses: every weight is 0: give at least one term a weight")
        total = torch.stack([getattr(w, name) * term for name, term in terms.items()]).sum()
        return total, terms


def action_error(told: Tensor, actions: Tensor) -> Tensor:
    """Error of actions told from something else: mean squared, or cross-entropy if discrete.

    Args:
        told: `(..., A)`, or logits `(..., n)`.
        actions: `(..., A)`, or indices `(...)` int64.
    """
    if actions.is_floating_point():
        return (told - actions).square().mean()
    return nn.functional.cross_entropy(told.flatten(0, -2), actions.flatten())
