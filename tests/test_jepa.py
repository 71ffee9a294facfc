"""JEPA: perception and predictor joined, and the one roll-out of the project."""

from __future__ import annotations

import math

import pytest
import torch
from test_perception import vector_spec
from torch import Tensor

from forethought.worldmodel import (
    JEPA,
    Actions,
    GRUPredictor,
    Predictor,
    ResidualMLP,
    VectorPerception,
    action_error,
)
from forethought.worldmodel.belief import Correction
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


def test_an_update_without_a_correction_is_what_is_seen(model: JEPA) -> None:
    encoded = torch.randn(N, D)
    assert model.correction is None
    assert model.update(torch.randn(N, D), torch.randn(N, A), encoded) is encoded
    assert not [name for name in model.state_dict() if name.startswith("correction")]


def test_a_correction_mixes_prediction_and_what_is_seen(model: JEPA) -> None:
    recurrent = JEPA(model.perception, model.predictor, None, Correction(D, hidden=8))
    belief, action, observation = torch.randn(N, D), torch.randn(N, A), torch.randn(N, O)
    prior, encoded = recurrent.predict(belief, action), recurrent.encode(observation)
    found = recurrent.observe(belief, action, observation)
    share = (found - prior) / (encoded - prior)
    assert ((share > 0.9) & (share < 1)).all()
    assert torch.equal(recurrent.observe(None, None, observation), encoded)
    # Discrete actions are embedded on the way, as in `predict`.
    discrete = discrete_model(embedding=5)
    discrete.correction = Correction(D, hidden=8)
    with torch.no_grad():
        discrete.correction.layers[-1].bias.fill_(-40)
    index = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        discrete.observe(belief, index, observation), discrete.predict(belief, index)
    )


def test_sizes_are_those_of_the_parts(model: JEPA) -> None:
    assert (model.latent_dim, model.action_dim) == (D, A)
    assert model.device == torch.device("cpu")


# ---- actions ------------------------------------------------------------------------------------

CHOICES = 3


def discrete_model(embedding: int = 0) -> JEPA:
    torch.manual_seed(0)
    actions = Actions(CHOICES, discrete=True, embedding=embedding)
    perception = VectorPerception(vector_spec(O), latent_dim=D, hidden=16)
    return JEPA(perception, ResidualMLP(D, actions.dim, hidden=16), actions)


def test_continuous_actions_enter_as_they_are() -> None:
    actions = Actions(A)
    assert (actions.size, actions.dim, actions.discrete) == (A, A, False)
    assert Actions(A, embedding=5).dim == A  # an embedding is for discrete ones
    x = torch.randn(N, A)
    assert actions(x) is x
    assert not list(actions.parameters())


def test_discrete_actions_by_hand() -> None:
    index = torch.tensor([[2, 0], [1, 1]])
    onehot = Actions(CHOICES, discrete=True)
    assert (onehot.size, onehot.dim) == (CHOICES, CHOICES)
    rows = torch.eye(CHOICES)
    assert torch.equal(onehot(index), rows[index])
    embedded = Actions(CHOICES, discrete=True, embedding=5)
    assert (embedded.size, embedded.dim) == (CHOICES, 5)
    assert embedded.embedding is not None
    table = embedded.embedding.weight.T  # one row for each action
    torch.testing.assert_close(embedded(index), table[index])
    # Probabilities mix the rows.
    mixture = torch.tensor([0.2, 0.3, 0.5])
    torch.testing.assert_close(embedded(mixture), mixture @ table)
    assert torch.equal(onehot(mixture), mixture)


@pytest.mark.parametrize("embedding", [0, 5])
def test_certain_probabilities_are_indices(embedding: int) -> None:
    model = discrete_model(embedding)
    assert (model.action_dim, model.predictor.action_dim) == (CHOICES, embedding or CHOICES)
    first = torch.randn(N, D)
    index = torch.randint(CHOICES, (N, H), generator=torch.Generator().manual_seed(0))
    certain = torch.nn.functional.one_hot(index, CHOICES).float()
    states = model.rollout(first, index)
    assert states.shape == (N, H, D)
    assert torch.equal(model.rollout(first, certain), states)
    assert torch.equal(model.predict(first, index[:, 0]), states[:, 0])
    state = first
    for step in range(H):
        state = model.predictor(state, model.actions(index[:, step]))
        assert torch.equal(states[:, step], state)
    other = model.rollout(first, (index + 1) % CHOICES)
    assert not torch.allclose(other, states, atol=1e-3)


@pytest.mark.parametrize("embedding", [0, 5])
def test_the_rollout_has_a_derivative_in_probabilities(embedding: int) -> None:
    model = discrete_model(embedding).double()
    first = torch.randn(2, D, dtype=torch.float64)
    mixed = torch.rand(2, 3, CHOICES, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a: model.rollout(first, a), (mixed,))


def test_a_predictor_for_other_actions_is_refused() -> None:
    perception = VectorPerception(vector_spec(O), latent_dim=D, hidden=16)
    with pytest.raises(ValueError, match="takes actions of size 3, but they have size 5: build it"):
        JEPA(perception, ResidualMLP(D, 3), Actions(3, discrete=True, embedding=5))


def test_the_error_of_an_action() -> None:
    told, actions = torch.tensor([[0.5, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    assert action_error(told, actions).item() == pytest.approx((0.25 + 1) / 4)
    # Cross-entropy of logits, over any leading axes: log 3 where nothing is known.
    index = torch.tensor([[0, 2], [1, 1]])
    assert action_error(torch.zeros(2, 2, 3), index).item() == pytest.approx(math.log(3))
    logits = 2.0 * torch.eye(3)[index]
    right = math.log(math.exp(2) + 2) - 2
    assert action_error(logits, index).item() == pytest.approx(right, rel=1e-6)


# ---- all steps at once --------------------------------------------------------------------------


def test_a_frozen_model_rolls_out_all_steps_at_once() -> None:
    """As the predictor gives them, whatever form the actions have; one in training never does."""
    torch.manual_seed(0)
    first, actions = torch.randn(N, D), torch.randn(N, H, A)
    index = torch.randint(CHOICES, (N, H), generator=torch.Generator().manual_seed(0))
    plain = model_with(ResidualMLP(D, A, hidden=16))
    for model, given in ((plain, actions), (discrete_model(5), index), (discrete_model(), index)):
        ordinary = model.rollout(first, given)
        assert ordinary.requires_grad  # to the parameters: the ordinary way
        assert model.predictor.unroll(first, model.actions(given)) is None
        model.requires_grad_(False)
        at_once = model.predictor.unroll(first, model.actions(given))
        assert at_once is not None
        assert torch.equal(model.rollout(first, given), at_once)
        torch.testing.assert_close(at_once, ordinary.detach(), rtol=1e-5, atol=1e-6)


def test_planning_reaches_actions_and_start_of_a_frozen_model() -> None:
    torch.manual_seed(0)
    model = model_with(ResidualMLP(D, A, hidden=16)).double()
    first, actions = torch.randn(N, D).double(), torch.randn(N, H, A).double()
    found = []
    for frozen in (True, False):
        model.requires_grad_(not frozen)
        leaves = [x.clone().requires_grad_() for x in (first, actions)]
        found.append(torch.autograd.grad(model.rollout(*leaves).pow(2).sum(), leaves))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
