"""An environment with known rewards, lengths and ends; no torch, worker processes import it."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

OBS_SPACE = spaces.Box(-10, 100, (3,), dtype=np.float32)
ACTION_SPACE = spaces.Discrete(3)
NATIVE_ID = "toy/NativeCounter-v0"


class CounterEnv(gymnasium.Env[Any, Any]):
    """Counts to a length of 3 .. 9 that np_random draws, as it does the kind of end.

    Observation: count, length, noise. Reward: count + action / 8.
    """

    def __init__(self) -> None:
        self.observation_space, self.action_space = OBS_SPACE, ACTION_SPACE

    def _obs(self) -> Any:
        return np.array([self._count, self._length, self.np_random.random()], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._count = 0
        self._length = int(self.np_random.integers(3, 10))
        self._truncates = bool(self.np_random.integers(2))
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self._count < self._length
        self._count += 1
        over = self._count == self._length
        reward = self._count + int(action) / 8
        return self._obs(), reward, over and not self._truncates, over and self._truncates, {}


class NativeCounter(VectorEnv[Any, Any, Any]):
    """CounterEnv behind a vector entry point: NEXT_STEP, and a stale reward on reset rows."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int = 1) -> None:
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = OBS_SPACE, ACTION_SPACE
        self._envs = [CounterEnv() for _ in range(num_envs)]
        self._ended = np.zeros(num_envs, dtype=bool)
        self._reward = np.zeros(num_envs)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._ended[:] = False
        seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
        rows = [env.reset(seed=one)[0] for env, one in zip(self._envs, seeds, strict=True)]
        return np.stack(rows), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        rows = []
        terminated, truncated = np.zeros((2, self.num_envs), dtype=bool)
        for i, env in enumerate(self._envs):
            if self._ended[i]:
                rows.append(env.reset()[0])
                continue
            obs, self._reward[i], terminated[i], truncated[i], _ = env.step(actions[i])
            rows.append(obs)
        self._ended = terminated | truncated
        return np.stack(rows), self._reward.copy(), terminated, truncated, {}


def register_native() -> None:
    """Make the toy known to gymnasium under `NATIVE_ID`."""
    if NATIVE_ID not in gymnasium.registry:
        gymnasium.register(NATIVE_ID, entry_point=CounterEnv, vector_entry_point=NativeCounter)
