"""Adam without its rate: what gradient planners descend by."""

import torch
from torch import Tensor

__all__ = ["Descent"]


class Descent:
    """The steps of Adam (Kingma and Ba, 1412.6980) for one tensor, before they meet a rate.

    Written out because `torch.optim.Adam` costs more than it computes at these sizes; its buffers
    are made once.

    Args:
        betas: decay rates of the mean and of the mean square of the gradient.
    """

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        self._betas = betas
        self._count = 0
        self._buffers: tuple[Tensor, Tensor, Tensor] | None = None

    def step(self, gradient: Tensor) -> Tensor:
        """What to subtract, times a rate, about 1 in size, from the next gradient `(B, ...)`.

        Where it lies is overwritten by the next call.
        """
        beta, beta_square = self._betas
        if self._buffers is None:
            self._buffers = (
                torch.zeros_like(gradient),
                torch.zeros_like(gradient),
                torch.empty_like(gradient),
            )
        mean, square, step = self._buffers
        self._count += 1
        mean.lerp_(gradient, 1.0 - beta)
        square.mul_(beta_square).addcmul_(gradient, gradient, value=1.0 - beta_square)
        scale = (1.0 - beta_square**self._count) ** 0.5 / (1.0 - beta**self._count)
        # Energies come in any unit, so this only keeps a zero gradient from dividing by zero.
        torch.sqrt(square, out=step).add_(torch.finfo(square.dtype).tiny ** 0.5)
        return torch.div(mean, step, out=step).mul_(scale)
