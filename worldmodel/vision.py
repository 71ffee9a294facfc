"""A vision transformer as perception (Dosovitskiy et al. 2020, 2010.11929).

The class token after the last norm goes through a projector with batch normalisation, as in
LeWorldModel (2603.19312). The defaults are ViT-tiny, for 224 pixels; a CPU wants a smaller one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from forethought.envs import EnvSpec
from forethought.worldmodel.perception import BoxPerception, Standardise, _box_shape
from forethought.worldmodel.projector import Projector
from forethought.worldmodel.transformer import Transformer


class ViTPerception(BoxPerception):
    """Vision transformer for images `(C, H, W)`: patches, a class token, learned positions.

    Pre-norm blocks with GELU. In training its states depend on the whole batch (all leading axes,
    all ranks), through the projector's batch normalisation; in evaluation each is for itself.

    Args:
        spec: the environment's description; gives C, H and W.
        latent_dim: size D of the latent state.
        patch: side of a patch in pixels; must divide H and W.
        width: of the transformer.
        depth: number of blocks.
        heads: number of heads; must divide the width.
        hidden: width of the blocks' MLPs; 0 takes four times the width.
        projector: width of the projector's hidden layer; 0 leaves the projector out, for which
            the latent state has to have the transformer's width.
        dropout: probability with which numbers are left out in training.

    Raises:
        ValueError: the images cannot be cut into such patches, or a size is out of range.
    """

    def __init__(
        self,
        spec: EnvSpec,
        *,
        latent_dim: int = 192,
        patch: int = 14,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        hidden: int = 0,
        projector: int = 2048,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.observation_shape = _box_shape(spec, 3, "ViTPerception")
        channels, height, wide = self.observation_shape
        if patch < 1 or height % patch or wide % patch:
            sides = range(2, min(height, wide))
            fitting = [side for side in sides if not (height % side or wide % side)]
            raise ValueError(
                f"patch is {patch}, which does not divide images of {height} x {wide}: choose "
                f"{' or '.join(map(str, fitting)) or 'images of another size'}"
            )
        if not projector and latent_dim != width:
            raise ValueError(
                f"latent_dim is {latent_dim}, but without a projector the state is the class token "
                f"of {width} numbers: choose {width}, or a projector above 0"
            )
        self.latent_dim = latent_dim
        self.standardise = Standardise(channels, trailing=2)
        self.cut = nn.Conv2d(channels, width, patch, stride=patch)
        self.token = nn.Parameter(torch.randn(width) * 0.02)
        places = (height // patch) * (wide // patch) + 1
        self.positions = nn.Parameter(torch.randn(places, width) * 0.02)
        self.transformer = Transformer(
            width, depth, heads, hidden=hidden, bias=True, dropout=dropout, fused=True
        )
        self.project = Projector(width, projector, latent_dim) if projector else nn.Identity()

    def encode(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Map standardised images `(N, C, H, W)` to states `(N, D)`; see `BoxPerception`."""
        patches = self.cut(x).flatten(2).transpose(1, 2)  # (N, P, W)
        token = self.token.expand(len(x), 1, -1).to(patches.dtype)
        features = self.transformer(torch.cat((token, patches), dim=1) + self.positions)
        state: Tensor = self.project(features[:, 0])
        return state
