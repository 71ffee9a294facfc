"""Data sets: what is written comes back, windows stay inside episodes, damage is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from safetensors.numpy import load_file

from forethought.envs import Dataset, EnvSpec, Episode, describe, shard, write_shard

SPEC = EnvSpec(
    "test/Counter-v0",
    spaces.Box(-np.inf, np.inf, (2,), np.float32),
    spaces.Box(-1, 1, (3,), np.float32),
    0.1,
    50,
    {"a": 1},
)


def episode(number: int, length: int, **changes: Any) -> Episode:
    """An episode whose every entry says which episode and time it is of."""
    times = np.arange(length + 1, dtype=np.float32)
    observations = np.stack([np.full_like(times, number), times], axis=1)
    fields: dict[str, Any] = {
        "observations": observations,
        "actions": np.repeat(number + times[:-1, None] / 100, 3, axis=1),
        "rewards": times[:-1] * 2,
        "terminated": number % 2 == 0,
        "truncated": number % 2 == 1,
        "success": (None, True, False)[number % 3],
        "quantities": {"clock": times[:, None] + 1000 * number, "wide": observations * 3.0},
        "goal": np.array([number, -1], np.float32),
        "seed": 70 + number,
        "env_id": SPEC.id,
        "policy": f"policy{number % 2}",
    }
    return Episode(**{**fields, **changes})


def assert_episodes_equal(one: Episode, other: Episode) -> None:
    first, second = vars(one), vars(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        if isinstance(value, dict):
            assert value.keys() == second[name].keys()
            for key in value:
                np.testing.assert_array_equal(value[key], second[name][key])
        else:
            np.testing.assert_array_equal(value, second[name])
        if isinstance(value, np.ndarray):
            assert value.dtype == second[name].dtype


DICT_SPEC = EnvSpec(
    "test/Both-v0",
    spaces.Dict(
        {
            "joints": spaces.Box(-np.inf, np.inf, (2,), np.float32),
            "camera": spaces.Box(0, 255, (3, 4, 5), np.uint8),
        }
    ),
    spaces.Discrete(4),
    0.1,
    50,
)


def dict_episode(number: int, length: int, **changes: Any) -> Episode:
    """An episode with a camera and joints, whose joints are the observations of `episode`."""
    plain = episode(number, length)
    rng = np.random.default_rng(number)
    camera = rng.integers(0, 256, (length + 1, 3, 4, 5), dtype=np.uint8)
    fields: dict[str, Any] = {
        "observations": {"joints": plain.observations, "camera": camera},
        "actions": rng.integers(0, 4, (length, 1)),
        "goal": {"joints": plain.goal, "camera": camera[-1]},
        "env_id": DICT_SPEC.id,
    }
    return Episode(**{**vars(plain), **fields, **changes})


LENGTHS = [5, 9, 3, 12, 4, 7]


@pytest.fixture
def episodes() -> list[Episode]:
    return [episode(number, length) for number, length in enumerate(LENGTHS)]


@pytest.fixture
def folder(tmp_path: Path, episodes: list[Episode]) -> Path:
    target = tmp_path / "data" / "counter"
    for begin, end in ((0, 3), (3, 4), (4, 6)):
        write_shard(target, episodes[begin:end], SPEC)
    return target


@pytest.fixture
def dict_folder(tmp_path: Path) -> Path:
    target = tmp_path / "both"
    for begin, end in ((0, 3), (3, 4), (4, 6)):
        numbers = range(begin, end)
        write_shard(target, [dict_episode(k, LENGTHS[k]) for k in numbers], DICT_SPEC)
    return target


@pytest.mark.parametrize("in_memory", [False, True])
def test_round_trip(folder: Path, episodes: list[Episode], in_memory: bool) -> None:
    data = Dataset.open(folder, in_memory=in_memory)
    assert data.spec == SPEC
    assert data.episodes == 6
    assert data.steps == sum(LENGTHS)
    assert [record.episodes for record in data.shards] == [3, 1, 2]
    data.verify()
    for index, original in enumerate(episodes):
        assert_episodes_equal(data.episode(index), original)
    with pytest.raises(ValueError, match="episode 6"):
        data.episode(6)


def test_shards_are_ordinary_safetensors(folder: Path, episodes: list[Episode]) -> None:
    arrays = load_file(folder / "shard-00000.safetensors")
    flat = np.concatenate([item.observations for item in episodes[:3]])
    np.testing.assert_array_equal(arrays["observations"], flat)
    np.testing.assert_array_equal(arrays["length"], LENGTHS[:3])


def test_opened_files_are_mapped_and_cannot_be_written_to(folder: Path) -> None:
    mapped = Dataset.open(folder)._arrays[0]["observations"]
    base = mapped
    while not isinstance(base, np.memmap):
        base = base.base
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 1.0


def test_flat_arrays_and_offsets(folder: Path, episodes: list[Episode]) -> None:
    data = Dataset.open(folder)
    flat, actions = data.arrays("observations"), data.arrays("actions")
    clock = data.arrays("quantities.clock")
    for index, original in enumerate(episodes):
        rows = slice(*data.observation_offsets[index : index + 2])
        np.testing.assert_array_equal(flat[rows], original.observations)
        np.testing.assert_array_equal(clock[rows], original.quantities["clock"])
        rows = slice(*data.step_offsets[index : index + 2])
        np.testing.assert_array_equal(actions[rows], original.actions)
    with pytest.raises(ValueError, match="'depth' is not there"):
        data.arrays("depth")


@pytest.mark.parametrize("length", [1, 4, 9, 12])
def test_windows_stay_inside_episodes_and_keep_the_layout(folder: Path, length: int) -> None:
    sampler = Dataset.open(folder).windows(length)
    windows = sampler.sample(300, np.random.default_rng(0))
    assert windows.observations.shape == (300, length + 1, 2)
    assert windows.actions.shape == (300, length, 3)
    number, time = windows.observations[..., 0], windows.observations[..., 1]
    assert (number == number[:, :1]).all()
    np.testing.assert_array_equal(time, time[:, :1] + np.arange(length + 1))
    expected = number[:, :-1] + time[:, :-1] / np.float32(100)
    np.testing.assert_allclose(windows.actions[..., 0], expected, rtol=1e-6)
    np.testing.assert_array_equal(windows.quantities["clock"][..., 0], time + 1000 * number)


@pytest.mark.parametrize("length", [1, 4, 6, 12])
def test_windows_are_uniform_over_all_valid_starts(folder: Path, length: int) -> None:
    sampler = Dataset.open(folder).windows(length)
    valid = {(n, t) for n, steps in enumerate(LENGTHS) for t in range(steps - length + 1)}
    assert len(sampler) == len(valid)
    every = sampler.gather(np.arange(len(sampler))).observations[:, 0]
    assert {(int(n), int(t)) for n, t in every} == valid
    draws = 200 * len(valid)
    drawn = sampler.sample(draws, np.random.default_rng(0)).observations[:, 0].astype(int)
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    # Chi-squared with len(valid) - 1 degrees of freedom; five standard deviations above its mean.
    chi_squared = ((counts - 200.0) ** 2 / 200.0).sum()
    freedom = len(valid) - 1
    assert chi_squared <= freedom + 5 * np.sqrt(2 * freedom)
    assert len(counts) == len(valid)


def test_sampling_repeats_with_the_generator(folder: Path) -> None:
    sampler = Dataset.open(folder).windows(3)
    one, two = (sampler.sample(20, np.random.default_rng(5)).observations for _ in range(2))
    other = sampler.sample(20, np.random.default_rng(6)).observations
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


def test_windows_know_rewards_and_terminations(folder: Path, episodes: list[Episode]) -> None:
    data = Dataset.open(folder)
    flat = data.terminal()
    for index, item in enumerate(episodes):
        marks = np.zeros(item.length, bool)
        marks[-1] = item.terminated
        np.testing.assert_array_equal(flat[slice(*data.step_offsets[index : index + 2])], marks)
    for length in (1, 4, 7):
        sampler = data.windows(length)
        windows = sampler.gather(np.arange(len(sampler)))
        starts = [(item, t) for item in episodes for t in range(max(item.length - length + 1, 0))]
        assert windows.rewards.dtype == np.float32
        assert windows.terminal.dtype == bool
        for row, (item, start) in enumerate(starts):
            np.testing.assert_array_equal(windows.rewards[row], item.rewards[start:][:length])
            ends = item.terminated and start + length == item.length
            assert windows.terminal[row].tolist() == [False] * (length - 1) + [ends]


def test_windows_fetch_the_quantities_asked_for(folder: Path) -> None:
    data, rng = Dataset.open(folder), np.random.default_rng(0)
    assert set(data.windows(3).sample(2, rng).quantities) == {"clock", "wide"}
    assert set(data.windows(3, ["wide"]).sample(2, rng).quantities) == {"wide"}
    assert data.windows(3, ()).sample(2, rng).quantities == {}
    with pytest.raises(ValueError, match=r"quantity 'depth' is not there: .*'clock', 'wide'"):
        data.windows(3, ["depth"])


@pytest.mark.parametrize("rows", [1, 4, 7, 46, 1000])
def test_chunks_are_the_flat_arrays_however_shards_are_cut(
    folder: Path, dict_folder: Path, rows: int
) -> None:
    data = Dataset.open(folder)
    chunks = list(data.observation_chunks(rows))
    assert [len(chunk) for chunk in chunks[:-1]] == [rows] * (len(chunks) - 1)
    assert 1 <= len(chunks[-1]) <= rows
    np.testing.assert_array_equal(np.concatenate(chunks), data.arrays("observations"))
    data = Dataset.open(dict_folder)
    pieces: Any = list(data.observation_chunks(rows))
    for name in ("joints", "camera"):
        joined = np.concatenate([piece[name] for piece in pieces])
        np.testing.assert_array_equal(joined, data.arrays(f"observations.{name}"))
    with pytest.raises(ValueError, match="rows is 0"):
        data.observation_chunks(0)


def test_a_chunk_inside_a_shard_is_a_view(folder: Path) -> None:
    data = Dataset.open(folder)
    chunk: Any = next(data.observation_chunks(4))
    assert np.shares_memory(chunk, data._arrays[0]["observations"])


# --- Mappings as observations.


@pytest.mark.parametrize("in_memory", [False, True])
def test_mappings_come_back(dict_folder: Path, in_memory: bool) -> None:
    data = Dataset.open(dict_folder, in_memory=in_memory)
    data.verify()
    assert data.spec == DICT_SPEC
    assert set(data.observation_names) == {"joints", "camera"}
    assert Dataset.open(dict_folder).arrays("goals.camera").shape == (6, 3, 4, 5)
    for index, length in enumerate(LENGTHS):
        assert_episodes_equal(data.episode(index), dict_episode(index, length))
    with pytest.raises(ValueError, match="'observations' is not there"):
        data.arrays("observations")


def test_mappings_have_a_format_version_of_their_own(folder: Path, dict_folder: Path) -> None:
    versions = [
        json.loads((path / "index.json").read_text())["format_version"]
        for path in (folder, dict_folder)
    ]
    assert versions == [1, 2]


@pytest.mark.parametrize("length", [1, 4, 9, 12])
def test_every_window_of_mappings_is_a_slice_of_its_episode(dict_folder: Path, length: int) -> None:
    sampler = Dataset.open(dict_folder).windows(length)
    windows: Any = sampler.gather(np.random.default_rng(0).permutation(len(sampler)))
    assert windows.observations["camera"].dtype == np.uint8
    seen = set()
    for row in range(len(sampler)):
        number, start = (int(x) for x in windows.observations["joints"][row, 0])
        item: Any = dict_episode(number, LENGTHS[number])
        for name in ("joints", "camera"):
            expected = item.observations[name][start : start + length + 1]
            np.testing.assert_array_equal(windows.observations[name][row], expected)
        np.testing.assert_array_equal(windows.actions[row], item.actions[start : start + length])
        seen.add((number, start))
    assert len(seen) == len(sampler)


def test_statistics_of_mappings_are_those_of_their_entries(dict_folder: Path) -> None:
    data = Dataset.open(dict_folder)
    statistics: Any = data.channel_statistics()
    assert {name: mean.shape for name, (mean, _) in statistics.items()} == {
        "joints": (2,),
        "camera": (3,),
    }
    camera = data.arrays("observations.camera")
    np.testing.assert_allclose(statistics["camera"][0], camera.mean((0, 2, 3)), rtol=1e-5)
    joints = data.arrays("observations.joints")
    np.testing.assert_allclose(statistics["joints"][1], joints.std(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": {}}, "empty mapping"),
        ({"observations": {"joints": np.zeros((3, 2), np.float32)}}, "observations.joints has 3"),
        ({"goal": np.zeros(2, np.float32)}, r"goal has the entries \['goal'\]"),
        ({"goal": {"joints": np.zeros(2, np.float32)}}, r"goal.camera.*give one observation"),
        (
            {"goal": {"joints": np.zeros(3), "camera": np.zeros((3, 4, 5), np.uint8)}},
            r"goal.joints has shape \(3,\)",
        ),
    ],
)
def test_an_episode_of_mappings_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dict_episode(1, 3, **changes)


def test_a_mapping_that_the_spec_does_not_have_is_refused(tmp_path: Path) -> None:
    other = dict_episode(1, 3, observations={"joints": np.zeros((4, 2), np.float32)}, goal=None)
    with pytest.raises(ValueError, match=r"has \['observations.joints'\], the spec says"):
        write_shard(tmp_path / "new", [other], DICT_SPEC)
    whole: Any = dict_episode(1, 3).observations
    wide = {**whole, "joints": whole["joints"].astype(np.float64)}
    with pytest.raises(ValueError, match=r"observations\.joints are float64"):
        write_shard(tmp_path / "new", [dict_episode(1, 3, observations=wide)], DICT_SPEC)
    nested = spaces.Dict({"inner": spaces.Dict({"x": spaces.Box(-1, 1, (2,))})})
    spec = EnvSpec(**{**vars(DICT_SPEC), "observation_space": nested})
    with pytest.raises(ValueError, match="use a Box or a Dict of Boxes"):
        write_shard(tmp_path / "new", [dict_episode(1, 3)], spec)
    assert not (tmp_path / "new").exists()


def test_damaged_shards_of_mappings_are_found(dict_folder: Path) -> None:
    path = dict_folder / "shard-00001.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"shard-00001.*cut"):
        Dataset.open(dict_folder)
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 4
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"shard-00001.*SHA-256"):
        Dataset.open(dict_folder).verify()


def test_later_shards_must_be_like_the_first(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"differ from those of data set .*quantities.clock"):
        write_shard(folder, [episode(8, 5, quantities={})], SPEC)
    with pytest.raises(ValueError, match=r"\['goals'\]: use another folder"):
        write_shard(folder, [episode(8, 5, goal=None)], SPEC)
    assert Dataset.open(folder).episodes == 6


# --- Description.


def test_a_description_says_what_is_there(folder: Path, episodes: list[Episode]) -> None:
    data, told = Dataset.open(folder), describe(folder)
    json.dumps(told, allow_nan=False)
    assert (told["episodes"], told["decisions"]) == (6, sum(LENGTHS))
    assert told["environment_steps"] == sum(LENGTHS)
    assert told["environment"]["id"] == SPEC.id
    returns = [item.rewards.sum() for item in episodes]
    assert told["return"] == {
        "min": min(returns),
        "mean": pytest.approx(np.mean(returns)),
        "max": max(returns),
    }
    assert told["success"] == {"share": 0.5, "of": 4}
    assert (told["terminated"], told["truncated"]) == (3, 3)
    assert told["policies"] == {"policy0": 3, "policy1": 3}
    assert told["seeds"] == {"min": 70, "max": 75, "held_out": 0}
    assert (told["shards"], told["bytes"]) == (3, sum(item.bytes for item in data.shards))
    assert_statistics(told["observations"]["observations"], data.arrays("observations"))
    assert_statistics(told["quantities"]["clock"], data.arrays("quantities.clock"))
    assert_statistics(told["actions"], data.arrays("actions"))
    assert told["actions"]["at_bounds"] == (np.abs(data.arrays("actions")) >= 1).mean(0).tolist()


def assert_statistics(told: dict[str, Any], array: np.ndarray) -> None:
    assert told["rows"] == len(array)
    for name in ("min", "mean", "std", "max"):
        expected = getattr(array.astype(np.float64), name)(0)
        np.testing.assert_allclose(told[name], expected, rtol=1e-6, atol=1e-9)


def test_a_description_of_mappings_counts_actions_and_held_out_seeds(dict_folder: Path) -> None:
    write_shard(dict_folder, [dict_episode(6, 5, seed=10**6)], DICT_SPEC)
    data, told = Dataset.open(dict_folder), describe(dict_folder, sample=10)
    assert told["actions"]["counts"] == np.bincount(data.arrays("actions")[:, 0]).tolist()
    assert told["seeds"] == {"min": 70, "max": 10**6, "held_out": 1}
    camera = told["observations"]["observations.camera"]
    assert camera["rows"] == 10
    assert len(camera["mean"]) == 3
    assert told["observations"]["observations.joints"]["rows"] == data.observation_offsets[-1]
    with pytest.raises(ValueError, match="sample is 0"):
        describe(dict_folder, sample=0)


def test_a_small_spread_beside_a_large_mean_is_described(tmp_path: Path) -> None:
    times = np.linspace(0, 1, 10001)[:, None]
    item = episode(0, 10000, quantities={"far": 1e8 + times})
    write_shard(tmp_path, [item], SPEC)
    assert describe(tmp_path)["quantities"]["far"]["std"][0] == pytest.approx(times.std(), rel=1e-4)


def test_windows_refuse(folder: Path) -> None:
    data = Dataset.open(folder)
    with pytest.raises(ValueError, match="length is 13, the longest episode has 12 steps"):
        data.windows(13)
    with pytest.raises(ValueError, match="length is 0"):
        data.windows(0)
    with pytest.raises(ValueError, match="batch is 0"):
        data.windows(3).sample(0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="ranks are"):
        data.windows(3).gather(np.array([-1]))


def test_statistics_of_vectors_are_those_of_all_entries(folder: Path) -> None:
    data = Dataset.open(folder)
    mean, std = data.channel_statistics()
    flat = data.arrays("observations").astype(np.float64)
    np.testing.assert_allclose(mean, flat.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, flat.std(0), rtol=1e-6)
    assert mean.dtype == std.dtype == np.float32


def test_statistics_of_images_are_per_channel_and_bounded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5001, 2, 4, 4), dtype=np.uint8)
    images[:, 1] //= 4
    box = spaces.Box(0, 255, (2, 4, 4), np.uint8)
    spec = EnvSpec("test/Images-v0", box, spaces.Box(-1, 1, (1,), np.float32), 0.1, 5000)
    item = Episode(
        observations=images,
        actions=np.zeros((5000, 1), np.float32),
        rewards=np.zeros(5000, np.float32),
        terminated=False,
        truncated=True,
        success=None,
        quantities={},
        goal=None,
        seed=0,
        env_id=spec.id,
        policy="none",
    )
    write_shard(tmp_path, [item], spec)
    data = Dataset.open(tmp_path)
    mean, std = data.channel_statistics()
    assert mean.shape == std.shape == (2,)
    np.testing.assert_allclose(mean, images.mean((0, 2, 3)), rtol=0.02)
    np.testing.assert_allclose(std, images.std((0, 2, 3)), rtol=0.02)
    np.testing.assert_array_equal(mean, data.channel_statistics()[0])
    assert data.episode(0).goal is None


# --- Damage.


def test_missing_data_set_and_missing_shard(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no data set in"):
        Dataset.open(tmp_path / "nowhere")
    (folder / "shard-00001.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="shard-00001"):
        Dataset.open(folder)


def test_cut_file_is_found_when_opened(folder: Path) -> None:
    path = folder / "shard-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"shard-00002.*cut"):
        Dataset.open(folder)


def test_flipped_bit_is_found_by_verify(folder: Path) -> None:
    path = folder / "shard-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    data = Dataset.open(folder)
    with pytest.raises(ValueError, match=r"shard-00000.*SHA-256"):
        data.verify()


@pytest.mark.parametrize("header", [b"\xff" * 8, b"\x05" + b"\0" * 7 + b"nojsn"])
def test_damaged_header_is_named(folder: Path, header: bytes) -> None:
    path = folder / "shard-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[: len(header)] = header
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-00000.*damaged header"):
        Dataset.open(folder)


def edit_index(folder: Path, **changes: Any) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, **changes}))


def test_index_of_another_version_or_damaged(folder: Path) -> None:
    edit_index(folder, format_version=99)
    with pytest.raises(ValueError, match="format version 99"):
        Dataset.open(folder)
    (folder / "index.json").write_text('{"format_ver')
    with pytest.raises(ValueError, match="damaged"):
        Dataset.open(folder)


def test_index_cannot_point_out_of_the_folder(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0]["file"] = "../elsewhere.safetensors"
    edit_index(folder, shards=index["shards"])
    with pytest.raises(ValueError, match="elsewhere"):
        Dataset.open(folder)


@pytest.mark.parametrize("survivors", [0, 1])
def test_interrupted_write_leaves_the_old_data_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch, survivors: int
) -> None:
    """Killed before the shard's rename (0), or between the shard's and the index's (1)."""
    replace = shard.os.replace
    calls: list[Path] = []

    def die(source: Path, target: Path) -> None:
        if len(calls) == survivors:
            raise KeyboardInterrupt
        calls.append(target)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(shard.os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            write_shard(folder, [episode(8, 20)], SPEC)
    data = Dataset.open(folder)
    data.verify()
    assert data.episodes == 6
    write_shard(folder, [episode(9, 6)], SPEC)
    data = Dataset.open(folder)
    data.verify()
    assert data.episodes == 7
    assert data.episode(6).seed == 79
    assert sorted(path.name for path in folder.iterdir() if "tmp" in path.name) == []


# --- What does not belong together.


def test_other_environment_is_refused(folder: Path) -> None:
    for changes in ({"options": {"a": 2}}, {"episode_limit": 51}):
        fields = {**vars(SPEC), **changes}
        with pytest.raises(ValueError, match="use another folder"):
            write_shard(folder, [episode(1, 3)], EnvSpec(**fields))
    assert Dataset.open(folder).episodes == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env_id": "test/Other-v0"}, "test/Other-v0"),
        ({"observations": np.zeros((4, 2))}, "float64"),
        ({"observations": np.zeros((4, 3), np.float32), "goal": None}, r"\(3,\)"),
        ({"actions": np.zeros((3, 2), np.float32)}, "2 columns"),
        ({"quantities": {}}, "quantities"),
        ({"goal": None}, "goal"),
        ({"actions": np.zeros((3, 3))}, "actions of the episode of seed 71 are float64"),
    ],
)
def test_odd_episode_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_shard(tmp_path / "new", [episode(0, 5), episode(1, 3, **changes)], SPEC)
    assert not (tmp_path / "new").exists()


def test_empty_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="episodes are empty"):
        write_shard(tmp_path, [], SPEC)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": np.zeros((3, 2), np.float32)}, "observations has 3 rows"),
        ({"rewards": np.zeros(4)}, "rewards has 4 rows"),
        ({"actions": np.zeros((0, 3))}, "actions are empty"),
        ({"actions": np.zeros(3)}, r"give \(T, A\)"),
        ({"rewards": np.zeros((3, 1))}, r"give \(T,\)"),
        ({"rewards": np.array([0, np.nan, 0])}, "rewards holds a number that is not finite"),
        ({"quantities": {"q": np.zeros(4)}}, r"quantities\['q'\] has shape"),
        ({"quantities": {"q": np.full((4, 1), np.inf)}}, "not finite"),
        ({"goal": np.zeros(3)}, "goal has shape"),
    ],
)
def test_episode_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        episode(1, 3, **changes)
