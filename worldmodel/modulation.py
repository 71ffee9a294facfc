"""Modulation: how the configurator sets perception, predictor and policy (LeCun 2022, section 3.1).

A setting carries a code `(B, M)`, which arrives as `context["modulation"]`; feature-wise linear
modulation (FiLM, Perez et al. 2018, 1709.07871) scales and shifts hidden features by it. Unusual
here: a FiLM is the identity until it is trained and draws no random numbers, so a modulated module
begins as the very module without it that the same seed gives.

Axes: `M` numbers of a code, `W` width of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


class FiLM(nn.Module):
    """h <- h * (1 + gamma(c)) + beta(c), gamma and beta affine in the code c and 0 at first.

    Perez et al. (2018), eqs 1 and 2, with 1 added to gamma: else no feature would be left before
    training.

    Args:
        condition_dim: size M of the code c.
        width: number W of features.
    """

    def __init__(self, condition_dim: int, width: int) -> None:
        super().__init__()
        if condition_dim < 1:
            raise ValueError(f"condition_dim is {condition_dim}: choose 1 or more")
        if width < 1:
            raise ValueError(f"width is {width}: choose 1 or more")
        self.weight = nn.Parameter(torch.zeros(2 * width, condition_dim))
        self.bias = nn.Parameter(torch.zeros(2 * width))

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Modulate features `(..., W)` by codes `(..., M)`; the leading axes broadcast.

        Raises:
            ValueError: the last axis of either has another size.
        """
        sizes = condition.shape[-1], 2 * features.shape[-1]
        if sizes != (self.weight.shape[1], self.weight.shape[0]):
            raise ValueError(
                f"features and condition have the shapes {tuple(features.shape)} and "
                f"{tuple(condition.shape)}: give (..., {self.weight.shape[0] // 2}) and "
                f"(..., {self.weight.shape[1]})"
            )
        gamma, beta = nn.functional.linear(
            condition.to(self.weight.dtype), self.weight, self.bias
        ).chunk(2, dim=-1)
        return torch.addcmul(features + beta, features, gamma)


class Modulation(nn.Module):
    """FiLMs inside of a stack of layers: after a hidden layer's linear map, before what follows it.

    It holds the FiLMs alone. The stack stays with its owner, whose weights keep their names.

    Args:
        stack: the layers; the last linear one gives the output and is never modulated.
        size: size M of the code; 0 modulates nothing and has no weights.
        last: modulate the last hidden layer alone, instead of all of them.
    """

    def __init__(self, stack: nn.Sequential, size: int, *, last: bool = False) -> None:
        super().__init__()
        if size < 0:
            raise ValueError(f"modulation is {size}: choose 0 (none) or more")
        linear = {
            index: layer.out_features
            for index, layer in enumerate(stack)
            if isinstance(layer, nn.Linear)
        }
        hidden = list(linear.items())[:-1]
        if size and not hidden:
            raise ValueError(
                f"modulation is {size}, but there is no hidden layer to modulate: choose 0, or "
                "layers of 1 or more"
            )
        chosen = (hidden[-1:] if last else hidden) if size else []
        self.after = tuple(index for index, _ in chosen)
        self.films = nn.ModuleList(FiLM(size, width) for _, width in chosen)

    def forward(self, stack: nn.Sequential, x: Tensor, condition: Tensor | None) -> Tensor:
        """Run the stack that this was built for.

        Args:
            stack: the layers.
            x: their input, of any shape that they take.
            condition: codes `(..., M)`, whose leading axes broadcast against those of the hidden
                features; None where M is 0.

        Returns:
            The output of the stack.
        """
        films = dict(zip(self.after, self.films, strict=True))
        for index, layer in enumerate(stack):
            x = layer(x)
            if index in films:
                x = films[index](x, condition)
        return x


def condition_of(
    context: Mapping[str, Tensor] | None, size: int, lead: Sequence[int]
) -> Tensor | None:
    """The code `context["modulation"]`, so that it broadcasts against features `(*lead, W)`.

    Its leading axes are the first ones of `lead`, or 1; axes that it lacks share it. One code per
    problem, `(B, M)`, thus serves the states of windows `(B, T, D)`.

    Args:
        context: conditioning of the caller.
        size: size M of the code, or 0.
        lead: leading axes of what is modulated.

    Returns:
        `(..., M)`, with that axis or 1 for every axis of `lead`; None where M is 0.

    Raises:
        ValueError: the context holds no code, or one of another shape.
    """
    if not size:
        return None
    wanted = f"({', '.join(map(str, (*lead, size)))})"
    condition = None if context is None else context.get("modulation")
    if condition is None:
        raise ValueError(
            f"context has no 'modulation', which this module reads: give one of shape {wanted}, as "
            "a setting carries it, or build the module with modulation=0"
        )
    axes = condition.shape[:-1]
    fits = len(axes) <= len(lead) and all(
        own in (1, there) for own, there in zip(axes, lead, strict=False)
    )
    if not condition.dim() or condition.shape[-1] != size or not fits:
        raise ValueError(
            f"context['modulation'] has the shape {tuple(condition.shape)}: give one of shape "
            f"{wanted}, or with fewer leading axes, the first ones"
        )
    return condition.reshape(*axes, *(1,) * (len(lead) - len(axes)), size)
