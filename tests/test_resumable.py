"""Collection into a data set: the same files whoever collects them, and however often it stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from env_contract import assert_same

from forethought.envs import Dataset, Policy, Random, Scripted, collect, collect_to, make, spec_of
from forethought.envs.resumable import COLLECTING, default_shard, unfinished_episodes

ROOMS = "forethought/TwoRooms-v0"
FIELDS: dict[str, Any] = {"options": {"episode_limit": 8}, "num_envs": 4, "episodes_per_shard": 3}


def contents(folder: Path) -> dict[str, bytes]:
    """All files, byte for byte."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class StopError(Exception):
    """Somebody pulled the plug."""


def stop_after(episodes: int) -> Any:
    def on_progress(done: int) -> None:
        if done >= episodes:
            raise StopError

    return on_progress


def test_shards_are_written_and_appended_to(tmp_path: Path) -> None:
    fields = {**FIELDS, "options": {"task": "between"}}
    assert len(collect_to(tmp_path, ROOMS, Scripted(), 7, **fields)) == 3
    collect_to(tmp_path, ROOMS, Random(hold=0.5), 2, first_seed=7, **fields)
    collect_to(tmp_path, ROOMS, Random(), 1, **fields)  # the seed after those in the folder
    data = Dataset.open(tmp_path)
    data.verify()
    assert data.spec == spec_of(make(ROOMS, 5, task="between"))
    assert [record.episodes for record in data.shards] == [3, 3, 1, 2, 1]
    assert list(data.arrays("seed")) == list(range(10))
    assert [data.episode(index).policy for index in (0, 6, 7)] == ["scripted", "scripted", "random"]
    assert not (tmp_path / COLLECTING).exists()


def test_a_shard_is_a_collection_of_its_own(tmp_path: Path) -> None:
    collect_to(tmp_path, ROOMS, Random(), 7, first_seed=20, seed=5, **FIELDS)
    data = Dataset.open(tmp_path)
    env = make(ROOMS, 3, episode_limit=8)
    generator = np.random.default_rng([5, 23])
    for index, episode in enumerate(collect(env, Random(), 3, first_seed=23, generator=generator)):
        stored = data.episode(3 + index)
        assert_same(stored.actions, episode.actions)
        assert_same(stored.observations, episode.observations)


@pytest.mark.parametrize("after", [4, 6, 7])
def test_an_interrupted_collection_goes_on_where_it_stopped(tmp_path: Path, after: int) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    seen: list[int] = []
    collect_to(whole, ROOMS, Random(), 8, on_progress=seen.append, **FIELDS)
    assert seen == sorted(seen)
    assert seen[-1] == 8
    with pytest.raises(StopError):
        collect_to(cut, ROOMS, Random(), 8, on_progress=stop_after(after), **FIELDS)
    assert (cut / COLLECTING).exists()
    done = Dataset.open(cut).episodes
    assert 3 <= done < 8
    with pytest.raises(ValueError, match=r"interrupted.*seed was 0, is 1.*delete collecting.json"):
        collect_to(cut, ROOMS, Random(), 8, seed=1, **FIELDS)
    with pytest.raises(ValueError, match=r"policy was Random\(hold=0.0\), is Random\(hold=0.1\)"):
        collect_to(cut, ROOMS, Random(0.1), 8, **FIELDS)
    resumed: list[int] = []
    collect_to(cut, ROOMS, Random(), 8, on_progress=resumed.append, **FIELDS)
    assert resumed[0] == done
    assert resumed[-1] == 8
    assert_same(contents(cut), contents(whole))


def test_a_collection_that_wrote_nothing_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        collect_to(tmp_path, ROOMS, Random(), 8, on_progress=stop_after(1), **FIELDS)
    collect_to(tmp_path, ROOMS, Random(), 5, seed=3, **FIELDS)
    assert Dataset.open(tmp_path).episodes == 5


def test_an_unfinished_collection_has_a_shard(tmp_path: Path) -> None:
    assert unfinished_episodes(tmp_path) is None
    for after, left in ((1, None), (4, 8)):
        with pytest.raises(StopError):
            collect_to(tmp_path, ROOMS, Random(), 8, on_progress=stop_after(after), **FIELDS)
        assert (tmp_path / COLLECTING).exists()
        assert unfinished_episodes(tmp_path) == left
    collect_to(tmp_path, ROOMS, Random(), 8, **FIELDS)
    assert unfinished_episodes(tmp_path) is None


def test_workers_write_the_same_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    seen: list[int] = []
    collect_to(one, ROOMS, Random(), 8, **FIELDS)
    collect_to(two, ROOMS, Random(), 8, workers=2, on_progress=seen.append, **FIELDS)
    assert_same(contents(one), contents(two))
    assert seen == [3, 6, 8]


def test_killed_while_workers_collect_it_resumes(tmp_path: Path) -> None:
    """A SIGKILL for the parent; its workers end by themselves."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    code = (
        "import os, signal, sys\n"
        "from forethought.envs import Random, collect_to\n"
        "def on_progress(done):\n"
        "    if done >= 6: os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        f"    collect_to(sys.argv[1], {ROOMS!r}, Random(), 12, workers=2,\n"
        f"               on_progress=on_progress, **{FIELDS!r})\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    done = subprocess.run([sys.executable, script, cut], check=False)
    assert done.returncode == -signal.SIGKILL
    assert Dataset.open(cut).episodes == 6
    collect_to(cut, ROOMS, Random(), 12, **FIELDS)
    collect_to(whole, ROOMS, Random(), 12, **FIELDS)
    assert_same(contents(cut), contents(whole))


@dataclass(frozen=True)
class Deadly(Policy):
    """Kills its process, or raises, when it meets the second shard; unless a file says not to."""

    mercy: str
    kill: bool = True

    def __call__(
        self, observations: Any, info: Any, previous_actions: Any, generator: Any
    ) -> np.ndarray:
        second = generator.bit_generator.seed_seq.entropy[1] == 3
        if second and not Path(self.mercy).exists():
            if self.kill:
                time.sleep(0.5)  # until the first shard is written
                os.kill(os.getpid(), signal.SIGKILL)
            raise FloatingPointError("too hot")
        return generator.uniform(-1, 1, previous_actions.shape).astype(np.float32)


def test_a_killed_worker_is_one_sentence_and_loses_nothing(tmp_path: Path) -> None:
    mercy = tmp_path / "mercy"
    policy, folder = Deadly(str(mercy)), tmp_path / "data"
    with pytest.raises(ChildProcessError, match=r"seeds 3 to 5.*exit code -9.*same command again"):
        collect_to(folder, ROOMS, policy, 9, workers=2, **FIELDS)
    assert list(Dataset.open(folder).arrays("seed")) == [0, 1, 2]
    mercy.touch()
    collect_to(folder, ROOMS, policy, 9, workers=2, **FIELDS)
    assert list(Dataset.open(folder).arrays("seed")) == list(range(9))


def test_an_error_in_a_worker_is_told(tmp_path: Path) -> None:
    policy = Deadly(str(tmp_path / "mercy"), kill=False)
    with pytest.raises(ChildProcessError, match="FloatingPointError: too hot"):
        collect_to(tmp_path / "data", ROOMS, policy, 6, workers=2, **FIELDS)


def test_environments_can_be_made_by_a_function(tmp_path: Path) -> None:
    def limited(num_envs: int) -> Any:
        return make(ROOMS, num_envs, episode_limit=8)

    fields = {**FIELDS, "options": None}
    one, two = tmp_path / "one", tmp_path / "two"
    collect_to(one, limited, Random(), 4, **fields)
    collect_to(two, ROOMS, Random(), 4, **FIELDS)
    assert_same(contents(one), contents(two))
    with pytest.raises(ValueError, match="cannot be sent to another process"):
        collect_to(tmp_path / "three", limited, Random(), 9, workers=2, **fields)
    with pytest.raises(ValueError, match="options are given with a function"):
        collect_to(tmp_path / "three", limited, Random(), 9, **FIELDS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes_per_shard": 0}, "episodes_per_shard is 0"),
        ({"num_envs": 0}, "num_envs is 0"),
        ({"workers": 0}, "workers is 0"),
        ({"first_seed": -1}, "first_seed is -1"),
        ({"first_seed": 10**6 - 2}, "held-out seeds"),
        ({"first_seed": 3}, r"seeds 3 to 4 are in .* already, begin with first_seed 5"),
        ({"options": {"episode_limit": 9}}, "use another folder"),
        ({"options": {"episode": 9}}, "unknown options episode"),
        ({"env": "CartPole-v1", "options": {}}, "no actions in Discrete"),
    ],
)
def test_collect_to_refuses_before_work_starts(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    collect_to(tmp_path, ROOMS, Scripted(), 5, **FIELDS)
    before = contents(tmp_path)
    fields = {"env": ROOMS, "policy": Scripted(), "episodes": 4, **FIELDS, **changes}
    with pytest.raises(ValueError, match=message):
        collect_to(tmp_path, **fields)
    assert_same(contents(tmp_path), before)


def test_shards_are_of_bounded_size() -> None:
    assert default_shard(spec_of(make("Pendulum-v1"))) == 16_384 // 200
    assert default_shard(spec_of(make("HalfCheetah-v5"))) == 16
    assert default_shard(spec_of(make("HalfCheetah-v5", action_repeat=4))) == 16
    pixels = make("HalfCheetah-v5", observe="pixels")
    assert default_shard(spec_of(pixels)) == 4
    assert default_shard(spec_of(make("HalfCheetah-v5", observe="both", frame_stack=9))) == 1
