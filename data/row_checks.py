"""Checks of observations and numbers while a file is read block by block from front to back."""

import numpy as np
from numpy.typing import NDArray

from statewise.data import checks
from statewise.data.episode import Array, DatasetInfo


class RowChecks:
    """What was seen so far; blocks of one array come in order, without gaps.

    Args:
        info: `source` names the file in messages.
        borders: (N,) whether an episode ended with the step.
        maze: observations begin with a position that must not jump.
    """

    slack: int = 0
    """Rows of actions that exceed their bounds by rounding."""

    def __init__(self, info: DatasetInfo, borders: NDArray[np.bool_], *, maze: bool) -> None:
        self._file: checks.File = info.source or None
        self._borders, self._maze = borders, maze
        self._broken: dict[str, tuple[int, int]] = {}
        self._last_seen: dict[str, Array] = {}
        self._last_next: dict[str, Array] = {}
        self._range: dict[str, tuple[Array, Array]] = {}
        self._compared, self._wrong, self._first_wrong = 0, 0, 0

    def finite(self, key: str, values: Array, offset: int) -> None:
        """Count rows (n, ...) with NaN or infinity."""
        broken = checks.broken_rows(values)
        if broken.any():
            count, first = self._broken.get(key, (0, offset + int(broken.argmax())))
            self._broken[key] = (count + int(broken.sum()), first)

    def observations(self, name: str, values: Array, offset: int) -> None:
        """See how far entries range, and whether positions jump.

        Raises:
            MissingBoundary: one does.
        """
        if values.ndim == 2:
            low, high = self._range.get(name, (values[0], values[0]))
            self._range[name] = (
                np.minimum(low, values.min(0)),
                np.maximum(high, values.max(0)),
            )
        if self._maze:
            rows, first = values, offset
            if name in self._last_seen:
                rows, first = np.concatenate([self._last_seen[name], values]), offset - 1
            self._last_seen[name] = values[-1:].copy()
            inside = ~self._borders[first : first + len(rows) - 1]
            checks.check_jumps(rows[:, :2], inside, self._file, first)

    def aligned(self, name: str, values: Array, following: Array, offset: int) -> None:
        """Compare what followed each step with the observation of the next row."""
        before, first = following[:-1], offset
        after = values[1:]
        if name in self._last_next:
            before, after = np.concatenate([self._last_next[name], before]), values
            first = offset - 1
        self._last_next[name] = following[-1:].copy()
        inside = ~self._borders[first : first + len(before)]
        with np.errstate(invalid="ignore"):
            error = np.abs(before.astype(np.float64) - after.astype(np.float64))
        # Written so that NaN counts as wrong.
        close = checks.flat_rows(error <= checks.ALIGNMENT_ERROR).all(1)
        wrong = inside & ~close
        if wrong.any() and not self._wrong:
            self._first_wrong = first + int(wrong.argmax())
        self._wrong += int(wrong.sum())
        self._compared += int(inside.sum())

    def finish(self, *, whole: bool) -> None:
        """Raise or warn of what was counted.

        Args:
            whole: the whole file was seen, so that what never changed is constant.

        Raises:
            NonFinite, Misaligned: see there.
        """
        for key, (count, first) in self._broken.items():
            checks.raise_nonfinite(key, count, first, self._file)
        checks.check_alignment(self._wrong, self._compared, self._first_wrong, self._file)
        if self.slack:
            problem = f"actions: {self.slack} rows exceed their bounds by up to 1e-3"
            checks.warn(problem, self._file)
        if whole and len(self._borders) > 1:
            widths = {
                name.removeprefix("observations/"): high != low
                for name, (low, high) in self._range.items()
            }
            checks.warn_of_constants(widths, self._file)
