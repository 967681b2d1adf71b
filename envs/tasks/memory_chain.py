"""MemoryChain: bits shown at the start are asked for at the end.

The task of bsuite's memory_len and memory_size (Osband et al., "Behaviour Suite for
Reinforcement Learning", 2020), with its order of events: an observation is made before the
clock goes on, so the first one comes twice.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs.protocol import Bools, EnvError
from statewise.envs.tasks.task import TaskEnv, TaskVectorEnv


class MemoryChainVector(TaskVectorEnv):
    """N episodes of length + 1 steps with 2 actions.

    Observation (num_bits + 2,) float32, with the clock t = 0, 0, 1, 2, ..., length:
    1 - t / length; the index of the bit asked for, where t = length - 1, else 0; and the bits
    as -1 or 1, where t = 0, else 0. Reward: 1 or -1 for the last action, right being the bit's
    own value 0 or 1 for -1 and 1; 0 before.

    Args:
        num_envs: N.
        length: steps between showing and asking, >= 1.
        num_bits: >= 1.

    Raises:
        EnvError: a number out of range.
    """

    def __init__(self, num_envs: int = 1, *, length: int = 100, num_bits: int = 1) -> None:
        if length < 1 or num_bits < 1:
            raise EnvError(
                "expected length >= 1 and num_bits >= 1, "
                f"got {length} and {num_bits} in MemoryChain"
            )
        self.length, self.num_bits = length, num_bits
        self._rows = np.arange(num_envs)
        highest = np.array([1, max(num_bits - 1, 1)] + [1] * num_bits, dtype=np.float32)
        lowest = np.array([0, 0] + [-1] * num_bits, dtype=np.float32)
        arrays: dict[str, NDArray[Any]] = {
            "bits": np.zeros((num_envs, num_bits), dtype=np.int64),
            "query": np.zeros(num_envs, dtype=np.int64),
            "steps": np.zeros(num_envs, dtype=np.int64),
        }
        super().__init__(num_envs, spaces.Box(lowest, highest), spaces.Discrete(2), arrays)

    def start(self, which: NDArray[np.intp]) -> None:
        """Draw the bits and the index asked for."""
        for index in which:
            generator = self.generators[index]
            self.arrays["bits"][index] = generator.integers(2, size=self.num_bits)
            self.arrays["query"][index] = generator.integers(self.num_bits)
        self.arrays["steps"][which] = 0

    def advance(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], Bools]:
        """Let time pass; the action of the last step is the answer."""
        steps, bits, query = self.arrays["steps"], self.arrays["bits"], self.arrays["query"]
        steps += 1
        terminated = steps > self.length
        right = action == bits[self._rows, query]
        return (terminated * np.where(right, 1, -1)).astype(np.float32), terminated

    def observe(self) -> NDArray[np.float32]:
        """Show the time, the question near the end, and the bits at the start."""
        clock = np.maximum(self.arrays["steps"] - 1, 0)
        obs = np.zeros((self.num_envs, self.num_bits + 2), dtype=np.float32)
        obs[:, 0] = 1 - clock / self.length
        obs[:, 1] = self.arrays["query"] * (clock == self.length - 1)
        obs[:, 2:] = (2 * self.arrays["bits"] - 1) * (clock == 0)[:, None]
        return obs


class MemoryChain(TaskEnv):
    """One episode of `MemoryChainVector` at a time."""

    def __init__(self, *, length: int = 100, num_bits: int = 1) -> None:
        super().__init__(MemoryChainVector(length=length, num_bits=num_bits))
