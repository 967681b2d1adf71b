"""RtgDial: each step pays its own action, so that a return can be dialled exactly.

The environment of the data set `data.toys.rtg_dial`: a policy conditioned on the return to go g
at time t has to act g / (length - t).
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs.protocol import Bools, EnvError
from statewise.envs.tasks.task import TaskEnv, TaskVectorEnv

LOW, HIGH = -1.0, 2.0


class RtgDialVector(TaskVectorEnv):
    """N episodes of `length` steps; one action in [-1, 2].

    Observation (2,) float32: t / length, 1. Reward: the action, clipped to [0, 1]. Best return
    `length`; uniform random actions half of it.

    Args:
        num_envs: N.
        length: steps of an episode, >= 1.

    Raises:
        EnvError: length out of range.
    """

    def __init__(self, num_envs: int = 1, *, length: int = 20) -> None:
        if length < 1:
            raise EnvError(f"expected length >= 1, got {length} in RtgDial")
        self.length = length
        box = spaces.Box(np.zeros(2, np.float32), np.ones(2, np.float32))
        # Outside of [0, 1] actions change nothing: the noise of the data set is not clipped.
        actions = spaces.Box(LOW, HIGH, (1,), np.float32)
        arrays: dict[str, NDArray[Any]] = {"steps": np.zeros(num_envs, dtype=np.int64)}
        super().__init__(num_envs, box, actions, arrays)

    def start(self, which: NDArray[np.intp]) -> None:
        """Put the clock back."""
        self.arrays["steps"][which] = 0

    def advance(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], Bools]:
        """Pay the action."""
        self.arrays["steps"] += 1
        reward = np.clip(action[:, 0], 0, 1).astype(np.float32)
        return reward, self.arrays["steps"] >= self.length

    def observe(self) -> NDArray[np.float32]:
        """Show the time."""
        obs = np.ones((self.num_envs, 2), dtype=np.float32)
        obs[:, 0] = self.arrays["steps"] / self.length
        return obs


class RtgDial(TaskEnv):
    """One episode of `RtgDialVector` at a time."""

    def __init__(self, *, length: int = 20) -> None:
        super().__init__(RtgDialVector(length=length))
