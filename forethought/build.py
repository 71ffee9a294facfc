"""Build: the only place that constructs across folders, from records and a run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from gymnasium.spaces import Box

from forethought import envs
from forethought.agent import Agent, Configurator, Cost, IntrinsicCost, Mode, Policy
from forethought.envs import EnvSpec
from forethought.planners import Planner
from forethought.worldmodel import (
    JEPA,
    ImagePerception,
    JointStage,
    Perception,
    Predictor,
    PredictorStage,
    Readouts,
    ResidualMLP,
)


@dataclass(frozen=True)
class Collection:
    """What is collected before training.

    Args:
        episodes: number of episodes; their seeds begin at 0 and stay below 10^6.
        num_envs: environments side by side.
        policy: the behaviour policy.
    """

    episodes: int = 1600
    num_envs: int = 64
    policy: envs.Policy = envs.Smooth()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        for name in ("episodes", "num_envs"):
            if getattr(self, name) < 1:
                raise ValueError(f"collection.{name} is {getattr(self, name)}: choose 1 or more")


@dataclass(frozen=True)
class Model:
    """The world model. Sizes known only at run time come from the environment.

    Args:
        perception: encoder class.
        predictor: predictor class.
    """

    perception: Callable[[EnvSpec], Perception] = ImagePerception
    predictor: Callable[[int, int], Predictor] = ResidualMLP


@dataclass(frozen=True)
class Stages:
    """The training stages.

    Args:
        joint: perception and predictor together.
        predictor: the predictor alone, on cached latents.
    """

    joint: JointStage = JointStage()  # noqa: RUF009 - frozen
    predictor: PredictorStage = PredictorStage()  # noqa: RUF009 - frozen


def device_of(name: str) -> torch.device:
    """The device called `auto`, `cpu`, `cuda` or `mps`; the one place where it is chosen.

    Raises:
        ValueError: this machine does not have it.
    """
    have = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in have.items() if there)
    if not have.get(name, False):
        there = ", ".join(kind for kind, is_there in have.items() if is_there)
        raise ValueError(f"device {name!r} is not available here: choose among {there}, auto")
    return torch.device(name)


def build_model(model: Model, spec: EnvSpec, device: torch.device, seed: int) -> JEPA:
    """A world model for environments like `spec`, initialised from `seed`.

    Raises:
        ValueError: the action space is not a box in [-1, 1].
    """
    space = spec.action_space
    if not isinstance(space, Box) or (space.low != -1).any() or (space.high != 1).any():
        raise ValueError(
            f"{spec.id} has the action space {space}: this version needs a Box in [-1, 1]"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        perception = model.perception(spec)
        jepa = JEPA(perception, model.predictor(perception.latent_dim, spec.action_dim))
    return jepa.to(device)


def build_readouts(jepa: JEPA, sizes: Mapping[str, int], seed: int) -> Readouts:
    """Readouts of named quantities, initialised from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Readouts(jepa.latent_dim, sizes).to(jepa.device)


def build_policy(jepa: JEPA, seed: int) -> Policy:
    """A policy for the states of `jepa`, initialised from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Policy(jepa.latent_dim, jepa.action_dim).to(jepa.device)


def build_agent(
    jepa: JEPA, cost: Cost, planner: Planner, *, mode: Mode = 2, policy: Policy | None = None
) -> Agent:
    """An agent around a trained world model, every gradient switched off."""
    bank = IntrinsicCost()
    jepa = jepa.eval().requires_grad_(False)
    return Agent(jepa, bank, Configurator(cost, bank, mode), planner, policy)
