"""A cost term of one's own: a mass on a rail is to stand at a place of our choice.

    python examples/own_term.py runs/own-term

The task stands beside this file, in `own_term.yaml`, which names the class by its import path. The
term reads a quantity of the environment, which readouts learn to tell from imagined states.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from forethought import load
from forethought.agent import IntrinsicTerm
from forethought.cli import main


@dataclass(frozen=True)
class Away(IntrinsicTerm):
    """How far a quantity is from a place: d^2 / (d^2 + scale^2), in [0, 1).

    Attributes:
        quantity: what is read; the mean over its components counts.
        place: where it shall be.
        scale: distance at which the cost is a half.
    """

    quantity: str = "position"
    place: float = 0.0
    scale: float = 0.5

    def __call__(self, quantities: Mapping[str, Tensor], action: Tensor) -> Tensor:
        """Cost `(...)` of quantities `(..., n)`."""
        square = (quantities[self.quantity] - self.place).square()
        return (square / (square + self.scale**2)).mean(-1)


if __name__ == "__main__":
    run = sys.argv[1] if len(sys.argv) > 1 else "runs/own-term"
    task = Path(__file__).with_suffix(".yaml")
    words = ["--env=forethought/DoubleIntegrator-v0", f"--task={task}", "--collection.episodes=60"]
    words += ["--stages.joint.steps=300", "--stages.predictor.steps=500", "--cost.horizon=15"]
    if main(["train", *words, f"--run={run}", *sys.argv[2:]]):
        sys.exit("training failed")
    agent = load(run, trust=True)  # trust: the run names a class from outside of forethought
    for outcome in agent.play(episodes=5):
        position = float(outcome.quantities["position"].item())
        sys.stdout.write(f"the mass ends at {position:.2f} m; wanted: 0.50 m\n")
