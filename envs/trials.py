"""Trials: several episodes of one task, over which the memory runs on.

Paper: Duan et al. 2016, "RL^2: Fast Reinforcement Learning via Slow Reinforcement Learning". A
trial is K episodes, or H steps. In it the task stays, the memory is not cleared where an episode
begins, and an agent that sees its last action and reward can find out what the task is.

Under NEXT_STEP the row of a final observation stays, not `valid`, with the memory running on;
under SAME_STEP there is none. An environment that draws a task per trial has an attribute
`new_trial`: whether its next reset begins one (`trial_env.TrialEnv`, `tasks.task.TaskVectorEnv`).
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from statewise.envs.protocol import Arrived, Bools, EnvError, InTrial, Obs, VectorEnv

Unit = Literal["trial", "episode"]


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """What a trial is, and what ends with its episodes; by default there are no trials.

    Raises:
        ValueError: a field is out of range, or would have no effect.
    """

    episodes: int = 0  # K, >= 1; 0: a trial has no fixed number of episodes
    steps: int = 0  # H, >= 1, no less than an episode has; 0: no fixed number of steps
    value_ends: Unit = "trial"  # with what returns end; "episode" where rewards are for survival
    memory: Unit = "trial"  # how long it lives; "episode" is the control without adaptation

    def __post_init__(self) -> None:
        for name in ("episodes", "steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 (off) or more, got {getattr(self, name)}")
        if self.episodes and self.steps:
            raise ValueError(
                f"episodes: expected one of episodes and steps, got {self.episodes} and "
                f"{self.steps}: set one of them to 0"
            )
        for name in ("value_ends", "memory"):
            value = getattr(self, name)
            if value not in get_args(Unit):
                raise ValueError(f"{name}: expected one of {get_args(Unit)}, got {value!r}")
            if value != "trial" and not self.is_on:
                raise ValueError(
                    f"{name}: expected 'trial' without trials, got {value!r}: set episodes or steps"
                )

    @property
    def is_on(self) -> bool:
        """Whether there are trials."""
        return bool(self.episodes or self.steps)


class TrialClock:
    """Where N environments stand in their trials.

    Args:
        config: with trials.
        num_envs: N.
    """

    def __init__(self, config: TrialConfig, num_envs: int) -> None:
        self._config = config
        self.place = np.zeros(num_envs, dtype=np.int64)
        """(N,): episodes of the trial that are over."""
        self._steps = np.zeros(num_envs, dtype=np.int64)

    def begin(self) -> None:
        """Begin a trial in every environment."""
        self.place[:] = 0
        self._steps[:] = 0

    def runs_out(self) -> Bools:
        """Return (N,) whether the next step is the last of its trial, however it goes."""
        limit = self._config.steps
        return (self._steps + 1 >= limit) if limit else np.zeros(len(self._steps), dtype=bool)

    def count(self, valid: Bools, ended: Bools) -> Bools:
        """Count a step; return (N,) where it ended the trial, and the next one begins at 0.

        Args:
            valid: (N,) it was one.
            ended: (N,) it ended its episode.
        """
        self._steps += valid
        self.place += ended
        if self._config.steps:
            over = self._steps >= self._config.steps
        else:
            over = self.place >= self._config.episodes
        self._steps[over] = 0
        self.place[over] = 0
        return over

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        return {"place": self.place.copy(), "steps": self._steps.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.place[:] = state["place"]
        self._steps[:] = state["steps"]


class Trials:
    """`VectorEnv` whose `reset` is set at the starts of trials alone.

    With `value_ends: trial` a step is `terminated` where it ends a trial, whatever ended its last
    episode, and never `truncated`: what is to be had of a trial ends with it. With
    `value_ends: episode` the ends are those of the environment.

    Args:
        env: the environments; where trials have a number of steps, they end their episodes with it.
        config: with trials.
    """

    def __init__(self, env: VectorEnv, config: TrialConfig) -> None:
        self._env, self._config = env, config
        self.num_envs = env.num_envs
        self.obs_space, self.action_space = env.obs_space, env.action_space
        self.resume = env.resume
        self._clock = TrialClock(config, env.num_envs)
        self._begins = np.zeros(env.num_envs, dtype=bool)

    def reset(self, seed: int | None = None) -> tuple[Obs, Bools]:
        """Begin N trials, as `VectorEnv.reset`."""
        if seed is None:  # a reset without a seed could be the next episode of a trial
            seed = int(np.random.SeedSequence().generate_state(1)[0] >> 1)
        self._clock.begin()
        self._begins[:] = False
        return self._env.reset(seed)

    def step(self, action: NDArray[Any]) -> Arrived:
        """Act in all environments, as `VectorEnv.step`.

        Raises:
            EnvError: a trial has fewer steps than its first episode, or cannot be cut off.
        """
        arrived = self._env.step(action)
        ended = arrived.terminated | arrived.truncated
        place = self._clock.place.copy()
        over = self._clock.count(arrived.valid, ended)
        whole = ended
        if self._config.steps:
            cut = np.zeros_like(over) if arrived.cut is None else arrived.cut
            self._check(over, ended, cut, place)
            whole = ended & ~cut
        self._begins |= over
        starts = arrived.is_first & self._begins
        self._begins &= ~starts
        cleared = starts if self._config.memory == "trial" else arrived.is_first.copy()
        arrived = arrived._replace(reset=cleared, trial=InTrial(whole, over, place))
        if self._config.value_ends == "trial":
            return arrived._replace(terminated=over, truncated=np.zeros_like(over))
        return arrived

    def _check(self, over: Bools, ended: Bools, cut: Bools, place: NDArray[np.int64]) -> None:
        steps = self._config.steps
        if (over & ~ended).any():
            raise EnvError(
                f"expected environments that end an episode with a trial of {steps} steps, got "
                "some that go on: use env.vectorization sync, or env.trial.episodes"
            )
        short = over & cut & (place == 0)
        if short.any():
            raise EnvError(
                f"expected trials at least as long as an episode, got env.trial.steps {steps}, in "
                f"which environment {int(np.flatnonzero(short)[0])} ended none: raise it"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        clock = self._clock.state_dict()
        return {"env": self._env.state_dict(), "clock": clock, "begins": self._begins.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Obs, Bools]:
        """Continue where `state_dict` was taken, as `VectorEnv.load_state_dict`."""
        self._clock.begin()
        self._begins[:] = False
        if self.resume == "exact":
            self._clock.load_state_dict(state["clock"])
            self._begins[:] = state["begins"]
        return self._env.load_state_dict(state["env"])

    def close(self) -> None:
        """Close the environments."""
        self._env.close()
