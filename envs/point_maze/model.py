"""The ball among walls as MuJoCo simulates it.

Lengths are in blocks, x to the right and y down as in `forethought.envs.maze.layouts`, seen from
above. There is no gravity and no friction: what slows the ball is the damping of its two joints.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethought.envs.maze.layouts import Walls
from forethought.envs.pictures import choose_backend, listen_to_mujoco
from forethought.envs.point_maze.scale import COAST_SECONDS, CONTROL_SECONDS, RADIUS, SUBSTEPS

choose_backend()  # MuJoCo chooses one when it is imported

import mujoco  # noqa: E402

listen_to_mujoco()

Array = NDArray[Any]

_MASS = 1.0
# Contacts are as stiff as MuJoCo advises for this time step: in the worst case, at full speed and
# with the largest `max_step`, the ball sinks into a wall by less than a tenth of a block.
_TIMESTEP = CONTROL_SECONDS / SUBSTEPS


def description(walls: Walls, max_step: float) -> str:
    """The model as MJCF.

    Args:
        walls: `(n, n)`.
        max_step: Blocks that the ball covers in a control step at full speed, which is where the
            force of an action of norm 1 and the damping are in balance.
    """
    damping = _MASS / COAST_SECONDS
    force = damping * max_step / CONTROL_SECONDS
    boxes = "\n".join(
        f'    <geom type="box" pos="{x} {y} 0" size="{width} {height} 0.5"/>'
        for x, y, width, height in boxes_of(walls)
    )
    return f"""
<mujoco model="point_maze">
  <option timestep="{_TIMESTEP}" gravity="0 0 0" integrator="Euler"/>
  <size memory="2M"/>
  <default>
    <geom condim="1" solref="{2 * _TIMESTEP} 1"/>
    <joint type="slide" damping="{damping}"/>
    <motor gear="{force}" ctrllimited="true" ctrlrange="-1 1"/>
  </default>
  <worldbody>
{boxes}
    <body name="ball">
      <joint name="x" axis="1 0 0"/>
      <joint name="y" axis="0 1 0"/>
      <geom type="sphere" size="{RADIUS}" mass="{_MASS}"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="x"/>
    <motor joint="y"/>
  </actuator>
</mujoco>"""


def boxes_of(walls: Walls) -> list[tuple[float, float, float, float]]:
    """Boxes that cover the walls: centre in x and y, half width and half height.

    Each is a run of blocks along a row or a column, as long as can be: a straight face of a wall
    lies in one box, since a ball is jolted where it slides from box to box.
    """
    found = []
    for along_columns in (False, True):
        lines = walls.T if along_columns else walls
        for line, blocks in enumerate(lines):
            changes = np.diff(np.concatenate([[0], blocks != 0, [0]]).astype(np.int64))
            starts, ends = np.flatnonzero(changes == 1), np.flatnonzero(changes == -1)
            for start, end in zip(starts, ends, strict=True):
                single = end - start == 1
                beside = lines[max(line - 1, 0) : line + 2, start]
                if single and (along_columns or (beside != 0).sum() > 1):
                    continue  # part of a run the other way, or there already
                box = ((start + end) / 2, line + 0.5, (end - start) / 2, 0.5)
                found.append((box[1], box[0], box[3], box[2]) if along_columns else box)
    return [tuple(float(number) for number in box) for box in found]  # type: ignore[misc]


def compiled(walls: Walls, max_step: float) -> Any:
    """The model `mujoco.MjModel`; see `description`."""
    return mujoco.MjModel.from_xml_string(description(walls, max_step))


def at_rest(model: Any, position: Array) -> Any:
    """A simulation `mujoco.MjData` that begins at `position` `(2,)`, with no past."""
    data = mujoco.MjData(model)
    data.qpos[:] = position
    return data


def advance(model: Any, data: Any, action: Array) -> None:
    """Move on by one control step under a force; `action` `(2,)` in [-1, 1]."""
    data.ctrl[:] = action
    mujoco.mj_step(model, data, nstep=SUBSTEPS)
