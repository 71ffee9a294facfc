"""Data from elsewhere and to elsewhere: round trips, layouts, and what is refused in a sentence."""

from __future__ import annotations

import builtins
import json
import logging
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from forethought.envs import (
    HELD_OUT_SEED,
    Dataset,
    EnvSpec,
    Episode,
    describe,
    export_minari,
    import_arrays,
    import_episodes,
    import_file,
    import_minari,
    make,
    spec_of,
    unscale_actions,
    write_shard,
)

LENGTHS = [5, 1, 9, 3]
STEPS, EPISODES = sum(LENGTHS), len(LENGTHS)
LAST = np.cumsum(LENGTHS) - 1


def own_layout() -> dict[str, Any]:
    """Flat arrays with an observation more than actions in each episode."""
    rng = np.random.default_rng(0)
    rows = STEPS + EPISODES
    return {
        "observations": rng.normal(size=(rows, 3)),
        "actions": rng.uniform(-2, 5, (STEPS, 2)),
        "rewards": rng.normal(size=STEPS),
        "terminated": np.array([True, False, False, True]),
        "truncated": np.array([False, True, True, False]),
        "episode_lengths": np.array(LENGTHS),
        "quantities": {"clock": np.arange(rows) / 10, "pair": rng.normal(size=(rows, 2))},
        "goals": rng.normal(size=(EPISODES, 3)),
        "success": np.array([True, False, False, True]),
        "seeds": np.array([7, 8, 9, 30]),
    }


def d4rl_layout() -> dict[str, Any]:
    """The same episodes with an observation for each action, and marks at their ends."""
    own = own_layout()
    after = np.arange(STEPS) + np.repeat(np.arange(EPISODES), LENGTHS) + 1
    marks = {name: np.zeros(STEPS, bool) for name in ("terminated", "truncated")}
    for name, array in marks.items():
        array[LAST] = own[name]
    return {
        "observations": own["observations"][after - 1],
        "next_observations": own["observations"][after],
        "actions": own["actions"],
        "rewards": own["rewards"],
        **marks,
    }


def without(arrays: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in arrays.items() if name not in names}


def single(array: Any) -> np.ndarray:
    return np.asarray(array).astype(np.float32)


def assert_same_data(one: Dataset, other: Dataset) -> None:
    """Everything but how episodes are spread over shards."""
    assert one.spec == other.spec
    assert one.policies == other.policies
    assert one._arrays[0].keys() == other._arrays[0].keys()
    for name in one._arrays[0]:
        np.testing.assert_array_equal(one.arrays(name), other.arrays(name))
        assert one.arrays(name).dtype == other.arrays(name).dtype


def left_behind(folder: Path) -> list[Path]:
    """Everything below a folder, but for Minari's own records."""
    return [path for path in folder.rglob("*") if path.name != "namespace_metadata.json"]


# --- Arrays.


def test_own_layout(tmp_path: Path) -> None:
    arrays = own_layout()
    data = import_arrays(
        tmp_path / "data",
        **arrays,
        env_id="own/arm",
        control_step_seconds=0.05,
        policy="teleoperation",
        episodes_per_shard=3,
    )
    data.verify()
    assert [record.episodes for record in data.shards] == [3, 1]
    assert data.spec.id == "own/arm"
    assert data.spec.control_step_seconds == 0.05
    assert data.spec.episode_limit == 9
    assert data.spec.observation_space == spaces.Box(-np.inf, np.inf, (3,), np.float32)
    assert data.spec.action_space == spaces.Box(-1, 1, (2,), np.float32)
    np.testing.assert_array_equal(data.arrays("observations"), single(arrays["observations"]))
    np.testing.assert_array_equal(data.arrays("rewards"), single(arrays["rewards"]))
    np.testing.assert_array_equal(data.arrays("goals"), single(arrays["goals"]))
    clock = single(arrays["quantities"]["clock"])[:, None]
    np.testing.assert_array_equal(data.arrays("quantities.clock"), clock)
    assert data.lengths.tolist() == LENGTHS
    for name, expected in (("seed", "seeds"), ("success", "success"), ("terminated", "terminated")):
        np.testing.assert_array_equal(data.arrays(name), arrays[expected])
    assert data.policies == ["teleoperation"] * 4
    assert describe(tmp_path / "data")["environment"]["id"] == "own/arm"


def test_d4rl_layout_with_next_observations_is_the_same_data(tmp_path: Path) -> None:
    names = ("quantities", "goals", "success", "seeds")
    own = import_arrays(tmp_path / "own", **without(own_layout(), *names))
    assert_same_data(own, import_arrays(tmp_path / "d4rl", **d4rl_layout()))


def test_without_next_observations_the_last_actions_are_dropped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arrays = without(d4rl_layout(), "next_observations")
    quantities = {"row": np.arange(STEPS)}
    with caplog.at_level(logging.WARNING):
        data = import_arrays(tmp_path / "data", **arrays, quantities=quantities)
    assert "4 episodes" in caplog.text
    assert "1 episodes that have no other; 14 of 18 actions" in caplog.text
    assert data.lengths.tolist() == [4, 8, 2]
    assert not data.arrays("terminated").any()  # nobody saw the terminal observations
    assert data.arrays("truncated").all()
    assert data.arrays("seed").tolist() == [0, 2, 3]
    kept = np.delete(np.arange(STEPS), 5)  # the episode of one step is gone
    np.testing.assert_array_equal(data.arrays("quantities.row")[:, 0], kept)
    np.testing.assert_array_equal(data.arrays("observations"), single(arrays["observations"])[kept])
    steps = np.delete(np.arange(STEPS), LAST)
    np.testing.assert_array_equal(data.arrays("rewards"), single(arrays["rewards"])[steps])


def test_ends_that_nobody_marked_are_where_observations_do_not_continue(tmp_path: Path) -> None:
    """D4RL's `qlearning_dataset` has terminals and next observations, but no timeouts."""
    arrays = d4rl_layout()
    full = import_arrays(tmp_path / "full", **arrays)
    assert_same_data(full, import_arrays(tmp_path / "some", **without(arrays, "truncated")))
    bare = import_arrays(tmp_path / "none", **without(arrays, "truncated", "terminated"))
    assert bare.lengths.tolist() == LENGTHS
    assert bare.arrays("truncated").all()


def test_lengths_and_ends_say_the_same(tmp_path: Path) -> None:
    arrays = own_layout()
    one = import_arrays(tmp_path / "lengths", **arrays)
    ends = {**without(arrays, "episode_lengths"), "episode_ends": LAST + 1}
    assert_same_data(one, import_arrays(tmp_path / "ends", **ends))


def test_what_has_no_end_is_one_episode_or_cut_at_the_end(tmp_path: Path) -> None:
    one = import_arrays(tmp_path / "one", observations=np.eye(4), actions=np.ones(3))
    assert (one.lengths.tolist(), one.arrays("truncated").tolist()) == ([3], [1])
    terminated = np.array([0, 1, 0, 0])
    two = import_arrays(
        tmp_path / "two",
        observations=np.eye(6),
        actions=np.arange(4.0),
        terminated=terminated,
        truncated=0 * terminated,
    )
    assert two.lengths.tolist() == [2, 2]
    assert two.arrays("terminated").tolist() == [1, 0]
    assert two.arrays("truncated").tolist() == [0, 1]


def test_mappings_of_memory_maps_and_of_lists(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (10, 8, 9, 3), dtype=np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    data = import_arrays(
        tmp_path / "data",
        observations={
            "camera": np.load(tmp_path / "pixels.npy", mmap_mode="r"),
            "grey": pixels[..., 0],
            "load": list(range(10)),
        },
        actions=[0, 2, 1, 0, 2, 1, 1, 0],
        episode_lengths=[5, 3],
        goals={"camera": pixels[:2], "grey": pixels[:2, ..., 0], "load": [1, 2]},
    )
    shapes = {name: part.shape for name, part in data.spec.observation_space.spaces.items()}
    assert shapes == {"camera": (3, 8, 9), "grey": (1, 8, 9), "load": (1,)}
    assert data.spec.action_space == spaces.Discrete(3)
    camera = data.arrays("observations.camera")
    np.testing.assert_array_equal(camera, pixels.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.arrays("goals.camera"), camera[:2])
    assert data.arrays("actions").dtype == np.int64
    assert data.arrays("actions").shape == (8, 1)


@pytest.mark.parametrize(
    ("shape", "channels_last", "stored"),
    [
        ((8, 9, 3), None, (3, 8, 9)),
        ((3, 8, 9), None, (3, 8, 9)),
        ((3, 8, 3), None, (3, 8, 3)),
        ((3, 8, 3), True, (3, 3, 8)),
        ((8, 9, 3), False, (8, 9, 3)),
        ((8, 9, 6), None, (8, 9, 6)),
    ],
)
def test_channels_come_first(
    tmp_path: Path, shape: tuple[int, ...], channels_last: bool | None, stored: tuple[int, ...]
) -> None:
    record = {"observations": np.zeros((3, *shape), np.uint8), "actions": np.arange(2.0)}
    data = import_episodes(tmp_path / "data", [record], channels_last=channels_last)
    assert data.arrays("observations").shape == (3, *stored)


# --- Actions.


def two_episodes(actions: Any) -> list[dict[str, Any]]:
    return [{"observations": np.zeros((3, 1)), "actions": part} for part in actions]


def test_actions_fill_their_bounds_and_can_be_read_back(tmp_path: Path) -> None:
    actions = np.array([[[0.0, 5.0], [10.0, 5.0]], [[2.5, 5.0], [5.0, 5.0]]])
    data = import_episodes(tmp_path / "seen", two_episodes(actions))
    assert data.spec.options == {"action_low": [0.0, 5.0], "action_high": [10.0, 5.0]}
    stored = data.arrays("actions")
    assert stored.dtype == np.float32
    assert stored.tolist() == [[-1, 0], [1, 0], [-0.5, 0], [0, 0]]
    np.testing.assert_allclose(unscale_actions(data.spec, stored), actions.reshape(4, 2))
    given = import_episodes(
        tmp_path / "given", two_episodes(actions), action_low=[0, -5], action_high=20
    )
    assert given.arrays("actions")[1].tolist() == pytest.approx([0, -0.2])
    half = import_episodes(tmp_path / "half", two_episodes(actions), action_low=-10)
    assert half.spec.options["action_high"] == [10.0, 5.0]


def test_single_precision_does_not_leave_the_bounds(tmp_path: Path) -> None:
    actions = np.array([[[0.1], [0.2]], [[0.3], [0.1]]], np.float32)
    data = import_episodes(tmp_path / "a", two_episodes(actions), action_low=0.1, action_high=0.3)
    assert np.abs(data.arrays("actions")).max() == 1


def test_whole_numbers_are_choices_unless_they_have_bounds(tmp_path: Path) -> None:
    actions = np.array([[0, 2], [1, 1]])
    data = import_episodes(tmp_path / "seen", two_episodes(actions))
    assert data.spec.action_space == spaces.Discrete(3)
    assert data.spec.options == {}
    assert unscale_actions(data.spec, data.arrays("actions")).tolist() == [[0], [2], [1], [1]]
    more = import_episodes(tmp_path / "given", two_episodes(actions), discrete_actions=5)
    assert more.spec.action_space == spaces.Discrete(5)
    box = import_episodes(tmp_path / "box", two_episodes(actions), action_low=0, action_high=4)
    assert box.arrays("actions")[:, 0].tolist() == [-1, 0, -0.5, -0.5]


@pytest.mark.parametrize(
    ("actions", "options", "message"),
    [
        ([[[0.0], [np.nan]]], {}, "episode 0: actions hold nan in row 1"),
        ([[[0.0], [3.0]]], {"action_high": 2, "action_low": 0}, r"hold 3.0 in row 1.*0.0 to 2.0"),
        ([[[0.0], [3.0]]], {"action_high": [1, 2]}, r"action_high is \[1.0, 2.0\]: give one"),
        ([[[0.0], [3.0]]], {"action_low": 3}, "the latter must be above"),
        ([[[0, 1], [1, 1]]], {}, "give discrete actions as one column"),
        ([[0.5, 1.0]], {"discrete_actions": 3}, "give discrete actions as one column"),
        ([[0, 7]], {"discrete_actions": 3}, r"hold 7 in row 1.*discrete_actions"),
        ([[0, -1]], {}, "hold -1 in row 1"),
        ([[0, 1]], {"discrete_actions": 2, "action_low": 0}, "not both"),
        ([[0, 1]], {"discrete_actions": 0}, "discrete_actions is 0"),
        ([["left", "right"]], {}, "actions have dtype <U5: give numbers"),
        ([np.zeros((2, 1, 1))], {}, r"shape \(2, 1, 1\)"),
        ([[[0.0], [1.0]], [[0.0, 1.0], [1.0, 1.0]]], {}, "2 columns, others have 1"),
        ([[0, 1], [0.5, 1.0]], {"discrete_actions": 2}, "episode 1: actions are float64"),
    ],
)
def test_actions_that_are_refused(
    tmp_path: Path, actions: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        import_episodes(tmp_path / "data", two_episodes(actions), **options)
    assert left_behind(tmp_path) == []


def test_seeds_that_would_be_held_out_are_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Recordings have no evaluation of ours, and `train` refuses held-out seeds."""
    arrays = own_layout()
    seeds = np.array([7, HELD_OUT_SEED, 9, 3])
    data = import_arrays(tmp_path / "data", **{**arrays, "seeds": seeds})
    assert data.arrays("seed").tolist() == [0, 1, 2, 3]
    assert "numbered from 0" in caplog.text
    kept = import_arrays(tmp_path / "kept", **{**arrays, "seeds": np.minimum(seeds, 10**6 - 1)})
    assert kept.arrays("seed").tolist() == [7, HELD_OUT_SEED - 1, 9, 3]
    # With a spec the seeds are the environment's: what is held out stays so.
    same = import_arrays(
        tmp_path / "same",
        **{**arrays, "seeds": seeds},
        spec=data.spec,
        action_low=-2,
        action_high=5,
    )
    assert same.arrays("seed").tolist() == seeds.tolist()
    record = {"observations": np.zeros((3, 2)), "actions": np.eye(2)}
    listed = [{**record, "seed": 5}, {**record, "seed": 2**31}, record]
    told = import_episodes(tmp_path / "listed", listed)
    assert told.arrays("seed").tolist() == [0, 1, 2]


# --- Episodes, and data of an environment that is here.


def test_a_list_of_episodes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    records: list[dict[str, Any]] = [
        {"observations": rng.normal(size=(length + 1, 2)), "actions": rng.normal(size=(length, 1))}
        for length in LENGTHS
    ]
    records[1] |= {"terminated": True, "truncated": True, "policy": "hand", "seed": 90}
    records[2] |= {"terminated": True}
    seen: list[int] = []
    data = import_episodes(tmp_path / "data", records, policy="mine", on_progress=seen.append)
    assert seen == [1, 2, 3, 4]
    assert data.arrays("terminated").tolist() == [0, 1, 1, 0]
    assert data.arrays("truncated").tolist() == [1, 1, 0, 1]
    assert data.arrays("seed").tolist() == [0, 90, 2, 3]
    assert data.policies == ["mine", "hand", "mine", "mine"]
    assert not data.arrays("rewards").any()
    assert data.episode(0).success is None


def test_data_of_an_environment_that_is_here_take_its_spec(tmp_path: Path) -> None:
    spec = spec_of(make("forethought/DoubleIntegrator-v0"))
    rng = np.random.default_rng(0)
    size = int(np.prod(spec.observation_space.shape or ()))
    record = {
        "observations": rng.normal(size=(4, size)),
        "actions": rng.uniform(-1, 1, (3, spec.action_dim)),
    }
    data = import_episodes(tmp_path / "plain", [record], spec=spec)
    assert data.spec == spec
    np.testing.assert_array_equal(data.arrays("actions"), single(record["actions"]))
    wide = {**record, "actions": 10 * record["actions"]}
    with pytest.raises(ValueError, match="set action_low and action_high to include it"):
        import_episodes(tmp_path / "wide", [wide], spec=spec)
    scaled = import_episodes(tmp_path / "b", [wide], spec=spec, action_low=-10, action_high=10)
    np.testing.assert_allclose(scaled.arrays("actions"), record["actions"], atol=1e-6)
    with pytest.raises(ValueError, match="action_low is -10 and action_high None: give both"):
        import_episodes(tmp_path / "half", [wide], spec=spec, action_low=-10)
    with pytest.raises(ValueError, match=r"which is an environment: give spec"):
        import_episodes(tmp_path / "named", [record], env_id=spec.id)


def test_an_empty_folder_is_used_and_a_full_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    import_arrays(tmp_path / "data", **own_layout())
    with pytest.raises(ValueError, match="not an empty folder: name a new one"):
        import_arrays(tmp_path / "data", **own_layout())
    assert Dataset.open(tmp_path / "data").episodes == EPISODES
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": np.full((4, 2), np.inf)}, "episode 0: observations hold inf in row 0"),
        ({"observations": np.full((4, 2), 1e300)}, "observations hold inf in row 0"),
        ({"observations": {"x": np.array([[0], [1], [np.nan], [1]])}}, "observations.x hold nan"),
        ({"observations": [["a"]] * 4}, "observations have dtype <U1: give numbers"),
        ({"observations": np.zeros((3, 2))}, "observations has 3 rows: 3 actions need 4"),
        ({"observations": None}, "observations are missing"),
        ({"rewards": np.zeros(2)}, "rewards has 2 rows"),
        ({"rewards": [0, np.nan, 0]}, "rewards hold nan in row 1"),
        ({"quantities": {"q": np.zeros(3)}}, "has 3 rows"),
        ({"goal": np.zeros(5)}, r"goal has shape \(5,\)"),
        ({"reward": np.zeros(3)}, r"fields \['reward'\] are unknown"),
    ],
)
def test_episodes_that_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    record = {"observations": np.zeros((4, 2)), "actions": np.zeros((3, 1)), **changes}
    with pytest.raises(ValueError, match=message):
        import_episodes(tmp_path / "data", [record])
    assert left_behind(tmp_path) == []


def test_a_later_episode_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    good = {"observations": np.zeros((4, 2)), "actions": np.arange(3.0)}
    odd = {**good, "observations": np.zeros((4, 3))}
    with pytest.raises(ValueError, match=r"observations are float32 \(3,\), the spec says"):
        import_episodes(tmp_path / "data", [good, good, odd], episodes_per_shard=1)
    assert left_behind(tmp_path) == []
    with pytest.raises(ValueError, match="episodes are empty"):
        import_episodes(tmp_path / "data", [])
    with pytest.raises(ValueError, match="episodes_per_shard is 0"):
        import_episodes(tmp_path / "data", [good], episodes_per_shard=0)
    with pytest.raises(TypeError, match="'polcy'"):
        import_episodes(tmp_path / "data", [good], polcy="mine")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": []}, "actions are empty"),
        ({"episode_lengths": [5, 1, 9]}, "lead up to 15"),
        ({"episode_lengths": [5, 1, 9, 0, 3]}, "an episode has at least 1"),
        ({"episode_lengths": [5.0, 13.0]}, "give whole numbers"),
        ({"episode_ends": LAST + 1}, "both given"),
        ({"observations": np.zeros((21, 3))}, "have 21 rows: 18 actions in 4 episodes need 22"),
        ({"terminated": np.eye(1, STEPS, 2)[0]}, "terminated is set in row 2, which is inside"),
        ({"terminated": np.zeros(7)}, r"terminated have shape \(7,\): give \(18,\) or \(4,\)"),
        ({"truncated": np.full(STEPS, 2)}, "other values than 0 and 1"),
        ({"rewards": np.zeros(4)}, "rewards have 4 rows: 18 are needed"),
        ({"seeds": [1, 2]}, "seeds have 2 rows: 4 are needed, one for each episode"),
        ({"goals": np.zeros((3, 3))}, "goals have 3 rows"),
        ({"quantities": {"q": np.zeros(STEPS)}}, r"quantities.q have 18 rows: 22 are needed"),
        ({"observations": {"a": np.zeros((22, 1)), "b": np.zeros((21, 1))}}, "different numbers"),
        ({"observations": np.full((22, 3), np.nan)}, r"episode 0 \(actions 0 to 4\): observations"),
        ({"next_observations": np.zeros((18, 3))}, "with next_observations give 18 rows of both"),
    ],
)
def test_arrays_that_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        import_arrays(tmp_path / "data", **{**own_layout(), **changes})
    assert left_behind(tmp_path) == []


def test_d4rl_arrays_that_are_refused(tmp_path: Path) -> None:
    arrays = d4rl_layout()
    bare = without(arrays, "next_observations", "terminated", "truncated")
    with pytest.raises(ValueError, match="nothing says where episodes end"):
        import_arrays(tmp_path / "data", **bare)
    with pytest.raises(ValueError, match="which is dropped: give next_observations"):
        import_arrays(tmp_path / "data", **bare, terminated=np.ones(STEPS))
    torn = {**arrays, "next_observations": arrays["next_observations"] + 1}
    with pytest.raises(ValueError, match=r"in 14 rows inside episodes, first in row 0"):
        import_arrays(tmp_path / "data", **torn)
    other = {**arrays, "next_observations": {"x": arrays["next_observations"]}}
    with pytest.raises(ValueError, match="give the same"):
        import_arrays(tmp_path / "data", **other)


# --- Files.


def flat_names(arrays: dict[str, Any], separator: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in arrays.items():
        parts = value.items() if isinstance(value, dict) else [("", value)]
        flat |= {f"{name}{separator}{part}" if part else name: array for part, array in parts}
    return flat


@pytest.mark.parametrize("suffix", [".npz", ".hdf5", ".h5"])
def test_files_hold_the_same_data(tmp_path: Path, suffix: str) -> None:
    arrays, path = own_layout(), tmp_path / f"data{suffix}"
    write_file(path, arrays)
    expected = import_arrays(tmp_path / "arrays", **arrays, env_id="own/x")
    assert_same_data(expected, import_file(path, tmp_path / "file", env_id="own/x"))


def write_file(path: Path, arrays: dict[str, Any]) -> None:
    if path.suffix == ".npz":
        np.savez(path, **flat_names(arrays, "."))
        return
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, array in flat_names(arrays, "/").items():
            file[name] = array


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_names_of_d4rl_and_names_of_ones_own(tmp_path: Path, suffix: str) -> None:
    arrays = d4rl_layout()
    expected = import_arrays(tmp_path / "arrays", **arrays)
    named = without(arrays, "terminated", "truncated")
    named |= {"terminals": arrays["terminated"], "timeouts": arrays["truncated"], "other": [1, 2]}
    write_file(tmp_path / f"d4rl{suffix}", named)
    assert_same_data(expected, import_file(tmp_path / f"d4rl{suffix}", tmp_path / "d4rl"))
    renamed = {**without(named, "actions"), "controls": named["actions"]}
    write_file(tmp_path / f"own{suffix}", renamed)
    with pytest.raises(ValueError, match=r"has no actions or action: it has .*controls"):
        import_file(tmp_path / f"own{suffix}", tmp_path / "own")
    keys = {"actions": "controls"}
    assert_same_data(expected, import_file(tmp_path / f"own{suffix}", tmp_path / "own", keys=keys))


@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_entries_of_observations_are_a_group_or_named(tmp_path: Path, suffix: str) -> None:
    rng, path = np.random.default_rng(0), tmp_path / f"data{suffix}"
    parts = {"camera": rng.integers(0, 255, (7, 3, 4, 4), np.uint8), "arm": rng.normal(size=(7, 2))}
    arrays = {"actions": np.arange(5.0), "episode_lengths": [3, 2]}
    expected = import_arrays(tmp_path / "arrays", **arrays, observations=parts)
    write_file(path, {**arrays, "observations": parts})
    assert_same_data(expected, import_file(path, tmp_path / "group"))
    write_file(path, {**arrays, "pixels": parts["camera"], "arm": parts["arm"]})
    keys = {"observations": {"camera": "pixels", "arm": "arm"}}
    assert_same_data(expected, import_file(path, tmp_path / "named", keys=keys))
    with pytest.raises(ValueError, match="has no depth: it has"):
        import_file(path, tmp_path / "none", keys={"observations": {"camera": "depth"}})
    with pytest.raises(ValueError, match=r"keys name \['pixels'\]"):
        import_file(path, tmp_path / "none", keys={"pixels": "camera"})


def test_files_that_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    with pytest.raises(FileNotFoundError, match=r"none\.npz is not there"):
        import_file(tmp_path / "none.npz", tmp_path / "data")
    with pytest.raises(ValueError, match=r"use \.npz, \.h5, \.hdf5"):
        import_file(tmp_path / "data.csv", tmp_path / "data")
    for name in ("bad.npz", "bad.hdf5"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(ValueError, match=rf"{name} cannot be read"):
            import_file(tmp_path / name, tmp_path / "data")
    write_file(tmp_path / "cut.npz", own_layout())
    content = (tmp_path / "cut.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        import_file(tmp_path / "cut.npz", tmp_path / "data")
    np.savez(tmp_path / "objects.npz", **{**own_layout(), "quantities": np.array([{}, None])})
    with pytest.raises(ValueError, match="quantities without names"):
        import_file(tmp_path / "objects.npz", tmp_path / "data")
    np.savez(tmp_path / "objects.npz", observations=np.array([{}, None]), actions=np.zeros(1))
    with pytest.raises(ValueError, match=r"observations of .* cannot be read .* as numbers"):
        import_file(tmp_path / "objects.npz", tmp_path / "data")
    assert not (tmp_path / "data").exists()


# --- Minari.


@pytest.fixture
def minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Minari, with an empty folder of its own."""
    module = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return module


SPEC = EnvSpec(
    "own/both",
    spaces.Dict(
        {
            "camera": spaces.Box(0, 255, (40, 40, 3), np.uint8),
            "arm": spaces.Box(-9, 9, (2,), np.float64),
        }
    ),
    spaces.Discrete(4, start=1),
    0.1,
    50,
    {"a": 1},
)


def write_both(folder: Path) -> Dataset:
    """A data set with everything: mappings, goals, quantities, seeds, verdicts, policies."""
    rng = np.random.default_rng(0)
    for number, length in enumerate(LENGTHS):
        observations = {
            "camera": rng.integers(0, 256, (length + 1, 40, 40, 3), dtype=np.uint8),
            "arm": rng.normal(size=(length + 1, 2)),
        }
        item = Episode(
            observations=observations,
            actions=rng.integers(1, 5, (length, 1)),
            rewards=rng.normal(size=length),
            terminated=number % 2 == 0,
            truncated=number > 1,
            success=(None, True, False, True)[number],
            quantities={"clock": np.arange(length + 1.0)[:, None]},
            goal={name: array[-1] for name, array in observations.items()},
            seed=100 + number,
            env_id=SPEC.id,
            policy=f"policy{number}",
        )
        write_shard(folder, [item], SPEC)
    return Dataset.open(folder)


def test_ours_come_back_from_minari_as_they_were(tmp_path: Path, minari: Any) -> None:
    data = write_both(tmp_path / "data")
    path = export_minari(tmp_path / "data", "own/tests/both-v3", author="A", description="D")
    assert path == tmp_path / "minari" / "own" / "tests" / "both-v3"
    assert_same_data(data, import_minari("own/tests/both-v3", tmp_path / "back"))
    (listed,) = minari.list_local_datasets().values()
    assert listed["author"] == ["A"]
    assert listed["algorithm_name"] == "policy0, policy1, policy2, policy3"
    assert [item.name for item in (tmp_path / "minari").iterdir()] == ["own"]
    with pytest.raises(ValueError, match="there already: give a new version"):
        export_minari(tmp_path / "data", "own/tests/both-v3")


def test_minari_reads_what_we_wrote(tmp_path: Path, minari: Any) -> None:
    data = write_both(tmp_path / "data")
    export_minari(tmp_path / "data", "both-v0")
    loaded = minari.load_dataset("both-v0")
    assert (loaded.total_episodes, loaded.total_steps) == (EPISODES, STEPS)
    assert loaded.observation_space == SPEC.observation_space
    assert loaded.action_space == SPEC.action_space
    for index, item in enumerate(loaded.iterate_episodes()):
        ours: Any = data.episode(index)
        np.testing.assert_array_equal(item.observations["camera"], ours.observations["camera"])
        np.testing.assert_array_equal(item.actions, ours.actions[:, 0])
        np.testing.assert_array_equal(item.rewards, ours.rewards)
        assert item.terminations.tolist() == [False] * (ours.length - 1) + [ours.terminated]
        assert item.truncations.tolist() == [False] * (ours.length - 1) + [ours.truncated]
        assert all(len(value) == ours.length + 1 for value in item.infos["goal"].values())


def test_imported_data_go_round_with_their_bounds(tmp_path: Path, minari: Any) -> None:
    data = import_arrays(tmp_path / "data", **own_layout(), env_id="own/arm")
    export_minari(tmp_path / "data", "arm-v0")
    assert_same_data(data, import_minari("arm-v0", tmp_path / "back"))


def make_foreign(minari: Any, name: str, action_space: Any, actions: Any) -> None:
    """A data set that Minari itself wrote, with nested observations and infos."""
    inner = spaces.Dict({"joints": spaces.Box(-1, 1, (2,), np.float64)})
    arm = np.arange(8.0).reshape(4, 2) / 8
    buffer = minari.data_collector.EpisodeBuffer(
        seed=10**7,
        observations={"arm": {"joints": arm}, "load": np.arange(4)},
        actions=actions,
        rewards=[0.0, 1.0, 2.0],
        terminations=[False, False, True],
        truncations=[False, False, False],
        infos={"success": np.array([0, 0, 1, 1], bool), "state": {"qpos": arm * 2}},
    )
    minari.create_dataset_from_buffers(
        name,
        [buffer],
        observation_space=spaces.Dict({"arm": inner, "load": spaces.Discrete(9)}),
        action_space=action_space,
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_data_that_minari_wrote(tmp_path: Path, minari: Any) -> None:
    actions = np.array([[0.0], [5.0], [10.0]])
    make_foreign(minari, "lab/arm-v1", spaces.Box(0, 20, (1,), np.float64), actions)
    data = import_minari("lab/arm-v1", tmp_path / "data", quantities=["state/qpos"])
    assert data.spec.id == "own/lab/arm-v1"
    assert data.arrays("actions")[:, 0].tolist() == [-1, -0.5, 0]
    assert data.arrays("seed").tolist() == [0]  # another seed than ours, which would be held out
    assert data.arrays("observations.arm.joints").dtype == np.float32
    assert data.arrays("observations.load").tolist() == [[0], [1], [2], [3]]
    assert data.arrays("quantities.state/qpos").shape == (4, 2)
    item = data.episode(0)
    assert (item.terminated, item.truncated, item.success) == (True, False, True)
    assert item.rewards.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="quantity 'depth' is not among the infos"):
        import_minari("lab/arm-v1", tmp_path / "none", quantities=["depth"])
    wide = import_minari("lab/arm-v1", tmp_path / "wide", action_high=[10.0], env_id="own/w")
    assert wide.arrays("actions")[:, 0].tolist() == [-1, 0, 1]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_discrete_actions_of_minari_count_from_0(tmp_path: Path, minari: Any) -> None:
    make_foreign(minari, "arm-v0", spaces.Discrete(5, start=2), np.array([2, 4, 3]))
    data = import_minari("arm-v0", tmp_path / "data")
    assert data.spec.action_space == spaces.Discrete(5)
    assert data.arrays("actions")[:, 0].tolist() == [0, 2, 1]
    make_foreign(minari, "grid-v0", spaces.MultiDiscrete([2, 2]), np.zeros((3, 2), int))
    with pytest.raises(ValueError, match=r"only Box \(A,\) and Discrete"):
        import_minari("grid-v0", tmp_path / "grid")


def test_minari_is_refused_in_a_sentence(
    tmp_path: Path, minari: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match=r"`minari download lab/none-v0`"):
        import_minari("lab/none-v0", tmp_path / "data")
    write_both(tmp_path / "data")
    for name in ("both", "both-v", "../both-v0", "a b-v0"):
        with pytest.raises(ValueError, match="give NAME-v0"):
            export_minari(tmp_path / "data", name)
    storage = import_module("minari.dataset._storages.hdf5_storage").HDF5Storage

    def fail(*_: Any) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "update_episodes", fail)
        with pytest.raises(OSError, match="no space left"):
            export_minari(tmp_path / "data", "own/both-v0")
    assert [path for path in left_behind(tmp_path / "minari") if path.is_file()] == []
    assert not (tmp_path / "minari" / "own" / "both-v0").exists()


# --- What is not installed.


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data.hdf5").touch()
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] in ("h5py", "minari"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"h5py.*pip install 'forethought\[data\]'"):
        import_file(tmp_path / "data.hdf5", tmp_path / "data")
    with pytest.raises(ImportError, match=r"Minari.*pip install 'forethought\[data\]'"):
        import_minari("arm-v0", tmp_path / "data")
    with pytest.raises(ImportError, match=r"Minari.*pip install 'forethought\[data\]'"):
        export_minari(tmp_path / "data", "arm-v0")


def test_optional_packages_are_not_imported_before_they_are_needed() -> None:
    code = "import forethought.envs, sys; print([m in sys.modules for m in ('h5py', 'minari')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.lower()) == [False, False]
