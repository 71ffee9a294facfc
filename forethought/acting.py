"""The verb `act`: a trained agent in its environment, with a video of what it had in mind.

A frame shows the scene and, beside it, the mind at work. What came of a state is known at the end
of its episode only, so that frames are drawn then.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from forethought import envs, pictures
from forethought.agent import (
    Adjustment,
    Agent,
    AgentController,
    AgentState,
    Cost,
    Mind,
    Mode,
    Outcome,
    Recall,
    Thinking,
    TopDown,
    held_out_seeds,
    realised,
    realised_terms,
    run_episodes,
)
from forethought.agent.cost.terms import parse_quantity
from forethought.agent.loop import OnDecision
from forethought.planners import Gradient, Planner
from forethought.run_folder import SUBGOALS, check_place
from forethought.running import Trained, load, priced
from forethought.scenes import Subgoals, frame_of
from forethought.threads import set_threads
from forethought.worldmodel import LatentData

logger = logging.getLogger(__name__)


def act(
    run: Path,
    *,
    mode: Literal[1, 2, "auto"] = 2,
    video: Path | None = None,
    episodes: int = 1,
    planner: Planner = Gradient(),  # noqa: B008 - frozen
    cost: Cost = Cost(),  # noqa: B008 - frozen
    recall: Recall = Recall(),  # noqa: B008 - frozen
    top_down: TopDown = TopDown(),  # noqa: B008 - frozen
    adjust: Adjustment = Adjustment(),  # noqa: B008 - frozen
    thinking: Thinking = Thinking(),  # noqa: B008 - frozen
    env_options: dict[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    trust: bool = False,
) -> list[Outcome]:
    """Let a trained agent act in its environment.

    Args:
        run: run folder.
        mode: 1 acts by the policy, 2 plans, `auto` plans where it is worth it.
        video: write a `.gif` or `.mp4` of what happened and what was imagined, with the mind at
            work beside it.
        episodes: number of held-out episodes.
        planner: Mode-2's planner; by default the run's.
        cost: what is minimised; by default the run's.
        recall: what is remembered, and what for; by default the run's.
        top_down: how levels above the world model plan; by default the run's.
        adjust: weights, aims and modulation other than the task's.
        thinking: when mode `auto` plans.
        env_options: options of the environment that replace the run's.
        seed: which block of held-out seeds, and the planner's randomness.
        device: `auto`, `cpu`, `cuda` or `mps`.
        threads: CPU threads of PyTorch; by default its own choice.
        trust: allow the run to import classes from outside of `forethought`.

    Returns:
        Outcomes of the episodes.
    """
    set_threads(threads)
    if video is not None and video.suffix not in {".gif", ".mp4"}:
        raise ValueError(f"video file {video} must end in .gif or .mp4")
    if video is not None:
        check_place(video)
    if video is not None:  # which shows the mind in Mode-1 too
        recall = replace(recall, in_mode_1=True)
    trained = load(
        run,
        planner=planner,
        cost=cost,
        recall=recall,
        top_down=top_down,
        adjust=adjust,
        thinking=thinking,
        device=device,
        trust=trust,
    )
    env = trained.make_env(1, **(env_options or {}))
    if mode == "auto":
        trained = priced(trained, env, seed)
    controller = AgentController(trained.in_mode(mode), torch.Generator().manual_seed(seed))
    recorder = None if video is None else Recorder(trained, controller.agent, env)
    outcomes: list[Outcome] = []
    for episode_seed in held_out_seeds(episodes, seed):
        subgoals = None if outcomes else Subgoals.of(trained, mode)
        watching = [each for each in (recorder, subgoals) if each is not None]
        on_step = partial(tell, watching) if watching else None
        outcomes += run_episodes(env, controller, [episode_seed], on_step=on_step)
        if recorder is not None:
            recorder.end(outcomes[-1])
        if subgoals is not None:
            pictures.write_picture(trained.folder.path / SUBGOALS, subgoals.picture())
    if video is not None and recorder is not None:
        pictures.write_video(video, recorder.frames())
    for outcome in outcomes:
        logger.info(
            "episode %d: %s after %d environment steps, return %.2f, %.1f ms per decision",
            outcome.seed,
            {True: "success", False: "no success", None: "done"}[outcome.success],
            outcome.decisions * trained.spec.action_repeat,
            outcome.return_,
            1000 * float(np.mean(outcome.decision_seconds)),
        )
    return outcomes


def tell(watching: Sequence[OnDecision], *decision: Any) -> None:
    """Tell all who watch of a decision; see `run_episodes`."""
    for each in watching:
        each(*decision)


Numbers = dict[tuple[str, str], float]  # by kind and name: a term may be called `energy` too

# How many components of quantities are shown: first those that the cost reads.
_SHOWN = 6


@dataclass(frozen=True, eq=False)
class Moment:
    """What is kept of one decision.

    Args:
        scene: the environment's picture, `(H, W, 3)` uint8, or None.
        words: what was decided.
        mind: numbers that the agent has in mind.
        world: what they are in the world, where that is known at once.
        ahead: what is imagined of them for the next decisions, `(H,)` each.
        terms: intrinsic terms of the state and the action that led to it, from the environment's
            quantities, `(n,)`; not-a-number where they do not tell.
        action: what was done, `(1, A)` or `(1,)`.
    """

    scene: np.ndarray | None
    words: str
    mind: Numbers
    world: Numbers
    ahead: dict[tuple[str, str], np.ndarray]
    terms: Tensor
    action: Tensor


class Recorder:
    """Keeps what went on in an agent that acts in one environment, and draws it.

    To be called after every decision, as `run_episodes` does, and told of every episode's end.

    Args:
        trained: the run.
        agent: the agent that acts.
        env: the environment, a vector of one.
    """

    def __init__(self, trained: Trained, agent: Agent, env: Any) -> None:
        self.trained, self.agent, self.env = trained, agent, env
        self._names = agent.bank.names if agent.configurator.task.has_cost else ()
        self._components = components_of(agent)
        self._sighted = True  # no picture has been missing yet
        self._episodes: list[tuple[list[Moment], np.ndarray]] = []
        self._moments: list[Moment] = []
        self._path: list[np.ndarray] = []
        self._imagined: Tensor | None = None
        self._age = 0  # decisions since that was imagined

    @torch.no_grad()
    def __call__(self, running: np.ndarray, observation: Any, info: Any, carried: Any) -> None:
        """One decision; see `run_episodes`."""
        assert isinstance(carried, AgentState)
        mind, action = carried.mind, carried.previous_action
        assert mind is not None
        assert action is not None
        again = carried.imagined is self._imagined and self._moments
        self._imagined, self._age = carried.imagined, self._age + 1 if again else 0
        terms = self._terms(quantities_of(info))
        numbers = self._mind(carried, mind)
        world = {("cost", name): float(term) for name, term in zip(self._names, terms, strict=True)}
        ahead: dict[tuple[str, str], np.ndarray] = {}
        if mind.imagined_costs is not None:
            for name, course in zip(self._names, mind.imagined_costs[0].unbind(-1), strict=False):
                ahead["cost", name] = course.cpu().numpy()
        self._look(carried, quantities_of(info), numbers, world, ahead)
        words, scene = words_of(carried.setting.mode, mind), self._scene(info, carried)
        self._moments.append(Moment(scene, words, numbers, world, ahead, terms, action.cpu()))

    def _terms(self, told: Mapping[str, Tensor]) -> Tensor:
        """Intrinsic terms of a state by the environment's own word, `(n,)`."""
        if not self._names:
            return torch.zeros(0)
        # Nobody acted before an episode's first state.
        nothing = torch.zeros(1, self.agent.model.action_dim)
        action = self._moments[-1].action if self._moments else nothing
        return realised_terms(self.agent.bank, told, action)[0]

    def _mind(self, carried: AgentState, mind: Mind) -> Numbers:
        """What is a number by itself in the mind."""
        numbers: Numbers = {("", "energy"): float(mind.energy)}
        if carried.setting.mode == "auto" or carried.setting.cost.replan_every > 1:
            numbers["", "thought"] = float(mind.thought)
        for place, name in enumerate(self._names):
            numbers["cost", name] = float(mind.costs[0, place])
        if self.agent.critic is not None and self._names and carried.belief is not None:
            expected = self.agent.critic.average(carried.belief)
            numbers["", "future cost"] = float((expected * carried.setting.u).sum())
        numbers["", "memory coverage"] = float(mind.coverage)
        numbers["", "surprise"] = float(mind.surprise)
        return numbers

    def _look(
        self,
        carried: AgentState,
        told: Mapping[str, Tensor],
        numbers: Numbers,
        world: Numbers,
        ahead: dict[tuple[str, str], np.ndarray],
    ) -> None:
        """Add what the readouts tell of the state, and of those imagined, to the three."""
        readouts = self.agent.readouts
        if readouts is None or carried.belief is None:
            return
        present = readouts(carried.belief)
        course = None if self._imagined is None else readouts(self._imagined[0, self._age :])
        for name, component in self._components:
            key = ("quantity", f"{name}[{component}]" if readouts.sizes[name] > 1 else name)
            numbers[key] = float(present[name][0, component])
            if name in told and told[name].shape[-1] > component:
                world[key] = float(told[name][0, component])
            if course is not None:
                ahead[key] = course[name][:, component].cpu().numpy()

    def _scene(self, info: Any, carried: AgentState) -> np.ndarray | None:
        """The environment's picture, or None where it draws none, which is said once."""
        spec, mode = self.trained.spec, self.env.render_mode
        remedy = "--env-options.render_mode=rgb_array adds one where the environment knows it"
        if spec.id in envs.GEOMETRIES or "maze" in info or mode == "rgb_array":
            try:
                return frame_of(self.trained, self.env, info, carried, self._path, self._age)
            except envs.RenderingError as error:
                remedy = str(error)
        if self._sighted:
            logger.info("%s draws no pictures, the video shows the mind alone: %s", spec.id, remedy)
        self._sighted = False
        return None

    def end(self, outcome: Outcome) -> None:
        """The episode is over."""
        self._episodes.append((self._moments, self._came(outcome)))
        self._moments, self._path, self._imagined = [], [], None

    @torch.no_grad()
    def _came(self, outcome: Outcome) -> np.ndarray:
        """What came of each state, on the scale of the critic's word, `(T,)`.

        Not-a-number where the episode was too short to tell, and where there is no critic.
        """
        decisions = len(self._moments)
        came = torch.full((decisions,), torch.nan)
        critic, configurator = self.agent.critic, self.agent.configurator
        if critic is None or not self._names:
            return came.numpy()
        last = self._terms(
            quantities_of({"quantities": {k: v[None] for k, v in outcome.quantities.items()}})
        )
        u = configurator.weights
        counted = u > 0  # what has no weight need not be known
        terms = torch.stack([*(moment.terms for moment in self._moments), last])
        costs = (terms * u)[:, counted].sum(-1, keepdim=True)
        stage = self.trained.arguments["stages"].critic
        if stage.form == "simple":
            later = costs[stage.delay : stage.delay + decisions, 0]
            came[: len(later)] = later
            return came.numpy()
        left = torch.arange(decisions, -1, -1)
        ended = decisions < envs.spec_of(self.env).episode_limit
        latents = torch.zeros(len(left), 1)  # of which only the number counts
        data = LatentData(latents, latents, left, (left == 1) & ended)
        end = (configurator.task.lasting * u).sum().unsqueeze(0)
        found, known = realised(data, costs.roll(-1, 0), end, critic.discount)
        return torch.where(known, found[:, 0], torch.nan)[:-1].numpy()

    def frames(self) -> Iterator[np.ndarray]:
        """The frames of all episodes that have ended, `(H, W, 3)` uint8.

        Raises:
            ValueError: there is nothing to draw.
        """
        several = len(self._episodes) > 1
        kept = [(moments, traces_of(moments, came)) for moments, came in self._episodes]
        # Strips are those of all episodes, so that frames have one size.
        rows = range(len(kept[0][1])) if kept else ()
        known = [row for row in rows if any(traces[row].known for _, traces in kept)]
        scenes = [moment.scene for moments, _ in kept for moment in moments]
        tallest = max((len(scene) for scene in scenes if scene is not None), default=0)
        if not known and not tallest:
            raise ValueError(
                f"there is nothing to draw of {self.trained.spec.id}: leave --video out"
            )
        for number, (moments, traces) in enumerate(kept, 1):
            begin = f"episode {number}, " if several else ""
            words = [
                f"{begin}decision {time} of {len(moments)}. {moment.words}"
                for time, moment in enumerate(moments, 1)
            ]
            shown = [traces[row] for row in known]
            panels = pictures.mind_frames(shown, words, height=tallest) if known else None
            for moment in moments:
                panel = None if panels is None else next(panels)
                parts = [part for part in (moment.scene, panel) if part is not None]
                yield pictures.beside(parts)


def traces_of(moments: Sequence[Moment], came: np.ndarray) -> list[pictures.Trace]:
    """The strips of an episode's panel.

    Args:
        moments: its T decisions.
        came: what came of each state, beside the critic's word, `(T,)`.
    """
    traces = []
    unknown = np.full(len(moments), np.nan)
    for key in moments[0].mind:
        mind = np.array([moment.mind[key] for moment in moments])
        world = np.array([moment.world.get(key, np.nan) for moment in moments])
        ahead = tuple(moment.ahead.get(key, unknown[:0]) for moment in moments)
        if key == ("", "future cost"):
            world = came
        kind, name = key
        label = f"cost {name}" if kind == "cost" else name
        traces.append(pictures.Trace(label, mind, world, ahead))
    return traces


def components_of(agent: Agent) -> list[tuple[str, int]]:
    """Quantities to show, each with one component: those that terms read, then the first ones."""
    if agent.readouts is None:
        return []
    sizes = agent.readouts.sizes
    reads = [parse_quantity(name) for item in agent.bank.terms for name in item.term.reads]
    wanted = [(name, component or 0) for name, component in reads if name in sizes]
    wanted += [(name, 0) for name in sizes if agent.readouts.varies(name)]
    return list(dict.fromkeys(wanted))[:_SHOWN]


def quantities_of(info: Mapping[str, Any]) -> dict[str, Tensor]:
    """Named quantities of the present state in an environment's info, `(B, n)` each."""
    return {
        name: torch.as_tensor(np.asarray(value, np.float32))
        for name, value in info.get("quantities", {}).items()
        if not name.startswith(("_", "goal"))
    }


def words_of(mode: Mode, mind: Mind) -> str:
    """What was decided, for people."""
    thought = bool(mind.thought)
    if mode == 1:
        return "Mode-1: the policy acts"
    if mode == 2:
        return "Mode-2: planned" if thought else "Mode-2: goes on with its plan"
    return "auto: thought (Mode-2)" if thought else "auto: did not think"
