"""Transformer blocks and the causal predictor: causality, caches, derivatives, roll-outs."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from predictor_contract import A, D, N, PredictorContract
from test_perception import vector_spec
from torch import Tensor, nn

from forethought.worldmodel import (
    JEPA,
    Attention,
    Block,
    CausalPredictor,
    KeysValues,
    Predictor,
    Transformer,
    VectorPerception,
    attend,
    causal_mask,
)

W, C, T, HEADS = 8, 3, 5, 2


def shaken(module: nn.Module, std: float = 0.4) -> Any:
    """With every weight drawn: gates begin at zero, behind which a test would see nothing."""
    generator = torch.Generator().manual_seed(0)
    for weight in module.parameters():
        nn.init.normal_(weight, std=std, generator=generator)
    return module


def drawn(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def blocks(**options: Any) -> Transformer:
    model: Transformer = shaken(Transformer(W, 2, HEADS, condition_dim=C, **options)).double()
    return model


class TestAttend:
    def test_is_pytorchs_own(self) -> None:
        q, k, v = (drawn(N, HEADS, T, 3, seed=seed) for seed in range(3))
        for mask in (None, causal_mask(T)):
            expected = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            torch.testing.assert_close(attend(q, k, v, mask=mask), expected)

    def test_written_out(self) -> None:
        q = torch.tensor([[[[1.0], [2.0]]]])
        k, v = torch.tensor([[[[0.0], [1.0]]]]), torch.tensor([[[[10.0], [20.0]]]])
        weights = torch.tensor([[1.0, 0.0], [1 / (1 + torch.e**2), torch.e**2 / (1 + torch.e**2)]])
        expected = (weights @ torch.tensor([[10.0], [20.0]]))[None, None]
        torch.testing.assert_close(attend(q, k, v, mask=causal_mask(2)), expected)

    def test_a_past_and_itself_alone(self) -> None:
        """A position with a past sees what one at the end of that past would."""
        q, k, v = (drawn(N, HEADS, 2, 3, seed=seed) for seed in range(3))
        past = KeysValues(drawn(N, HEADS, T, 3, seed=3), drawn(N, HEADS, T, 3, seed=4))
        result = attend(q, k, v, past=past)
        for at in range(2):
            here = slice(at, at + 1)
            keys = torch.cat((past.keys, k[:, :, here]), 2)
            values = torch.cat((past.values, v[:, :, here]), 2)
            torch.testing.assert_close(result[:, :, here], attend(q[:, :, here], keys, values))

    def test_fused_is_the_same(self) -> None:
        x = drawn(N, T, W)
        for bias in (False, True):
            plain = shaken(Attention(W, HEADS, head_dim=3, bias=bias)).double()
            fused = shaken(Attention(W, HEADS, head_dim=3, bias=bias, fused=True)).double()
            for mask in (None, causal_mask(T)):
                torch.testing.assert_close(fused(x, mask=mask)[0], plain(x, mask=mask)[0])


class TestBlock:
    def test_begins_as_the_identity_with_a_condition_only(self) -> None:
        x = drawn(N, T, W)
        told = Block(W, HEADS, condition_dim=C).double()
        assert torch.equal(told(x, drawn(N, T, C))[0], x)
        assert not torch.allclose(Block(W, HEADS).double()(x)[0], x, atol=0.1)

    def test_formula(self) -> None:
        """AdaLN-Zero as DiT has it, written out."""
        torch.manual_seed(0)
        x, condition = drawn(N, T, W), drawn(N, T, C)
        block = shaken(Block(W, HEADS, condition_dim=C, hidden=6)).double()
        numbers = nn.functional.silu(condition) @ block.modulation.weight.T + block.modulation.bias
        shift1, scale1, gate1, shift2, scale2, gate2 = numbers.chunk(6, -1)

        def norm(z: Tensor) -> Tensor:
            off = z - z.mean(-1, keepdim=True)
            return off / (off.square().mean(-1, keepdim=True) + 1e-6).sqrt()

        after = x + gate1 * block.attention((1 + scale1) * norm(x) + shift1)[0]
        inner = (1 + scale2) * norm(after) + shift2
        expected = after + gate2 * block.contract(nn.functional.gelu(block.expand(inner)))
        torch.testing.assert_close(block(x, condition)[0], expected)

    def test_inner_norm_forgets_the_scale(self) -> None:
        """A layer norm after a scale that is the same in all features undoes it."""
        x, condition = drawn(N, T, W), torch.zeros(N, T, C, dtype=torch.float64)
        for inner in (False, True):
            block = Block(W, HEADS, condition_dim=C, inner_norm=inner).double()
            with torch.no_grad():
                block.modulation.bias[2 * W : 3 * W] = 1.0  # the gate of attention
                before = block(x, condition)[0]
                block.modulation.bias[W : 2 * W] = 3.0  # its scale
                same = torch.allclose(block(x, condition)[0], before, atol=1e-4)
            assert same == inner

    @pytest.mark.parametrize(("built", "given"), [(0, C), (C, None), (C, C + 1)])
    def test_the_condition_has_to_fit(self, built: int, given: int | None) -> None:
        block = Block(W, HEADS, condition_dim=built)
        condition = None if given is None else torch.zeros(1, T, given)
        with pytest.raises(ValueError, match=f"condition has size {given}, but"):
            block(torch.zeros(1, T, W), condition)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"heads": 0}, "heads is 0"),
            ({"heads": 3}, "width is 8, which 3 heads do not divide"),
            ({"head_dim": -1}, "head_dim is -1"),
            ({"dropout": 1.0}, "dropout is 1.0"),
            ({"hidden": -1}, "hidden is -1"),
            ({"condition_dim": -1}, "condition_dim is -1"),
            ({"inner_norm": True}, "inner_norm is True without a condition"),
        ],
    )
    def test_refused(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=re.escape(words)):
            Block(**{"width": W, "heads": HEADS} | options)


class TestTransformer:
    def test_causal(self) -> None:
        """What comes later changes nothing before, in values and in derivatives."""
        model, condition = blocks(), drawn(N, T, C)
        x = drawn(N, T, W).requires_grad_()
        out = model(x, condition, mask=causal_mask(T))
        for at in range(T):
            (slope,) = torch.autograd.grad(out[:, at, 0].sum(), x, retain_graph=True)
            assert (slope.abs().sum((0, 2)) > 0).tolist() == [t <= at for t in range(T)]

    def test_a_cache_gives_the_same(self) -> None:
        model, x, condition = blocks(), drawn(N, T, W), drawn(N, T, C)
        whole, kept = model.read(x, condition, mask=causal_mask(T))
        past = tuple(KeysValues(k[:, :, : T - 1], v[:, :, : T - 1]) for k, v in kept)
        last = model(x[:, T - 1 :], condition[:, T - 1 :], past=past)
        torch.testing.assert_close(last, whole[:, T - 1 :])

    def test_each_sees_the_real_past_and_itself(self) -> None:
        """As in an energy-based transformer: with the real states as candidates it is the same."""
        model, x, condition = blocks(), drawn(N, T, W), drawn(N, T, C)
        whole, kept = model.read(x, condition, mask=causal_mask(T))
        before = causal_mask(T).tril(-1)
        torch.testing.assert_close(model(x, condition, mask=before, past=kept), whole)
        moved = x.clone()
        moved[:, 1, 0] += 1.0  # a candidate, which no other one sees
        out = model(moved, condition, mask=before, past=kept)
        same = torch.isclose(out, whole).all(-1).all(0)
        assert same.tolist() == [t != 1 for t in range(T)]

    def test_second_derivatives(self) -> None:
        """Those that training through an energy's gradient asks for."""
        model = blocks()
        past = model.read(drawn(1, 3, W), drawn(1, 3, C, seed=2), mask=causal_mask(3))[1]
        condition, mask = drawn(1, 2, C, seed=3), torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
        y = drawn(1, 2, W, seed=4).requires_grad_()
        assert torch.autograd.gradgradcheck(lambda y: model(y, condition, mask=mask, past=past), y)

    def test_dropout_in_training_only(self) -> None:
        x, condition = drawn(N, T, W), drawn(N, T, C)
        model = blocks(dropout=0.5)
        assert not torch.equal(model(x, condition), model(x, condition))
        model.eval()
        assert torch.equal(model(x, condition), model(x, condition))
        torch.testing.assert_close(model(x, condition), blocks()(x, condition))

    def test_a_past_for_each_block(self) -> None:
        with pytest.raises(ValueError, match="past has 1 keys and values: give one for each of"):
            blocks().read(drawn(N, T, W), drawn(N, T, C), past=(KeysValues(*drawn(2, 1, 1, 1, 1)),))
        with pytest.raises(ValueError, match="depth is 0"):
            Transformer(W, 0, HEADS)


class TestCausalPredictor(PredictorContract):
    def make(self, state_dim: int, action_dim: int, *, normalise: bool = False) -> Predictor:
        model = CausalPredictor(
            state_dim,
            action_dim,
            width=12,
            depth=2,
            heads=2,
            projector=16,
            normalise=normalise,
        ).eval()
        for name, weight in model.named_parameters():
            if "modulation" in name:  # gates are zero at first, and the action is not seen
                nn.init.normal_(weight, std=0.4)
        return model

    @pytest.mark.parametrize("window", [1, 2, 3])
    @pytest.mark.parametrize("horizon", [1, 3, 6])
    def test_a_roll_out_sees_its_own_last_states(self, window: int, horizon: int) -> None:
        model = shaken(CausalPredictor(D, A, window=window, heads=2)).double().eval()
        state, actions = drawn(N, D), drawn(N, horizon, A)
        states = [state]
        for step in range(horizon):
            first = max(0, step + 1 - window)
            seen = torch.stack(states[first:], 1)
            states.append(model.sequence(seen, actions[:, first : step + 1])[:, -1])
        torch.testing.assert_close(model.unroll(state, actions), torch.stack(states[1:], 1))
        if window > 1 and horizon > 1:
            alone = model(states[1], actions[:, 1])
            assert not torch.allclose(alone, states[2], atol=1e-3)

    def test_a_sequence_is_causal_and_begins_as_a_step(self) -> None:
        model = shaken(CausalPredictor(D, A, heads=2, projector=6)).double().eval()
        states, actions = drawn(N, 3, D), drawn(N, 3, A)
        after = model.sequence(states, actions)
        torch.testing.assert_close(after[:, 0], model(states[:, 0], actions[:, 0]))
        torch.testing.assert_close(after[:, :2], model.sequence(states[:, :2], actions[:, :2]))

    def test_derivatives_of_a_roll_out(self) -> None:
        """At states, actions and parameters, past the window."""
        model = shaken(CausalPredictor(2, 1, window=2, heads=1, depth=1, projector=3)).double()
        model.eval()
        state, actions = drawn(2, 2).requires_grad_(), drawn(2, 4, 1).requires_grad_()
        assert torch.autograd.gradcheck(model.unroll, (state, actions))
        weight = model.embed[0].weight.detach().clone().requires_grad_()

        def by_weight(weight: Tensor) -> Tensor:
            held = {"embed.0.weight": weight}
            model_of = torch.func.functional_call(_Unrolled(model), held_by(held), (state, actions))
            return model_of

        def held_by(held: dict[str, Tensor]) -> dict[str, Tensor]:
            return {f"model.{name}": tensor for name, tensor in held.items()}

        assert torch.autograd.gradcheck(by_weight, (weight,))

    def test_the_model_rolls_it_out_with_its_window(self) -> None:
        """Frozen or not, and without a step-by-step loop, which would have no history."""
        torch.manual_seed(0)
        predictor = shaken(CausalPredictor(D, A, heads=2))
        model = JEPA(VectorPerception(vector_spec(5), latent_dim=D), predictor)
        state, actions = drawn(N, D).float(), drawn(N, 4, A).float()
        expected = predictor.unroll(state, actions)
        torch.testing.assert_close(model.rollout(state, actions), expected)
        model.eval().requires_grad_(False)
        torch.testing.assert_close(model.rollout(state, actions), expected)

    def test_members_of_a_batch_are_apart_in_evaluation_alone(self) -> None:
        model = shaken(CausalPredictor(D, A, heads=2, projector=6))
        state, actions = drawn(N, D).float(), drawn(N, 2, A).float()
        assert not torch.allclose(
            model.unroll(state, actions)[:2], model.unroll(state[:2], actions[:2])
        )
        model.eval()
        torch.testing.assert_close(
            model.unroll(state, actions)[:2], model.unroll(state[:2], actions[:2])
        )

    def test_refused(self) -> None:
        with pytest.raises(ValueError, match="a sequence has 4 states, but the predictor's window"):
            CausalPredictor(D, A).sequence(torch.zeros(1, 4, D), torch.zeros(1, 4, A))
        for options in ({"window": 0}, {"width": -1}, {"projector": -1}):
            (name, value), *_ = options.items()
            with pytest.raises(ValueError, match=f"{name} is {value}"):
                CausalPredictor(D, A, **options)

    def test_history_helps_where_the_state_is_not_enough(self) -> None:
        """A velocity that no single state shows: with two states the next one is known."""
        generator = torch.Generator().manual_seed(0)
        errors = {}
        for window in (1, 3):
            torch.manual_seed(0)
            model = CausalPredictor(2, 1, window=window, width=16, depth=1, heads=2)
            optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
            for _ in range(300):
                velocity = torch.randn(64, 1, 2, generator=generator)
                states = torch.randn(64, 1, 2, generator=generator) + velocity * torch.arange(
                    window + 1.0
                ).view(1, -1, 1)
                told = model.sequence(states[:, :-1], torch.zeros(64, window, 1))
                error = (told - states[:, 1:])[:, -1].square().mean()
                optimiser.zero_grad()
                error.backward()
                optimiser.step()
            errors[window] = error.item()
        assert errors[1] > 0.5  # the variance of the velocity
        assert errors[3] < 0.2


class _Unrolled(nn.Module):
    """`unroll` as a module's forward."""

    def __init__(self, model: CausalPredictor) -> None:
        super().__init__()
        self.model = model

    def forward(self, state: Tensor, actions: Tensor) -> Tensor:
        return self.model.unroll(state, actions)


def test_teacher_forcing_of_a_one_step_predictor_is_a_step_from_each() -> None:
    from forethought.worldmodel import ResidualMLP

    torch.manual_seed(0)
    model = ResidualMLP(D, A, hidden=8, modulation=2)
    shaken(model)
    states, actions, codes = drawn(N, 3, D).float(), drawn(N, 3, A).float(), drawn(N, 2).float()
    after = model.sequence(states, actions, {"modulation": codes})
    for at in range(3):
        alone = model(states[:, at], actions[:, at], None, {"modulation": codes})
        torch.testing.assert_close(after[:, at], alone)
