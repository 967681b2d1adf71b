"""An environment on which every policy beats random actions, and settings to train in a second."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from statewise.training.make_data_recipes import MakeConfig

REACH, HIDDEN, LATE = "test/Reach-v0", "test/HiddenStart-v0", "test/LateEnd-v0"
STEPS = 10


class Reach(gymnasium.Env[Any, Any]):
    """Pays -(a - 1)^2, and -2.3 on average for uniform actions in [-2, 2]; ends by chance."""

    observation_space = spaces.Box(-5, 5, (2,), dtype=np.float64)
    action_space = spaces.Box(-2, 2, (1,), dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._place = self.np_random.uniform(-1, 1, size=2)
        return self._place.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        push = 0.1 * self.np_random.standard_normal(2) + 0.1 * action[0]
        self._place = np.clip(0.5 * self._place + push, -5, 5)
        reward = -float((action[0] - 1) ** 2)
        return self._place.copy(), reward, bool(self.np_random.random() < 0.05), False, {}


class HiddenStart(Reach):
    """Draws its first place from a generator that nobody can restore."""

    _other = np.random.default_rng(0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._place = self._other.uniform(-1, 1, size=2)
        return self._place.copy(), {}


class LateEnd(Reach):
    """Ends by its rule in the step in which the time limit does."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._steps = 0
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        obs, reward, _, truncated, info = super().step(action)
        return obs, reward, self._steps == STEPS, truncated, info


def register() -> None:
    """Make the ids known to gymnasium; calling it again changes nothing."""
    entries: dict[str, Any] = {REACH: Reach, HIDDEN: HiddenStart, LATE: LateEnd}
    for name, entry in entries.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=entry, max_episode_steps=STEPS)


def tiny(**changes: Any) -> MakeConfig:
    """Return settings that take a second."""
    settings: dict[str, Any] = {
        "env_id": REACH,
        "steps": 100,
        "learning_starts": 25,
        "eval_every": 25,
        "episodes": 5,
        "eval_episodes": 3,
        "reference_episodes": 6,
        "hidden": (8,),
        "batch_size": 16,
        "learning_rate": 3e-3,
    }
    return MakeConfig(**settings | changes)
