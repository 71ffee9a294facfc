"""Perception: shapes, standardisation that travels with the weights, clear refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from forethought.envs import EnvSpec
from forethought.worldmodel import ImagePerception, Perception, Standardise, VectorPerception, mlp


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


def encoder(kind: str, **options: Any) -> Perception:
    torch.manual_seed(0)
    if kind == "image":
        small: dict[str, Any] = {"latent_dim": 6, "channels": (4, 8), "hidden": 16}
        return ImagePerception(image_spec(2, 16, 16), **{**small, **options})
    return VectorPerception(vector_spec(5), **{"latent_dim": 6, "hidden": 16, **options})


def observations(model: Perception, *lead: int) -> torch.Tensor:
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
