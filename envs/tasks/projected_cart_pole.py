"""Projected cart-pole: balance by positions that a map unknown to the agent has mixed.

The in-context task of Lu et al., "Structured State Space Models for In-Context Reinforcement
Learning", 2023; the dynamics are those of Barto, Sutton and Anderson, "Neuronlike adaptive
elements that can solve difficult learning control problems", 1983, as gymnasium integrates them.

Deviations: positions are scaled by 10 before the map; `signs` is a family of four maps that can be
told apart in few steps.
"""

import math
from typing import Any, Literal, get_args

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs.protocol import Bools, EnvError
from statewise.envs.tasks.task import TaskEnv, TaskVectorEnv

Maps = Literal["fixed", "signs", "orthogonal"]
WIDTHS: dict[str, int] = {"fixed": 2, "signs": 2, "orthogonal": 4}
SCALE = 10.0
LIMIT = 50.0  # of an observation; above SCALE sqrt(2) |(2.4, 0.21)| = 34 and a last step
GRAVITY, CART, POLE, HALF_LENGTH, FORCE, DT = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
MAX_X, MAX_ANGLE = 2.4, 12 * math.pi / 180


def draw_map(maps: Maps, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return a map W (O, 2): the unit matrix, random signs of both axes, or orthogonal columns.

    Those of "orthogonal" have length sqrt 2 and are even among all such pairs.
    """
    if maps == "fixed":
        return np.eye(2)
    if maps == "signs":
        return np.diag(2.0 * generator.integers(2, size=2) - 1)
    q, r = np.linalg.qr(generator.standard_normal((4, 2)))
    return np.asarray(math.sqrt(2) * q * np.sign(np.diag(r)), dtype=np.float64)


def accelerations(state: NDArray[np.float64], action: NDArray[Any]) -> NDArray[np.float64]:
    """Return (N, 2), of cart and angle.

    Args:
        state: (N, 4): position, its speed, angle, its speed.
        action: (N,) 0 pushes to the left, 1 to the right.
    """
    _, _, angle, turn = state.T
    sine, cosine = np.sin(angle), np.cos(angle)
    total = CART + POLE
    push = (np.where(action == 1, FORCE, -FORCE) + POLE * HALF_LENGTH * turn**2 * sine) / total
    bend = (GRAVITY * sine - cosine * push) / (HALF_LENGTH * (4.0 / 3.0 - POLE * cosine**2 / total))
    return np.stack((push - POLE * HALF_LENGTH * bend * cosine / total, bend), 1)


class ProjectedCartPoleVector(TaskVectorEnv):
    """N episodes of at most `steps` steps; actions 0 push to the left, 1 to the right.

    At the start of a trial a map W and the state that all of its episodes start from are drawn,
    the state even in [-0.05, 0.05]^4. Observation (O,) float32: W applied to 10 times position and
    angle, O = 2, or 4 of "orthogonal". An episode ends beyond 2.4 or 12 degrees. Reward: 1 / steps
    in every step. Best return 1.

    Args:
        num_envs: N.
        maps: which W are drawn, see `draw_map`.
        steps: of the longest episode, >= 1.

    Raises:
        EnvError: steps out of range, or no such maps.
    """

    def __init__(self, num_envs: int = 1, *, maps: Maps = "orthogonal", steps: int = 200) -> None:
        if steps < 1 or maps not in get_args(Maps):
            raise EnvError(
                f"expected steps >= 1 and maps out of {get_args(Maps)}, got {steps} and {maps!r} "
                "in ProjectedCartPole"
            )
        self.num_steps, self._maps, width = steps, maps, WIDTHS[maps]
        arrays: dict[str, NDArray[Any]] = {
            "state": np.zeros((num_envs, 4)),
            "origin": np.zeros((num_envs, 4)),
            "map": np.zeros((num_envs, width, 2)),
            "steps": np.zeros(num_envs, dtype=np.int64),
        }
        box = spaces.Box(-LIMIT, LIMIT, (width,))
        super().__init__(num_envs, box, spaces.Discrete(2), arrays)

    def start(self, which: NDArray[np.intp]) -> None:
        """Go back to the start of the trial; draw it and the map where a trial begins."""
        for index in which[self.new_trial[which]]:
            generator = self.generators[index]
            self.arrays["origin"][index] = generator.uniform(-0.05, 0.05, 4)
            self.arrays["map"][index] = draw_map(self._maps, generator)
        self.arrays["state"][which] = self.arrays["origin"][which]
        self.arrays["steps"][which] = 0

    def advance(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], Bools]:
        """Push, and integrate with explicit Euler steps."""
        state = self.arrays["state"]
        accelerated = accelerations(state, action)
        state[:, [0, 2]] += DT * state[:, [1, 3]]
        state[:, [1, 3]] += DT * accelerated
        self.arrays["steps"] += 1
        falls = (np.abs(state[:, 0]) > MAX_X) | (np.abs(state[:, 2]) > MAX_ANGLE)
        reward = np.full(self.num_envs, 1 / self.num_steps, dtype=np.float32)
        return reward, falls | (self.arrays["steps"] >= self.num_steps)

    def observe(self) -> NDArray[np.float32]:
        """Show the mapped positions."""
        positions = SCALE * self.arrays["state"][:, [0, 2]]
        return np.einsum("noc,nc->no", self.arrays["map"], positions).astype(np.float32)


class ProjectedCartPole(TaskEnv):
    """One episode of `ProjectedCartPoleVector` at a time."""

    def __init__(self, *, maps: Maps = "orthogonal", steps: int = 200) -> None:
        super().__init__(ProjectedCartPoleVector(maps=maps, steps=steps))
