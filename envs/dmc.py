"""The DeepMind Control Suite through dm_control, ids `dm_control/<domain>-<task>`.

Paper: Tassa et al. 2018, "DeepMind Control Suite". What is observed are positions and
velocities, not pictures.

A time step of dm_env with discount 0 is terminated; a last one with another discount was cut off
by the time limit.

Deviations: numbers become float32; the task's generator is seeded from `np_random` for each
episode, so that an episode can be resumed; what `lqr` draws when it is loaded is always the same.
"""

import importlib
import importlib.util
import sys
import warnings
from collections import OrderedDict
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs.protocol import EnvError

PREFIX = "dm_control/"

Row = dict[str, NDArray[np.float32]]


def missing() -> str:
    """Return "" if dm_control can be imported, else the line that installs it."""
    if importlib.util.find_spec("dm_control") is not None:
        return ""
    # labmaze 1.0.6, which it needs, cannot be installed on newer ones.
    where = "" if sys.version_info < (3, 13) else " with Python 3.12 or older"
    return f"pip install 'statewise[dmc]'{where}"


def _suite() -> Any:
    with warnings.catch_warnings():
        # dm_control 1.0.50 looks for a screen when it is imported
        warnings.filterwarnings("ignore", message=".*DISPLAY environment variable is missing")
        return importlib.import_module("dm_control.suite")


def register() -> None:
    """Make the ids known to gymnasium; calling it again changes nothing."""
    for domain, task in _suite().ALL_TASKS:
        env_id = f"{PREFIX}{domain}-{task}"
        if env_id not in gymnasium.registry:
            kwargs = {"domain": domain, "task": task}
            gymnasium.register(env_id, entry_point=f"{__name__}:DmControl", kwargs=kwargs)


class DmControl(gymnasium.Env[Row, NDArray[np.float32]]):
    """One task. Observations: a dict of float32 arrays, as the task names them.

    Args:
        domain: for example "cartpole".
        task: for example "balance".
        action_repeat: steps of the task that an action lasts, at least 1; their rewards are added.
        time_limit: simulated seconds of an episode, positive; None is that of the task.

    Raises:
        EnvError: a value out of range.
    """

    def __init__(
        self, domain: str, task: str, *, action_repeat: int = 1, time_limit: float | None = None
    ) -> None:
        name = f"{PREFIX}{domain}-{task}"
        if action_repeat < 1:
            raise EnvError(f"expected action_repeat at least 1, got {action_repeat} for {name}")
        if time_limit is not None and not time_limit > 0:
            raise EnvError(f"expected a positive time_limit, got {time_limit} for {name}")
        limit = {} if time_limit is None else {"time_limit": time_limit}
        self._task = _suite().load(domain, task, task_kwargs={"random": 0, **limit})
        self._repeat = action_repeat
        self.observation_space = spaces.Dict(
            OrderedDict(
                (key, spaces.Box(-np.inf, np.inf, spec.shape or (1,)))
                for key, spec in self._task.observation_spec().items()
            )
        )
        bounds = self._task.action_spec()
        low, high = (np.broadcast_to(x, bounds.shape) for x in (bounds.minimum, bounds.maximum))
        self.action_space = spaces.Box(low.astype(np.float32), high.astype(np.float32))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Row, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed, options=options)
        self._task.task.random.seed(int(self.np_random.integers(2**32)))
        return _row(self._task.reset().observation), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Row, float, bool, bool, dict[str, Any]]:
        """Act for `action_repeat` steps, or until the episode ends."""
        reward = 0.0
        for _ in range(self._repeat):
            now = self._task.step(np.asarray(action, np.float64))
            reward += float(now.reward)
            if now.last():
                break
        terminated = bool(now.last() and now.discount == 0)
        return _row(now.observation), reward, terminated, now.last() and not terminated, {}

    def close(self) -> None:
        """Free the physics."""
        self._task.close()


def _row(observation: dict[str, Any]) -> Row:
    """Return fresh float32 arrays, numbers without an axis as vectors of one."""
    return {key: np.array(value, dtype=np.float32, ndmin=1) for key, value in observation.items()}
