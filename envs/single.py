"""One environment out of a backend that only steps many together."""

from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import iterate

from statewise.envs.protocol import EnvError


class FirstOf(gymnasium.Env[Any, Any]):
    """A single environment: a vector environment of one, without its auto-reset.

    Args:
        vec: of one environment, NEXT_STEP; belongs to this.

    Raises:
        EnvError: it has more than one, or another auto-reset mode.
    """

    def __init__(self, vec: VectorEnv[Any, Any, Any]) -> None:
        mode = vec.metadata.get("autoreset_mode")
        if vec.num_envs != 1 or mode is not AutoresetMode.NEXT_STEP:
            raise EnvError(
                f"expected a vector environment of one under NEXT_STEP, got {vec.num_envs} under "
                f"{mode} from {type(vec).__name__}"
            )
        self._vec = vec
        self.metadata = dict(vec.metadata)
        self.render_mode = getattr(vec, "render_mode", None)
        self.observation_space = vec.single_observation_space
        self.action_space = vec.single_action_space
        self._ended = True

    @property
    def new_trial(self) -> bool:
        """Whether the next reset draws a new task; only of a backend that draws one per trial."""
        return bool(cast(Any, self._vec).new_trial[0])

    @new_trial.setter
    def new_trial(self, value: bool) -> None:
        cast(Any, self._vec).new_trial[0] = value

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; without a seed the backend's generator goes on."""
        super().reset(seed=seed)
        obs, _ = self._vec.reset(seed=seed, options=options)
        self._ended = False
        return self._first(obs), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act once.

        Raises:
            EnvError: the episode is over.
        """
        if self._ended:
            raise EnvError("expected a reset after an episode's end, got a step: call reset first")
        obs, reward, terminated, truncated, _ = self._vec.step(np.asarray(action)[None])
        ends = bool(terminated[0]), bool(truncated[0])
        self._ended = any(ends)
        return self._first(obs), float(reward[0]), *ends, {}

    def render(self) -> Any:
        """Return the picture (Y, X, 3) as it is now."""
        frames = cast(Any, self._vec.render())
        return frames[0]

    def close(self) -> None:
        """Close the backend."""
        self._vec.close()

    def _first(self, obs: Any) -> Any:
        return next(iter(iterate(self._vec.observation_space, obs)))
