"""Environments of envpool, stepped in C++ threads, ids `envpool:<its id>`: `envpool:Pong-v5`.

Paper: Weng et al. 2022, "EnvPool: A Highly Parallel Reinforcement Learning Environment Execution
Engine". NEXT_STEP auto-reset. What envpool 1.2 does otherwise than gymnasium and is put right
here: spaces of one environment are called those of all, seeds are fixed when a pool is made, and
a float that is not bounded is said to be at least 2.2e-308. The adapter above it casts float64,
clips actions and blanks the reward of a row that only resets, which repeats the last one in some
families.

Deviations: an episode that fails in its last allowed step counts as truncated alone, as envpool
reports no more. A pool cannot tell its state: a resumed run begins new episodes.
"""

import importlib
import importlib.util
import os
import warnings
from collections import OrderedDict
from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from statewise.envs import opengl
from statewise.envs.protocol import Bools, EnvError

PREFIX = "envpool:"

_TAKEN = {
    "seed": "seeds come with the run",
    "env_seed": "seeds come with the run",
    "env_type": "there is one",
    "batch_size": "all environments are stepped together",
}


def missing() -> str:
    """Return "" if envpool can be imported, else the line that installs it."""
    found = importlib.util.find_spec("envpool") is not None
    return "" if found else "pip install 'statewise[envpool]'"


def _library() -> Any:
    opengl.load_globally()  # envpool looks for OpenGL while it is imported
    return importlib.import_module("envpool")


def ids() -> Collection[str]:
    """Return the ids that can be made."""
    return [PREFIX + name for name in _library().list_all_envs()]


def _draws_with_opengl(name: str, kwargs: dict[str, Any]) -> bool:
    """Return whether pictures are asked for that are not those of a game's own screen."""
    module, *_ = importlib.import_module("envpool.registration").registry.specs[name]
    asked = bool(kwargs.get("from_pixels")) or kwargs.get("render_mode") is not None
    return asked and "mujoco" in module


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _as_float32(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """Return the space with float32, unbounded where the bound is a limit of the type."""
    if isinstance(space, spaces.Dict):
        inner = [(key, _as_float32(one)) for key, one in space.spaces.items()]
        return spaces.Dict(OrderedDict(inner))  # which keeps their order
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        limits = np.finfo(space.dtype)
        free = (space.low <= limits.min) | (space.low == limits.tiny)
        low = np.where(free, -np.inf, space.low).astype(np.float32)
        high = np.where(space.high >= limits.max, np.inf, space.high).astype(np.float32)
        return spaces.Box(low, high)
    return space


def _quiet() -> AbstractContextManager[Any]:
    """Return a context without gymnasium's remarks on bounds that are rounded to float32."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)


class EnvPool(VectorEnv[Any, Any, Any]):
    """N environments of one id. Environment i is seeded with seed + i.

    Args:
        env_id: with its prefix.
        num_envs: N.
        num_threads: at least 1; None is one per core, and not more than N.
        **kwargs: of envpool, for example `stack_num`, `episodic_life` or `from_pixels`.

    Raises:
        EnvError: an argument that is not for the user, several players, or OpenGL is missing.
        TypeError: an argument that envpool does not know.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - gymnasium's own form
        "autoreset_mode": AutoresetMode.NEXT_STEP,
        "render_modes": ["rgb_array"],
    }

    def __init__(
        self, env_id: str, num_envs: int, *, num_threads: int | None = None, **kwargs: Any
    ) -> None:
        if taken := sorted(_TAKEN.keys() & kwargs.keys()):
            raise EnvError(
                f"expected arguments of envpool beside {', '.join(_TAKEN)}, got {taken[0]} for "
                f"{env_id}: leave it out, {_TAKEN[taken[0]]}"
            )
        if num_threads is not None and num_threads < 1:
            raise EnvError(f"expected num_threads at least 1, got {num_threads} for {env_id}")
        self._library, self._name = _library(), env_id.removeprefix(PREFIX)
        if _draws_with_opengl(self._name, kwargs) and not opengl.load_globally():
            raise EnvError(f"expected libGL to draw {env_id}, got none: {opengl.PACKAGES}")
        self.num_envs = num_envs
        self._kwargs = {**kwargs, "num_threads": num_threads or min(num_envs, _num_cores())}
        self.render_mode = self._kwargs.get("render_mode")
        settings = {key: x for key, x in self._kwargs.items() if key != "render_mode"}
        with _quiet():
            spec = self._library.make_spec(self._name, num_envs=num_envs, **settings)
            players = spec.config.max_num_players
            if players > 1:
                raise EnvError(f"expected an environment of one player, got {players} in {env_id}")
            self.single_observation_space = _as_float32(spec.gymnasium_observation_space)
            self.single_action_space = _as_float32(spec.gymnasium_action_space)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._pool: Any = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start N episodes; a seed makes another pool, without one the generators go on."""
        if options:
            raise EnvError(f"expected no reset options, got {options}: {PREFIX} has none")
        if seed is not None or self._pool is None:
            first = (
                int(np.random.SeedSequence().generate_state(1)[0] >> 1) if seed is None else seed
            )
            self.close()
            with _quiet():
                self._pool = self._library.make(
                    self._name,
                    env_type="gymnasium",
                    num_envs=self.num_envs,
                    seed=first,
                    **self._kwargs,
                )
        with _quiet():  # the first one makes the spaces
            obs, info = self._pool.reset()
        return obs, info

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Any, NDArray[np.float32], Bools, Bools, dict[str, Any]]:
        """Step all; an episode that ended in the last step starts anew instead."""
        obs, reward, terminated, truncated, info = self._pool.step(actions)
        return obs, reward, terminated, truncated, info

    def render(self) -> Any:
        """Return the picture (Y, X, 3) of the first environment, in a list."""
        return list(self._pool.render())

    def close(self, **kwargs: Any) -> None:
        """End the threads of the pool; a later reset makes another."""
        if self._pool is not None:
            self._pool.close()
        self._pool = None
