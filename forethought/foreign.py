"""Weights of others: a checkpoint folder of stable-worldmodel's LeWorldModel, read into ours.

Such a folder holds `weights.pt`, a state dict, and `config.json`, which says how the model was
built. It is the one file of ours to be read by `torch.load`, and with `weights_only=True`: a pickle
that would run code is refused. What was taken and what not is told by name, since a model in which
half of the weights are still those of its initialisation looks like one that learned badly.

Two things are in no such folder. Pictures were standardised by the statistics of ImageNet, which
are set here. Actions were standardised by those of the data, which only the caller can know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forethought.worldmodel import JEPA, CausalPredictor, ViTPerception

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of pixels in [0, 1]
_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}  # of its vision transformers
_PARTS = ("encoder", "predictor", "action_encoder")

# Their names as patterns, and ours. Newer releases of the vision transformer renamed its layers.
_VIT = r"encoder\.(?:encoder\.layer|layers|encoder\.layers)\.(\d+)\."
_LAYER = r"predictor\.transformer\.layers\.(\d+)\."
_BLOCK, _OURS = "perception.transformer.blocks.", "predictor.transformer.blocks."
_RENAMED: tuple[tuple[str, str], ...] = (
    (r"encoder\.embeddings\.cls_token", "perception.token"),
    (r"encoder\.embeddings\.position_embeddings", "perception.positions"),
    (r"encoder\.embeddings\.patch_embeddings\.projection\.(\w+)", r"perception.cut.\1"),
    (r"encoder\.layernorm\.(\w+)", r"perception.transformer.norm.\1"),
    (_VIT + r"layernorm_before\.(\w+)", _BLOCK + r"\1.norm1.\2"),
    (_VIT + r"layernorm_after\.(\w+)", _BLOCK + r"\1.norm2.\2"),
    (
        _VIT + r"(?:attention\.output\.dense|attention\.o_proj)\.(\w+)",
        _BLOCK + r"\1.attention.out.\2",
    ),
    (_VIT + r"(?:intermediate\.dense|mlp\.fc1)\.(\w+)", _BLOCK + r"\1.expand.\2"),
    (_VIT + r"(?:output\.dense|mlp\.fc2)\.(\w+)", _BLOCK + r"\1.contract.\2"),
    (r"projector\.net\.(\d)\.(\w+)", r"perception.project.\1.\2"),
    (r"predictor\.pos_embedding", "predictor.positions"),
    (r"predictor\.transformer\.norm\.(\w+)", r"predictor.transformer.norm.\1"),
    (_LAYER + r"attn\.norm\.(\w+)", _OURS + r"\1.inner1.\2"),
    (_LAYER + r"attn\.to_qkv\.(\w+)", _OURS + r"\1.attention.qkv.\2"),
    (_LAYER + r"attn\.to_out\.0\.(\w+)", _OURS + r"\1.attention.out.\2"),
    (_LAYER + r"mlp\.net\.0\.(\w+)", _OURS + r"\1.inner2.\2"),
    (_LAYER + r"mlp\.net\.1\.(\w+)", _OURS + r"\1.expand.\2"),
    (_LAYER + r"mlp\.net\.4\.(\w+)", _OURS + r"\1.contract.\2"),
    (_LAYER + r"adaLN_modulation\.1\.(\w+)", _OURS + r"\1.modulation.\2"),
    (r"action_encoder\.embed\.2\.(\w+)", r"predictor.embed.2.\1"),
    (r"pred_proj\.net\.(\d)\.(\w+)", r"predictor.project.\1.\2"),
)
_QKV = _VIT + r"attention\.(?:attention\.)?(?:(q|k|v)_proj|(query|key|value))\.(\w+)"
_EMBED = "action_encoder.patch_embed.", "action_encoder.embed.0."


@dataclass(frozen=True)
class Taken:
    """What became of a checkpoint.

    Attributes:
        taken: our parameters and buffers that were filled.
        left: their tensors that were not used, and why.
        missing: our parameters and buffers that are as they were.
        notes: what is to be known besides.
        standardised: whether the standardisation of pictures is theirs now.
    """

    taken: tuple[str, ...]
    left: Mapping[str, str]
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    standardised: bool

    def __str__(self) -> str:
        """A few lines that say so."""
        lines = [f"{len(self.taken)} tensors taken, {len(self.left)} left, "]
        lines[0] += f"{len(self.missing)} of the model's are as they were"
        lines += [f"left: {name} ({why})" for name, why in self.left.items()]
        lines += [f"as it was: {name}" for name in self.missing]
        return "\n".join([*lines, *self.notes])


def take_weights(
    model: JEPA,
    checkpoint: str | Path,
    *,
    action_statistics: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Taken:
    """Fill a model from a stable-worldmodel checkpoint of LeWorldModel, where shapes agree.

    Args:
        model: with `ViTPerception` and `CausalPredictor`, such as the configuration
            `leworldmodel` builds. Nothing of it changes where this raises.
        checkpoint: the folder, or one of the files of weights in it.
        action_statistics: mean and standard deviation of the actions that it was trained on, in
            our unit [-1, 1], for one action or a whole block; they become a part of the weights.
            None: actions go in as they are.

    Returns:
        What was taken, and what not.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, of another model, or nothing in it agrees with the model.
    """
    perception, predictor = model.perception, model.predictor
    if not isinstance(perception, ViTPerception) or not isinstance(predictor, CausalPredictor):
        raise ValueError(
            f"the model has {type(perception).__name__} and {type(predictor).__name__}: choose "
            "ViTPerception and CausalPredictor, as --config leworldmodel does"
        )
    file, config = _found(Path(checkpoint))
    _check_heads(config, perception, predictor)
    theirs = _read(file)
    offered, left = _translated(theirs)
    if action_statistics is not None:
        _fold_statistics(offered, action_statistics)
    own = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith("perception.standardise.")
    }
    fitting: dict[str, Tensor] = {}
    for name, (sources, tensor) in offered.items():
        held = own.get(name)
        if held is None:
            why = f"the model has no {name}"
        elif held.squeeze().shape != tensor.squeeze().shape:  # they keep an axis for the batch
            why = f"{tuple(tensor.shape)}, but {name} is {tuple(held.shape)}"
        else:
            fitting[name] = tensor.reshape(held.shape).to(held)
            continue
        left |= dict.fromkeys(sources, why)
    if not fitting:
        raise ValueError(
            f"nothing in {file} agrees with the model in name and shape: build the model with the "
            f"sizes in {file.with_name('config.json')}"
        )
    with torch.no_grad():
        for name, tensor in fitting.items():
            own[name].copy_(tensor)
    standardised = _standardised(perception, fitting)
    notes = [
        "pictures: uint8, standardised by the statistics of ImageNet from now on"
        if standardised
        else "pictures: standardised as before, as no patches were taken"
    ]
    if action_statistics is None and "predictor.embed.0.weight" in fitting:
        notes.append("actions: go in as they are; its own were standardised by its data")
    missing = tuple(name for name in own if name not in fitting)
    return Taken(tuple(fitting), left, missing, tuple(notes), standardised)


def _found(path: Path) -> tuple[Path, dict[str, Any]]:
    """The file of weights and the configuration beside it."""
    file = path / "weights.pt" if path.is_dir() else path
    described = file.with_name("config.json")
    for needed in (file, described):
        if not needed.is_file():
            raise FileNotFoundError(
                f"there is no {needed}: give a folder that holds weights.pt and config.json"
            )
    try:
        config = json.loads(described.read_text())
    except ValueError as error:
        raise ValueError(f"{described} is damaged ({error}): fetch it again") from error
    parts = [
        name for name in _PARTS if isinstance(config, dict) and isinstance(config.get(name), dict)
    ]
    if len(parts) < len(_PARTS):
        kind = config.get("_target_", "something else") if isinstance(config, dict) else "no object"
        raise ValueError(
            f"{described} describes {kind}, without {' and '.join(sorted({*_PARTS} - {*parts}))}: "
            "only LeWorldModel can be read"
        )
    return file, config


def _check_heads(
    config: Mapping[str, Any], perception: ViTPerception, predictor: CausalPredictor
) -> None:
    """Refuse another number of heads, which no shape shows.

    Raises:
        ValueError: it is another one.
    """
    size = config["encoder"].get("size")
    wanted = {
        "perception": (_HEADS.get(size), perception.transformer),
        "predictor": (config["predictor"].get("heads"), predictor.transformer),
    }
    for part, (heads, transformer) in wanted.items():
        (own,) = {block.attention.heads for block in transformer.blocks}  # type: ignore[union-attr]
        if heads is not None and heads != own:
            raise ValueError(
                f"model.{part} has {own} heads, but the checkpoint has {heads}: build it with "
                f"heads={heads}"
            )


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors in a file, by name.

    Raises:
        ValueError: it is damaged, or holds something else than tensors.
    """
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, that of the pickle's own module among them
        raise ValueError(
            f"{file} cannot be read as plain tensors ({str(error).splitlines()[0]}): give a state "
            "dict that torch.save wrote, not a pickled model"
        ) from error
    for wrapping in ("state_dict", "model"):
        if isinstance(held, dict) and isinstance(held.get(wrapping), dict):
            held = held[wrapping]
    if not isinstance(held, dict) or not all(isinstance(x, Tensor) for x in held.values()):
        raise ValueError(f"{file} holds no named tensors: give a state dict")
    return held


Offered = dict[str, tuple[tuple[str, ...], Tensor]]


def _translated(theirs: Mapping[str, Tensor]) -> tuple[Offered, dict[str, str]]:
    """Tensors under our names, each with the names it came from, and what has no place here."""
    offered: Offered = {}
    left: dict[str, str] = {}
    split: dict[str, dict[str, tuple[str, Tensor]]] = {}
    for name, tensor in theirs.items():
        if match := re.fullmatch(_QKV, name):
            number, short, long, kind = match.groups()
            ours = f"{_BLOCK}{number}.attention.qkv.{kind}"
            split.setdefault(ours, {})[(short or long)[0]] = (name, tensor)
            continue
        if name.startswith(_EMBED):
            continue
        for pattern, ours in _RENAMED:
            if match := re.fullmatch(pattern, name):
                offered[match.expand(ours)] = (name,), tensor
                break
        else:
            left[name] = "there is nothing like it here"
    for ours, parts in split.items():
        if set(parts) == {"q", "k", "v"}:
            names, tensors = zip(*(parts[letter] for letter in "qkv"), strict=True)
            offered[ours] = names, torch.cat(tensors)
        else:
            left |= {name: "queries, keys and values are incomplete" for name, _ in parts.values()}
    _join_embedding(theirs, offered, left)
    return offered, left


def _join_embedding(theirs: Mapping[str, Tensor], offered: Offered, left: dict[str, str]) -> None:
    """Their first two maps of actions have nothing between them: one linear map here."""
    names = tuple(f"{part}{kind}" for part in _EMBED for kind in ("weight", "bias"))
    there = [name for name in theirs if name.startswith(_EMBED)]
    if set(there) != set(names):
        left |= dict.fromkeys(there, "the embedding of actions is incomplete or of another kind")
        return
    first, first_bias, second, second_bias = (theirs[name].double() for name in names)
    first = first.flatten(1)  # a convolution over single steps
    offered["predictor.embed.0.weight"] = names, second @ first
    offered["predictor.embed.0.bias"] = names, second @ first_bias + second_bias


def _fold_statistics(offered: Offered, statistics: tuple[Sequence[float], Sequence[float]]) -> None:
    """W (a - mean) / std + b as one linear map of a.

    Raises:
        ValueError: their number does not fit the actions, or a standard deviation is not above 0.
    """
    if "predictor.embed.0.weight" not in offered:
        return
    names, weight = offered["predictor.embed.0.weight"]
    bias = offered["predictor.embed.0.bias"][1]
    mean, std = (torch.as_tensor(part, dtype=weight.dtype) for part in statistics)
    size = weight.shape[1]
    if mean.shape != std.shape or not mean.numel() or size % mean.numel() or not (std > 0).all():
        raise ValueError(
            f"action_statistics are {tuple(map(tuple, statistics))}: give mean and standard "
            f"deviation above 0, for each of {size} numbers or of a part that divides them"
        )
    mean, std = (part.repeat(size // len(part)) for part in (mean, std))
    offered["predictor.embed.0.weight"] = names, weight / std
    offered["predictor.embed.0.bias"] = names, bias - weight @ (mean / std)


def _standardised(perception: ViTPerception, fitting: Mapping[str, Tensor]) -> bool:
    """Standardise pictures as that model was trained, where its patches were taken."""
    if "perception.cut.weight" not in fitting or perception.observation_shape[0] != len(_MEAN):
        return False
    mean, std = (255 * torch.tensor(part) for part in (_MEAN, _STD))
    perception.standardise.fit(mean.to(perception.standardise.mean), std.to(mean))
    return True
