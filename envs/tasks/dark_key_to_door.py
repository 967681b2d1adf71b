"""Dark key-to-door: find a key, then a door, neither of which is shown.

The task of Laskin et al., "In-context Reinforcement Learning with Algorithm Distillation", 2023.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs.protocol import Bools, EnvError
from statewise.envs.tasks.dark_room import MOVE_X, MOVE_Y, Goals, choose_goals
from statewise.envs.tasks.task import TaskEnv, TaskVectorEnv


class DarkKeyToDoorVector(TaskVectorEnv):
    """N episodes of at most `steps` steps; room, walker and actions are those of the dark room.

    Key and door, two cells, are drawn at the start of a trial. Observation (2 size,) float32: x
    and y as one-hot vectors. Reward: 1 in the first step that ends at the key, and 1 in the first
    one after it that ends at the door, with which the episode ends. Best return 2.

    Args:
        num_envs: N.
        size: of the square, >= 2.
        steps: of an episode, >= 1.
        goals: pairs of cells that key and door are drawn from, see `choose_goals`.

    Raises:
        EnvError: a number out of range, or no such goals.
    """

    def __init__(
        self, num_envs: int = 1, *, size: int = 9, steps: int = 50, goals: Goals = "all"
    ) -> None:
        if size < 2 or steps < 1:
            raise EnvError(
                f"expected size >= 2 and steps >= 1, got {size} and {steps} in DarkKeyToDoor"
            )
        self.size, self.num_steps = size, steps
        cells = size**2
        # Number p stands for the key at p // (cells - 1) and one of the other cells for the door.
        self._pairs = choose_goals(cells * (cells - 1), goals)
        self._rows = np.arange(num_envs)
        names = ("x", "y", "key", "door", "has_key", "steps")
        arrays: dict[str, NDArray[Any]] = {n: np.zeros(num_envs, dtype=np.int64) for n in names}
        super().__init__(num_envs, spaces.Box(0.0, 1.0, (2 * size,)), spaces.Discrete(5), arrays)

    def start(self, which: NDArray[np.intp]) -> None:
        """Put the walker into the middle; draw key and door where a trial begins."""
        self.arrays["x"][which] = self.arrays["y"][which] = self.size // 2
        self.arrays["has_key"][which] = self.arrays["steps"][which] = 0
        for index in which[self.new_trial[which]]:
            key, other = divmod(self.generators[index].choice(self._pairs), self.size**2 - 1)
            self.arrays["key"][index] = key
            self.arrays["door"][index] = other + (other >= key)

    def advance(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], Bools]:
        """Walk one cell where there is no wall; take the key, or open the door with it."""
        x, y, has_key = self.arrays["x"], self.arrays["y"], self.arrays["has_key"]
        x[:] = np.clip(x + MOVE_X[action], 0, self.size - 1)
        y[:] = np.clip(y + MOVE_Y[action], 0, self.size - 1)
        self.arrays["steps"] += 1
        place = x * self.size + y
        opens = (has_key == 1) & (place == self.arrays["door"])
        takes = (has_key == 0) & (place == self.arrays["key"])
        has_key[takes] = 1
        ended = opens | (self.arrays["steps"] >= self.num_steps)
        return (takes | opens).astype(np.float32), ended

    def observe(self) -> NDArray[np.float32]:
        """Show where the walker is."""
        obs = np.zeros((self.num_envs, 2 * self.size), dtype=np.float32)
        obs[self._rows, self.arrays["x"]] = 1
        obs[self._rows, self.size + self.arrays["y"]] = 1
        return obs


class DarkKeyToDoor(TaskEnv):
    """One episode of `DarkKeyToDoorVector` at a time."""

    def __init__(self, *, size: int = 9, steps: int = 50, goals: Goals = "all") -> None:
        super().__init__(DarkKeyToDoorVector(size=size, steps=steps, goals=goals))
