"""Weights of others: every tensor in its place, what was not taken told, the rest refused."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from conftest import TINY
from gymnasium import spaces
from safetensors.torch import load_file
from test_perception import image_spec
from torch import Tensor, nn

import forethought
from forethought import course, training
from forethought.cli import main
from forethought.foreign import take_weights
from forethought.worldmodel import JEPA, CausalPredictor, ResidualMLP, ViTPerception

W, HEADS, DEPTH, BLOCK, SIDE, PATCH = 6, 3, 2, 4, 8, 4  # of the encoder; 3 heads are `tiny`
FRAMES, OUR_HEADS, HEAD_DIM, HIDDEN, PROJECTOR = 3, 2, 5, 7, 9


def model_of(**options: Any) -> JEPA:
    torch.manual_seed(0)
    perception = ViTPerception(
        image_spec(3, SIDE, SIDE),
        latent_dim=W,
        patch=PATCH,
        width=W,
        depth=DEPTH,
        heads=HEADS,
        projector=PROJECTOR,
    )
    sizes = {"window": FRAMES, "depth": DEPTH, "heads": OUR_HEADS, "head_dim": HEAD_DIM}
    sizes |= {"hidden": HIDDEN, "projector": PROJECTOR, "inner_norm": True}
    return JEPA(perception, CausalPredictor(W, BLOCK, **(sizes | options)))


def mlp(name: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"0.weight": (PROJECTOR, W), "0.bias": (PROJECTOR,)}
    shapes |= {
        f"1.{part}": (PROJECTOR,) for part in ("weight", "bias", "running_mean", "running_var")
    }
    shapes |= {"3.weight": (W, PROJECTOR), "3.bias": (W,)}
    return {f"{name}.net.{key}": shape for key, shape in shapes.items()}


def theirs(*, newer: bool = False) -> dict[str, Tensor]:
    """A state dict with the names and shapes of stable-worldmodel, numbers drawn."""
    inner, places = OUR_HEADS * HEAD_DIM, (SIDE // PATCH) ** 2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.embeddings.cls_token": (1, 1, W),
        "encoder.embeddings.position_embeddings": (1, places, W),
        "encoder.embeddings.patch_embeddings.projection.weight": (W, 3, PATCH, PATCH),
        "encoder.embeddings.patch_embeddings.projection.bias": (W,),
        "encoder.layernorm.weight": (W,),
        "encoder.layernorm.bias": (W,),
        "predictor.pos_embedding": (1, FRAMES, W),
        "predictor.transformer.norm.weight": (W,),
        "predictor.transformer.norm.bias": (W,),
        "action_encoder.patch_embed.weight": (5, BLOCK, 1),
        "action_encoder.patch_embed.bias": (5,),
        "action_encoder.embed.0.weight": (4 * W, 5),
        "action_encoder.embed.0.bias": (4 * W,),
        "action_encoder.embed.2.weight": (W, 4 * W),
        "action_encoder.embed.2.bias": (W,),
        **mlp("projector"),
        **mlp("pred_proj"),
    }
    old = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
    old += ("attention.output.dense", "intermediate.dense", "output.dense")
    new = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj")
    new += ("mlp.fc1", "mlp.fc2")
    sizes = [(W, W)] * 4 + [(4 * W, W), (W, 4 * W)]
    for place in range(DEPTH):
        layer = f"encoder.layers.{place}." if newer else f"encoder.encoder.layer.{place}."
        for name, (out, into) in zip(new if newer else old, sizes, strict=True):
            shapes |= {f"{layer}{name}.weight": (out, into), f"{layer}{name}.bias": (out,)}
        for name in ("layernorm_before", "layernorm_after"):
            shapes |= {f"{layer}{name}.weight": (W,), f"{layer}{name}.bias": (W,)}
        layer = f"predictor.transformer.layers.{place}."
        shapes |= {f"{layer}attn.to_qkv.weight": (3 * inner, W)}
        for name, size in (
            ("attn.to_out.0", (W, inner)),
            ("mlp.net.1", (HIDDEN, W)),
            ("mlp.net.4", (W, HIDDEN)),
            ("adaLN_modulation.1", (6 * W, W)),
        ):
            shapes |= {f"{layer}{name}.weight": size, f"{layer}{name}.bias": size[:1]}
        for name in ("attn.norm", "mlp.net.0"):
            shapes |= {f"{layer}{name}.weight": (W,), f"{layer}{name}.bias": (W,)}
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
    steps = {
        f"{name}.net.1.num_batches_tracked": torch.tensor(7) for name in ("projector", "pred_proj")
    }
    return drawn | steps


CONFIG: dict[str, Any] = {
    "_target_": "stable_worldmodel.wm.lewm.LeWM",
    "encoder": {"size": "tiny", "patch_size": PATCH, "image_size": SIDE},
    "predictor": {"num_frames": FRAMES, "heads": OUR_HEADS, "dim_head": HEAD_DIM},
    "action_encoder": {"input_dim": BLOCK},
}


def written(folder: Path, tensors: Any = None, config: Any = CONFIG) -> Path:
    torch.save(theirs() if tensors is None else tensors, folder / "weights.pt")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("newer", [False, True], ids=["old names", "new names"])
def test_every_tensor_finds_its_place(newer: bool, tmp_path: Path) -> None:
    model, held = model_of(), theirs(newer=newer)
    taken = take_weights(model, written(tmp_path, held))
    assert not taken.left
    assert not taken.missing
    own = {k: v for k, v in model.state_dict().items() if "standardise" not in k}
    assert set(taken.taken) == set(own)
    # Numbers are drawn apart: equal sums of all but the joined maps mean that none is lost.
    joined = sum(held[f"action_encoder.{k}"].sum() for k in EMBED)
    embedded = sum(v.sum() for k, v in own.items() if k.startswith("predictor.embed.0"))
    total = sum(v.double().sum() for v in held.values()) - joined
    torch.testing.assert_close(sum(v.double().sum() for v in own.values()) - embedded, total)
    for ours, name in (
        (
            "perception.transformer.blocks.1.expand.weight",
            "mlp.fc1" if newer else "intermediate.dense",
        ),
        (
            "perception.transformer.blocks.1.attention.out.bias",
            "attention.o_proj" if newer else "attention.output.dense",
        ),
    ):
        kind = ours.rpartition(".")[2]
        layer = "encoder.layers.1." if newer else "encoder.encoder.layer.1."
        assert torch.equal(own[ours], held[f"{layer}{name}.{kind}"])
    assert torch.equal(own["perception.token"], held["encoder.embeddings.cls_token"].flatten())


EMBED = ("patch_embed.weight", "patch_embed.bias", "embed.0.weight", "embed.0.bias")


def test_it_computes_what_it_computed_there(tmp_path: Path) -> None:
    """Attention and modulation of the first block, and the actions, by their own tensors."""
    model, held = model_of(), theirs()
    take_weights(model, written(tmp_path, held))
    predictor = model.predictor
    assert isinstance(predictor, CausalPredictor)
    action = torch.rand(3, BLOCK)
    first = nn.functional.conv1d(
        action[..., None],
        held["action_encoder.patch_embed.weight"],
        held["action_encoder.patch_embed.bias"],
    )[..., 0]
    hidden = first @ held["action_encoder.embed.0.weight"].T + held["action_encoder.embed.0.bias"]
    expected = nn.functional.silu(hidden) @ held["action_encoder.embed.2.weight"].T
    torch.testing.assert_close(
        predictor.embed(action), expected + held["action_encoder.embed.2.bias"]
    )
    layer, x = "predictor.transformer.layers.0.", torch.rand(3, FRAMES, W)
    queries, keys, values = (
        part.unflatten(-1, (OUR_HEADS, HEAD_DIM)).transpose(1, 2)
        for part in (x @ held[f"{layer}attn.to_qkv.weight"].T).chunk(3, -1)
    )
    mixed = nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    out = mixed.transpose(1, 2).flatten(2) @ held[f"{layer}attn.to_out.0.weight"].T
    mask = torch.ones(FRAMES, FRAMES).tril().bool()
    found = predictor.transformer.blocks[0].attention(x, mask=mask)[0]
    torch.testing.assert_close(found, out + held[f"{layer}attn.to_out.0.bias"])
    x = torch.rand(2, 1 + (SIDE // PATCH) ** 2, W)
    layer = "encoder.encoder.layer.0.attention.attention."
    queries, keys, values = (
        (x @ held[f"{layer}{name}.weight"].T + held[f"{layer}{name}.bias"])
        .unflatten(-1, (HEADS, W // HEADS))
        .transpose(1, 2)
        for name in ("query", "key", "value")
    )
    perception = model.perception
    assert isinstance(perception, ViTPerception)
    _, kept = perception.transformer.blocks[0].attention(x)
    torch.testing.assert_close(kept.keys, keys)
    torch.testing.assert_close(kept.values, values)


def test_pictures_and_actions_are_standardised_as_there(tmp_path: Path) -> None:
    folder, (plain, folded) = written(tmp_path), (model_of(), model_of())
    told = take_weights(plain, folder)
    assert any("actions: go in as they are" in note for note in told.notes)
    assert any("ImageNet" in note for note in told.notes)
    white = plain.perception.standardise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8))
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(white.flatten(), expected)
    mean, std = torch.tensor([0.3, -0.2]), torch.tensor([0.5, 2.0])  # of one action of two
    told = take_weights(folded, folder, action_statistics=(mean.tolist(), std.tolist()))
    assert not any("actions" in note for note in told.notes)
    action = torch.rand(5, BLOCK)
    scaled = (action - mean.repeat(2)) / std.repeat(2)
    torch.testing.assert_close(folded.predictor.embed(action), plain.predictor.embed(scaled))


def test_what_does_not_fit_is_told_and_stays(tmp_path: Path) -> None:
    held = theirs()
    held["predictor.pos_embedding"] = torch.rand(1, FRAMES + 1, W)
    held["encoder.embeddings.mask_token"] = torch.rand(1, 1, W)
    del held["encoder.encoder.layer.0.attention.attention.key.weight"]
    del held["action_encoder.patch_embed.bias"]
    model = model_of(inner_norm=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    taken = take_weights(model, written(tmp_path, {"state_dict": held}))
    wanted = {
        "predictor.pos_embedding": "(1, 4, 6), but predictor.positions is (3, 6)",
        "encoder.embeddings.mask_token": "there is nothing like it here",
        "encoder.encoder.layer.0.attention.attention.query.weight": "are incomplete",
        "action_encoder.embed.0.weight": "the embedding of actions is incomplete",
        "predictor.transformer.layers.1.mlp.net.0.bias": "the model has no predictor.tr",
    }
    for name, why in wanted.items():
        assert why in taken.left[name]
        assert f"left: {name} (" in str(taken)
    missing = {
        "predictor.positions",
        "predictor.embed.0.weight",
        "predictor.embed.0.bias",
        "perception.transformer.blocks.0.attention.qkv.weight",
    }
    assert set(taken.missing) == missing
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in missing)
    assert f"{len(missing)} of the model's are as they were" in str(taken)


class Runs:
    """What a pickle would run on being read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("read",))


def damaged(folder: Path) -> None:
    (folder / "weights.pt").write_bytes(b"nothing")


def pickled(folder: Path) -> None:
    (folder / "weights.pt").write_bytes(pickle.dumps(Runs(), protocol=2))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (damaged, "cannot be read as plain tensors"),
        (pickled, "cannot be read as plain tensors"),
        (lambda f: torch.save([1, 2], f / "weights.pt"), "holds no named tensors"),
        (lambda f: torch.save({"a": torch.ones(2)}, f / "weights.pt"), "nothing in"),
        (lambda f: (f / "config.json").write_text("{"), "is damaged"),
        (lambda f: (f / "config.json").write_text("[]"), "describes no object, without action_enc"),
        (
            lambda f: written(f, config={"_target_": "its.PLDM", "encoder": {}}),
            "describes its.PLDM, without action_encoder and predictor: only LeWorldModel",
        ),
        (
            lambda f: written(f, config=CONFIG | {"predictor": {"heads": 5}}),
            "model.predictor has 2 heads, but the checkpoint has 5: build it with heads=5",
        ),
        (
            lambda f: written(f, config=CONFIG | {"encoder": {"size": "base"}}),
            "model.perception has 3 heads, but the checkpoint has 12",
        ),
    ],
)
def test_refused_with_a_sentence_and_nothing_changed(
    spoil: Callable[[Path], Any],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(written(tmp_path))
    model = model_of()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=re.escape(words)):
        take_weights(model, tmp_path)
    assert all(torch.equal(after, before[name]) for name, after in model.state_dict().items())
    assert "read" not in capsys.readouterr().out  # the pickle did not run


def test_other_models_and_files_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path)
    other = JEPA(model_of().perception, ResidualMLP(W, BLOCK))
    with pytest.raises(ValueError, match="the model has ViTPerception and ResidualMLP: choose"):
        take_weights(other, folder)
    for statistics in (([0.0], [0.0]), ([0.0] * 3, [1.0] * 3), ([0.0], [1.0, 1.0])):
        with pytest.raises(ValueError, match="action_statistics are"):
            take_weights(model_of(), folder, action_statistics=statistics)
    assert not take_weights(model_of(), folder / "weights.pt").left
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*config\.json: give a folder that holds"):
        take_weights(model_of(), folder)
    with pytest.raises(FileNotFoundError, match=r"no .*nowhere: give"):
        take_weights(model_of(), folder / "nowhere")


# --- the command line, in an environment of the sizes above


class Noise(gymnasium.Env[Any, Any]):
    """Pictures of noise, whatever one does."""

    metadata = {"render_modes": []}  # noqa: RUF012 - Gymnasium wants it
    observation_space = spaces.Box(0, 255, (3, SIDE, SIDE), np.uint8)
    action_space = spaces.Box(-1.0, 1.0, (BLOCK,), np.float32)
    control_step_seconds = 0.1

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.picture(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.picture(), float(self.np_random.uniform()), False, False, {}

    def picture(self) -> Any:
        return self.np_random.integers(0, 256, (3, SIDE, SIDE), np.uint8)


gymnasium.register("Noise-v0", entry_point=Noise, max_episode_steps=8)

WORDS = [
    "--env=Noise-v0",
    "--model.perception=ViTPerception",
    f"--model.perception.latent-dim={W}",
    f"--model.perception.width={W}",
    f"--model.perception.patch={PATCH}",
    f"--model.perception.depth={DEPTH}",
    f"--model.perception.heads={HEADS}",
    f"--model.perception.projector={PROJECTOR}",
    "--model.predictor=CausalPredictor",
    f"--model.predictor.window={FRAMES}",
    f"--model.predictor.depth={DEPTH}",
    f"--model.predictor.heads={OUR_HEADS}",
    f"--model.predictor.head-dim={HEAD_DIM}",
    f"--model.predictor.hidden={HIDDEN}",
    f"--model.predictor.projector={PROJECTOR}",
    "--model.predictor.inner-norm=true",
    *TINY,
    "--stages.joint.learning-rate=1e-9",
    "--stages.predictor.steps=0",
]


def fitting(folder: Path) -> Path:
    """A checkpoint whose shapes agree but for the predictor's positions."""
    folder.mkdir()
    return written(folder, theirs() | {"predictor.pos_embedding": torch.rand(1, FRAMES + 1, W)})


def check_begun(run: Path) -> None:
    """Theirs but for a step of almost no length, and standardised as they were."""
    model, held = load_file(run / "model.safetensors"), theirs()
    for ours, name in (
        ("perception.token", "encoder.embeddings.cls_token"),
        ("predictor.embed.2.weight", "action_encoder.embed.2.weight"),
    ):
        torch.testing.assert_close(model[f"model.{ours}"], held[name].squeeze())
    mean = model["model.perception.standardise.mean"].flatten()
    torch.testing.assert_close(mean, 255 * torch.tensor([0.485, 0.456, 0.406]))


def test_a_training_begins_with_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights, run = fitting(tmp_path / "theirs"), tmp_path / "run"
    caplog.set_level("INFO")
    forethought.call("train", [*WORDS, f"--run={run}", f"--weights={weights}"])
    check_begun(run)
    assert f"weights of {weights}: " in caplog.text
    assert "left: predictor.pos_embedding ((1, 4, 6), but predictor.positions is" in caplog.text
    assert yaml.safe_load((run / "config.yaml").read_text())["weights"] == str(weights)
    noted = json.loads((run / "weights.json").read_text())
    assert f"{len(noted['taken'])} tensors taken, 1 left, 1 of the model's are" in caplog.text
    assert noted["missing"] == ["predictor.positions"]


def test_a_stopped_training_does_not_read_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, run = fitting(tmp_path / "theirs"), tmp_path / "run"

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    # Before there is anything to go on from, they are the beginning still.
    words = ["train", *WORDS, f"--run={run}", f"--weights={weights}"]
    resume = ["train", "--resume", f"--run={run}"]
    with monkeypatch.context() as patched:
        patched.setattr(training, "collect_for", stop)
        assert main(words) == 130
    shutil.move(weights, tmp_path / "away")
    capsys.readouterr()
    assert main(resume) == 2
    assert "weights.pt and config.json" in capsys.readouterr().err
    shutil.move(tmp_path / "away", weights)
    with monkeypatch.context() as patched:
        patched.setattr(course, "train_joint", stop)
        assert main(resume) == 130
    shutil.rmtree(weights)
    assert main(resume) == 0
    check_begun(run)
