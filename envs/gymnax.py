"""Environments of gymnax, compiled by JAX for the whole batch, ids `gymnax:<its id>`.

Library: Lange 2022, "gymnax: A JAX-based Reinforcement Learning Environment Library". One
compiled call steps all environments and restarts those that had ended: NEXT_STEP auto-reset.
Environment i draws from its own key, that of seed + i. Results leave JAX as numpy arrays over the
same memory, through DLPack.

Deviations: boxes are float32 whatever the environment says, which is not always what it gives.
"""

import importlib
import importlib.util
from collections.abc import Collection
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from statewise.envs.protocol import Bools, EnvError

PREFIX = "gymnax:"


def missing() -> str:
    """Return "" if gymnax can be imported, else the line that installs it."""
    found = all(importlib.util.find_spec(name) is not None for name in ("jax", "gymnax"))
    return "" if found else "pip install 'statewise[jax]'"


def ids() -> Collection[str]:
    """Return the ids that can be made."""
    return [PREFIX + name for name in importlib.import_module("gymnax").registered_envs]


class Carry(NamedTuple):
    """What goes on from step to step, (N, ...) each."""

    keys: Any
    state: Any
    """gymnax's own, a tree of arrays."""
    ended: Any
    """The episode is over: the next step restarts it."""


class Outcome(NamedTuple):
    """What a step gives, (N, ...) each."""

    obs: Any
    reward: Any
    terminated: Any
    truncated: Any


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


class Compiled(NamedTuple):
    """An environment and its functions for any number of it, compiled at their first call."""

    obs_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    begin: Any
    """(keys) -> (obs, carry)."""
    go_on: Any
    """(carry, action) -> (outcome, carry)."""


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


def to_numpy(array: Any) -> NDArray[Any]:
    """Return a JAX array on the CPU as a read-only numpy array over the same memory."""
    view: NDArray[Any] = np.from_dlpack(array)
    return view


class Gymnax(VectorEnv[Any, Any, Any]):
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

    metadata: dict[str, Any] = {  # noqa: RUF012 - gymnasium's own form
        "autoreset_mode": AutoresetMode.NEXT_STEP,
        "render_modes": [],
    }

    def __init__(self, env_id: str, num_envs: int, **kwargs: Any) -> None:
        shared = compiled(env_id, tuple(sorted(kwargs.items())))
        self._jax = importlib.import_module("jax")
        self.num_envs = num_envs
        self.single_observation_space = shared.obs_space
        self.single_action_space = shared.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        is_box = isinstance(self.single_action_space, spaces.Box)
        self._action_type = np.float32 if is_box else np.int32
        self._begin, self._go_on = shared.begin, shared.go_on
        self._carry: Carry | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start N episodes; without a seed the keys go on."""
        if options:
            raise EnvError(f"expected no reset options, got {options}: {PREFIX} has none")
        if seed is None and self._carry is not None:
            keys = self._carry.keys
        else:
            first = np.random.SeedSequence().generate_state(1)[0] if seed is None else seed
            seeds = (np.arange(self.num_envs, dtype=np.uint64) + np.uint64(first)).astype(np.uint32)
            keys = self._jax.vmap(self._jax.random.PRNGKey)(seeds)
            keys = self._on_cpu(keys)
        obs, self._carry = self._begin(keys)
        return self._jax.tree.map(to_numpy, obs), {}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Any, NDArray[np.float32], Bools, Bools, dict[str, Any]]:
        """Step all; an episode that ended in the last step starts anew instead."""
        action = self._jax.numpy.asarray(np.asarray(actions, self._action_type))
        outcome, self._carry = self._go_on(self._carry, action)
        return *self._jax.tree.map(to_numpy, outcome), {}

    def state_dict(self) -> dict[str, Any]:
        """Return the keys and the state of all episodes."""
        leaves = self._jax.tree.leaves(self._carry)
        return {str(i): np.array(leaf) for i, leaf in enumerate(leaves)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        if self._carry is None:
            self.reset(seed=0)
        tree = self._jax.tree.structure(self._carry)
        leaves = [self._on_cpu(state[str(i)]) for i in range(tree.num_leaves)]
        self._carry = self._jax.tree.unflatten(tree, leaves)

    def _on_cpu(self, array: Any) -> Any:
        """Bind an array, and what is computed from it, to the CPU, whose memory numpy reads."""
        return self._jax.device_put(array, self._jax.devices("cpu")[0])
