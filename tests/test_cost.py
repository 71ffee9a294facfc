"""The intrinsic cost: numbers by hand, derivatives, and a bank that nobody can change."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, dataclass, field, replace
from typing import Any, get_args

import dm_control.utils.rewards
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import forethought.agent
from forethought.agent import (
    Effort,
    GoalDistance,
    IntrinsicCost,
    IntrinsicTerm,
    Jointly,
    KeepOut,
    Posture,
    Shortfall,
    Speed,
    Tolerance,
    Weighted,
)
from forethought.agent.cost.terms import Sigmoid
from forethought.worldmodel import Readouts

SIGMOIDS = get_args(Sigmoid)
NONE = torch.zeros(1, 1)


@dataclass(frozen=True)
class Danger(IntrinsicTerm):
    """A safety term: how far the state is beyond a limit, a quarter of it, at most 1."""

    quantity: str = "state"
    limit: float = 1.0

    def __call__(self, quantities: Mapping[str, Tensor], action: Tensor) -> Tensor:
        beyond = (quantities[self.quantity].abs() - self.limit).clamp_min(0).sum(-1)
        return (beyond / 4).clamp_max(1)


SAFE = IntrinsicCost(
    (Weighted("effort", Effort()), Weighted("danger", Danger(), floor=0.5, ceiling=2.0))
)

EVERY: dict[str, IntrinsicTerm] = {
    "effort": Effort(),
    **{
        f"tolerance, {sigmoid}": Tolerance("x", -0.2, 0.3, 0.9, 0.25, sigmoid)
        for sigmoid in SIGMOIDS
    },
    "tolerance of a component": Tolerance("x[1]", 0.5, 0.5, 2.0, 0.0, "linear"),
    "speed": Speed("x", typical=0.7),
    "posture": Posture("x", target=(0.3, -0.2, 1.0), scale=0.6),
    "posture, one target": Posture("x", target=(0.3,), scale=0.6),
    "keep out": KeepOut("x", centre=(0.1, 0.2, -0.3), radius=0.8, softness=0.3),
    "shortfall": Shortfall("x", worst=-0.5, best=1.5),
    "shortfall, downwards": Shortfall("x", worst=1.5, best=-0.5),
    "jointly": Jointly((Speed("x"), Effort(), Tolerance("y")), (1.0, 0.5, 0.3)),
}


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def cost(term: IntrinsicTerm, **quantities: Any) -> list[float]:
    values = {name: torch.tensor(value) for name, value in quantities.items()}
    answer: list[float] = term(values, torch.zeros(1, 2)).tolist()
    return answer


# --- numbers by hand


def test_effort_by_hand() -> None:
    actions = torch.tensor([[0.5, -1.0], [0.0, 0.0], [1.0, 1.0]])
    assert Effort()({}, actions).tolist() == [0.625, 0.0, 1.0]


def test_discrete_actions_have_no_effort() -> None:
    with pytest.raises(ValueError, match=r"actions are discrete .* leave that term out"):
        Effort()({}, torch.tensor([[[1, 2, 0]]]))


def test_speed_by_hand() -> None:
    # 3^2 / (3^2 + 3^2), 1 / (1 + 9), and the mean over components.
    found = cost(Speed("v", typical=3.0), v=[[3.0], [-3.0], [1.0], [0.0]])
    assert found == pytest.approx([0.5, 0.5, 0.1, 0.0])
    assert cost(Speed("v", typical=3.0), v=[[3.0, 1.0]]) == pytest.approx([0.3])


def test_posture_by_hand() -> None:
    each = Posture("q", target=(1.0, -1.0), scale=2.0)
    # d = (2, 0), (0, 6): 4 / (4 + 4) and 36 / (36 + 4), halved by the other component.
    assert cost(each, q=[[3.0, -1.0], [1.0, 5.0], [1.0, -1.0]]) == pytest.approx([0.25, 0.45, 0.0])
    one = Posture("q", target=(1.0,), scale=2.0)
    assert cost(one, q=[[3.0, -1.0], [1.0, 1.0]]) == pytest.approx([0.5, 0.0])
    assert cost(Posture("q"), q=[[1.0], [0.0], [3.0]]) == pytest.approx([0.5, 0.0, 0.9])


def test_keep_out_by_hand() -> None:
    ball = KeepOut("p", centre=(1.0, 2.0), radius=5.0, softness=0.5)
    # Distances 5 (3, 4, 5), 0, and 6: 1/2, sigmoid(10), sigmoid(-2).
    found = cost(ball, p=[[4.0, 6.0], [1.0, 2.0], [7.0, 2.0]])
    wanted = [0.5, 1 / (1 + math.exp(-10)), 1 / (1 + math.exp(2))]
    assert found == pytest.approx(wanted, abs=1e-5)


def test_shortfall_by_hand() -> None:
    reward = Shortfall("reward", worst=-2.0, best=3.0)
    # From 0.99 to 0.01 between the ends; beyond them a hundredth of tanh.
    found = cost(reward, reward=[[-2.0], [3.0], [0.5], [-7.0], [8.0], [1e9], [-1e9]])
    last = 0.01 * math.tanh(1.0)
    wanted = [0.99, 0.01, 0.5, 0.99 + last, 0.01 - last, 0.0, 1.0]
    assert found == pytest.approx(wanted, abs=1e-6)
    ended = Shortfall("ended", worst=1.0, best=0.0)
    assert cost(ended, ended=[[0.0], [1.0], [0.5]]) == pytest.approx([0.01, 0.99, 0.5])
    assert cost(ended, ended=[[0.0, 1.0]]) == pytest.approx([0.5])


def test_tolerance_by_hand() -> None:
    linear = Tolerance("x", low=1.0, high=2.0, margin=4.0, value_at_margin=0.2, sigmoid="linear")
    # Inside; half a margin and one margin below and above; far beyond it.
    found = cost(linear, x=[[1.0], [1.7], [2.0], [-1.0], [-3.0], [4.0], [6.0], [99.0]])
    assert found == pytest.approx([0.0, 0.0, 0.0, 0.4, 0.8, 0.4, 0.8, 1.0])
    assert cost(linear, x=[[1.0, 6.0]]) == pytest.approx([0.4])  # the mean over components


@pytest.mark.parametrize("sigmoid", SIGMOIDS)
def test_tolerance_at_the_margin(sigmoid: Any) -> None:
    term = Tolerance("x", 0.0, 0.0, margin=3.0, value_at_margin=0.15, sigmoid=sigmoid)
    assert cost(term, x=[[0.0], [3.0], [-3.0]]) == pytest.approx([0.0, 0.85, 0.85])


@pytest.mark.parametrize(
    ("sigmoid", "value_at_margin"),
    [
        *((sigmoid, value) for sigmoid in SIGMOIDS for value in (0.1, 0.6)),
        *((sigmoid, 0.0) for sigmoid in ("linear", "quadratic")),
    ],
)
def test_tolerance_is_one_minus_that_of_dm_control(sigmoid: Any, value_at_margin: float) -> None:
    x = np.linspace(-5.0, 7.0, 301)
    for low, high, margin in ((-1.0, 2.0, 1.5), (0.5, 0.5, 4.0), (1.0, math.inf, 2.0)):
        theirs = dm_control.utils.rewards.tolerance(
            x, (low, high), margin, sigmoid, value_at_margin
        )
        ours = Tolerance("x", low, high, margin, value_at_margin, sigmoid)
        found = ours({"x": torch.as_tensor(x)[:, None]}, NONE).numpy()
        np.testing.assert_allclose(found, 1 - theirs, rtol=0, atol=1e-12)


def test_jointly_by_hand() -> None:
    both = Jointly((Speed("v"), Posture("q")), (1.0, 0.5))
    # Costs 0.5 and 0.9: 1 - 0.5 * 0.55. One that costs nothing leaves the other's share.
    found = cost(both, v=[[1.0], [0.0], [1.0], [0.0]], q=[[3.0], [3.0], [0.0], [0.0]])
    assert found == pytest.approx([0.725, 0.45, 0.5, 0.0])
    assert cost(Jointly((Speed("v"),), (1.0,)), v=[[2.0]]) == cost(Speed("v"), v=[[2.0]])
    assert cost(Jointly((Speed("v"),), (0.0,)), v=[[2.0]]) == [0.0]


def test_jointly_asks_calm_only_of_what_is_upright() -> None:
    """What a sum gets wrong: the cost of speed vanishes where the other term is at its worst."""
    term = Jointly((Tolerance("q", sigmoid="linear", value_at_margin=0.0), Speed("v")), (1.0, 0.8))
    hanging = cost(term, q=[[1.0], [1.0]], v=[[0.0], [9.0]])
    upright = cost(term, q=[[0.0], [0.0]], v=[[0.0], [9.0]])
    assert hanging == [1.0, 1.0]
    assert upright[0] == 0.0
    assert upright[1] > 0.7


def test_goal_distance_by_hand() -> None:
    after = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    goal = {"goal": torch.tensor([[1.0, 4.0], [3.0, 4.0]])}
    elsewhere, t = torch.full((2, 2), 9.0), torch.arange(1)
    assert GoalDistance()(elsewhere, torch.ones(2, 1), after, goal, t).tolist() == [2.0, 12.5]


# --- what every term promises


def test_every_term_is_tried_below() -> None:
    exported = [getattr(forethought.agent, name) for name in forethought.agent.__all__]
    terms = {
        item
        for item in exported
        if isinstance(item, type) and issubclass(item, IntrinsicTerm) and item is not IntrinsicTerm
    }
    assert terms == {type(term) for term in EVERY.values()}


@pytest.mark.parametrize("term", [*EVERY.values(), Danger("x")], ids=str)
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 1e6])
def test_terms_lie_between_0_and_1(term: IntrinsicTerm, scale: float) -> None:
    quantities = {"x": draw(4, 3, 50, 3, scale=scale), "y": draw(4, 3, 50, 1, seed=1, scale=scale)}
    for kind in (torch.float64, torch.float32):
        seen = {name: value.to(kind) for name, value in quantities.items()}
        found = term(seen, draw(4, 3, 50, 2, seed=2).clamp(-1, 1).to(kind))
        assert found.shape == (4, 3, 50)
        assert found.dtype == kind
        assert bool((found >= 0).all())
        assert bool((found <= 1).all())
        assert scale != 1.0 or float(found.max() - found.min()) > 1e-3


@pytest.mark.parametrize("term", EVERY.values(), ids=str)
def test_derivatives(term: IntrinsicTerm) -> None:
    x, y, actions = draw(2, 3, 5, 3), draw(2, 3, 5, 1, seed=1), draw(2, 3, 5, 2, seed=2)

    def value(*given: Tensor) -> Tensor:
        answer = term({"x": given[0], "y": given[1]}, given[2])
        assert answer.shape == (2, 3, 5)
        return answer

    given = tuple(tensor.requires_grad_() for tensor in (x, y, actions))
    assert torch.autograd.gradcheck(value, given)
    value(*given).sum().backward()
    reads = {name.partition("[")[0] for name in term.reads}
    assert (x.grad is not None and bool(x.grad.any())) == ("x" in reads)
    assert (y.grad is not None and bool(y.grad.any())) == ("y" in reads)
    by_action = actions.grad is not None and bool(actions.grad.any())
    assert by_action == isinstance(term, Effort | Jointly)


def test_the_derivative_of_the_goal_distance() -> None:
    context = {"goal": draw(2, 1, 1, 4)}
    state, actions, after = (draw(2, 3, 5, size, seed=size) for size in (4, 2, 4))
    term, t = GoalDistance(), torch.arange(5)
    assert torch.autograd.gradcheck(
        lambda a, s: term(state, a, s, context, t), (actions, after.requires_grad_())
    )


def test_the_derivative_is_finite_in_the_centre_and_on_the_edge() -> None:
    """Where a distance is zero, a root or a quotient would give not-a-number."""
    for term in EVERY.values():
        for at in ((0.0, 0.0, 0.0), (0.1, 0.2, -0.3), (0.3, -0.2, 1.0), (1.5, 1.5, 1.5)):
            x = torch.tensor([at], requires_grad=True)
            value = term({"x": x, "y": torch.zeros(1, 1)}, torch.zeros(1, 2))
            if value.requires_grad:
                value.sum().backward()
                assert x.grad is not None
                assert bool(x.grad.isfinite().all()), (term, at)


def test_a_slope_remains_far_away() -> None:
    """`Shortfall` beyond its ends and `long_tail` lead back; a plateau would not."""
    for term in (
        Shortfall("x", worst=0.0, best=1.0),
        Tolerance("x", 1.0, sigmoid="long_tail", high=1.0),
    ):
        x = torch.tensor([[-3.0]], dtype=torch.float64, requires_grad=True)
        term({"x": x}, NONE).sum().backward()
        assert x.grad is not None
        assert float(x.grad) < -1e-6


@pytest.mark.parametrize("term", EVERY.values(), ids=str)
def test_what_is_not_a_number_stays_none(term: IntrinsicTerm) -> None:
    """A cost that hid it would let a broken roll-out win. Rows beside it are not touched."""
    x, actions = torch.full((3, 3), 0.2), torch.full((3, 2), 0.2)
    good = term({"x": x, "y": torch.full((3, 1), 0.2)}, actions)
    x[1] = actions[1] = math.nan
    bad = term({"x": x, "y": torch.full((3, 1), 0.2)}, actions)
    assert bad.isnan().tolist() == [False, True, False]
    assert torch.equal(bad[[0, 2]], good[[0, 2]])


def test_terms_read_what_they_say() -> None:
    assert Effort().reads == ()
    assert Speed("velocity").reads == ("velocity",)
    assert Tolerance("position[1]").reads == ("position[1]",)
    assert Shortfall().reads == ("reward",)
    nested = Jointly((Jointly((Speed("v[0]"), Effort()), (1.0, 1.0)), Posture("q")), (1.0, 0.5))
    assert nested.reads == ("v[0]", "q")
    bank = IntrinsicCost(
        (
            Weighted("a", Tolerance("position[1]")),
            Weighted("b", Tolerance("position[0]")),
            Weighted("c", Speed("velocity")),
            Weighted("d", nested),
            Weighted("e", Effort()),
        )
    )
    assert bank.reads == ("position", "velocity", "v", "q")


def test_a_component_is_read_by_its_index() -> None:
    seen = {"position": torch.tensor([[1.0, 20.0, 300.0]]), "position[1]": torch.zeros(1, 1)}
    for index, value in enumerate((1.0, 20.0, 300.0)):
        alone = Posture("x", scale=10.0)({"x": torch.tensor([[value]])}, NONE)
        assert torch.equal(Posture(f"position[{index}]", scale=10.0)(seen, NONE), alone)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (Speed("speed"), "quantity 'speed' is not there: use one of position, velocity"),
        (Speed("speed[0]"), "quantity 'speed' is not there: use one of position, velocity"),
        (
            Speed("position[2]"),
            r"quantity 'position\[2\]' is not there: 'position' has 2 components, from 0",
        ),
        (
            Posture("position", target=(0.0, 0.0, 0.0)),
            "target has 3 numbers, but 'position' has 2 components: give 1 or as many",
        ),
        (
            KeepOut("position", centre=(0.0,)),
            "centre has 1 numbers, but 'position' has 2 components: give as many",
        ),
    ],
)
def test_what_is_not_there_cannot_be_read(term: IntrinsicTerm, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        term({"position": torch.zeros(4, 2), "velocity": torch.zeros(4, 2)}, NONE)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Speed("v[x]"), r"quantity is 'v\[x\]': write NAME or NAME\[COMPONENT\]"),
        (lambda: Speed("v[-1]"), r"quantity is 'v\[-1\]'"),
        (lambda: Speed(""), "quantity is ''"),
        (lambda: Tolerance("x]"), r"quantity is 'x\]'"),
        (lambda: Posture("[1]"), r"quantity is '\[1\]'"),
        (lambda: KeepOut("a[1][2]"), r"quantity is 'a\[1\]\[2\]'"),
        (lambda: Shortfall("a[ 1]"), r"quantity is 'a\[ 1\]'"),
        (lambda: Tolerance("x", 2.0, 1.0), "low is 2.0 and high 1.0: choose low <= high"),
        (lambda: Tolerance("x", math.nan, 1.0), "low is nan"),
        (lambda: Tolerance("x", margin=0.0), "margin is 0.0: choose it above 0, finite"),
        (lambda: Tolerance("x", margin=math.inf), "margin is inf"),
        (lambda: Tolerance("x", margin=math.nan), "margin is nan"),
        (lambda: Tolerance("x", sigmoid="cubic"), "sigmoid is 'cubic': use one of"),  # type: ignore[arg-type]
        (
            lambda: Tolerance("x", value_at_margin=0.0),
            r"value_at_margin is 0.0: choose .* \(0, 1\)",
        ),
        (lambda: Tolerance("x", value_at_margin=1.0), "value_at_margin is 1.0"),
        (lambda: Tolerance("x", value_at_margin=-0.1, sigmoid="linear"), "value_at_margin is -0.1"),
        (lambda: Tolerance("x", value_at_margin=math.nan), "value_at_margin is nan"),
        (lambda: Speed("v", typical=0.0), "typical is 0.0: choose it above 0, finite"),
        (lambda: Speed("v", typical=math.inf), "typical is inf"),
        (lambda: Posture("q", target=()), r"target is \(\): give at least one finite number"),
        (lambda: Posture("q", target=(math.nan,)), r"target is \(nan,\)"),
        (lambda: Posture("q", scale=-1.0), "scale is -1.0: choose it above 0, finite"),
        (lambda: KeepOut("p", centre=()), r"centre is \(\): give at least one finite number"),
        (lambda: KeepOut("p", radius=0.0), "radius is 0.0: choose it above 0, finite"),
        (lambda: KeepOut("p", softness=math.nan), "softness is nan"),
        (lambda: Shortfall("r", 1.0, 1.0), "worst is 1.0 and best 1.0: choose two that differ"),
        (lambda: Shortfall("r", -math.inf, 1.0), "worst is -inf and best 1.0"),
        (lambda: Shortfall("r", 0.0, math.nan), "worst is 0.0 and best nan"),
        (lambda: Jointly((), ()), "0 shares are given for 0 terms: give one for each"),
        (lambda: Jointly((Effort(),), (1.0, 1.0)), "2 shares are given for 1 terms"),
        (lambda: Jointly((Effort(),), (1.1,)), r"shares are \(1.1,\): choose them in \[0, 1\]"),
        (lambda: Jointly((Effort(),), (math.nan,)), r"shares are \(nan,\)"),
    ],
)
def test_wrong_arguments_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# --- the bank


def test_the_bank_says_what_every_term_costs() -> None:
    action, after = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, -2.0]])
    values = SAFE.values({"state": after}, action)
    assert values.tolist() == [[0.5, 0.75]]


def test_the_bank_weighs_its_terms_and_a_new_u_weighs_them_anew() -> None:
    action, after = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, -2.0]])
    values = SAFE.values({"state": after}, action)
    for u, weighed in (((1.0, 1.0), 1.25), ((4.0, 0.5), 2.375), ((0.0, 2.0), 1.5), ((2.0, 0.0), 1)):
        assert (values * torch.tensor([u])).sum(-1).tolist() == [weighed]


def test_each_problem_has_its_own_weights() -> None:
    u = torch.tensor([[1.0], [3.0]]).view(2, 1, 1, 1)
    bank = IntrinsicCost((Weighted("effort", Effort()),))
    values = bank.values({}, torch.ones(2, 4, 5, 2))
    assert values.shape == (2, 4, 5, 1)
    costs = (u * values).sum(-1)
    assert costs[0].unique().tolist() == [1.0]
    assert costs[1].unique().tolist() == [3.0]


def test_the_bank_keeps_every_leading_axis() -> None:
    bank = IntrinsicCost(tuple(Weighted(name, term) for name, term in EVERY.items()))
    seen = {"x": draw(2, 3, 5, 3), "y": draw(2, 3, 5, 1)}
    actions = draw(2, 3, 5, 2).clamp(-1, 1)
    values = bank.values(seen, actions)
    assert values.shape == (2, 3, 5, len(EVERY))
    for index, term in enumerate(EVERY.values()):
        assert torch.equal(values[..., index], term(seen, actions))
    alone = bank.values({name: q[1:, :1] for name, q in seen.items()}, actions[1:, :1])
    assert torch.equal(alone, values[1:, :1])


def test_the_bank_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        SAFE.terms = ()  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        SAFE.terms[0].floor = 3.0  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        SAFE.terms[0].name = "ease"  # type: ignore[misc]
    with pytest.raises(TypeError, match="tuple"):
        IntrinsicCost([Weighted("effort", Effort())])  # type: ignore[arg-type]
    with pytest.raises(FrozenInstanceError):
        SAFE.terms[1].term.limit = 100.0  # type: ignore[attr-defined]
    for term in EVERY.values():
        for name in vars(term):
            with pytest.raises(FrozenInstanceError):
                setattr(term, name, 0.0)


def test_lists_become_tuples() -> None:
    """A list in a term could be changed behind the bank's back; YAML gives lists."""
    target = [1.0, 2.0]
    term = Posture("q", target=target)  # type: ignore[arg-type]
    target[0] = 9.0
    assert term.target == (1.0, 2.0)
    assert KeepOut("q", centre=[1.0]).centre == (1.0,)  # type: ignore[arg-type]
    both = Jointly([Effort()], [0.5])  # type: ignore[arg-type]
    assert (both.terms, both.shares) == ((Effort(),), (0.5,))


def test_the_bank_holds_no_parameter() -> None:
    bank = IntrinsicCost(
        (*SAFE.terms, *(Weighted(name, term) for name, term in EVERY.items() if name != "effort"))
    )
    assert not isinstance(bank, torch.nn.Module)
    held = [bank, *bank.terms, *(weighted.term for weighted in bank.terms)]
    values = [value for item in held for value in vars(item).values()]
    assert not any(isinstance(value, torch.Tensor | torch.nn.Module) for value in values)


def test_weights_by_name_and_floors_where_none_is_named() -> None:
    assert SAFE.names == ("effort", "danger")
    assert SAFE.weights({"danger": 1.5, "effort": 0.25}).tolist() == [0.25, 1.5]
    assert SAFE.weights({"effort": 3.0}).tolist() == [3.0, 0.5]
    assert SAFE.weights({}).tolist() == [0.0, 0.5]
    assert SAFE.weights({"effort": 10.0, "danger": 2.0}).tolist() == [10.0, 2.0]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"danger": 0.0}, r"'danger' is 0.0: choose it in \[0.5, 2.0\]"),
        ({"danger": 2.1}, r"'danger' is 2.1: choose it in \[0.5, 2.0\]"),
        ({"effort": -0.1}, r"'effort' is -0.1: choose it in \[0.0, 10.0\]"),
        ({"effort": float("nan")}, r"'effort' is nan"),
        ({"comfort": 1.0}, r"\['comfort'\], but the bank has \['effort', 'danger'\]"),
    ],
)
def test_weights_outside_of_their_interval_are_refused(
    chosen: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SAFE.weights(chosen)


@pytest.mark.parametrize(
    "bounds", [(-1.0, 1.0), (2.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)]
)
def test_impossible_intervals_are_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"term 'effort' has floor .* 0 <= floor <= ceiling"):
        Weighted("effort", Effort(), *bounds)


def test_two_terms_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['a', 'a'\]: give each its own name"):
        IntrinsicCost((Weighted("a", Effort()), Weighted("a", Speed("v"))))


def test_the_fingerprint_covers_terms_and_bounds() -> None:
    effort, danger = SAFE.terms

    def holding(term: IntrinsicTerm) -> IntrinsicCost:
        return IntrinsicCost((effort, replace(danger, term=term)))

    banks = [
        SAFE,
        IntrinsicCost((effort,)),
        IntrinsicCost((danger, effort)),
        IntrinsicCost((effort, replace(danger, name="peril"))),
        IntrinsicCost((effort, replace(danger, floor=0.4))),
        IntrinsicCost((effort, replace(danger, ceiling=3.0))),
        holding(Danger(limit=2.0)),
        holding(Danger("position")),
        holding(Tolerance("x")),
        holding(Tolerance("x[0]")),
        holding(Tolerance("x", sigmoid="linear")),
        holding(Speed("x")),
        holding(Posture("x")),
        holding(Posture("x", (1.0,))),
        holding(Jointly((Effort(), Speed("x")), (1.0, 1.0))),
        holding(Jointly((Speed("x"), Effort()), (1.0, 1.0))),
        holding(Jointly((Effort(), Speed("x")), (1.0, 0.5))),
    ]
    assert len({bank.fingerprint() for bank in banks}) == len(banks)
    assert IntrinsicCost(SAFE.terms).fingerprint() == SAFE.fingerprint()


def test_a_class_of_the_same_name_has_another_fingerprint() -> None:
    @dataclass(frozen=True)
    class Effort(IntrinsicTerm):
        def __call__(self, quantities: Any, action: Tensor) -> Tensor:
            return 0 * action.mean(-1)

    Effort.__qualname__ = "Effort"
    fake = IntrinsicCost((Weighted("effort", Effort()),))
    real = IntrinsicCost((Weighted("effort", EVERY["effort"]),))
    assert repr(fake) == repr(real)
    assert fake.fingerprint() != real.fingerprint()


def test_the_fingerprint_is_the_same_in_another_process() -> None:
    code = (
        "from forethought.agent import *; print(IntrinsicCost((Weighted('a', Effort()), "
        "Weighted('b', Posture('q[1]', (0.1,)), 0.5, 2.0))).fingerprint())"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    here = IntrinsicCost(
        (Weighted("a", Effort()), Weighted("b", Posture("q[1]", (0.1,)), 0.5, 2.0))
    )
    assert told.stdout.strip() == here.fingerprint()


# --- immutable in fact


@dataclass(frozen=True)
class Holding(IntrinsicTerm):
    """A stranger's term that holds anything, and returns `factor` times the mean action."""

    held: Any = None
    factor: float = 1.0

    def __call__(self, quantities: Mapping[str, Tensor], action: Tensor) -> Tensor:
        return self.factor * action.mean(-1)


@dataclass(frozen=True)
class Quiet(IntrinsicTerm):
    """A stranger's term whose representation hides what it holds."""

    hidden: float = field(default=1.0, repr=False)

    def __call__(self, quantities: Mapping[str, Tensor], action: Tensor) -> Tensor:
        return self.hidden * action.square().mean(-1)


@dataclass(frozen=True)
class Shares:
    """A record inside of a term."""

    of: Any = (0.5, 0.5)


@dataclass
class Thawed(IntrinsicTerm):
    limit: float = 1.0

    def __call__(self, quantities: Mapping[str, Tensor], action: Tensor) -> Tensor:
        return 0 * action.mean(-1)


@dataclass(frozen=True, eq=False)
class Learned(nn.Module, IntrinsicTerm):
    def __post_init__(self) -> None:
        nn.Module.__init__(self)

    def __call__(self, quantities: Mapping[str, Tensor], action: Tensor) -> Tensor:
        return 0 * action.mean(-1)


class Undecorated(Effort):
    """Inherits from a frozen record, and takes new attributes all the same."""


@dataclass(frozen=True)
class WithNetwork(IntrinsicTerm):
    net = nn.Linear(2, 1)

    def __call__(self, quantities: Mapping[str, Tensor], action: Tensor) -> Tensor:
        found: Tensor = self.net(action).squeeze(-1)
        return found


def bank_of(term: Any) -> IntrinsicCost:
    return IntrinsicCost((Weighted("mine", term, 0.5, 2.0),))


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (lambda: Holding([1.0]), r"term 'mine'\.held is a list, .*: choose numbers, strings, or"),
        (lambda: Holding({"a": 1.0}), r"term 'mine'\.held is a dict, which could be changed"),
        (lambda: Holding({1.0}), r"term 'mine'\.held is a set, which"),
        (lambda: Holding(np.ones(2)), r"term 'mine'\.held is a ndarray, which"),
        (lambda: Holding(torch.ones(2)), r"term 'mine'\.held is a Tensor, which"),
        (lambda: Holding(math.sin), r"term 'mine'\.held is a builtin_function_or_method, which"),
        (lambda: Holding((1.0, (2.0, [3.0]))), r"term 'mine'\.held\[1\]\[1\] is a list"),
        (lambda: Holding(Shares([0.5])), r"term 'mine'\.held\.of is a list"),
        (lambda: Holding(nn.Linear(2, 1)), r"held is the module Linear: .* learns nothing; choose"),
        (lambda: Holding(nn.Parameter(torch.ones(1))), "held is a tensor that requires grad"),
        (
            lambda: Holding(torch.ones(1, requires_grad=True)),
            "tensor that requires grad: .* learns nothing; choose a tuple of numbers",
        ),
        (
            lambda: Jointly((Effort(), Holding([1.0])), (1.0, 1.0)),
            r"term 'mine'\.terms\[1\]\.held is a list",
        ),
        (lambda: Thawed(), r"'mine' is of the class Thawed, .*: choose @dataclass\(frozen=True\)"),
        (lambda: Holding(Thawed()), r"term 'mine'\.held is of the class Thawed"),
        (lambda: Undecorated(), "term 'mine' is an? Undecorated, which could be changed"),
        (lambda: WithNetwork(), r"term 'mine'\.net is the module Linear"),
    ],
)
def test_what_could_be_trained_or_changed_is_refused(
    term: Callable[[], IntrinsicTerm], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bank_of(term())


def test_a_term_that_is_a_module_is_refused() -> None:
    term = object.__new__(Learned)
    with pytest.raises(ValueError, match=r"term 'mine' is the module Learned: .* learns nothing"):
        bank_of(term)


def test_what_hides_beside_the_fields_is_refused() -> None:
    term = Holding()
    object.__setattr__(term, "cache", {})
    with pytest.raises(ValueError, match=r"term 'mine'\.cache is a dict"):
        bank_of(term)


def test_what_is_no_term_is_refused() -> None:
    with pytest.raises(TypeError, match="term 'mine' is 3: choose an instance of a subclass of"):
        bank_of(3)
    with pytest.raises(TypeError, match=r"terms hold Effort\(\): choose Weighted\(name, term\)"):
        IntrinsicCost((Effort(),))  # type: ignore[arg-type]


def test_numbers_names_and_frozen_records_are_taken() -> None:
    for held in (None, 1, 2.5, True, "x", (1, ("y", None)), Shares(), Effort(), np.float64(0.5)):
        assert bank_of(Holding(held)).terms[0].term.held is held  # type: ignore[attr-defined]


def test_no_parameter_can_be_registered() -> None:
    for item in (SAFE, SAFE.terms[0], SAFE.terms[0].term):
        assert not hasattr(item, "register_parameter")
        with pytest.raises((FrozenInstanceError, TypeError)):
            item.weight = nn.Parameter(torch.ones(1))  # type: ignore[union-attr]
        with pytest.raises((FrozenInstanceError, TypeError)):
            del item.terms  # type: ignore[union-attr]


def test_weights_are_a_copy_that_trains_nothing() -> None:
    u = SAFE.weights({"danger": 1.0})
    assert not u.requires_grad
    before = SAFE.fingerprint()
    u.requires_grad_()
    values = SAFE.values({"state": torch.tensor([[3.0]])}, torch.ones(1, 2))
    (u * values).sum().backward()
    with torch.no_grad():
        u -= 10 * u.grad  # type: ignore[operator]
    assert u.tolist() != SAFE.weights({"danger": 1.0}).tolist() == [0.0, 1.0]
    assert SAFE.fingerprint() == before


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    for name in SAFE.names:
        with pytest.raises(ValueError, match=rf"'{name}' is {value}: choose it in \["):
            SAFE.weights({name: value})


def test_values_are_bounded_in_fact() -> None:
    bank = bank_of(Holding(factor=3.0))
    actions = torch.tensor([[0.1], [1.0], [-1.0], [math.nan]], requires_grad=True)
    values = bank.values({}, actions)
    assert values[:3, 0].tolist() == pytest.approx([0.3, 1.0, 0.0])
    assert bool(values[3].isnan())
    values[:3].sum().backward()
    assert actions.grad is not None
    assert actions.grad[:3, 0].tolist() == [3.0, 0.0, 0.0]


def test_at_its_bounds_a_term_keeps_its_slope() -> None:
    """The best and the worst value are reached, and a gradient must lead away from the worst."""
    actions = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    IntrinsicCost((Weighted("effort", Effort()),)).values({}, actions).sum().backward()
    assert actions.grad is not None
    assert actions.grad.tolist() == [[2.0], [-2.0]]


def test_terms_are_held_against_real_data() -> None:
    actions = torch.tensor([[0.1], [0.9]])
    SAFE.check({"state": torch.tensor([[0.0], [99.0]])}, actions)
    with pytest.raises(ValueError, match=r"'mine' lies in \[0.3, 2.7\] on real data: scale it"):
        bank_of(Holding(factor=3.0)).check({}, actions)
    with pytest.raises(ValueError, match=r"'mine' lies in \[-0.9, -0.1\] on real data"):
        bank_of(Holding(factor=-1.0)).check({}, actions)
    with pytest.raises(ValueError, match=r"'mine' lies in \[nan, nan\]"):
        bank_of(Holding(factor=math.nan)).check({}, actions)


def test_unknown_rows_are_not_held_against_a_term() -> None:
    wild = bank_of(Danger("x"))
    wild.check({"x": torch.tensor([[math.nan], [0.5]])}, torch.zeros(2, 1))
    wild.check({"x": torch.full((2, 1), math.nan)}, torch.zeros(2, 1))


# --- the fingerprint, with what the bank reads through


def readouts_of(seed: int = 0, **sizes: int) -> Readouts:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Readouts(3, sizes or {"x": 2, "y": 1}, hidden=4)


def encoder_of(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(5, 3)


READS_X = IntrinsicCost((Weighted("speed", Speed("x[1]")), Weighted("effort", Effort())))


def test_the_fingerprint_of_a_packaged_bank_stays() -> None:
    """Checkpoints hold it: it may change only together with a new format."""
    bank = IntrinsicCost((Weighted("effort", Effort()),))
    assert bank.fingerprint() == (
        "0ad2265a4cccdbe8ee090f682fe55b24428bf4fb33b524b94ab950952475d822"
    )


def test_the_fingerprint_covers_nested_classes() -> None:
    @dataclass(frozen=True)
    class Effort(IntrinsicTerm):
        def __call__(self, quantities: Any, action: Tensor) -> Tensor:
            return 0 * action.mean(-1)

    Effort.__qualname__ = "Effort"
    banks = [bank_of(Jointly((term,), (1.0,))) for term in (EVERY["effort"], Effort())]
    assert repr(banks[0]) == repr(banks[1])
    assert banks[0].fingerprint() != banks[1].fingerprint()
    deeper = [
        bank_of(Jointly((Jointly((t,), (1.0,)),), (1.0,))) for t in (Effort(), EVERY["effort"])
    ]
    assert deeper[0].fingerprint() != deeper[1].fingerprint()


def test_the_fingerprint_tells_strangers_of_one_name_apart() -> None:
    def from_module(module: str) -> IntrinsicTerm:
        @dataclass(frozen=True)
        class Mine(IntrinsicTerm):
            def __call__(self, quantities: Any, action: Tensor) -> Tensor:
                return 0 * action.mean(-1)

        Mine.__module__, Mine.__qualname__ = module, "Mine"
        return Mine()

    banks = [bank_of(Jointly((from_module(module),), (1.0,))) for module in ("one", "two")]
    assert repr(banks[0]) == repr(banks[1])
    assert banks[0].fingerprint() != banks[1].fingerprint()


def test_the_fingerprint_covers_what_a_representation_hides() -> None:
    one, other = bank_of(Quiet(1.0)), bank_of(Quiet(0.5))
    assert repr(one) == repr(other)
    assert one.fingerprint() != other.fingerprint()
    nested = [bank_of(Jointly((Quiet(value),), (1.0,))) for value in (1.0, 0.5)]
    assert nested[0].fingerprint() != nested[1].fingerprint()
    assert bank_of(Holding("1")).fingerprint() != bank_of(Holding(1)).fingerprint()


def test_tampering_past_the_refusals_shows() -> None:
    term = Holding((1.0,))
    bank = bank_of(term)
    before = bank.fingerprint()
    object.__setattr__(term, "factor", 0.5)
    assert bank.fingerprint() != before
    object.__setattr__(term, "factor", 1.0)
    assert bank.fingerprint() == before
    object.__setattr__(bank.terms[0], "floor", 0.0)
    assert bank.fingerprint() != before


def test_the_fingerprint_covers_readouts_and_encoder() -> None:
    def found(**networks: Any) -> str:
        given = {"readouts": readouts_of(), "perception": encoder_of()} | networks
        return READS_X.fingerprint(**given)

    fingerprints = [
        READS_X.fingerprint(),
        found(),
        found(readouts=readouts_of(1)),
        found(perception=encoder_of(1)),
        found(readouts=readouts_of(y=1, x=2)),
        found(readouts=readouts_of(x=1, y=2)),
    ]
    assert len(set(fingerprints)) == len(fingerprints)
    assert found() == fingerprints[1]
    touched = readouts_of()
    touched.std[0] = torch.nextafter(touched.std[0], torch.tensor(2.0))
    assert found(readouts=touched) != found()


def test_only_what_is_read_counts() -> None:
    networks = {"readouts": readouts_of(), "perception": encoder_of()}
    blind = IntrinsicCost((Weighted("effort", Effort()),))
    assert blind.fingerprint(**networks) == blind.fingerprint()  # type: ignore[arg-type]
    # SAFE reads the latent state alone: the encoder counts, the readouts do not.
    through = SAFE.fingerprint(perception=encoder_of())
    assert through != SAFE.fingerprint()
    assert SAFE.fingerprint(readouts=readouts_of(7), perception=encoder_of()) == through
    assert SAFE.fingerprint(perception=encoder_of(1)) != through


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ({"readouts": readouts_of()}, "perception is None, but the cost reads x: choose"),
        ({"perception": encoder_of()}, "readouts is None, but the cost reads x: choose"),
        (
            {"readouts": readouts_of(y=1), "perception": encoder_of()},
            "the cost reads x, but the readouts tell y: choose",
        ),
    ],
)
def test_networks_that_are_not_those_read_are_refused(
    networks: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        READS_X.fingerprint(**networks)


def test_training_may_not_touch_what_the_cost_reads() -> None:
    readouts, encoder = readouts_of(), encoder_of()
    networks: dict[str, Any] = {"readouts": readouts, "perception": encoder}
    before = READS_X.fingerprint(**networks)
    with READS_X.unchanged("distill", **networks):
        pass
    with (
        pytest.raises(
            RuntimeError,
            match=rf"distill changed the intrinsic cost, .*{before[:12]} before, .*: keep",
        ),
        READS_X.unchanged("distill", **networks),
    ):
        next(iter(readouts.layers.parameters())).data.add_(1e-3)
    with pytest.raises(ZeroDivisionError), READS_X.unchanged("distill", **networks):
        raise ZeroDivisionError  # what went wrong inside is what is told
