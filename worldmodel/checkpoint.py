"""Checkpoints: weights in safetensors, everything else in JSON, each written whole and renamed."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn, uint8

from forethought.envs.shard import replace_file

FORMAT_VERSION = 1


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write named tensors and JSON to one safetensors file, whole; an older one is replaced.

    Raises:
        OSError: the disk is full or the folder cannot be written; an older file stays as it was.
    """
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = json.dumps({**meta, "format_version": FORMAT_VERSION})
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, save(held, metadata={"forethought": header}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or of another format version.
    """
    meta = read_meta(path)
    try:
        return load(path.read_bytes()), meta
    except SafetensorError as error:
        raise ValueError(
            f"checkpoint {path} is damaged or cut: restore it from a copy or train again"
        ) from error


def digest(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of a module's parameters and buffers.

    It is the version of the weights: the same on every device, after saving and loading, and in
    another process; another one as soon as one bit of one weight differs. What the state dict does
    not hold, such as an activation function or a buffer that is not persistent, does not count.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        held = tensor.detach().cpu().contiguous()
        # The shape is part of the text, so no bytes can move from one tensor to the next unseen.
        found.update(f"{name!r} {held.dtype} {tuple(held.shape)};".encode())
        found.update(held.view(-1).view(uint8).numpy().tobytes())
    return found.hexdigest()


def save_checkpoint(path: Path, modules: dict[str, nn.Module], meta: dict[str, Any]) -> None:
    """Write the weights of named modules to `path` (safetensors, metadata in its header).

    Args:
        path: the file to write; an older one is replaced.
        modules: modules by name; their parameters and buffers become `NAME.KEY`.
        meta: whatever JSON holds, such as the step and the environment's description.
    """
    tensors = {
        f"{name}.{key}": tensor
        for name, module in modules.items()
        for key, tensor in module.state_dict().items()
    }
    write_tensors(path, tensors, {**meta, "modules": sorted(modules)})


def read_meta(path: Path) -> dict[str, Any]:
    """Read the JSON that was stored with a checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or of another format version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: train a model first")
    damaged = f"checkpoint {path} is damaged or cut: restore it from a copy or train again"
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(size, 10_000_000)))
        meta: dict[str, Any] = json.loads(header["__metadata__"]["forethought"])
        version = meta["format_version"]
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise ValueError(damaged) from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"checkpoint {path} has format version {version}, this version of forethought reads "
            f"{FORMAT_VERSION}: use the version that wrote it"
        )
    return meta


def load_checkpoint(path: Path, modules: dict[str, nn.Module]) -> dict[str, Any]:
    """Load the weights of named modules in place; returns the stored JSON.

    Modules in the file that are not asked for are left alone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, of another version, or does not fit the modules.
    """
    tensors, meta = read_tensors(path)
    held = meta.get("modules", [])
    for name, module in modules.items():
        if name not in held:
            raise ValueError(
                f"checkpoint {path} holds {held}, but no {name!r}: use the "
                "configuration it was trained with"
            )
        prefix = f"{name}."
        weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        try:
            module.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"checkpoint {path} does not fit the module {name!r} ({error}): use the "
                "configuration it was trained with"
            ) from error
    return meta
