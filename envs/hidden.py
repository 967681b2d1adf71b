"""Observations of which a part is hidden, for example the velocities of a body.

What is kept is named by entry of the flat observation dict, whole or a range of its numbers:

    position       the entry, as it is
    obs[0:8]       the numbers 0 to 7 of the entry

The observations of gymnasium's MuJoCo tasks (v4, v5) begin with the positions: of HalfCheetah 8 of
17, Ant 13, Hopper 5, Walker2d 8; those of dm_control have an entry `velocity`.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs.protocol import Arrived, Bools, EnvError, Obs, VectorEnv
from statewise.envs.spaces import flatten_list, flatten_space

_WORD = re.compile(r"([^\[\]]+)(?:\[(\d+):(\d+)\])?")


def read_kept(word: str) -> tuple[str, slice | None]:
    """Return the entry that a word names, and which of its numbers; None for all.

    Raises:
        ValueError: it is neither a name nor a name with a range.
    """
    found = _WORD.fullmatch(word)
    if found is None or (found[2] is not None and int(found[2]) >= int(found[3])):
        raise ValueError(
            f"keep: expected names of observations, as 'position' or 'obs[0:8]', got {word!r}"
        )
    return found[1], None if found[2] is None else slice(int(found[2]), int(found[3]))


def kept_space(obs_space: spaces.Dict, keep: Sequence[str]) -> spaces.Dict:
    """Return the flat space of what is kept, in its own order.

    Raises:
        EnvError: an entry that there is not, or twice, or a range that it does not have.
    """
    ranges = dict(read_kept(word) for word in keep)
    if len(ranges) < len(keep):
        raise EnvError(f"env.keep: expected every entry once, got {', '.join(keep)}")
    if unknown := sorted(ranges.keys() - obs_space.spaces.keys()):
        raise EnvError(
            f"env.keep: expected entries of {', '.join(obs_space.spaces)}, got {unknown[0]!r}"
        )
    flat: OrderedDict[str, spaces.Space[Any]] = OrderedDict()
    for key, space in obs_space.spaces.items():
        if key not in ranges:
            continue
        part = ranges[key]
        if part is None:
            flat[key] = space
            continue
        if not isinstance(space, spaces.Box) or len(space.shape) != 1 or part.stop > len(space.low):
            raise EnvError(
                f"env.keep: expected a range within a vector, got {part.start}:{part.stop} of "
                f"{key!r}, which is {space}"
            )
        dtype: Any = space.dtype
        flat[key] = spaces.Box(space.low[part], space.high[part], dtype=dtype)
    return spaces.Dict(flat)


def kept(obs: Obs, keep: Sequence[str]) -> Obs:
    """Return what is kept of flat observations (N, ...)."""
    parts = {}
    for key, part in map(read_kept, keep):
        parts[key] = obs[key] if part is None else np.ascontiguousarray(obs[key][:, part])
    return parts


class PartlyHidden:
    """`VectorEnv` that shows a part of its observations.

    Args:
        env: the environment to change.
        keep: what is shown; see the module.

    Raises:
        EnvError: see `kept_space`.
    """

    def __init__(self, env: VectorEnv, keep: Sequence[str]) -> None:
        self._env, self._keep = env, tuple(keep)
        self.num_envs, self.resume = env.num_envs, env.resume
        self.action_space = env.action_space
        self.obs_space = kept_space(env.obs_space, keep)

    def reset(self, seed: int | None = None) -> tuple[Obs, Bools]:
        """Start N episodes, as `VectorEnv.reset`."""
        obs, is_first = self._env.reset(seed)
        return kept(obs, self._keep), is_first

    def step(self, action: NDArray[Any]) -> Arrived:
        """Act in all environments, as `VectorEnv.step`."""
        arrived = self._env.step(action)
        final = None if arrived.final_obs is None else kept(arrived.final_obs, self._keep)
        return arrived._replace(obs=kept(arrived.obs, self._keep), final_obs=final)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs."""
        return self._env.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Obs, Bools]:
        """Continue where `state_dict` was taken, as `VectorEnv.load_state_dict`."""
        obs, is_first = self._env.load_state_dict(state)
        return kept(obs, self._keep), is_first

    def close(self) -> None:
        """Close the environments."""
        self._env.close()


class PartlyHiddenWrapper(gymnasium.ObservationWrapper[Any, Any, Any]):
    """A single environment with flat observations of which a part is shown.

    Args:
        env: any single environment.
        keep: what is shown; see the module.

    Raises:
        EnvError: see `kept_space`.
        UnsupportedSpaceError: a space without an encoder.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], keep: Sequence[str]) -> None:
        super().__init__(env)
        self._keep = tuple(keep)
        self._observation_space = kept_space(flatten_space(env.observation_space), keep)

    def observation(self, observation: Any) -> dict[str, NDArray[Any]]:
        """Return what is shown of an observation."""
        rows = kept(flatten_list(self.env.observation_space, [observation]), self._keep)
        return {key: values[0] for key, values in rows.items()}
