"""Modulation end to end: data tell a code, everything is trained under it, a setting passes it.

The environment is a point on a line. An action pushes it one way or the other, which way is drawn
for every episode and told as `code`: without the code nobody can know where an action leads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file
from torch import Tensor

import forethought
from forethought.agent import (
    REACH,
    Adjustment,
    Agent,
    AgentController,
    AgentState,
    Configurator,
    Cost,
    Critic,
    CriticStage,
    Distillation,
    Effort,
    Policy,
    Task,
    TaskTerm,
    TemporalDistance,
    TemporalStage,
    distill,
    label,
    run_episodes,
    train_critic,
    train_temporal,
)
from forethought.agent.agreement import gradient_agreement
from forethought.agent.cost import Aim
from forethought.agent.distill import draw_settings, setting_code, setting_of, setting_size
from forethought.agent.loop import count, goal_of
from forethought.build import Model, build_model, build_policy
from forethought.course import quantities_of
from forethought.envs import Dataset, EnvSpec, Random, collect_to, make, spec_of
from forethought.planners import Gradient
from forethought.worldmodel import (
    JEPA,
    BeliefStage,
    Correction,
    JointStage,
    LatentData,
    Losses,
    Objective,
    Perception,
    Predictor,
    PredictorStage,
    Readouts,
    ResidualMLP,
    encode_dataset,
    encoded_blank,
    is_normalised,
    train_belief,
    train_joint,
    train_predictor,
)
from forethought.worldmodel.belief import track
from forethought.worldmodel.diagnostics import open_loop
from forethought.worldmodel.latents import CODE, code_size
from forethought.worldmodel.modulation import FiLM
from forethought.worldmodel.perception import AutoPerception, VectorPerception

ID = "TurnedPoint-v0"
PUSH = 0.2  # of an action 1
CPU = torch.device("cpu")


class TurnedPoint(gymnasium.Env[Any, Any]):
    """x' = x + 0.2 * gain * a; success is to be within 0.1 of the goal.

    Args:
        gain: of every episode; by default 1 or -1, drawn.
        tell: how many numbers the code has, all of them the gain; 0 gives no code.
        render_mode: nothing is drawn.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium wants it
    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    control_step_seconds = 0.1

    def __init__(
        self, gain: float | None = None, tell: int = 1, render_mode: str | None = None
    ) -> None:
        self.fixed, self.tell = gain, tell

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        drawn = float(self.np_random.choice([-1.0, 1.0]))
        self.gain = drawn if self.fixed is None else self.fixed
        self.x, self.goal = self.np_random.uniform(-0.7, 0.7, 2)
        return self.seen()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.x += PUSH * self.gain * float(np.clip(action[0], -1, 1))
        observation, info = self.seen()
        return observation, 0.0, False, False, info

    def seen(self) -> tuple[Any, dict[str, Any]]:
        quantities = {"position": [self.x]}
        if self.tell:
            quantities[CODE] = [self.gain] * self.tell
        info = {
            "quantities": quantities,
            "goal": np.array([self.goal], np.float32),
            "success": abs(self.x - self.goal) < 0.1,
        }
        return np.array([self.x], np.float32), info


gymnasium.register(ID, entry_point=TurnedPoint, max_episode_steps=16)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def collected(folder: Path, **options: Any) -> Dataset:
    env = lambda number: make(ID, number, **options)  # noqa: E731
    collect_to(folder, env, Random(), 12, num_envs=4)
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    found = collected(tmp_path_factory.mktemp("turned") / "data")
    assert set(found.arrays("quantities.code")[:, 0]) == {-1.0, 1.0}
    return found


def vector_spec() -> EnvSpec:
    return spec_of(make(ID))


def stirred(module: Any, seed: int = 5) -> Any:
    """`module` with FiLMs that are not the identity, as after training."""
    for part in module.modules():
        if isinstance(part, FiLM):
            for parameter in part.parameters():
                torch.nn.init.normal_(parameter, std=0.5, generator=seeded(seed))
    return module


# ---- cached latents ------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [7, 512])
def test_every_observation_is_encoded_under_its_own_code(held: Dataset, batch: int) -> None:
    model = stirred(build_model(Model(modulation=1), held.spec, CPU, 0))
    data = encode_dataset(model, held, batch)
    codes = torch.as_tensor(np.array(held.arrays("quantities.code")))
    assert data.codes is not None
    assert torch.equal(data.codes, codes)
    seen = torch.as_tensor(np.array(held.arrays("observations")))
    by_hand = torch.stack(
        [model.encode(x, {"modulation": c}) for x, c in zip(seen, codes, strict=True)]
    )
    torch.testing.assert_close(data.states, by_hand)
    other = model.encode(seen, {"modulation": -codes})
    assert not torch.allclose(data.states, other, atol=1e-2)
    index = torch.tensor([[0, 3], [40, 41]])
    context = data.context(index)
    assert context is not None
    assert torch.equal(context["modulation"], codes[index])


def test_without_modulation_there_are_no_codes(held: Dataset) -> None:
    data = encode_dataset(build_model(Model(), held.spec, CPU, 0), held)
    assert data.codes is None
    assert data.context(torch.arange(3)) is None


def test_the_code_is_no_target_of_readouts(held: Dataset) -> None:
    assert set(quantities_of(held, CPU)) == {"position", "reward", "terminated"}


# ---- every stage rolls out under the code of the window ------------------------------------------


class Exact(Predictor):
    """The true dynamics of states (x, gain); refuses a code that is not that of the row."""

    def __init__(self, by: str = "state") -> None:
        super().__init__()
        self.action_dim, self.modulation_dim, self.by = 2, 1, by
        self.scale = torch.nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(
        self, state: Tensor, action: Tensor, latent: Tensor | None = None, context: Any = None
    ) -> Tensor:
        """See `Predictor`; the second number of states, or of actions, is the gain."""
        code = context["modulation"]
        if not torch.equal((state if self.by == "state" else action)[:, 1:], code):
            raise ValueError("the code is another row's")
        self.calls += 1
        moved = state[:, :1] + self.scale * PUSH * code * action[:, :1]
        return torch.cat((moved, state[:, 1:]), 1)


class AsSeen(Perception):
    """States are observations."""

    latent_dim = 2

    def __init__(self) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def forward(self, observation: Any, context: Any = None) -> Tensor:
        """See `Perception`."""
        return observation + 0 * self.nothing

    def standardise_by(self, statistics: Any) -> None:
        """Nothing."""


EPISODES, LENGTH = 12, 9


def exact(by: str = "state", correction: Correction | None = None) -> JEPA:
    return JEPA(AsSeen(), Exact(by), correction=correction)


def lines() -> LatentData:
    """Episodes of points (x, gain), with gains all different; actions repeat the gain."""
    generator = seeded(3)
    gain = torch.linspace(-1.3, 1.2, EPISODES)[:, None].expand(-1, LENGTH + 1)
    push = 2 * torch.rand(EPISODES, LENGTH + 1, generator=generator) - 1
    x = torch.cat((torch.zeros(EPISODES, 1), (PUSH * gain * push).cumsum(1)[:, :-1]), 1)
    remaining = torch.arange(LENGTH, -1, -1).expand(EPISODES, -1)
    return LatentData(
        torch.stack((x, gain), -1).flatten(0, 1),
        torch.stack((push, gain), -1).flatten(0, 1),
        remaining.flatten(),
        torch.zeros(EPISODES * (LENGTH + 1), dtype=torch.bool),
        gain.flatten()[:, None].clone(),
    )


Stage = Callable[[JEPA, LatentData, list[dict[str, float]]], None]


def by_predictor(model: JEPA, data: LatentData, log: list[dict[str, float]]) -> None:
    stage = PredictorStage(steps=2, batch=8, unroll=4)
    train_predictor(model, data, stage, seeded(), lambda _, terms: log.append(terms))


def by_readouts(model: JEPA, data: LatentData, log: list[dict[str, float]]) -> None:
    readouts = Readouts(2, {"x": 1})
    x = data.states[:, :1]
    readouts.standardise_by({"x": x})
    readouts.fit(model, data, {"x": x}, seeded(), steps=2, batch=8)


def by_critic(model: JEPA, data: LatentData, log: list[dict[str, float]]) -> None:
    costs = data.states[:, :1].abs()
    stage = CriticStage(steps=2, batch=8, window=4)
    train_critic(Critic(2, 1, 0.9), model, data, costs, torch.ones(1), stage, seeded())


def by_temporal(model: JEPA, data: LatentData, log: list[dict[str, float]]) -> None:
    stage = TemporalStage(steps=2, batch=8, window=4, actions=3)
    train_temporal(TemporalDistance(2, 0.9), model, data, stage, seeded())


def by_open_loop(model: JEPA, data: LatentData, log: list[dict[str, float]]) -> None:
    log.append(open_loop(model, data, 5, seeded()))


@pytest.mark.parametrize("stage", [by_predictor, by_readouts, by_critic, by_temporal, by_open_loop])
def test_roll_outs_of_every_stage_have_the_codes_of_their_rows(stage: Stage) -> None:
    model, data = exact(), lines()
    log: list[dict[str, float]] = []
    stage(model, data, log)
    assert model.predictor.calls > 3  # type: ignore[operator]
    for terms in log:
        assert terms.get("prediction", 0.0) < 1e-10
        assert terms.get("open_loop_ratio", 0.0) < 1e-10
    assert data.codes is not None
    wrong = replace(data, codes=data.codes.roll(LENGTH + 1, 0))
    with pytest.raises(ValueError, match="another row's"):
        stage(model, wrong, [])
    with pytest.raises(TypeError):  # None holds no code
        stage(model, replace(data, codes=None), [])


def test_adversarial_starts_are_rolled_out_under_the_code() -> None:
    torch.manual_seed(0)
    model = JEPA(AsSeen(), ResidualMLP(2, 2, modulation=1))
    log: list[dict[str, float]] = []
    stage = PredictorStage(steps=1, batch=8, unroll=2, perturbation=0.1)
    train_predictor(model, lines(), stage, seeded(), lambda _, terms: log.append(terms))
    assert log[0]["prediction"] > log[0]["undisturbed"]


@pytest.mark.parametrize("by_row", [False, True])
def test_beliefs_are_tracked_under_the_code(by_row: bool) -> None:
    torch.manual_seed(0)
    model, data = exact("action", Correction(2)), lines()
    assert data.codes is not None
    blank = torch.zeros_like(data.states) if by_row else torch.zeros(2)
    stage = BeliefStage(steps=2, batch=8, window=4)
    train_belief(model, data, blank, stage, seeded())
    wrong = replace(data, codes=data.codes.roll(LENGTH + 1, 0))
    with pytest.raises(ValueError, match="another row's"):
        train_belief(model, wrong, blank, stage, seeded())
    starts = torch.tensor([0, LENGTH + 1])
    states, actions = data.windows(starts, 3)
    context = data.context(starts)
    with torch.no_grad():
        found = track(model, states, actions, context)
        belief = states[:, 0]
        for t in range(3):
            belief = model.observe(belief, actions[:, t], states[:, t + 1], context)
    torch.testing.assert_close(found[:, -1], belief)


def test_a_blank_at_each_row_is_what_hides_it() -> None:
    """One blank everywhere, told once or at each row, is the same training."""
    errors = []
    for rows in (None, EPISODES * (LENGTH + 1)):
        torch.manual_seed(0)
        blank = torch.tensor([0.3, -0.2])
        log: list[dict[str, float]] = []
        given = blank if rows is None else blank.expand(rows, -1)
        train_belief(
            exact("action", Correction(2)),
            lines(),
            given,
            BeliefStage(steps=3, batch=8, window=4),
            seeded(),
            lambda _, terms, log=log: log.append(terms),  # type: ignore[misc]
        )
        errors.append([(terms["blank"], terms["seen"]) for terms in log])
    assert errors[0] == errors[1]


def test_a_blank_looks_otherwise_under_every_code() -> None:
    torch.manual_seed(0)
    spec = vector_spec()
    perception = stirred(VectorPerception(spec, latent_dim=3, modulation=2))
    model = JEPA(perception, ResidualMLP(3, 1, modulation=2))
    codes = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    found = encoded_blank(model, spec, codes, batch=1)
    by_hand = torch.stack([model.encode(torch.zeros(1), {"modulation": c}) for c in codes])
    torch.testing.assert_close(found, by_hand)
    assert not torch.allclose(found[0], found[1])
    assert not found.requires_grad
    plain = JEPA(VectorPerception(spec, latent_dim=3), ResidualMLP(3, 1, modulation=2))
    assert encoded_blank(plain, spec, codes).shape == (3,)  # an encoder that reads no code


@pytest.mark.parametrize("normalise", [False, True])
def test_a_modulated_encoder_tells_whether_it_is_normalised(normalise: bool) -> None:
    torch.manual_seed(0)
    spec = vector_spec()
    assert is_normalised(VectorPerception(spec, normalise=normalise, modulation=3), spec) is (
        normalise
    )


def test_the_joint_stage_learns_under_the_code(held: Dataset) -> None:
    """With the code a prediction is possible, without it half of them are wrong."""
    errors = {}
    for modulation in (0, 1):
        torch.manual_seed(0)
        perception = VectorPerception(
            held.spec, latent_dim=2, hidden=16, normalise=False, modulation=modulation
        )
        model = JEPA(perception, ResidualMLP(2, 1, hidden=32, modulation=modulation))
        losses = Losses(prediction=1.0, inverse_dynamics=0, covariance=0, temporal_similarity=0)
        objective = Objective(losses, 2, model.actions, seeded())
        log: list[dict[str, float]] = []
        train_joint(
            model,
            objective,
            held,
            JointStage(steps=150, batch=32, unroll=3, learning_rate=3e-3),
            np.random.default_rng(0),
            lambda _, terms, log=log: log.append(terms),  # type: ignore[misc]
        )
        errors[modulation] = log[-1]["prediction"]
        films = [p for m in model.modules() if isinstance(m, FiLM) for p in m.parameters()]
        assert len(films) == (6 if modulation else 0)
        assert all(bool(p.any()) for p in films)  # those of encoder and predictor learn
    assert errors[1] < 0.3 * errors[0]


# ---- what does not fit is refused ----------------------------------------------------------------


def test_data_without_the_code_are_refused(tmp_path: Path) -> None:
    held = collected(tmp_path / "data", tell=0)
    model = build_model(Model(modulation=2), held.spec, CPU, 0)
    objective = Objective(Losses(), model.latent_dim, model.actions, seeded())
    says = r"model.modulation is 2, but the data hold no quantity 'code': choose 0, or"
    with pytest.raises(ValueError, match=says):
        encode_dataset(model, held)
    with pytest.raises(ValueError, match=says):
        train_joint(model, objective, held, JointStage(steps=1), np.random.default_rng(0))


def test_data_with_a_code_of_another_size_are_refused(held: Dataset) -> None:
    model = build_model(Model(modulation=2), held.spec, CPU, 0)
    with pytest.raises(ValueError, match=r"modulation is 2, .* has 1 numbers: choose 1"):
        encode_dataset(model, held)


def test_models_are_built_with_the_size_of_the_code() -> None:
    spec = vector_spec()
    model = build_model(Model(modulation=2, recurrent=True), spec, CPU, 0)
    assert (model.perception.modulation_dim, model.predictor.modulation_dim) == (2, 2)
    assert code_size(model) == build_policy(model, REACH, 0).modulation_dim == 2
    plain = build_model(Model(recurrent=True), spec, CPU, 0)
    assert code_size(plain) == build_policy(plain, REACH, 0).modulation_dim == 0
    weights = model.state_dict()  # FiLMs draw no random numbers
    assert all(torch.equal(weights[name], value) for name, value in plain.state_dict().items())
    with pytest.raises(ValueError, match=r"model\.modulation is -1: choose 0 or more"):
        Model(modulation=-1)


class Unmodulated(ResidualMLP):
    """Takes no `modulation`."""

    def __init__(self, state_dim: int, action_dim: int) -> None:
        super().__init__(state_dim, action_dim)


class Deaf(AutoPerception):
    """Takes `modulation` and forgets it."""

    def __init__(self, spec: EnvSpec, **options: Any) -> None:
        super().__init__(spec)


@pytest.mark.parametrize(
    ("options", "field"),
    [({"predictor": Unmodulated}, "predictor"), ({"perception": Deaf}, "perception")],
)
def test_classes_that_cannot_be_modulated_are_refused(options: Any, field: str) -> None:
    spec = vector_spec()
    build_model(Model(**options), spec, CPU, 0)
    says = rf"model.modulation is 1, but model.{field} takes no argument 'modulation': choose 0"
    with pytest.raises(ValueError, match=says):
        build_model(Model(modulation=1, **options), spec, CPU, 0)


# ---- end to end ----------------------------------------------------------------------------------

TRAIN = [
    f"--env={ID}",
    "--task=reach",
    "--collection.episodes=40",
    "--stages.joint.steps=150",
    "--stages.joint.unroll=4",
    "--stages.predictor.steps=150",
    "--stages.predictor.unroll=4",
    "--stages.readouts.steps=30",
    "--planner.iterations=5",
    "--planner.starts=2",
    "--cost.horizon=4",
    "--device=cpu",
    "--threads=1",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training through the front door."""
    folder = tmp_path_factory.mktemp("modulated") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forethought.pictures.training_curves", lambda *_: None)
        forethought.call("train", [*TRAIN, "--model.modulation=1", f"--run={folder}"])
    return folder


class Telling(Agent):
    """An agent whose start is told codes; what `Agent.start` would have to do."""

    @torch.no_grad()
    def start(  # type: ignore[override]
        self, batch: int, *, goal: Any = None, generator: torch.Generator, code: Any = None
    ) -> AgentState:
        own = self.configurator.modulation(batch, self.model.device)
        code = code if own is None else own
        context = None if code is None else {"modulation": code}
        encoded = None if goal is None else self.encode(goal, context)
        setting = self.configurator.configure(encoded, batch, self.model.device)
        return AgentState(replace(setting, modulation=code), generator)


@dataclass(frozen=True)
class TellingController(AgentController):
    """A controller that tells; what `AgentController.start` would have to do."""

    def start(self, observation: Any, info: Any) -> AgentState:
        """See `AgentController`."""
        codes = info["quantities"][CODE] if code_size(self.agent.model) else None
        assert isinstance(self.agent, Telling)
        return self.agent.start(
            count(observation),
            goal=goal_of(self.agent, info),
            generator=self.generator,
            code=None if codes is None else torch.as_tensor(codes).float(),
        )


def telling(agent: Agent) -> Telling:
    return Telling(**{name: getattr(agent, name) for name in agent.__dataclass_fields__})


SEEDS = list(range(1_000_000, 1_000_016))


def success(controller: AgentController, **options: Any) -> float:
    outcomes = run_episodes(make(ID, 16, **options), controller, SEEDS)
    return float(np.mean([bool(outcome.success) for outcome in outcomes]))


def test_the_right_code_reaches_goals_and_the_wrong_one_does_not(run: Path) -> None:
    found = {}
    for code in (1.0, -1.0):
        trained = forethought.load(run, adjust=Adjustment(modulation=(code,)))
        for gain in (1.0, -1.0):
            found[code, gain] = success(trained.controller(), gain=gain)
    assert min(found[1.0, 1.0], found[-1.0, -1.0]) > 0.8
    assert max(found[1.0, -1.0], found[-1.0, 1.0]) < 0.3


def test_a_setting_from_the_command_line(run: Path) -> None:
    words = [str(run), "--episodes=10", "--num-envs=10", "--baselines=false"]
    words += ["--timed-decisions=2", "--env-options.gain=-1"]
    rates = {}
    for code in (-1, 1):
        (row,) = forethought.call("evaluate", [*words, f"--adjust.modulation=[{code}]"])
        rates[code] = row["success_rate"]
    assert rates[-1] > rates[1] + 0.5


def test_codes_that_the_environment_tells(run: Path) -> None:
    agent = telling(forethought.load(run).agent)
    assert success(TellingController(agent, seeded())) > 0.8  # both gains side by side
    wrong = replace(agent.configurator, adjust=Adjustment(modulation=(1.0,)))
    mixed = TellingController(replace(agent, configurator=wrong), seeded())
    assert 0.2 < success(mixed) < 0.8  # the setting's own code goes before: half are wrong


def test_the_diagnostics_are_under_the_code(run: Path) -> None:
    report = json.loads((run / "diagnostics.json").read_text())
    assert report["open_loop_ratio"] < 0.3
    assert report["gradient_cosine_h2"] > 0.8
    assert not [name for name in report if "code" in name]


def test_the_gradient_agrees_with_the_simulator_under_the_right_code_alone(run: Path) -> None:
    found = {}
    for code in (1.0, -1.0):
        agent = forethought.load(run, adjust=Adjustment(modulation=(code,))).agent
        found[code] = gradient_agreement(
            agent, lambda number: make(ID, number, gain=1.0), [7, 8], seeded(), horizons=[3]
        )["gradient_cosine_h3"]
    assert found[1.0] > 0.8
    assert found[-1.0] < 0
    with pytest.raises(ValueError, match=r"gives no info\['quantities'\]\['code'\]"):
        gradient_agreement(
            forethought.load(run).agent,
            lambda number: make(ID, number, tell=0),
            [7],
            seeded(),
            horizons=[3],
        )


def test_a_code_that_nobody_reads_changes_nothing(tmp_path: Path) -> None:
    words = [f"--env={ID}", "--task=reach", "--collection.episodes=4", "--device=cpu"]
    words += ["--stages.joint.steps=3", "--stages.predictor.steps=3", "--stages.readouts.steps=3"]
    words += ["--planner.iterations=1", "--cost.horizon=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forethought.pictures.training_curves", lambda *_: None)
        for tell in (0, 1):
            more = [f"--env-options.tell={tell}", f"--run={tmp_path / str(tell)}"]
            forethought.call("train", [*words, *more])
    one, other = (load_file(tmp_path / str(tell) / "model.safetensors") for tell in (0, 1))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_course_refuses_what_does_not_fit(tmp_path: Path, held: Dataset) -> None:
    words = [f"--data={held.folder}", "--device=cpu", f"--run={tmp_path / 'run'}", "--task=reach"]
    with pytest.raises(ValueError, match="has 1 numbers: choose 1"):
        forethought.call("train", [*words, "--model.modulation=2"])
    words[2] = f"--run={tmp_path / 'other'}"
    words += ["--model.modulation=1", "--stages.critic.source=memory"]
    with pytest.raises(ValueError, match=r"source is 'memory', which keeps no codes"):
        forethought.call("train", words)


# ---- distillation --------------------------------------------------------------------------------


class Gained(Predictor):
    """The true dynamics of a state x."""

    def __init__(self) -> None:
        super().__init__()
        self.action_dim, self.modulation_dim = 1, 1
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(
        self, state: Tensor, action: Tensor, latent: Tensor | None = None, context: Any = None
    ) -> Tensor:
        """See `Predictor`."""
        return state + self.scale * PUSH * context["modulation"] * action


class Position(AsSeen):
    """States are positions."""

    latent_dim = 1


def planner_of(**adjust: Any) -> Agent:
    configurator = Configurator(Cost(horizon=4), REACH, 0.1, adjust=Adjustment(**adjust))
    return Agent(JEPA(Position(), Gained()), configurator, Gradient(starts=2, iterations=15))


HOW = Distillation(rounds=2, problems=96, batch=48, steps=150, minibatch=128, learning_rate=3e-3)


@pytest.mark.parametrize("how", [HOW, replace(HOW, arm="gradient")], ids=lambda how: how.arm)
def test_a_policy_is_told_the_code(how: Distillation) -> None:
    torch.manual_seed(0)
    agent = planner_of()
    policy = Policy(1, 1, hidden=32, modulation=1)
    states = 2 * torch.rand(200, 1, generator=seeded()) - 1
    codes = torch.where(torch.rand(200, 1, generator=seeded(1)) < 0.5, 1.0, -1.0)
    log: list[dict[str, float]] = []
    distill(agent, policy, states, how, seeded(), lambda _, t: log.append(t), codes=codes)
    assert log[-1]["energy"] < 1.5 * log[-1]["planner_energy"]
    goal = torch.tensor([[0.5], [-0.5]])
    for code in (1.0, -1.0):
        context = {"goal": goal, "modulation": torch.full((2, 1), code)}
        with torch.no_grad():
            acted = policy(torch.zeros(2, 1), context)
        assert (acted * code * goal.sign() > 0.5).all()


def test_labels_say_under_which_code() -> None:
    states, goals = torch.zeros(3, 1), torch.ones(3, 1)
    codes = torch.tensor([[1.0], [-1.0], [0.5]])
    labels = label(planner_of(), None, states, goals, seeded(), codes=codes)
    assert labels.codes is not None
    assert torch.equal(labels.codes, codes.repeat_interleave(4, 0))
    assert torch.equal(labels.actions.view(3, 4).sign()[:, 0], codes[:, 0].sign())
    own = label(planner_of(modulation=(-1.0,)), None, states, goals, seeded(), codes=codes)
    assert own.codes is not None
    assert (own.codes == -1).all()  # the adjustment's own code goes before


# ---- a policy that reads the setting -------------------------------------------------------------

AIMED = Task(
    terms={"effort": TaskTerm(Effort(), weight=0.02, floor=0.01)},
    aims={"place": Aim("state", scale=0.3)},
)


class Pushed(Gained):
    """As if the gain were 1 always; reads no code."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation_dim = 0

    def forward(
        self, state: Tensor, action: Tensor, latent: Tensor | None = None, context: Any = None
    ) -> Tensor:
        """See `Predictor`."""
        return state + self.scale * PUSH * action


def aimed(task: Task = AIMED, **adjust: Any) -> Agent:
    configurator = Configurator(Cost(horizon=4), task, 0.1, adjust=Adjustment(**adjust))
    return Agent(JEPA(Position(), Pushed()), configurator, Gradient(starts=2, iterations=15))


def test_the_code_of_a_setting_by_hand() -> None:
    agent = aimed(weights={"effort": 0.06}, aims={"place": (0.6,)}, aim_weights={"place": 3.0})
    setting = agent.configurator.configure(None, 2, CPU)
    code = setting_code(AIMED, setting)
    assert code.shape == (2, setting_size(AIMED)) == (2, 3)
    torch.testing.assert_close(code[0], torch.tensor([np.log(4), 0.6 / 0.3, np.log(4)]).float())
    back = setting_of(aimed(), torch.zeros(2, 1), None, code)  # and what it says counts
    torch.testing.assert_close(back.u, setting.u)
    torch.testing.assert_close(back.v, setting.v)
    torch.testing.assert_close(back.aims["place"], setting.aims["place"])
    torch.testing.assert_close(back.aim_weights, setting.aim_weights)
    assert back.modulation is code
    plain = setting_code(AIMED, aimed().configurator.configure(None, 1, CPU))
    torch.testing.assert_close(plain, torch.tensor([[np.log(2), 0.0, 0.0]]).float())


def test_settings_are_drawn_within_their_bounds() -> None:
    states = torch.linspace(-0.8, 0.6, 50)[:, None]
    agent = aimed()
    own = setting_code(AIMED, agent.configurator.configure(None, 1, CPU))
    codes = draw_settings(agent, states, 400, 0.75, seeded())
    is_own = (codes == own).all(1)
    assert 0.15 < float(is_own.float().mean()) < 0.35
    setting = setting_of(agent, states[:1].expand(400, -1), None, codes)
    u, place = setting.u[~is_own, 0], setting.aims["place"][~is_own, 0]
    assert float(u.min()) == pytest.approx(0.01)  # the floor; a quarter would be less
    assert 0.06 < float(u.max()) <= 0.0801
    assert place.min() >= -0.801
    assert place.max() <= 0.601
    assert len(place.unique()) > 40
    assert setting.aim_weights is not None
    counted = setting.aim_weights[~is_own]
    assert 0.2499 < float(counted.min()) < 0.5
    assert 2 < float(counted.max()) < 4.001


@pytest.mark.parametrize("how", [HOW, replace(HOW, arm="gradient")], ids=lambda how: how.arm)
def test_a_policy_goes_to_whichever_aim_is_passed(how: Distillation) -> None:
    torch.manual_seed(0)
    policy = Policy(1, 1, goal=False, hidden=64, modulation=setting_size(AIMED))
    states = 2 * torch.rand(300, 1, generator=seeded()) - 1
    how = replace(how, settings=0.9, problems=192, steps=200)
    agent = distill(aimed(), policy, states, how, seeded())
    for place in (-0.6, 0.0, 0.5):
        told = aimed(aims={"place": (place,)}).configurator.configure(None, 8, CPU)
        context = {"modulation": setting_code(AIMED, told)}
        start = torch.linspace(-0.9, 0.9, 8)[:, None]
        with torch.no_grad():
            path = policy.rollout(agent.model, start, context, 14)[1]
        assert float((path[:, -1] - place).abs().max()) < 0.15, place


def test_settings_that_a_policy_cannot_be_told_are_refused() -> None:
    how, states = replace(HOW, settings=0.5), torch.zeros(4, 1)
    with pytest.raises(ValueError, match=r"modulation is 1, .* a code of 3 numbers: build"):
        distill(aimed(), Policy(1, 1, goal=False, modulation=1), states, how, seeded())
    with pytest.raises(ValueError, match=r"the model is modulated .*: choose distillation"):
        distill(planner_of(), Policy(1, 1, modulation=1), states, how, seeded())
    setting = aimed(aims={"place": (0.1, 0.2)}).configurator.configure(None, 1, CPU)
    with pytest.raises(ValueError, match="'place' is given 2 numbers, but the policy was told 1"):
        setting_code(AIMED, setting)
    model = build_model(Model(), vector_spec(), CPU, 0)
    assert build_policy(model, AIMED, 0, settings=True).modulation_dim == 3
