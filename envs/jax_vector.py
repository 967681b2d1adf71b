"""What the environments in JAX share: N of them, compiled, behind gymnasium's vector interface.

One compiled call steps all environments and restarts those that had ended: NEXT_STEP auto-reset.
Environment i draws from its own key, that of seed + i. Results leave JAX as numpy arrays over the
same memory, through DLPack.
"""

import importlib
import importlib.util
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from statewise.envs.protocol import Bools, EnvError


def missing(*packages: str) -> str:
    """Return "" if all packages can be imported, else the line that installs them."""
    found = all(importlib.util.find_spec(name) is not None for name in packages)
    return "" if found else "pip install 'statewise[jax]'"


def to_numpy(array: Any) -> NDArray[Any]:
    """Return a JAX array on the CPU as a read-only numpy array over the same memory."""
    view: NDArray[Any] = np.from_dlpack(array)
    return view


class Carry(NamedTuple):
    """What goes on from step to step, (N, ...) each."""

    keys: Any
    state: Any
    """That of the environments, a tree of arrays."""
    ended: Any
    """The episode is over: the next step restarts it."""


class Outcome(NamedTuple):
    """What a step gives, (N, ...) each."""

    obs: Any
    reward: Any
    terminated: Any
    truncated: Any


class Compiled(NamedTuple):
    """An environment and its functions for any number of it, compiled at their first call."""

    obs_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    begin: Any
    """(keys) -> (obs, carry)."""
    go_on: Any
    """(carry, action) -> (outcome, carry)."""


class JaxVectorEnv(VectorEnv[Any, Any, Any]):
    """N environments of one kind, on the CPU.

    Args:
        shared: the kind.
        num_envs: N.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - gymnasium's own form
        "autoreset_mode": AutoresetMode.NEXT_STEP,
        "render_modes": [],
    }

    def __init__(self, shared: Compiled, num_envs: int) -> None:
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
        """Start N episodes; without a seed the keys go on.

        Raises:
            EnvError: there are options.
        """
        if options:
            raise EnvError(f"expected no reset options, got {options}: those in JAX have none")
        if seed is None and self._carry is not None:
            keys = self._carry.keys
        else:
            first = np.random.SeedSequence().generate_state(1)[0] if seed is None else seed
            seeds = (np.arange(self.num_envs, dtype=np.uint64) + np.uint64(first)).astype(np.uint32)
            keys = self._jax.vmap(self._jax.random.PRNGKey)(seeds)
            keys = self._on_cpu(keys)
        obs, self._carry = self._start(keys)
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

    def _start(self, keys: Any) -> tuple[Any, Carry]:
        """Return the observations and the carry of N episodes that begin."""
        obs, carry = self._begin(keys)
        return obs, carry

    def _on_cpu(self, array: Any) -> Any:
        """Bind an array, and what is computed from it, to the CPU, whose memory numpy reads."""
        return self._jax.device_put(array, self._jax.devices("cpu")[0])
