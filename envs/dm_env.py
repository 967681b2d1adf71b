"""The adapter from dm_env, DeepMind's interface, to gymnasium.

A time step with discount 0 is terminated; a last one with another discount was cut off by the
time limit. dm_env knows no seeds: each episode is begun by a function that takes one, drawn from
`np_random`, so that an episode follows from its seed and actions and can be resumed.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs.protocol import EnvError

Begin = Callable[[int], Any]
"""begin(seed) returns an environment of dm_env whose next episode follows from seed, 32 bits."""


def space_of(spec: Any) -> spaces.Space[Any]:
    """Return the space of a spec, or of a dict or list of specs.

    Bytes stay bytes, choices are Discrete; other numbers become float32, those without an axis
    vectors of one.
    """
    if isinstance(spec, dict):
        return spaces.Dict(OrderedDict((key, space_of(inner)) for key, inner in spec.items()))
    if isinstance(spec, list | tuple):
        return spaces.Tuple([space_of(inner) for inner in spec])
    if hasattr(spec, "num_values"):
        return spaces.Discrete(int(spec.num_values))
    if spec.dtype == np.uint8:
        return spaces.Box(0, 255, spec.shape, np.uint8)
    shape = spec.shape or (1,)
    bounds = (getattr(spec, "minimum", -np.inf), getattr(spec, "maximum", np.inf))
    low, high = (np.broadcast_to(np.asarray(x, np.float32), shape) for x in bounds)
    return spaces.Box(low, high)


def _values(space: spaces.Space[Any], observation: Any) -> Any:
    """Return what was observed as fresh values of the space."""
    if isinstance(space, spaces.Dict):
        return {key: _values(inner, observation[key]) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(
            _values(inner, one) for inner, one in zip(space.spaces, observation, strict=True)
        )
    if isinstance(space, spaces.Discrete):
        return int(observation)
    assert isinstance(space, spaces.Box), space
    values: NDArray[Any] = np.array(observation, dtype=space.dtype, ndmin=1)
    return values


class DmEnv(gymnasium.Env[Any, Any]):
    """One environment of dm_env.

    Args:
        name: for messages.
        begin: see `Begin`; it may return the same environment again.
        action_repeat: steps that an action lasts, at least 1; their rewards are added.
        draw: returns the picture (Y, X, 3) of the environment as it is now; None: it has none.

    Raises:
        EnvError: a value out of range.
    """

    def __init__(
        self,
        name: str,
        begin: Begin,
        *,
        action_repeat: int = 1,
        draw: Callable[[], NDArray[np.uint8]] | None = None,
    ) -> None:
        if action_repeat < 1:
            raise EnvError(f"expected action_repeat at least 1, got {action_repeat} for {name}")
        self._begin, self._repeat, self._draw = begin, action_repeat, draw
        self._env = begin(0)
        self.metadata = {"render_modes": [] if draw is None else ["rgb_array"]}
        if hasattr(self._env, "control_timestep"):  # in seconds
            self.metadata["render_fps"] = 1 / (self._env.control_timestep() * action_repeat)
        self.observation_space = space_of(self._env.observation_spec())
        self._action_type = self._env.action_spec().dtype
        self.action_space = space_of(self._env.action_spec())

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed, options=options)
        before, self._env = self._env, self._begin(int(self.np_random.integers(2**32)))
        if before is not self._env:
            before.close()
        return _values(self.observation_space, self._env.reset().observation), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act for `action_repeat` steps, or until the episode ends."""
        reward = 0.0
        taken = np.asarray(action, self._action_type)
        for _ in range(self._repeat):
            now = self._env.step(taken if taken.ndim else taken.item())
            reward += float(now.reward)
            if now.last():
                break
        terminated = bool(now.last() and now.discount == 0)
        truncated = bool(now.last()) and not terminated
        obs = _values(self.observation_space, now.observation)
        return obs, reward, terminated, truncated, {}

    def render(self) -> Any:
        """Return the picture (Y, X, 3) as it is now, None without a way to draw."""
        return None if self._draw is None else self._draw()

    def close(self) -> None:
        """Free what the environment holds."""
        self._env.close()
