"""Milliseconds per decision of planning on a GPU: eagerly, compiled, and as CUDA graphs.

    python benchmarks/gpu_planning.py large --device cuda --json benchmarks/results/gpu_large.json
    python benchmarks/gpu_planning.py small --device cuda --json benchmarks/results/gpu_small.json
    python benchmarks/gpu_planning.py large --device cpu --short      # to see that it works

`large`: a model of the size of LeWorldModel (2603.19312; 18 million parameters, trained by nobody:
the time does not depend on it), planned through as there: CEM, 300 candidates, 30 iterations, 5
steps of 5 actions. The floor beside each time is that of its matrix products alone: the operations
of all linear layers divided by the rate at which products of the same shapes, in the same
precision, run one after another on the device.

`small`: the runs that ship with the package, with the planner they were published with and with
CEM, from the observation in the computer's memory to the action there.

The ways to decide: `agent` is `Agent.act` as users call it; the others encode the observation and
plan from its state alone: `eager`, with what planning calls `compiled` by torch.compile, and either
of them recorded as CUDA graphs (`graphs`, `compiled graphs`). `action_gap` is the largest
difference of the planned actions from those of `eager` with the same random numbers; the others
must agree with it to rounding, which a search may amplify. Rows are written as they come, so that a
benchmark that is stopped keeps what it has.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from forethought import load
from forethought.build import device_of
from forethought.planners import CEM, Plan, Planner, Problem
from forethought.planners.graphs import GraphedSearch, Recorded
from forethought.run_folder import commit
from forethought.worldmodel import Predictor

Row = dict[str, Any]
Encode = Callable[[Tensor], Tensor]
Decide = Callable[[np.ndarray], Plan]

WAYS = ("eager", "compiled", "graphs", "compiled graphs")
PRECISIONS = ("float32", "tf32", "bfloat16")
SMALL = ("two-rooms", "cartpole-swingup")


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Args:
        repeats: timed decisions with the large model.
        small_repeats: timed decisions with a small one.
        warm: decisions before them, and those that prepare.
        candidates: of CEM with the large model.
        iterations: of CEM with the large model.
        horizon: of planning with the large model.
    """

    repeats: int = 10
    small_repeats: int = 100
    warm: int = 2
    candidates: int = 300
    iterations: int = 30
    horizon: int = 5


SHORT = Effort(repeats=1, small_repeats=1, warm=0, candidates=8, iterations=2, horizon=2)


# ---------------------------------------------------------------------------- the large model


class Block(nn.Module):
    """Transformer block; with a condition, modulated by it (AdaLN, Peebles and Xie, 2212.09748)."""

    def __init__(self, dim: int, heads: int, head_dim: int, hidden: int, *, adaln: bool) -> None:
        super().__init__()
        inner = heads * head_dim
        self.heads, self.head_dim = heads, head_dim
        self.before_attention = nn.LayerNorm(dim, elementwise_affine=not adaln)
        self.before_mlp = nn.LayerNorm(dim, elementwise_affine=not adaln)
        self.qkv = nn.Linear(dim, 3 * inner, bias=not adaln)
        self.out = nn.Linear(inner, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.modulation = nn.Linear(dim, 6 * dim) if adaln else None

    def forward(
        self, x: Tensor, condition: Tensor | None = None, *, causal: bool = False
    ) -> Tensor:
        """Tokens `(N, T, C)` under conditions `(N, T, C)` or None."""
        if self.modulation is None or condition is None:
            x = x + self._attend(self.before_attention(x), causal)
            mixed: Tensor = x + self.mlp(self.before_mlp(x))
            return mixed
        parts = self.modulation(F.silu(condition)).chunk(6, dim=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        x = x + gate * self._attend(self.before_attention(x) * (1 + scale) + shift, causal)
        modulated: Tensor = self.before_mlp(x) * (1 + mlp_scale) + mlp_shift
        return x + mlp_gate * self.mlp(modulated)

    def _attend(self, x: Tensor, causal: bool) -> Tensor:
        n, t, _ = x.shape
        qkv = self.qkv(x).view(n, t, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=causal)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(n, t, -1))
        return out


def projector(dim: int) -> nn.Module:
    """The perceptron with batch normalisation behind encoder and predictor."""
    hidden = 2048
    return nn.Sequential(
        nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.GELU(), nn.Linear(hidden, dim)
    )


class Encoder(nn.Module):
    """ViT-tiny/14: pictures `(B, 3, P, P)` to states `(B, C)`."""

    def __init__(self, pixels: int = 224, dim: int = 192) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 14, stride=14)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(0.02 * torch.randn(1, (pixels // 14) ** 2 + 1, dim))
        self.blocks = nn.ModuleList(Block(dim, 3, 64, 4 * dim, adaln=False) for _ in range(12))
        self.norm = nn.LayerNorm(dim)
        self.project = projector(dim)

    def forward(self, pictures: Tensor) -> Tensor:
        """States of pictures."""
        x = self.patches(pictures).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(len(x), -1, -1), x), dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        state: Tensor = self.project(self.norm(x[:, 0]))
        return state


class WindowPredictor(Predictor):
    """Causal transformer over a window of latents, each conditioned on its block of actions.

    Its state is the window laid flat: W latents of size C, the oldest first, then the W - 1 actions
    between them.
    """

    def __init__(self, action_dim: int = 10, dim: int = 192, window: int = 3) -> None:
        super().__init__()
        self.action_dim, self.dim, self.window = action_dim, dim, window
        self.position = nn.Parameter(0.02 * torch.randn(1, window, dim))
        self.embed = nn.Sequential(
            nn.Linear(action_dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim)
        )
        self.blocks = nn.ModuleList(Block(dim, 16, 64, 2048, adaln=True) for _ in range(6))
        self.norm = nn.LayerNorm(dim)
        self.project = projector(dim)

    @property
    def state_dim(self) -> int:
        """Size D of the state."""
        return self.window * self.dim + (self.window - 1) * self.action_dim

    def forward(
        self,
        state: Tensor,
        action: Tensor,
        latent: Tensor | None = None,
        context: Any = None,
    ) -> Tensor:
        """Predict the next state; see `Predictor.forward`. Uses neither latent nor context."""
        kept = self.window * self.dim
        latents = state[:, :kept].unflatten(1, (self.window, self.dim))
        actions = torch.cat((state[:, kept:], action), dim=1)  # (N, W A)
        condition = self.embed(actions.unflatten(1, (self.window, self.action_dim)))
        x = latents + self.position
        for block in self.blocks:
            x = block(x, condition, causal=True)
        new = self.project(self.norm(x[:, -1]))
        return torch.cat((state[:, self.dim : kept], new, actions[:, self.action_dim :]), dim=1)

    def begin(self, latent: Tensor) -> Tensor:
        """State `(B, D)` at the start of an episode: the one latent `(B, C)`, and no action yet."""
        rest = latent.new_zeros(len(latent), (self.window - 1) * self.action_dim)
        return torch.cat((latent.repeat(1, self.window), rest), dim=1)


class LargeModel(nn.Module):
    """Encoder and predictor, of 18 million parameters together."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.predictor = Encoder(), WindowPredictor()

    def problem(self, goal: Tensor, horizon: int, step: Callable[..., Tensor]) -> Problem:
        """Reach the latent `goal` `(1, C)` with the last step, in float32 outside of the model."""
        dim, window = self.predictor.dim, self.predictor.window
        dtype = self.predictor.position.dtype
        bound = torch.ones(self.predictor.action_dim, device=goal.device)

        def far(state: Any, action: Any, next_state: Tensor, context: Any, t: Any) -> Tensor:
            newest = next_state[..., (window - 1) * dim : window * dim].float()
            return (newest - context["goal"]).square().mean(-1)

        return Problem(
            state=self.predictor.begin(goal.to(dtype)),
            step=lambda state, action, latent, context, t: step(state, action.to(dtype)),
            horizon=horizon,
            low=-bound,
            high=bound,
            goal_cost=far,
            reduction="last",
            context={"goal": goal},
        )


# ---------------------------------------------------------------------------- measuring


def wait(device: torch.device) -> None:
    """Until the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(
    work: Callable[[], object], device: torch.device, *, repeats: int, warm: int
) -> Row:
    """Median, lowest and highest time of `work`, after it was done `warm` times."""
    times = []
    for _ in range(warm + repeats):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        times.append(1e3 * (time.perf_counter() - began))
    times = times[warm:]
    return {"ms": statistics.median(times), "ms_low": min(times), "ms_high": max(times)}


Product = tuple[int, int, int]


@contextmanager
def products_of(model: nn.Module) -> Iterator[Counter[Product]]:
    """Count the products `(rows, inner) x (inner, columns)` of the linear layers called inside."""
    counted: Counter[Product] = Counter()

    def count(layer: nn.Linear, arguments: tuple[Tensor, ...], _: Tensor) -> None:
        rows = arguments[0].numel() // layer.in_features
        counted[rows, layer.in_features, layer.out_features] += 1

    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        yield counted
    finally:
        for hook in hooks:
            hook.remove()


def floor_of(counted: Counter[Product], device: torch.device, dtype: torch.dtype) -> Row:
    """Operations of the products, the rate at which they run by themselves, and the time so."""
    seconds, operations = 0.0, 0
    for (rows, inner, columns), times in counted.items():
        left = torch.randn(rows, inner, device=device, dtype=dtype)
        right = torch.randn(columns, inner, device=device, dtype=dtype)
        inside = 50 if device.type == "cuda" else 2  # the launch of a graph costs some products

        def many(left: Tensor = left, right: Tensor = right, inside: int = inside) -> Tensor:
            for _ in range(inside):
                product = F.linear(left, right)
            return product

        replay = Recorded(many, {"left": left, "right": right})
        inputs = {"left": left.clone(), "right": right.clone()}
        timed = milliseconds(partial(replay, inputs), device, repeats=10, warm=2)
        seconds += times * timed["ms"] / inside / 1e3
        operations += times * 2 * rows * inner * columns
    return {
        "operations": operations,
        "products_tflops_per_second": operations / seconds / 1e12,
        "floor_ms": 1e3 * seconds,
    }


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let products of float32 round their factors to tf32, or not."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def decider(
    way: str, encode: Encode, planner: Planner, problem: Problem, observation: np.ndarray
) -> Decide:
    """From an observation `(1, *O)` to a plan, with planner and problem; seed 0 at the start."""
    device = problem.device
    generator = torch.Generator(device).manual_seed(0)
    if "graphs" not in way:

        def eager(observation: np.ndarray) -> Plan:
            state = encode(torch.as_tensor(observation).to(device))
            return planner.plan(replace(problem, state=state), generator=generator)

        return eager
    picture = torch.as_tensor(observation).to(device)
    seen = Recorded(lambda: encode(picture), picture)
    search = GraphedSearch(planner, problem, generator=generator)  # type: ignore[arg-type]
    generator.manual_seed(0)  # the rehearsals drew from it

    def graphs(observation: np.ndarray) -> Plan:
        return search.plan(seen(torch.as_tensor(observation).to(device)), problem.context)

    return graphs


def measure(
    common: Row,
    way: str,
    make: Callable[[], Decide],
    observation: np.ndarray,
    effort: Effort,
    device: torch.device,
    reference: Plan | None,
) -> tuple[Row, Plan | None]:
    """A row of one way to decide, and its first plan; a way that fails leaves its error."""
    row = {**common, "way": way}
    try:
        began = time.perf_counter()
        decide = make()
        plan = decide(observation)
        wait(device)
        row["prepare_seconds"] = time.perf_counter() - began
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

        row |= milliseconds(
            lambda: decide(observation).actions[:, 0].cpu(),
            device,
            repeats=effort.repeats,
            warm=effort.warm,
        )
        row["decisions_per_second"] = 1e3 / row["ms"]
        if device.type == "cuda":
            row["peak_memory_mb"] = torch.cuda.max_memory_allocated(device) / 1e6
    except Exception as error:  # noqa: BLE001 - that a way does not work is a result
        return {**row, "error": f"{type(error).__name__}: {str(error)[:500]}"}, None
    row["energy"] = float(plan.energy[0])
    if reference is not None:
        row["action_gap"] = float((plan.actions - reference.actions).abs().max())
        row["energy_gap"] = float((plan.energy - reference.energy).abs()[0])
    return row, plan


# ---------------------------------------------------------------------------- the two benchmarks


def in_turn(ways: Sequence[str]) -> list[list[str]]:
    """The ways that need no compiler, then the others, which take long to prepare."""
    plain = [way for way in ways if "compiled" not in way]
    return [plain, [way for way in ways if way not in plain]]


def large(given: argparse.Namespace, effort: Effort, device: torch.device) -> Iterator[Row]:
    """CEM through the large model, in each precision and each way."""
    planner = CEM(
        candidates=effort.candidates,
        iterations=effort.iterations,
        elites=max(1, effort.candidates // 10),
        initial_std=1.0,
        momentum=0.0,
        correlation=0.0,
    )
    pictures = np.random.default_rng(0).random((2, 1, 3, 224, 224), dtype=np.float32)
    precisions = given.precisions or (PRECISIONS if device.type == "cuda" else ("float32",))
    references: dict[str, Plan] = {}
    for ways, precision in itertools.product(in_turn(given.ways), precisions):
        if not ways:
            continue
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        torch.manual_seed(0)
        model = LargeModel().eval().requires_grad_(False).to(device, dtype)

        def encode(picture: Tensor, model: LargeModel = model, dtype: Any = dtype) -> Tensor:
            return model.predictor.begin(model.encoder(picture.to(dtype)))

        with tf32(precision == "tf32"), torch.no_grad():
            goal, picture = (torch.as_tensor(one).to(device, dtype) for one in pictures[::-1])
            goal = model.encoder(goal).float()
            problem = model.problem(goal, effort.horizon, model.predictor)
            with products_of(model.predictor) as counted:
                planner.plan(problem, generator=torch.Generator(device).manual_seed(0))
            count = {"repeats": effort.repeats, "warm": effort.warm}
            common: Row = {
                "benchmark": "large",
                "parameters": sum(p.numel() for p in model.parameters()),
                "precision": precision,
                "planner": "CEM",
                "candidates": planner.candidates,
                "iterations": planner.iterations,
                "horizon": effort.horizon,
                "encode_ms": milliseconds(partial(encode, picture), device, **count)["ms"],
                **floor_of(counted, device, dtype),
            }
        torch.compiler.reset()  # there is a limit to how often one function is compiled
        predictor = torch.compile(model.predictor, dynamic=False)
        compiled = model.problem(goal, effort.horizon, predictor)
        for way in ways:
            chosen = compiled if "compiled" in way else problem
            make = partial(decider, way, encode, planner, chosen, pictures[0])
            reference = references.get(precision)
            with tf32(precision == "tf32"), torch.no_grad():
                row, plan = measure(common, way, make, pictures[0], effort, device, reference)
            if way == "eager" and plan is not None:
                references[precision] = plan
            if "ms" in row:
                row["times_floor"] = row["ms"] / row["floor_ms"]
            yield row


def small(given: argparse.Namespace, effort: Effort, device: torch.device) -> Iterator[Row]:
    """Control rates of the runs that ship with the package."""
    effort = replace(effort, repeats=effort.small_repeats)
    references: dict[tuple[str, Planner], Plan] = {}
    for ways, name in itertools.product(in_turn(given.ways), given.runs):
        if not ways:
            continue
        trained = load(name, device=str(device))
        space = trained.spec.observation_space
        space.seed(0)
        observation, goal = (np.stack([space.sample()]) for _ in range(2))
        for planner in (trained.agent.planner, CEM()):
            agent = replace(trained.agent, planner=planner)
            aimed = goal if agent.configurator.task.goal else None
            carried = agent.start(1, goal=aimed, generator=torch.Generator().manual_seed(0))
            problem = agent.problem(carried.setting, agent.encode(observation))
            compiled = compile_parts(problem)
            common = {
                "benchmark": "small",
                "run": name,
                "precision": "float32",
                "planner": type(planner).__name__,
                "settings": str(planner),
                "horizon": problem.horizon,
            }
            if "eager" in ways:
                yield acted(common, agent, carried, observation, effort, device)
            for way in ways:
                chosen = compiled if "compiled" in way else problem
                make = partial(decider, way, agent.model.encode, planner, chosen, observation)
                reference = references.get((name, planner))
                with torch.no_grad():
                    row, plan = measure(common, way, make, observation, effort, device, reference)
                if way == "eager" and plan is not None:
                    references[name, planner] = plan
                yield row


def compile_parts(problem: Problem) -> Problem:
    """The problem with its roll-out and costs compiled, at their first call."""
    torch.compiler.reset()  # there is a limit to how often one function is compiled

    def compiled(function: Any) -> Any:
        return None if function is None else torch.compile(function, dynamic=False)

    return replace(
        problem,
        rollout=compiled(problem.rollout),
        stage_cost=compiled(problem.stage_cost),
        goal_cost=compiled(problem.goal_cost),
        terminal_cost=compiled(problem.terminal_cost),
    )


def acted(
    common: Row,
    agent: Any,
    carried: Any,
    observation: np.ndarray,
    effort: Effort,
    device: torch.device,
) -> Row:
    """A row of `Agent.act`, with all that an agent does besides planning."""
    states = [carried]

    def act() -> None:
        states[0] = agent.act(states[0], observation)[1]

    timed = milliseconds(act, device, repeats=effort.repeats, warm=effort.warm)
    return {**common, "way": "agent", **timed, "decisions_per_second": 1e3 / timed["ms"]}


def machine(device: torch.device) -> Row:
    """What the numbers depend on."""
    cuda = device.type == "cuda"
    return {
        "device": device.type,
        "name": torch.cuda.get_device_name(device) if cuda else platform.processor(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "commit": commit(),
    }


def main(argv: list[str] | None = None) -> int:
    """Measure, show and write the rows; 1 where a way failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("benchmark", choices=["large", "small"])
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--short", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="by default all (CPU: eager)")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="of `large`")
    parser.add_argument("--runs", nargs="+", default=SMALL, help="of `small`")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    given = parser.parse_args(argv)
    device = device_of(given.device)
    effort = SHORT if given.short else Effort()
    given.ways = given.ways or (WAYS if device.type == "cuda" else ("eager",))
    words = sys.argv[1:] if argv is None else argv
    record: Row = {
        "command": " ".join(["python", "benchmarks/gpu_planning.py", *words]),
        "short": given.short,
        "machine": machine(device),
        "rows": [],
    }
    for row in {"large": large, "small": small}[given.benchmark](given, effort, device):
        record["rows"].append(row)
        print(json.dumps(row), flush=True)
        if given.json is not None:
            given.json.write_text(json.dumps(record, indent=1) + "\n")
    return int(any("error" in row for row in record["rows"]))


if __name__ == "__main__":
    sys.exit(main())
