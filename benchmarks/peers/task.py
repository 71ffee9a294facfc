"""The task that all contenders share, and the record of which steps of the model they took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from forethought import load
from forethought.agent import GoalDistance, held_out_seeds
from forethought.planners import Problem, evaluate
from forethought.worldmodel import JEPA


@dataclass(frozen=True)
class Call:
    """One call of the model: rows, steps, and whether a gradient in the actions was wanted."""

    rows: int
    steps: int
    gradient: bool


class Model:
    """A world model that writes down how it is called, once `calls` is a list."""

    def __init__(self, jepa: JEPA) -> None:
        self.jepa = jepa
        self.calls: list[Call] | None = None

    def rollout(self, state: Tensor, actions: Tensor) -> Tensor:
        """States `(N, H, D)` after each of the actions `(N, H, A)`."""
        self._note(len(actions), actions.shape[1], actions)
        return self.jepa.rollout(state, actions)

    def steps(self, state: Tensor, actions: Tensor) -> Tensor:
        """As `rollout`, a call of the network per step: as models of other libraries do it."""
        states = []
        for action in actions.unbind(1):
            states.append(state := self.predict(state, action))
        return torch.stack(states, 1)

    def predict(self, state: Tensor, action: Tensor) -> Tensor:
        """The next state `(N, D)`."""
        self._note(len(action), 1, action)
        return self.jepa.predict(state, action)

    def _note(self, rows: int, steps: int, actions: Tensor) -> None:
        if self.calls is not None:
            self.calls.append(Call(rows, steps, torch.is_grad_enabled() and actions.requires_grad))

    def replay(self, calls: list[Call], state: Tensor, action_dim: int) -> Callable[[], None]:
        """A function that takes the steps of `calls` and nothing else, from a state `(B, D)`."""
        kinds = dict.fromkeys(calls)
        inputs = {
            call: (
                state[torch.arange(call.rows) % len(state)],
                torch.zeros(call.rows, call.steps, action_dim, requires_grad=call.gradient),
            )
            for call in kinds
        }

        def bare() -> None:
            for call in calls:
                start, actions = inputs[call]
                with torch.set_grad_enabled(call.gradient):
                    if call.steps == 1:
                        states = self.jepa.predict(start, actions[:, 0])
                    else:
                        states = self.jepa.rollout(start, actions)
                    if call.gradient:
                        torch.autograd.grad(states, actions, torch.ones_like(states))

        return bare


@dataclass(frozen=True, eq=False)
class Task:
    """B starts and goals of a trained run, to be planned for from latent states.

    Args:
        model: the run's world model.
        state: `(B, D)`.
        goal: `(B, D)`.
        horizon: H.
        action_dim: A; actions lie in [-1, 1].
    """

    model: Model
    state: Tensor
    goal: Tensor
    horizon: int
    action_dim: int

    @property
    def batch(self) -> int:
        """B."""
        return len(self.state)

    @property
    def problem(self) -> Problem:
        """As our planners take it: the distance to the goal, summed over the steps."""
        bound = self.state.new_ones(self.action_dim)
        return Problem(
            state=self.state,
            step=lambda s, a, z, context, t: self.model.predict(s, a),
            rollout=lambda s, a, z, context: self.model.rollout(s, a),
            goal_cost=GoalDistance(),
            horizon=self.horizon,
            low=-bound,
            high=bound,
            context={"goal": self.goal},
        )

    def energy(self, actions: Tensor) -> Tensor:
        """Energy `(B,)` of actions `(B, H, A)`, clamped to the bounds as an environment does."""
        with torch.no_grad():
            return evaluate(self.problem, actions.clamp(-1, 1).unsqueeze(1))[0][:, 0]


def task_from(run: str, batch: int, horizon: int, *, block: int, device: str) -> Task:
    """Starts and goals of held-out episodes of a run's environment, encoded."""
    trained = load(run, device=device)
    jepa, env = trained.agent.model, trained.make_env(batch)
    observation, info = env.reset(seed=held_out_seeds(batch, block))
    with torch.no_grad():
        state, goal = (
            jepa.encode(torch.as_tensor(x).to(jepa.device)) for x in (observation, info["goal"])
        )
    env.close()
    return Task(Model(jepa), state, goal, horizon, jepa.action_dim)


@dataclass(frozen=True)
class Budget:
    """What every contender may spend.

    Args:
        candidates: sequences per problem and iteration of the sampling planners.
        iterations: their rounds.
        elites: the best of them that count.
        starts: sequences of the gradient planners.
        descents: their steps.
    """

    candidates: int
    iterations: int
    elites: int
    starts: int
    descents: int


class Contender(Protocol):
    """A planner of some library in one configuration.

    Attributes:
        library: its name and version.
        family: what is compared with each other: `CEM`, `iCEM`, `MPPI`, `gradient`.
        setting: how it is configured, for the table.
        model: `steps` of the network one by one, or our whole `roll-out`.
        batch_size: problems that it plans side by side; None for all.
    """

    library: str
    family: str
    setting: str
    model: str
    batch_size: int | None

    def plans(self, task: Task, seed: int) -> Callable[[], Tensor]:
        """A function that plans all problems once: actions `(B, H, A)`. Making it is not timed."""
        ...
