"""Tasks behind random projections: ids `projected/<suite>` and `projected/<task>`.

The multi-environment tasks of Lu et al., "Structured State Space Models for In-Context
Reinforcement Learning", 2023 (section 5): at the start of a trial a task and two random matrices
are drawn, and the agent sees M_o obs and acts by M_a action. Only what it has lived through tells
which task this is, and what its observations and actions mean.

Deviations: the sizes, the suite and its split are ours; of discrete actions that with the largest
entry of M_a action is taken; rewards are scaled so that an episode returns 1 or less in size.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs.protocol import EnvError

PREFIX = "projected/"
Part = Literal["all", "train", "held_out"]


class Suite(NamedTuple):
    """Tasks that are drawn from, behind projections of the same sizes."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    obs_width: int
    """O, of what the agent sees."""
    action_width: int
    """A, of its actions."""

    def tasks(self, part: Part) -> tuple[str, ...]:
        """Return the ids of a part."""
        return {"train": self.train, "held_out": self.held_out}.get(
            part, self.train + self.held_out
        )


SUITES: dict[str, Suite] = {
    "classic": Suite(
        train=("CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0"),
        held_out=("Acrobot-v1",),
        obs_width=8,
        action_width=2,
    ),
}
REWARD_SCALES: dict[str, float] = {
    "CartPole-v1": 1 / 500,
    "Pendulum-v1": 1 / 1200,
    "MountainCarContinuous-v0": 1 / 100,
    "Acrobot-v1": 1 / 500,
}
"""Per task, what its rewards are multiplied by; a return divided by it is that of the task."""


class Projected(gymnasium.Env[Any, Any]):
    """Episodes of tasks behind projections that are drawn where `new_trial`.

    M_o is (O, o) with entries of variance 1 / o, M_a is (a, A) with entries of variance 1 / A; o
    and a are the widths of the task's observations and actions. Actions (A,) lie in [-1, 1];
    M_a action is in units of half the range of a continuous action, and clipped to it.

    Args:
        tasks: ids to draw from, at least one; keys of `REWARD_SCALES`.
        obs_width: O, >= 1.
        action_width: A, >= 1.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - gymnasium's own form

    def __init__(self, tasks: Sequence[str], obs_width: int, action_width: int) -> None:
        self._tasks = [(REWARD_SCALES[name], gymnasium.make(name)) for name in tasks]
        self.observation_space = spaces.Box(-np.inf, np.inf, (obs_width,))
        self.action_space = spaces.Box(-1.0, 1.0, (action_width,))
        self.new_trial = True
        """Whether the next reset draws a task and projections."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode, of another task where a trial begins."""
        super().reset(seed=seed)
        if self.new_trial:
            self._draw()
        obs, _ = self._env.reset(seed=int(self.np_random.integers(2**31)), options=options)
        return self._seen(obs), {}

    def _draw(self) -> None:
        number = int(self.np_random.integers(len(self._tasks)))
        self._scale, self._env = self._tasks[number]
        width = int(np.prod(self._env.observation_space.shape or ()))
        [out], [given] = self.observation_space.shape or (), self.action_space.shape or ()
        self._obs_map = self.np_random.standard_normal((out, width)) / np.sqrt(width)
        inner = self._env.action_space
        count = (
            int(inner.n) if isinstance(inner, spaces.Discrete) else int(np.prod(inner.shape or ()))
        )
        self._action_map = self.np_random.standard_normal((count, given)) / np.sqrt(given)

    def step(
        self, action: NDArray[Any]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Act through the projection."""
        mixed = self._action_map @ np.asarray(action, dtype=np.float64)
        space = self._env.action_space
        chosen: Any = int(mixed.argmax())
        if isinstance(space, spaces.Box):
            half, middle = (space.high - space.low) / 2, (space.high + space.low) / 2
            chosen = np.clip(middle + half * mixed, space.low, space.high).astype(space.dtype)
        obs, reward, terminated, truncated, _ = self._env.step(chosen)
        return self._seen(obs), self._scale * float(reward), bool(terminated), bool(truncated), {}

    def _seen(self, obs: NDArray[Any]) -> NDArray[np.float32]:
        return np.asarray(self._obs_map @ obs, dtype=np.float32)

    def close(self) -> None:
        """Close the tasks."""
        for _, env in self._tasks:
            env.close()


def ids() -> list[str]:
    """Return what `make` knows."""
    return [PREFIX + name for name in (*SUITES, *REWARD_SCALES)]


def make(env_id: str, *, tasks: Part = "all") -> Projected:
    """Make an environment.

    Args:
        env_id: of a suite, or of one task, whose projections alone are drawn.
        tasks: the part of the suite that is drawn from.

    Raises:
        EnvError: no such part.
    """
    name = env_id.removeprefix(PREFIX)
    if tasks not in get_args(Part):
        raise EnvError(f"expected tasks to be one of {get_args(Part)}, got {tasks!r} in {env_id}")
    if name in SUITES:
        suite = SUITES[name]
        return Projected(suite.tasks(tasks), suite.obs_width, suite.action_width)
    [suite] = [one for one in SUITES.values() if name in one.tasks("all")]
    if tasks != "all":
        raise EnvError(f"expected no tasks for one task, got {tasks!r} in {env_id}: leave it out")
    return Projected((name,), suite.obs_width, suite.action_width)
