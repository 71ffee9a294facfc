"""Checkpoints: what is saved comes back bit by bit, damage is named, nothing is half written."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_perception import dict_spec, image_spec, vector_spec
from torch import nn

from forethought.envs import shard
from forethought.worldmodel import (
    JEPA,
    Actions,
    Attention,
    AutoPerception,
    BatchNorm,
    Block,
    CausalPredictor,
    Correction,
    EnergyMLP,
    EnergyTransformer,
    Ensemble,
    FiLM,
    GRUPredictor,
    ImagePerception,
    Level,
    LevelShape,
    Losses,
    MixedPerception,
    Objective,
    Projector,
    Readouts,
    ResidualMLP,
    SlowEncoder,
    Standardise,
    Transformer,
    VectorPerception,
    ViTPerception,
    load_checkpoint,
    mlp,
    read_meta,
    save_checkpoint,
)
from forethought.worldmodel.checkpoint import digest

D, A = 4, 2


def standardise() -> Standardise:
    module = Standardise(3, 0)
    module.fit(torch.randn(3), torch.rand(3) + 0.5)
    return module


def image_encoder() -> ImagePerception:
    model = ImagePerception(image_spec(2, 8, 8), latent_dim=D, channels=(2, 3), patches=(2, 2))
    model.standardise.fit(torch.randn(2), torch.rand(2) + 0.5)
    return model


def vector_encoder() -> VectorPerception:
    return VectorPerception(vector_spec(5), latent_dim=D, hidden=8)


def readouts() -> Readouts:
    model = Readouts(D, {"position": 2, "speed": 1}, hidden=8)
    model.mean.normal_()
    model.std.uniform_(1, 2)
    return model


def objective() -> Objective:
    return Objective(Losses(expander=6), D, Actions(A), torch.Generator())


def slow_encoder() -> SlowEncoder:
    return SlowEncoder(vector_encoder())


def mixed_encoder() -> MixedPerception:
    model = MixedPerception(dict_spec(), latent_dim=D)
    pixels, speed = torch.rand(2) + 0.5, torch.rand(3) + 0.5
    model.standardise_by({"camera.left": (pixels - 1, pixels), "speed": (speed - 1, speed)})
    return model


def level() -> Level:
    model = Level(D, A, LevelShape(stride=2, latent_dim=3, macro_dim=2, hidden=8))
    model.known.normal_()
    return model


Shape = tuple[int, ...]


def shaken(module: nn.Module) -> nn.Module:
    """With every weight drawn at random: some modules begin as the same whatever the seed."""
    for weight in module.parameters():
        nn.init.normal_(weight)
    return module


def batch_norm() -> BatchNorm:
    model = BatchNorm(D)
    model(torch.randn(6, D))
    return model.eval()


def vision() -> ViTPerception:
    model = ViTPerception(
        image_spec(2, 8, 8), latent_dim=D, patch=4, width=6, depth=1, heads=2, projector=5
    )
    model.standardise.fit(torch.randn(2), torch.rand(2) + 0.5)
    model(torch.randn(6, 2, 8, 8))
    return model.eval()


def causal() -> nn.Module:
    model = shaken(CausalPredictor(D, A, heads=2, depth=1, projector=5))
    model(torch.randn(6, D), torch.randn(6, A))
    return model.eval()


MAKERS: dict[str, tuple[Callable[[], nn.Module], list[Shape | dict[str, Shape]]]] = {
    "Actions": (lambda: Actions(3, discrete=True, embedding=2), [(5, 3)]),
    "AutoPerception": (lambda: AutoPerception(image_spec(2, 8, 8), latent_dim=D), [(3, 2, 8, 8)]),
    "MixedPerception": (mixed_encoder, [{"camera.left": (3, 2, 16, 16), "speed": (3, 3)}]),
    "Standardise": (standardise, [(3, 3)]),
    "ImagePerception": (image_encoder, [(3, 2, 8, 8)]),
    "VectorPerception": (vector_encoder, [(3, 5)]),
    "ResidualMLP": (lambda: ResidualMLP(D, A, hidden=8), [(3, D), (3, A)]),
    "GRUPredictor": (lambda: GRUPredictor(D, A, hidden=8, normalise=True), [(3, D), (3, A)]),
    "Attention": (lambda: Attention(D, 2, head_dim=3), [(3, 5, D)]),
    "BatchNorm": (batch_norm, [(3, D)]),
    "Block": (lambda: shaken(Block(D, 2, condition_dim=2)), [(3, 5, D), (3, 5, 2)]),
    "CausalPredictor": (causal, [(3, D), (3, A)]),
    "Projector": (lambda: Projector(D, 5, 2).eval(), [(3, D)]),
    "Transformer": (lambda: shaken(Transformer(D, 2, 2)), [(3, 5, D)]),
    "ViTPerception": (vision, [(3, 2, 8, 8)]),
    "EnergyMLP": (lambda: EnergyMLP(D, A, hidden=8, normalise=True).eval(), [(3, D), (3, A)]),
    "Ensemble": (lambda: Ensemble(D, A, hidden=8).eval(), [(3, D), (3, A)]),
    "EnergyTransformer": (
        lambda: EnergyTransformer(D, A, width=8, depth=1, heads=2).eval(),
        [(3, D), (3, A)],
    ),
    "Correction": (lambda: shaken(Correction(D)), [(3, D), (3, D)]),
    "FiLM": (lambda: shaken(FiLM(2, D)), [(3, D), (3, 2)]),
    "Level": (level, [(3, D), (3, 2, A)]),
    "Readouts": (readouts, [(3, D)]),
    "SlowEncoder": (slow_encoder, [(3, 5)]),
    "Objective": (objective, [(3, 5, D), (3, 4, D), (3, 4, A)]),
    "mlp": (lambda: mlp(D, [5], 2), [(3, D)]),
}


def seeded_module(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return MAKERS[name][0]()


def flat(output: object) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values for tensor in flat(value)]  # type: ignore[attr-defined]


def test_every_public_module_is_in_the_table() -> None:
    from forethought import worldmodel

    public = {
        name
        for name in worldmodel.__all__
        if isinstance(value := getattr(worldmodel, name), type)
        and issubclass(value, nn.Module)
        and not getattr(value, "__abstractmethods__", None)
    }
    assert public == set(MAKERS) - {"mlp"} | {"JEPA"}


@pytest.mark.parametrize("name", MAKERS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    torch.manual_seed(9)
    inputs = [
        {key: torch.randn(part) for key, part in shape.items()}
        if isinstance(shape, dict)
        else torch.randn(shape)
        for shape in MAKERS[name][1]
    ]
    one, other = seeded_module(name, 0), seeded_module(name, 1)
    expected = flat(one(*inputs))
    assert not all(map(torch.equal, flat(other(*inputs)), expected))
    path = tmp_path / "new" / "folder" / "model.safetensors"
    save_checkpoint(path, {"it": one}, {"step": 3})
    meta = load_checkpoint(path, {"it": other})
    assert meta == {"step": 3, "format_version": 1, "modules": ["it"]}
    assert all(map(torch.equal, flat(other(*inputs)), expected))
    weights = one.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in other.state_dict().items())
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("name", MAKERS)
def test_the_digest_is_that_of_the_weights(name: str, tmp_path: Path) -> None:
    one, twin, other = seeded_module(name, 0), seeded_module(name, 0), seeded_module(name, 1)
    assert digest(one) == digest(twin)
    assert digest(one) != digest(other)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, {"it": one}, {})
    load_checkpoint(path, {"it": other})
    assert digest(other) == digest(one)
    for key, value in twin.state_dict().items():  # a view: one bit of each tensor is flipped
        bits = value.view(-1).view(torch.uint8)
        bits[-1] ^= 1
        assert digest(twin) != digest(one), key
        bits[-1] ^= 1
    assert digest(twin) == digest(one)


def held(**tensors: torch.Tensor) -> nn.Module:
    module = nn.Module()
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor)
    return module


def test_the_digest_covers_names_types_and_shapes() -> None:
    zeros = torch.zeros(4)
    modules = [
        held(),
        held(a=zeros),
        held(b=zeros),
        held(a=zeros.view(2, 2)),
        held(a=zeros.view(1, 4)),
        held(a=zeros.int()),
        held(a=zeros.bfloat16()),
        held(a=zeros[:2].double()),
        held(a=zeros[:2], b=zeros[:2]),
        held(a=zeros[:1], b=zeros[:3]),
        held(a=zeros[0]),
        held(a=zeros[:1]),
        held(a=zeros[:0]),
        held(a=-zeros),
    ]
    assert len({digest(module) for module in modules}) == len(modules)


def test_the_digest_does_not_mind_order_layout_and_gradient() -> None:
    a, b = torch.randn(2, 3), torch.randn(2, 3, 4, 4)
    one = held(a=a, b=b)
    assert digest(held(b=b, a=a)) == digest(one)
    assert digest(held(a=a.t().contiguous().t(), b=b)) == digest(one)
    assert digest(held(a=a, b=b.contiguous(memory_format=torch.channels_last))) == digest(one)
    linear = nn.Linear(2, 2)
    assert digest(linear) == digest(linear.requires_grad_(False))


def test_the_digest_is_written_out() -> None:
    """The formula itself, so that it stays the same in another version."""
    text = b"'a' torch.float32 (2,);" + struct.pack("<2f", 1.0, -2.0)
    wanted = hashlib.sha256(text).hexdigest()
    assert digest(held(a=torch.tensor([1.0, -2.0]))) == wanted


@pytest.fixture
def modules() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"jepa": JEPA(vector_encoder(), ResidualMLP(D, A, hidden=8)), "readouts": readouts()}


@pytest.fixture
def path(tmp_path: Path, modules: dict[str, nn.Module]) -> Path:
    save_checkpoint(tmp_path / "model.safetensors", modules, {"step": 7, "note": {"a": [1, None]}})
    return tmp_path / "model.safetensors"


def twin() -> dict[str, nn.Module]:
    torch.manual_seed(5)
    return {"jepa": JEPA(vector_encoder(), ResidualMLP(D, A, hidden=8)), "readouts": readouts()}


def test_several_modules_and_a_part_of_them(path: Path, modules: dict[str, nn.Module]) -> None:
    other, before = twin(), twin()
    load_checkpoint(path, {"jepa": other["jepa"]})
    x, actions = torch.randn(3, 5), torch.randn(3, 6, A)
    one, two = modules["jepa"], other["jepa"]
    assert isinstance(one, JEPA)
    assert isinstance(two, JEPA)
    assert torch.equal(one.rollout(one.encode(x), actions), two.rollout(two.encode(x), actions))
    for key, value in other["readouts"].state_dict().items():  # not asked for
        assert torch.equal(value, before["readouts"].state_dict()[key])
    assert read_meta(path) == {
        "step": 7,
        "note": {"a": [1, None]},
        "format_version": 1,
        "modules": ["jepa", "readouts"],
    }


def test_the_description_cannot_overwrite_what_the_format_needs(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, {"it": nn.Linear(2, 2)}, {"modules": [], "format_version": 99})
    load_checkpoint(path, {"it": nn.Linear(2, 2)})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for read in (read_meta, lambda path: load_checkpoint(path, {})):
        with pytest.raises(FileNotFoundError, match=r"no\.safetensors: train a model first"):
            read(tmp_path / "no.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 8, 100, -2000, -1])
def test_a_cut_file_is_refused(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut: restore it"):
        load_checkpoint(path, twin())


def test_a_flipped_byte_of_the_header_is_refused_or_harmless(tmp_path: Path) -> None:
    path, module = tmp_path / "model.safetensors", nn.Linear(2, 1)
    save_checkpoint(path, {"it": module}, {})
    whole = path.read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    refused = 0
    for position in range(8 + size):
        for flip in (0x01, 0x20, 0x80):
            damaged = bytearray(whole)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            try:
                meta = load_checkpoint(path, {"it": module})
            except ValueError as error:
                assert str(path) in str(error)  # noqa: PT017 - either outcome is right
                refused += 1
            else:
                assert "it" in meta["modules"]
    assert refused > size


def rewrite_header(path: Path, metadata: dict[str, str] | None) -> None:
    save_file(load_file(path), path, metadata)


def test_another_version_is_refused(path: Path) -> None:
    header = {**read_meta(path), "format_version": 2}
    rewrite_header(path, {"forethought": json.dumps(header)})
    for read in (read_meta, lambda path: load_checkpoint(path, twin())):
        with pytest.raises(ValueError, match=r"version 2, .* reads 1: use the version") as e:
            read(path)
        assert str(path) in str(e.value)


@pytest.mark.parametrize(
    "metadata",
    [None, {"other": "{}"}, {"forethought": "{}"}, {"forethought": "[1]"}, {"forethought": "x"}],
)
def test_a_foreign_file_is_refused(path: Path, metadata: dict[str, str] | None) -> None:
    rewrite_header(path, metadata)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or cut"):
        load_checkpoint(path, twin())


@pytest.mark.parametrize(
    "other",
    [
        Readouts(D, {"position": 2, "speed": 1}, hidden=9),
        Readouts(D, {"position": 3}, hidden=8).layers,
        nn.Sequential(),
    ],
    ids=["shapes", "names", "empty"],
)
def test_modules_that_do_not_fit_are_refused(path: Path, other: nn.Module) -> None:
    with pytest.raises(ValueError, match="use the configuration it was trained with") as caught:
        load_checkpoint(path, {"readouts": other})
    assert str(path) in str(caught.value)
    assert "'readouts'" in str(caught.value)


def test_a_module_that_is_not_there_is_named(path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['jepa', 'readouts'\], but no 'critic': use") as caught:
        load_checkpoint(path, {"critic": nn.Linear(1, 1)})
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_an_interrupted_write_leaves_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(shard.os, broken, fail)
    with pytest.raises(OSError, match="the disk is full"):
        save_checkpoint(path, twin(), {"step": 8})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    save_checkpoint(path, twin(), {"step": 8})
    assert read_meta(path)["step"] == 8


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.target,)


def test_no_pickle(path: Path) -> None:
    with safe_open(path, "pt") as file:  # readable without us
        assert "jepa.perception.standardise.mean" in file.keys()  # noqa: SIM118 - not a dict
    trap = path.with_name("trap")
    pickle.loads(pickle.dumps(Bomb(trap)))  # noqa: S301 - the trap works
    trap.unlink()
    for write in (lambda bomb: path.write_bytes(pickle.dumps(bomb)), lambda b: torch.save(b, path)):
        write(Bomb(trap))
        with pytest.raises(ValueError, match="damaged"):
            load_checkpoint(path, twin())
        assert not trap.exists()
