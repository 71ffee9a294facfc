"""JEPA: perception and predictor joined, and the one roll-out of the project."""

from __future__ import annotations

import pytest
import torch
from test_perception import vector_spec
from torch import Tensor

from forethought.worldmodel import JEPA, GRUPredictor, Predictor, ResidualMLP, VectorPerception
from forethought.worldmodel.predictors import Context

N, H, D, A, Z, O = 3, 5, 4, 2, 3, 6  # noqa: E741 - the letters of the docstrings


class Recording(Predictor):
    """s' = 2 s + sum(a) + sum(z), exact in float32; keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.action_dim = A
        self.seen: list[tuple[Tensor | None, Context | None]] = []

    def forward(
        self,
        state: Tensor,
        action: Tensor,
        latent: Tensor | None = None,
        context: Context | None = None,
    ) -> Tensor:
        self.seen.append((latent, context))
        extra = 0 if latent is None else latent.sum(-1, keepdim=True)
        return 2 * state + action.sum(-1, keepdim=True) + extra


def model_with(predictor: Predictor) -> JEPA:
    return JEPA(VectorPerception(vector_spec(O), latent_dim=D, hidden=16), predictor)


def whole_numbers(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-3, 4, shape, generator=generator).float()


@pytest.fixture(params=[ResidualMLP, GRUPredictor])
def model(request: pytest.FixtureRequest) -> JEPA:
    torch.manual_seed(0)
    return model_with(request.param(D, A, hidden=16))


def test_rollout_is_a_loop_by_hand(model: JEPA) -> None:
    first, actions = torch.randn(N, D), torch.randn(N, H, A)
    states = model.rollout(first, actions)
    assert states.shape == (N, H, D)
    state = first
    for step in range(H):
        state = model.predictor(state, actions[:, step])
        assert torch.equal(states[:, step], state)
        assert torch.equal(model.predict(first, actions[:, 0]), states[:, 0])
    assert torch.equal(model.rollout(first, actions[:, :2]), states[:, :2])  # causal


def test_rollout_slices_latents_in_time_and_passes_the_context_on() -> None:
    predictor = Recording()
    model = model_with(predictor)
    first, actions, latents = whole_numbers(N, D), whole_numbers(N, H, A), whole_numbers(N, H, Z)
    context = {"rate": torch.ones(N, 1)}
    states = model.rollout(first, actions, latents, context)
    expected = first
    for step in range(H):
        push = actions[:, step].sum(-1, keepdim=True) + latents[:, step].sum(-1, keepdim=True)
        expected = 2 * expected + push
        assert torch.equal(states[:, step], expected)
        latent, passed = predictor.seen[step]
        assert latent is not None
        assert torch.equal(latent, latents[:, step])
        assert passed is context
    assert len(predictor.seen) == H
    predictor.seen.clear()
    model.rollout(first, actions)
    assert predictor.seen == [(None, None)] * H
    model.predict(first, actions[:, 0], latents[:, 0], context)
    assert predictor.seen[-1][1] is context


def test_gradient_reaches_encoder_predictor_observation_and_actions(model: JEPA) -> None:
    observation = torch.randn(N, O, requires_grad=True)
    actions = torch.randn(N, H, A, requires_grad=True)
    model.rollout(model.encode(observation), actions)[:, -1, 0].sum().backward()
    assert observation.grad is not None
    assert actions.grad is not None
    assert (observation.grad.abs().sum(-1) > 0).all()
    assert (actions.grad.abs().sum(-1) > 0).all()  # of every member at every step
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_derivatives_of_the_rollout(model: JEPA) -> None:
    model.double()
    first = torch.randn(2, D, dtype=torch.float64, requires_grad=True)
    actions = torch.randn(2, 3, A, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model.rollout, (first, actions))


def test_rollouts_of_a_batch_do_not_leak(model: JEPA) -> None:
    first, actions = torch.randn(N, D), torch.randn(N, H, A)
    together = model.rollout(first, actions)
    for member in range(N):
        alone = model.rollout(first[member : member + 1], actions[member : member + 1])
        torch.testing.assert_close(alone[0], together[member])


def test_perception_estimates_the_state(model: JEPA) -> None:
    observation = torch.randn(N, O)
    state = model.encode(observation)
    assert torch.equal(state, model.perception(observation))
    assert torch.equal(model.observe(None, None, observation), state)
    assert torch.equal(model.observe(torch.randn(N, D), torch.randn(N, A), observation), state)


def test_sizes_are_those_of_the_parts(model: JEPA) -> None:
    assert (model.latent_dim, model.action_dim) == (D, A)
    assert model.device == torch.device("cpu")
