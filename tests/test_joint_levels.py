"""Joint training of levels: the same loss as level by level, through all that lies below."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_modulated_training import ID as TURNED
from test_snapshot import Kill
from test_train import seeded
from torch import Tensor, nn

from forethought.build import Model, build_levels, build_model
from forethought.envs import Dataset, Smooth, collect_to, make
from forethought.worldmodel import (
    JEPA,
    JointLevels,
    JointStage,
    LatentData,
    Level,
    LevelShape,
    LevelStage,
    Losses,
    Objective,
    Snapshot,
    encode_dataset,
    level_data,
    train_joint,
    train_level,
)

LINE = "forethought/DoubleIntegrator-v0"
SHAPES = (
    LevelShape(stride=2, latent_dim=4, macro_dim=2, hidden=32),
    LevelShape(stride=4, latent_dim=3, macro_dim=2, hidden=32),
)
STAGE = LevelStage(unroll=2, sigreg=0.3, together=True)
JOINT = JointStage(steps=12, batch=16, unroll=4, learning_rate=3e-3)


def collected(folder: Path, env: str, episodes: int = 12, first_seed: int = 0) -> Dataset:
    """Episodes of at most 16 steps: as long as two steps of the top level."""
    options = {"episode_limit": 16}
    collect_to(
        folder,
        lambda count: make(env, count, **options),
        Smooth(),
        episodes,
        first_seed=first_seed,
        num_envs=4,
    )
    return Dataset.open(folder)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return collected(tmp_path_factory.mktemp("line") / "data", LINE, 48)


def parts(data: Dataset, modulation: int = 0) -> tuple[JEPA, list[Level]]:
    """A world model and two levels above."""
    jepa = build_model(Model(modulation=modulation), data.spec, torch.device("cpu"), 0)
    return jepa, [level for level in build_levels(jepa, SHAPES, 0) if isinstance(level, Level)]


def joint_loss(jepa: JEPA, levels: list[Level], data: Dataset) -> tuple[Tensor, dict[str, Tensor]]:
    above = JointLevels(jepa, levels, data, STAGE, seeded(7))
    return above.loss(8, np.random.default_rng(0), nullcontext)


@pytest.mark.parametrize(("env", "modulation"), [(LINE, 0), (TURNED, 1), ("CartPole-v1", 0)])
def test_the_loss_is_that_of_training_level_by_level(
    env: str, modulation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same windows, by vectors, with codes, and of discrete actions."""
    data = collected(tmp_path / "data", env)
    jepa, levels = parts(data, modulation)
    total, terms = joint_loss(jepa, levels, data)
    below, draws, directions = encode_dataset(jepa, data), np.random.default_rng(0), seeded(7)

    def draw(_: LatentData, starts: Tensor, count: int, generator: Any) -> Tensor:
        return starts[torch.as_tensor(draws.integers(len(starts), size=count))]

    monkeypatch.setattr(LatentData, "draw", draw)
    sums = 0.0
    stage = replace(STAGE, steps=1, batch=8)
    for place, level in enumerate(levels):
        seen: dict[str, float] = {}
        trained = copy.deepcopy(level)
        train_level(
            trained,
            below,
            stage,
            seeded(),
            lambda _, record, seen=seen: seen.update(record),  # type: ignore[misc]
            directions=directions,
        )
        mine = {k: float(v.detach()) for k, v in terms.items() if k.startswith(f"level{place + 2}")}
        assert len(mine) == 6 + 3  # of states and of macro-actions
        for name, value in mine.items():
            assert value == pytest.approx(seen[name.partition("_")[2]], rel=1e-4), name
        sums += seen["loss"]
        below = level_data(level, below)
    assert float(total.detach()) == pytest.approx(sums, rel=1e-5)


def test_every_loss_trains_all_that_lies_below(line: Dataset) -> None:
    jepa, levels = parts(line)
    _, terms = joint_loss(jepa, levels, line)
    lower = [levels[0].model.perception, levels[0].code]
    for name, reached in (
        ("level2_prediction", [jepa.perception, *lower]),
        ("level3_prediction", [jepa.perception, *lower, levels[1].code]),
    ):
        for module in (jepa, *levels):
            module.zero_grad()
        terms[name].backward(retain_graph=True)
        for module in reached:
            grown = [p.grad for p in module.parameters()]
            assert all(grad is not None and grad.abs().max() > 0 for grad in grown), name
        assert all(p.grad is None for p in jepa.predictor.parameters())
    assert all(p.grad is None for p in levels[0].model.predictor.parameters())
    named = {id(p) for level in levels for p in level.parameters()}
    above = JointLevels(jepa, levels, line, STAGE, seeded())
    assert {id(p) for p in above.parameters()} == named


def trained(
    data: Dataset,
    stage: JointStage = JOINT,
    snapshot_at: Path | None = None,
    kill_at: int | None = None,
) -> tuple[JEPA, list[Level]]:
    """The joint stage of everything; killed at an update, and gone on with from a snapshot."""
    jepa, levels = parts(data)
    rng, directions = np.random.default_rng(0), seeded()
    torch.manual_seed(0)
    objective = Objective(Losses(sigreg=0.1), jepa.latent_dim, jepa.actions, directions)
    above = JointLevels(jepa, levels, data, replace(STAGE, sigreg=0.0), directions)
    modules = {"model": jepa, "objective": objective, "levels": nn.ModuleList(levels)}
    generators = {"numpy": rng, "directions": directions}
    snapshot = Snapshot(snapshot_at, modules, generators, every_seconds=0)
    snapshot.restore()
    assert snapshot.enter("joint")

    if kill_at is not None:
        whole, calls = above.loss, count(1)

        def dying(*arguments: Any) -> Any:
            if next(calls) == kill_at:
                raise Kill
            return whole(*arguments)

        above.loss = dying  # type: ignore[method-assign]
    train_joint(jepa, objective, data, stage, rng, snapshot=snapshot, levels=above)
    return jepa, levels


def flat(held: tuple[JEPA, list[Level]]) -> list[Tensor]:
    """All weights of each module."""
    return [nn.utils.parameters_to_vector(part.parameters()) for part in (held[0], *held[1])]


def test_killed_in_the_joint_stage_it_ends_with_the_same_bits(
    line: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "snapshot.safetensors"
    with pytest.raises(Kill):
        trained(line, snapshot_at=path, kill_at=7)
    again, whole = trained(line, snapshot_at=path), trained(line)
    fresh = parts(line)
    for one, other, begun in zip(flat(again), flat(whole), flat(fresh), strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, begun)


def test_levels_learn_together_with_the_world_model(line: Dataset, tmp_path: Path) -> None:
    stage = replace(JOINT, steps=80, batch=32, unroll=2, learning_rate=1e-2)
    jepa, levels = trained(line, stage)
    jepa.requires_grad_(False)
    below = encode_dataset(jepa, collected(tmp_path / "data", LINE, 24, first_seed=100))
    for level in levels:
        assert level.known.isnan().all()
        train_level(level, below, LevelStage(steps=0), seeded())
        assert level.known.isfinite().all()
        own = level_data(level, below)
        norms = own.actions[own.remaining > 0].norm(dim=-1)
        assert 0.9 < (norms <= level.reach).float().mean() < 0.99
        states, macros = own.windows(own.starts(2), 2)
        error = (level.model.rollout(states[:, 0], macros) - states[:, 1:]).square().mean()
        still = (states[:, :1] - states[:, 1:]).square().mean()
        assert error < 0.6 * still  # 0.41 and 0.44; untrained it is hundreds
        assert error < 0.3 * states.var()
        assert own.states.std(0).mean() > 0.6
        assert macros.std((0, 1)).min() > 0.6
        below = own


def test_no_episode_as_long_as_a_step_of_the_top_level(line: Dataset) -> None:
    jepa, levels = parts(line)
    upper = Level(3, 2, LevelShape(stride=3))
    with pytest.raises(ValueError, match="one step of the top level is 24 decisions, but the long"):
        JointLevels(jepa, [*levels, upper], line, STAGE, seeded())
