"""Passive T-maze: the start shows which arm, at the far end of a corridor, holds the goal.

Ni et al., "When Do Transformers Shine in RL? Decoupling Memory from Credit Assignment", 2023.

Deviations: the penalty is that of AMAGO's "Alt" version (Grigsby et al., 2024), for every
action but "right", not for being behind the fastest walker; far fewer steps teach the corridor.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs.protocol import Bools, EnvError
from statewise.envs.tasks.task import TaskEnv, TaskVectorEnv

RIGHT, UP, LEFT, DOWN = range(4)
_MOVE_X = np.array([1, 0, -1, 0])
_MOVE_Y = np.array([0, 1, 0, -1])


class TMazeVector(TaskVectorEnv):
    """N episodes of length + 1 steps; actions 0 right, 1 up, 2 left, 3 down.

    The corridor is x = 0 .. length at y = 0; at its end the arms are y = 1 and y = -1. Walls
    stop a move. Observation (2,) float32: [0, goal y] in the first row of an episode, [1, y] at
    x = length, else [0, 0]. Reward: 1 if the last step ends at the goal, 0 if it does not;
    before that -1 / length for every action but right. Best return 1; without memory 0.5.

    Args:
        num_envs: N.
        length: of the corridor, >= 1.

    Raises:
        EnvError: length out of range.
    """

    def __init__(self, num_envs: int = 1, *, length: int = 50) -> None:
        if length < 1:
            raise EnvError(f"expected length >= 1, got {length} in TMaze")
        self.length = length
        box = spaces.Box(np.array([0, -1], np.float32), np.array([1, 1], np.float32))
        arrays: dict[str, NDArray[Any]] = {
            name: np.zeros(num_envs, dtype=np.int64) for name in ("x", "y", "goal", "steps")
        }
        super().__init__(num_envs, box, spaces.Discrete(4), arrays)

    def start(self, which: NDArray[np.intp]) -> None:
        """Put the walker at the start and draw the goal."""
        for name in ("x", "y", "steps"):
            self.arrays[name][which] = 0
        for index in which:
            self.arrays["goal"][index] = 2 * self.generators[index].integers(2) - 1

    def advance(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], Bools]:
        """Walk one field where there is no wall."""
        x, y, steps = self.arrays["x"], self.arrays["y"], self.arrays["steps"]
        in_corridor, at_end = y == 0, x == self.length
        np.copyto(x, np.clip(x + _MOVE_X[action], 0, self.length), where=in_corridor)
        np.copyto(y, np.clip(y + _MOVE_Y[action], -1, 1), where=at_end)
        steps += 1
        terminated = steps > self.length
        penalty = np.where(action == RIGHT, 0.0, -1 / self.length)
        reward = np.where(terminated, y == self.arrays["goal"], penalty)
        return reward.astype(np.float32), terminated

    def observe(self) -> NDArray[np.float32]:
        """Show the goal at the start and the place at the end."""
        at_end = self.arrays["x"] == self.length
        obs = np.zeros((self.num_envs, 2), dtype=np.float32)
        obs[:, 0] = at_end
        obs[:, 1] = self.arrays["y"] * at_end + self.arrays["goal"] * (self.arrays["steps"] == 0)
        return obs


class TMaze(TaskEnv):
    """One episode of `TMazeVector` at a time."""

    def __init__(self, *, length: int = 50) -> None:
        super().__init__(TMazeVector(length=length))
