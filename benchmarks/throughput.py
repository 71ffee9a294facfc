"""Throughput: collection against plain loops, windows drawn from data sets, training.

    python benchmarks/throughput.py --json benchmarks/results/throughput.json

Each row is a ratio of two rates that are measured in turns in one run, or a rate, several times:
the median counts, the lowest and the highest stand beside it. Rates are environment steps per
second before action repeat, windows per second, and so on, as `unit` says. Nothing else should run
on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from forethought.envs import Dataset, Random, collect, collect_to, make

Row = dict[str, Any]
Rate = Callable[[], float]

TASK = "dm_control/cartpole-swingup"


def compared(name: str, ours: Rate, plain: Rate, repeats: int, target: float, **more: Any) -> Row:
    """A row of two rates, measured in turns, and their ratio."""
    pairs = [(ours(), plain()) for _ in range(repeats)]
    ratios = [one / other for one, other in pairs]
    row = {
        "name": name,
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "target": target,
        "ours": statistics.median(one for one, _ in pairs),
        "plain": statistics.median(other for _, other in pairs),
        "repeats": repeats,
    }
    return row | more


def measured(name: str, rate: Rate, repeats: int, target: float, **more: Any) -> Row:
    """A row of one rate."""
    rates = [rate() for _ in range(repeats)]
    row = {
        "name": name,
        "ours": statistics.median(rates),
        "ours_low": min(rates),
        "ours_high": max(rates),
        "target": target,
        "repeats": repeats,
    }
    return row | more


def plain_loop(steps: int, *, repeat: int = 1, pixels: bool = False) -> float:
    """Environment steps per second of a loop as one writes it, with dm_control alone."""
    from dm_control import suite

    env = suite.load("cartpole", "swingup", task_kwargs={"random": 0})
    bounds, rng = env.action_spec(), np.random.default_rng(0)
    env.reset()
    if pixels:
        env.physics.render(64, 64)  # the first one takes a second
    done, began = 0, time.perf_counter()
    while done < steps:
        action = rng.uniform(bounds.minimum, bounds.maximum)
        for _ in range(repeat):
            result = env.step(action)
            np.concatenate([np.ravel(entry) for entry in result.observation.values()])
            done += 1
            if result.last():
                env.reset()
                break
        if pixels:
            env.physics.render(64, 64)
    return done / (time.perf_counter() - began)


def collected(episodes: int, *, num_envs: int, **options: Any) -> float:
    """Environment steps per second of `collect`, in this process."""
    env = make(TASK, num_envs, **options)
    env.reset(seed=0)
    rng, began = np.random.default_rng(0), time.perf_counter()
    done = list(collect(env, Random(), episodes, first_seed=0, generator=rng))
    seconds = time.perf_counter() - began
    env.close()
    return sum(episode.length for episode in done) * options.get("action_repeat", 1) / seconds


def written(episodes: int, *, workers: int, **options: Any) -> float:
    """Environment steps per second of `collect_to`: processes start, shards go to the disk."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        fields: dict[str, Any] = {"num_envs": 4, "episodes_per_shard": 8}
        collect_to(folder, TASK, Random(), episodes, options=options, workers=workers, **fields)
        seconds = time.perf_counter() - began
        return Dataset.open(folder).steps * options.get("action_repeat", 1) / seconds


def pixels(repeats: int) -> list[Row]:
    """Pictures of 64 x 64 pixels, lean, against default rendering."""

    def ours() -> float:
        return collected(4, num_envs=4, observe="pixels", episode_limit=250)

    def plain() -> float:
        return plain_loop(60, pixels=True)

    return [compared("collect pixels", ours, plain, repeats, 15, unit="steps/s", workers=1)]


def vectors(repeats: int) -> list[Row]:
    """Vectors, without and with action repeat, against one process of a plain loop."""
    rows = []
    for repeat in (1, 4):

        def plain(repeat: int = repeat) -> float:
            return plain_loop(20_000, repeat=repeat)

        def two(repeat: int = repeat) -> float:
            return written(192, workers=2, action_repeat=repeat)

        def one(repeat: int = repeat) -> float:
            return collected(8, num_envs=4, action_repeat=repeat)

        more = {"unit": "steps/s", "action_repeat": repeat}
        rows.append(compared("collect vectors", two, plain, repeats, 1.6, workers=2, **more))
        rows.append(compared("collect vectors", one, plain, repeats, 0.0, workers=1, **more))
    return rows


def windows(repeats: int) -> list[Row]:
    """Windows of 16 steps drawn from a data set on the disk."""
    rows = []
    kinds = {
        "vectors": (50_000, 64, {}, 1024),
        "pixels": (10_000, 16, {"observe": "pixels", "episode_limit": 250}, 128),
    }
    for kind, (target, episodes, options, batch) in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            collect_to(folder, TASK, Random(), episodes, options=options)
            sampler, rng = Dataset.open(folder).windows(16), np.random.default_rng(0)
            sampler.sample(batch, rng)

            def rate(sampler: Any = sampler, rng: Any = rng, batch: int = batch) -> float:
                done, began = 0, time.perf_counter()
                while time.perf_counter() - began < 1.0:
                    sampler.sample(batch, rng)
                    done += batch
                return done / (time.perf_counter() - began)

            name = f"windows of {kind}"
            rows.append(measured(name, rate, repeats, target, unit="windows/s", batch=batch))
    return rows


def training(repeats: int) -> list[Row]:
    """The joint stage, from windows on the disk to the optimiser, against its bare arithmetic.

    Bare: forward and backward of the same modules and losses on one batch that lies in memory.
    """
    import torch

    from forethought.worldmodel import (
        JEPA,
        AutoPerception,
        JointStage,
        Losses,
        Objective,
        ResidualMLP,
        train_joint,
    )

    torch.set_num_threads(1)
    rows = []
    kinds = {
        "vectors": (JointStage(steps=150, batch=128, unroll=5), 16, {}),
        "pixels": (JointStage(steps=15, batch=32, unroll=8), 4, {"observe": "pixels"}),
    }
    for kind, (stage, episodes, options) in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            collect_to(folder, TASK, Random(), episodes, options={"action_repeat": 4, **options})
            held = Dataset.open(folder)
            model = JEPA(AutoPerception(held.spec), ResidualMLP(32, held.spec.action_dim))
            generator = torch.Generator().manual_seed(0)
            objective = Objective(Losses(), 32, model.actions, generator)
            frames = stage.steps * stage.batch * (stage.unroll + 1)

            def ours(
                model: Any = model,
                objective: Any = objective,
                held: Any = held,
                stage: Any = stage,
                frames: int = frames,
            ) -> float:
                began = time.perf_counter()
                train_joint(model, objective, held, stage, np.random.default_rng(0))
                return frames / (time.perf_counter() - began)

            batch = held.windows(stage.unroll).sample(stage.batch, np.random.default_rng(0))
            observations = torch.as_tensor(batch.observations)
            actions = torch.as_tensor(batch.actions)

            def bare(
                model: Any = model,
                objective: Any = objective,
                steps: int = stage.steps,
                observations: Any = observations,
                actions: Any = actions,
                frames: int = frames,
            ) -> float:
                began = time.perf_counter()
                for _ in range(steps):
                    encoded = model.encode(observations)
                    total, _ = objective(encoded, model.rollout(encoded[:, 0], actions), actions)
                    model.zero_grad(set_to_none=True)
                    objective.zero_grad(set_to_none=True)
                    total.backward()
                return frames / (time.perf_counter() - began)

            ours(), bare()  # to warm up
            name = f"training on {kind}"
            rows.append(compared(name, ours, bare, repeats, 0.8, unit="frames/s"))
    return rows


# What can be measured, by the name that --only takes.
MEASUREMENTS: dict[str, Callable[[int], list[Row]]] = {
    "pixels": pixels,
    "vectors": vectors,
    "windows": windows,
    "training": training,
}


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit or None,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "renderer": os.environ.get("MUJOCO_GL"),
    }


def main() -> None:
    """Measure, show, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=sorted(MEASUREMENTS), default=[*MEASUREMENTS])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    given = parser.parse_args()
    rows: list[Row] = []
    around = machine()
    for name in given.only:
        for row in MEASUREMENTS[name](given.repeats):
            rows.append(row)
            print(json.dumps(row), flush=True)
    if given.json is not None:
        command = " ".join(["python", "benchmarks/throughput.py", *sys.argv[1:]])
        record = {"command": command, "machine": around, "rows": rows}
        given.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
