"""The slow encoder: its update, who gets gradient, what is kept, and that it learns."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_perception import vector_spec
from test_train import NONE, D, collect_rooms, new_model, same, seeded, weights_of, window
from torch import Tensor, nn

from forethought.envs import Dataset
from forethought.worldmodel import (
    JEPA,
    Actions,
    CausalPredictor,
    ImagePerception,
    JointStage,
    Losses,
    Objective,
    ResidualMLP,
    SlowEncoder,
    VectorPerception,
    ViTPerception,
    encode_dataset,
    latent_std,
    losses,
    train_joint,
)

PREDICTION = replace(NONE, prediction=1.0)
STAGE = JointStage(steps=4, batch=8, unroll=3, learning_rate=3e-3)


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return collect_rooms(tmp_path_factory.mktemp("rooms"))


class Listening(Objective):
    """Keeps what it is given, and the encoder's parameters at that time."""

    model: JEPA

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.encoded: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.encoders: list[list[Tensor]] = []

    def forward(self, *given: Any) -> Any:
        self.encoded.append(given[0])
        self.targets.append(given[4])
        self.encoders.append([p.detach().clone() for p in self.model.perception.parameters()])
        return super().forward(*given)


def listened(jepa: JEPA, data: Dataset, decay: float, **options: Any) -> Listening:
    """The objective of a joint stage with a slow encoder, after it."""
    slow = SlowEncoder(jepa.perception)
    heads = Listening(Losses(), jepa.latent_dim, Actions(2), seeded(), slow=slow)
    object.__setattr__(heads, "model", jepa)  # it listens only, and is no part of it
    stage = replace(STAGE, target_decay=decay)
    train_joint(jepa, heads, data, stage, np.random.default_rng(0), **options)
    return heads


def test_an_update_by_hand() -> None:
    perception = VectorPerception(vector_spec(3), latent_dim=2, hidden=4)
    nn.init.constant_(next(perception.parameters()), 2.0)
    slow = SlowEncoder(perception)
    nn.init.constant_(next(perception.parameters()), 6.0)
    found = next(slow.parameters())
    for expected in (3.0, 3.75, 4.3125):  # 0.75 of what was, 0.25 of 6
        slow.follow(perception, 0.75)
        assert torch.equal(found, torch.full_like(found, expected))
    assert torch.equal(next(perception.parameters()), torch.full_like(found, 6.0))
    slow.follow(perception, 1.0)
    assert torch.equal(found, torch.full_like(found, 4.3125))
    slow.follow(perception, 0.0)
    assert same(weights_of(slow.perception), weights_of(perception))


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_targets_are_those_of_the_average_before_each_update(rooms: Dataset, decay: float) -> None:
    jepa = new_model(rooms, width=4)
    start = copy.deepcopy(jepa)
    heads = listened(jepa, rooms, decay)
    assert heads.slow is not None
    average = heads.encoders[0]
    for encoder in heads.encoders[1:]:
        pairs = zip(average, encoder, strict=True)
        average = [decay * old + (1 - decay) * new for old, new in pairs]
    for found, expected in zip(heads.slow.parameters(), average, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    last = [encoded.detach()[:, 1:] for encoded in heads.encoded]
    # In the first update copy and encoder are the same; then the copy stays behind.
    assert torch.equal(heads.targets[0], last[0])
    for targets, encoded in zip(heads.targets[1:], last[1:], strict=True):
        assert torch.equal(targets, encoded) == (decay == 0)
    for slow, first in zip(heads.slow.parameters(), start.perception.parameters(), strict=True):
        assert torch.equal(slow, first) == (decay == 1)
    standardise = heads.slow.perception.standardise
    assert torch.equal(standardise.mean, jepa.perception.standardise.mean)
    assert torch.equal(standardise.std, jepa.perception.standardise.std)
    assert standardise.mean.abs().sum() > 0


def test_no_gradient_flows_into_targets(rooms: Dataset) -> None:
    heads = listened(new_model(rooms, width=4), rooms, 0.5)
    assert heads.slow is not None
    assert not any(targets.requires_grad for targets in heads.targets)
    assert all(parameter.grad is None for parameter in heads.slow.parameters())
    encoded, predicted, actions, _ = window()
    encoded.requires_grad_()
    predicted.requires_grad_()
    module = Objective(replace(PREDICTION, temporal_similarity=1.0), 4, Actions(2), seeded())
    targets = torch.randn(8, 4, 4, generator=seeded(5))
    total, terms = module(encoded, predicted, actions, targets=targets)
    expected = losses.multi_step_prediction(predicted, targets)
    assert torch.equal(terms["prediction"], expected)
    total.backward()
    (alone,) = torch.autograd.grad(losses.temporal_similarity(encoded), encoded)
    assert torch.equal(encoded.grad, alone)  # targets serve the prediction and nothing else
    torch.testing.assert_close(predicted.grad, 2 * (predicted - targets).detach() / targets.numel())


def test_batches_are_normalised_as_the_encoder_does(rooms: Dataset) -> None:
    torch.manual_seed(0)
    sizes = {"latent_dim": D, "patch": 8, "width": 8, "depth": 1, "heads": 2, "projector": 16}
    perception = ViTPerception(rooms.spec, **sizes)
    predictor = CausalPredictor(D, 2, depth=1, heads=2, projector=16)
    jepa = JEPA(perception, predictor).eval()
    modes: list[bool] = []
    slow = SlowEncoder(perception)
    slow.perception.project[1].register_forward_hook(lambda part, *_: modes.append(part.training))
    heads = Listening(Losses(), D, Actions(2), seeded(), slow=slow).eval()
    object.__setattr__(heads, "model", jepa)
    stage = replace(STAGE, target_decay=0.0)
    train_joint(jepa, heads, rooms, stage, np.random.default_rng(0))
    assert modes == [True] * STAGE.steps
    assert not heads.training
    for targets, encoded in zip(heads.targets, heads.encoded, strict=True):
        torch.testing.assert_close(targets, encoded.detach()[:, 1:])
    for found, of_encoder in zip(slow.perception.buffers(), perception.buffers(), strict=True):
        torch.testing.assert_close(found, of_encoder)


def test_targets_are_float32_where_the_model_is_not(rooms: Dataset) -> None:
    heads = listened(new_model(rooms, width=4), rooms, 0.9, bfloat16=True)
    assert {targets.dtype for targets in heads.targets} == {torch.float32}


@pytest.mark.parametrize("decay", [-0.1, 1.5, float("nan")])
def test_a_decay_that_makes_no_sense_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"stages\.joint\.target_decay is .*choose it in \[0, 1\]"):
        JointStage(target_decay=decay)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_decay_and_slow_encoder_belong_together(rooms: Dataset, decay: float | None) -> None:
    jepa = new_model(rooms, width=4)
    slow = SlowEncoder(jepa.perception) if decay is None else None
    heads = Objective(Losses(), D, Actions(2), seeded(), slow=slow)
    says = rf"target_decay is {decay}, but the objective has (no|a) slow encoder: give it"
    with pytest.raises(ValueError, match=says):
        train_joint(
            jepa, heads, rooms, replace(STAGE, target_decay=decay), np.random.default_rng(0)
        )


@pytest.mark.slow
def test_a_slow_encoder_delays_collapse(rooms: Dataset) -> None:
    """Prediction alone on normalised states: they lie further apart where targets are slow."""
    spread = {}
    for decay in (None, 0.99):
        torch.manual_seed(0)
        perception = ImagePerception(
            rooms.spec, latent_dim=D, channels=(8, 16), hidden=16, normalise=True
        )
        jepa = JEPA(perception, ResidualMLP(D, 2, hidden=32))
        slow = None if decay is None else SlowEncoder(perception)
        heads = Objective(PREDICTION, D, Actions(2), seeded(), slow=slow)
        stage = replace(STAGE, steps=150, batch=16, unroll=4, target_decay=decay)
        train_joint(jepa, heads, rooms, stage, np.random.default_rng(0))
        spread[decay] = latent_std(encode_dataset(jepa, rooms).states)
    assert spread[0.99] > 2 * spread[None]  # 3 to 7.5 times over three seeds
