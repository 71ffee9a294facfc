"""Watching a mind at work: what the agent thought, decision by decision, beside what happened.

`Watch` is called by `run_episodes` after each decision. It compares realised with imagined cost
(the exploitation alarm), counts what thinking took, and keeps means over the environments for each
decision of an episode: curves for the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forethought.agent.agent import Agent, AgentState
from forethought.agent.alarm import CostMonitor, Gaps, realised_terms


class Watch:
    """Told of every decision; see `summary` and `curves`.

    Args:
        agent: the agent that acts.
        baseline: gaps between imagined and realised cost along recorded actions, or None.
        ahead: planning steps over which the alarm compares.
    """

    def __init__(self, agent: Agent, baseline: Gaps | None = None, ahead: int = 8) -> None:
        self.agent = agent
        counted = agent.bank.names if bool(agent.configurator.weights.any()) else ()
        ahead = min(ahead, agent.configurator.cost.horizon)
        self.monitor = (
            CostMonitor.watching(counted, ahead=ahead, baseline=baseline) if counted else None
        )
        self._running = np.zeros(0, np.int64)
        self._last_action: Tensor | None = None
        self._rows: list[dict[str, Tensor]] = []
        self._times: list[int] = []

    def __call__(self, running: np.ndarray, observation: Any, info: Any, carried: Any) -> None:
        """One decision of the environments `running`; see `run_episodes`."""
        assert isinstance(carried, AgentState)
        mind = carried.mind
        if mind is None:  # the policy acts alone
            none = torch.zeros(len(running))
            self._rows.append({"thought": none, "model_steps": none})
            self._times.append(carried.time - 1)
            return
        begins = carried.time == 1  # it counts the decision that was just made
        if begins:  # another block of episodes: nothing imagined before is theirs
            self._last_action = None
            if self.monitor is not None:
                self.monitor = replace(self.monitor, plans=())
        elif len(running) < len(self._running):
            kept = torch.as_tensor(np.flatnonzero(np.isin(self._running, running)))
            if self._last_action is not None:
                self._last_action = self._last_action[kept.to(self._last_action.device)]
            if self.monitor is not None:
                self.monitor = self.monitor.select(kept)
        realised = self._realised(info, len(running))
        if self.monitor is not None and realised is not None:
            first = torch.full((len(running),), begins, dtype=torch.bool)
            self.monitor = self.monitor.observe(realised, mind.imagined_costs, begins=first)
        self._note(mind, carried, realised)
        self._running = running.copy()
        self._last_action = carried.previous_action
        self._times.append(carried.time - 1)

    @torch.no_grad()
    def _realised(self, info: Mapping[str, Any], rows: int) -> Tensor | None:
        """Intrinsic terms of the present states by the environment's own word, `(B, n)`."""
        if self.monitor is None or "quantities" not in info:
            return None
        told = {
            name: torch.as_tensor(np.asarray(value, np.float32))
            for name, value in info["quantities"].items()
            if not name.startswith(("_", "goal"))
        }
        action = self._last_action
        if action is None:  # nobody acted before the first state, which is compared with nothing
            action = torch.zeros(rows, self.agent.model.action_dim)
        return realised_terms(self.agent.bank, told, action.cpu())

    def _note(self, mind: Any, carried: AgentState, realised: Tensor | None) -> None:
        noted = {
            "energy": mind.energy,
            "signal": mind.signal,
            "thought": mind.thought.float(),
            "model_steps": mind.evaluations,
            "coverage": mind.coverage,
            "surprise": mind.surprise,
        }
        names = self.agent.bank.names if self.monitor is not None else ()
        for place, name in enumerate(names):
            noted[f"told_{name}"] = mind.costs[:, place]
            if realised is not None:
                noted[f"realised_{name}"] = realised[:, place]
        if self.agent.critic is not None and carried.belief is not None and names:
            with torch.no_grad():
                expected = self.agent.critic.average(carried.belief)
            noted["critic"] = (expected * carried.setting.u).sum(-1)
        self._rows.append({name: value.detach().float().cpu() for name, value in noted.items()})

    def summary(self) -> dict[str, float]:
        """Share of decisions thought about, model steps per decision, gaps per cost term."""
        if not self._rows:
            return {}
        thought = torch.cat([row["thought"] for row in self._rows])
        steps = torch.cat([row["model_steps"] for row in self._rows])
        found = {
            "thinking_share": float(thought.mean()),
            "model_steps_per_decision": float(steps.mean()),
        }
        return found | ({} if self.monitor is None else self.monitor.summary())

    def curves(self) -> list[tuple[int, dict[str, float]]]:
        """For each decision of an episode, means over the environments of what is a number."""
        merged: dict[int, dict[str, list[Tensor]]] = {}
        for time, row in zip(self._times, self._rows, strict=True):
            for name, value in row.items():
                merged.setdefault(time, {}).setdefault(name, []).append(value)
        curves = []
        for time in sorted(merged):
            means = {
                name: float(torch.cat(values).nanmean()) for name, values in merged[time].items()
            }
            curves.append((time, {name: x for name, x in means.items() if np.isfinite(x)}))
        return curves

    def sentence(self) -> str | None:
        """The alarm, where there is one."""
        return None if self.monitor is None else self.monitor.sentence()
