"""Worker processes: each collects whole shards; results come in order, whoever is done first."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from forethought.envs.episode import Episode

Collect = Callable[[range], list[Episode]]

_AGAIN = "run the same command again: shards that are written are kept, and it goes on from there"
_SECONDS_TO_END = 5.0
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def in_workers(
    collect: Collect, shards: Sequence[range], workers: int
) -> Generator[list[Episode], None, None]:
    """Collect shards in other processes.

    Processes are spawned, so that a script which calls this needs the usual
    `if __name__ == "__main__":`. They end with the iterator, however that ends.

    Args:
        collect: Collects the episodes of a range of seeds; anything that can be sent to another
            process.
        shards: Ranges of seeds.
        workers: Number of processes.

    Yields:
        The episodes of each shard, in the order of `shards`.

    Raises:
        ValueError: `collect` cannot be sent to another process.
        ChildProcessError: A worker was killed, or raised an error.
    """
    crew: list[_Worker] = []
    try:
        with _one_thread_each():
            for _ in range(min(workers, len(shards))):
                crew.append(_Worker(collect))
        finished: dict[int, list[Episode]] = {}
        given = due = 0
        while due < len(shards):
            for worker in crew:
                # Not too far ahead: what waits for an earlier shard waits in memory.
                if worker.shard is None and given < min(len(shards), due + 2 * len(crew)):
                    worker.give(given, shards[given])
                    given += 1
            busy = {worker.line: worker for worker in crew if worker.shard is not None}
            for line in connection.wait(list(busy)):
                number, episodes = busy[line].take(shards)  # type: ignore[index]
                finished[number] = episodes
            while due in finished:
                yield finished.pop(due)
                due += 1
    finally:
        for worker in crew:
            worker.end()


class _Worker:
    """One process, and the line to it."""

    def __init__(self, collect: Collect) -> None:
        context = get_context("spawn")
        self.line, theirs = context.Pipe()
        self.shard: int | None = None
        self.process: BaseProcess = context.Process(
            target=_serve, args=(theirs, collect), daemon=True, name="collect"
        )
        try:
            self.process.start()
        except Exception as error:
            if self.process.pid is not None:
                raise
            raise ValueError(
                f"what collects cannot be sent to another process ({error}): "
                "use an id and a policy that can be pickled, or workers=1"
            ) from error
        finally:
            theirs.close()  # so that the line breaks when the process ends

    def give(self, number: int, shard: range) -> None:
        """Let it collect a shard."""
        self.shard = number
        with suppress(OSError):  # it has ended, which `take` will tell
            self.line.send(shard)

    def take(self, shards: Sequence[range]) -> tuple[int, list[Episode]]:
        """The number of the shard it has collected, and its episodes."""
        number = self.shard
        assert number is not None
        seeds = f"seeds {shards[number][0]} to {shards[number][-1]} (shard {number} of this call)"
        try:
            fine, answer = self.line.recv()
        except (EOFError, OSError) as error:
            self.process.join(_SECONDS_TO_END)
            raise ChildProcessError(
                f"the worker that collected {seeds} ended with exit code {self.process.exitcode}: "
                f"{_AGAIN}"
            ) from error
        if not fine:
            raise ChildProcessError(f"collecting {seeds} failed in a worker: {answer}")
        self.shard = None
        return number, answer

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self.line.close()
        if self.process.pid is None:
            return
        self.process.terminate()
        self.process.join(_SECONDS_TO_END)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _serve(line: Connection[Any, Any], collect: Collect) -> None:
    """What a worker does until it is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    while True:
        try:
            shard = line.recv()
        except EOFError:
            return
        answer: Any
        try:
            answer = (True, collect(shard))
        except Exception as error:  # noqa: BLE001 - told to the parent
            answer = (False, f"{type(error).__name__}: {error}")
        try:
            line.send(answer)
        except OSError:
            return


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes that start in here use one thread: there are as many of them as wanted."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
