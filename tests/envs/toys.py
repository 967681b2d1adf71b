"""A counting environment with episodes of known kinds, and native vector forms of it."""

from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array

from statewise.envs.protocol import VectorEnv as OurVectorEnv

OBS_SPACE = spaces.Dict(
    {
        "position": spaces.Box(-np.inf, np.inf, (2,), dtype=np.float64),
        "code": spaces.Tuple((spaces.Discrete(5, start=3), spaces.MultiBinary(2))),
    }
)
ACTION_SPACE = spaces.Discrete(3, start=1)


class CountingEnv(gymnasium.Env[Any, Any]):
    """Counts steps; length 2 .. 5, kind of end and noise come from np_random.

    Its position array is one buffer, written in place, as careless environments do.
    """

    def __init__(self, noise: bool = True) -> None:
        self.observation_space = OBS_SPACE
        self.action_space = ACTION_SPACE
        self._noise = noise
        self._position = np.zeros(2)

    def _obs(self) -> dict[str, Any]:
        code = (3 + self._count % 5, np.array([self._count % 2, 1], dtype=np.int8))
        return {"position": self._position, "code": code}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._count, self._sum = 0, 0
        self._length = int(self.np_random.integers(2, 6))
        self._truncates = bool(self.np_random.integers(2))
        self._position[:] = 0, self._length
        return self._obs(), {"count": 0}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self._count += 1
        self._sum += int(action)
        noise = self.np_random.random() if self._noise else 0.0
        self._position[:] = self._count, self._sum + noise
        over = self._count >= self._length
        terminated, truncated = over and not self._truncates, over and self._truncates
        return self._obs(), float(self._count + 10 * action), terminated, truncated, {"count": 1}


class NativeCounting(VectorEnv[Any, Any, Any]):
    """CountingEnv in a vector environment of its own, NEXT_STEP, with a stale reward."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int = 1, **kwargs: Any) -> None:
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = OBS_SPACE, ACTION_SPACE
        self.observation_space = batch_space(OBS_SPACE, num_envs)
        self.action_space = batch_space(ACTION_SPACE, num_envs)
        self._envs = [CountingEnv(**kwargs) for _ in range(num_envs)]
        self._reward = np.zeros(num_envs)
        self._ended = np.zeros(num_envs, dtype=bool)

    def _stack(self, rows: list[Any]) -> Any:
        return concatenate(OBS_SPACE, rows, create_empty_array(OBS_SPACE, self.num_envs))

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._ended[:] = False
        seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
        rows = [env.reset(seed=s)[0] for env, s in zip(self._envs, seeds, strict=True)]
        return self._stack(rows), {}

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
        return self._stack(rows), self._reward, terminated, truncated, {}


class NativeSameStep(NativeCounting):
    """The same under SAME_STEP, with the final observations dense and without a mask."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        rows, final = [], []
        terminated, truncated = np.zeros((2, self.num_envs), dtype=bool)
        for i, env in enumerate(self._envs):
            obs, self._reward[i], terminated[i], truncated[i], _ = env.step(actions[i])
            final.append(deepcopy(obs))
            rows.append(env.reset()[0] if terminated[i] or truncated[i] else obs)
        dense = {"final_obs": self._stack(final)} if (terminated | truncated).any() else {}
        return self._stack(rows), self._reward, terminated, truncated, dense


def choose(obs: dict[str, Any]) -> Any:
    """Return actions 0 .. 2 that follow from the observations alone."""
    return (obs["position"].sum(-1).astype(np.int64) + obs["code.0"]) % 3


def rollout(env: OurVectorEnv, steps: int, seed: int | None) -> list[Any]:
    """Return [(obs, is_first), ...] and what each action brought, `steps` long."""
    obs, is_first = env.reset(seed)
    return continue_rollout(env, obs, is_first, steps)


def continue_rollout(env: OurVectorEnv, obs: Any, is_first: Any, steps: int) -> list[Any]:
    rows = []
    for _ in range(steps):
        action = choose(obs)
        arrived = env.step(action)
        rows.append((obs, is_first, action, arrived))
        obs, is_first = arrived.obs, arrived.is_first
    return rows


def transitions(rows: list[Any], env_index: int) -> list[dict[str, Any]]:
    """Return the valid transitions of one environment, whatever the auto-reset mode."""
    found = []
    for obs, is_first, action, arrived in rows:
        if not arrived.valid[env_index]:
            assert arrived.reward[env_index] == 0
            continue
        ended = arrived.terminated[env_index] or arrived.truncated[env_index]
        same_step_end = ended and arrived.final_obs is not None
        after = arrived.final_obs if same_step_end else arrived.obs
        found.append(
            {
                "obs": {k: v[env_index].tolist() for k, v in obs.items()},
                "is_first": bool(is_first[env_index]),
                "action": action[env_index].tolist(),
                "reward": float(arrived.reward[env_index]),
                "terminated": bool(arrived.terminated[env_index]),
                "truncated": bool(arrived.truncated[env_index]),
                "next": {k: v[env_index].tolist() for k, v in after.items()},
            }
        )
    return found
