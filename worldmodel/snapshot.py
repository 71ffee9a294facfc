"""Snapshots: everything a training needs to go on after it was killed.

A training is a fixed sequence of named stages. A snapshot holds the weights of all modules, the
state of all random generators, and the position: a stage and, inside of it, the number of updates
with the optimiser's state. Replaying the sequence from a snapshot skips what is done; on a CPU the
weights at the end are those of an undisturbed run, bit for bit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from forethought.worldmodel.checkpoint import read_tensors, write_tensors

Generators = Mapping[str, torch.Generator | np.random.Generator]


class Snapshot:
    """Writes and restores the state of one training.

    Args:
        path: the file; None keeps nothing.
        modules: everything with weights, by name.
        generators: every source of randomness, by name.
        every_seconds: time between two snapshots inside of a stage.
        writes: whether this process writes the file (one of several processes does).
    """

    def __init__(
        self,
        path: Path | None,
        modules: Mapping[str, nn.Module],
        generators: Generators,
        *,
        every_seconds: float = 30.0,
        writes: bool = True,
    ) -> None:
        self._path = path
        self._modules, self._generators = dict(modules), dict(generators)
        self._every_seconds, self._writes = every_seconds, writes
        self._written = time.monotonic()
        self._stage = ""
        self._restored: tuple[str, int, dict[str, Tensor]] | None = None

    def restore(self) -> bool:
        """Load the file into modules and generators, if there is one; whether there was.

        Raises:
            ValueError: the file is damaged or belongs to another configuration.
        """
        if self._path is None or not self._path.exists():
            return False
        tensors, meta = read_tensors(self._path)
        for name, module in self._modules.items():
            try:
                module.load_state_dict(_under(tensors, f"modules.{name}."))
            except RuntimeError as error:
                raise ValueError(
                    f"snapshot {self._path} does not fit the module {name!r} ({error}): resume "
                    "with the configuration and version that wrote it"
                ) from error
        try:
            for name, generator in self._generators.items():
                if isinstance(generator, torch.Generator):
                    generator.set_state(tensors[f"generators.{name}"])
                else:
                    generator.bit_generator.state = meta["generators"][name]
            self._restored = (meta["stage"], int(meta["step"]), _under(tensors, "optimiser."))
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"snapshot {self._path} lacks what a training needs to go on ({error}): resume "
                "with the configuration and version that wrote it, or remove it to begin again"
            ) from error
        return True

    def enter(self, stage: str) -> bool:
        """Begin the stage that comes next; False if it is done already and to be skipped."""
        self._stage = stage
        if self._restored is not None:
            if self._restored[0] != stage:
                return False
            if self._restored[1] == 0:
                self._restored = None
            return True
        self._write(0, None)
        return True

    @property
    def replaying(self) -> bool:
        """Whether the stages entered so far were done before the snapshot was written."""
        return self._restored is not None

    def begin(self, optimiser: torch.optim.Optimizer) -> int:
        """Updates of this stage that are done; their optimiser's state is put back."""
        if self._restored is None:
            return 0
        _, step, tensors = self._restored
        self._restored = None
        for index, parameter in enumerate(_parameters(optimiser)):
            held = _under(tensors, f"{index}.")
            optimiser.state[parameter] = {k: v.to(parameter.device) for k, v in held.items()}
        return step

    def passed(self, step: int, optimiser: torch.optim.Optimizer) -> None:
        """After an update: write a snapshot if it is time."""
        if time.monotonic() - self._written >= self._every_seconds:
            self.save(step, optimiser)

    def save(self, step: int, optimiser: torch.optim.Optimizer | None) -> None:
        """Write a snapshot now."""
        self._write(step, optimiser)

    def _write(self, step: int, optimiser: torch.optim.Optimizer | None) -> None:
        self._written = time.monotonic()
        if self._path is None or not self._writes:
            return
        tensors = {
            f"modules.{name}.{key}": value
            for name, module in self._modules.items()
            for key, value in module.state_dict().items()
        }
        if optimiser is not None and step:
            for index, parameter in enumerate(_parameters(optimiser)):
                for key, value in optimiser.state[parameter].items():
                    tensors[f"optimiser.{index}.{key}"] = value
        states: dict[str, Any] = {}
        for name, generator in self._generators.items():
            if isinstance(generator, torch.Generator):
                tensors[f"generators.{name}"] = generator.get_state()
            else:
                states[name] = generator.bit_generator.state
        meta = {"stage": self._stage, "step": step, "generators": states}
        write_tensors(self._path, tensors, json.loads(json.dumps(meta)))


def _parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names begin with `prefix`, which is cut off."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
