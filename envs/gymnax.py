"""Environments of gymnax, compiled by JAX for the whole batch, ids `gymnax:<its id>`.

Library: Lange 2022, "gymnax: A JAX-based Reinforcement Learning Environment Library".

Deviations: boxes are float32 whatever the environment says, which is not always what it gives.
"""

import importlib
from collections.abc import Collection
from functools import cache, partial
from typing import Any

import numpy as np
from gymnasium import spaces

from statewise.envs import jax_vector
from statewise.envs.jax_vector import Carry, Compiled, JaxVectorEnv, Outcome
from statewise.envs.protocol import EnvError

PREFIX = "gymnax:"


def missing() -> str:
    """Return "" if gymnax can be imported, else the line that installs it."""
    return jax_vector.missing("jax", "gymnax")


def ids() -> Collection[str]:
    """Return the ids that can be made."""
    return [PREFIX + name for name in importlib.import_module("gymnax").registered_envs]


def _space(space: Any) -> spaces.Space[Any]:
    """Return gymnasium's form of a space of gymnax, boxes as float32."""
    kind = type(space).__name__
    if kind == "Discrete":
        return spaces.Discrete(int(space.n))
    if kind == "Dict":
        return spaces.Dict({key: _space(inner) for key, inner in space.spaces.items()})
    if kind == "Tuple":
        return spaces.Tuple([_space(inner) for inner in space.spaces])
    if kind != "Box":
        raise EnvError(f"expected a Box, Discrete, Dict or Tuple space of gymnax, got {space}")
    limit = np.finfo(np.float32).max  # stands for no bound
    low, high = (
        np.broadcast_to(np.asarray(bound, np.float32), space.shape)
        for bound in (space.low, space.high)
    )
    low, high = np.where(low <= -limit, -np.inf, low), np.where(high >= limit, np.inf, high)
    return spaces.Box(low.astype(np.float32), high.astype(np.float32))


def _make(env_id: str, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Return an environment of gymnax and its parameters; `kwargs` are for either."""
    gymnax = importlib.import_module("gymnax")
    name = env_id.removeprefix(PREFIX)
    try:
        fields = set(vars(gymnax.make(name)[1])) & kwargs.keys() if kwargs else set()
        own = {key: value for key, value in kwargs.items() if key not in fields}
        env, params = gymnax.make(name, **own)
    except OSError as error:  # a data set comes from the network
        raise EnvError(f"{env_id} needs a download that failed: {error}") from error
    return env, params.replace(**{key: kwargs[key] for key in fields})


@cache
def compiled(env_id: str, settings: tuple[tuple[str, Any], ...]) -> Compiled:
    """Return what all environments of one id and these settings share.

    Raises:
        EnvError: see `Gymnax`.
        TypeError: a setting that neither environment nor parameters know.
    """
    env, params = _make(env_id, dict(settings))
    jax = importlib.import_module("jax")
    jnp = jax.numpy

    def typed(leaf: Any) -> Any:
        # Python's numbers have a type of their own, with which `go_on` would be compiled twice.
        return jax.lax.convert_element_type(leaf, jnp.asarray(leaf).dtype)

    def begin(key: Any) -> tuple[Any, Carry]:
        key, draw = jax.random.split(key)
        obs, state = env.reset_env(draw, params)
        return obs, Carry(key, jax.tree.map(typed, state), jnp.zeros((), bool))

    def go_on(carry: Carry, action: Any) -> tuple[Outcome, Carry]:
        over = carry.ended
        key, draw, fresh = jax.random.split(carry.keys, 3)
        obs, state, reward, terminated, _ = env.step_env(draw, carry.state, action, params)
        truncated = env.is_truncated(state, params)
        first, start = env.reset_env(fresh, params)
        pick = partial(jax.tree.map, lambda new, old: jnp.where(over, typed(new), typed(old)))
        terminated, truncated = ~over & terminated, ~over & truncated
        reward = jnp.where(over, 0.0, reward).astype(jnp.float32)
        outcome = Outcome(pick(first, obs), reward, terminated, truncated)
        return outcome, Carry(key, pick(start, state), terminated | truncated)

    obs_space, action_space = (
        _space(env.observation_space(params)),
        _space(env.action_space(params)),
    )
    return Compiled(obs_space, action_space, jax.jit(jax.vmap(begin)), jax.jit(jax.vmap(go_on)))


class Gymnax(JaxVectorEnv):
    """N environments of one id, on the CPU.

    Args:
        env_id: with its prefix.
        num_envs: N.
        **kwargs: fields of the environment's parameters, for example `max_steps_in_episode`, and
            arguments of its class, for example `size`.

    Raises:
        EnvError: gymnax cannot make it here, or a space has no counterpart.
        TypeError: an argument that neither knows.
    """

    def __init__(self, env_id: str, num_envs: int, **kwargs: Any) -> None:
        super().__init__(compiled(env_id, tuple(sorted(kwargs.items()))), num_envs)
