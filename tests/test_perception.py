"""Perception: shapes, standardisation that travels with the weights, clear refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from forethought.envs import Dataset, EnvSpec, Episode, write_shard
from forethought.worldmodel import (
    JEPA,
    Actions,
    AutoPerception,
    ImagePerception,
    JointStage,
    Losses,
    MixedPerception,
    Objective,
    Perception,
    ResidualMLP,
    Standardise,
    VectorPerception,
    encode_dataset,
    load_checkpoint,
    mlp,
    save_checkpoint,
    train_joint,
)
from forethought.worldmodel.modulation import FiLM
from forethought.worldmodel.perception import BoxPerception


def image_spec(*shape: int) -> EnvSpec:
    return EnvSpec(
        "test/Picture-v0",
        spaces.Box(0, 255, shape, np.uint8),
        spaces.Box(-1, 1, (2,), np.float32),
        0.1,
        50,
        {},
    )


def vector_spec(size: int) -> EnvSpec:
    return EnvSpec(
        "test/Vector-v0",
        spaces.Box(-np.inf, np.inf, (size,), np.float32),
        spaces.Box(-1, 1, (2,), np.float32),
        0.1,
        50,
        {},
    )


def dict_spec() -> EnvSpec:
    """Two frames of 16 x 16 pixels, and three numbers; a name may hold a dot."""
    parts = {"camera.left": image_spec(2, 16, 16), "speed": vector_spec(3)}
    space = spaces.Dict({name: part.observation_space for name, part in parts.items()})
    return EnvSpec("test/Mixed-v0", space, image_spec(2, 16, 16).action_space, 0.1, 50, {})


def encoder(kind: str, **options: Any) -> BoxPerception:
    torch.manual_seed(0)
    if kind == "image":
        small: dict[str, Any] = {"latent_dim": 6, "channels": (4, 8), "hidden": 16}
        return ImagePerception(image_spec(2, 16, 16), **{**small, **options})
    return VectorPerception(vector_spec(5), **{"latent_dim": 6, "hidden": 16, **options})


def observations(model: BoxPerception, *lead: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (*lead, *model.observation_shape)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("kind", ["image", "vector"])
class TestEveryEncoder:
    @pytest.mark.parametrize("lead", [(), (3,), (3, 4), (2, 3, 4), (0,)])
    def test_leading_axes(self, kind: str, lead: tuple[int, ...]) -> None:
        model = encoder(kind)
        states = model(observations(model, *lead))
        assert states.shape == (*lead, 6)
        assert states.dtype == torch.float32

    def test_leading_axes_are_a_batch_in_order(self, kind: str) -> None:
        model = encoder(kind)
        x = observations(model, 3, 4)
        states = model(x)
        for b in range(3):
            for t in range(4):
                torch.testing.assert_close(states[b, t], model(x[b, t]))

    def test_batch_members_do_not_leak(self, kind: str) -> None:
        model = encoder(kind)
        x = observations(model, 4).float().requires_grad_()
        (gradient,) = torch.autograd.grad(model(x)[1].square().sum(), x)
        moved = gradient.flatten(1).abs().sum(1) > 0
        assert moved.tolist() == [False, True, False, False]

    def test_uint8_is_what_float_is(self, kind: str) -> None:
        model = encoder(kind)
        x = observations(model, 3)
        torch.testing.assert_close(model(x), model(x.float()), rtol=0, atol=0)

    @pytest.mark.parametrize("normalise", [False, True])
    def test_normalise(self, kind: str, normalise: bool) -> None:
        model = encoder(kind, normalise=normalise)
        states = model(observations(model, 32))
        mean, std = states.mean(-1), states.std(-1, correction=0)
        expected = torch.ones(32)
        assert torch.allclose(mean, 0 * expected, atol=1e-4) == normalise
        assert torch.allclose(std, expected, atol=1e-2) == normalise

    def test_statistics_act_and_are_stored(self, kind: str) -> None:
        model, other = encoder(kind), encoder(kind)
        x = observations(model, 8)
        before = model(x)
        channels = model.observation_shape[0]
        mean, std = torch.arange(channels) + 100.0, torch.arange(channels) + 50.0
        model.standardise.fit(mean, std)
        assert not torch.allclose(model(x), before, atol=1e-3)
        by_hand = (x.float() - mean.view(model.standardise.mean.shape)) / std.view(
            model.standardise.mean.shape
        )
        torch.testing.assert_close(model(x), other(by_hand))
        assert {"standardise.mean", "standardise.std"} <= set(model.state_dict())
        other.load_state_dict(model.state_dict())
        torch.testing.assert_close(other(x), model(x), rtol=0, atol=0)
        names = {name for name, _ in model.named_parameters()}
        assert not any(name.startswith("standardise") for name in names)  # measured, not trained

    def test_a_wrong_shape_is_named(self, kind: str) -> None:
        model = encoder(kind)
        shape = (3, *model.observation_shape[:-1], 7)
        with pytest.raises(ValueError, match="use the environment it was trained on") as caught:
            model(torch.zeros(shape))
        assert str(shape) in str(caught.value)
        assert ", ".join(map(str, model.observation_shape)) in str(caught.value)
        with pytest.raises(ValueError, match="observation has shape"):
            model(torch.zeros(model.observation_shape[1:]))

    def test_another_kind_of_observation_is_refused(self, kind: str) -> None:
        make = ImagePerception if kind == "image" else VectorPerception
        spec = vector_spec(5) if kind == "image" else image_spec(2, 16, 16)
        with pytest.raises(ValueError, match=r"choose another model\.perception") as caught:
            make(spec)
        assert spec.id in str(caught.value)


@pytest.mark.parametrize("trailing", [0, 2])
def test_standardise(trailing: int) -> None:
    module = Standardise(3, trailing)
    module.fit(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 0.0, 4.0]))
    x = torch.tensor([5.0, 5.0, 5.0]).view(3, *(1,) * trailing).expand(2, 3, *(4,) * trailing)
    result = module(x)
    assert result.shape == x.shape
    per_channel = result.reshape(2, 3, -1)[0, :, 0]
    assert per_channel.tolist() == [2.0, 3.0, 0.5]  # the constant channel keeps a std of 1
    assert module.std.flatten().tolist() == [2.0, 1.0, 4.0]
    for mean, std in ((torch.zeros(2), torch.ones(3)), (torch.zeros(3), torch.ones(3, 1))):
        with pytest.raises(ValueError, match="compute them per channel"):
            module.fit(mean, std)


@pytest.mark.parametrize(
    ("pixels", "channels", "patches", "features"),
    [
        (32, (4, 8), (4, 2), 8 * 4 * 4),
        (65, (4, 8), (4, 2), 8 * 8 * 8),
        (65, (4, 8, 16), (4, 2, 2), 16 * 4 * 4),
    ],
)
def test_images_of_both_sizes(
    pixels: int, channels: tuple[int, ...], patches: tuple[int, ...], features: int
) -> None:
    spec = image_spec(3, pixels, pixels)
    model = ImagePerception(spec, latent_dim=7, channels=channels, patches=patches, hidden=9)
    linear = [layer for layer in model.layers if isinstance(layer, nn.Linear)]
    assert [layer.in_features for layer in linear] == [features, 9]
    assert model(torch.zeros(2, 3, pixels, pixels)).shape == (2, 7)


def test_patches_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="must have equal length"):
        ImagePerception(image_spec(2, 16, 16), channels=(4,), patches=(4, 2))
    with pytest.raises(ValueError, match="use fewer or smaller patches"):
        ImagePerception(image_spec(2, 16, 16), channels=(4, 4), patches=(8, 4))


def test_gains_multiply_standardised_channels() -> None:
    plain, loud = encoder("image"), encoder("image", gains=(1.0, 8.0))
    statistics = np.array([10.0, 90.0], np.float32), np.array([5.0, 20.0], np.float32)
    for model in (plain, loud):
        model.standardise_by(statistics)
    x = observations(plain, 3)
    seen, heard = plain.standardise(x), loud.standardise(x)
    torch.testing.assert_close(heard[:, 0], seen[:, 0])
    torch.testing.assert_close(heard[:, 1], 8 * seen[:, 1])
    assert not torch.allclose(loud(x), plain(x))
    # They are a part of what is stored, and nothing beside it is.
    assert loud.state_dict().keys() == plain.state_dict().keys()
    again = encoder("image")
    again.load_state_dict(loud.state_dict())
    torch.testing.assert_close(again(x), loud(x), rtol=0, atol=0)


def test_gains_of_one_change_nothing() -> None:
    plain, same = encoder("image"), encoder("image", gains=(1.0, 1.0))
    for model in (plain, same):
        model.standardise_by((np.array([10.0, 90.0]), np.array([5.0, 0.0])))
    x = observations(plain, 3)
    torch.testing.assert_close(same(x), plain(x), rtol=0, atol=0)


def test_gains_are_not_applied_twice() -> None:
    model = encoder("image", gains=(1.0, 8.0))
    for _ in range(2):  # as a second training does
        model.standardise_by((np.zeros(2), np.full(2, 4.0)))
    assert model.standardise.std.flatten().tolist() == [4.0, 0.5]


@pytest.mark.parametrize("gains", [(1.0,), (1.0, 2.0, 3.0)])
def test_gains_of_another_number_of_channels_are_refused(gains: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="images of 2 channels: choose one number per channel"):
        encoder("image", gains=gains)


@pytest.mark.parametrize("gain", [0.0, -1.0, float("inf"), float("nan")])
def test_a_gain_that_is_no_factor_is_refused(gain: float) -> None:
    with pytest.raises(ValueError, match="choose numbers above 0, finite"):
        encoder("image", gains=(1.0, gain))


def test_vector_layers() -> None:
    model = VectorPerception(vector_spec(5), latent_dim=3, hidden=11, layers=3)
    sizes = [
        (layer.in_features, layer.out_features)
        for layer in model.layers.modules()
        if isinstance(layer, nn.Linear)
    ]
    assert sizes == [(5, 11), (11, 11), (11, 11), (11, 3)]


def test_mlp_by_hand() -> None:
    torch.manual_seed(0)
    model, x = mlp(3, [4], 2), torch.randn(5, 3)
    first, _, last = model
    hidden = (x @ first.weight.T + first.bias).clamp_min(0)
    torch.testing.assert_close(model(x), hidden @ last.weight.T + last.bias)


# ---- several entries, and the choice by itself ---------------------------------------------------


def mixed_observation(*lead: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (*lead, 2, 16, 16)
    return {
        "camera.left": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        "speed": torch.randn(*lead, 3, generator=generator),
        "ignored": torch.zeros(*lead, 1),
    }


def mixed(**options: Any) -> MixedPerception:
    torch.manual_seed(0)
    return MixedPerception(dict_spec(), **{"latent_dim": 6, **options})


@pytest.mark.parametrize("lead", [(), (3,), (2, 3, 4)])
def test_a_dictionary_is_encoded_entry_by_entry_and_merged(lead: tuple[int, ...]) -> None:
    model, x = mixed(), mixed_observation(*lead)
    state = model(x)
    assert state.shape == (*lead, 6)
    camera, speed = model.parts
    assert isinstance(camera, ImagePerception)
    assert isinstance(speed, VectorPerception)
    both = torch.cat((camera(x["camera.left"]), speed(x["speed"])), -1)
    expected = both @ model.merge.weight.T + model.merge.bias
    torch.testing.assert_close(mixed(normalise=False)(x), expected)
    centred = expected - expected.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(state, centred / spread)


def test_every_entry_matters_and_members_of_a_batch_do_not_leak() -> None:
    model, x = mixed(), mixed_observation(4)
    floats = {name: part.float().requires_grad_() for name, part in x.items()}
    model(floats)[1, 0].backward()
    for name in ("camera.left", "speed"):
        gradient = floats[name].grad
        assert gradient is not None
        moved = gradient.flatten(1).abs().sum(1) > 0
        assert moved.tolist() == [False, True, False, False], name
    assert floats["ignored"].grad is None


def test_each_entry_has_statistics_of_its_own() -> None:
    model, x = mixed(), mixed_observation(3)
    before = model(x)
    pixels, speed = np.float32([100, 200]), np.float32([1, 2, 3])
    model.standardise_by({"camera.left": (pixels, pixels / 2), "speed": (speed, 0 * speed)})
    assert not torch.allclose(model(x), before, atol=1e-3)
    by_hand = {
        "camera.left": (x["camera.left"] - torch.tensor(pixels).view(2, 1, 1))
        / torch.tensor(pixels / 2).view(2, 1, 1),
        "speed": x["speed"] - torch.tensor(speed),  # what never varies keeps a std of 1
    }
    torch.testing.assert_close(mixed()(by_hand), model(x))


def test_what_is_wrong_with_a_dictionary_is_named() -> None:
    with pytest.raises(ValueError, match=r"no entries \['speed'\]: use the environment"):
        mixed()({"camera.left": torch.zeros(2, 16, 16)})
    with pytest.raises(ValueError, match="observation has shape") as caught:
        mixed()(mixed_observation(2) | {"speed": torch.zeros(2, 4)})
    assert "(2, 4)" in str(caught.value)
    with pytest.raises(ValueError, match=r"test/Vector-v0 has Box.*choose another model\.perc"):
        MixedPerception(vector_spec(3))


@pytest.mark.parametrize(
    ("spec", "inner", "shape"),
    [
        (vector_spec(5), VectorPerception, (5,)),
        (image_spec(3, 16, 16), ImagePerception, (3, 16, 16)),
        (image_spec(9, 64, 64), ImagePerception, (9, 64, 64)),  # three stacked frames
    ],
)
def test_the_encoder_that_fits_is_chosen(
    spec: EnvSpec, inner: type[Perception], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model = AutoPerception(spec, latent_dim=6)
    assert type(model.inner) is inner
    assert model.latent_dim == model.inner.latent_dim == 6
    x = torch.rand(3, *shape)
    assert torch.equal(model(x), model.inner(x))
    before, channels = model(x), shape[0]
    model.standardise_by((np.full(channels, 0.5, np.float32), np.full(channels, 2.0, np.float32)))
    assert not torch.allclose(model(x), before, atol=1e-3)
    torch.testing.assert_close(model(x), model.inner(x))


def test_a_dictionary_is_chosen_too_and_comes_back_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, other = (AutoPerception(dict_spec(), latent_dim=6) for _ in range(2))
    assert type(model.inner) is MixedPerception
    pixels, speed = np.float32([100, 200]), np.float32([1, 2, 3])
    model.standardise_by({"camera.left": (pixels, pixels), "speed": (speed, speed)})
    x = mixed_observation(4)
    assert not torch.equal(model(x), other(x))
    save_checkpoint(tmp_path / "model.safetensors", {"it": model}, {})
    load_checkpoint(tmp_path / "model.safetensors", {"it": other})
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3),
        spaces.Box(0, 1, (4, 4), np.float32),
        spaces.Dict({"speed": spaces.Box(0, 1, (2,), np.float32), "gear": spaces.Discrete(3)}),
    ],
)
def test_observations_without_an_encoder_are_refused(space: Any) -> None:
    spec = replace(vector_spec(2), observation_space=space)
    with pytest.raises(ValueError, match=r"test/Vector-v0 .* no encoder is known: use vectors"):
        AutoPerception(spec)


def test_pictures_and_numbers_train_together(tmp_path: Path) -> None:
    """Dictionaries of frames and vectors, through the data set, the joint stage and the cache."""
    rng, spec = np.random.default_rng(0), dict_spec()
    episodes = [
        Episode(
            observations={
                "camera.left": rng.integers(0, 256, (7, 2, 16, 16), np.uint8),
                "speed": rng.standard_normal((7, 3), np.float32),
            },
            actions=rng.uniform(-1, 1, (6, 2)).astype(np.float32),
            rewards=np.zeros(6, np.float32),
            terminated=False,
            truncated=True,
            success=None,
            quantities={},
            goal=None,
            seed=seed,
            env_id=spec.id,
            policy="random",
        )
        for seed in range(3)
    ]
    write_shard(tmp_path, episodes, spec)
    data = Dataset.open(tmp_path)
    torch.manual_seed(0)
    model = JEPA(AutoPerception(data.spec, latent_dim=6), ResidualMLP(6, 2, hidden=8))
    inner = model.perception.inner
    assert isinstance(inner, MixedPerception)
    heads = Objective(Losses(), 6, Actions(2), torch.Generator().manual_seed(0))
    log: list[float] = []
    stage = JointStage(steps=2, batch=4, unroll=2)
    train_joint(model, heads, data, stage, rng, lambda _, record: log.append(record["loss"]))
    assert np.isfinite(log).all()
    statistics = data.channel_statistics()
    for name, part in zip(inner.names, inner.parts, strict=True):
        assert isinstance(part, BoxPerception)
        mean = torch.as_tensor(statistics[name][0])
        torch.testing.assert_close(part.standardise.mean.flatten(), mean)
    states = encode_dataset(model, data, batch=5).states
    episode = data.episode(1)
    alone = model.encode({k: torch.as_tensor(v) for k, v in episode.observations.items()})
    torch.testing.assert_close(states[7:14], alone, rtol=1e-4, atol=1e-5)


# ---- modulated by the configurator ---------------------------------------------------------------

M = 3
SPECS = {"image": image_spec(2, 16, 16), "vector": vector_spec(5), "dictionary": dict_spec()}


def modulated(kind: str, size: int = M, *, stir: bool = True) -> AutoPerception:
    """An encoder of `SPECS[kind]`; stirred, its FiLMs are what training makes of them."""
    torch.manual_seed(0)
    model = AutoPerception(SPECS[kind], latent_dim=6, modulation=size)
    generator = torch.Generator().manual_seed(4)
    for part in model.modules():
        if stir and isinstance(part, FiLM):
            for parameter in part.parameters():
                nn.init.normal_(parameter, std=0.5, generator=generator)
    return model


def seen(kind: str, *lead: int) -> Any:
    if kind == "dictionary":
        return mixed_observation(*lead)
    generator = torch.Generator().manual_seed(1)
    return torch.rand(*lead, *((5,) if kind == "vector" else (2, 16, 16)), generator=generator)


def codes(*lead: int, size: int = M) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {"modulation": torch.randn(*lead, size, generator=generator)}


@pytest.mark.parametrize("kind", SPECS)
class TestModulated:
    def test_without_modulation_nothing_is_added(self, kind: str) -> None:
        plain, other = modulated(kind, 0), modulated(kind)
        assert (plain.modulation_dim, other.modulation_dim) == (0, M)
        assert plain.inner.modulation_dim == 0
        assert other.inner.modulation_dim == M
        added = set(other.state_dict()) - set(plain.state_dict())
        assert added
        assert all(name.startswith("inner.modulation.") for name in added)
        assert not any("modulation" in name for name in plain.state_dict())
        x = seen(kind, 4)
        assert torch.equal(plain(x, codes(4)), plain(x))
        if isinstance(plain.inner, BoxPerception):
            y = plain.inner.standardise(x)
            if kind == "image":
                y = y.contiguous(memory_format=torch.channels_last)
            assert torch.equal(plain(x), plain.inner.layers(y))

    def test_it_begins_as_the_encoder_without(self, kind: str) -> None:
        x = seen(kind, 4)
        assert torch.equal(modulated(kind, stir=False)(x, codes(4)), modulated(kind, 0)(x))

    @pytest.mark.parametrize("lead", [(), (3,), (2, 3), (0,)])
    def test_leading_axes(self, kind: str, lead: tuple[int, ...]) -> None:
        model, x = modulated(kind), seen(kind, *lead)
        found = model(x, codes(*lead))
        assert found.shape == (*lead, 6)
        if lead:  # one code per row serves its whole window
            shared = codes(*lead[:1])
            axes = (*lead[:1], *(1,) * (len(lead) - 1), M)
            spread = {"modulation": shared["modulation"].view(axes).expand(*lead, M)}
            torch.testing.assert_close(model(x, shared), model(x, spread))

    def test_each_row_has_its_own_code(self, kind: str) -> None:
        model, context = modulated(kind), codes(4)
        one = seen(kind, 1)
        same = (
            {name: part.expand(4, *part.shape[1:]) for name, part in one.items()}
            if isinstance(one, dict)
            else one.expand(4, *one.shape[1:])
        )
        context["modulation"].requires_grad_()
        states = model(same, context)
        assert float(torch.pdist(states.detach()).min()) > 1e-3
        (gradient,) = torch.autograd.grad(states[1, 0], context["modulation"])
        assert (gradient.abs().sum(1) > 0).tolist() == [False, True, False, False]
        for b in range(4):
            alone = {"modulation": context["modulation"][b : b + 1]}
            torch.testing.assert_close(model(one, alone)[0], states[b])

    def test_derivatives_agree_with_finite_differences(self, kind: str) -> None:
        model = modulated(kind).double()
        code, x = codes(2)["modulation"].double().requires_grad_(), seen(kind, 2)
        assert torch.autograd.gradcheck(lambda c: model(x, {"modulation": c}), (code,))

    def test_a_wrong_code_is_refused(self, kind: str) -> None:
        model = modulated(kind)
        for context in (None, {}):
            with pytest.raises(ValueError, match=r"no 'modulation'.*\(4, 3\)"):
                model(seen(kind, 4), context)
        with pytest.raises(ValueError, match=r"shape \(4, 2\): give one of shape \(4, 3\)"):
            model(seen(kind, 4), codes(4, size=2))
        with pytest.raises(ValueError, match=r"modulation is -1: choose 0 \(none\) or more"):
            modulated(kind, -1)


def test_the_last_hidden_layer_alone_is_modulated() -> None:
    torch.manual_seed(0)
    model = VectorPerception(
        vector_spec(5), latent_dim=3, hidden=11, layers=2, normalise=False, modulation=M
    )
    (film,) = model.modulation.films
    nn.init.normal_(film.weight)
    x, context = torch.randn(4, 5), codes(4)
    first, _, second, _, last = model.layers
    hidden = film(second(first(x).clamp_min(0)), context["modulation"]).clamp_min(0)
    torch.testing.assert_close(model(x, context), last(hidden))


def test_a_code_says_what_to_look_at() -> None:
    """The first two of four numbers under one code, the last two under another.

    Without the code the best guess is the mean of both, whose error is half a variance.
    """
    errors = []
    for size in (0, 2):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(1)
        model = VectorPerception(
            vector_spec(4), latent_dim=2, hidden=32, normalise=False, modulation=size
        )
        optimiser, error = torch.optim.Adam(model.parameters(), lr=5e-3), torch.tensor(0.0)
        for _ in range(300):
            x = torch.randn(64, 4, generator=generator)
            which = torch.randint(2, (64,), generator=generator)
            target = torch.where(which[:, None] == 0, x[:, :2], x[:, 2:])
            context = {"modulation": torch.nn.functional.one_hot(which, 2).float()}
            error = (model(x, context) - target).square().mean()
            optimiser.zero_grad()
            error.backward()
            optimiser.step()
        errors.append(error.item())
    assert errors[0] > 0.3, errors
    assert errors[1] < 0.1 * errors[0], errors
