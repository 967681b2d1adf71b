"""Tasks of trials in JAX, ids `jax:<name>`: the batch in one compiled call."""

from collections.abc import Callable, Collection
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.envs import jax_vector
from statewise.envs.jax_tasks import bandit, dark_room, projected_cart_pole
from statewise.envs.jax_tasks.task import JaxTask, compile_task
from statewise.envs.jax_vector import Carry, Compiled, JaxVectorEnv
from statewise.envs.protocol import CUT, Bools
from statewise.envs.trials import TrialConfig

PREFIX = "jax:"
TASKS: dict[str, Callable[..., JaxTask]] = {
    "DarkRoom": dark_room.make,
    "Bandit": bandit.make,
    "ProjectedCartPole": projected_cart_pole.make,
}
"""Name -> make(**kwargs); the numpy version is `statewise/<name>-v0`."""


def missing() -> str:
    """Return "" if JAX can be imported, else the line that installs it."""
    return jax_vector.missing("jax")


def ids() -> Collection[str]:
    """Return the ids that can be made."""
    return [PREFIX + name for name in TASKS]


@cache
def compiled(
    env_id: str, settings: tuple[tuple[str, Any], ...], episodes: int, steps: int
) -> Compiled:
    """Return what all environments of one id, these settings and these trials share.

    Raises:
        EnvError: an argument out of range.
        TypeError: an argument that the task does not know.
    """
    task = TASKS[env_id.removeprefix(PREFIX)](**dict(settings))
    return compile_task(task, TrialConfig(episodes=episodes, steps=steps))


class JaxTasks(JaxVectorEnv):
    """N environments of one task, on the CPU.

    Args:
        env_id: with its prefix.
        num_envs: N.
        **kwargs: arguments of the task, those of its numpy version.

    Raises:
        EnvError: an argument out of range.
        TypeError: an argument that the task does not know.
    """

    def __init__(self, env_id: str, num_envs: int, **kwargs: Any) -> None:
        self._settings = env_id, tuple(sorted(kwargs.items()))
        super().__init__(compiled(*self._settings, 0, 0), num_envs)
        self._has_trials = False
        self.new_trial = np.ones(num_envs, dtype=bool)
        """(N,): the next `reset` draws a task."""

    def set_trials(self, config: TrialConfig) -> None:
        """Make trials of several episodes, before the first reset."""
        shared = compiled(*self._settings, config.episodes, config.steps)
        self._begin, self._go_on = shared.begin, shared.go_on
        self._has_trials = True

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Any, NDArray[np.float32], Bools, Bools, dict[str, Any]]:
        """Step all, as `JaxVectorEnv.step`; nothing but a trial truncates an episode."""
        *moved, truncated, info = super().step(actions)
        return *moved, truncated, info | ({CUT: truncated} if self._has_trials else {})

    def _start(self, keys: Any) -> tuple[Any, Carry]:
        """Return the observations and the carry of N episodes, of new tasks or of those before."""
        last = () if self._carry is None or self.new_trial.all() else (self._carry, self.new_trial)
        obs, carry = self._begin(keys, *last)
        return obs, carry
