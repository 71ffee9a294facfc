"""The recurrent belief: its arithmetic, the gain it must find, and blanks it sees through."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from test_perception import dict_spec, image_spec, vector_spec
from torch import Tensor, nn

from forethought.envs import EnvSpec
from forethought.worldmodel import (
    JEPA,
    Actions,
    ImagePerception,
    LatentData,
    MixedPerception,
    Perception,
    Predictor,
    ResidualMLP,
    VectorPerception,
    fit,
)
from forethought.worldmodel.belief import (
    BeliefStage,
    Correction,
    draw_blanks,
    encoded_blank,
    is_normalised,
    track,
    train_belief,
)

STAGE = BeliefStage(steps=250, batch=64, window=10, longest=6, learning_rate=2e-2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Seen(Perception):
    """The state is the observation."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.latent_dim = size
        self.gain = nn.Parameter(torch.ones(size))

    def forward(self, observation: Any) -> Tensor:
        return self.gain * observation  # type: ignore[no-any-return]

    def standardise_by(self, statistics: Any) -> None:
        raise NotImplementedError


class Linear(Predictor):
    """s' = A s + B a, exact."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.action_dim = b.shape[1]
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(
        self, state: Tensor, action: Tensor, latent: Any = None, context: Any = None
    ) -> Tensor:
        return state @ self.a.T + action @ self.b.T


# A point on a circle of radius 2, which an action turns a little: zero is no state of it.
TURN = torch.tensor([[0.92, -0.38], [0.38, 0.92]]) / 0.9954
PUSH = torch.tensor([[0.05, 0.0], [0.0, 0.05]])


def circle(correction: Correction | None = None, *, discrete: bool = False) -> JEPA:
    return JEPA(Seen(2), Linear(TURN, PUSH), Actions(2, discrete=discrete), correction)


def correction_of(size: int = 2, seed: int = 0, **options: Any) -> Correction:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Correction(size, **options)


def episodes(
    count: int = 40,
    length: int = 20,
    *,
    disturbance: float = 0.02,
    discrete: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """States `(E, T+1, 2)` of the circle with a disturbance nobody predicts, and actions."""
    generator = seeded(seed)
    angle = 6.3 * torch.rand(count, generator=generator)
    state = 2 * torch.stack((angle.cos(), angle.sin()), dim=1)
    actions = torch.rand(count, length, 2, generator=generator) * 2 - 1
    index = torch.randint(2, (count, length), generator=generator)
    taken = nn.functional.one_hot(index, 2).float() if discrete else actions
    states = [state]
    for step in range(length):
        noise = disturbance * torch.randn(count, 2, generator=generator)
        states.append(states[-1] @ TURN.T + taken[:, step] @ PUSH.T + noise)
    return torch.stack(states, dim=1), index if discrete else actions


def latents(states: Tensor, actions: Tensor) -> LatentData:
    count, length = actions.shape[:2]
    padded = torch.cat((actions, torch.zeros_like(actions[:, :1])), dim=1)
    remaining = torch.arange(length, -1, -1).repeat(count)
    return LatentData(
        states.flatten(0, 1), padded.flatten(0, 1), remaining, torch.zeros(len(remaining)) > 0
    )


def errors_at_blanks(model: JEPA, *, discrete: bool = False) -> tuple[float, float, float]:
    """Mean squares of belief, memoryless and open loop, at 5 blanks of episodes not trained on."""
    states, actions = episodes(seed=9, discrete=discrete)
    encoded = states.clone()
    encoded[:, 8:13] = 0
    with torch.no_grad():
        belief = track(model, encoded, actions)
        imagined = model.rollout(states[:, 7], actions[:, 7:12])
    true = states[:, 8:13]
    found = (belief[:, 8:13], encoded[:, 8:13], imagined)
    mean = [float((state - true).square().mean()) for state in found]
    return mean[0], mean[1], mean[2]


# ---- arithmetic ---------------------------------------------------------------------------------


def test_the_update_by_hand() -> None:
    correction = correction_of()
    with torch.no_grad():
        for parameter in correction.parameters():
            parameter.normal_(0, 0.3, generator=seeded())
    model = circle(correction)
    belief, action, x = (torch.randn(3, 2, generator=seeded(s)) for s in (1, 2, 3))
    prior = belief @ TURN.T + action @ PUSH.T
    gate = correction.gate(prior, x)
    assert ((gate > 0) & (gate < 1)).all()
    assert gate.std() > 0.05  # each dimension and row has its own
    expected = (1 - gate) * prior + gate * x
    torch.testing.assert_close(model.update(belief, action, x), expected)
    torch.testing.assert_close(model.observe(belief, action, x), expected)


def test_the_ends_of_the_gate_are_prediction_and_observation() -> None:
    correction = correction_of()
    model, last = circle(correction), correction.layers[-1]
    belief, action, x = (torch.randn(3, 2, generator=seeded(s)) for s in (1, 2, 3))
    with torch.no_grad():
        last.bias.fill_(-40)
    torch.testing.assert_close(model.update(belief, action, x), model.predict(belief, action))
    with torch.no_grad():
        last.bias.fill_(40)
    torch.testing.assert_close(model.update(belief, action, x), x)


def test_an_untrained_correction_trusts_the_observation() -> None:
    gate = correction_of(5).gate(torch.randn(4, 5), 9 * torch.randn(4, 5))
    assert ((gate > 0.95) & (gate < 1)).all()


def test_an_episode_begins_with_what_is_seen() -> None:
    model, x = circle(correction_of()), torch.randn(3, 2)
    assert torch.equal(model.observe(None, None, x), x)
    assert torch.equal(model.observe(torch.zeros(3, 2), None, x), x)


def test_a_normalised_belief_stays_on_the_sphere() -> None:
    norm = nn.LayerNorm(6, elementwise_affine=False)
    prior, encoded = (norm(torch.randn(4, 6, generator=seeded(s))) for s in (1, 2))
    plain, kept = correction_of(6), correction_of(6, normalise=True)
    for correction in (plain, kept):
        last = correction.layers[-1]
        with torch.no_grad():
            last.bias.zero_()
    assert (plain(prior, encoded).var(-1, unbiased=False) < 0.9).all()
    belief = kept(prior, encoded)
    torch.testing.assert_close(belief.mean(-1), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(belief.var(-1, unbiased=False), torch.ones(4), atol=1e-3, rtol=0)


@pytest.mark.parametrize("normalise", [False, True])
def test_which_encoders_are_normalised(normalise: bool) -> None:
    torch.manual_seed(0)
    vector, image, both = vector_spec(3), image_spec(2, 16, 16), dict_spec()
    assert is_normalised(VectorPerception(vector, normalise=normalise), vector) is normalise
    assert is_normalised(ImagePerception(image, normalise=normalise), image) is normalise
    assert is_normalised(MixedPerception(both, normalise=normalise), both) is normalise


def test_names_of_weights_without_a_correction_stay() -> None:
    bare, with_one = circle(), circle(correction_of())
    assert set(bare.state_dict()) == {"perception.gain", "predictor.a", "predictor.b"}
    extra = set(with_one.state_dict()) - set(bare.state_dict())
    assert extra
    assert all(name.startswith("correction.") for name in extra)


def test_a_correction_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="state_dim is 3: choose the encoder's 2"):
        circle(correction_of(3))


# ---- tracking -----------------------------------------------------------------------------------


@pytest.mark.parametrize("discrete", [False, True])
def test_tracking_is_a_loop_over_observe(discrete: bool) -> None:
    model = circle(correction_of(), discrete=discrete)
    states, actions = episodes(3, 4, discrete=discrete)
    beliefs = track(model, states, actions)
    belief, previous = None, None
    for step in range(5):
        belief = model.observe(belief, previous, states[:, step])
        assert torch.equal(beliefs[:, step], belief)
        previous = actions[:, step] if step < 4 else None
    assert torch.equal(track(circle(discrete=discrete), states, actions), states)  # memoryless


def test_rows_do_not_leak() -> None:
    correction = correction_of()
    with torch.no_grad():
        for parameter in correction.parameters():
            parameter.normal_(generator=seeded())
    model, (states, actions) = circle(correction), episodes(4, 5)
    together = track(model, states, actions)
    for row in range(4):
        alone = track(model, states[row : row + 1], actions[row : row + 1])
        torch.testing.assert_close(alone[0], together[row])


def test_derivatives_through_time() -> None:
    correction = correction_of()
    with torch.no_grad():
        correction.layers[-1].weight.normal_(generator=seeded())
        correction.layers[-1].bias.zero_()
    model = circle(correction).double()
    states, actions = (x.double().requires_grad_() for x in episodes(2, 3))
    assert torch.autograd.gradcheck(lambda s, a: track(model, s, a), (states, actions))
    track(model, states, actions)[:, -1].square().sum().backward()
    for name, parameter in model.named_parameters():
        if name != "perception.gain":  # encoded already
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    assert states.grad is not None
    assert (states.grad.abs().sum(-1) > 0).all()  # all observations reach the last belief


# ---- blanks -------------------------------------------------------------------------------------


def test_blanks_are_one_run_that_is_not_too_long_and_never_first() -> None:
    stage = replace(STAGE, probability=0.5, longest=4)
    hidden = draw_blanks(4000, 10, stage, seeded())
    assert hidden.shape == (4000, 11)
    assert not hidden[:, 0].any()
    number = hidden.sum(1)
    changes = (hidden[:, 1:] != hidden[:, :-1]).sum(1)
    assert (changes[number > 0] <= 2).all()
    assert set(number.tolist()) == {0, 1, 2, 3, 4}
    assert 0.46 < float((number > 0).float().mean()) < 0.54
    assert hidden[:, 1:].any(0).all()  # everywhere else
    whole = hidden[:, 1] & (number > 0)  # runs that no end cuts short: all lengths alike
    shares = torch.bincount(number[whole], minlength=5)[1:] / whole.sum()
    assert shares.min() > 0.15
    assert not draw_blanks(50, 10, replace(stage, probability=0), seeded()).any()
    assert draw_blanks(50, 10, replace(stage, probability=1), seeded()).any(1).all()


def test_blank_observations_are_encoded_of_every_kind() -> None:
    torch.manual_seed(0)
    vector = JEPA(VectorPerception(vector_spec(3), latent_dim=4), ResidualMLP(4, 2))
    vector.perception.standardise_by((np.ones(3, np.float32), np.full(3, 2.0, np.float32)))
    assert torch.equal(encoded_blank(vector, vector_spec(3)), vector.encode(torch.zeros(3)))
    spec = image_spec(2, 16, 16)
    image = JEPA(ImagePerception(spec, latent_dim=4), ResidualMLP(4, 2))
    zeros = torch.zeros(2, 16, 16, dtype=torch.uint8)
    torch.testing.assert_close(encoded_blank(image, spec), image.encode(zeros))
    mixed = JEPA(MixedPerception(dict_spec(), latent_dim=4), ResidualMLP(4, 2))
    parts = {"camera.left": zeros, "speed": torch.zeros(3)}
    found = encoded_blank(mixed, dict_spec())
    torch.testing.assert_close(found, mixed.encode(parts))
    assert not found.requires_grad


# ---- learning -----------------------------------------------------------------------------------


@pytest.mark.parametrize("discrete", [False, True])
def test_a_trained_belief_sees_through_blanks(discrete: bool) -> None:
    model = circle(correction_of(), discrete=discrete)
    before, memoryless, open_loop = errors_at_blanks(model, discrete=discrete)
    assert before > 0.5 * memoryless  # it is the training that does it
    data = latents(*episodes(discrete=discrete))
    train_belief(model, data, torch.zeros(2), STAGE, seeded())
    belief, memoryless, open_loop = errors_at_blanks(model, discrete=discrete)
    assert 1e-4 < open_loop < 0.01 * memoryless  # the disturbance adds up
    assert belief < 0.005 * memoryless
    assert belief < 3 * open_loop
    # And with open eyes it does not go on imagining.
    states, actions = episodes(seed=9, discrete=discrete)
    with torch.no_grad():
        seen = track(model, states, actions)
    assert float((seen - states).square().mean()) < 0.1 * open_loop


def test_a_wrong_belief_is_put_right() -> None:
    model = circle(correction_of())
    train_belief(model, latents(*episodes()), torch.zeros(2), STAGE, seeded())
    states, actions = episodes(seed=9)
    with torch.no_grad():
        found = model.update(-states[:, 0], actions[:, 0], states[:, 1])
    wrong = float((2 * states[:, 1]).square().mean())
    assert float((found - states[:, 1]).square().mean()) < 0.05 * wrong


def test_the_gate_learns_the_kalman_gain() -> None:
    """A random walk s' = 0.9 s + w seen as x = s + v: the best gain is the Riccati equation's."""
    a, q, r = 0.9, 0.3**2, 0.4**2
    var = q
    for _ in range(100):
        predicted = a * a * var + q
        gain = predicted / (predicted + r)
        var = (1 - gain) * predicted
    assert 0.3 < gain < 0.6  # far from where it begins
    correction = correction_of(1)
    model = JEPA(Seen(1), Linear(torch.tensor([[a]]), torch.tensor([[0.0]])), None, correction)
    generator = seeded()

    def walks(count: int) -> tuple[Tensor, Tensor]:
        states = [torch.zeros(count, 1)]
        for _ in range(10):
            states.append(a * states[-1] + q**0.5 * torch.randn(count, 1, generator=generator))
        true = torch.stack(states, dim=1)
        return true, true + r**0.5 * torch.randn(true.shape, generator=generator)

    def error(count: int) -> Tensor:
        true, seen = walks(count)
        beliefs = track(model, seen, torch.zeros(count, 10, 1))
        return (beliefs - true)[:, 6:].square().mean()

    fit(
        correction.parameters(),
        lambda: (error(256), {}),
        steps=150,
        learning_rate=3e-2,
    )
    with torch.no_grad():
        true, seen = walks(2000)
        beliefs = track(model, seen, torch.zeros(2000, 10, 1))
        gates = correction.gate(a * beliefs[:, -2], seen[:, -1])
        reached = float((beliefs - true)[:, 6:].square().mean())
    assert float(gates.mean()) == pytest.approx(gain, abs=0.05)
    assert reached == pytest.approx(var, rel=0.06)


def test_nothing_else_learns() -> None:
    model = circle(correction_of())
    before = copy.deepcopy(model.state_dict())
    train_belief(model, latents(*episodes()), torch.zeros(2), replace(STAGE, steps=3), seeded())
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]) != name.startswith("correction."), name
    for part in (model.perception, model.predictor):
        for parameter in part.parameters():
            assert parameter.grad is None
            assert parameter.requires_grad


def test_what_was_frozen_stays_frozen() -> None:
    model = circle(correction_of())
    model.predictor.requires_grad_(False)
    train_belief(model, latents(*episodes()), torch.zeros(2), replace(STAGE, steps=1), seeded())
    assert not any(p.requires_grad for p in model.predictor.parameters())
    correction = model.correction
    assert correction is not None
    assert all(p.requires_grad for p in correction.parameters())


def test_twin_trainings_are_equal_and_logged() -> None:
    logs: list[list[dict[str, float]]] = [[], []]
    for log in logs:
        model = circle(correction_of())
        train_belief(
            model,
            latents(*episodes(length=7)),  # shorter than the window
            torch.zeros(2),
            replace(STAGE, steps=60),
            seeded(),
            on_step=lambda step, terms, log=log: log.append(terms),
        )
    assert len(logs[0]) == 2
    for one, other in zip(*logs, strict=True):
        assert {"loss", "blank", "seen"} <= set(one)
        assert all(one[name] == other[name] for name in ("loss", "blank", "seen"))


def test_no_steps_do_nothing() -> None:
    model = circle(correction_of())
    before = copy.deepcopy(model.state_dict())
    train_belief(model, latents(*episodes()), torch.zeros(2), replace(STAGE, steps=0), seeded())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", -1, "belief.steps is -1: choose 0 or more"),
        ("batch", 0, "belief.batch is 0: choose 1 or more"),
        ("window", 0, "belief.window is 0: choose 1 or more"),
        ("longest", 0, "belief.longest is 0: choose 1 or more"),
        ("probability", 1.5, "belief.probability is 1.5: choose it between 0 and 1"),
        ("probability", float("nan"), "belief.probability is nan: choose it between"),
        ("learning_rate", 0.0, "belief.learning_rate is 0.0: choose it above 0, finite"),
    ],
)
def test_wrong_stages_are_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(STAGE, **{field: value})


def test_what_cannot_be_trained_is_refused() -> None:
    data = latents(*episodes(3))
    with pytest.raises(ValueError, match=r"correction is None: choose Correction"):
        train_belief(circle(), data, torch.zeros(2), STAGE, seeded())
    with pytest.raises(ValueError, match=r"blank has shape \(1, 2\): choose \(2,\)"):
        train_belief(circle(correction_of()), data, torch.zeros(1, 2), STAGE, seeded())


def test_observations_of_other_kinds_have_no_blank() -> None:
    spec = EnvSpec("test/Odd-v0", spaces.Discrete(3), spaces.Box(-1, 1, (2,), np.float32), 0.1, 5)
    with pytest.raises(ValueError, match=r"Discrete\(3\).*use Box or Dict of Box"):
        encoded_blank(circle(), spec)
