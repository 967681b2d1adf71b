"""Inputs about the step before: previous action, previous reward, and flags of what starts.

In a partially observable task these belong to the observation. They come as further entries of
the flat observation dict, in a vector environment (`PreviousInputs`) and, with the same names
and values, in a single one (`PreviousInputsWrapper`).
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs.protocol import Arrived, Bools, EnvError, Obs, VectorEnv
from statewise.envs.spaces import (
    action_width,
    encode_action,
    flatten_action_space,
    flatten_list,
    flatten_space,
    restore_action,
)
from statewise.envs.trial_env import IGNORED, STARTS

Input = Literal["previous_action", "previous_reward", "first_step", "trial_start"]


def _previous_action_space(action_space: spaces.Space[Any]) -> spaces.Box:
    width = action_width(action_space)
    if isinstance(action_space, spaces.Box):  # 0 stands for no action yet
        low, high = np.minimum(action_space.low, 0), np.maximum(action_space.high, 0)
        return spaces.Box(low.astype(np.float32), high.astype(np.float32))
    return spaces.Box(0.0, 1.0, (width,))


def _with_inputs(
    obs_space: spaces.Dict, action_space: spaces.Space[Any], inputs: Sequence[Input]
) -> spaces.Dict:
    """Return the observation space with one more Box per input.

    Raises:
        EnvError: the environment has an observation of that name.
    """
    known: dict[str, spaces.Box] = {
        "previous_action": _previous_action_space(action_space),
        "previous_reward": spaces.Box(-np.inf, np.inf, (1,)),
        "first_step": spaces.Box(0.0, 1.0, (1,)),
        "trial_start": spaces.Box(0.0, 1.0, (1,)),
    }
    flat = OrderedDict(obs_space.spaces)
    for name in inputs:
        if name in flat:
            raise EnvError(
                f"expected no observation named {name!r}, got one: leave it out of env.inputs"
            )
        flat[name] = known[name]
    return spaces.Dict(flat)


class PreviousInputs:
    """`VectorEnv` whose observations also hold what came with them from the step before.

    previous_action: (N, width) the encoded last action, clipped to the space; previous_reward:
    (N, 1); both 0 where `reset` is set, and those of the last real step on other rows, the
    final observation included. first_step: (N, 1), 1 where `is_first`. trial_start: (N, 1), 1
    where `reset`.

    Args:
        env: the environment to extend.
        inputs: which of them to add.

    Raises:
        EnvError: the environment has an observation of that name.
    """

    def __init__(self, env: VectorEnv, inputs: Sequence[Input]) -> None:
        self._env = env
        self._inputs = tuple(inputs)
        self.num_envs = env.num_envs
        self.action_space = env.action_space
        self.obs_space = _with_inputs(env.obs_space, env.action_space, inputs)
        self.resume = env.resume
        self._action: NDArray[np.float32]
        self._reward: NDArray[np.float32]
        self._clear()

    def reset(self, seed: int | None = None) -> tuple[Obs, Bools]:
        """Start N episodes, as `VectorEnv.reset`."""
        obs, is_first = self._env.reset(seed)
        self._clear()
        return self._extended(obs, is_first, is_first), is_first

    def step(self, action: NDArray[Any]) -> Arrived:
        """Act in all environments, as `VectorEnv.step`."""
        arrived = self._env.step(action)
        code = encode_action(self.action_space, restore_action(self.action_space, action))
        ignored = ~arrived.valid[:, None]
        np.copyto(code, self._action, where=ignored)
        reward = np.where(ignored, self._reward, arrived.reward[:, None])
        self._action, self._reward = code, reward
        final = arrived.final_obs
        if final is not None:
            none = np.zeros_like(arrived.is_first)
            final = self._extended(final, none, none)
        self._action = np.where(arrived.reset[:, None], np.float32(0), code)
        self._reward = np.where(arrived.reset[:, None], np.float32(0), reward)
        self._reset = arrived.reset
        obs = self._extended(arrived.obs, arrived.is_first, arrived.reset)
        return arrived._replace(obs=obs, final_obs=final)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        inner = self._env.state_dict()
        own = {"action": self._action.copy(), "reward": self._reward.copy()}
        return {"env": inner, **own, "reset": self._reset.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Obs, Bools]:
        """Continue where `state_dict` was taken, as `VectorEnv.load_state_dict`."""
        obs, is_first = self._env.load_state_dict(state["env"])
        if self.resume == "exact":
            self._action, self._reward = state["action"].copy(), state["reward"].copy()
            # A run that was stored before there were trials has no such flag, nor an input of it.
            self._reset = state.get("reset", is_first)
        else:
            self._clear()
        return self._extended(obs, is_first, self._reset), is_first

    def close(self) -> None:
        """Close the environments."""
        self._env.close()

    def _clear(self) -> None:
        width = action_width(self.action_space)
        self._action = np.zeros((self.num_envs, width), dtype=np.float32)
        self._reward = np.zeros((self.num_envs, 1), dtype=np.float32)
        self._reset = np.ones(self.num_envs, dtype=bool)

    def _extended(self, obs: Obs, is_first: Bools, reset: Bools) -> Obs:
        """Return the observations with copies of the chosen inputs."""
        extra = {
            "previous_action": self._action,
            "previous_reward": self._reward,
            "first_step": is_first[:, None],
            "trial_start": reset[:, None],
        }
        return obs | {name: np.array(extra[name], dtype=np.float32) for name in self._inputs}


class PreviousInputsWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A single environment with flat observations and the inputs of `PreviousInputs`.

    Its observations, one dict of arrays each, and its actions are those an agent sees that
    trains through the vector adapter: actions start at 0, continuous ones are clipped.

    Args:
        env: any single environment.
        inputs: which inputs to add; none is allowed.

    Raises:
        EnvError: the environment has an observation of that name.
        UnsupportedSpaceError: a space without an encoder or a policy head.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], inputs: Sequence[Input]) -> None:
        super().__init__(env)
        self._inputs = tuple(inputs)
        self._action_space = flatten_action_space(env.action_space)
        flat = flatten_space(env.observation_space)
        self._observation_space = _with_inputs(flat, self._action_space, inputs)
        self._came: tuple[NDArray[np.float32], float] = self._nothing()

    def _nothing(self) -> tuple[NDArray[np.float32], float]:
        return np.zeros(action_width(self.action_space), dtype=np.float32), 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Start an episode or trial; the inputs are 0, first_step and trial_start are 1."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._came = self._nothing()
        return self._extended(obs, is_first=True, starts_trial=True), info

    def step(
        self, action: Any
    ) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        """Act; the returned observation holds this action and its reward."""
        action = restore_action(self.action_space, np.asarray(action))
        taken = restore_action(self.env.action_space, action)
        obs, reward, terminated, truncated, info = self.env.step(taken)
        if not info.get(IGNORED, False):
            self._came = encode_action(self.action_space, action[None])[0], float(reward)
        is_first = info.get(STARTS, False)
        extended = self._extended(obs, is_first=is_first, starts_trial=False)
        return extended, float(reward), bool(terminated), bool(truncated), info

    def _extended(self, obs: Any, *, is_first: bool, starts_trial: bool) -> dict[str, NDArray[Any]]:
        rows = flatten_list(self.env.observation_space, [obs])
        flat = {key: values[0] for key, values in rows.items()}
        code, reward = self._came
        extra = {
            "previous_action": code,
            "previous_reward": np.array([reward], dtype=np.float32),
            "first_step": np.array([is_first], dtype=np.float32),
            "trial_start": np.array([starts_trial], dtype=np.float32),
        }
        return flat | {name: extra[name] for name in self._inputs}
