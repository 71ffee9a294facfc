"""What every predictor promises: inherit `PredictorContract` and name the predictor."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from forethought.worldmodel import Predictor

N, D, A = 5, 4, 2


class PredictorContract:
    """Inherit, and define `make`.

    Attributes:
        latent_dim: size Z of the latent the predictor uses; None if it uses none.
    """

    latent_dim: ClassVar[int | None] = None

    def make(self, state_dim: int, action_dim: int, *, normalise: bool = False) -> Predictor:
        raise NotImplementedError

    def inputs(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        state = torch.randn(N, D, generator=generator, dtype=dtype)
        return state, torch.randn(N, A, generator=generator, dtype=dtype)

    @pytest.fixture(params=[False, True], ids=["plain", "normalised"])
    def predictor(self, request: pytest.FixtureRequest) -> Predictor:
        torch.manual_seed(0)
        return self.make(D, A, normalise=request.param)

    def test_shape_and_action_dim(self, predictor: Predictor) -> None:
        state, action = self.inputs()
        result = predictor(state, action)
        assert result.shape == (N, D)
        assert result.dtype == torch.float32
        assert predictor.action_dim == A
        assert self.make(3, 6).action_dim == 6
        assert self.make(3, 6)(torch.zeros(2, 3), torch.zeros(2, 6)).shape == (2, 3)

    def test_one_signature(self, predictor: Predictor) -> None:
        state, action = self.inputs()
        expected = predictor(state, action)
        for result in (
            predictor(state, action, None, None),
            predictor(state, action, latent=None, context=None),
            predictor(state=state, action=action, latent=None, context={}),
        ):
            assert torch.equal(result, expected)
        if self.latent_dim is None:  # whoever uses no latent accepts one all the same
            assert torch.equal(predictor(state, action, torch.ones(N, 3)), expected)

    def test_memoryless_between_calls(self, predictor: Predictor) -> None:
        state, action = self.inputs()
        first = predictor(state, action)
        predictor(state + 1, action - 1)
        assert torch.equal(predictor(state, action), first)

    def test_arguments_stay_as_they_are(self, predictor: Predictor) -> None:
        state, action = self.inputs()
        predictor(state, action)
        assert torch.equal(state, self.inputs()[0])
        assert torch.equal(action, self.inputs()[1])

    def test_batch_members_do_not_leak(self, predictor: Predictor) -> None:
        state, action = self.inputs()
        result = predictor(state, action)
        for member in range(N):
            alone = predictor(state[member : member + 1], action[member : member + 1])
            torch.testing.assert_close(alone[0], result[member])
        state.requires_grad_()
        action.requires_grad_()
        # A sum of squares of a normalised state is constant; one component is not.
        gradients = torch.autograd.grad(predictor(state, action)[2, 0], (state, action))
        for gradient in gradients:
            assert (gradient.abs().sum(1) > 0).tolist() == [n == 2 for n in range(N)]

    def test_gradient_reaches_state_action_and_every_parameter(self, predictor: Predictor) -> None:
        state, action = (x.requires_grad_() for x in self.inputs())
        predictor(state, action)[:, 0].sum().backward()
        assert state.grad is not None
        assert action.grad is not None
        assert (state.grad.abs().sum(1) > 0).all()
        assert (action.grad.abs().sum(1) > 0).all()
        for name, parameter in predictor.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name

    def test_derivatives_agree_with_finite_differences(self, predictor: Predictor) -> None:
        state, action = (x.requires_grad_() for x in self.inputs(torch.float64))
        model = predictor.double()
        assert torch.autograd.gradcheck(lambda s, a: model(s, a), (state[:2], action[:2]))

    def test_the_action_and_the_state_matter(self, predictor: Predictor) -> None:
        state, action = self.inputs()
        result = predictor(state, action)
        assert not torch.allclose(predictor(state, action.flip(0)), result, atol=1e-4)
        assert not torch.allclose(predictor(state.flip(0), action), result, atol=1e-4)

    def test_normalise_keeps_long_unrolls_in_range(self) -> None:
        state, action = self.inputs()
        for normalise in (False, True):
            torch.manual_seed(0)
            model = self.make(D, A, normalise=normalise)
            result = 100 * state
            for _ in range(20):
                result = model(result, action)
            mean, std = result.mean(-1), result.std(-1, correction=0)
            ones = torch.ones(N)
            assert torch.allclose(mean, 0 * ones, atol=1e-3) == normalise
            assert torch.allclose(std, ones, atol=1e-2) == normalise

    def test_learns_a_known_step(self) -> None:
        torch.manual_seed(0)
        model = self.make(D, A)
        generator = torch.Generator().manual_seed(2)
        effect = torch.randn(A, D, generator=generator)
        optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
        error = torch.tensor(0.0)
        for _ in range(200):
            state = torch.randn(64, D, generator=generator)
            action = torch.randn(64, A, generator=generator)
            target = state + 0.5 * action @ effect
            error = (model(state, action) - target).square().mean()
            optimiser.zero_grad()
            error.backward()
            optimiser.step()
        assert error.item() < 0.1 * (0.5 * effect).square().sum(0).mean().item()  # over copying
