"""Catch: move a paddle under a falling ball, seen as a picture.

After Mnih et al., "Recurrent Models of Visual Attention", 2014, and BSuite's catch (Osband et
al., 2020).

Deviations: a board of 16 x 16 instead of 10 x 5, a paddle three fields wide instead of one, a
ball drawn over three by three fields (of one alone a decoder learns nothing for hundreds of
updates), a picture in colours, and larger pictures on demand.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs.protocol import Bools, EnvError
from statewise.envs.tasks.task import TaskEnv, TaskVectorEnv

SIDE = 16  # fields of the board
REACH = 1  # fields of the paddle on each side of its middle
LEFT, STAY, RIGHT = range(3)
BALL = np.array([255, 255, 0], np.uint8)  # the larger part of the light
PADDLE = np.array([0, 0, 255], np.uint8)


class CatchVector(TaskVectorEnv):
    """N episodes of 15 steps; actions 0 left, 1 stay, 2 right.

    The ball starts in the top row, its column uniform, and falls one row per step; the paddle
    lies in the bottom row and starts in the middle, at column 8. The edge stops its middle at
    columns 1 and 14. Observation (size, size, 3) uint8: the ball yellow, the paddle blue, where
    they meet white, all else black. The ball is where its middle is; the edge cuts off what is
    drawn around it. Reward of the last step: 1 if the ball fell onto the paddle, -1 if not; 0
    before. Best return 1. A policy that does not look at the ball catches 3 of 16, whatever it
    does: -0.625.

    The info of the last step has `success`: the ball was caught.

    Args:
        num_envs: N.
        size: sides of the picture in pixels, a multiple of 16; 64 for encoders that need it.
        ball: sides of the drawn ball in fields, odd; 1 is hard to see.

    Raises:
        EnvError: size or ball out of range.
    """

    def __init__(self, num_envs: int = 1, *, size: int = SIDE, ball: int = 3) -> None:
        if size < SIDE or size % SIDE:
            raise EnvError(f"expected size a multiple of {SIDE}, got {size} in Catch")
        if not (1 <= ball < SIDE and ball % 2):
            raise EnvError(f"expected ball odd, from 1 to {SIDE - 1}, got {ball} in Catch")
        self.size, self.ball = size, ball
        self._rows = np.arange(num_envs)
        arrays: dict[str, NDArray[Any]] = {
            name: np.zeros(num_envs, dtype=np.int64) for name in ("column", "row", "paddle")
        }
        arrays["success"] = np.zeros(num_envs, dtype=bool)
        picture = spaces.Box(0, 255, (size, size, 3), np.uint8)
        super().__init__(num_envs, picture, spaces.Discrete(3), arrays)

    def start(self, which: NDArray[np.intp]) -> None:
        """Draw the column of the ball and put the paddle into the middle."""
        self.arrays["row"][which] = 0
        self.arrays["paddle"][which] = SIDE // 2
        for index in which:
            self.arrays["column"][index] = self.generators[index].integers(SIDE)

    def advance(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], Bools]:
        """Move the paddle, let the ball fall, and look whether it is caught."""
        row, paddle = self.arrays["row"], self.arrays["paddle"]
        paddle[:] = np.clip(paddle + action - STAY, REACH, SIDE - 1 - REACH)
        row += 1
        caught = np.abs(self.arrays["column"] - paddle) <= REACH
        self.arrays["success"][:] = caught
        terminated = row >= SIDE - 1
        reward = np.where(terminated, np.where(caught, 1, -1), 0)
        return reward.astype(np.float32), terminated

    def observe(self) -> NDArray[np.uint8]:
        """Draw ball and paddle."""
        reach, fields = self.ball // 2, np.arange(SIDE)
        rows = np.abs(self.arrays["row"][:, None] - fields) <= reach
        columns = np.abs(self.arrays["column"][:, None] - fields) <= reach
        board = (rows[:, :, None, None] & columns[:, None, :, None]) * BALL
        for offset in range(-REACH, REACH + 1):
            board[self._rows, -1, self.arrays["paddle"] + offset] += PADDLE
        scale = self.size // SIDE
        return board.repeat(scale, 1).repeat(scale, 2) if scale > 1 else board

    def outcome(self) -> dict[str, NDArray[Any]]:
        """Say whether the ball was caught."""
        return {"success": self.arrays["success"]}


class Catch(TaskEnv):
    """One episode of `CatchVector` at a time."""

    def __init__(self, *, size: int = SIDE, ball: int = 3) -> None:
        super().__init__(CatchVector(size=size, ball=ball))
