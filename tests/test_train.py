"""Training: a known optimum, both stages on real episodes in seconds, and a stored loss curve.

`python tests/test_train.py` writes the stored curve anew. Do so only for a change that is meant to
change learning, and say why in the changelog.
"""

from __future__ import annotations

import copy
import json
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_perception import vector_spec
from torch import Tensor, nn

from forethought.envs import Dataset, Smooth, collect, make, spec_of, write_shard
from forethought.worldmodel import (
    JEPA,
    Actions,
    CausalPredictor,
    GRUPredictor,
    ImagePerception,
    JointStage,
    LatentData,
    Losses,
    NonFiniteLossError,
    Objective,
    Predictor,
    PredictorStage,
    Readouts,
    ResidualMLP,
    VectorPerception,
    ViTPerception,
    effective_rank,
    encode_dataset,
    fit,
    latent_std,
    losses,
    train_joint,
    train_predictor,
)
from forethought.worldmodel.diagnostics import open_loop, probe_scores, warnings
from forethought.worldmodel.predictors import Context
from forethought.worldmodel.train import _pushed

CURVE = Path(__file__).parent / "curves" / "joint_two_rooms.json"
D = 16
JOINT = JointStage(steps=150, batch=16, unroll=4, learning_rate=3e-3)
PREDICTOR = PredictorStage(steps=250, batch=32, unroll=8, learning_rate=3e-3)
KEYS = {"loss", "gradient_norm", "learning_rate", "steps_per_second"}
Log = list[tuple[int, dict[str, float]]]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def collect_rooms(folder: Path) -> Dataset:
    """16 episodes of 60 steps in two shards."""
    env = make("forethought/TwoRooms-v0", 8)
    episodes = list(collect(env, Smooth(), 16, first_seed=0, generator=np.random.default_rng(0)))
    for shard in (episodes[:10], episodes[10:]):
        write_shard(folder, shard, spec_of(env))
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return collect_rooms(tmp_path_factory.mktemp("rooms"))


def new_model(data: Dataset, width: int = 16, recurrent: bool = False) -> JEPA:
    torch.manual_seed(0)
    perception = ImagePerception(
        data.spec, latent_dim=D, channels=(width, 2 * width), hidden=2 * width
    )
    predictor = GRUPredictor(D, 2, hidden=32) if recurrent else ResidualMLP(D, 2, hidden=64)
    return JEPA(perception, predictor)


def joint(data: Dataset, weights: Losses, stage: JointStage = JOINT, **model: Any) -> JEPA:
    jepa = new_model(data, **model)
    objective = Objective(weights, D, Actions(2), seeded())
    train_joint(jepa, objective, data, stage, np.random.default_rng(0))
    return jepa


def report_of(jepa: JEPA, data: LatentData) -> dict[str, float]:
    report = {
        "latent_std": latent_std(data.states),
        "effective_rank": effective_rank(data.states),
    }
    return report | open_loop(jepa, data, 8, seeded())


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# ---- the loop --------------------------------------------------------------------------------


def quadratic(start: Tensor) -> tuple[nn.Parameter, Any]:
    """(x - m)' Q (x - m) + 3 with a known minimum, m."""
    x = nn.Parameter(start.clone())
    matrix = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    minimum = torch.tensor([1.5, -0.5])

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        error = x - minimum
        value = error @ matrix @ error + 3
        return value, {"bowl": value - 3}

    return x, loss


def test_fit_finds_the_minimum_of_a_quadratic() -> None:
    x, loss = quadratic(torch.tensor([-1.0, 2.0]))
    fit([x], loss, steps=400, learning_rate=0.1)
    torch.testing.assert_close(x.detach(), torch.tensor([1.5, -0.5]), atol=1e-3, rtol=0)


def test_fit_reports_and_its_rate_rises_and_ends_at_zero() -> None:
    x, loss = quadratic(torch.zeros(2))
    log: Log = []
    fit(
        [x],
        loss,
        steps=205,
        learning_rate=0.05,
        on_step=lambda *entry: log.append(entry),
        log_every=10,
    )
    assert [step for step, _ in log] == [*range(10, 201, 10), 205]
    for _, record in log:
        assert set(record) == {"bowl", *KEYS}
        assert all(type(value) is float for value in record.values())
        assert record["loss"] == pytest.approx(record["bowl"] + 3, abs=1e-5)
        assert record["steps_per_second"] > 0
    rates = [record["learning_rate"] for _, record in log]
    # 10 updates in, half of the 20 steps of warm-up; after it, the cosine.
    assert rates[0] == pytest.approx(0.05 * 0.5 * 0.5 * (1 + np.cos(np.pi * 9 / 205)))
    assert rates[10] == pytest.approx(0.05 * 0.5 * (1 + np.cos(np.pi * 109 / 205)))
    assert rates[-1] < 1e-4 * 0.05
    assert log[-1][1]["loss"] == pytest.approx(3, abs=1e-3)


def test_fit_reports_the_gradient_before_clipping_and_clips_it() -> None:
    moved = {}
    for clip in (10.0, 1e-9):
        x = nn.Parameter(torch.zeros(1))
        log: Log = []

        def loss(x: nn.Parameter = x) -> tuple[Tensor, dict[str, Tensor]]:
            return (500 * x).sum(), {}

        fit([x], loss, steps=1, learning_rate=0.1, clip=clip, on_step=lambda *e: log.append(e))  # noqa: B023
        assert log[0][1]["gradient_norm"] == 500
        moved[clip] = abs(x.item())
    # Adam divides by the gradient plus 1e-8: a gradient cut to 1e-9 moves by a tenth.
    assert moved[10.0] == pytest.approx(0.1, rel=1e-3)
    assert moved[1e-9] == pytest.approx(0.1 / 11, rel=1e-2)


def test_fit_of_no_steps_does_nothing_and_leaves_frozen_parameters() -> None:
    x, loss = quadratic(torch.zeros(2))
    fit([x], loss, steps=0, learning_rate=1.0)
    assert torch.equal(x, torch.zeros(2))
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    fit([x, frozen], loss, steps=2, learning_rate=1.0)
    assert torch.equal(frozen, torch.ones(2))
    assert not torch.equal(x, torch.zeros(2))


@pytest.mark.parametrize("bad", ["nan", "inf", "constant", "gradient"])
def test_a_loss_that_is_not_finite_leaves_the_parameters(bad: str) -> None:
    x, bowl = quadratic(torch.zeros(2))
    seen: list[Tensor] = []

    def loss() -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(x.detach().clone())
        value, terms = bowl()
        if len(seen) < 4:
            return value, terms
        if bad == "gradient":  # the loss is finite, its derivative at zero is not
            return value + (x - x.detach()).abs().sqrt().sum(), terms
        if bad == "constant":  # the loss is not finite, its derivative is
            return value + float("inf"), terms
        return value * float(bad), terms

    with pytest.raises(NonFiniteLossError, match=r"at step 4 \(bowl .*lower the learning rate"):
        fit([x], loss, steps=10, learning_rate=0.1)
    assert len(seen) == 4
    assert torch.equal(x, seen[-1])
    assert not torch.equal(x, torch.zeros(2))


# ---- the objective ---------------------------------------------------------------------------


TERMS = [
    "prediction",
    "variance",
    "covariance",
    "temporal_similarity",
    "inverse_dynamics",
    "sigreg",
    "readout",
]
NONE = Losses(**dict.fromkeys(TERMS, 0.0))


def window() -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    generator = seeded(3)
    encoded = 0.5 * torch.randn(8, 5, 4, generator=generator)
    predicted = torch.randn(8, 4, 4, generator=generator)
    actions = torch.randn(8, 4, 2, generator=generator)
    return encoded, predicted, actions, {"height": torch.randn(8, 5, 1, generator=generator)}


def objective(weights: Losses) -> Objective:
    torch.manual_seed(0)
    return Objective(weights, 4, Actions(2), seeded(), Readouts(4, {"height": 1}, hidden=8))


def test_each_weight_changes_the_total_and_each_term_is_logged() -> None:
    assert {f.name for f in fields(Losses)} - {*TERMS} == {
        "flatten",
        "expander",
        "sigreg_directions",
    }
    full = replace(NONE, **dict.fromkeys(TERMS, 1.0))
    total, terms = objective(full)(*window())
    assert list(terms) == TERMS
    torch.testing.assert_close(total, torch.stack(list(terms.values())).sum())
    for name in TERMS:
        assert terms[name] > 0
        heavier, same_terms = objective(replace(full, **{name: 3.0}))(*window())
        torch.testing.assert_close(heavier, total + 2 * terms[name])
        torch.testing.assert_close(same_terms[name], terms[name])  # logged without its weight
        alone, only = objective(replace(NONE, **{name: 0.5}))(*window())
        assert list(only) == [name]
        torch.testing.assert_close(alone, 0.5 * terms[name])


def test_terms_are_the_losses_of_the_right_states() -> None:
    encoded, predicted, actions, quantities = window()
    module = objective(replace(NONE, **dict.fromkeys(TERMS, 1.0)))
    _, terms = module(encoded, predicted, actions, quantities)
    height = quantities["height"]
    assert module.readouts is not None
    read = [module.readouts(states)["height"] for states in (encoded, predicted)]
    wrong = torch.cat((read[0] - height, read[1] - height[:, 1:]), 1)
    pairs = torch.cat((encoded[:, :-1], encoded[:, 1:]), -1)
    expected = {
        "prediction": losses.multi_step_prediction(predicted, encoded[:, 1:]),
        "variance": losses.variance(encoded),
        "covariance": losses.covariance(encoded),
        "temporal_similarity": losses.temporal_similarity(encoded),
        "inverse_dynamics": (module.inverse_dynamics(pairs) - actions).square().mean(),
        "sigreg": losses.sigreg(encoded, generator=seeded()),
        "readout": wrong.square().mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)


@pytest.mark.parametrize("option", [{"flatten": True}, {"sigreg_directions": 3}, {"expander": 6}])
def test_options_change_the_terms(option: dict[str, Any]) -> None:
    weights = replace(NONE, variance=1.0, covariance=1.0, sigreg=1.0)
    total, _ = objective(weights)(*window())
    changed, _ = objective(replace(weights, **option))(*window())
    assert abs(total - changed) > 1e-3


def test_the_expander_serves_variance_and_covariance_and_learns_from_them() -> None:
    encoded, predicted, actions, _ = window()
    module = objective(replace(NONE, variance=1.0, covariance=1.0, expander=6))
    total, terms = module(encoded, predicted, actions)
    expanded = module.expander(encoded)
    assert expanded.shape == (8, 5, 6)
    torch.testing.assert_close(terms["variance"], losses.variance(expanded))
    torch.testing.assert_close(terms["covariance"], losses.covariance(expanded))
    total.backward()
    for name, parameter in module.expander.named_parameters():
        # A bias before the statistics of a batch cancels, so it need not move.
        assert parameter.grad is not None, name
        assert name == "2.bias" or parameter.grad.abs().sum() > 0, name


def test_gradient_flows_through_every_term() -> None:
    for name in TERMS:
        encoded, predicted, *told = window()
        encoded.requires_grad_()
        predicted.requires_grad_()
        objective(replace(NONE, **{name: 1.0}))(encoded, predicted, *told)[0].backward()
        assert encoded.grad is not None, name
        assert encoded.grad.abs().sum() > 0, name
        assert (predicted.grad is not None) == (name in {"prediction", "readout"})


def test_weights_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="give at least one term a weight"):
        objective(NONE)(*window())
    for name in TERMS:
        for value in (-1.0, float("nan")):
            with pytest.raises(ValueError, match=rf"losses\.{name} is .*a weight is 0 or more"):
                replace(NONE, **{name: value})


# ---- the cache -------------------------------------------------------------------------------


def test_the_cache_is_what_encoding_each_episode_gives(rooms: Dataset) -> None:
    jepa = new_model(rooms)
    data = encode_dataset(jepa, rooms, batch=100)  # batches end inside episodes
    assert data.states.shape == (16 * 61, D)
    assert not data.states.requires_grad
    for index in range(rooms.episodes):
        episode = rooms.episode(index)
        rows = slice(
            int(rooms.observation_offsets[index]), int(rooms.observation_offsets[index + 1])
        )
        expected = jepa.encode(torch.as_tensor(episode.observations))
        torch.testing.assert_close(data.states[rows], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(data.actions[rows][:-1], torch.as_tensor(episode.actions))
        assert (data.actions[rows][-1] == 0).all()
        assert data.remaining[rows].tolist() == list(range(episode.length, -1, -1))


def test_latent_windows_are_the_windows_of_the_data_set(rooms: Dataset) -> None:
    jepa = new_model(rooms)
    data, length = encode_dataset(jepa, rooms), 5
    batch = rooms.windows(length).sample(20, np.random.default_rng(0))
    encoded = jepa.encode(torch.as_tensor(batch.observations)).detach()
    starts = data.starts(length)
    states, actions = data.windows(starts, length)
    assert states.shape == (len(starts), length + 1, D)
    assert actions.shape == (len(starts), length, 2)
    for b in range(20):
        wanted = torch.as_tensor(batch.actions[b])
        found = (actions == wanted).all(-1).all(-1).nonzero().squeeze(1)
        assert len(found) == 1
        torch.testing.assert_close(states[found[0]], encoded[b], rtol=1e-4, atol=1e-5)


def ragged() -> LatentData:
    """Episodes of 3, 1 and 4 actions; a state says which episode and time it is of."""
    lengths = [3, 1, 4]
    states = [[e, t] for e, length in enumerate(lengths) for t in range(length + 1)]
    remaining = [length - t for length in lengths for t in range(length + 1)]
    table = torch.tensor(states, dtype=torch.float32)
    left = torch.tensor(remaining)
    actions = 10 * table[:, :1] + table[:, 1:]
    return LatentData(table, actions, left, (left == 1) & (table[:, 0] == 2))


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_windows_never_cross_an_episode(length: int) -> None:
    data = ragged()
    starts = data.starts(length)
    assert len(starts) == sum(max(0, n - length + 1) for n in (3, 1, 4))
    states, actions = data.windows(starts, length)
    assert (states[..., 0] == states[:, :1, 0]).all()  # one episode
    assert (states[:, 1:, 1] - states[:, :-1, 1] == 1).all()  # one step after another
    assert torch.equal(actions[..., 0], 10 * states[:, :-1, 0] + states[:, :-1, 1])


class Clock(Predictor):
    """s' = s + change; a change of [0, 1] is the truth of `ragged`."""

    def __init__(self, change: list[float]) -> None:
        super().__init__()
        self.action_dim = 1
        self.change = nn.Parameter(torch.tensor(change))

    def forward(
        self,
        state: Tensor,
        action: Tensor,
        latent: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        return state + self.change


@pytest.mark.parametrize("unroll", [1, 2, 4])
def test_each_prediction_is_compared_with_the_state_it_is_of(unroll: int) -> None:
    perception = VectorPerception(vector_spec(3), latent_dim=2, hidden=4)
    stage = PredictorStage(steps=1, batch=8, unroll=unroll)
    for change, late in (([0.0, 1.0], 0.0), ([0.0, 0.0], 1.0)):
        log: Log = []
        model = JEPA(perception, Clock(change))
        train_predictor(model, ragged(), stage, seeded(), lambda *e, to=log: to.append(e))
        # The clock that stands still is late by k after k steps, in one of two dimensions.
        expected = late * sum(k * k for k in range(1, unroll + 1)) / unroll / 2
        assert log[0][1]["prediction"] == pytest.approx(expected)


def test_a_window_longer_than_every_episode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unroll is 5, but the longest episode has 4 actions"):
        ragged().starts(5)


@pytest.mark.parametrize(
    ("stage", "option"),
    [
        (stage, option)
        for stage in (JointStage, PredictorStage)
        for option in (
            {"steps": -1},
            {"batch": 0},
            {"unroll": 0},
            {"learning_rate": 0.0},
            {"learning_rate": float("nan")},
        )
    ],
)
def test_stages_that_make_no_sense_are_refused(stage: Any, option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(ValueError, match=rf"stages\.\w+\.{name} is .*choose"):
        stage(**option)


# ---- learning in seconds -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(rooms: Dataset) -> JEPA:
    """After the joint stage; copy it before training it further."""
    return joint(rooms, Losses())


@pytest.mark.slow
def test_both_stages_beat_copying_without_collapse(rooms: Dataset, trained: JEPA) -> None:
    jepa = copy.deepcopy(trained)
    data = encode_dataset(jepa, rooms)
    before = report_of(jepa, data)
    train_predictor(jepa, data, PREDICTOR, seeded())
    report = report_of(jepa, data)
    assert report["latent_std"] > 0.3
    assert report["effective_rank"] > 3
    assert report["open_loop_ratio"] < 0.5  # 1 is copying; 0.12 when this was written
    assert report["open_loop_ratio"] < 0.7 * before["open_loop_ratio"]
    assert warnings(report) == []


@pytest.mark.slow
def test_sigreg_alone_prevents_collapse(rooms: Dataset) -> None:
    weights = replace(NONE, prediction=1.0, sigreg=1.0)
    jepa = joint(rooms, weights)
    data = encode_dataset(jepa, rooms)
    assert latent_std(data.states) > 0.3
    assert effective_rank(data.states) > 3


@pytest.mark.slow
def test_prediction_and_similarity_alone_collapse_and_it_is_said(rooms: Dataset) -> None:
    weights = replace(Losses(), variance=0, covariance=0, inverse_dynamics=0)
    jepa = joint(rooms, weights)
    report = report_of(jepa, encode_dataset(jepa, rooms))
    assert report["latent_std"] < 0.05
    assert any("the latent has collapsed (std" in sentence for sentence in warnings(report))


def test_the_predictor_stage_leaves_perception_untouched(rooms: Dataset, trained: JEPA) -> None:
    jepa = copy.deepcopy(trained)
    before = weights_of(jepa.perception), weights_of(jepa.predictor)
    data = encode_dataset(jepa, rooms)
    log: Log = []
    stage = replace(PREDICTOR, steps=20)
    train_predictor(jepa, data, stage, seeded(), lambda *entry: log.append(entry))
    assert same(weights_of(jepa.perception), before[0])
    assert not same(weights_of(jepa.predictor), before[1])
    assert [(step, set(record)) for step, record in log] == [(20, {"prediction", *KEYS})]
    assert log[0][1]["prediction"] == log[0][1]["loss"]


@pytest.mark.parametrize("recurrent", [False, True])
def test_the_joint_stage_trains_everything(rooms: Dataset, recurrent: bool) -> None:
    jepa = new_model(rooms, width=4, recurrent=recurrent)
    heads = Objective(replace(Losses(), expander=8), D, Actions(2), seeded())
    before = {**weights_of(jepa), **weights_of(heads)}
    log: Log = []
    stage = replace(JOINT, steps=3)
    train_joint(
        jepa, heads, rooms, stage, np.random.default_rng(0), lambda *entry: log.append(entry)
    )
    after = {**weights_of(jepa), **weights_of(heads)}
    still = {name for name in after if torch.equal(after[name], before[name])}
    assert not still - {"expander.2.bias"}  # that one cancels in the statistics of a batch
    mean, std = rooms.channel_statistics()
    standardise = jepa.perception.standardise
    assert torch.equal(standardise.mean.flatten(), torch.as_tensor(mean))
    assert torch.equal(standardise.std.flatten(), torch.as_tensor(std))
    used = {name for name in TERMS if name not in {"sigreg", "readout"}}
    assert [(step, set(record)) for step, record in log] == [(3, {*used, *KEYS})]


def test_twin_runs_are_equal(rooms: Dataset) -> None:
    def run(seed: int) -> dict[str, Tensor]:
        jepa = new_model(rooms, width=4)
        heads = Objective(replace(Losses(), sigreg=0.1), D, Actions(2), seeded())
        stage = replace(JOINT, steps=8)
        train_joint(jepa, heads, rooms, stage, np.random.default_rng(seed))
        data = encode_dataset(jepa, rooms)
        train_predictor(jepa, data, replace(PREDICTOR, steps=8), seeded(seed))
        return weights_of(jepa)

    first = run(0)
    assert same(first, run(0))
    assert not same(first, run(1))


# ---- how a stage is run ------------------------------------------------------------------------


def losses_of(data: Dataset, steps: int, **how: Any) -> tuple[JEPA, list[dict[str, float]]]:
    """A joint stage of a small model, and its terms at every step."""
    jepa = new_model(data, width=8)
    heads = Objective(replace(Losses(), sigreg=0.05), D, Actions(2), seeded())
    terms: list[dict[str, float]] = []

    def record(module: nn.Module, inputs: Any, output: tuple[Tensor, dict[str, Tensor]]) -> None:
        assert all(term.dtype == torch.float32 for term in (output[0], *output[1].values()))
        terms.append(
            {"loss": float(output[0].detach())}
            | {k: float(v.detach()) for k, v in output[1].items()}
        )

    heads.register_forward_hook(record)
    stage = replace(JOINT, steps=steps)
    train_joint(jepa, heads, data, stage, np.random.default_rng(0), **how)
    return jepa, terms


def test_bfloat16_stays_close_to_float32(rooms: Dataset) -> None:
    full, in_full = losses_of(rooms, 25)
    low, in_low = losses_of(rooms, 25, bfloat16=True)
    assert all(p.dtype == torch.float32 for p in low.parameters())
    assert in_low[0] != in_full[0]  # autocast was on
    for name in in_full[0]:
        # The same batch and weights: a rounding of 8 bits. Later on the weights part.
        assert in_low[0][name] == pytest.approx(in_full[0][name], rel=0.02, abs=0.01), name
    ends = [np.mean([term["loss"] for term in run[-5:]]) for run in (in_full, in_low)]
    assert ends[1] == pytest.approx(ends[0], rel=0.1)
    starts = np.mean([term["loss"] for term in in_full[:5]])
    assert ends[1] < 0.9 * starts
    assert not same(weights_of(full), weights_of(low))


@pytest.mark.parametrize("recurrent", [False, True])
def test_bfloat16_serves_every_predictor(rooms: Dataset, recurrent: bool) -> None:
    jepa = new_model(rooms, width=4, recurrent=recurrent)
    heads = Objective(Losses(), D, Actions(2), seeded())
    before, stage = weights_of(jepa), replace(JOINT, steps=2)
    train_joint(jepa, heads, rooms, stage, np.random.default_rng(0), bfloat16=True)
    after = weights_of(jepa)
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert not same(after, before)


def test_standardisation_is_left_alone_where_asked(rooms: Dataset) -> None:
    jepa, heads = new_model(rooms, width=4), Objective(Losses(), D, Actions(2), seeded())
    stage = replace(JOINT, steps=1)
    train_joint(jepa, heads, rooms, stage, np.random.default_rng(0), standardise=False)
    standardise = jepa.perception.standardise
    assert torch.equal(standardise.mean, torch.zeros_like(standardise.mean))


# ---- predictors with a window, dropout, and the optimiser's options --------------------------


def with_window(data: Dataset, dropout: float = 0.0) -> JEPA:
    torch.manual_seed(0)
    perception = ImagePerception(data.spec, latent_dim=8, channels=(4, 8), hidden=16)
    predictor = CausalPredictor(8, 2, depth=1, heads=2, projector=16, dropout=dropout)
    return JEPA(perception, predictor)


SHORT = JointStage(steps=12, batch=8, unroll=3, learning_rate=3e-3, teacher_forcing=True)


def windowed(data: Dataset, stage: JointStage = SHORT, dropout: float = 0.0) -> JEPA:
    jepa = with_window(data, dropout)
    objective = Objective(Losses(sigreg=0.1), 8, Actions(2), seeded())
    train_joint(jepa, objective, data, stage, np.random.default_rng(0))
    return jepa


class Listening(Objective):
    """Keeps what it is given."""

    heard: tuple[Tensor, ...] = ()

    def forward(self, *given: Any) -> Any:
        self.heard = given[:3]
        return super().forward(*given)


@pytest.mark.parametrize("forced", [False, True])
def test_teacher_forcing_predicts_from_encoded_states(rooms: Dataset, forced: bool) -> None:
    jepa = with_window(rooms)
    objective = Listening(Losses(), 8, Actions(2), seeded())
    stage = replace(SHORT, steps=1, teacher_forcing=forced, learning_rate=1e-12)
    train_joint(jepa, objective, rooms, stage, np.random.default_rng(0))
    encoded, predicted, actions = objective.heard
    jepa.train()  # as it was when it was heard
    sequence = jepa.sequence(encoded[:, :-1], actions)
    rollout = jepa.rollout(encoded[:, 0], actions)
    assert not torch.allclose(sequence, rollout, atol=1e-3)
    torch.testing.assert_close(predicted, sequence if forced else rollout, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("option", [{"weight_decay": 1.0}, {"warmup": 1}, {"clip": 1e-3}])
def test_each_option_of_the_optimiser_counts(rooms: Dataset, option: dict[str, Any]) -> None:
    stage = replace(SHORT, steps=30)
    plain, changed = windowed(rooms, stage), windowed(rooms, replace(stage, **option))
    assert not same(weights_of(plain), weights_of(changed))


def test_weight_decay_shrinks_weights_that_have_no_gradient() -> None:
    """By 1 - rate * decay in each update, and by nothing without it."""
    for decay in (0.0, 0.5):
        weight, rates = nn.Parameter(torch.tensor([2.0, -3.0])), []
        fit(
            [weight],
            lambda held=weight: ((0.0 * held).sum(), {}),
            steps=30,
            learning_rate=0.1,
            weight_decay=decay,
            log_every=1,
            on_step=lambda _, values, told=rates: told.append(values["learning_rate"]),
        )
        left = float(np.prod([1 - decay * rate for rate in rates]))
        torch.testing.assert_close(weight.detach(), left * torch.tensor([2.0, -3.0]))
        assert (left < 0.6) == (decay > 0)


def test_dropout_is_drawn_from_the_given_generator(rooms: Dataset) -> None:
    torch.manual_seed(1)
    first = windowed(rooms, dropout=0.5)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = windowed(rooms, dropout=0.5)
    assert same(weights_of(first), weights_of(second))
    torch.manual_seed(0)  # `windowed` begins with it: nothing else has been drawn
    with_window(rooms)
    Objective(Losses(sigreg=0.1), 8, Actions(2), seeded())
    after = torch.get_rng_state()
    windowed(rooms, dropout=0.5)
    assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(before, after)
    assert not same(weights_of(first), weights_of(windowed(rooms)))


def test_the_predictor_stage_drops_out_by_its_generator_too(rooms: Dataset) -> None:
    def stage(dropout: float, seed: int) -> dict[str, Tensor]:
        jepa = with_window(rooms, dropout)
        data = encode_dataset(jepa, rooms)
        jepa.eval()
        train_predictor(jepa, data, PredictorStage(steps=5, batch=8, unroll=5), seeded(seed))
        assert not jepa.training
        assert not jepa.predictor.training  # as it was
        return weights_of(jepa.predictor)

    assert same(stage(0.5, 0), stage(0.5, 0))
    assert not same(stage(0.5, 0), stage(0.0, 0))


def test_stages_train_in_training_mode_and_the_cache_is_encoded_out_of_it(rooms: Dataset) -> None:
    torch.manual_seed(0)
    spec, modes = rooms.spec, []
    sizes = {"latent_dim": 8, "patch": 8, "width": 8, "depth": 1, "heads": 2, "projector": 16}
    perception = ViTPerception(spec, **sizes)
    jepa = JEPA(perception, CausalPredictor(8, 2, depth=1, heads=2, projector=16)).eval()
    perception.project[1].register_forward_hook(lambda part, *_: modes.append(part.training))
    objective = Objective(Losses(sigreg=0.1), 8, Actions(2), seeded())
    train_joint(jepa, objective, rooms, SHORT, np.random.default_rng(0))
    assert modes == [True] * SHORT.steps
    assert not jepa.training
    seen = perception.project[1].running_mean.clone()
    assert seen.abs().sum() > 0
    evaluated = encode_dataset(jepa, rooms).states
    jepa.train()
    torch.testing.assert_close(encode_dataset(jepa, rooms, batch=7).states, evaluated)
    assert jepa.training
    assert torch.equal(perception.project[1].running_mean, seen)


# ---- the adversarial push ------------------------------------------------------------------------


def error_of(model: JEPA) -> Any:
    return lambda first, actions, after: (model.rollout(first, actions) - after).square().mean()


def test_a_push_stays_within_radius_and_bounds_and_raises_the_loss(rooms: Dataset) -> None:
    jepa = new_model(rooms)
    data, error, radius = encode_dataset(jepa, rooms), error_of(jepa), 0.05
    spread = radius * data.states.std(0)
    rises = []
    for seed in range(20):
        states, actions = data.windows(data.draw(data.starts(4), 8, seeded(seed)), 4)
        first, after = states[:, 0], states[:, 1:]
        pushed, taken = _pushed(error, first, actions, after, spread, radius)
        assert not pushed.requires_grad
        assert not taken.requires_grad
        assert ((pushed - first).abs() <= spread * (1 + 1e-4) + 1e-6).all()
        assert ((taken - actions).abs() <= radius * (1 + 1e-4)).all()
        assert taken.abs().max() <= 1
        assert (taken - actions).abs().max() > 0.9 * radius
        with torch.no_grad():
            before = error(first, actions, after)
            rises.append(float((error(pushed, taken, after) - before) / before))
            # Signs at random, within the same radius, are no such thing.
            noise = torch.randn(first.shape, generator=seeded(seed)).sign()
            harmless = (error(first + spread * noise, actions, after) - before) / before
            assert rises[-1] > harmless
        for parameter in jepa.parameters():
            assert parameter.grad is None  # the push itself teaches nothing
    assert min(rises) > 0


def test_a_push_is_one_signed_step_up_the_error() -> None:
    """Written out: s' = s + a, after = 0, so the error's slope is 2 (s + a) / D in both."""
    model = JEPA(VectorPerception(vector_spec(3), latent_dim=2, hidden=4), Add())
    first, actions = torch.tensor([[1.0, -2.0]]), torch.tensor([[[0.5, 0.95]]])
    spread, after = torch.tensor([0.1, 0.3]), torch.zeros(1, 1, 2)
    pushed, taken = _pushed(error_of(model), first, actions, after, spread, 0.2)
    torch.testing.assert_close(pushed, torch.tensor([[1.1, -2.3]]))
    torch.testing.assert_close(taken, torch.tensor([[[0.7, 0.75]]]))
    _, clipped = _pushed(error_of(model), -first, actions, after, spread, 0.2)
    torch.testing.assert_close(clipped, torch.tensor([[[0.3, 1.0]]]))  # 1.15 is out of bounds


class Add(Predictor):
    """s' = s + a."""

    def __init__(self) -> None:
        super().__init__()
        self.action_dim = 2

    def forward(
        self,
        state: Tensor,
        action: Tensor,
        latent: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        return state + action


def test_discrete_actions_are_not_pushed() -> None:
    actions = Actions(2, discrete=True)
    model = JEPA(VectorPerception(vector_spec(3), latent_dim=2, hidden=4), Add(), actions)
    index, first = torch.tensor([[1, 0]]), torch.tensor([[1.0, -2.0]])
    after, spread = torch.zeros(1, 2, 2), torch.full((2,), 0.1)
    pushed, taken = _pushed(error_of(model), first, index, after, spread, 0.1)
    assert torch.equal(taken, index)
    torch.testing.assert_close(pushed, torch.tensor([[1.1, -2.1]]))


def test_without_a_radius_nothing_changes_and_with_one_both_losses_count(rooms: Dataset) -> None:
    start = new_model(rooms)
    data = encode_dataset(start, rooms)

    def run(**how: Any) -> tuple[dict[str, Tensor], dict[str, float]]:
        jepa, log = copy.deepcopy(start), list[dict[str, float]]()
        stage = PredictorStage(steps=6, batch=16, unroll=4, **how)
        train_predictor(jepa, data, stage, seeded(), lambda _, record: log.append(record))
        return weights_of(jepa), log[-1]

    plain, record = run()
    assert same(run(perturbation=0.0)[0], plain)
    assert set(record) == {"prediction", *KEYS}
    pushed, record = run(perturbation=0.1)
    assert not same(pushed, plain)
    assert set(record) == {"prediction", "undisturbed", *KEYS}
    both = (record["prediction"] + record["undisturbed"]) / 2
    assert record["loss"] == pytest.approx(both, rel=1e-5)
    assert record["prediction"] > record["undisturbed"]


@pytest.mark.parametrize("radius", [-0.1, float("nan"), float("inf")])
def test_a_radius_that_makes_no_sense_is_refused(radius: float) -> None:
    with pytest.raises(ValueError, match=r"stages\.predictor\.perturbation is .*choose 0 or more"):
        PredictorStage(perturbation=radius)


# ---- readouts that shape the encoder ------------------------------------------------------------


def encoder_gradient(data: Dataset, weight: float) -> tuple[list[Tensor], Readouts]:
    """What the first update of a joint stage with nothing but readouts would do to the encoder."""
    jepa = new_model(data, width=4)
    weights = replace(NONE, readout=weight, temporal_similarity=1e-9)
    torch.manual_seed(1)
    readouts = Readouts(D, {"position": 2, "reward": 1}, hidden=8)
    heads = Objective(weights, D, Actions(2), seeded(), readouts)
    windows = data.windows(4, ["position"]).sample(8, np.random.default_rng(0))
    encoded = jepa.encode(torch.as_tensor(windows.observations))
    actions = torch.as_tensor(windows.actions)
    reward = torch.full((8, 5, 1), float("nan"))
    reward[:, 1:, 0] = torch.as_tensor(windows.rewards)
    told = {"position": torch.as_tensor(windows.quantities["position"]), "reward": reward}
    total, terms = heads(encoded, jepa.rollout(encoded[:, 0], actions), actions, told)
    assert ("readout" in terms) == (weight > 0)
    total = total - 1e-9 * terms["temporal_similarity"]
    total.backward()
    return [p.grad for p in jepa.perception.parameters() if p.grad is not None], readouts


def test_the_readouts_shape_the_encoder_only_with_a_weight(rooms: Dataset) -> None:
    with_weight, readouts = encoder_gradient(rooms, 1.0)
    assert all(gradient.abs().sum() > 0 for gradient in with_weight)
    assert all(p.grad is not None for p in readouts.parameters())
    without, readouts = encoder_gradient(rooms, 0.0)
    assert all(gradient.abs().max() == 0 for gradient in without)
    assert all(p.grad is None for p in readouts.parameters())


def test_rewards_and_quantities_reach_the_joint_stage(rooms: Dataset) -> None:
    """What the readouts are compared with is what the data say, at every state of the window."""
    jepa = new_model(rooms, width=4)
    readouts = Readouts(D, {"position": 2, "reward": 1, "terminated": 1}, hidden=8)
    heads = Objective(Losses(readout=1.0), D, Actions(2), seeded(), readouts)
    assert heads.reads == ("position", "reward", "terminated")
    seen: list[dict[str, Tensor]] = []
    heads.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[3]))
    before = weights_of(readouts)
    stage = replace(JOINT, steps=1, batch=32)
    log: Log = []
    train_joint(
        jepa, heads, rooms, stage, np.random.default_rng(7), lambda *entry: log.append(entry)
    )
    expected = rooms.windows(4, ["position"]).sample(32, np.random.default_rng(7))
    (told,) = seen
    assert {name: tuple(value.shape) for name, value in told.items()} == {
        "position": (32, 5, 2),
        "reward": (32, 5, 1),
        "terminated": (32, 5, 1),
    }
    np.testing.assert_array_equal(told["position"], expected.quantities["position"])
    np.testing.assert_array_equal(told["reward"][:, 1:, 0], expected.rewards)
    assert told["reward"][:, 0].isnan().all()  # paid for a step before the window
    np.testing.assert_array_equal(told["terminated"][:, 1:, 0], expected.terminal)
    assert (told["terminated"][:, 0] == 0).all()
    assert np.isfinite(log[0][1]["readout"])
    assert not same(weights_of(readouts), before)  # they learn with the encoder


@pytest.mark.slow
def test_a_readout_weight_makes_its_quantity_readable(rooms: Dataset) -> None:
    """Nothing else in this objective asks where the agent is."""
    scores = []
    for weight in (0.0, 5.0):
        jepa = new_model(rooms, width=8)
        torch.manual_seed(1)
        readouts = Readouts(D, {"position": 2}, hidden=32)
        values = {"position": torch.as_tensor(np.array(rooms.arrays("quantities.position")))}
        readouts.standardise_by(values)
        weights = replace(NONE, temporal_similarity=1.0, readout=weight)
        heads = Objective(weights, D, Actions(2), seeded(), readouts)
        train_joint(jepa, heads, rooms, replace(JOINT, steps=60), np.random.default_rng(0))
        data = encode_dataset(jepa, rooms)
        readouts.fit(jepa, data, values, seeded(), steps=60)
        scores.append(probe_scores(readouts, data.states, values)["r2_position"])
    assert scores[1] > scores[0] + 0.1
    assert scores[1] > 0.8


# ---- a stored curve ----------------------------------------------------------------------------


def curve(data: Dataset) -> dict[str, list[float]]:
    """Loss and terms at each of the first 30 steps of a tiny joint run."""
    jepa = new_model(data, width=8)
    heads = Objective(replace(Losses(), sigreg=0.05, expander=24), D, Actions(2), seeded())
    found: dict[str, list[float]] = {}

    def record(module: nn.Module, inputs: Any, output: tuple[Tensor, dict[str, Tensor]]) -> None:
        for name, value in {"loss": output[0], **output[1]}.items():
            found.setdefault(name, []).append(float(value.detach()))

    heads.register_forward_hook(record)
    train_joint(jepa, heads, data, replace(JOINT, steps=30), np.random.default_rng(0))
    return found


def test_the_stored_curve_is_reproduced(rooms: Dataset) -> None:
    stored = json.loads(CURVE.read_text())
    found = curve(rooms)
    assert found.keys() == stored.keys()
    for name, values in stored.items():
        np.testing.assert_allclose(
            found[name],
            values,
            rtol=2e-2,
            atol=1e-4,
            err_msg=f"{name} left its curve; if that is meant: python tests/test_train.py",
        )


def write_curve() -> None:
    """Write the stored curve anew."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = curve(collect_rooms(Path(folder)))
    rounded = {name: [float(f"{value:.5g}") for value in found[name]] for name in found}
    lines = [f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in rounded.items()]
    CURVE.parent.mkdir(exist_ok=True)
    CURVE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"wrote {CURVE}")


if __name__ == "__main__":
    write_curve()
