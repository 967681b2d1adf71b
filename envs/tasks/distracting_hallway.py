"""DistractingHallway: a kind seen in the first room says which side is right at the far end.

The distracting memory of Deng et al., "Facing Off World Model Backbones: RNNs, Transformers, and
S4", 2023, in one dimension: its reward is predicted only if the kind is remembered while the
hallway passes by. The environment of the data set `data.toys.distracting_hallway`.

      columns 0 1 2   3 4 5 ... w + 2   w + 3
              K K K   . d .       .       A        up
              K K K   d . d       d       A        K: the kind of the episode, A or B
              K K K   . . .       .       .        middle, where the walker is
              K K K   . d .       d       B        d: one distractor per column, up or down
              K K K   . . .       .       B        down

Deviations: one dimension; the view is one-hot, not codes of objects and colours; the kind fills
a whole room, so that it is seen in several rows and has its share in the reconstruction; at the
end A always lies up and B down, so that the reward depends on two things, not three; widths may
vary, and who is early waits at the end. Without the wait a model cannot imagine such episodes:
nothing that is seen first says when the end will come, and an end that is imagined at another
step than that of the choice would be like nothing that was ever seen.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs.protocol import Bools, EnvError
from statewise.envs.tasks.task import TaskEnv, TaskVectorEnv

WALK, UP, DOWN = range(3)
KIND_UP, KIND_DOWN, DISTRACTOR = range(3)  # channels of the view; the kinds are those they lie on
VIEW, SIGHT = 5, 2  # fields along and across, and to each side of the walker
ROOM = 3  # columns that show the kind
NARROWEST = SIGHT  # so that the kind is out of sight at the end


class DistractingHallwayVector(TaskVectorEnv):
    """N episodes of n + 4 steps in a hallway of w <= n columns; actions 0 walk, 1 up, 2 down.

    The walker starts in column 0. Walking leads on by one column, up to column w + 3, where it
    waits; up and down lead nowhere before the last step, which is the choice. Observation (75,)
    float32, 0 or 1: 5 rows (up to down) x 5 columns (two behind to two ahead of the walker) x 3
    channels (kind A, kind B, distractor), flattened in this order; fields without anything are
    0 0 0. Who walks sees the kind in rows 0 .. 4 of the episode. The terminal row is all zeros.
    Reward: 1 if the last step takes, in column w + 3, the side of the kind (A up, B down); 0
    otherwise and before. Best return 1; a walker without memory 0.5; random actions
    P(n + 3 trials of 1/3 succeed w + 3 times or more) / 3, which is 3^-(w + 4) where n = w.

    The info of the last step has `success`: the right side was taken.

    Args:
        num_envs: N.
        width: n and w, columns of the hallway, >= 2.
        low: None: n = w = `width`; else n is uniform in low .. width and w in low .. n, drawn
            anew for each episode, 2 <= low <= width.

    Raises:
        EnvError: a number out of range.
    """

    def __init__(self, num_envs: int = 1, *, width: int = 100, low: int | None = None) -> None:
        self.width, self.low = width, width if low is None else low
        if not NARROWEST <= self.low <= width:
            raise EnvError(
                f"expected {NARROWEST} <= low <= width, got low {low} and width {width}"
                " in DistractingHallway"
            )
        arrays: dict[str, NDArray[Any]] = {
            name: np.zeros(num_envs, dtype=np.int64)
            for name in ("kind", "width", "time", "x", "steps")
        }
        arrays["sides"] = np.zeros((num_envs, width), dtype=np.int64)
        arrays["success"] = np.zeros(num_envs, dtype=bool)
        box = spaces.Box(0, 1, (VIEW * VIEW * 3,), np.float32)
        super().__init__(num_envs, box, spaces.Discrete(3), arrays)

    def start(self, which: NDArray[np.intp]) -> None:
        """Draw the kind, the time, the width and the distractors."""
        self.arrays["x"][which] = self.arrays["steps"][which] = 0
        for index in which:
            generator = self.generators[index]
            self.arrays["kind"][index] = generator.integers(2)
            time = generator.integers(self.low, self.width + 1)
            self.arrays["time"][index] = time
            self.arrays["width"][index] = generator.integers(self.low, time + 1)
            self.arrays["sides"][index] = generator.integers(2, size=self.width)

    def advance(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], Bools]:
        """Walk; the last action is the choice."""
        x, steps = self.arrays["x"], self.arrays["steps"]
        end = ROOM + self.arrays["width"]
        terminated = steps >= ROOM + self.arrays["time"]
        side = np.where(self.arrays["kind"] == KIND_UP, UP, DOWN)
        self.arrays["success"][:] = (x == end) & (action == side)
        x += (action == WALK) & (x < end)
        steps += 1
        return (terminated & self.arrays["success"]).astype(np.float32), terminated

    def observe(self) -> NDArray[np.float32]:
        """Show what lies around the walker; nothing once the choice is made."""
        end = ROOM + self.arrays["width"][:, None]
        columns = self.arrays["x"][:, None] + np.arange(-SIGHT, SIGHT + 1)  # (N, 5)
        view = np.zeros((self.num_envs, VIEW, VIEW, 3), dtype=np.float32)
        n, j = np.nonzero((columns >= 0) & (columns < ROOM))
        view[n, :, j, self.arrays["kind"][n]] = 1
        n, j = np.nonzero((columns >= ROOM) & (columns < end))
        view[n, 1 + 2 * self.arrays["sides"][n, columns[n, j] - ROOM], j, DISTRACTOR] = 1
        n, j = np.nonzero(columns == end)
        view[n, :SIGHT, j, KIND_UP] = 1
        view[n, SIGHT + 1 :, j, KIND_DOWN] = 1
        view[self.arrays["steps"] > ROOM + self.arrays["time"]] = 0
        return view.reshape(self.num_envs, -1)

    def outcome(self) -> dict[str, NDArray[Any]]:
        """Say whether the right side was taken."""
        return {"success": self.arrays["success"]}


class DistractingHallway(TaskEnv):
    """One episode of `DistractingHallwayVector` at a time."""

    def __init__(self, *, width: int = 100, low: int | None = None) -> None:
        super().__init__(DistractingHallwayVector(width=width, low=low))
