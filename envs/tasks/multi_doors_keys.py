"""MultiDoorsKeys: a door opens if its key was picked up and has not been used since.

The task of Deng et al., "Facing Off World Model Backbones: RNNs, Transformers, and S4", 2023, as
a vector. Keys in the hand are not shown, and of the rooms only the one around the walker is: what
a door does follows from the actions and from what was seen of the keys, not from the row before.
The environment of the data set `data.toys.multi_doors_keys`.

    room            0        1        2      ...
    door (above)    0        1        2             its colour is the number of the room
    hook (below)    key 2    key 0    key 1         the keys are dealt anew for each episode

    take:  held[key of the hook] = True; the hook is empty
    try:   the door opens if held[its colour], then held = False; the key is on its hook again

Deviations: rooms in a row instead of a grid; a door falls shut at once, and a key that was used
hangs on its hook again, so that episodes of any length ask the same question.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs.protocol import Bools, EnvError
from statewise.envs.tasks.task import TaskEnv, TaskVectorEnv

LEFT, RIGHT, TAKE, TRY = range(4)
DOOR = 0
"""Entry of the observation that shows what a door did."""


class MultiDoorsKeysVector(TaskVectorEnv):
    """N episodes of `length` steps, which end by the time limit, in n = `num_keys` rooms.

    Actions: 0 left and 1 right, to the next room if there is one; 2 take the key of this room;
    3 try its door. The walker starts in room 0. Observation (2 n + 1,) float32:

        0            1 if the last action was to try and the door opened, -1 if it did not open,
                     0 after other actions and in the first row
        1 .. n       number of the room, which is the colour of its door, one-hot
        n + 1 .. 2n  colour of the key on the hook of this room, one-hot; zeros while it is held

    Reward: 1 / n when a door opens for the first time, -1 / n when one that is tried stays shut.
    Best return 1, which takes 4 n - 2 steps.

    The info of the last step has `success`: every door has been open.

    Args:
        num_envs: N.
        num_keys: n, rooms, doors, keys and colours, >= 2.
        length: steps of an episode, >= 4 n - 2.

    Raises:
        EnvError: a number out of range.
    """

    def __init__(self, num_envs: int = 1, *, num_keys: int = 3, length: int = 100) -> None:
        if num_keys < 2 or length < 4 * num_keys - 2:
            raise EnvError(
                "expected num_keys >= 2 and length >= 4 num_keys - 2, "
                f"got {num_keys} and {length} in MultiDoorsKeys"
            )
        self.num_keys, self.length = num_keys, length
        self._rows, self._one_hot = np.arange(num_envs), np.eye(num_keys, dtype=np.float32)
        arrays: dict[str, NDArray[Any]] = {
            name: np.zeros(num_envs, dtype=np.int64) for name in ("room", "door", "steps")
        }
        arrays["keys"] = np.zeros((num_envs, num_keys), dtype=np.int64)
        for name in ("held", "opened"):
            arrays[name] = np.zeros((num_envs, num_keys), dtype=bool)
        lowest = np.zeros(2 * num_keys + 1, np.float32)
        lowest[DOOR] = -1
        box = spaces.Box(lowest, np.ones_like(lowest))
        super().__init__(num_envs, box, spaces.Discrete(4), arrays)

    def start(self, which: NDArray[np.intp]) -> None:
        """Put the walker into the first room and deal the keys."""
        for name in ("room", "door", "steps", "held", "opened"):
            self.arrays[name][which] = 0
        for index in which:
            self.arrays["keys"][index] = self.generators[index].permutation(self.num_keys)

    def advance(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], Bools]:
        """Walk, take a key or try a door."""
        room, held, opened = (self.arrays[name] for name in ("room", "held", "opened"))
        rows, tries = self._rows, action == TRY
        opens = tries & held[rows, room]
        paid = (opens & ~opened[rows, room]).astype(np.int64) - (tries & ~opens)
        reward = paid / self.num_keys
        opened[rows, room] |= opens
        held[rows, room] &= ~opens
        held[rows, self.arrays["keys"][rows, room]] |= action == TAKE
        self.arrays["door"][:] = tries * np.where(opens, 1, -1)
        moved = room + (action == RIGHT) - (action == LEFT)
        room[:] = np.clip(moved, 0, self.num_keys - 1)
        self.arrays["steps"] += 1
        return reward.astype(np.float32), self.arrays["steps"] >= self.length

    def observe(self) -> NDArray[np.float32]:
        """Show what the door did, and the room."""
        rows, room = self._rows, self.arrays["room"]
        key = self.arrays["keys"][rows, room]
        hangs = ~self.arrays["held"][rows, key]
        obs = np.empty((self.num_envs, 2 * self.num_keys + 1), dtype=np.float32)
        obs[:, DOOR] = self.arrays["door"]
        obs[:, 1 : self.num_keys + 1] = self._one_hot[room]
        obs[:, self.num_keys + 1 :] = self._one_hot[key] * hangs[:, None]
        return obs

    def outcome(self) -> dict[str, NDArray[Any]]:
        """Say whether every door has been open."""
        return {"success": np.all(self.arrays["opened"], axis=1)}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[np.float32], Bools, Bools, dict[str, Any]]:
        """Step all; the time limit truncates."""
        obs, reward, ended, never, info = super().step(actions)
        return obs, reward, never, ended, info


class MultiDoorsKeys(TaskEnv):
    """One episode of `MultiDoorsKeysVector` at a time."""

    def __init__(self, *, num_keys: int = 3, length: int = 100) -> None:
        super().__init__(MultiDoorsKeysVector(num_keys=num_keys, length=length))

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act once; the time limit truncates."""
        obs, reward, ended, never, info = super().step(action)
        return obs, reward, never, ended, info
