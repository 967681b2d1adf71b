"""Trials of a single environment: its resets counted, and a whole trial as one episode."""

from typing import Any, Literal

import gymnasium
import numpy as np

from statewise.envs.protocol import CUT
from statewise.envs.trials import TrialClock, TrialConfig

STARTS = "starts_episode"
"""In the info of a step of `WholeTrials`: its observation is the first of an episode."""
IGNORED = "ignored_action"
"""In the info of a step of `WholeTrials`: it only led to the next episode."""


class TrialEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Tells the environment where a trial begins, and ends its episode with the trial's steps.

    A reset begins a trial if it has a seed, if an episode is broken off, or if the trial is over.
    Before each, the attribute `new_trial` of the environment, if it has one, is set.

    Args:
        env: any single environment.
        config: with trials.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], config: TrialConfig) -> None:
        super().__init__(env)
        self._clock = TrialClock(config, 1)
        self.starts_trial = True
        """Whether the next reset begins a trial, with or without a seed."""
        self._over = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode, as `gymnasium.Env.reset`."""
        begins = seed is not None or self.starts_trial
        if begins:
            self._clock.begin()
        self.env.set_wrapper_attr("new_trial", begins, force=False)
        self.starts_trial = True
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act; the last step of a trial that does not terminate its episode truncates it."""
        runs_out = bool(self._clock.runs_out()[0])
        obs, reward, terminated, truncated, info = self.env.step(action)
        if runs_out and not (terminated or truncated):
            truncated, info = True, info | {CUT: True}
        ended = bool(terminated or truncated)
        self._over = bool(self._clock.count(np.ones(1, dtype=bool), np.array([ended]))[0])
        self.starts_trial = self._over or not ended
        return obs, reward, bool(terminated), bool(truncated), info

    @property
    def is_over(self) -> bool:
        """Whether the last step ended its trial."""
        return self._over


class WholeTrials(gymnasium.Wrapper[Any, Any, Any, Any]):
    """One trial as one episode, for who clears an agent's memory where an episode begins.

    The rows are those of the vector environment: with "next_step" the step after an episode of
    the trial ignores its action and leads to the next one, with "same_step" there is none.

    Args:
        env: counts its trials.
        autoreset: see above.
    """

    def __init__(self, env: TrialEnv, autoreset: Literal["next_step", "same_step"]) -> None:
        super().__init__(env)
        self._trials, self._autoreset = env, autoreset
        self._waits = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start a trial."""
        self._waits = False
        self._trials.starts_trial = True
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Act; the episode ends with the trial."""
        if self._waits:
            self._waits = False
            obs, info = self.env.reset()
            return obs, 0.0, False, False, info | {STARTS: True, IGNORED: True}
        obs, reward, terminated, truncated, info = self.env.step(action)
        if not (terminated or truncated) or self._trials.is_over:
            return obs, reward, terminated, truncated, info
        if self._autoreset == "next_step":
            self._waits = True
        else:
            obs, info = self.env.reset()
            info = info | {STARTS: True}
        return obs, reward, False, False, info
