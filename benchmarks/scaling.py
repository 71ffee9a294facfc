"""How the energy-based transformer scales against an autoregressive one of the same blocks.

    python benchmarks/scaling.py                 # all cells that the ledger does not hold yet
    python benchmarks/scaling.py --table --plot docs/images/scaling.png

Next-feature prediction, as in the video experiment of EBT (2507.02092, section 4.2): in Two-Rooms
an agent walks at random, and the features of each next frame are predicted from those of up to 16
frames; nobody tells its actions, so that not all can be predicted. Features come from a random
convolution that nobody trains: the 32 directions in which they change most from frame to frame,
each standardised. Loss is smooth L1 with beta 1, in training and on episodes held out; the past is
always the real one.

Arms: `autoregressive` tells the change of the features at once. `energy` is `EnergyTransformer`
with as many blocks of the same width, head `squares`, two steps of descent from the features before
(two, as the paper trains for scaling), in training and in validation; the paper's own begins at
noise and tells the energy as a bare number, which learns badly here (LOG.md). A cell is one
training of an arm in a size, with a share of the data, by a seed; it is done once, and written to
the ledger as one line. The learning rate is constant after a warm-up, so that what is measured on
the way is what a shorter training would have given: one training gives the curves over sequences,
seconds and operations. Seconds are those of the process (on a GPU: of the clock) without
validation; they can be compared within one ledger alone. Operations are those of matrix products
(twice the multiplications), counted in one whole update with all its derivatives.

The default, 18 cells of three sizes and three seeds, is 635 s of training on one thread (AMD EPYC),
37 minutes in all beside other work; `--large` (five sizes, more data, longer) is for a GPU, in as
many calls as it takes: `--limit` is the seconds after which a call begins no more cells.

What is fitted: log loss = slope * log x + intercept, by least squares; the scaling rate is -slope.
How the paper computes its "scales 34 % faster" could not be read in the paper itself. By a reader's
notes it gives no formula, and slopes read off the lines of its figure 9, both axes logarithmic,
have that ratio. That is assumed: `faster` is slope(energy) / slope(autoregressive) - 1, of the
lowest validation loss of each training (nothing subtracted from it for what cannot be predicted)
over the parameters within the blocks. The same is computed over sequences within one size (as its
figure 4a has it over tokens), and over seconds and operations, of the trainings' ends (figure 5b)
and of the frontier: the points of an arm that none of its others, of any size and moment, beats
with as little. Intervals are 95 % percentiles of 2,000 bootstraps that draw the seeds of each cell
anew; with three seeds they are too narrow. A crossing of the two lines is called an extrapolation
where it lies outside of what both arms were measured over. `floor` is the loss of a prediction that
knows the true position, walls and last action, and averages over the next action: about the least
that an arm can reach.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from forethought.envs import Smooth, collect, make
from forethought.envs.two_rooms.drawing import agent_channel, wall_channel
from forethought.envs.two_rooms.geometry import ROOMS_32, move
from forethought.run_folder import commit
from forethought.worldmodel import EnergyTransformer, Refinement, Transformer, causal_mask

LEDGER = Path(__file__).parent / "results" / "scaling.jsonl"
WINDOW, FEATURES, FRAMES = 16, 32, 60
WALK = Smooth(correlation=0.9, scale=0.8)
SIZES = {"25k": (32, 2), "84k": (48, 3), "199k": (64, 4)}  # width and depth
LARGE = {"84k": (48, 3), "311k": (80, 4), "990k": (128, 5), "3.1M": (192, 7), "9.9M": (320, 8)}
ARMS = ("autoregressive", "energy")
RATE = 1e-2  # of 1e-3, 3e-3 and 1e-2 the best at width 32 for both arms, 250 updates, seed 100
Array = NDArray[np.float64]
Row = dict[str, Any]


def main() -> None:
    """Train what the ledger does not hold, or tell what it holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="train nothing; fit what is there")
    parser.add_argument("--plot", type=Path, help="picture of what is there, with --table")
    parser.add_argument("--large", action="store_true", help="the five sizes for a GPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES | LARGE), help="only these")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", type=float, nargs="+", default=[1.0], help="shares of the data")
    parser.add_argument("--updates", type=int, help="default: 400, large 6000")
    parser.add_argument("--batch", type=int, help="sequences; default: 32, large 128")
    parser.add_argument("--episodes", type=int, help="default: 2000, large 8000")
    parser.add_argument("--limit", type=float, default=math.inf, help="seconds; then begin no cell")
    parser.add_argument("--out", type=Path, default=LEDGER)
    given = parser.parse_args()
    began = time.perf_counter()
    torch.set_num_threads(1)
    sizes = LARGE if given.large else SIZES
    settings: Row = {
        "updates": given.updates or (6000 if given.large else 400),
        "batch": given.batch or (128 if given.large else 32),
        "episodes": given.episodes or (8000 if given.large else 2000),
        "device": given.device,
    }
    there = read(given.out)
    if given.table:
        rows = [row for row in there if settings.items() <= row.items()]
        if not rows:
            parser.error(f"--out is {given.out}, without a row of {settings}: choose another")
        print(table(rows))
        if given.plot is not None:
            draw(rows, given.plot)
        return
    # Seeds outermost: a ledger that is not full holds whole comparisons.
    wanted = [
        {"arm": arm, "size": size, "data": share, "seed": seed} | settings
        for seed, size, share, arm in itertools.product(
            given.seeds, given.sizes or sizes, given.data, given.arms
        )
    ]
    left = missing(wanted, there)
    print(f"{len(left)} of {len(wanted)} cells left", flush=True)
    if not left:
        return
    data = features(settings["episodes"], torch.device(given.device))
    for cell in left:
        if time.perf_counter() - began > given.limit:
            return
        width, depth = (SIZES | LARGE)[cell["size"]]
        append(given.out, cell | train(cell, width, depth, data))


# --- ledger


def identity(row: Row) -> tuple[Any, ...]:
    """What tells cells apart."""
    names = ("arm", "size", "data", "seed", "updates", "batch", "episodes", "device")
    return tuple(row[name] for name in names)


def read(path: Path) -> list[Row]:
    """All whole lines; one that was cut off by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def missing(wanted: Sequence[Row], done: Sequence[Row]) -> list[Row]:
    """The cells that are not done."""
    there = {identity(row) for row in done}
    return [cell for cell in wanted if identity(cell) not in there]


def append(path: Path, row: Row) -> None:
    """Add a line, after one that was cut off too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((json.dumps(row) + "\n").encode())
    told = {name: row[name] for name in ("arm", "size", "seed")}
    print(json.dumps(told | row["curve"][-1]), flush=True)


# --- data


@dataclass(frozen=True, eq=False)
class Features:
    """Features of whole episodes.

    Args:
        learned: `(E, 61, D)`.
        tested: windows of other episodes, `(N, 17, D)`.
        copying: loss on `tested` of saying that nothing changes.
        floor: see the module.
    """

    learned: Tensor
    tested: Tensor
    copying: float
    floor: float


class Encoder:
    """A random convolution, principal components of its changes, and their standardisation.

    Args:
        images: `(E, 61, 2, 32, 32)` uint8 that the components are computed from.
    """

    def __init__(self, images: Tensor) -> None:
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(2, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()
        ).requires_grad_(False)
        for weight in self.layers.parameters():
            fan = weight[0].numel()
            weight.copy_(torch.randn(weight.shape, generator=generator) / math.sqrt(fan))
        raw = self._raw(images.flatten(0, 1))
        changes = raw.unflatten(0, images.shape[:2]).diff(dim=1).flatten(0, 1)
        self.mean = raw.mean(0)
        self.basis = torch.linalg.eigh(changes.T @ changes)[1][:, -FEATURES:]
        self.std = ((raw - self.mean) @ self.basis).std(0)

    def _raw(self, images: Tensor) -> Tensor:
        return torch.cat([self.layers(x / 255).flatten(1) for x in images.split(1024)])

    def __call__(self, images: NDArray[np.uint8]) -> Tensor:
        """`(N, D)`."""
        return (self._raw(torch.as_tensor(images)) - self.mean) @ self.basis / self.std


def features(count: int, device: torch.device, held: int = 128) -> Features:
    """Features of so many episodes to learn from, and of others, held out."""
    env = make("forethought/TwoRooms-v0", 64, layout="fixed", success="last")
    encode: Encoder | None = None
    found, episodes, collected = list[Tensor](), list[Any](), 0
    drawn = np.random.default_rng(17)
    for one in collect(env, WALK, held + count, first_seed=700_000, generator=drawn, length=FRAMES):
        episodes.append(one)
        collected += 1
        if collected % 256 and collected < held + count:
            continue
        images = np.stack([each.observations for each in episodes])
        encode = encode or Encoder(torch.as_tensor(images))
        found.append(encode(images.reshape(-1, *images.shape[2:])).view(*images.shape[:2], -1))
        if len(found) == 1:
            floor = floor_of(episodes[:held], encode)
        episodes = []
    env.close()
    every = torch.cat(found)
    tested = every[:held, : FRAMES // WINDOW * WINDOW + 1].unfold(1, WINDOW + 1, WINDOW)
    tested = tested.flatten(0, 1).transpose(1, 2).contiguous()
    copying = float(nn.functional.smooth_l1_loss(tested[:, :-1], tested[:, 1:]))
    return Features(every[held:].to(device), tested.to(device), copying, floor)


def floor_of(episodes: Sequence[Any], encode: Encoder) -> float:
    """Loss of the mean over 64 next actions, given the true position, walls and last action."""
    drawn, losses = np.random.default_rng(3), []
    for one, t in itertools.product(episodes, drawn.integers(1, FRAMES, 4).tolist()):
        many = {name: one.quantities[name][[t] * 64] for name in ("position", "wall", "door")}
        place = many["wall"][:, 0], many["door"][:, 0]
        last = one.actions[[t - 1] * 64]
        actions = WALK(None, {}, last, drawn)
        after = move(ROOMS_32, *place, many["position"], actions, slide=True)
        images = np.stack((agent_channel(ROOMS_32, after), wall_channel(ROOMS_32, *place)), 1)
        true = encode(one.observations[t + 1][None])
        losses.append(nn.functional.smooth_l1_loss(encode(images).mean(0, keepdim=True), true))
    return float(torch.stack(losses).mean())


# --- training


class Autoregressive(nn.Module):
    """y_{t+1} = y_t + what the blocks tell of y_1, ..., y_t.

    Args:
        dim: size D of the features.
        window: most positions.
        width: of the blocks.
        depth: number of blocks.
    """

    def __init__(self, dim: int, window: int, width: int, depth: int) -> None:
        super().__init__()
        self.told, self.out = nn.Linear(dim, width), nn.Linear(width, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(window, width))
        self.blocks = Transformer(width, depth, 4)
        nn.init.zeros_(self.out.weight)  # to begin with what copying says; in both arms

    def sequence(self, states: Tensor, actions: Tensor) -> Tensor:
        """`(N, T, D)` of `(N, T, D)`; reads no actions."""
        length = states.shape[1]
        x = self.told(states) + self.positions[:length]
        out: Tensor = self.out(self.blocks(x, mask=causal_mask(length, x.device)))
        return states + out


def model_of(arm: str, width: int, depth: int) -> Autoregressive | EnergyTransformer:
    """An arm in a size."""
    if arm == "autoregressive":
        return Autoregressive(FEATURES, WINDOW, width, depth)
    model = EnergyTransformer(
        FEATURES, 0, refinement=Refinement(steps=2), window=WINDOW, width=width, depth=depth
    )
    assert isinstance(model.out, nn.Linear)
    nn.init.zeros_(model.out.weight)
    return model


def error(model: Autoregressive | EnergyTransformer, windows: Tensor) -> Tensor:
    """Smooth L1 of predicting each next position of `(N, 17, D)`."""
    states = windows[:, :-1]
    return nn.functional.smooth_l1_loss(model.sequence(states, states[..., :0]), windows[:, 1:])


def train(cell: Row, width: int, depth: int, data: Features) -> Row:
    """One cell."""
    torch.manual_seed(cell["seed"])
    device = data.learned.device
    model = model_of(cell["arm"], width, depth).to(device).train()
    generator = torch.Generator().manual_seed(1_000 + cell["seed"])
    known = data.learned[: max(1, round(cell["data"] * len(data.learned)))]
    steps = torch.arange(WINDOW + 1)

    def update() -> None:
        shape = (cell["batch"], 1)
        episode = torch.randint(len(known), shape, generator=generator)
        start = torch.randint(FRAMES + 1 - WINDOW, shape, generator=generator)
        loss = error(model, known[episode.to(device), (start + steps).to(device)])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    # The best rate of Adam falls with the width (2203.03466).
    rate = RATE * 32 / width
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    warmup = cell["updates"] // 20
    moments, curve, seconds = moments_of(cell["updates"]), list[Row](), 0.0
    for before, until in itertools.pairwise((0, *moments)):
        began = clock(device)
        for step in range(before, until):
            optimiser.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / warmup)
            update()
        seconds += clock(device) - began
        curve.append(
            {
                "updates": until,
                "sequences": until * cell["batch"],
                "seconds": seconds,
                "loss": validation(model, data.tested),
            }
        )
    counted = operations(update)
    row: Row = {
        "block_parameters": sum(p.numel() for p in model.blocks.parameters()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "operations_per_update": counted,
        "copying": data.copying,
        "floor": data.floor,
        "rate": rate,
        "curve": curve,
        "commit": commit(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }
    if isinstance(model, EnergyTransformer):
        row["step_size"] = float(model.rate.detach())
        model.eval()  # as many steps as lower the energy, at most 16
        row["loss_thinking"] = validation(model, data.tested)
    return row


def moments_of(updates: int) -> list[int]:
    """When to validate: from a tenth of the training on, evenly spaced in the logarithm."""
    return [round(updates * 10 ** (k / 6 - 1)) for k in range(7)]


@torch.no_grad()
def validation(model: Autoregressive | EnergyTransformer, windows: Tensor) -> float:
    """Loss on windows `(N, 17, D)`.

    In training mode, an energy's descent takes as many steps as it was trained with; nothing else
    differs but the energies it listens to, which predict nothing.
    """
    parts = [error(model, part) * len(part) for part in windows.split(128)]
    return float(torch.stack(parts).sum()) / len(windows)


def clock(device: torch.device) -> float:
    """Seconds of this process; on a GPU, of the clock when all is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def operations(work: Callable[[], object]) -> int:
    """Floating-point operations of matrix products and convolutions in `work`, derivatives too.

    PyTorch's own counter refuses a derivative within the forward pass, so its formulas are asked
    here without its count by modules.
    """

    class Counter(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> object:
            out = func(*args, **(kwargs or {}))
            formula = flop_registry.get(func.overloadpacket)
            if formula is not None:
                self.total += formula(*args, **(kwargs or {}), out_val=out)
            return out

    with Counter() as counter:
        work()
    return counter.total


# --- fits


@dataclass(frozen=True, eq=False)
class Cell:
    """What was measured of one arm in one size: S seeds, P points each.

    Args:
        x: `(S, P)`, above 0.
        loss: `(S, P)`, above 0.
    """

    x: Array
    loss: Array

    def mean(self) -> tuple[Array, Array]:
        """Geometric means over seeds, `(P,)` each."""
        return np.exp(np.log(self.x).mean(0)), np.exp(np.log(self.loss).mean(0))

    def drawn(self, generator: np.random.Generator) -> Cell:
        """Seeds drawn anew, with repetition."""
        seeds = generator.integers(len(self.x), size=len(self.x))
        return Cell(self.x[seeds], self.loss[seeds])


@dataclass(frozen=True)
class Line:
    """log loss = slope * log x + intercept."""

    slope: float
    intercept: float

    def at(self, x: Array) -> Array:
        """Losses at `x`."""
        return np.exp(self.intercept + self.slope * np.log(x))


def line(x: Array, loss: Array) -> Line:
    """Least squares in the logarithms; needs two different x."""
    if np.ptp(x) == 0:
        raise ValueError(f"x is {x[0]:g} alone: choose points at two x or more")
    places, values = np.log(x), np.log(loss)
    away = places - places.mean()
    slope = float(away @ values / (away @ away))
    return Line(slope, float(values.mean() - slope * places.mean()))


def frontier(x: Array, loss: Array) -> tuple[Array, Array]:
    """The points that are better than all with as little or less."""
    order = np.lexsort((loss, x))
    x, loss = x[order], loss[order]
    best = np.minimum.accumulate(loss)
    kept = np.concatenate(([True], loss[1:] < best[:-1]))
    return x[kept], loss[kept]


def fit(cells: Sequence[Cell], *, best: bool = False) -> Line:
    """The line through the means of all cells, or through the best of them alone."""
    x, loss = (np.concatenate(part) for part in zip(*(c.mean() for c in cells), strict=True))
    return line(*frontier(x, loss)) if best else line(x, loss)


def crossing(one: Line, other: Line) -> float:
    """Where both lines say the same; infinite if they never do."""
    slopes = one.slope - other.slope
    if slopes == 0:
        return math.inf
    with np.errstate(over="ignore"):
        return float(np.exp((other.intercept - one.intercept) / slopes))


def compare(
    plain: Sequence[Cell], energy: Sequence[Cell], *, best: bool = False, draws: int = 2000
) -> Row:
    """Slopes, their ratio and the crossing of two arms, with intervals; see the module."""
    generator = np.random.default_rng(0)
    lines = fit(plain, best=best), fit(energy, best=best)
    drawn = [
        tuple(
            fit([c.drawn(generator) for c in cells], best=best).slope for cells in (plain, energy)
        )
        for _ in range(draws)
    ]
    slopes = np.array(drawn)
    low = max(min(float(c.x.min()) for c in cells) for cells in (plain, energy))
    high = min(max(float(c.x.max()) for c in cells) for cells in (plain, energy))
    met = crossing(*lines)

    def interval(values: Array) -> list[float]:
        return [float(v) for v in np.percentile(values, (2.5, 97.5))]

    return {
        "slopes": [one.slope for one in lines],
        "slope_intervals": [interval(slopes[:, 0]), interval(slopes[:, 1])],
        "faster": lines[1].slope / lines[0].slope - 1,
        "faster_interval": interval(slopes[:, 1] / slopes[:, 0] - 1),
        "crossing": met,
        "extrapolation": not low <= met <= high,
    }


def cells_of(rows: Sequence[Row], arm: str, axis: str, moments: str) -> dict[str, Cell]:
    """Cells of an arm by size, smallest first.

    Args:
        rows: of a ledger.
        arm: which one.
        axis: `sequences`, `seconds`, `operations` or `block_parameters`.
        moments: `all` points of a training, or its `end`: the lowest loss on the way, at the x of
            the last.
    """
    found: dict[str, list[tuple[list[float], list[float]]]] = {}
    for row in sorted(rows, key=lambda row: row["block_parameters"]):
        if row["arm"] != arm or row["data"] != 1:
            continue
        curve = row["curve"]
        if axis == "operations":
            x = [point["updates"] * row["operations_per_update"] for point in curve]
        elif axis == "block_parameters":
            x = [row["block_parameters"]] * len(curve)
        else:
            x = [point[axis] for point in curve]
        losses = [point["loss"] for point in curve]
        if moments == "end":
            x, losses = x[-1:], [min(losses)]
        found.setdefault(row["size"], []).append((x, losses))
    return {
        size: Cell(*(np.array(part, dtype=np.float64) for part in zip(*seeds, strict=True)))
        for size, seeds in found.items()
    }


def comparisons(rows: Sequence[Row], draws: int) -> dict[str, Row]:
    """Every comparison of the module's docstring that the ledger has enough for."""

    def compared(plain: Sequence[Cell], other: Sequence[Cell], best: bool = False) -> Row:
        return compare(plain, other, best=best, draws=draws)

    def cells(axis: str, moments: str) -> tuple[dict[str, Cell], dict[str, Cell]]:
        both = tuple(cells_of(rows, arm, axis, moments) for arm in ARMS)
        shared = both[0].keys() & both[1].keys()
        return (
            {size: cell for size, cell in both[0].items() if size in shared},
            {size: cell for size, cell in both[1].items() if size in shared},
        )

    found = {}
    plain, other = cells("sequences", "all")
    for size in plain:
        found[f"sequences, {size}"] = compared([plain[size]], [other[size]])
    if len(plain) > 1:
        for axis in ("block_parameters", "seconds", "operations"):
            plain, other = cells(axis, "end")
            found[f"{axis}, ends"] = compared([*plain.values()], [*other.values()])
        for axis in ("seconds", "operations"):
            plain, other = cells(axis, "all")
            found[f"{axis}, frontier"] = compared([*plain.values()], [*other.values()], best=True)
    return found


def table(rows: Sequence[Row], draws: int = 2000) -> str:
    """Losses, costs and comparisons in Markdown."""
    first = rows[0]
    lines = [
        f"Copying {first['copying']:.4f}, floor {first['floor']:.4f}.",
        "",
        "| arm | size | seeds | lowest loss (least, most) | thinking on | ms | operations |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str, float], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["block_parameters"], row["arm"])):
        groups.setdefault((row["arm"], row["size"], row["data"]), []).append(row)
    for (arm, size, share), group in groups.items():
        losses = [min(point["loss"] for point in row["curve"]) for row in group]
        ends = [row["curve"][-1] for row in group]
        thinking = [row["loss_thinking"] for row in group if "loss_thinking" in row]
        each = np.mean([1e3 * end["seconds"] / end["updates"] for end in ends])
        lines.append(
            f"| {arm} | {size}{'' if share == 1 else f', {share:g} of the data'} | {len(group)} "
            f"| {np.mean(losses):.4f} ({min(losses):.4f}, {max(losses):.4f}) "
            f"| {f'{np.mean(thinking):.4f}' if thinking else ''} | {each:.1f} "
            f"| {group[0]['operations_per_update']:.3g} |"
        )
    lines += [
        "",
        "| over | slope, autoregressive | slope, energy | faster | crossing |",
        "|---|---|---|---|---|",
        *(_told(name, row) for name, row in comparisons(rows, draws).items()),
    ]
    return "\n".join(lines)


def _told(name: str, row: Row) -> str:
    slopes = [
        f"{slope:.3f} ({low:.3f} to {high:.3f})"
        for slope, (low, high) in zip(row["slopes"], row["slope_intervals"], strict=True)
    ]
    low, high = row["faster_interval"]
    where = f"{row['crossing']:.3g}{' (extrapolation)' if row['extrapolation'] else ''}"
    return (
        f"| {name} | {slopes[0]} | {slopes[1]} "
        f"| {row['faster']:+.0%} ({low:+.0%} to {high:+.0%}) | {where} |"
    )


# --- picture


def draw(rows: Sequence[Row], path: Path) -> None:
    """Loss over each axis as a PNG: trainings as thin lines, ends as dots, fits dashed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(18, 4), sharey=True)
    names = {
        "sequences": "sequences seen",
        "block_parameters": "parameters of the blocks",
        "seconds": "seconds of training",
        "operations": "operations of training",
    }
    for axis, (name, told) in zip(axes, names.items(), strict=True):
        for colour, arm in zip(("tab:orange", "tab:blue"), ARMS, strict=True):
            ends = cells_of(rows, arm, name, "end")
            if name != "block_parameters":
                for cell in cells_of(rows, arm, name, "all").values():
                    axis.plot(*cell.mean(), color=colour, linewidth=1, alpha=0.6)
            for cell in ends.values():
                axis.plot(cell.x, cell.loss, ".", color=colour)
            if len(ends) > 1 and name != "sequences":
                fitted = fit([*ends.values()])
                every = np.concatenate([cell.x.ravel() for cell in ends.values()])
                x = np.array([every.min(), every.max()])
                axis.plot(x, fitted.at(x), "--", color=colour)
            axis.plot([], [], color=colour, label=arm)
        axis.set(xlabel=told, xscale="log", yscale="log")
    axes[0].set(ylabel="validation loss")
    figure.suptitle(f"copying {rows[0]['copying']:.3f}, floor {rows[0]['floor']:.3f}")
    axes[0].legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
