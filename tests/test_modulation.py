"""Modulation: FiLM is its formula, each problem has its own code, and codes make a difference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forethought.planners import Gradient, Problem, evaluate
from forethought.worldmodel import JEPA, GRUPredictor, Predictor, ResidualMLP, mlp
from forethought.worldmodel.modulation import FiLM, Modulation, condition_of
from forethought.worldmodel.perception import Perception

FLOAT = torch.float64
M, W = 3, 4


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=FLOAT)


def stirred(module: nn.Module, seed: int = 5) -> Any:
    """`module` in float64 with FiLMs that are not the identity, as after training."""
    generator = seeded(seed)
    for part in module.modules():
        if isinstance(part, FiLM):
            for parameter in part.parameters():
                nn.init.normal_(parameter, std=0.5, generator=generator)
    return module.double()


# --- one FiLM


def test_the_formula() -> None:
    film = stirred(FiLM(M, W))
    features, code = normal(5, W), normal(5, M, seed=1)
    gamma = code @ film.weight[:W].T + film.bias[:W]
    beta = code @ film.weight[W:].T + film.bias[W:]
    torch.testing.assert_close(film(features, code), features * (1 + gamma) + beta)


def test_it_is_the_identity_before_training() -> None:
    features = normal(5, W).float()
    film = FiLM(M, W)
    assert torch.equal(film(features, normal(5, M).float()), features)
    film(features, torch.ones(5, M)).sum().backward()  # and yet it can learn
    assert film.weight.grad is not None
    assert film.bias.grad is not None
    assert bool((film.weight.grad != 0).all())
    assert bool((film.bias.grad != 0).all())


def test_derivatives_agree_with_finite_differences() -> None:
    film = stirred(FiLM(M, W))
    arguments = normal(3, W).requires_grad_(), normal(3, M, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(film, arguments)


def test_leading_axes_broadcast_and_rows_do_not_leak() -> None:
    film = stirred(FiLM(M, W))
    features, code = normal(2, 3, W), normal(2, 1, M, seed=1).requires_grad_()
    found = film(features, code)
    for b in range(2):
        for t in range(3):
            torch.testing.assert_close(found[b, t], film(features[b, t], code[b, 0]))
    (gradient,) = torch.autograd.grad(found[1].sum(), code)
    assert (gradient.abs().sum((1, 2)) > 0).tolist() == [False, True]


def test_codes_of_another_type_are_converted() -> None:
    film = FiLM(2, W)
    nn.init.ones_(film.weight)
    features = normal(2, W).float()
    found = film(features, torch.tensor([[1, 0], [2, 0]]))
    assert found.dtype == torch.float32
    scale, shift = torch.tensor([[2.0], [3.0]]), torch.tensor([[1.0], [2.0]])
    torch.testing.assert_close(found, features * scale + shift)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((0, 4), "condition_dim is 0: choose 1 or more"), ((3, -1), "width is -1: choose 1 or more")],
)
def test_sizes_are_checked(sizes: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FiLM(*sizes)


@pytest.mark.parametrize(("width", "size"), [(W, M + 1), (1, M), (W + 1, M)])
def test_shapes_are_checked_before_they_broadcast(width: int, size: int) -> None:
    with pytest.raises(ValueError, match=r"features and condition .*: give \(\.\.\., 4\) and") as e:
        FiLM(M, W)(torch.zeros(2, width), torch.zeros(2, size))
    assert f"(2, {width}) and (2, {size})" in str(e.value)


# --- FiLMs in a stack


@pytest.mark.parametrize("last", [False, True])
def test_it_stands_between_a_hidden_linear_map_and_its_relu(last: bool) -> None:
    stack = mlp(2, [5, 4], 3)
    modulation = stirred(nn.ModuleList([stack, Modulation(stack, M, last=last)]))[1]
    films = [None, *modulation.films] if last else [*modulation.films]
    assert [film.bias.shape[0] // 2 for film in modulation.films] == ([4] if last else [5, 4])
    x, code = normal(6, 2), normal(6, M, seed=1)
    first, _, second, _, output = stack
    hidden = x
    for linear, film in zip((first, second), films, strict=True):
        hidden = linear(hidden)
        hidden = (hidden if film is None else film(hidden, code)).clamp_min(0)
    torch.testing.assert_close(modulation(stack, x, code), output(hidden))


def test_size_0_is_the_stack_itself() -> None:
    stack = mlp(2, [5], 3)
    modulation = Modulation(stack, 0)
    assert not modulation.state_dict()
    x = normal(6, 2).float()
    assert torch.equal(modulation(stack, x, None), stack(x))
    Modulation(mlp(2, [], 3), 0)  # without hidden layers, there is nothing to refuse


def test_it_draws_no_random_numbers() -> None:
    stack = mlp(2, [5], 3)
    before = torch.random.get_rng_state()
    Modulation(stack, M)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_cannot_be_modulated_is_refused() -> None:
    with pytest.raises(ValueError, match=r"modulation is -1: choose 0 \(none\) or more"):
        Modulation(mlp(2, [5], 3), -1)
    with pytest.raises(ValueError, match=r"modulation is 3, .* layers of 1 or more"):
        Modulation(mlp(2, [], 3), 3)


# --- the code in a context


@pytest.mark.parametrize(
    ("shape", "lead", "expected"),
    [
        ((5, M), (5,), (5, M)),
        ((1, M), (5,), (1, M)),  # one for all
        ((M,), (5,), (1, M)),
        ((M,), (), (M,)),
        ((2, M), (2, 7), (2, 1, M)),  # one per problem for the states of a window
        ((2, 7, M), (2, 7), (2, 7, M)),
        ((2, 1, 1, M), (2, 3, 7), (2, 1, 1, M)),  # as costs see a context
        ((0, M), (0, 7), (0, 1, M)),
    ],
)
def test_a_code_belongs_to_the_first_axes(
    shape: tuple[int, ...], lead: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    code = torch.randn(shape, generator=seeded())
    found = condition_of({"modulation": code, "goal": code}, M, lead)
    assert found is not None
    assert found.shape == expected
    assert torch.equal(found.flatten(), code.flatten())


def test_who_is_not_modulated_reads_nothing() -> None:
    for context in (None, {}, {"modulation": torch.zeros(9, 9)}):
        assert condition_of(context, 0, (5,)) is None


@pytest.mark.parametrize("context", [None, {}, {"goal": torch.zeros(5, M)}])
def test_a_missing_code_is_named(context: Any) -> None:
    with pytest.raises(ValueError, match=r"no 'modulation'.*\(5, 3\).*modulation=0"):
        condition_of(context, M, (5,))


@pytest.mark.parametrize(
    ("shape", "lead", "wanted"),
    [
        ((5, 2), (5,), r"\(5, 3\)"),
        ((4, M), (5,), r"\(5, 3\)"),
        ((), (5,), r"\(5, 3\)"),
        ((5,), (5,), r"\(5, 3\)"),
        ((5, 5, M), (5,), r"\(5, 3\)"),
        ((7, M), (5, 7), r"\(5, 7, 3\)"),  # one per time step, where one per problem is meant
    ],
)
def test_a_code_of_a_wrong_shape_is_named(
    shape: tuple[int, ...], lead: tuple[int, ...], wanted: str
) -> None:
    with pytest.raises(ValueError, match=f"give one of shape {wanted}, or") as caught:
        condition_of({"modulation": torch.zeros(shape)}, M, lead)
    assert f"has the shape {shape}" in str(caught.value)


# --- a predictor that reads it


def gains() -> ResidualMLP:
    """s' = s + c a, exactly: relu(c a) - relu(-c a)."""
    model = ResidualMLP(1, 1, hidden=2, layers=1, modulation=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.layers[0].weight[:, 1] = torch.tensor([1.0, -1.0])
        model.layers[2].weight[0] = torch.tensor([1.0, -1.0])
        film = model.modulation.films[0]
        film.weight[:2] = 1.0  # 1 + gamma(c) = c
        film.bias[:2] = -1.0
    return model.double()


class Seeing(Perception):
    """The state is the observation."""

    latent_dim = 1

    def forward(self, observation: Any, context: Any = None) -> Tensor:
        return observation

    def standardise_by(self, statistics: Any) -> None:
        pass


CODES = torch.tensor([[2.0], [-1.0]], dtype=FLOAT)


def problem_of(codes: Tensor, rolled: bool, **changes: Any) -> Problem:
    """Reach 0.5 from (0, 0.2) with the gains `codes`."""
    model = JEPA(Seeing(), gains())

    def distance(state: Any, action: Tensor, after: Any, context: Any, t: Tensor) -> Tensor:
        return (after - 0.5).square().sum(-1)

    options: dict[str, Any] = {
        "state": torch.tensor([[0.0], [0.2]], dtype=FLOAT),
        "step": lambda s, a, z, context, t: model.predict(s, a, z, context),
        "rollout": model.rollout if rolled else None,
        "goal_cost": distance,
        "reduction": "last",
        "horizon": 2,
        "low": torch.tensor([-1.0], dtype=FLOAT),
        "high": torch.tensor([1.0], dtype=FLOAT),
        "context": {"modulation": codes},
    }
    return Problem(**(options | changes))


@pytest.mark.parametrize("rolled", [False, True])
def test_each_problem_has_its_own_code(rolled: bool) -> None:
    """B = 2 problems, S = 3 candidates: predicted states and energies are those worked by hand."""
    actions = torch.rand(2, 3, 2, 1, generator=seeded(), dtype=FLOAT) * 2 - 1
    codes = CODES.clone().requires_grad_()
    problem = problem_of(codes, rolled)
    energies, states = evaluate(problem, actions)
    start = torch.tensor([0.0, 0.2], dtype=FLOAT).view(2, 1, 1, 1)
    by_hand = start + CODES.view(2, 1, 1, 1) * actions.cumsum(2)
    torch.testing.assert_close(states, by_hand)
    torch.testing.assert_close(energies, (by_hand[:, :, -1, 0] - 0.5).square())
    (gradient,) = torch.autograd.grad(energies[1].sum(), codes)
    slope = (2 * (by_hand[1, :, -1, 0] - 0.5) * actions[1].sum((1, 2))).sum()
    torch.testing.assert_close(gradient, torch.tensor([[0.0], [float(slope)]], dtype=FLOAT))
    with pytest.raises(ValueError, match="no 'modulation'"):
        evaluate(replace(problem, context={}), actions)


def test_a_plan_suits_its_code() -> None:
    """From 0 to 0.5 with a gain of 1, and of -1: the planner pushes forth, and back."""
    codes = torch.tensor([[1.0], [-1.0]], dtype=FLOAT)
    problem = problem_of(codes, True, state=torch.zeros(2, 1, dtype=FLOAT))
    plan = Gradient(starts=4, iterations=40).plan(problem, generator=seeded())
    assert float(plan.energy.max()) < 1e-3
    torch.testing.assert_close(
        plan.actions.sum((1, 2)), torch.tensor([0.5, -0.5], dtype=FLOAT), atol=0.03, rtol=0
    )


@pytest.mark.parametrize("kind", [ResidualMLP, GRUPredictor])
def test_gradients_reach_the_code(kind: type[Predictor]) -> None:
    torch.manual_seed(0)
    model = stirred(kind(W, 2, hidden=6, modulation=M))
    state, action = normal(2, W), normal(2, 2, seed=1)
    codes = normal(2, M, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda c: model(state, action, context={"modulation": c}), (codes,)
    )
    (gradient,) = torch.autograd.grad(
        model(state, action, context={"modulation": codes})[1].sum(), codes
    )
    assert bool((gradient[1] != 0).all())
    assert not gradient[0].any()


TRAINED = torch.linspace(-1, 1, 5)  # codes that training sees
BETWEEN = (TRAINED[1:] + TRAINED[:-1]) / 2  # and does not


def system(count: int, codes: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """s' = s + c a E of random states, actions and codes."""
    state = torch.randn(count, W, generator=generator)
    action = 2 * torch.rand(count, 2, generator=generator) - 1
    code = codes[torch.randint(len(codes), (count,), generator=generator)][:, None]
    effect = torch.randn(2, W, generator=seeded(7))
    return state, action, code, state + code * (action @ effect)


def error_of(
    model: Predictor, codes: Tensor, generator: torch.Generator, count: int = 64, wrong: int = 0
) -> Tensor:
    state, action, code, target = system(count, codes, generator)
    context = {"modulation": -code if wrong else code}
    return (model(state, action, context=context) - target).square().mean()


@pytest.mark.parametrize("kind", [ResidualMLP, GRUPredictor])
def test_a_family_of_systems_is_learnt_by_code(kind: type[Predictor]) -> None:
    """One model per family: without the code, the best guess is the average system.

    Codes that training never saw lie between those it saw, and work too.
    """
    found: dict[int, Tensor] = {}
    for size in (0, 1):
        torch.manual_seed(0)
        model, generator = kind(W, 2, hidden=32, modulation=size), seeded(1)
        optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(180):
            optimiser.zero_grad()
            error_of(model, TRAINED, generator).backward()
            optimiser.step()
        with torch.no_grad():
            found[size] = torch.stack(
                [
                    error_of(model, TRAINED, seeded(2), 1000),
                    error_of(model, BETWEEN, seeded(2), 1000),
                    error_of(model, TRAINED, seeded(2), 1000, wrong=1),
                ]
            )
    assert bool((found[1][:2] < 0.05 * found[0][:2]).all()), found
    assert float(found[1][2]) > float(found[0][2]), found  # the wrong code misleads
