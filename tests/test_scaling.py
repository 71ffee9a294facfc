"""The scaling benchmark: fits against known power laws, its ledger, its arms and its data."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

X = np.array([10.0, 30.0, 100.0, 300.0])


@pytest.fixture(scope="module")
def scaling(repository: Path) -> ModuleType:
    """benchmarks/scaling.py as a module."""
    path = repository / "benchmarks" / "scaling.py"
    spec = importlib.util.spec_from_file_location("scaling", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def law(
    scaling: ModuleType, slope: float, factor: float, noise: float = 0.0, seeds: int = 3
) -> Any:
    """Cells of one size each: loss = factor * x ** slope, with noise of seeds."""
    drawn = np.random.default_rng(4)
    return [
        scaling.Cell(
            np.full((seeds, 1), x),
            factor * x**slope * np.exp(noise * drawn.standard_normal((seeds, 1))),
        )
        for x in X
    ]


# ---------------------------------------------------------------------------- fits


def test_a_power_law_is_found_again(scaling: ModuleType) -> None:
    found = scaling.line(X, 3 * X**-0.25)
    assert (found.slope, math.exp(found.intercept)) == pytest.approx((-0.25, 3))
    assert found.at(X) == pytest.approx(3 * X**-0.25)
    with pytest.raises(ValueError, match="x is 10 alone: choose points at two x or more"):
        scaling.line(X[[0, 0]], X[:2])


def test_slopes_ratio_and_a_crossing_within(scaling: ModuleType) -> None:
    # 2 x^-0.2 = 3 x^-0.3 at x = 1.5^10 = 57.7.
    told = scaling.compare(law(scaling, -0.2, 2), law(scaling, -0.3, 3), draws=20)
    assert told["slopes"] == pytest.approx([-0.2, -0.3])
    assert told["faster"] == pytest.approx(0.5)
    assert told["faster_interval"] == pytest.approx([0.5, 0.5])  # all seeds say the same
    assert told["crossing"] == pytest.approx(1.5**10)
    assert not told["extrapolation"]


def test_a_crossing_outside_is_an_extrapolation(scaling: ModuleType) -> None:
    far = scaling.compare(law(scaling, -0.2, 2), law(scaling, -0.3, 4), draws=2)
    assert far["crossing"] == pytest.approx(2**10)  # measured up to 300
    assert far["extrapolation"]
    # Within what one arm alone was measured over it is one too.
    part = scaling.compare(law(scaling, -0.2, 2)[2:], law(scaling, -0.3, 3), draws=2)
    assert part["crossing"] == pytest.approx(1.5**10)
    assert part["extrapolation"]
    never = scaling.compare(law(scaling, -0.2, 2), law(scaling, -0.2, 3), draws=2)
    assert never["crossing"] == math.inf or never["crossing"] > 1e30
    assert never["extrapolation"]


def test_intervals_hold_what_the_noise_hides(scaling: ModuleType) -> None:
    plain = law(scaling, -0.2, 2, noise=0.05, seeds=8)
    energy = law(scaling, -0.3, 3, noise=0.03, seeds=8)
    told = scaling.compare(plain, energy, draws=500)
    for (low, high), slope in zip(told["slope_intervals"], (-0.2, -0.3), strict=True):
        assert low < slope < high
        assert 0.005 < high - low < 0.1
    low, high = told["faster_interval"]
    assert low < 0.5 < high
    assert low < told["faster"] < high


def test_the_frontier_is_what_nothing_beats(scaling: ModuleType) -> None:
    x, loss = np.array([4.0, 1.0, 3.0, 2.0, 2.0]), np.array([0.5, 1.0, 0.9, 0.8, 0.7])
    kept = scaling.frontier(x, loss)
    assert kept[0].tolist() == [1.0, 2.0, 4.0]
    assert kept[1].tolist() == [1.0, 0.7, 0.5]
    dominated = scaling.Cell(np.array([[20.0, 200.0]]), np.array([[9.0, 9.0]]))
    cells = law(scaling, -0.3, 3)
    assert scaling.fit([*cells, dominated], best=True).slope == pytest.approx(-0.3)
    assert scaling.fit([*cells, dominated]).slope != pytest.approx(-0.3, abs=0.01)


def ledger(arms: dict[str, tuple[float, float]]) -> list[dict[str, Any]]:
    """Rows of arms whose lowest loss is factor * parameters ** slope."""
    return [
        {
            "arm": arm,
            "size": str(size),
            "data": 1.0,
            "seed": seed,
            "block_parameters": size,
            "operations_per_update": 7 * size,
            "copying": 1.0,
            "floor": 0.001,
            "curve": [
                # The loss rises again at the end: the lowest counts.
                {"updates": u, "sequences": 4 * u, "seconds": size * u / 1e3, "loss": over * low}
                for u, over in ((1, 2.0), (10, 1.0), (20, 1.1))
            ],
        }
        for arm, (slope, factor) in arms.items()
        for size in (1000, 10_000)
        for low in [factor * size**slope]
        for seed in range(2)
    ]


def test_axes_and_the_lowest_loss_are_read_from_the_ledger(scaling: ModuleType) -> None:
    rows = ledger({"autoregressive": (-0.1, 1.0), "energy": (-0.15, 2.0)})
    cell = scaling.cells_of(rows, "energy", "operations", "all")["1000"]
    assert cell.x.tolist() == [[7000.0, 70_000.0, 140_000.0]] * 2
    end = scaling.cells_of(rows, "energy", "seconds", "end")["10000"]
    assert end.x.tolist() == [[200.0]] * 2
    assert end.loss == pytest.approx(np.full((2, 1), 2 * 10_000**-0.15))
    told = scaling.comparisons(rows, 5)
    assert told["block_parameters, ends"]["faster"] == pytest.approx(0.5)
    assert told["sequences, 1000"]["faster"] == pytest.approx(0)
    assert set(told) == {
        "sequences, 1000",
        "sequences, 10000",
        *(f"{axis}, ends" for axis in ("block_parameters", "seconds", "operations")),
        *(f"{axis}, frontier" for axis in ("seconds", "operations")),
    }
    assert "(extrapolation)" in scaling.table(rows, draws=5)


def test_a_table_is_of_one_setting(
    scaling: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    setting = {"updates": 20, "batch": 4, "episodes": 9, "device": "cpu"}
    rows = ledger({"autoregressive": (-0.1, 1.0), "energy": (-0.15, 2.0)})
    path = tmp_path / "ledger.jsonl"
    lines = [json.dumps(row | setting | {"updates": u}) for u in (20, 40) for row in rows]
    path.write_text("\n".join(lines))
    monkeypatch.setattr(scaling.table, "__defaults__", (5,))
    words = ["scaling", "--table", "--batch", "4", "--episodes", "9", "--out", str(path)]
    monkeypatch.setattr(sys, "argv", [*words, "--updates", "20"])
    scaling.main()
    assert "| energy | 1000 | 2 |" in capsys.readouterr().out  # two seeds, not four rows
    monkeypatch.setattr(sys, "argv", [*words, "--updates", "30"])
    with pytest.raises(SystemExit):
        scaling.main()
    assert "without a row of {'updates': 30" in capsys.readouterr().err


def test_the_picture_is_drawn(scaling: ModuleType, tmp_path: Path) -> None:
    rows = ledger({"autoregressive": (-0.1, 1.0), "energy": (-0.15, 2.0)})
    scaling.draw(rows, tmp_path / "there" / "scaling.png")
    assert (tmp_path / "there" / "scaling.png").read_bytes()[1:4] == b"PNG"


# ---------------------------------------------------------------------------- ledger


def test_what_is_in_the_ledger_is_not_done_again(
    scaling: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, int]] = []

    def trained(cell: dict[str, Any], *_: Any) -> dict[str, Any]:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append((cell["arm"], cell["seed"]))
        return {"curve": [{"loss": 1.0}]}

    monkeypatch.setattr(scaling, "train", trained)
    monkeypatch.setattr(scaling, "features", lambda *_: None)
    monkeypatch.setattr(scaling.torch, "set_num_threads", lambda _: None)
    path = tmp_path / "ledger.jsonl"
    words = ["scaling", "--sizes", "25k", "--seeds", "0", "1", "--out", str(path)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(KeyboardInterrupt):
        scaling.main()
    assert done == [("autoregressive", 0), ("energy", 0), ("autoregressive", 1)]
    with path.open("a") as file:  # a kill within a line
        file.write('{"arm": "ener')
    done.clear()
    scaling.main()
    assert done == [("energy", 1)]
    rows = scaling.read(path)
    assert [(row["arm"], row["seed"]) for row in rows] == [
        *((arm, 0) for arm in ("autoregressive", "energy")),
        *((arm, 1) for arm in ("autoregressive", "energy")),
    ]
    done.clear()
    scaling.main()
    assert not done
    monkeypatch.setattr(sys, "argv", [*words, "--updates", "7", "--limit", "-1"])
    scaling.main()  # other trainings, but no time for any
    assert not done
    assert len(path.read_text().splitlines()) == 5


# ---------------------------------------------------------------------------- arms and data


def rotating(scaling: ModuleType) -> Any:
    """Features that turn: copying errs, and the next ones can be told exactly."""
    torch.manual_seed(0)
    angle = 6.3 * (torch.rand(32, 1, 1) + torch.rand(16)) + 0.5 * torch.arange(61).view(1, -1, 1)
    every = torch.cat((angle.sin(), angle.cos()), -1)
    return scaling.Features(every[:24], every[24:, :17], 0.1, 0.0)


@pytest.mark.parametrize("arm", ["autoregressive", "energy"])
def test_an_arm_learns_what_can_be_told(scaling: ModuleType, arm: str) -> None:
    data = rotating(scaling)
    cell = {"arm": arm, "seed": 0, "data": 0.5, "batch": 8, "updates": 30}
    row = scaling.train(cell, 32, 1, data)
    states = data.tested
    copying = float(nn.functional.smooth_l1_loss(states[:, :-1], states[:, 1:]))
    losses = [point["loss"] for point in row["curve"]]
    assert losses[-1] < 0.6 * copying
    assert [point["updates"] for point in row["curve"]] == scaling.moments_of(30)
    assert row["curve"][-1]["sequences"] == 240
    assert row["curve"][-1]["seconds"] > row["curve"][0]["seconds"] > 0
    assert ("loss_thinking" in row) == (arm != "autoregressive")
    json.dumps(row)


@torch.no_grad()
def test_both_arms_begin_with_copying_and_have_the_same_blocks(scaling: ModuleType) -> None:
    windows = torch.randn(3, 17, 32)
    models = [scaling.model_of(arm, 32, 2) for arm in ("autoregressive", "energy")]
    for model in models:
        nn.init.zeros_(model.out.bias)
        copying = nn.functional.smooth_l1_loss(windows[:, :-1], windows[:, 1:])
        assert float(scaling.error(model.train(), windows)) == pytest.approx(float(copying))
    shapes = [[p.shape for p in model.blocks.parameters()] for model in models]
    assert shapes[0] == shapes[1]


@torch.no_grad()
def test_the_autoregressive_arm_looks_only_back(scaling: ModuleType) -> None:
    torch.manual_seed(0)
    model = scaling.Autoregressive(4, 6, 16, 2)
    nn.init.normal_(model.out.weight)
    states, none = torch.randn(2, 6, 4), torch.zeros(2, 6, 0)
    before = model.sequence(states, none)
    states[:, 3] += 1
    after = model.sequence(states, none)
    assert torch.equal(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 5], before[:, 5])


def test_operations_are_counted_through_all_derivatives(scaling: ModuleType) -> None:
    weight = torch.randn(3, 5, requires_grad=True)
    x = torch.randn(7, 3)
    product = 2 * 7 * 3 * 5

    def once() -> None:
        (x @ weight).square().sum().backward()

    assert scaling.operations(once) == 2 * product  # there, and back to the weight

    def descended(grad: Any) -> Any:
        """A loss after one step on the energy |y W|^2: the step's derivative has one itself."""

        def work() -> None:
            (x - grad(lambda y: (y @ weight).square().sum())).square().sum().backward()

        return work

    def plain(energy: Any) -> torch.Tensor:
        y = x.clone().requires_grad_()
        return torch.autograd.grad(energy(y), y, create_graph=True)[0]

    # y W and its way back to y; then, of the latter, both sides, and of the former the weight.
    counted = scaling.operations(descended(plain))
    assert counted >= 5 * product
    within = scaling.operations(descended(lambda energy: torch.func.grad(energy)(x)))
    assert 5 * product <= within <= counted + product


def test_features_move_and_the_floor_lies_below_copying(scaling: ModuleType) -> None:
    data = scaling.features(12, torch.device("cpu"), held=8)
    assert data.learned.shape == (12, 61, 32)
    assert data.tested.shape == (24, 17, 32)
    every = torch.cat((data.learned.flatten(0, 1), data.tested.flatten(0, 1)))
    assert every.std(0).sub(1).abs().max() < 0.2
    # Windows follow one another: the last frame of one is the first of the next.
    assert torch.equal(data.tested[0, -1], data.tested[1, 0])
    assert 0 < data.floor < 0.7 * data.copying
