"""DoubleIntegrator: push a mass to the origin; linear dynamics and a quadratic cost.

    p' = p + dt v + dt^2 u / 2      v' = v + dt u      r = -(p^2 + v^2 / 10 + u^2)

The environment of the data set `data.toys.double_integrator`, whose expert is the linear
quadratic regulator.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs.protocol import Bools
from statewise.envs.tasks.task import TaskEnv, TaskVectorEnv

STEPS, DT, FORCE = 50, 0.1, 3.0
COST_P, COST_V, COST_U = 1.0, 0.1, 1.0
START = 1.0  # largest |p| and |v| at the start


class DoubleIntegratorVector(TaskVectorEnv):
    """N episodes of 50 steps, which end by the time limit; one action in [-3, 3].

    Observation (2,) float32: place and speed, uniform in [-1, 1] at the start. Forces beyond
    the bounds are clipped.

    Args:
        num_envs: N.
    """

    def __init__(self, num_envs: int = 1) -> None:
        speed = START + STEPS * DT * FORCE
        place = START + STEPS * DT * speed
        highest = np.array([place, speed], np.float32)
        arrays: dict[str, NDArray[Any]] = {
            "state": np.zeros((num_envs, 2), dtype=np.float64),
            "steps": np.zeros(num_envs, dtype=np.int64),
        }
        actions = spaces.Box(-FORCE, FORCE, (1,), np.float32)
        super().__init__(num_envs, spaces.Box(-highest, highest), actions, arrays)

    def start(self, which: NDArray[np.intp]) -> None:
        """Draw place and speed."""
        self.arrays["steps"][which] = 0
        for index in which:
            drawn = self.generators[index].uniform(-START, START, size=2)
            self.arrays["state"][index] = drawn.astype(np.float32)

    def advance(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], Bools]:
        """Pay for place, speed and force, then move."""
        state = self.arrays["state"]
        u = np.clip(action[:, 0].astype(np.float64), -FORCE, FORCE)
        p, v = state[:, 0].copy(), state[:, 1].copy()
        cost = COST_P * p**2 + COST_V * v**2 + COST_U * u**2
        state[:, 0] = p + DT * v + DT**2 / 2 * u
        state[:, 1] = v + DT * u
        self.arrays["steps"] += 1
        return -cost.astype(np.float32), self.arrays["steps"] >= STEPS

    def observe(self) -> NDArray[np.float32]:
        """Show place and speed."""
        return self.arrays["state"].astype(np.float32)

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[np.float32], Bools, Bools, dict[str, Any]]:
        """Step all; the time limit truncates."""
        obs, reward, ended, never, info = super().step(actions)
        return obs, reward, never, ended, info


class DoubleIntegrator(TaskEnv):
    """One episode of `DoubleIntegratorVector` at a time."""

    def __init__(self) -> None:
        super().__init__(DoubleIntegratorVector())

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Act once; the time limit truncates."""
        obs, reward, ended, never, info = super().step(action)
        return obs, reward, never, ended, info
