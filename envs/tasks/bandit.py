"""Bernoulli bandit: arms that pay with chances nobody tells, drawn anew for every trial.

The bandits of Duan et al., "RL^2: Fast Reinforcement Learning via Slow Reinforcement Learning",
2016, with the payoffs of POPGym's MultiarmedBandit.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs.protocol import Bools, EnvError
from statewise.envs.tasks.task import TaskEnv, TaskVectorEnv


class BanditVector(TaskVectorEnv):
    """N episodes of `steps` pulls; the action is the arm.

    Arm k pays 1 with a chance p_k and -1 otherwise, p_k even in [0, 1] and drawn at the start of
    a trial. Observation (1,) float32: what the last pull of the trial paid, 0 before the first.
    Reward: the payoff divided by `steps`, so that a return is the mean payoff. Over 200 pulls of
    10 arms a random policy gets 0, Thompson sampling 0.64, who knows the best arm 0.82.

    Args:
        num_envs: N.
        arms: >= 2.
        steps: pulls of an episode, >= 1.

    Raises:
        EnvError: a number out of range.
    """

    def __init__(self, num_envs: int = 1, *, arms: int = 10, steps: int = 100) -> None:
        if arms < 2 or steps < 1:
            raise EnvError(f"expected arms >= 2 and steps >= 1, got {arms} and {steps} in Bandit")
        self.num_steps = steps
        self._rows = np.arange(num_envs)
        arrays: dict[str, NDArray[Any]] = {
            "chance": np.zeros((num_envs, arms)),
            "luck": np.zeros((num_envs, steps)),
            "paid": np.zeros(num_envs, dtype=np.float32),
            "steps": np.zeros(num_envs, dtype=np.int64),
        }
        super().__init__(num_envs, spaces.Box(-1.0, 1.0, (1,)), spaces.Discrete(arms), arrays)

    def start(self, which: NDArray[np.intp]) -> None:
        """Draw the luck of an episode's pulls, and the chances where a trial begins."""
        for index in which:
            generator = self.generators[index]
            if self.new_trial[index]:
                self.arrays["chance"][index] = generator.random(self.arrays["chance"].shape[1])
                self.arrays["paid"][index] = 0
            self.arrays["luck"][index] = generator.random(self.num_steps)
        self.arrays["steps"][which] = 0

    def advance(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], Bools]:
        """Pull an arm each; a row whose episode is over keeps what its last pull paid."""
        steps = self.arrays["steps"]
        pulls = steps < self.num_steps
        luck = self.arrays["luck"][self._rows, np.minimum(steps, self.num_steps - 1)]
        won = luck < self.arrays["chance"][self._rows, action]
        payoff = np.where(won, 1, -1).astype(np.float32)
        np.copyto(self.arrays["paid"], payoff, where=pulls)
        steps += pulls
        return payoff / np.float32(self.num_steps), steps >= self.num_steps

    def observe(self) -> NDArray[np.float32]:
        """Show what the last pull paid."""
        return np.array(self.arrays["paid"][:, None], dtype=np.float32)


class Bandit(TaskEnv):
    """One episode of `BanditVector` at a time."""

    def __init__(self, *, arms: int = 10, steps: int = 100) -> None:
        super().__init__(BanditVector(arms=arms, steps=steps))
