"""Atari games stepped by ale-py's own threads: `ALE/<Game>-v5` with a vector entry point.

The pictures and rewards are those of `envs.atari`, which draws them through gymnasium; ale-py
prepares them in C++. NEXT_STEP auto-reset, or SAME_STEP.

Deviations: the generators are the console's own, so that actions before an episode and repeated
actions fall otherwise than in `envs.atari`, and a resumed run begins new episodes.
"""

import importlib
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from statewise.envs.atari import check_options
from statewise.envs.protocol import Bools, EnvError

STICKY = 0.25  # of the ids, as `envs.atari`


class AtariVector(VectorEnv[Any, Any, Any]):
    """N games. Environment i is seeded with seed + i; pictures (screen_size, screen_size, 1 or 3).

    Args:
        env_id: of a registered game.
        num_envs: N.
        screen_size: as in `envs.atari.make`, and the next three.
        grayscale_obs: see there.
        frame_skip: see there.
        noop_max: see there.
        **kwargs: of ale-py's vector environment, for example `num_threads` or
            `repeat_action_probability`.

    Raises:
        EnvError: a value out of range, or an argument that the preprocessing has taken over.
        TypeError: an argument that ale-py does not know.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        screen_size: int = 64,
        grayscale_obs: bool = True,
        frame_skip: int = 4,
        noop_max: int = 30,
        **kwargs: Any,
    ) -> None:
        check_options(env_id, kwargs, screen_size, frame_skip, noop_max)
        if "terminal_on_life_loss" in kwargs:
            raise EnvError(
                f"expected no terminal_on_life_loss with a vector entry point, got one for "
                f"{env_id}: use env.vectorization sync"
            )
        settings = {"repeat_action_probability": STICKY, **kwargs}
        make = importlib.import_module("ale_py.vector_env").AtariVectorEnv
        self._games: Any = make(
            gymnasium.spec(env_id).kwargs["game"],
            num_envs,
            img_height=screen_size,
            img_width=screen_size,
            grayscale=grayscale_obs,
            frameskip=frame_skip,
            maxpool=frame_skip > 1,
            noop_max=noop_max,
            stack_num=1,
            reward_clipping=False,
            use_fire_reset=False,
            **settings,
        )
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": self._games.autoreset_mode, "render_modes": []}
        shape = (screen_size, screen_size, 1 if grayscale_obs else 3)
        self.single_observation_space = spaces.Box(0, 255, shape, np.uint8)
        self.single_action_space = self._games.single_action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = self._games.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start N games; without a seed the generators go on."""
        bounded = None if seed is None else seed % (2**31 - self.num_envs)  # the console's type
        obs, info = self._games.reset(seed=bounded, options=options)
        return self._pictures(obs), info

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[np.uint8], NDArray[Any], Bools, Bools, dict[str, Any]]:
        """Step all games."""
        obs, reward, terminated, truncated, info = self._games.step(actions)
        if self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP and "final_obs" in info:
            info = {**info, "final_obs": self._pictures(info["final_obs"])}
        return self._pictures(obs), reward, terminated, truncated, info

    def close(self, **kwargs: Any) -> None:
        """Let go of the games, which ends their threads."""
        self._games = None

    def _pictures(self, obs: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return (N, 1, Y, X) or (N, 1, Y, X, 3) as (N, Y, X, 1 or 3)."""
        return obs.reshape(self.observation_space.shape)
