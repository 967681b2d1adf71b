"""Dark room: find a goal that is not shown, and go back to it in the next episodes.

The task of Laskin et al., "In-context Reinforcement Learning with Algorithm Distillation", 2023.
"""

from typing import Any, Literal, get_args

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs.protocol import Bools, EnvError
from statewise.envs.tasks.task import TaskEnv, TaskVectorEnv

Goals = Literal["all", "train", "held_out"]
Shown = Literal["one_hot", "coordinates"]
STAY, RIGHT, LEFT, UP, DOWN = range(5)
MOVE_X = np.array([0, 1, -1, 0, 0])
MOVE_Y = np.array([0, 0, 0, 1, -1])
_SPLIT_SEED = 0  # of the one split into training and held-out cells
_HELD_OUT = 0.2
_RANGES: dict[Shown, tuple[float, float]] = {"one_hot": (0.0, 1.0), "coordinates": (-1.0, 1.0)}


def choose_goals(count: int, goals: Goals) -> NDArray[np.int64]:
    """Return some of 0 .. count - 1 in ascending order; a fifth is held out, at least one.

    Args:
        count: >= 2; the split is always the same.
        goals: "train" and "held_out" share nothing and make up "all".

    Raises:
        EnvError: none of them.
    """
    if goals not in get_args(Goals):
        raise EnvError(f"expected goals to be one of {get_args(Goals)}, got {goals!r}")
    if goals == "all":
        return np.arange(count)
    mixed = np.random.default_rng(_SPLIT_SEED).permutation(count)
    held_out = max(1, round(_HELD_OUT * count))
    return np.sort(mixed[:held_out] if goals == "held_out" else mixed[held_out:])


def show_places(size: int, shown: Shown) -> NDArray[np.float32]:
    """Return (size, size) or (size, 1): what is observed of each place on an axis."""
    if shown == "one_hot":
        return np.eye(size, dtype=np.float32)
    return np.linspace(-1, 1, size, dtype=np.float32)[:, None]


class DarkRoomVector(TaskVectorEnv):
    """N episodes of `steps` steps; actions 0 stay, 1 x + 1, 2 x - 1, 3 y + 1, 4 y - 1.

    The walker starts in the middle of a square; walls stop a move. The goal, one cell, is drawn
    at the start of a trial. Observation (2 size,) float32: x and y as one-hot vectors; or (2,), x
    and y in [-1, 1]. Reward: 1 in every step that ends at the goal, 0 in others. Best mean return
    of who knows a goal out of all cells: 8.56 for size 5 with 10 steps, 16.54 for size 9 with 20.

    Args:
        num_envs: N.
        size: of the square, >= 2.
        steps: of an episode, >= 1.
        goals: cells they are drawn from, see `choose_goals`.
        shown: what is observed of a place, "one_hot" or "coordinates".
        novelty: added to the reward of a step into a cell that is new in the trial, >= 0; for
            training, so that goals are looked for everywhere.

    Raises:
        EnvError: a number out of range, or no such goals or observation.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        size: int = 5,
        steps: int = 10,
        goals: Goals = "all",
        shown: Shown = "one_hot",
        novelty: float = 0.0,
    ) -> None:
        if size < 2 or steps < 1 or not 0 <= novelty < np.inf:
            raise EnvError(
                "expected size >= 2, steps >= 1 and finite novelty >= 0, got "
                f"{size}, {steps} and {novelty} in DarkRoom"
            )
        if shown not in get_args(Shown):
            raise EnvError(f"expected shown to be one of {get_args(Shown)}, got {shown!r}")
        self.size, self.num_steps, self._novelty = size, steps, novelty
        self._cells = choose_goals(size**2, goals)
        names = ("x", "y", "goal_x", "goal_y", "steps")
        arrays: dict[str, NDArray[Any]] = {n: np.zeros(num_envs, dtype=np.int64) for n in names}
        if novelty:
            arrays["known"] = np.zeros((num_envs, size, size), dtype=np.bool_)
        self._places = show_places(size, shown)
        seen = spaces.Box(*_RANGES[shown], (2 * self._places.shape[1],))
        super().__init__(num_envs, seen, spaces.Discrete(5), arrays)

    def start(self, which: NDArray[np.intp]) -> None:
        """Put the walker into the middle; draw the goal where a trial begins."""
        self.arrays["x"][which] = self.arrays["y"][which] = self.size // 2
        self.arrays["steps"][which] = 0
        if self._novelty:
            self.arrays["known"][which[self.new_trial[which]]] = False
            self._enter(which)
        for index in which[self.new_trial[which]]:
            cell = self.generators[index].choice(self._cells)
            self.arrays["goal_x"][index], self.arrays["goal_y"][index] = divmod(cell, self.size)

    def advance(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], Bools]:
        """Walk one cell where there is no wall."""
        x, y = self.arrays["x"], self.arrays["y"]
        x[:] = np.clip(x + MOVE_X[action], 0, self.size - 1)
        y[:] = np.clip(y + MOVE_Y[action], 0, self.size - 1)
        self.arrays["steps"] += 1
        found = (x == self.arrays["goal_x"]) & (y == self.arrays["goal_y"])
        reward = found.astype(np.float32)
        if self._novelty:
            walking = np.flatnonzero(~self._ended)
            reward[walking] += self._novelty * self._enter(walking)
        return reward, self.arrays["steps"] >= self.num_steps

    def _enter(self, which: NDArray[np.intp]) -> Bools:
        """Note where walkers are; return for which of them the cell was new."""
        cell = which, self.arrays["x"][which], self.arrays["y"][which]
        is_new: Bools = ~self.arrays["known"][cell]
        self.arrays["known"][cell] = True
        return is_new

    def observe(self) -> NDArray[np.float32]:
        """Show where the walker is."""
        return np.concatenate([self._places[self.arrays[axis]] for axis in ("x", "y")], 1)


class DarkRoom(TaskEnv):
    """One episode of `DarkRoomVector` at a time."""

    def __init__(
        self,
        *,
        size: int = 5,
        steps: int = 10,
        goals: Goals = "all",
        shown: Shown = "one_hot",
        novelty: float = 0.0,
    ) -> None:
        env = DarkRoomVector(size=size, steps=steps, goals=goals, shown=shown, novelty=novelty)
        super().__init__(env)
