"""A causal transformer as predictor: the next state from a window of states and actions.

LeWorldModel's predictor (2603.19312): states are the positions, each position's action conditions
it by adaptive layer norm, and an MLP with batch normalisation gives the next state. Unusual here: a
roll-out sees its own last W states, so that its first step sees one state and later ones more.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from forethought.worldmodel.predictors import Context, Predictor
from forethought.worldmodel.projector import Projector
from forethought.worldmodel.transformer import KeysValues, Transformer, causal_mask


class CausalPredictor(Predictor):
    """s_{t+1} = Pred(s_{t-W+1..t}, a_{t-W+1..t}), trained on all prefixes of a window at once.

    `forward` is a step from a history of one, `sequence` one from each of up to W given states,
    `unroll` goes on from its own predictions. A caller that takes single steps by `forward` gets a
    prediction without history each time.

    Args:
        state_dim: size D of the state.
        action_dim: size A of the action, or of a block of actions.
        window: states W that a prediction sees.
        width: of the transformer; 0 takes D. Another one than D is reached by a linear layer.
        depth: number of blocks.
        heads: number of heads.
        head_dim: size of a head; 0 divides the width among them.
        hidden: width of the blocks' MLPs; 0 takes four times the width.
        projector: width of the last MLP, with batch normalisation; 0 takes one linear layer.
        dropout: probability with which numbers are left out in training.
        inner_norm: see `Block`; LeWorldModel's code has it.
        normalise: apply the LayerNorm of a normalised encoder to s'.

    Raises:
        ValueError: a size is out of range.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        *,
        window: int = 3,
        width: int = 0,
        depth: int = 2,
        heads: int = 4,
        head_dim: int = 0,
        hidden: int = 0,
        projector: int = 0,
        dropout: float = 0.0,
        inner_norm: bool = False,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("window", window, 1),
            ("width", width, 0),
            ("projector", projector, 0),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}: choose {least} or more")
        width = width or state_dim
        self.action_dim, self.window = action_dim, window
        self.lift = nn.Identity() if width == state_dim else nn.Linear(state_dim, width)
        self.positions = nn.Parameter(torch.randn(window, width) * 0.02)
        self.embed = nn.Sequential(
            nn.Linear(action_dim, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
        )
        self.transformer = Transformer(
            width,
            depth,
            heads,
            head_dim=head_dim,
            hidden=hidden,
            condition_dim=width,
            dropout=dropout,
            inner_norm=inner_norm,
        )
        self.project: nn.Module = nn.Linear(width, state_dim)
        if projector:
            self.project = Projector(width, projector, state_dim)
        self.norm = nn.LayerNorm(state_dim, elementwise_affine=False) if normalise else None

    def forward(
        self,
        state: Tensor,
        action: Tensor,
        latent: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        """Predict the next state from a history of one; see `Predictor.forward`."""
        return self.sequence(state.unsqueeze(1), action.unsqueeze(1))[:, 0]

    def sequence(self, states: Tensor, actions: Tensor, context: Context | None = None) -> Tensor:
        """The state after each of up to W, from it and those before; see `Predictor.sequence`.

        Raises:
            ValueError: there are more than W states.
        """
        length = states.shape[1]
        if length > self.window:
            raise ValueError(
                f"a sequence has {length} states, but the predictor's window is {self.window}: "
                "choose a window of as many, or shorter sequences (stages.joint.unroll)"
            )
        x = self.lift(states) + self.positions[:length]
        mask = causal_mask(length, states.device) if length > 1 else None
        return self._told(self.transformer(x, self.embed(actions), mask=mask))

    def unroll(self, state: Tensor, actions: Tensor) -> Tensor:
        """See `Predictor.unroll`: each step sees the last W states of the roll-out.

        While the window still grows, each state passes the blocks once and its keys and values are
        kept. When it slides, positions move, and all W pass again.
        """
        conditions = self.embed(actions)  # (N, H, W)
        states, lifted = [state], [self.lift(state)]
        past: tuple[KeysValues, ...] | None = None
        for step in range(actions.shape[1]):
            if step < self.window:
                x = (lifted[-1] + self.positions[step]).unsqueeze(1)
                out, own = self.transformer.read(x, conditions[:, step : step + 1], past=past)
                past = own if past is None else tuple(map(_joined, past, own))
            else:
                x = torch.stack(lifted[-self.window :], dim=1) + self.positions
                seen = conditions[:, step + 1 - self.window : step + 1]
                out = self.transformer(x, seen, mask=causal_mask(self.window, x.device))
            states.append(self._told(out[:, -1:])[:, 0])
            lifted.append(self.lift(states[-1]))
        return torch.stack(states[1:], dim=1)

    def _told(self, features: Tensor) -> Tensor:
        """Next states `(N, T, D)` from the transformer's output `(N, T, W)`."""
        flat: Tensor = self.project(features.flatten(0, 1))
        if self.norm is not None:
            flat = self.norm(flat)
        return flat.view(*features.shape[:2], -1)


def _joined(past: KeysValues, own: KeysValues) -> KeysValues:
    """Keys and values of a sequence and of what follows it."""
    return KeysValues(*(torch.cat(pair, dim=-2) for pair in zip(past, own, strict=True)))
