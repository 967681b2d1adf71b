"""What the diagnostic tasks share: N episodes in numpy arrays, and a single-environment shell."""

from abc import ABC, abstractmethod
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from statewise.envs.protocol import CUT, Bools, EnvError
from statewise.envs.trials import TrialClock, TrialConfig


def _refuse_options(options: dict[str, Any] | None) -> None:
    if options:
        raise EnvError(f"expected no reset options, got {options}: this task has none")


class TaskVectorEnv(VectorEnv[Any, Any, Any], ABC):
    """N episodes of one task, stepped together; NEXT_STEP auto-reset unless told otherwise.

    Environment i draws from its own generator, seeded with seed + i, so that it equals the
    single environment with that seed. A subclass keeps everything else that changes in
    `self.arrays`, first axis N. One that draws a task per trial does so in `start` where
    `self.new_trial`, which is everywhere without trials.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - gymnasium's own form
        "autoreset_mode": AutoresetMode.NEXT_STEP,
        "render_modes": [],
    }

    def __init__(
        self,
        num_envs: int,
        obs_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        arrays: dict[str, NDArray[Any]],
    ) -> None:
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = obs_space, action_space
        self.observation_space = batch_space(obs_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self.arrays = arrays
        self.generators: list[np.random.Generator] = []
        self._ended = np.zeros(num_envs, dtype=bool)
        self.new_trial = np.ones(num_envs, dtype=bool)
        self._clock: TrialClock | None = None

    def set_autoreset(self, mode: AutoresetMode) -> None:
        """Choose NEXT_STEP or SAME_STEP, before the first reset."""
        self.metadata = self.metadata | {"autoreset_mode": mode}

    def set_trials(self, config: TrialConfig) -> None:
        """Make trials of several episodes, before the first reset."""
        self._clock = TrialClock(config, self.num_envs)

    @abstractmethod
    def start(self, which: NDArray[np.intp]) -> None:
        """Begin a new episode in the environments with these indices."""

    @abstractmethod
    def advance(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], Bools]:
        """Apply actions (N,); return rewards and terminated, fresh arrays (N,).

        Rows whose episode is over may get any result.
        """

    @abstractmethod
    def observe(self) -> NDArray[Any]:
        """Return the current observations (N, ...), a fresh array."""

    def outcome(self) -> dict[str, NDArray[Any]]:
        """Return by name what the info of an episode's last step says, (N,) each.

        It is called after `advance`; rows whose episode goes on may hold anything. By default
        nothing is said.
        """
        return {}

    def reset(
        self, *, seed: int | list[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start N episodes; without a seed the generators go on."""
        _refuse_options(options)
        if seed is not None or not self.generators:
            first = [None] * self.num_envs if seed is None else seed
            seeds = [first + i for i in range(self.num_envs)] if isinstance(first, int) else first
            self.generators = [np_random(one)[0] for one in seeds]
        self._ended = np.zeros(self.num_envs, dtype=bool)
        self.new_trial[:] = True
        if self._clock is not None:
            self._clock.begin()
        self._begin(np.arange(self.num_envs))
        return self.observe(), {}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[np.float32], Bools, Bools, dict[str, Any]]:
        """Step all; under NEXT_STEP an episode that ended in the last step starts anew instead."""
        valid, starts = ~self._ended, np.flatnonzero(self._ended)
        reward, terminated = self.advance(actions)
        if starts.size:
            reward[starts], terminated[starts] = 0.0, False
        truncated = self._cut(valid, terminated)
        self._ended = terminated | truncated
        info = self._ended_info(self._ended)
        if self._clock is not None:
            info |= {CUT: truncated}
        if self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP and self._ended.any():
            starts = np.flatnonzero(self._ended)
            info |= {"final_obs": self.observe(), "_final_obs": self._ended}
            self._ended = np.zeros_like(terminated)
        if starts.size:
            self._begin(starts)
        return self.observe(), reward, terminated, truncated, info

    def _cut(self, valid: Bools, terminated: Bools) -> Bools:
        """Count a step of the trials; return (N,) where their end cut an episode off."""
        if self._clock is None:
            return np.zeros_like(terminated)
        truncated = self._clock.runs_out() & valid & ~terminated
        self.new_trial |= self._clock.count(valid, terminated | truncated)
        return truncated

    def _begin(self, which: NDArray[np.intp]) -> None:
        """Begin episodes; without trials each is one."""
        self.start(which)
        if self._clock is not None:
            self.new_trial[which] = False

    def _ended_info(self, ended: Bools) -> dict[str, Any]:
        """Return `outcome` in the layout of gymnasium: values, and which of them count."""
        info: dict[str, Any] = {}
        for name, values in self.outcome().items() if ended.any() else ():
            info[name] = np.where(ended, values, np.zeros_like(values))
            info[f"_{name}"] = ended.copy()
        return info

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all episodes and generators."""
        generators = {str(i): g.bit_generator.state for i, g in enumerate(self.generators)}
        arrays = {name: array.copy() for name, array in self.arrays.items()}
        state = {"arrays": arrays, "ended": self._ended.copy(), "generators": generators}
        if self._clock is not None:
            state |= {"new_trial": self.new_trial.copy(), "clock": self._clock.state_dict()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state_dict` was taken."""
        self.generators = [np_random(0)[0] for _ in range(self.num_envs)]
        for i, generator in enumerate(self.generators):
            generator.bit_generator.state = state["generators"][str(i)]
        for name, array in self.arrays.items():
            array[...] = state["arrays"][name]
        self._ended = state["ended"].copy()
        if self._clock is not None:
            self.new_trial[:] = state["new_trial"]
            self._clock.load_state_dict(state["clock"])


class TaskEnv(gymnasium.Env[Any, Any]):
    """A single environment: the task with one episode and no auto-reset."""

    def __init__(self, tasks: TaskVectorEnv) -> None:
        self._tasks = tasks
        self.observation_space = tasks.single_observation_space
        self.action_space = tasks.single_action_space

    @property
    def new_trial(self) -> bool:
        """Whether the next reset draws a new task, where the task draws one."""
        return bool(self._tasks.new_trial[0])

    @new_trial.setter
    def new_trial(self, value: bool) -> None:
        self._tasks.new_trial[0] = value

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        _refuse_options(options)
        super().reset(seed=seed)
        self._tasks.generators = [self.np_random]
        self._tasks.start(np.arange(1))
        return self._tasks.observe()[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act once; the episode must not be over."""
        reward, ended = self._tasks.advance(np.asarray(action)[None])
        outcome = self._tasks.outcome() if ended[0] else {}
        info = {name: values[0].item() for name, values in outcome.items()}
        return self._tasks.observe()[0], float(reward[0]), bool(ended[0]), False, info
