"""The return still to be got, as an input for agents that are told which return to reach.

    return_to_go_t = target - (sum of the rewards of this episode before t)

It comes as a further entry of the flat observation dict, in the units of the rewards, in a vector
environment (`ReturnToGo`) and, with the same values, in a single one (`ReturnToGoWrapper`).

An agent that has learned from delayed rewards has seen the whole return come with the last step.
It is told the same here, whatever the environment pays on the way: with the rewards "delayed",
what is left stands still until the episode ends, and all of them are taken off then.
"""

from collections import OrderedDict
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from statewise.envs.protocol import Arrived, Bools, EnvError, Obs, VectorEnv

NAME = "return_to_go"
RewardTime = Literal["as_is", "delayed"]


def _with_return(obs_space: spaces.Dict) -> spaces.Dict:
    """Return the observation space with one more Box.

    Raises:
        EnvError: the environment has an observation of that name.
    """
    flat = OrderedDict(obs_space.spaces)
    if NAME in flat:
        raise EnvError(f"expected no observation named {NAME!r}, got one: rename it")
    flat[NAME] = spaces.Box(-np.inf, np.inf, (1,))
    return spaces.Dict(flat)


def _finite_targets(targets: ArrayLike, num_envs: int) -> NDArray[np.float64]:
    """Return the targets (N,).

    Raises:
        EnvError: another shape, or one that is not finite.
    """
    values = np.array(targets, dtype=np.float64)
    if values.shape != (num_envs,) or not np.isfinite(values).all():
        raise EnvError(
            f"expected {num_envs} finite targets, one per environment, got {values.tolist()}"
        )
    return values


class ReturnToGo:
    """`VectorEnv` whose observations also hold what is left of a return to reach.

    return_to_go: (N, 1) float32, the whole target where `is_first`; on the row of a final
    observation what was left when the episode ended.

    Args:
        env: the environment to extend.
        targets: (N,) finite, a return per environment.
        reward: when rewards are taken off, "as_is" or "delayed" to the last step.

    Raises:
        EnvError: wrong targets, or the environment has an observation of that name.
    """

    def __init__(self, env: VectorEnv, targets: ArrayLike, *, reward: RewardTime = "as_is") -> None:
        self._env, self._is_prompt = env, reward == "as_is"
        self._targets = _finite_targets(targets, env.num_envs)
        self._left = self._targets.copy()
        self._got = np.zeros(env.num_envs)  # and not yet taken off
        self.num_envs = env.num_envs
        self.action_space = env.action_space
        self.obs_space = _with_return(env.obs_space)
        self.resume = env.resume

    def reset(self, seed: int | None = None) -> tuple[Obs, Bools]:
        """Start N episodes, as `VectorEnv.reset`."""
        obs, is_first = self._env.reset(seed)
        self._left, self._got = self._targets.copy(), np.zeros(self.num_envs)
        return self._extended(obs), is_first

    def step(self, action: NDArray[Any]) -> Arrived:
        """Act in all environments, as `VectorEnv.step`."""
        arrived = self._env.step(action)
        self._got = self._got + np.where(arrived.valid, arrived.reward, np.float32(0))
        is_due = arrived.terminated | arrived.truncated | self._is_prompt
        self._left = self._left - np.where(is_due, self._got, 0.0)
        self._got = np.where(is_due, 0.0, self._got)
        final = None if arrived.final_obs is None else self._extended(arrived.final_obs)
        self._left = np.where(arrived.is_first, self._targets, self._left)
        return arrived._replace(obs=self._extended(arrived.obs), final_obs=final)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        state = {"left": self._left.copy(), "got": self._got.copy()}
        return {"env": self._env.state_dict()} | state

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Obs, Bools]:
        """Continue where `state_dict` was taken, as `VectorEnv.load_state_dict`."""
        obs, is_first = self._env.load_state_dict(state["env"])
        going_on = self.resume == "exact"
        self._left = state["left"].copy() if going_on else self._targets.copy()
        self._got = state["got"].copy() if going_on else np.zeros(self.num_envs)
        return self._extended(obs), is_first

    def close(self) -> None:
        """Close the environments."""
        self._env.close()

    def _extended(self, obs: Obs) -> Obs:
        return obs | {NAME: self._left[:, None].astype(np.float32)}


class ReturnToGoWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A single environment with what is left of a return to reach.

    Args:
        env: its observations are a flat dict, as those of `wrap_single` are.
        target: finite.
        reward: when rewards are taken off, "as_is" or "delayed" to the last step.

    Raises:
        EnvError: a target that is not finite, observations that are no dict, or one of that
            name among them.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], target: float, *, reward: RewardTime = "as_is"
    ) -> None:
        super().__init__(env)
        self._is_prompt = reward == "as_is"
        self._target = float(_finite_targets([target], 1)[0])
        self._left, self._got = self._target, 0.0
        if not isinstance(env.observation_space, spaces.Dict):
            raise EnvError(
                f"expected a dict of observations, got {env.observation_space}: pass the "
                "environment through wrap_single first"
            )
        self._observation_space = _with_return(env.observation_space)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Start an episode; the whole target is left."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._left, self._got = self._target, 0.0
        return self._extended(obs), info

    def step(
        self, action: Any
    ) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        """Act; the reward is taken off what is left, now or when the episode ends."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        # Rounded as in the vector form, so that both show the same to the last bit.
        self._got += float(np.float32(reward))
        if terminated or truncated or self._is_prompt:
            self._left, self._got = self._left - self._got, 0.0
        return self._extended(obs), float(reward), terminated, truncated, info

    def _extended(self, obs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return obs | {NAME: np.array([self._left], dtype=np.float32)}
