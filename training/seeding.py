"""Named random streams from one root seed."""

import hashlib

import numpy as np


class Seeds:
    """Independent streams, one per name, that depend on nothing but (root, name).

    A stream does not change when other names are used, in whatever order. The names in use
    are env, policy, init, eval and data.

    Args:
        root: the seed of the run, >= 0.

    Raises:
        ValueError: `root` is negative.
    """

    def __init__(self, root: int) -> None:
        if root < 0:
            raise ValueError(f"seed: expected at least 0, got {root}")
        self.root = root

    def integer(self, name: str) -> int:
        """Return the seed of a stream for libraries that take an integer: 0 .. 2**31 - 1."""
        return int(self._sequence(name).generate_state(1, np.uint32)[0] >> np.uint32(1))

    def generator(self, name: str) -> np.random.Generator:
        """Return a new generator at the start of a stream."""
        return np.random.default_rng(self._sequence(name))

    def _sequence(self, name: str) -> np.random.SeedSequence:
        # hash() of text differs from process to process; a digest does not.
        digest = hashlib.blake2s(name.encode(), digest_size=16).digest()
        return np.random.SeedSequence(
            self.root, spawn_key=tuple(np.frombuffer(digest, dtype="<u4").tolist())
        )
