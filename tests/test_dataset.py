"""Data sets: what is written comes back, windows stay inside episodes, damage is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from safetensors.numpy import load_file

from forethought.envs import Dataset, EnvSpec, Episode, shard, write_shard

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
    flat, actions = data.observations(), data.arrays("actions")
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
    flat = data.observations().astype(np.float64)
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
