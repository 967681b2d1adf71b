"""Pictures of another size: each new pixel is the mean over its area of the old picture.

    out[i, j] = sum_yx R[i, y] picture[y, x] C[j, x]

R and C hold the shares that old pixels have in new ones. Nothing is cut off and the shape of
what is seen is not kept: both sides are stretched or shrunk to the same number of pixels.
"""

from collections import OrderedDict
from functools import cache
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs.protocol import Arrived, Bools, EnvError, Obs, VectorEnv
from statewise.envs.spaces import flatten_list, flatten_space

MIN_SIDE = 8  # pixels; what is smaller is no picture


def is_picture(space: spaces.Space[Any]) -> bool:
    """Return whether a space holds pictures: bytes, three axes, both sides 8 pixels or more."""
    return (
        isinstance(space, spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) == 3
        and min(space.shape[1], max(space.shape[0], space.shape[2])) >= MIN_SIDE
    )


def _is_channel_last(shape: tuple[int, ...]) -> bool:
    return shape[0] >= shape[-1]


@cache
def _shares(before: int, after: int) -> NDArray[np.float32]:
    """Return (after, before): the share of each old pixel in each new one; rows sum to 1."""
    edges = np.arange(after + 1) * (before / after)
    old = np.arange(before)
    right = np.minimum(edges[1:, None], old + 1)
    left = np.maximum(edges[:-1, None], old)
    shares = np.clip(right - left, 0, None) * (after / before)
    return shares.astype(np.float32)


def resize(pictures: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize pictures by area.

    Args:
        pictures: (N, Y, X, C) or (N, C, Y, X) uint8; the channels are the shorter one of the
            first and last axis.
        size: pixels of each side, more than there are channels.

    Returns:
        (N, size, size, C) or (N, C, size, size), each value to the nearest.
    """
    last = _is_channel_last(pictures.shape[1:])
    planes = np.moveaxis(pictures, -1, 1) if last else pictures
    Y, X = planes.shape[2:]
    if (size, size) == (Y, X):
        return pictures
    means = _shares(Y, size) @ planes.astype(np.float32) @ _shares(X, size).T
    resized = np.rint(means).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(resized, 1, -1)) if last else resized


def resized_space(obs_space: spaces.Dict, size: int) -> spaces.Dict:
    """Return the flat space with its pictures of another size.

    Raises:
        EnvError: it has no pictures, or one with as many channels as pixels are asked for.
    """
    flat = OrderedDict(obs_space.spaces)
    names = [key for key, space in flat.items() if is_picture(space)]
    if not names:
        raise EnvError(
            f"env.picture_size: expected pictures to resize to {size} x {size}, got none in "
            f"{', '.join(flat)}: leave it out"
        )
    for key in names:
        shape = flat[key].shape
        assert shape is not None, key
        last = _is_channel_last(shape)
        channels = shape[-1] if last else shape[0]
        if size <= channels:
            raise EnvError(
                f"env.picture_size: expected more than the {channels} channels of {key!r}, got "
                f"{size}: raise it"
            )
        new = (size, size, channels) if last else (channels, size, size)
        flat[key] = spaces.Box(0, 255, new, np.uint8)
    return spaces.Dict(flat)


def _resized(obs: Obs, before: spaces.Dict, size: int) -> Obs:
    """Return flat observations (N, ...) with their pictures resized."""
    return {
        key: resize(values, size) if is_picture(before[key]) else values
        for key, values in obs.items()
    }


class ResizedPictures:
    """`VectorEnv` whose pictures have `size` x `size` pixels.

    Args:
        env: the environment to change.
        size: at least 8.

    Raises:
        EnvError: see `resized_space`.
    """

    def __init__(self, env: VectorEnv, size: int) -> None:
        self._env, self._size = env, size
        self.num_envs, self.resume = env.num_envs, env.resume
        self.action_space = env.action_space
        self.obs_space = resized_space(env.obs_space, size)

    def reset(self, seed: int | None = None) -> tuple[Obs, Bools]:
        """Start N episodes, as `VectorEnv.reset`."""
        obs, is_first = self._env.reset(seed)
        return self._resized(obs), is_first

    def step(self, action: NDArray[Any]) -> Arrived:
        """Act in all environments, as `VectorEnv.step`."""
        arrived = self._env.step(action)
        final = None if arrived.final_obs is None else self._resized(arrived.final_obs)
        return arrived._replace(obs=self._resized(arrived.obs), final_obs=final)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        return self._env.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Obs, Bools]:
        """Continue where `state_dict` was taken, as `VectorEnv.load_state_dict`."""
        obs, is_first = self._env.load_state_dict(state)
        return self._resized(obs), is_first

    def close(self) -> None:
        """Close the environments."""
        self._env.close()

    def _resized(self, obs: Obs) -> Obs:
        return _resized(obs, self._env.obs_space, self._size)


class ResizedPicturesWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A single environment with flat observations whose pictures have `size` x `size` pixels.

    Args:
        env: any single environment.
        size: at least 8.

    Raises:
        EnvError: see `resized_space`.
        UnsupportedSpaceError: a space without an encoder.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], size: int) -> None:
        super().__init__(env)
        self._size = size
        self._flat = flatten_space(env.observation_space)
        self._observation_space = resized_space(self._flat, size)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Start an episode."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self._resized(obs), info

    def step(self, action: Any) -> tuple[dict[str, NDArray[Any]], Any, bool, bool, dict[str, Any]]:
        """Act."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._resized(obs), reward, terminated, truncated, info

    def _resized(self, obs: Any) -> dict[str, NDArray[Any]]:
        rows = flatten_list(self.env.observation_space, [obs])
        return {key: rows[0] for key, rows in _resized(rows, self._flat, self._size).items()}
