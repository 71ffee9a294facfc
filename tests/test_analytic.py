"""The roll-out written out by hand is the ordinary one, in values and derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from forethought.worldmodel import GRUPredictor, ResidualMLP
from forethought.worldmodel.analytic import ResidualStack, stepwise, unroll

N, H, D, A = 6, 7, 4, 2


def predictor(
    layers: int = 2, *, normalise: bool = False, dtype: torch.dtype = torch.float64
) -> ResidualMLP:
    """A frozen predictor whose every layer matters."""
    torch.manual_seed(layers)
    model = ResidualMLP(D, A, hidden=8, layers=layers, normalise=normalise).to(dtype)
    return model.requires_grad_(False)


def stack_of(model: ResidualMLP) -> ResidualStack:
    linear = [layer for layer in model.layers if isinstance(layer, nn.Linear)]
    return ResidualStack(
        tuple(layer.weight for layer in linear),
        tuple(layer.bias for layer in linear),
        None if model.norm is None else model.norm.eps,
    )


def inputs(dtype: torch.dtype = torch.float64, *, rows: int = N) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    state = torch.randn(rows, D, generator=generator, dtype=dtype)
    return state, torch.randn(rows, H, A, generator=generator, dtype=dtype)


def loop(model: ResidualMLP, state: Tensor, actions: Tensor) -> Tensor:
    """The ordinary way, by the module's own steps."""
    states = []
    for action in actions.unbind(1):
        state = model(state, action)
        states.append(state)
    return torch.stack(states, 1)


def derivatives(
    rolled: Callable[[Tensor, Tensor], Tensor], state: Tensor, actions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """States, and the gradient of a sum that weighs every entry of them differently."""
    state, actions = (x.clone().requires_grad_() for x in (state, actions))
    states = rolled(state, actions)
    weights = torch.randn(
        states.shape, generator=torch.Generator().manual_seed(2), dtype=state.dtype
    )
    return (states.detach(), *torch.autograd.grad((weights * states).sum(), (state, actions)))


KINDS = [(layers, normalise) for layers in (0, 1, 2, 3) for normalise in (False, True)]


@pytest.mark.parametrize(("layers", "normalise"), KINDS)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_it_is_the_ordinary_roll_out(
    layers: int, normalise: bool, dtype: torch.dtype, error: float
) -> None:
    model = predictor(layers, normalise=normalise, dtype=dtype)
    stack, (state, actions) = stack_of(model), inputs(dtype)
    expected = derivatives(lambda s, a: loop(model, s, a), state, actions)
    for way in (unroll, stepwise):
        found = derivatives(lambda s, a, way=way: way(stack, s, a), state, actions)  # type: ignore[misc]
        for one, other in zip(found, expected, strict=True):
            assert one.shape == other.shape
            assert one.dtype == dtype
            assert float((one - other).abs().max() / other.abs().max()) < error
    # Without a gradient it keeps no features, and gives the same.
    with torch.no_grad():
        values = unroll(stack, state, actions)
    torch.testing.assert_close(values, expected[0], rtol=error, atol=4 * error)
    assert values.is_contiguous()


@pytest.mark.parametrize(("layers", "normalise"), KINDS)
def test_derivatives_agree_with_finite_differences(layers: int, normalise: bool) -> None:
    stack = stack_of(predictor(layers, normalise=normalise))
    state, actions = (x[:2].requires_grad_() for x in inputs())
    assert torch.autograd.gradcheck(lambda s, a: unroll(stack, s, a), (state, actions[:, :4]))


def test_only_what_is_asked_for_has_a_gradient() -> None:
    stack, (state, actions) = stack_of(predictor()), inputs()
    _, by_state, by_action = derivatives(lambda s, a: unroll(stack, s, a), state, actions)
    weights = torch.randn(N, H, D, generator=torch.Generator().manual_seed(2), dtype=state.dtype)
    leaf = actions.clone().requires_grad_()
    (found,) = torch.autograd.grad((weights * unroll(stack, state, leaf)).sum(), leaf)
    assert torch.equal(found, by_action)
    leaf = state.clone().requires_grad_()
    (found,) = torch.autograd.grad((weights * unroll(stack, leaf, actions)).sum(), leaf)
    assert torch.equal(found, by_state)
    assert not unroll(stack, state, actions).requires_grad


def test_going_back_twice_through_one_roll_out_gives_the_same() -> None:
    stack, (state, actions) = stack_of(predictor(normalise=True)), inputs()
    leaf = actions.clone().requires_grad_()
    states = unroll(stack, state, leaf)
    before, given = states.detach().clone(), torch.randn_like(states)
    kept = given.clone()
    (first,) = torch.autograd.grad(states, leaf, given, retain_graph=True)
    (second,) = torch.autograd.grad(states, leaf, given)
    assert torch.equal(first, second)
    assert torch.equal(states, before)
    assert torch.equal(given, kept)  # the caller's gradient is not written


def test_a_time_major_gradient_is_not_written() -> None:
    """Its transpose is contiguous as it is, so that a copy would be left out."""
    stack, (state, actions) = stack_of(predictor()), inputs()
    leaf = actions.clone().requires_grad_()
    states = unroll(stack, state, leaf)
    given = torch.randn(H, N, D, dtype=state.dtype).transpose(0, 1)
    kept = given.clone()
    (found,) = torch.autograd.grad(states, leaf, given, retain_graph=True)
    assert torch.equal(given, kept)
    torch.testing.assert_close(torch.autograd.grad(states, leaf, kept.contiguous())[0], found)


def test_a_derivative_of_the_derivative_goes_the_ordinary_way() -> None:
    stack = stack_of(predictor(normalise=True))
    state, actions = (x[:2].requires_grad_() for x in inputs())
    found = []
    for way in (unroll, stepwise):
        energy = way(stack, state, actions).pow(3).sum()
        slopes = torch.autograd.grad(energy, (state, actions), create_graph=True)
        found.append(torch.autograd.grad(sum(x.square().sum() for x in slopes), (state, actions)))  # type: ignore[arg-type]
    for one, other in zip(*found, strict=True):
        assert float(one.abs().max()) > 1e-3
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_gradient_passes_through_to_where_the_start_came_from() -> None:
    stack, (state, actions) = stack_of(predictor()), inputs()
    leaf = state.clone().requires_grad_()
    (found,) = torch.autograd.grad(unroll(stack, 2 * leaf, actions)[:, -1].sum(), leaf)
    (expected,) = torch.autograd.grad(stepwise(stack, 2 * leaf, actions)[:, -1].sum(), leaf)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_rows_do_not_leak_and_not_a_number_stays_in_its_row() -> None:
    stack, (state, actions) = stack_of(predictor()), inputs()
    whole = derivatives(lambda s, a: unroll(stack, s, a), state, actions)
    broken = actions.clone()
    broken[2, 3] = torch.nan
    found = derivatives(lambda s, a: unroll(stack, s, a), state, broken)
    others = torch.arange(N) != 2
    for one, other in zip(found, whole, strict=True):
        assert torch.equal(one[others], other[others])
    assert found[0][2, :3].isfinite().all()
    assert found[0][2, 3:].isnan().all()


def test_weights_changed_between_the_ways_are_noticed() -> None:
    model, (state, actions) = predictor(), inputs()
    states = unroll(stack_of(model), state, actions.requires_grad_())
    with torch.no_grad():
        model.layers[2].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        states.sum().backward()


def test_what_it_refuses() -> None:
    model, (state, actions) = predictor(), inputs()
    stack = stack_of(model)
    with pytest.raises(ValueError, match=r"\(6, 4\) and \(6, 7, 1\): choose \(N, 4\) and"):
        unroll(stack, state, actions[..., :1])
    for strange in (
        (state[:1], actions),
        (state[:, :1], actions),
        (state, actions[:, :0]),
        (state, actions.float()),
    ):
        assert not stack.takes(*strange)
    model.requires_grad_(True)
    with pytest.raises(ValueError, match="a weight requires a gradient: choose `stepwise`"):
        unroll(stack_of(model), state, actions)
    with pytest.raises(ValueError, match="weights are 2 and biases 1: choose one of each"):
        ResidualStack(stack.weights[:2], stack.biases[:1])
    with pytest.raises(ValueError, match="weights take 8 numbers and give 8: choose"):
        ResidualStack(stack.weights[1:2], stack.biases[1:2])


# ---- which predictors take all steps at once ----------------------------------------------------


class Louder(ResidualMLP):
    """A sub-class, whose `forward` may be another."""


def test_a_frozen_predictor_takes_all_steps_at_once() -> None:
    state, actions = inputs()
    for normalise in (False, True):
        model = predictor(normalise=normalise)
        found = model.unroll(state, actions)
        assert found is not None
        torch.testing.assert_close(found, loop(model, state, actions), rtol=1e-12, atol=1e-12)


def test_any_other_takes_one_after_the_other() -> None:
    state, actions = inputs()
    for model in (
        GRUPredictor(D, A, hidden=3),
        ResidualMLP(D, A, hidden=8, modulation=3),
        Louder(D, A, hidden=8),
    ):
        assert model.double().requires_grad_(False).unroll(state, actions) is None
    learning = predictor()
    learning.layers[2].bias.requires_grad_(True)
    assert learning.unroll(state, actions) is None
    with torch.no_grad():  # readouts and critics train on such roll-outs
        assert learning.unroll(state, actions) is None
    smooth = predictor()
    smooth.layers[1] = nn.Tanh()
    assert smooth.unroll(state, actions) is None
    watched = predictor()
    handle = watched.layers[0].register_forward_hook(lambda *_: None)
    assert watched.unroll(state, actions) is None
    handle.remove()
    assert watched.unroll(state, actions) is not None
    assert watched.unroll(state, actions[:, :, :1]) is None  # the loop says what is wrong
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert watched.unroll(state, actions) is None
