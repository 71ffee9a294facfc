"""The roll-out of a residual MLP and its derivative, written out for all steps at once.

    x_t = [s_t, a_t];  h_1 = relu(W_1 x_t + b_1), ...;  y = s_t + W_L h_{L-1} + b_L;
    s_{t+1} = y, or its LayerNorm without affine part.

Planning asks a frozen network for dE/ds and dE/da (LeCun 2022, section 3.1.4) and never for dE/dW.
One node of the graph thus replaces some eight per step. Going back, the adjoint l_t = dE/ds_t
obeys u_{L-1} = relu'(h_{L-1}) (W_L^T l_{t+1}), ..., dE/dx_t = W_1^T u_1 and
l_t = G_t + l_{t+1} + (dE/dx_t)_s, where G_t is what arrives at s_t from outside.

Axes: `N` rows, `H` steps, `D` state, `A` action; buffers are time-major, so that each step's rows
lie together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ResidualStack:
    """Weights of s' = s + MLP([s, a]).

    Args:
        weights: of the L linear layers, `(W, D + A)`, ..., `(D, W)`, with ReLU between them.
        biases: one for each.
        epsilon: of the LayerNorm without affine part over s', or None where there is none.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    epsilon: float | None = None

    def __post_init__(self) -> None:
        if not self.weights or len(self.weights) != len(self.biases):
            raise ValueError(
                f"weights are {len(self.weights)} and biases {len(self.biases)}: choose one of "
                "each for every layer, and at least one layer"
            )
        inputs, outputs = self.weights[0].shape[1], self.weights[-1].shape[0]
        if inputs <= outputs:
            raise ValueError(
                f"weights take {inputs} numbers and give {outputs}: choose a first layer that "
                "takes state and action, and a last one that gives the state"
            )

    @property
    def state_dim(self) -> int:
        """Size D of the state."""
        return self.weights[-1].shape[0]

    @property
    def action_dim(self) -> int:
        """Size A of the action."""
        return self.weights[0].shape[1] - self.state_dim

    @property
    def frozen(self) -> bool:
        """Whether no weight requires a gradient."""
        return not any(x.requires_grad for x in (*self.weights, *self.biases))

    def takes(self, state: Tensor, actions: Tensor) -> bool:
        """Whether these are `(N, D)` and `(N, H, A)`, of the weights' type and on their device."""
        shape = state.shape[:1] + actions.shape[1:2] + (self.action_dim,)
        kinds = {(x.dtype, x.device) for x in (state, actions, *self.weights, *self.biases)}
        return (
            state.shape[1:] == (self.state_dim,)
            and actions.shape == shape
            and actions.shape[1] > 0
            and len(kinds) == 1
        )


def unroll(stack: ResidualStack, state: Tensor, actions: Tensor) -> Tensor:
    """Predicted states `(N, H, D)` after each action; what `stepwise` gives, up to rounding.

    Its derivative reaches the state and the actions, and no weight. A derivative of that derivative
    (`create_graph`) goes the ordinary way, step by step; forward-mode derivatives and the
    transforms of `torch.func` are refused by torch.

    Args:
        stack: the network.
        state: starting states, `(N, D)`.
        actions: `(N, H, A)`, H at least 1.

    Raises:
        ValueError: a weight requires a gradient, or shapes, types or devices differ.
    """
    if not stack.frozen:
        raise ValueError("a weight requires a gradient: choose `stepwise`, or freeze the network")
    if not stack.takes(state, actions):
        raise ValueError(
            f"state and actions are {tuple(state.shape)} and {tuple(actions.shape)}: choose "
            f"(N, {stack.state_dim}) and (N, H, {stack.action_dim}), H at least 1, of the type "
            "and on the device of the weights"
        )
    if torch.is_grad_enabled() and (state.requires_grad or actions.requires_grad):
        states: Tensor = _Unroll.apply(state, actions, stack)  # type: ignore[no-untyped-call]
        return states
    with torch.no_grad():
        return _forward(stack, state, actions, keep=False)[0]


def stepwise(stack: ResidualStack, state: Tensor, actions: Tensor) -> Tensor:
    """`unroll` by autograd, step by step: states `(N, H, D)`. The reference, differentiable twice.

    Args:
        stack: the network.
        state: starting states, `(N, D)`.
        actions: `(N, H, A)`.
    """
    states = []
    for action in actions.unbind(1):
        x = torch.cat((state, action), dim=-1)
        for weight, bias in zip(stack.weights[:-1], stack.biases[:-1], strict=True):
            x = torch.nn.functional.linear(x, weight, bias).relu()
        state = state + torch.nn.functional.linear(x, stack.weights[-1], stack.biases[-1])
        if stack.epsilon is not None:
            state = torch.nn.functional.layer_norm(state, state.shape[-1:], eps=stack.epsilon)
        states.append(state)
    return torch.stack(states, dim=1)


@dataclass(eq=False)
class _Kept:
    """What the way back needs.

    Args:
        hidden: hidden features after the ReLU, `(H, N, W)` for each hidden layer.
        states: states after each step, `(H, N, D)`, a view; read where they are normalised.
        scales: 1 / std of what was normalised, `(N, 1)` for each step; empty without LayerNorm.
    """

    hidden: list[Tensor]
    states: Tensor
    scales: list[Tensor]


def _forward(
    stack: ResidualStack, state: Tensor, actions: Tensor, *, keep: bool
) -> tuple[Tensor, _Kept]:
    """States `(N, H, D)`; `keep` gives each step its own hidden features, else they share them."""
    (rows, horizon, _), size = actions.shape, stack.state_dim
    entries = state.new_empty(horizon + 1, rows, size + stack.action_dim)
    entries[:-1, :, size:] = actions.transpose(0, 1)
    entries[0, :, :size] = state
    slots = horizon if keep else 1
    hidden = [
        state.new_empty(slots, rows, weight.shape[0]).expand(horizon, -1, -1)
        for weight in stack.weights[:-1]
    ]
    layers = list(zip((w.t() for w in stack.weights[:-1]), stack.biases[:-1], strict=True))
    last, last_bias = stack.weights[-1].t(), stack.biases[-1]
    states, scales = entries[:, :, :size], []
    at = [*states.unbind(0)]
    features: Iterator[tuple[Tensor, ...]] = (
        zip(*(h.unbind(0) for h in hidden), strict=True) if hidden else iter([()] * horizon)
    )
    for step, (x, outputs) in enumerate(zip(entries[:-1].unbind(0), features, strict=True)):
        for (weight, bias), output in zip(layers, outputs, strict=True):
            x = torch.addmm(bias, x, weight, out=output).relu_()
        reached = torch.addmm(at[step], x, last, out=at[step + 1]).add_(last_bias)
        if stack.epsilon is not None:
            normed, _, scale = torch.native_layer_norm(reached, [size], None, None, stack.epsilon)
            reached.copy_(normed)
            scales.append(scale)
    after = states[1:]
    return after.transpose(0, 1).contiguous(), _Kept(hidden, after, scales)


def _backward(
    stack: ResidualStack, kept: _Kept, gradient: Tensor, *, actions: bool
) -> tuple[Tensor, Tensor | None]:
    """dE/ds_0 `(N, D)` and, where `actions`, dE/da `(N, H, A)`, of dE/d(states) `(N, H, D)`."""
    (rows, horizon, size), passed = gradient.shape, torch.ops.aten.threshold_backward.grad_input
    inner = [*enumerate(stack.weights)][:0:-1]  # all but the first layer, the last one first
    rooms = [gradient.new_empty(rows, weight.shape[1]) for _, weight in inner]
    # dE/dx_t is made in one product: one for the few columns of the actions takes almost as long.
    entries = gradient.new_empty(horizon if actions else 1, rows, size + stack.action_dim)
    entry_at = entries.expand(horizon, -1, -1).unbind(0)
    state_at = entries[:, :, :size].expand(horizon, -1, -1).unbind(0)
    hidden = [h.unbind(0) for h in kept.hidden]
    arrived = gradient.unbind(1)
    adjoint = arrived[-1]
    for step in reversed(range(horizon)):
        if stack.epsilon is not None:
            adjoint = _through_norm(adjoint, kept.states[step], kept.scales[step])
        slope = adjoint
        for (layer, weight), room in zip(inner, rooms, strict=True):
            torch.mm(slope, weight, out=room)
            slope = passed(room, hidden[layer - 1][step], 0, grad_input=room)
        torch.mm(slope, stack.weights[0], out=entry_at[step])
        adjoint = adjoint + state_at[step]
        if step:
            adjoint.add_(arrived[step - 1])
    return adjoint, entries[:, :, size:].transpose(0, 1) if actions else None


def _through_norm(adjoint: Tensor, normed: Tensor, scale: Tensor) -> Tensor:
    """Gradient before a LayerNorm without affine part, `(N, D)`, from the one after it."""
    along = (adjoint * normed).mean(-1, keepdim=True)
    return (adjoint - adjoint.mean(-1, keepdim=True)).addcmul_(normed, along, value=-1).mul_(scale)


class _Unroll(torch.autograd.Function):
    """`_forward` and `_backward` as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, actions: Tensor, stack: ResidualStack) -> Tensor:
        states, kept = _forward(stack, state, actions, keep=True)
        # Weights are saved, so that torch refuses to go back through ones changed in the meantime.
        ctx.save_for_backward(state, actions, *stack.weights, *stack.biases)
        ctx.stack, ctx.kept = stack, kept
        return states

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        state, actions, *_ = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled():  # create_graph: the result has to have a derivative itself
            again = stepwise(ctx.stack, state, actions)
            inputs = [x for x, needed in zip((state, actions), wanted, strict=False) if needed]
            found = iter(torch.autograd.grad(again, inputs, gradients[0], create_graph=True))
            return next(found) if wanted[0] else None, next(found) if wanted[1] else None, None
        start, moved = _backward(ctx.stack, ctx.kept, gradients[0], actions=wanted[1])
        return start if wanted[0] else None, moved, None
