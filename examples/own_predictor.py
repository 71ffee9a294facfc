"""A predictor of one's own: a world model that is linear in its latent state.

    python examples/own_predictor.py runs/own-predictor

The same works for `--model.perception`. Sizes known only at run time come first, options after
them; each option is one of the command line: `--model.predictor.rank 4`.
"""

import sys
from collections.abc import Mapping

from torch import Tensor, nn

from forethought import load
from forethought.cli import main
from forethought.worldmodel import Predictor


class Linear(Predictor):
    """s' = s + U V s + B a, with U V of low rank.

    Args:
        state_dim: size D of the state.
        action_dim: size A of the action.
        rank: rank of U V.
    """

    def __init__(self, state_dim: int, action_dim: int, *, rank: int = 8) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.drift = nn.Sequential(nn.Linear(state_dim, rank), nn.Linear(rank, state_dim))
        self.push = nn.Linear(action_dim, state_dim, bias=False)

    def forward(
        self,
        state: Tensor,
        action: Tensor,
        latent: Tensor | None = None,
        context: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Next states `(N, D)` of states `(N, D)` and actions `(N, A)`; uses no latent."""
        next_state: Tensor = state + self.drift(state) + self.push(action)
        return next_state


if __name__ == "__main__":
    run = sys.argv[1] if len(sys.argv) > 1 else "runs/own-predictor"
    words = ["--env=forethought/DoubleIntegrator-v0", "--model.predictor=own_predictor.Linear"]
    words += ["--collection.episodes=60", "--stages.joint.steps=300", "--cost.horizon=15"]
    words += ["--stages.predictor.steps=500", f"--run={run}", *sys.argv[2:]]
    if main(["train", *words]):
        sys.exit("training failed")
    agent = load(run, trust=True)  # trust: the run names a class from outside of forethought
    for outcome in agent.play(episodes=5):
        position = float(outcome.quantities["position"].item())
        sys.stdout.write(f"the mass ends at {position:.2f} m; wanted: 0.00 m\n")
