"""Tasks of the DeepMind Control Suite: `dm_control/DOMAIN-TASK`, as in `dm_control/cheetah-run`.

Importing this module imports dm_control and MuJoCo, which takes seconds: `forethought.envs.make`
does so when the first task is made.

A control step does what `dm_control.rl.control.Environment.step` does, without its observation
and its records, which cost more than the physics of small tasks.

The option `lengthen` changes a task's dynamics: bodies are stretched before the model is compiled,
so that masses, inertias and all that MuJoCo derives from them follow.
"""

from __future__ import annotations

import difflib
import inspect
import math
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.random import RandomState
from numpy.typing import NDArray

from forethought.envs.pictures import (
    cannot_render,
    channel_first,
    choose_backend,
    listen_to_mujoco,
)
from forethought.envs.simulator import Outcome, Simulator
from forethought.envs.wrappers import View

choose_backend()  # dm_control chooses one when it is imported
try:
    with warnings.catch_warnings():
        # GLFW says so on every machine without a screen, where nobody wants a window.
        warnings.filterwarnings("ignore", message=".*DISPLAY environment variable is missing")
        import mujoco
        from dm_control import suite
        from dm_control.mujoco import Camera, index
    from dm_control.mujoco.wrapper import MjModel
    from dm_control.mujoco.wrapper.core import save_last_parsed_model_to_xml
except (ImportError, RuntimeError) as problem:
    remedy = (
        "set it to egl, osmesa or glfw, or not at all"
        if "MUJOCO_GL" in str(problem)
        else "install it"
    )
    raise ValueError(f"dm_control cannot be imported ({problem}): {remedy}") from problem
listen_to_mujoco()

Array = NDArray[Any]

PREFIX = "dm_control/"
_FRAME_SIDE = 240
_LEFT_OUT = ("mjRND_SHADOW", "mjRND_REFLECTION", "mjRND_SKYBOX", "mjRND_HAZE")


def task_ids() -> list[str]:
    """Ids of all tasks."""
    return [f"{PREFIX}{domain}-{task}" for domain, task in suite.ALL_TASKS]


def task_options(id: str) -> dict[str, Any]:
    """Options that a task takes besides those of `View`, and their defaults.

    Raises:
        ValueError: There is no such task.
    """
    parameters = inspect.signature(_creator(id)).parameters
    own = {
        name: parameter.default
        for name, parameter in parameters.items()
        if name not in ("random", "time_limit", "environment_kwargs")
    }
    return {**own, "lengthen": None}


def _creator(id: str) -> Callable[..., Any]:
    """The function that makes a task."""
    domain, _, task = id.removeprefix(PREFIX).partition("-")
    if (domain, task) not in suite.ALL_TASKS:
        near = difflib.get_close_matches(id, task_ids(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "give dm_control/DOMAIN-TASK"
        raise ValueError(f"environment id {id!r} is unknown: {hint}")
    creator: Callable[..., Any] = getattr(suite, domain).SUITE[task]
    return creator


class DmControlSimulator(Simulator):
    """One task of the Control Suite.

    Observation: float32 vector, the entries of the task's own observation behind one another.
    Quantities: these entries by name. A time limit truncates, a discount of 0 terminates.

    Args:
        id: `dm_control/DOMAIN-TASK`.
        view: What is rendered, and the episode limit in control steps.
        render_mode: `rgb_array` also makes `frame` possible.
        lengthen: Factors by name of a body, such as `{"pole_1": 1.3}`: the body is stretched by
            the factor along its longest geom, away from its joint, with the same density. A point
            mass (a sphere) keeps its mass and moves along, and so do bodies further out. What a
            task itself says in metres (a start's height, a reward's reach) stays as it was.
        **options: Of the task.

    Raises:
        ValueError: There is no such task, camera or body, or a body cannot be stretched.
    """

    def __init__(
        self,
        id: str,
        view: View,
        render_mode: str | None = None,
        *,
        lengthen: Mapping[str, float] | None = None,
        **options: Any,
    ) -> None:
        self._id, self._view, self._options = id, view, options
        self._lengthen = _checked_factors(lengthen)
        self._vector: Array | None = None  # the observation now, where it was looked at
        self._side = max(view.picture_size, _FRAME_SIDE if render_mode else 0)
        self._load(RandomState())
        environment = self._environment
        self.control_step_seconds = environment.control_timestep()
        self._own_limit = environment._step_limit
        limit = self._own_limit if view.episode_limit is None else view.episode_limit
        self._limit = float(limit)
        self.episode_limit = None if np.isinf(self._limit) else int(np.ceil(self._limit))
        bounds = environment.action_spec()
        low, high = (
            np.where(np.abs(bound) < mujoco.mjMAXVAL, bound, np.copysign(np.inf, bound))
            for bound in (bounds.minimum, bounds.maximum)  # mjMAXVAL stands for no bound
        )
        unit = bool((low == -1).all() and (high == 1).all())
        dtype = np.float32 if unit else np.float64  # other bounds need not be float32 numbers
        self.action_space = spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)
        self._widths = {
            name: int(np.prod(entry.shape))
            for name, entry in environment.observation_spec().items()
        }
        self.observation_space = spaces.Box(
            -np.inf, np.inf, (sum(self._widths.values()),), np.float32
        )

    def begin(self, seed: int | None) -> None:
        """See `Simulator`."""
        if seed is not None:
            # All but `lqr` draw nothing before an episode begins (`lqr` has no bounds of actions).
            self._task._random = RandomState(seed)
        self._steps = 0
        with self._physics.reset_context():
            self._task.initialize_episode(self._physics)
        self._vector = None

    def advance(self, action: Array) -> Outcome:
        """See `Simulator`."""
        task, physics = self._task, self._physics
        task.before_step(action, physics)
        physics.step(self._substeps)
        task.after_step(physics)
        self._vector = None
        self._steps += 1
        reward = float(task.get_reward(physics))
        if self._steps >= self._limit:
            return reward, False, True
        discount = task.get_termination(physics)
        return reward, discount == 0, discount is not None and discount != 0

    def observe(self) -> Array:
        """See `Simulator`."""
        if self._vector is None:
            vector, begin = np.empty(self.observation_space.shape or (), np.float32), 0
            for name, entry in self._task.get_observation(self._physics).items():
                end = begin + self._widths[name]
                vector[begin:end] = np.ravel(entry)
                begin = end
            self._vector = vector
        return self._vector

    def quantities(self) -> Mapping[str, Array]:
        """See `Simulator`."""
        vector, begin = self.observe(), 0
        entries = {}
        for name, width in self._widths.items():
            entries[name] = vector[begin : begin + width]
            begin += width
        return entries

    def picture(self, size: int) -> NDArray[np.uint8]:
        """See `Simulator`."""
        return np.asarray(channel_first(self._camera(size).render()), np.uint8)

    def frame(self) -> NDArray[np.uint8]:
        """See `Simulator`."""
        return np.array(self._camera(self._side).render(), np.uint8)

    def close(self) -> None:
        """See `Simulator`."""
        self._cameras.clear()
        self._physics.free()

    def _load(self, random: RandomState) -> None:
        """Compile the model; the quality of pictures is settled when the first one is rendered."""
        self._environment = _creator(self._id)(random=random, **self._options)
        self._task, self._physics = self._environment.task, self._environment.physics
        if self._lengthen:
            _lengthen(self._physics, self._lengthen, self._id)
        _remember_names(self._physics)
        self._substeps = round(self._environment.control_timestep() / self._physics.timestep())
        self._cameras: dict[int, Any] = {}
        self._steps = 0
        visual = self._physics.model.vis
        if self._view.lean:
            visual.quality.shadowsize = visual.quality.offsamples = 0
            visual.global_.offwidth = visual.global_.offheight = self._side
        else:
            visual.global_.offwidth = max(visual.global_.offwidth, self._side)
            visual.global_.offheight = max(visual.global_.offheight, self._side)
        cameras = self._physics.model.ncam
        if self._view.camera >= cameras:
            raise ValueError(
                f"camera is {self._view.camera}: {self._id} has cameras 0 to {cameras - 1}, and -1 "
                "which sees everything"
            )

    def _camera(self, size: int) -> Any:
        """The camera for pictures of this size: made once, since making one takes longest."""
        if size not in self._cameras:
            try:
                camera = Camera(self._physics, size, size, self._view.camera)
            except Exception as error:
                raise cannot_render(self._id, error, with_mujoco=True) from error
            if self._view.lean:
                for flag in _LEFT_OUT:
                    camera.scene.flags[getattr(mujoco.mjtRndFlag, flag)] = 0
            self._cameras[size] = camera
        return self._cameras[size]


class _RememberedNames(index.FieldIndexer):  # type: ignore[misc]
    """Named indexing such as `data.xmat["pole", ["xx", "zz"]]` that looks a name up only once.

    Looking up names takes longer than the physics of a small task.
    """

    def __init__(self, inner: Any) -> None:
        self._field_name, self._field, self._axes = inner._field_name, inner._field, inner._axes
        self._known: dict[Any, Any] = {}

    def _convert_key(self, key: Any) -> Any:
        try:
            frozen = _frozen(key)
        except TypeError:
            return super()._convert_key(key)
        if frozen not in self._known:
            self._known[frozen] = super()._convert_key(key)
        return self._known[frozen]


def _frozen(key: Any) -> Any:
    """An index as something that can be a key of a dictionary; TypeError where it is an array."""
    kind = type(key)
    if kind is str or kind is int:
        return key
    if kind is tuple or kind is list:
        return (kind, *map(_frozen, key))
    if kind is slice:
        return (kind, key.start, key.stop, key.step)
    raise TypeError(f"{kind} is not a plain index")


def _remember_names(physics: Any) -> None:
    """Let a simulation look up each name once."""
    structs = {
        name: index.make_struct_indexer(
            {field: _RememberedNames(inner) for field, inner in struct._asdict().items()}
        )
        for name, struct in physics.named._asdict().items()
    }
    physics._named = physics.named._replace(**structs)


# --- Changed dynamics.

_GEOM = mujoco.mjtGeom
_ALIGNED = 1e-3  # sine below which axes count as parallel: descriptions have six digits


def _checked_factors(factors: Mapping[str, float] | None) -> dict[str, float]:
    """Factors by body, each above 0."""
    if factors is None:
        return {}
    if not isinstance(factors, Mapping):
        raise ValueError(f"lengthen is {factors!r}: give factors by body, such as {{'pole': 1.3}}")
    for name, factor in factors.items():
        number = isinstance(factor, int | float) and not isinstance(factor, bool)
        if not number or not math.isfinite(factor) or factor <= 0:
            raise ValueError(f"lengthen.{name} is {factor!r}: choose a number above 0")
    return {name: float(factor) for name, factor in factors.items()}


def _lengthen(physics: Any, factors: Mapping[str, float], id: str) -> None:
    """Stretch bodies of a simulation whose model was the last to be compiled.

    A compiled model does not know the masses of single geoms, so the model is taken back to its
    description, changed there, and compiled again.

    Raises:
        ValueError: There is no such body, or it cannot be stretched.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.xml")
        save_last_parsed_model_to_xml(str(file), physics.model)
        try:
            spec = mujoco.MjSpec.from_file(str(file))
            spec.compile()
        except ValueError as error:  # meshes, whose files are not beside it
            raise ValueError(
                f"lengthen is {dict(factors)}: the model of {id} cannot be taken apart ({error}); "
                "leave lengthen out"
            ) from error
    bodies = {body.name: body for body in spec.bodies if body.name and body.name != "world"}
    unknown = sorted(set(factors) - set(bodies))
    if unknown:
        raise ValueError(
            f"lengthen names {', '.join(unknown)}: the bodies of {id} are {', '.join(bodies)}"
        )
    changed = {name: factor for name, factor in factors.items() if factor != 1}
    for name, factor in changed.items():
        _stretch(bodies[name], factor)
    if changed:  # else bit by bit the same, as descriptions have six digits
        physics._reload_from_model(MjModel(spec.compile()))


def _stretch(body: Any, factor: float) -> None:
    """Stretch one body along its longest geom, in its description."""
    if body.explicitinertial:
        raise ValueError(
            f"lengthen.{body.name} is {factor}: its inertia is not that of its geoms; choose "
            "another body"
        )
    axis = _long_axis(body, factor)
    origin = np.array(body.joints[0].pos) if body.joints else np.zeros(3)

    def moved(point: Array) -> Array:
        offset = np.asarray(point) - origin
        return np.asarray(point + (factor - 1) * (offset @ axis) * axis)

    for geom in body.geoms:
        _stretch_geom(geom, axis, factor, body.name)
    parts = (body.geoms, body.bodies, body.sites, body.joints, body.cameras, body.lights)
    for part in (item for items in parts for item in items):
        part.pos = moved(part.pos)


def _long_axis(body: Any, factor: float) -> Array:
    """Unit vector `(3,)` along the longest geom of a body, in the body's frame."""
    longest, axis = 0.0, None
    for geom in body.geoms:
        half = _half_lengths(geom)
        if half is not None and half.max() > longest:
            longest, axis = half.max(), _axes(geom)[:, int(half.argmax())]
    if axis is None:
        raise ValueError(
            f"lengthen.{body.name} is {factor}: the body has no capsule, cylinder, box or ellipsoid"
            " to stretch; choose another one"
        )
    return axis


def _stretch_geom(geom: Any, axis: Array, factor: float, body: str) -> None:
    """Make a geom longer along `axis`, a unit vector; its density stays."""
    half = _half_lengths(geom)
    if half is None:
        if geom.type == _GEOM.mjGEOM_MESH:
            raise ValueError(f"lengthen.{body} is {factor}: the body has a mesh; choose another")
        return  # a sphere has no length
    volume, axes, size = _volume(geom), _axes(geom), np.array(geom.size)
    along = axes.T @ axis  # cosines to the geom's own axes
    if geom.type in (_GEOM.mjGEOM_CAPSULE, _GEOM.mjGEOM_CYLINDER):
        # The line from end to end is stretched, whatever its direction; the thickness stays.
        line = axes[:, 2] + (factor - 1) * along[2] * axis
        size[1] *= np.linalg.norm(line)
        if abs(along[2]) > _ALIGNED and not _parallel(along[2]):
            turned = np.zeros(4)
            mujoco.mju_quatZ2Vec(turned, line / np.linalg.norm(line))
            geom.quat = turned
    else:
        parallel = _parallel(along)
        if not parallel.any():
            raise ValueError(
                f"lengthen.{body} is {factor}: a box or ellipsoid of the body lies at an angle; "
                "choose another one"
            )
        size[:3][parallel] *= factor
    geom.size = size
    if np.isfinite(geom.mass):  # given outright; otherwise it follows from the density
        geom.mass *= _volume(geom) / volume


def _parallel(cosine: Array) -> Array:
    """Whether axes at these cosines to each other are parallel."""
    return np.asarray(1 - np.square(cosine) < _ALIGNED**2)


def _half_lengths(geom: Any) -> Array | None:
    """Half of the lengths along a geom's own axes, `(3,)`; None where it has no long side."""
    if geom.type in (_GEOM.mjGEOM_CAPSULE, _GEOM.mjGEOM_CYLINDER):
        return np.array([0.0, 0.0, geom.size[1]])
    if geom.type in (_GEOM.mjGEOM_BOX, _GEOM.mjGEOM_ELLIPSOID):
        return np.array(geom.size)
    return None


def _volume(geom: Any) -> float:
    """Volume of a geom that has half-lengths, up to a factor that its type alone decides."""
    size = geom.size
    if geom.type == _GEOM.mjGEOM_CAPSULE:
        return float(size[0] ** 2 * (size[1] + 2 / 3 * size[0]))
    return float(size[0] ** 2 * size[1] if geom.type == _GEOM.mjGEOM_CYLINDER else np.prod(size))


def _axes(geom: Any) -> Array:
    """A geom's own axes in its body's frame, as columns `(3, 3)`."""
    rotation = np.zeros(9)
    mujoco.mju_quat2Mat(rotation, np.array(geom.quat) / np.linalg.norm(geom.quat))
    return rotation.reshape(3, 3)
