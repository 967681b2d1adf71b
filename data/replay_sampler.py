"""Where windows of a replay may begin, and how many there are of them."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from statewise.data.errors import DatasetError
from statewise.data.memory import Index, starts_of

StartKind = Literal["any", "episode"]


class ReplayTooSmall(DatasetError):  # noqa: N818 -- the name says what is wrong
    """A replay holds fewer rows than a window or a batch needs."""


class EpisodeStarts:
    """The numbers of the rows that begin an episode, per worker, in order.

    Args:
        is_first: (W, slots) of a ring that holds row n in slot n % slots.
        begin: (W,) number of the oldest row held.
        end: (W,) one more than the newest.
    """

    def __init__(self, is_first: NDArray[np.bool_], begin: Index, end: Index) -> None:
        self.rows: list[list[int]] = []
        for flags, low, high in zip(is_first, begin, end, strict=True):
            number = np.arange(low, high)
            self.rows.append(number[flags[number % len(flags)]].tolist())

    def add(self, worker: int, rows: Sequence[int]) -> None:
        """Add rows, larger than all before."""
        self.rows[worker] += rows

    def drop_before(self, worker: int, row: int) -> None:
        """Forget rows below `row`, at times when that is cheap."""
        gone = bisect_left(self.rows[worker], row)
        if 2 * gone > len(self.rows[worker]):
            del self.rows[worker][:gone]

    def places(self, low: Index, high: Index) -> tuple[Index, Index]:
        """Return per worker the place of the first row in low .. high - 1, and their number."""
        between = [
            (bisect_left(rows, int(a)), bisect_left(rows, int(b)))
            for rows, a, b in zip(self.rows, low, high, strict=True)
        ]
        first, end = np.array(between, np.int64).T
        return first, np.maximum(end - first, 0)


class Starts:
    """All rows with which a window can begin, numbered 0 .. total - 1.

    A window of `length` rows and the row before it lie within the rows begin .. end - 1 that a
    worker holds. Only the very first row of a stream needs no row before it.

    Args:
        begin: (W,) number of the oldest row held.
        end: (W,) one more than the newest.
        length: of a window, at least 1.
        episodes: windows begin at these rows only; None at any row.
    """

    def __init__(
        self, begin: Index, end: Index, length: int, episodes: EpisodeStarts | None = None
    ) -> None:
        self._length, self._held, self._has_first = length, end - begin, begin == 0
        low = np.where(self._has_first, begin, begin + 1)
        high = end - length + 1
        self._rows = None if episodes is None else episodes.rows
        self._low, self._count = low, np.maximum(high - low, 0)
        if episodes is not None:
            self._low, self._count = episodes.places(low, high)
        self._ends: Index = np.cumsum(self._count)
        self.total = int(self._ends[-1])

    def locate(self, drawn: NDArray[np.integer]) -> tuple[Index, Index]:
        """Return worker and row (B,) of starts (B,)."""
        worker = np.searchsorted(self._ends, drawn, side="right")
        place: Index = drawn - starts_of(self._count)[worker] + self._low[worker]
        if self._rows is None:
            return worker, place
        rows = [self._rows[w][p] for w, p in zip(worker, place, strict=True)]
        return worker, np.array(rows, np.int64)

    def check(self, needed: int, num_rows: int) -> None:
        """Raise ReplayTooSmall unless there are `needed` starts, at least 1.

        Args:
            needed: starts.
            num_rows: that a worker can hold.
        """
        if self.total >= needed:
            return
        length, held = self._length, self._held
        required = np.where(self._has_first, length, length + 1)
        best, total = int(np.argmax(held - required)), int(held.sum())
        if held[best] < required[best]:
            problem = (
                f"expected {required[best]} rows of one worker for a window of {length},"
                f" got at most {held[best]}"
            )
        elif self.total == 0:
            problem = f"expected an episode that began at least {length} rows ago, got none"
        else:
            problem = (
                f"expected {needed} different windows of {length} rows, got {self.total}:"
                f" at least {total + needed - self.total} rows are needed"
            )
        hint = "collect more before sampling, in training by windows.prefill"
        if length >= num_rows or needed > len(held) * (num_rows - length):
            hint = f"raise replay.capacity, a worker keeps only {num_rows} rows"
        where = f"{total} rows held by {len(held)} workers"
        raise ReplayTooSmall(f"{problem} ({where})", key="replay", hint=hint)
