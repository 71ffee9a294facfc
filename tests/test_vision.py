"""The vision transformer: what it sees, its batch normalisation, its size, and that it learns."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_perception import image_spec, vector_spec
from test_ranks import free_port
from torch import Tensor, nn

from forethought.build import Model, build_model
from forethought.envs import EnvSpec
from forethought.parser import parse, parser_of
from forethought.training import train
from forethought.worldmodel import BatchNorm, Projector, ViTPerception, ranks

D = 6


def small(*shape: int, **options: Any) -> ViTPerception:
    torch.manual_seed(0)
    sizes = {"latent_dim": D, "patch": 4, "width": 8, "depth": 2, "heads": 2, "projector": 16}
    return ViTPerception(image_spec(*(shape or (2, 12, 8))), **(sizes | options))


def images(*lead: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (*lead, 2, 12, 8), generator=generator, dtype=torch.uint8)


class TestViT:
    def test_any_leading_axes_and_the_order_of_patches(self) -> None:
        model = small().eval()
        x = images(3, 4)
        states = model(x)
        assert states.shape == (3, 4, D)
        torch.testing.assert_close(model(x[1, 2]), states[1, 2])
        patches = model.cut(model.standardise(x[0, :1])).flatten(2).transpose(1, 2)
        first = model.standardise(x[0, :1])[:, :, :4, 4:8].flatten(1)  # the second patch of a row
        expected = first @ model.cut.weight.flatten(1).T + model.cut.bias
        torch.testing.assert_close(patches[:, 1], expected)

    def test_formula(self) -> None:
        """Class token, positions, pre-norm blocks, norm, projector: with PyTorch's own layers."""
        model = small(hidden=12).double().eval()
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.5)
        x = model.standardise(images(3))
        patches = model.cut(x).flatten(2).transpose(1, 2)
        tokens = torch.cat((model.token.expand(3, 1, -1), patches), 1) + model.positions
        for block in model.transformer.blocks:
            own = nn.TransformerEncoderLayer(
                8, 2, 12, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True
            ).double()
            own.load_state_dict(
                {
                    "self_attn.in_proj_weight": block.attention.qkv.weight,
                    "self_attn.in_proj_bias": block.attention.qkv.bias,
                    "self_attn.out_proj.weight": block.attention.out.weight,
                    "self_attn.out_proj.bias": block.attention.out.bias,
                    **{f"linear1.{k}": v for k, v in block.expand.state_dict().items()},
                    **{f"linear2.{k}": v for k, v in block.contract.state_dict().items()},
                    **{f"norm1.{k}": v for k, v in block.norm1.state_dict().items()},
                    **{f"norm2.{k}": v for k, v in block.norm2.state_dict().items()},
                }
            )
            tokens = own.train()(tokens)
        expected = model.project(model.transformer.norm(tokens)[:, 0])
        torch.testing.assert_close(model.encode(x), expected)

    def test_every_patch_and_every_place_matters(self) -> None:
        model = small().eval()
        for weight in model.parameters():
            nn.init.normal_(weight, std=0.5)
        x = torch.randn(1, 2, 12, 8, requires_grad=True)
        (slope,) = torch.autograd.grad(model.encode(x)[0, 0], x)
        assert (slope.unflatten(2, (3, 4)).unflatten(4, (2, 4)).abs().sum((1, 3, 5)) > 0).all()
        swapped = torch.cat((x[..., 4:], x[..., :4]), -1)
        assert not torch.allclose(model.encode(swapped), model.encode(x), atol=1e-3)

    def test_gradient_reaches_every_parameter(self) -> None:
        model = small()
        model(images(3, 4)).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            # A bias before batch normalisation is subtracted again, and that of keys is added to
            # all weights of an attention alike: rounding is all that arrives there.
            if name != "project.0.bias":
                assert parameter.grad.abs().max() > 1e-6, name

    def test_a_batch_is_normalised_in_training_and_each_state_alone_in_evaluation(self) -> None:
        model = small()
        x = images(6, 5)
        hidden: list[Tensor] = []
        model.project[1].register_forward_hook(lambda *args: hidden.append(args[-1]))
        together = model(x)
        torch.testing.assert_close(hidden[0].mean(0), torch.zeros(16), atol=1e-5, rtol=0)
        assert not torch.allclose(model(x[:2]), together[:2], atol=1e-2)
        model.eval()
        torch.testing.assert_close(model(x)[:2], model(x[:2]))
        assert model(x[0, 0]).shape == (D,)  # one alone has no statistics

    @pytest.mark.parametrize(
        ("shape", "options", "words"),
        [
            (
                (2, 12, 8),
                {"patch": 5},
                "patch is 5, which does not divide images of 12 x 8: choose 2 or 4",
            ),
            ((2, 7, 7), {"patch": 3}, "of 7 x 7: choose images of another size"),
            ((2, 12, 8), {"heads": 3}, "width is 8, which 3 heads do not divide"),
            ((2, 12, 8), {"projector": 0}, "latent_dim is 6, but without a projector"),
            ((2, 12, 8), {"depth": 0}, "depth is 0"),
            ((2, 12, 8), {"projector": -1}, "projector is -1"),
        ],
    )
    def test_refused(self, shape: tuple[int, ...], options: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=re.escape(words)):
            small(*shape, **options)

    def test_pictures_only(self) -> None:
        with pytest.raises(ValueError, match="ViTPerception needs observations with 3 axes"):
            ViTPerception(vector_spec(3))

    def test_finds_a_point(self) -> None:
        """Where a spot is, better than the mean place, in a hundred updates."""
        torch.manual_seed(0)
        spec = image_spec(1, 16, 16)
        model = ViTPerception(spec, latent_dim=2, patch=4, width=16, depth=2, heads=2, projector=32)
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        generator, grid = torch.Generator().manual_seed(0), torch.arange(16.0)
        error = torch.tensor(0.0)
        for _ in range(120):
            place = 2 + 12 * torch.rand(64, 2, generator=generator)
            off = [(grid - place[:, axis, None]) ** 2 for axis in (0, 1)]
            spots = torch.exp(-(off[1][:, :, None] + off[0][:, None, :]) / 4)[:, None]
            error = (model(5 * spots) - (place - 8) / 3.46).square().mean()
            optimiser.zero_grad()
            error.backward()
            optimiser.step()
        assert error.item() < 0.2  # 1 is the variance of the place


class TestSizes:
    """LeWorldModel's 18.0 million (2603.19312), and that what is configured has them."""

    def test_the_packaged_configuration_has_eighteen_million(self) -> None:
        parsed, _ = parse(parser_of(train, "train"), ["--config=leworldmodel"])
        model = parsed["model"]
        assert isinstance(model, Model)
        spec = EnvSpec(
            "test/Picture-v0",
            image_spec(3, 224, 224).observation_space,
            type(vector_spec(1).action_space)(-1, 1, (10,), np.float32),
            0.1,
            50,
        )
        built = build_model(model, spec, torch.device("meta"), 0)
        count = sum(parameter.numel() for parameter in built.parameters())
        assert abs(count - 18.0e6) < 0.01 * 18.0e6
        options = parsed["env_options"]
        assert (options["size"], options["block"], built.latent_dim) == (224, 5, 192)
        assert parsed["losses"].sigreg == 0.09
        assert parsed["losses"].sigreg_directions == 1024


# ---- ranks ---------------------------------------------------------------------------------------

ROWS, WIDTH = 12, 5


def trained(rows: slice) -> dict[str, Tensor]:
    """Gradients and running statistics after one batch, of which this rank has some rows."""
    torch.manual_seed(0)
    model = Projector(WIDTH, 7, 3).double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    x = (x + torch.arange(ROWS)[:, None] / 4)[rows].requires_grad_()  # halves differ
    model(x).pow(3).mean().backward()
    ranks.average_gradients(model.parameters())
    held = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return held | {f"buffer.{name}": b.double() for name, b in model.named_buffers()}


def of_one_rank(file: str) -> None:
    """What each of two processes does."""
    ranks.start("gloo")
    assert ranks.world() == 2
    half = ROWS // 2
    save_file(trained(slice(ranks.rank() * half, (ranks.rank() + 1) * half)), file)
    ranks.wait()


@pytest.mark.slow
def test_batch_normalisation_is_over_all_ranks(tmp_path: Path) -> None:
    here = Path(__file__).parent
    port, processes = str(free_port()), []
    for rank in range(2):
        code = f"import sys; sys.path.insert(0, {str(here)!r}); import test_vision; "
        code += f"test_vision.of_one_rank({str(tmp_path / str(rank))!r})"
        told = {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
        environment = os.environ | told | {"MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        processes.append(subprocess.Popen([sys.executable, "-c", code], env=environment))
    assert [process.wait(120) for process in processes] == [0, 0]
    whole, alone = trained(slice(None)), trained(slice(ROWS // 2))
    assert any(not torch.allclose(alone[name], whole[name], rtol=1e-2) for name in whole)
    for rank in range(2):
        for name, expected in load_file(tmp_path / str(rank)).items():
            torch.testing.assert_close(expected, whole[name], rtol=1e-9, atol=1e-10)


def test_a_batch_that_is_not_finite_leaves_the_statistics_finite() -> None:
    model = BatchNorm(2)
    x = torch.randn(9, 2)
    x[3, 1] = torch.nan
    assert model(x)[:, 1].isnan().all()
    plain = nn.BatchNorm1d(2)
    plain(x.nan_to_num())
    torch.testing.assert_close(model.running_mean[0], plain.running_mean[0])
    assert (model.running_mean[1], model.running_var[1]) == (0, 1)


def test_one_rank_is_pytorchs_own() -> None:
    own, theirs = BatchNorm(4), nn.BatchNorm1d(4)
    x = torch.randn(9, 4)
    torch.testing.assert_close(own(x), theirs(x))
    torch.testing.assert_close(own.running_var, theirs.running_var)
