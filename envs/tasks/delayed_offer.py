"""DelayedOffer: take or leave an offer whose worth was shown some rows before.

BSuite's memory length (Osband et al., "Behaviour Suite for Reinforcement Learning", 2020) for
world models: the reward is their only loss that asks for the cue.

Deviations: right and wrong are not paid 1 and -1 for naming the cue. That reward is an exclusive
or of cue and action, whose mean over random actions does not depend on the cue, so that nothing
is learned from it at first. Taking pays what the cue says and leaving pays nothing.
"""

import math
from typing import Any, Literal, get_args

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs.protocol import Bools, EnvError
from statewise.envs.tasks.task import TaskEnv, TaskVectorEnv

Mode = Literal["fixed", "mixed"]
Pays = Literal["offer", "decision"]

TAKE, LEAVE = range(2)
SHORTEST = 2  # delay of mode "mixed"


class DelayedOfferVector(TaskVectorEnv):
    """N episodes of d + 1 steps, d + 2 rows with the terminal one; actions 0 take, 1 leave.

    Observation (4,) float32 in row t: the cue, 0 or 1, one-hot times `amp` at t = 0, else 0 0;
    noise, -1 or 1, at t = 0 .. d; 1 at t = d, else 0: the question. The terminal row d + 1 is
    all zeros. Reward: with the action at t = d, to take pays 1 if the cue was 0 and -1 if it was
    1; to leave pays 0, and so does every action before. Best return 0.5; without memory 0.

    The info of the last step has `success`: the decision was to take exactly if the cue was 0.
    Without memory that is so in half of the episodes, whatever the policy.

    Args:
        num_envs: N.
        delay: k, >= 1; >= 2 where it is mixed.
        mode: "fixed": d = k; "mixed": d is uniform in 2 .. k, drawn anew for each episode.
        amp: size of the cue, > 0 and finite.
        pays: "offer": as above; "decision": 1 with the decision if it was right, else 0. Of an
            evaluation the mean return is then the share of right decisions, whatever the cues.

    Raises:
        EnvError: an argument is out of range.
    """

    def __init__(
        self,
        num_envs: int = 1,
        *,
        delay: int = 10,
        mode: Mode = "fixed",
        amp: float = 4.0,
        pays: Pays = "offer",
    ) -> None:
        for name, value, known in (("mode", mode, Mode), ("pays", pays, Pays)):
            if value not in get_args(known):
                allowed = " or ".join(get_args(known))
                raise EnvError(f"expected {name} {allowed}, got {value!r} in DelayedOffer")
        shortest = SHORTEST if mode == "mixed" else 1
        if delay < shortest:
            raise EnvError(
                f"expected delay >= {shortest} in mode {mode}, got {delay} in DelayedOffer"
            )
        if not 0 < amp < math.inf:
            raise EnvError(f"expected a finite amp > 0, got {amp} in DelayedOffer")
        self.delay, self.amp, self._pays = delay, amp, pays
        self._shortest = SHORTEST if mode == "mixed" else delay
        self._rows = np.arange(num_envs)
        arrays: dict[str, NDArray[Any]] = {
            name: np.zeros(num_envs, dtype=np.int64) for name in ("cue", "delay", "steps")
        }
        arrays["noise"] = np.zeros((num_envs, delay + 1), dtype=np.int64)
        arrays["success"] = np.zeros(num_envs, dtype=bool)
        box = spaces.Box(
            np.array([0, 0, -1, 0], np.float32), np.array([amp, amp, 1, 1], np.float32)
        )
        super().__init__(num_envs, box, spaces.Discrete(2), arrays)

    def start(self, which: NDArray[np.intp]) -> None:
        """Draw the cue, the delay and the noise."""
        self.arrays["steps"][which] = 0
        for index in which:
            generator = self.generators[index]
            self.arrays["cue"][index] = generator.integers(2)
            self.arrays["delay"][index] = generator.integers(self._shortest, self.delay + 1)
            self.arrays["noise"][index] = 2 * generator.integers(2, size=self.delay + 1) - 1

    def advance(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], Bools]:
        """Let time pass; the action at the question is the decision."""
        asked = self.arrays["steps"] == self.arrays["delay"]
        taken, is_good = action == TAKE, self.arrays["cue"] == 0
        self.arrays["success"][:] = taken == is_good
        self.arrays["steps"] += 1
        worth = np.where(taken, np.where(is_good, 1, -1), 0)
        if self._pays == "decision":
            worth = self.arrays["success"]
        reward = np.where(asked, worth, 0)
        return reward.astype(np.float32), asked

    def observe(self) -> NDArray[np.float32]:
        """Show the cue at the start, noise, and the question at the end."""
        steps, delay = self.arrays["steps"], self.arrays["delay"]
        obs = np.zeros((self.num_envs, 4), dtype=np.float32)
        obs[self._rows, self.arrays["cue"]] = self.amp * (steps == 0)
        noise = self.arrays["noise"][self._rows, np.minimum(steps, self.delay)]
        obs[:, 2] = noise * (steps <= delay)
        obs[:, 3] = steps == delay
        return obs

    def outcome(self) -> dict[str, NDArray[Any]]:
        """Say whether the decision was right."""
        return {"success": self.arrays["success"]}


class DelayedOffer(TaskEnv):
    """One episode of `DelayedOfferVector` at a time."""

    def __init__(
        self,
        *,
        delay: int = 10,
        mode: Mode = "fixed",
        amp: float = 4.0,
        pays: Pays = "offer",
    ) -> None:
        super().__init__(DelayedOfferVector(delay=delay, mode=mode, amp=amp, pays=pays))
