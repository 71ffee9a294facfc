"""From an id to an environment.

Every environment of this project is a `gymnasium.vector.VectorEnv` that never resets by itself
(autoreset mode `DISABLED`), ours, Gymnasium's and dm_control's alike. Ours are also registered
with Gymnasium, so that `gymnasium.make("forethought/TwoRooms-v0")` works after
`import forethought.envs`.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import logging
from collections.abc import Callable, Collection, Set
from dataclasses import asdict
from importlib import import_module
from typing import Any

import gymnasium
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import VectorEnv, VectorWrapper

from forethought.envs.arm import ArmVectorEnv
from forethought.envs.blocks import ActionBlocks, check_block
from forethought.envs.gymnasium_adapter import GymnasiumSimulator
from forethought.envs.linear import DoubleIntegratorVectorEnv
from forethought.envs.maze import MazeVectorEnv
from forethought.envs.point_maze import PointMazeVectorEnv
from forethought.envs.simulator import Simulator, SimulatorVectorEnv
from forethought.envs.spec import EnvSpec
from forethought.envs.two_rooms import TwoRoomsVectorEnv, two_rooms_65_vector
from forethought.envs.wrappers import Blank, Blanked, View, wrapped

logger = logging.getLogger(__name__)

# id: (vectorised, single), as Gymnasium's registry wants them. Callables of ours take num_envs
# and the environment's options by keyword.
_OURS: dict[str, tuple[Callable[..., VectorEnv[Any, Any, Any]], str, str]] = {
    "forethought/TwoRooms-v0": (
        TwoRoomsVectorEnv,
        "forethought.envs.two_rooms:TwoRoomsVectorEnv",
        "forethought.envs.two_rooms:TwoRooms",
    ),
    "forethought/TwoRooms65-v0": (
        two_rooms_65_vector,
        "forethought.envs.two_rooms:two_rooms_65_vector",
        "forethought.envs.two_rooms:two_rooms_65",
    ),
    "forethought/Maze-v0": (
        MazeVectorEnv,
        "forethought.envs.maze:MazeVectorEnv",
        "forethought.envs.maze:Maze",
    ),
    "forethought/PointMaze-v0": (
        PointMazeVectorEnv,
        "forethought.envs.point_maze:PointMazeVectorEnv",
        "forethought.envs.point_maze:PointMaze",
    ),
    "forethought/Arm-v0": (
        ArmVectorEnv,
        "forethought.envs.arm:ArmVectorEnv",
        "forethought.envs.arm:Arm",
    ),
    "forethought/DoubleIntegrator-v0": (
        DoubleIntegratorVectorEnv,
        "forethought.envs.linear:DoubleIntegratorVectorEnv",
        "forethought.envs.linear:DoubleIntegrator",
    ),
}

_DM_CONTROL = "dm_control/"

# Options that all environments take, ours and those of others.
_BLANK = "blank"
_BLOCK = "block"

# What make_vec adds to a spec's keyword arguments; not options of the environment.
_NOT_OPTIONS = ("num_envs", "vectorization_mode", "vector_kwargs", "wrappers")


def register() -> None:
    """Register our environments with Gymnasium; a second call changes nothing."""
    for env_id, (_, vector, single) in _OURS.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(env_id, entry_point=single, vector_entry_point=vector)


def make(id: str, num_envs: int = 1, **options: Any) -> VectorEnv[Any, Any, Any]:
    """Make `num_envs` copies of an environment, stepped together.

    Actions are a `Box` in [-1, 1] (other bounds are rescaled) or `Discrete` from 0.

    Args:
        id: One of ours, any id in Gymnasium's registry (`module:Name-v0` imports the module), or
            `dm_control/DOMAIN-TASK`, such as `dm_control/cartpole-swingup`.
        num_envs: Number of copies, `N`.
        **options: Options of the environment. Those of Gymnasium and dm_control also take the
            options of `View`: `action_repeat`, `observe`, `size`, `frame_stack`, `camera`, `lean`
            and `episode_limit`. All take `block`, the number of actions in one decision, and
            `blank`, `(start, length)` or `(start, length, period)` in decisions: observations are
            zeros then, see `Blank`.

    Returns:
        A vector environment that never resets by itself.

    Raises:
        ValueError: The id or an option is unknown, or an option has an unknown value.
        RenderingError: Pictures are asked for and cannot be rendered; raised by `reset`.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs is {num_envs}: it must be at least 1")
    register()
    own = {name: value for name, value in options.items() if name != _BLANK}
    blank = None if options.get(_BLANK) is None else Blank.of(options[_BLANK])
    env: VectorEnv[Any, Any, Any]
    if id in _OURS:
        create = _OURS[id][0]
        block = check_block(own.pop(_BLOCK, 1))
        _check_options(id, own, _own_parameters(create), {_BLANK, _BLOCK})
        env = create(num_envs=num_envs, **own)
    else:
        env = _make_foreign(id, num_envs, own)
    env.spec = gymnasium.envs.registration.EnvSpec(id, kwargs=copy.deepcopy(options))
    if id in _OURS and block > 1:
        env = ActionBlocks(env, block)
    return env if blank is None else Blanked(env, blank)


def options_of(id: str) -> tuple[dict[str, Any], bool]:
    """Options that `make` takes for an environment.

    Args:
        id: As for `make`.

    Returns:
        Their defaults by name, and whether the environment takes others besides.

    Raises:
        ValueError: The id is unknown.
    """
    register()
    if id in _OURS:
        return {**_own_parameters(_OURS[id][0]), _BLOCK: 1, _BLANK: None}, False
    common = {**asdict(View()), _BLANK: None, "render_mode": None}
    own, more = _foreign_options(id)
    return {**own, **common}, more


def spec_of(env: VectorEnv[Any, Any, Any]) -> EnvSpec:
    """Describe an environment that `make` made (wrappers round it are allowed).

    Raises:
        ValueError: The environment was not made by `make`, has no episode limit, or has an
            action space that is neither `Box` nor `Discrete`.
    """
    base = env.unwrapped
    if base.spec is None:
        raise ValueError(f"{env} carries no spec: make it with forethought.envs.make")
    options = {key: value for key, value in base.spec.kwargs.items() if key not in _NOT_OPTIONS}
    limit = _told(env, "episode_limit", None)
    if limit is None:
        raise ValueError(f"{base.spec.id} has no episode limit: pass episode_limit=... to make")
    action_space = env.single_action_space
    if not isinstance(action_space, spaces.Box | spaces.Discrete):
        raise ValueError(f"action space {action_space} is not supported: use Box or Discrete")
    return EnvSpec(
        id=base.spec.id,
        observation_space=env.single_observation_space,
        action_space=action_space,
        control_step_seconds=float(_told(env, "control_step_seconds", 1.0)),
        episode_limit=int(limit),
        options=options,
    )


def _told(env: VectorEnv[Any, Any, Any], name: str, default: Any) -> Any:
    """What the outermost wrapper that knows says; wrappers do not pass names on."""
    while not hasattr(env, name) and isinstance(env, VectorWrapper):
        env = env.env
    return getattr(env, name, default)


def _make_foreign(id: str, num_envs: int, options: dict[str, Any]) -> SimulatorVectorEnv:
    """Somebody else's environment: simulators, with what the options put round them."""
    for_view = {name: value for name, value in options.items() if name in View.names()}
    own = {name: value for name, value in options.items() if name not in for_view}
    render_mode = own.pop("render_mode", None)
    create: Callable[..., Simulator] = GymnasiumSimulator
    accepted, more = _foreign_options(id)
    if id.startswith(_DM_CONTROL):
        from forethought.envs.dm_control_adapter import DmControlSimulator

        create = DmControlSimulator
    if not more:
        _check_options(id, own, accepted, View.names() | {_BLANK, "render_mode"})
    if "max_episode_steps" in own:  # Gymnasium's name of it
        if for_view.get("episode_limit") is not None:
            raise ValueError("episode_limit and max_episode_steps are the same: give one of them")
        for_view["episode_limit"] = own.pop("max_episode_steps")
    view = View(**for_view)
    simulators = []
    for _ in range(num_envs):
        simulators.append(wrapped(create(id, view, render_mode, **own), view))
    if view.observe != "vector" and view.lean:
        logger.info(
            "pictures of %s are lean: without shadows, reflections and sky where MuJoCo draws them "
            "(lean=False draws them in full)",
            id,
        )
    return SimulatorVectorEnv(simulators, render_mode)


def _own_parameters(create: Callable[..., Any]) -> dict[str, Any]:
    """Options of one of ours; a geometry is not JSON and has its own ids."""
    parameters = inspect.signature(create).parameters
    return {n: p.default for n, p in parameters.items() if n not in ("num_envs", "geometry")}


def _foreign_options(id: str) -> tuple[dict[str, Any], bool]:
    """Options of somebody else's, without those of `View`, and whether it takes any other.

    Raises:
        ValueError: The id is unknown, or names a module that cannot be imported.
    """
    if id.startswith(_DM_CONTROL):
        # Importing it takes seconds: done when the first task is made.
        from forethought.envs.dm_control_adapter import task_options

        return task_options(id), False
    module, _, name = id.rpartition(":")
    try:
        if module:
            import_module(module)  # gymnasium.spec does not; an own environment is registered there
        gym_spec = gymnasium.spec(name)
    except ImportError as error:
        raise ValueError(
            f"environment id {id!r} names a module that cannot be imported ({error}): install it"
        ) from error
    except gymnasium.error.Error as error:
        known = [*gymnasium.registry, *_OURS]
        near = difflib.get_close_matches(id, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(dict.fromkeys(near))}? " if near else ""
        raise ValueError(
            f"environment id {id!r} is unknown: {hint}Ours are {', '.join(_OURS)}; others are "
            f"{_DM_CONTROL}DOMAIN-TASK and what is registered with Gymnasium"
        ) from error
    if gym_spec.entry_point is None:
        raise ValueError(f"environment id {id!r} has no entry point: register one")
    entry = gym_spec.entry_point
    creator: Callable[..., Any] = entry if callable(entry) else load_env_creator(entry)
    parameters = inspect.signature(creator).parameters
    more = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
    taken = {
        name: gym_spec.kwargs.get(name, None if item.default is item.empty else item.default)
        for name, item in parameters.items()
        if name != "self" and item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL)
    }
    return {**taken, "max_episode_steps": gym_spec.max_episode_steps}, more


def _check_options(
    id: str, options: dict[str, Any], accepted: Collection[str], common: Set[str] = frozenset()
) -> None:
    unknown = sorted(set(options) - set(accepted) - common)
    if unknown:
        raise ValueError(
            f"unknown options {', '.join(unknown)} for {id}: "
            f"it accepts {', '.join([*sorted(accepted), *sorted(common - set(accepted))])}"
        )
