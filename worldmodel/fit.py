"""The one training loop."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from forethought.worldmodel import ranks
from forethought.worldmodel.snapshot import Snapshot

OnStep = Callable[[int, dict[str, float]], None]


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient is not finite; the parameters are those before that step."""


class _Patience:
    """Holds Ctrl-C back until the update in progress is whole; a second one is not held back."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> _Patience:
        usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if usual and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._hold)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def in_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """A module in training mode or out of it, and afterwards as it was.

    Dropout and batch normalisation do in training what would be wrong anywhere else.
    """
    before = module.training
    module.train(training)
    try:
        yield
    finally:
        module.train(before)


def fit(
    parameters: Iterable[nn.Parameter],
    loss: Callable[[], tuple[Tensor, dict[str, Tensor]]],
    *,
    steps: int,
    learning_rate: float,
    on_step: OnStep | None = None,
    snapshot: Snapshot | None = None,
    log_every: int = 50,
    clip: float = 10.0,
    warmup: int = 50,
    weight_decay: float = 0.0,
) -> None:
    """Minimise `loss` by Adam with a linear warm-up and a cosine decay to zero.

    Args:
        parameters: what is trained.
        loss: draws a batch and returns its scalar loss and named terms.
        steps: number of updates; 0 does nothing.
        learning_rate: peak learning rate.
        on_step: called every `log_every` steps and after the last one with the number of updates
            done and the named terms, `loss`, `gradient_norm`, `learning_rate` and
            `steps_per_second`.
        snapshot: where to go on from and what to write on the way; it must have entered a stage
            of its own for this call.
        log_every: steps between two calls of `on_step`.
        clip: largest norm of the gradient.
        warmup: steps of linear warm-up, at most a tenth of all.
        weight_decay: share of every weight that a step at learning rate 1 would take away, apart
            from the gradient (AdamW, Loshchilov and Hutter 2017, 1711.05101); 0 is Adam.

    Raises:
        NonFiniteLossError: the loss or its gradient is not finite; nothing was updated with it,
            and the snapshot holds the state before it.
        KeyboardInterrupt: Ctrl-C, once the update in progress is whole; the snapshot holds it.
    """
    if not steps:
        return
    trained = [p for p in parameters if p.requires_grad]
    optimiser: torch.optim.Optimizer = torch.optim.Adam(trained, lr=learning_rate, fused=True)
    if weight_decay:
        optimiser = torch.optim.AdamW(
            trained, lr=learning_rate, weight_decay=weight_decay, fused=True
        )
    warmup = min(warmup, max(1, steps // 10))
    first = 0 if snapshot is None else snapshot.begin(optimiser)
    began, done = time.perf_counter(), first
    with _Patience() as patience:
        for step in range(first + 1, steps + 1):
            ramp = min(1.0, step / warmup)
            rate = learning_rate * ramp * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
            for group in optimiser.param_groups:
                group["lr"] = rate
            try:
                total, norm, terms = _gradient(loss, trained, optimiser, clip, step)
                optimiser.step()
            except NonFiniteLossError:
                if snapshot is not None:
                    snapshot.save(step - 1, optimiser)
                raise
            if on_step and (step % log_every == 0 or step == steps):
                now = time.perf_counter()
                record = {name: float(term.detach()) for name, term in terms.items()}
                record |= {"loss": float(total.detach()), "gradient_norm": norm.item()}
                record["learning_rate"] = rate
                record["steps_per_second"] = (step - done) / max(now - began, 1e-9)
                on_step(step, record)
                began, done = now, step
            if snapshot is not None:
                snapshot.passed(step, optimiser)
            if patience.asked:
                if snapshot is not None:
                    snapshot.save(step, optimiser)
                raise KeyboardInterrupt


def _gradient(
    loss: Callable[[], tuple[Tensor, dict[str, Tensor]]],
    trained: list[nn.Parameter],
    optimiser: torch.optim.Optimizer,
    clip: float,
    step: int,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss, norm of its gradient before clipping, and named terms of one batch."""
    total, terms = loss()
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(total)
    ranks.average_gradients(trained)
    norm = torch.nn.utils.clip_grad_norm_(trained, clip)
    if not torch.isfinite(total + norm):
        values = ", ".join(f"{name} {term.item():.4g}" for name, term in terms.items())
        raise NonFiniteLossError(
            f"the loss is {total.item()} and its gradient's norm {norm.item()} at step {step} "
            f"({values}): lower the learning rate, or check the data with `forethought data`"
        )
    return total, norm, terms
