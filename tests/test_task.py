"""Tasks: what may be asked for, what is made of rewards, and YAML that comes back the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

import forethought.agent
from forethought.agent import (
    REACH,
    Effort,
    IntrinsicTerm,
    Jointly,
    KeepOut,
    Posture,
    Shortfall,
    Speed,
    Task,
    TaskTerm,
    Tolerance,
    task_from_reward,
)
from forethought.parser import packaged_tasks
from forethought.tasks import read_task, task_for, task_yaml

EVERY: dict[str, TaskTerm] = {
    "effort": TaskTerm(Effort(), weight=0.5, floor=0.1, ceiling=2.0),
    "tolerance": TaskTerm(Tolerance("position[1]", -1.0, 2.0, 3.0, 0.2, "tanh_squared"), 3.0),
    "speed": TaskTerm(Speed("velocity", typical=2.5), weight=0.0),
    "posture": TaskTerm(Posture("position", (1.0, -2.0), 0.5)),
    "keep_out": TaskTerm(KeepOut("position", (0.0, 1e-3), 0.5, 0.2), floor=0.5),
    "shortfall": TaskTerm(Shortfall("reward", worst=1.0, best=-2.0)),
    "jointly": TaskTerm(
        Jointly((Jointly((Effort(), Speed("v[0]")), (1.0, 0.5)), Posture("q")), (0.25, 1.0))
    ),
}


@dataclass(frozen=True)
class Mine(IntrinsicTerm):
    """A term from outside of forethought."""

    bound: float = 1.0

    def __call__(self, quantities: Mapping[str, Tensor], action: Tensor) -> Tensor:
        return (action.abs().mean(-1) / self.bound).clamp_max(1)


def written(path: Path, content: str | Task) -> str:
    path.write_text(task_yaml(content) if isinstance(content, Task) else content)
    return str(path)


# --- tasks


def test_a_task_says_what_is_minimised() -> None:
    task = Task(EVERY)
    assert task.bank.names == tuple(EVERY)
    assert [weighted.term for weighted in task.bank.terms] == [item.term for item in EVERY.values()]
    assert task.bank.terms[0].floor == 0.1
    assert task.bank.terms[0].ceiling == 2.0
    assert task.bank.weights(task.weights).tolist() == [0.5, 3.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    assert task.has_cost
    assert not task.goal


def test_reach_has_a_goal_and_minds_nothing_else() -> None:
    assert REACH.goal
    assert not REACH.has_cost
    assert REACH.bank.weights(REACH.weights).tolist() == [0.0]


def test_a_task_cannot_be_changed() -> None:
    terms = dict(EVERY)
    task = Task(terms)
    fingerprint = task.bank.fingerprint()
    terms["effort"] = TaskTerm(Effort(), weight=2.0)
    terms["more"] = TaskTerm(Effort())
    assert task.bank.fingerprint() == fingerprint
    assert task.weights["effort"] == 0.5
    with pytest.raises(TypeError):
        task.terms["effort"] = TaskTerm(Effort())  # type: ignore[index]
    with pytest.raises(TypeError):
        del REACH.terms["effort"]  # type: ignore[attr-defined]
    with pytest.raises(FrozenInstanceError):
        task.terms = {}  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        task.terms["effort"].weight = 0.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"terms": {}}, "neither a term with a weight above 0 nor a goal: give it one"),
        ({"terms": {"a": TaskTerm(Effort(), weight=0.0)}}, "neither a term with a weight above 0"),
        ({"terms": {"a": TaskTerm(Effort(), 11.0)}}, r"'a' is 11.0: choose it in \[0.0, 10.0\]"),
        ({"terms": {"a": TaskTerm(Effort(), -1.0)}}, r"'a' is -1.0: choose it in \[0.0, 10.0\]"),
        ({"terms": {"a": TaskTerm(Effort(), float("nan"))}}, "'a' is nan"),
        ({"terms": {"a": TaskTerm(Effort(), 0.1, 0.2)}}, r"'a' is 0.1: choose it in \[0.2, 10.0\]"),
        ({"terms": {"a": TaskTerm(Effort(), 1, 2, 1)}}, "term 'a' has floor 2 and ceiling 1"),
        ({"terms": {"a": TaskTerm(Effort(), 11.0)}, "goal": True}, "'a' is 11.0"),
        ({"goal": True, "end": "end"}, "end is 'end': choose one of failure, success, stop"),
        ({"terms": {"a": TaskTerm(Speed("v[0]"))}, "end": "stop"}, r"'stop', .* read v.*: choose"),
    ],
)
def test_wrong_tasks_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Task(**wrong)


# --- tasks made of rewards


def seen(lowest: float, highest: float, *, terminates: bool) -> Task:
    """The task of one episode that begins and ends on its lowest reward."""
    return task_from_reward(
        np.array([lowest, highest, lowest]), np.array([False, False, terminates])
    )


def test_rewards_that_vary() -> None:
    """Pendulum pays -16 to 0: the best imaginable lies as far above 0 as that above the worst."""
    task = seen(-16.0, 0.0, terminates=False)
    assert dict(task.terms) == {"reward": TaskTerm(Shortfall("reward", worst=-16.0, best=16.0))}
    assert not task.goal
    assert task.has_cost
    assert task.bank.reads == ("reward",)


def test_rewards_that_vary_and_episodes_that_end() -> None:
    """After the end nothing is paid, so zero counts; who was paid before does not want to end."""
    task = seen(1.0, 3.0, terminates=True)
    assert task.terms["reward"].term == Shortfall("reward", worst=0.0, best=5.0)
    assert task.terms["ended"].term == Shortfall("terminated", worst=1.0, best=0.0)
    assert task.end == "failure"
    charged = seen(-3.0, -1.0, terminates=True)
    assert dict(charged.terms) == {"reward": TaskTerm(Shortfall("reward", worst=-3.0, best=1.0))}
    assert charged.end == "success"


def test_a_constant_wage_for_staying_alive() -> None:
    """CartPole: +1 for every step, so all there is to learn from is the end, which is a failure."""
    task = seen(1.0, 1.0, terminates=True)
    assert task.end == "failure"
    assert set(task.terms) == {"reward", "ended"}
    assert task.bank.reads == ("reward", "terminated")
    alive = {"reward": torch.tensor([[1.0]]), "terminated": torch.tensor([[0.0]])}
    fallen = {"reward": torch.tensor([[1.0]]), "terminated": torch.tensor([[1.0]])}
    good, bad = (task.bank.values(q, torch.zeros(1, 1)) for q in (alive, fallen))
    assert good.flatten().tolist() == pytest.approx([0.01, 0.01])
    assert bad.flatten().tolist() == pytest.approx([0.01, 0.99])


def test_a_constant_charge_until_the_end() -> None:
    """MountainCar: -1 for every step, so an end is what is wanted."""
    task = seen(-1.0, -1.0, terminates=True)
    assert task.end == "success"
    assert dict(task.terms) == {"reward": TaskTerm(Shortfall("reward", worst=-1.0, best=0.0))}


def test_a_charge_that_vanishes_at_the_end() -> None:
    """-1 for every step but the last one, which is free: an end is what is wanted."""
    task = seen(-1.0, 0.0, terminates=True)
    assert task.end == "success"
    assert dict(task.terms) == {"reward": TaskTerm(Shortfall("reward", worst=-1.0, best=1.0))}


@pytest.mark.parametrize(("step", "goal"), [(0.0, 1.0), (-0.1, 100.0), (1.0, 5.0)])
def test_an_end_that_is_paid_is_a_success(step: float, goal: float) -> None:
    """A goal that ends the episode with a reward is not to be avoided."""
    rewards = np.array([step, step, step, goal])
    task = task_from_reward(rewards, np.array([False, False, False, True]))
    assert task.end == "success"
    assert set(task.terms) == {"reward"}
    read = {"reward": torch.tensor([[step], [goal]])}
    on_the_way, there = task.bank.values(read, torch.zeros(2, 1)).flatten().tolist()
    assert there < on_the_way - 0.2


def ended_with(ends: list[float], going: np.ndarray) -> Task:
    """The task of episodes that end with such rewards, after steps with the others."""
    rewards = np.concatenate((going, ends))
    return task_from_reward(rewards, np.arange(len(rewards)) >= len(going))


def critic_of(task: Task, rewards: list[float], *, ends: bool, discount: float) -> float:
    """(1 - gamma) TC of such rewards, after which the episode ends, or the last one goes on."""
    read = {"reward": torch.tensor(rewards)[:, None]}
    costs = task.bank.values(read, torch.zeros(len(rewards), 1))[:, 0]
    value = task.lasting[0] if ends else costs[-1]
    for cost in costs.flip(0):
        value = (1 - discount) * cost + discount * value
    return float(value)


def frozen_lake() -> tuple[np.ndarray, np.ndarray]:
    """Rewards and ends of somebody who moves at random."""
    env, rng = gymnasium.make("FrozenLake-v1"), np.random.default_rng(0)
    rewards, terminal = [], []
    for episode in range(400):
        env.reset(seed=episode)
        over = False
        while not over:
            _, reward, terminated, truncated, _ = env.step(int(rng.integers(4)))
            rewards.append(float(reward))
            terminal.append(terminated)
            over = terminated or truncated
    env.close()
    return np.array(rewards), np.array(terminal)


@pytest.mark.parametrize("discount", [0.9, 0.99, 0.999])
def test_a_goal_and_holes_that_both_end_the_episode(discount: float) -> None:
    """FrozenLake: 1 for the goal and 0 for all else, so a hole must not look like the goal."""
    rewards, terminal = frozen_lake()
    assert set(rewards[terminal]) == {0.0, 1.0}
    task = task_from_reward(rewards, terminal)
    assert task.end == "stop"
    assert dict(task.terms) == {"reward": TaskTerm(Shortfall("reward", worst=0.0, best=2.0))}
    goal = critic_of(task, [0.0, 1.0], ends=True, discount=discount)
    hole = critic_of(task, [0.0, 0.0], ends=True, discount=discount)
    wandering = critic_of(task, [0.0, 0.0], ends=False, discount=discount)
    assert goal < wandering - 0.4 * (1 - discount)
    assert hole == pytest.approx(wandering)


@pytest.mark.parametrize("landings", [1, 20])
def test_landings_and_crashes(landings: int) -> None:
    """LunarLander: varying rewards, 100 for a landing, -100 for a crash; both are ends."""
    going = np.random.default_rng(0).uniform(-8, 8, 500)
    task = ended_with([-100.0] * 20 + [100.0] * landings, going)
    assert task.end == "stop"
    landed, hovering, crashed = (
        critic_of(task, [reward], ends=reward != 0, discount=0.99)
        for reward in (100.0, 0.0, -100.0)
    )
    assert landed < hovering - 1e-3 < crashed - 2e-3


@pytest.mark.parametrize("ends", [[-100.0], [-100.0, -1.0], [-100.0, 0.0]])
def test_a_charge_for_every_step_and_a_larger_one_for_a_fall(ends: list[float]) -> None:
    """To fall is not what is wanted, unless for somebody with a hundred steps to go."""
    task = ended_with(ends, np.full(50, -1.0))
    assert task.end == "stop"
    fallen = critic_of(task, [-100.0], ends=True, discount=0.95)
    arrived = critic_of(task, [-1.0], ends=True, discount=0.95)
    assert fallen > critic_of(task, [-1.0], ends=False, discount=0.95) + 0.01
    assert arrived < critic_of(task, [-1.0], ends=False, discount=0.95) - 0.001


@pytest.mark.parametrize("seed", range(20))
def test_rewards_that_vary_at_ends_as_elsewhere_are_no_goal(seed: int) -> None:
    """The highest reward of all may be at an end by chance, and the end is a failure still."""
    rng = np.random.default_rng(seed)
    task = ended_with(list(np.append(rng.normal(1, 1, 20), -0.5)), rng.normal(1.5, 1, 80))
    assert task.end == "failure"
    assert set(task.terms) == {"reward", "ended"}


def test_falls_of_two_kinds_are_failures() -> None:
    """Who is paid for every step does not want to end, cheaply or dearly."""
    task = ended_with([1.0, -10.0], np.full(50, 1.0))
    assert task.end == "failure"
    assert set(task.terms) == {"reward", "ended"}


def test_goals_of_two_kinds_are_successes() -> None:
    assert ended_with([5.0, 10.0], np.full(50, 0.0)).end == "success"


def test_what_lasts_after_an_end() -> None:
    task = Task({name: EVERY[name] for name in ("effort", "shortfall")}, end="failure")
    assert task.lasting.tolist() == [1.0, 1.0]
    assert replace(task, end="success").lasting.tolist() == [0.0, 0.0]
    stopped = replace(task, end="stop").lasting  # worst 1, best -2: nothing is two thirds of it
    assert stopped.tolist() == pytest.approx([0.0, 0.01 + 0.98 * 2 / 3])
    assert REACH.lasting.tolist() == [1.0]


@pytest.mark.parametrize("reward", [1.0, 0.0, -1.0])
def test_nothing_can_be_learnt_from_a_constant_reward_without_an_end(reward: float) -> None:
    with pytest.raises(ValueError, match=rf"every reward in the data is {reward} .* \(--task\)"):
        seen(reward, reward, terminates=False)


@pytest.mark.parametrize("lowest", [float("nan"), float("-inf")])
def test_rewards_that_are_not_finite_are_refused(lowest: float) -> None:
    with pytest.raises(ValueError, match=f"worst is {lowest} .* both finite"):
        seen(lowest, 1.0, terminates=False)


def test_rewards_of_every_kind_give_a_task_that_can_be_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(20):
        lowest, highest = (float(x) for x in np.sort(rng.normal(0, 10.0, 2)))
        task = seen(lowest, highest, terminates=bool(index % 2))
        assert read_task(written(tmp_path / "t.yaml", task), trust=False) == task
        term = task.terms["reward"].term
        assert isinstance(term, Shortfall)
        assert term.worst <= lowest < highest <= term.best
    for lowest, highest in ((1.0, 1.0), (-1.0, -1.0), (0.0, 1.0)):
        task = seen(lowest, highest, terminates=True)
        assert read_task(written(tmp_path / "t.yaml", task), trust=False) == task
    task = ended_with([0.0, 1.0], np.zeros(5))
    assert task.end == "stop"
    assert read_task(written(tmp_path / "t.yaml", task), trust=False) == task


# --- YAML


@pytest.mark.parametrize("name", packaged_tasks())
@pytest.mark.parametrize("trust", [True, False])
def test_packaged_tasks_come_back(name: str, trust: bool, tmp_path: Path) -> None:
    task = read_task(name)
    again = read_task(written(tmp_path / "task.yaml", task), trust=trust)
    assert again == task
    assert again.bank.fingerprint() == task.bank.fingerprint()
    assert task.env is not None
    assert task_for(task.env) == name
    assert read_task(str(packaged_tasks()[name]), trust=trust) == task


def test_there_are_packaged_tasks() -> None:
    assert "cartpole-swingup" in packaged_tasks()
    assert task_for("forethought/Nowhere-v0") is None


def test_reach_comes_back(tmp_path: Path) -> None:
    assert read_task("reach") is REACH
    kept = replace(REACH, env="forethought/TwoRooms-v0")
    assert read_task(written(tmp_path / "task.yaml", kept), trust=False) == kept


def test_every_term_is_tried_below() -> None:
    exported = [getattr(forethought.agent, name) for name in forethought.agent.__all__]
    terms = {
        item
        for item in exported
        if isinstance(item, type) and issubclass(item, IntrinsicTerm) and item is not IntrinsicTerm
    }
    assert terms == {type(item.term) for item in EVERY.values()}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("trust", [True, False])
def test_every_term_comes_back(name: str, trust: bool, tmp_path: Path) -> None:
    task = Task({name: EVERY[name]}, goal=True, end="success", env="some/Env-v3")
    again = read_task(written(tmp_path / "task.yaml", task), trust=trust)
    assert again == task
    assert again.bank.fingerprint() == task.bank.fingerprint()


def test_the_order_of_the_terms_comes_back(tmp_path: Path) -> None:
    for names in (list(EVERY), list(EVERY)[::-1]):
        task = Task({name: EVERY[name] for name in names})
        again = read_task(written(tmp_path / "task.yaml", task))
        assert list(again.terms) == names
        assert again.bank.fingerprint() == task.bank.fingerprint()


@pytest.mark.parametrize("name", ["term", "policy", "planner", "terms", "weight", "a.b"])
def test_a_term_may_be_called_anything(name: str, tmp_path: Path) -> None:
    task = Task({name: TaskTerm(Speed("v[1]"))})
    assert read_task(written(tmp_path / "task.yaml", task)) == task


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    content = "terms: {a: {term: {class_path: Speed, init_args: {quantity: v}}}, b: {term: Effort}}"
    task = read_task(written(tmp_path / "task.yaml", content))
    assert task == Task({"a": TaskTerm(Speed("v")), "b": TaskTerm(Effort())})
    assert read_task(written(tmp_path / "task.yaml", "goal: true")) == Task(goal=True)


def test_a_term_of_ones_own_comes_back_where_it_is_trusted(tmp_path: Path) -> None:
    task = Task({"mine": TaskTerm(Mine(0.5))})
    path = written(tmp_path / "task.yaml", task)
    assert read_task(path) == task
    with pytest.raises(ValueError, match=r"names '.*Mine', code from outside .* add --trust"):
        read_task(path, trust=False)


@pytest.mark.parametrize(
    "place",
    [
        {"class_path": "os.system[1]"},
        {"class_path": "torch.nn.Linear"},
        {"class_path": "Speed", "init_args": {"quantity": "torch.nn.Linear"}},
        {"class_path": "Speed", "init_args": {"quantity": "{class_path: os.system}"}},
        {
            "class_path": "Jointly",
            "init_args": {"terms": [{"class_path": "os.system"}], "shares": [1.0]},
        },
        {"class_path": "123.Term"},
        {"class_path": "evil-.Term"},
        {"class_path": "Jointly", "init_args": {"terms": ["1.5"], "shares": [1.0]}},
    ],
)
def test_no_place_hides_code_of_strangers(place: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path / "task.yaml", yaml.safe_dump({"terms": {"a": {"term": place}}}))
    with pytest.raises(ValueError, match="code from outside of forethought"):
        read_task(path, trust=False)


def test_the_environment_of_a_task_hides_no_code(tmp_path: Path) -> None:
    path = written(tmp_path / "task.yaml", "goal: true\nenv: {term: {class_path: os.system}}\n")
    with pytest.raises(ValueError, match="code from outside of forethought"):
        read_task(path, trust=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("terms: {a: {term: {class_path: Nonsense}}}", "Nonsense"),
        ("terms: {a: {term: {class_path: torch.nn.Linear}}}", "Linear"),
        (
            "terms: {a: {term: {class_path: Speed, init_args: {quantity: v, typcal: 2}}}}",
            "'typcal'",
        ),
        ("terms: {a: {term: {class_path: Speed}}}", "required: quantity"),
        ("terms: {a: {term: Effort, wieght: 1}}", "'wieght' is not accepted"),
        ("terms: {a: {trm: Effort}}", "'trm' is not accepted"),
        ("gaol: true", "'gaol' is not accepted"),
        ("goal: 3", "goal is 3: give true or false"),
        ("{goal: true, end: maybe}", "maybe"),
        ("goal: false", "neither a term with a weight above 0 nor a goal"),
        ("terms: {a: {term: Effort, weight: 11}}", r"'a' is 11.0: choose it in \[0.0, 10.0\]"),
        ("terms: {a: {term: Effort, weight: -1}}", r"'a' is -1.0: choose it in \[0.0, 10.0\]"),
        ("terms: {a: {term: Effort, weight: .nan}}", "'a' is nan"),
        ("terms: {a: {term: Effort, floor: 5, ceiling: 1}}", "floor 5.0 and ceiling 1.0"),
        (
            "terms: {a: {term: {class_path: Speed, init_args: {quantity: v, typical: -2}}}}",
            "typical is -2.0: choose it above 0",
        ),
        ("- goal", "is damaged: it holds no mapping"),
        ("goal: [", "is damaged: it is no YAML"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(
    content: str, message: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "task.yaml", content)
    with pytest.raises(ValueError, match=message) as caught:
        read_task(path)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_task_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match=r"no task 'walk': .* reach, reward, .*cartpole"):
        read_task("walk")


# --- packaged tasks and their environments


@pytest.mark.parametrize("name", packaged_tasks())
def test_packaged_tasks_are_as_their_environments_reward(name: str) -> None:
    """States with a high reward cost less: the task and dm_control's own reward want the same."""
    suite = pytest.importorskip("dm_control.suite")
    task = read_task(name)
    assert task.env is not None
    domain, _, kind = task.env.removeprefix("dm_control/").partition("-")
    env = suite.load(domain, kind.replace("-", "_"), task_kwargs={"random": 0})
    rng = np.random.default_rng(0)
    rewards, costs = [], []
    env.reset()
    for _ in range(400):
        with env.physics.reset_context():
            env.physics.data.qpos[:] = rng.uniform(-1, 1, env.physics.data.qpos.shape) * np.pi
            if name == "cartpole-swingup":
                env.physics.data.qpos[0] = rng.uniform(-1.5, 1.5)
            env.physics.data.qvel[:] = rng.normal(0, 2.0, env.physics.data.qvel.shape)
        seen = env.task.get_observation(env.physics)
        quantities = {key: torch.as_tensor(value)[None] for key, value in seen.items()}
        u = task.bank.weights(task.weights).double()
        values = task.bank.values(quantities, torch.zeros(1, 1).double())
        costs.append(float((values * u).sum()))
        env.physics.set_control(np.zeros(env.physics.data.ctrl.shape))
        rewards.append(float(env.task.get_reward(env.physics)))
    high = np.asarray(rewards) >= max(np.quantile(rewards, 0.95), 0.1)
    assert high.sum() > 10
    cheap, dear = np.asarray(costs)[high], np.asarray(costs)[~high]
    assert (cheap[:, None] < dear).mean() > 0.9  # of all pairs of one of each


def test_gymnasium_knows_what_is_said_of_rewards() -> None:
    """The rewards in the docstrings above, from the environments themselves."""
    for name, reward in (("CartPole-v1", 1.0), ("MountainCar-v0", -1.0)):
        env = gymnasium.make(name)
        env.reset(seed=0)
        assert {float(env.step(0)[1]) for _ in range(5)} == {reward}
        env.close()
