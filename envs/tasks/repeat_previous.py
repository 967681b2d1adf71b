"""RepeatPrevious: name the suit of the card that was dealt k - 1 cards ago.

The task of Morad et al., "POPGym: Benchmarking Partially Observable Reinforcement Learning",
2023, many episodes at once. Environment i with seed s deals the cards that popgym deals with
that seed.
"""

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs.protocol import Bools, EnvError
from statewise.envs.tasks.task import TaskEnv, TaskVectorEnv

NUM_SUITS = 4
CARDS_PER_DECK = 52


class RepeatPreviousVector(TaskVectorEnv):
    """N episodes of 52 * decks - 1 steps; the suits 0 .. 3 are observations and actions.

    Reward: once k cards are seen, 1 / (cards - k) for the suit of the card k - 1 before the
    current one and minus that for another suit; 0 before. Best return 1; guessing -0.5.

    Args:
        num_envs: N.
        decks: of 52 cards each, >= 1.
        k: 1 .. 52 * decks - 1; 1 asks for the current card.

    Raises:
        EnvError: a number out of range.
    """

    def __init__(self, num_envs: int = 1, *, decks: int = 1, k: int = 4) -> None:
        self.num_cards = CARDS_PER_DECK * decks
        if decks < 1 or not 1 <= k < self.num_cards:
            raise EnvError(
                "expected decks >= 1 and k in 1 .. 52 * decks - 1, "
                f"got {decks} and {k} in RepeatPrevious"
            )
        self.k = k
        self._rows = np.arange(num_envs)
        suits: spaces.Space[Any] = spaces.Discrete(NUM_SUITS)
        arrays: dict[str, NDArray[Any]] = {
            "deck": np.zeros((num_envs, self.num_cards), dtype=np.int64),
            "seen": np.ones(num_envs, dtype=np.int64),
        }
        super().__init__(num_envs, suits, suits, arrays)

    def start(self, which: NDArray[np.intp]) -> None:
        """Shuffle the decks and deal one card."""
        for index in which:
            order = np.arange(self.num_cards)
            self.generators[index].shuffle(order)
            self.arrays["deck"][index] = order[::-1] % NUM_SUITS  # dealt from the end
        self.arrays["seen"][which] = 1

    def advance(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], Bools]:
        """Compare the action with the card asked for, then deal one."""
        seen = self.arrays["seen"]
        right = action == self._card(seen - self.k)
        reward = np.where(right, 1.0, -1.0) * (seen >= self.k) / (self.num_cards - self.k)
        seen += 1
        return reward.astype(np.float32), seen >= self.num_cards

    def observe(self) -> NDArray[np.int64]:
        """Show the suit of the current card."""
        return self._card(self.arrays["seen"] - 1)

    def _card(self, position: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the suits (N,) at positions (N,) of the decks; below 0 any suit."""
        suits: NDArray[np.int64] = self.arrays["deck"][self._rows, position]
        return suits


class RepeatPrevious(TaskEnv):
    """One episode of `RepeatPreviousVector` at a time."""

    def __init__(self, *, decks: int = 1, k: int = 4) -> None:
        super().__init__(RepeatPreviousVector(decks=decks, k=k))
