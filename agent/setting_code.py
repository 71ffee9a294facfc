"""A setting as numbers that a policy reads, so that Mode-1 follows it too.

The code is normalised by the task alone: nothing has to be kept with a policy that reads it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from forethought.agent.configurator import Setting
from forethought.agent.task import Task


def setting_size(task: Task) -> int:
    """Size P of the code of a setting: weights u, and argument and weight of every aim."""
    return len(task.terms) + sum(len(aim.at) + 1 for aim in task.aims.values())


def setting_code(task: Task, setting: Setting) -> Tensor:
    """A setting as numbers near 1 that a policy reads, `(B, P)`; known from the task alone.

    log(1 + u_i / w_i) with the task's weights w_i (1 where it is 0); for each aim (argument - at) /
    scale and log(1 + weight / w), both 0 where the aim does not count.

    Raises:
        ValueError: an aim is given more or fewer numbers than the task's `at` has.
    """
    parts = [(setting.u / units(task).to(setting.u)).log1p()]
    names = list(setting.aims)
    for name, aim in task.aims.items():
        code = setting.u.new_zeros(len(setting.u), len(aim.at) + 1)
        if name in setting.aims and setting.aim_weights is not None:
            given = setting.aims[name]
            if given.shape[-1] not in (1, len(aim.at)):
                raise ValueError(
                    f"the aim {name!r} is given {given.shape[-1]} numbers, but the policy was told "
                    f"{len(aim.at)}: give as many, or write as many into the task's `at`"
                )
            code[:, :-1] = (given - given.new_tensor(aim.at)) / aim.scale
            code[:, -1] = (setting.aim_weights[:, names.index(name)] / (aim.weight or 1.0)).log1p()
        parts.append(code)
    return torch.cat(parts, 1)


def units(task: Task) -> Tensor:
    """The task's weights, `(n,)`, with 1 for 0."""
    return torch.tensor([item.weight or 1.0 for item in task.terms.values()])


def decoded(task: Task, setting: Setting, codes: Tensor) -> Setting:
    """`setting` with weights and aims of `codes` `(B, P)`; the inverse of `setting_code`."""
    weights, *aims = torch.split(
        codes, [len(task.terms), *(len(aim.at) + 1 for aim in task.aims.values())], 1
    )
    u = units(task).to(codes) * weights.expm1()
    if not aims:
        return replace(setting, u=u, v=setting.cost.critic * u)
    arguments, counts = dict[str, Tensor](), list[Tensor]()
    for (name, aim), code in zip(task.aims.items(), aims, strict=True):
        arguments[name] = code.new_tensor(aim.at) + aim.scale * code[:, :-1]
        counts.append((aim.weight or 1.0) * code[:, -1].expm1())
    weighed = torch.stack(counts, 1)
    return replace(setting, u=u, v=setting.cost.critic * u, aims=arguments, aim_weights=weighed)
