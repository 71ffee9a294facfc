"""Transformer blocks: pre-norm, optionally conditioned by adaptive layer norm (AdaLN).

A block's condition gives shift, scale and gate of its attention and of its MLP; gates are zero at
first, so that a conditioned block begins as the identity (DiT, Peebles and Xie 2022, 2212.09748,
section 3.2). Unusual here: attention is written out as matmul and softmax unless asked otherwise,
since an energy's gradient is itself differentiated in training, and fused kernels have no second
derivative; and a position may attend to another sequence's keys and to itself alone (`past`), which
is a key-value cache, and what an energy-based transformer needs: each predicted position sees the
real past and itself.

Axes: `N` rows, `T` positions, `P` positions of a past, `W` width, `C` condition.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class KeysValues(NamedTuple):
    """What an attention keeps of a sequence: keys and values, `(N, heads, P, head_dim)` each."""

    keys: Tensor
    values: Tensor


def causal_mask(length: int, device: torch.device | None = None) -> Tensor:
    """Who sees whom, `(T, T)` bool: position t sees 0, ..., t."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def attend(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    mask: Tensor | None = None,
    past: KeysValues | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V, with derivatives of every order.

    Args:
        queries: `(N, heads, T, d)`.
        keys: `(N, heads, T, d)`.
        values: `(N, heads, T, d)`.
        mask: True where a position may be seen: `(T, T)`, or `(T, P)` with a past; by default all.
        past: keys and values of another sequence. With it, a position sees of its own sequence
            itself alone, which the mask does not concern.
        dropout: probability with which a weight is left out.

    Returns:
        `(N, heads, T, d)`.
    """
    queries = queries * queries.shape[-1] ** -0.5
    scores = queries @ (keys if past is None else past.keys).transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if past is None:
        weights = nn.functional.dropout(scores.softmax(-1), dropout)
        return weights @ values
    own = (queries * keys).sum(-1, keepdim=True)  # (N, heads, T, 1)
    weights = torch.cat((scores, own), -1).softmax(-1)
    weights = nn.functional.dropout(weights, dropout)
    return weights[..., :-1] @ past.values + weights[..., -1:] * values


class Attention(nn.Module):
    """Multi-head attention.

    Args:
        width: W.
        heads: number of heads.
        head_dim: size of a head; 0 divides the width among them.
        bias: whether queries, keys and values have biases.
        dropout: probability with which a weight, or a number of the output, is left out in
            training.
        fused: use PyTorch's fused kernel: faster and smaller where sequences are long, without
            second derivative. A past is attended to without it.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        head_dim: int = 0,
        bias: bool = False,
        dropout: float = 0.0,
        fused: bool = False,
    ) -> None:
        super().__init__()
        if heads < 1:
            raise ValueError(f"heads is {heads}: choose 1 or more")
        if head_dim < 0:
            raise ValueError(f"head_dim is {head_dim}: choose 1 or more, or 0 for width / heads")
        if not head_dim and width % heads:
            raise ValueError(
                f"width is {width}, which {heads} heads do not divide: choose a multiple of it, or "
                "give head_dim"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}: choose 0 or more, and below 1")
        self.heads, self.head_dim = heads, head_dim or width // heads
        self.dropout, self.fused = dropout, fused
        inner = self.heads * self.head_dim
        self.qkv = nn.Linear(width, 3 * inner, bias=bias)
        self.out = nn.Linear(inner, width)

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, past: KeysValues | None = None
    ) -> tuple[Tensor, KeysValues]:
        """Attend.

        Args:
            x: `(N, T, W)`.
            mask: see `attend`.
            past: see `attend`.

        Returns:
            `(N, T, W)`, and the keys and values of `x`.
        """
        split = self.qkv(x).unflatten(-1, (3, self.heads, self.head_dim))  # (N, T, 3, heads, d)
        queries, keys, values = split.transpose(-2, -4).unbind(-3)  # (N, heads, T, d) each
        drop = self.dropout if self.training else 0.0
        if self.fused and past is None:
            mixed = nn.functional.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, dropout_p=drop
            )
        else:
            mixed = attend(queries, keys, values, mask=mask, past=past, dropout=drop)
        out = self.out(mixed.transpose(-2, -3).flatten(-2))
        return nn.functional.dropout(out, drop), KeysValues(keys, values)


class Block(nn.Module):
    """Attention, then an MLP with GELU, each after a layer norm and round a residual connection.

        x <- x + g1 * Attention((1 + k1) * norm(x) + b1)
        x <- x + g2 * MLP((1 + k2) * norm(x) + b2)

    with b, k, g affine in SiLU(c), all 0 at first; without a condition, gates are 1 and the norms
    have affine parameters of their own.

    Args:
        width: W.
        heads: number of heads.
        head_dim: size of a head; 0 divides the width among them.
        hidden: width of the MLP's hidden layer; 0 takes four times the width.
        condition_dim: size C of the condition; 0 takes none.
        bias: whether queries, keys and values have biases.
        dropout: probability with which numbers are left out in training, after attention and in
            the MLP.
        inner_norm: put another layer norm, with affine parameters, after shift and scale, as
            LeWorldModel does (2603.19312, its code); needs a condition.
        epsilon: of the norms.
        fused: see `Attention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        head_dim: int = 0,
        hidden: int = 0,
        condition_dim: int = 0,
        bias: bool = False,
        dropout: float = 0.0,
        inner_norm: bool = False,
        epsilon: float = 1e-6,
        fused: bool = False,
    ) -> None:
        super().__init__()
        if hidden < 0:
            raise ValueError(f"hidden is {hidden}: choose 1 or more, or 0 for four times the width")
        if condition_dim < 0:
            raise ValueError(f"condition_dim is {condition_dim}: choose 0 (none) or more")
        if inner_norm and not condition_dim:
            raise ValueError("inner_norm is True without a condition: choose False")
        hidden = hidden or 4 * width
        plain = not condition_dim
        self.condition_dim, self.dropout = condition_dim, dropout
        self.norm1 = nn.LayerNorm(width, eps=epsilon, elementwise_affine=plain)
        self.norm2 = nn.LayerNorm(width, eps=epsilon, elementwise_affine=plain)
        self.inner1 = nn.LayerNorm(width) if inner_norm else nn.Identity()
        self.inner2 = nn.LayerNorm(width) if inner_norm else nn.Identity()
        self.attention = Attention(
            width, heads, head_dim=head_dim, bias=bias, dropout=dropout, fused=fused
        )
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.modulation = None
        if condition_dim:
            self.modulation = nn.Linear(condition_dim, 6 * width)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(
        self,
        x: Tensor,
        condition: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        past: KeysValues | None = None,
    ) -> tuple[Tensor, KeysValues]:
        """One block.

        Args:
            x: `(N, T, W)`.
            condition: `(N, T, C)`, or with axes of size 1; None where `condition_dim` is 0.
            mask: True where a position may be seen: `(T, T)`, or `(T, P)` with a past; by default
                all may.
            past: this block's keys and values of another sequence. With it, a position sees of its
                own sequence itself alone.

        Returns:
            `(N, T, W)`, and this block's keys and values of `x`, a `past` for other sequences.

        Raises:
            ValueError: there is a condition and shall be none, or the reverse, or its size is not
                C.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self._modulations(condition)
        inner = self.inner1(_modulated(self.norm1(x), shift1, scale1))
        mixed, kept = self.attention(inner, mask=mask, past=past)
        x = x + _gated(mixed, gate1)
        drop = self.dropout if self.training else 0.0
        hidden = nn.functional.gelu(
            self.expand(self.inner2(_modulated(self.norm2(x), shift2, scale2)))
        )
        out = self.contract(nn.functional.dropout(hidden, drop))
        return x + _gated(nn.functional.dropout(out, drop), gate2), kept

    def _modulations(self, condition: Tensor | None) -> tuple[Tensor | None, ...]:
        """Shift, scale and gate of attention and MLP, `(N, T, W)` each; None without a condition.

        Raises:
            ValueError: see `forward`.
        """
        size = None if condition is None else condition.shape[-1]
        if size != (self.condition_dim or None):
            raise ValueError(
                f"condition has size {size}, but the block was built for "
                f"{self.condition_dim or None}: build it with condition_dim={size or 0}"
            )
        if condition is None or self.modulation is None:
            return (None,) * 6
        numbers: Tensor = self.modulation(nn.functional.silu(condition))
        return numbers.chunk(6, dim=-1)


class Transformer(nn.Module):
    """Blocks, one after the other, and a last layer norm.

    Args:
        width: W.
        depth: number of blocks.
        heads: number of heads.
        head_dim: size of a head; 0 divides the width among them.
        hidden: width of the MLPs' hidden layers; 0 takes four times the width.
        condition_dim: size C of the condition; 0 takes none.
        bias: see `Block`.
        dropout: see `Block`.
        inner_norm: see `Block`.
        epsilon: of the blocks' norms and the last one.
        fused: see `Attention`.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        head_dim: int = 0,
        hidden: int = 0,
        condition_dim: int = 0,
        bias: bool = False,
        dropout: float = 0.0,
        inner_norm: bool = False,
        epsilon: float = 1e-6,
        fused: bool = False,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth is {depth}: choose 1 or more")
        self.blocks = nn.ModuleList(
            Block(
                width,
                heads,
                head_dim=head_dim,
                hidden=hidden,
                condition_dim=condition_dim,
                bias=bias,
                dropout=dropout,
                inner_norm=inner_norm,
                epsilon=epsilon,
                fused=fused,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, eps=epsilon)

    def forward(
        self,
        x: Tensor,
        condition: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        past: tuple[KeysValues, ...] | None = None,
    ) -> Tensor:
        """All blocks; arguments as for `Block`, `past` one for each. Returns `(N, T, W)`."""
        return self.read(x, condition, mask=mask, past=past)[0]

    def read(
        self,
        x: Tensor,
        condition: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        past: tuple[KeysValues, ...] | None = None,
    ) -> tuple[Tensor, tuple[KeysValues, ...]]:
        """`forward`, and what each block keeps of the sequence: the `past` of other sequences."""
        if past is not None and len(past) != len(self.blocks):
            raise ValueError(
                f"past has {len(past)} keys and values: give one for each of the "
                f"{len(self.blocks)} blocks, as `read` returns them"
            )
        kept = []
        for place, block in enumerate(self.blocks):
            x, own = block(x, condition, mask=mask, past=None if past is None else past[place])
            kept.append(own)
        return self.norm(x), tuple(kept)


def _modulated(x: Tensor, shift: Tensor | None, scale: Tensor | None) -> Tensor:
    return x if shift is None or scale is None else x * (1 + scale) + shift


def _gated(x: Tensor, gate: Tensor | None) -> Tensor:
    return x if gate is None else gate * x
