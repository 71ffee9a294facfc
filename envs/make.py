"""From an id to an environment.

Every environment of this project is a `gymnasium.vector.VectorEnv` that never resets by itself
(autoreset mode `DISABLED`). Ours are also registered with Gymnasium, so that
`gymnasium.make("forethought/TwoRooms-v0")` works after `import forethought.envs`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import gymnasium
from gymnasium import spaces
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AutoresetMode, VectorEnv

from forethought.envs.linear import DoubleIntegratorVectorEnv
from forethought.envs.spec import EnvSpec
from forethought.envs.two_rooms import TwoRoomsVectorEnv, two_rooms_65_vector

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
    "forethought/DoubleIntegrator-v0": (
        DoubleIntegratorVectorEnv,
        "forethought.envs.linear:DoubleIntegratorVectorEnv",
        "forethought.envs.linear:DoubleIntegrator",
    ),
}

# What make_vec adds to a spec's keyword arguments; not options of the environment.
_NOT_OPTIONS = ("num_envs", "vectorization_mode", "vector_kwargs", "wrappers")


def register() -> None:
    """Register our environments with Gymnasium; a second call changes nothing."""
    for env_id, (_, vector, single) in _OURS.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(env_id, entry_point=single, vector_entry_point=vector)


def make(id: str, num_envs: int = 1, **options: Any) -> VectorEnv[Any, Any, Any]:
    """Make `num_envs` copies of an environment, stepped together.

    Args:
        id: One of ours, or any id in Gymnasium's registry (`module:Name-v0` imports the module).
        num_envs: Number of copies, `N`.
        **options: Options of the environment.

    Returns:
        A vector environment that never resets by itself.

    Raises:
        ValueError: The id or an option is unknown, or an option has an unknown value.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs is {num_envs}: it must be at least 1")
    register()
    if id not in _OURS:
        return _make_foreign(id, num_envs, options)
    create = _OURS[id][0]
    # A geometry is not JSON and has its own ids.
    accepted = set(inspect.signature(create).parameters) - {"num_envs", "geometry"}
    _check_options(id, options, accepted)
    env = create(num_envs=num_envs, **options)
    env.spec = gymnasium.spec(id)
    env.spec.kwargs = dict(options)
    return env


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
    limit = getattr(base, "episode_limit", None)
    limit = limit or options.get("max_episode_steps") or base.spec.max_episode_steps
    if limit is None:
        raise ValueError(f"{base.spec.id} has no episode limit: pass max_episode_steps=... to make")
    action_space = env.single_action_space
    if not isinstance(action_space, spaces.Box | spaces.Discrete):
        raise ValueError(f"action space {action_space} is not supported: use Box or Discrete")
    return EnvSpec(
        id=base.spec.id,
        observation_space=env.single_observation_space,
        action_space=action_space,
        control_step_seconds=_control_step_seconds(base),
        episode_limit=int(limit),
        options=options,
    )


def _make_foreign(id: str, num_envs: int, options: dict[str, Any]) -> VectorEnv[Any, Any, Any]:
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
        known = sorted(gymnasium.registry)
        near = difflib.get_close_matches(id, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(
            f"environment id {id!r} is unknown: {hint}Ours are {', '.join(_OURS)}"
        ) from error
    if gym_spec.entry_point is None:
        raise ValueError(f"environment id {id!r} has no entry point: register one")
    entry = gym_spec.entry_point
    creator: Callable[..., Any] = entry if callable(entry) else load_env_creator(entry)
    parameters = inspect.signature(creator).parameters
    if not any(item.kind is item.VAR_KEYWORD for item in parameters.values()):
        _check_options(id, options, set(parameters) | {"max_episode_steps", "render_mode"})
    return gymnasium.make_vec(
        name,
        num_envs=num_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
        **options,
    )


def _check_options(id: str, options: dict[str, Any], accepted: set[str]) -> None:
    unknown = sorted(set(options) - accepted)
    if unknown:
        raise ValueError(
            f"unknown options {', '.join(unknown)} for {id}: "
            f"it accepts {', '.join(sorted(accepted))}"
        )


def _control_step_seconds(base: VectorEnv[Any, Any, Any]) -> float:
    """The environment's own number, its simulator's `dt`, its frame rate, or 1."""
    own = getattr(base, "control_step_seconds", None)
    if own is None and getattr(base, "envs", None):
        own = getattr(base.envs[0].unwrapped, "dt", None)  # type: ignore[attr-defined]
    if own is None and base.metadata.get("render_fps"):
        own = 1.0 / base.metadata["render_fps"]
    return 1.0 if own is None else float(own)
