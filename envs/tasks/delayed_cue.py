"""DelayedCue: a side shown in the first row is asked for after `length` empty ones.

The environment of the data set `data.toys.delayed_cue`.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs.protocol import Bools, EnvError
from statewise.envs.tasks.task import TaskEnv, TaskVectorEnv

WAIT, LEFT, RIGHT = range(3)


class DelayedCueVector(TaskVectorEnv):
    """N episodes of length + 1 steps; actions 0 wait, 1 left, 2 right.

    Observation (2,) float32: the cue, -1 or 1, at t = 0, else 0; and 1 at t = length, else 0.
    Reward: 1 if the last action is left for -1 and right for 1; 0 otherwise and before. Best
    return 1; a constant side 0.5, random actions 1/3.

    Args:
        num_envs: N.
        length: steps between cue and answer, >= 1.

    Raises:
        EnvError: length out of range.
    """

    def __init__(self, num_envs: int = 1, *, length: int = 30) -> None:
        if length < 1:
            raise EnvError(f"expected length >= 1, got {length} in DelayedCue")
        self.length = length
        box = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 1], np.float32))
        arrays: dict[str, NDArray[Any]] = {
            name: np.zeros(num_envs, dtype=np.int64) for name in ("cue", "steps")
        }
        super().__init__(num_envs, box, spaces.Discrete(3), arrays)

    def start(self, which: NDArray[np.intp]) -> None:
        """Draw the cue."""
        self.arrays["steps"][which] = 0
        for index in which:
            self.arrays["cue"][index] = 2 * self.generators[index].integers(2) - 1

    def advance(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], Bools]:
        """Let time pass; the last action is the answer."""
        self.arrays["steps"] += 1
        terminated = self.arrays["steps"] > self.length
        right = action == np.where(self.arrays["cue"] > 0, RIGHT, LEFT)
        return (terminated & right).astype(np.float32), terminated

    def observe(self) -> NDArray[np.float32]:
        """Show the cue at the start and the question at the end."""
        steps = self.arrays["steps"]
        obs = np.zeros((self.num_envs, 2), dtype=np.float32)
        obs[:, 0] = self.arrays["cue"] * (steps == 0)
        obs[:, 1] = steps == self.length
        return obs


class DelayedCue(TaskEnv):
    """One episode of `DelayedCueVector` at a time."""

    def __init__(self, *, length: int = 30) -> None:
        super().__init__(DelayedCueVector(length=length))
