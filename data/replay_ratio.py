"""How many updates are due: the train ratio of Dreamer."""

from fractions import Fraction
from typing import Any

from statewise.data.errors import DataConfigError


class TrainRatio:
    """Counts the updates that are due, so that `ratio` rows are replayed per environment step.

        updates per step = ratio / rows_per_update

    What is left of an update is kept, exactly: no rounding builds up over a long run.

    Args:
        ratio: replayed rows per step, > 0, read as its shortest decimal form.
        rows_per_update: batch size times length, at least 1.

    Raises:
        DataConfigError: one of them is out of its range.
    """

    def __init__(self, ratio: float, rows_per_update: int) -> None:
        if not 0 < ratio < float("inf"):
            raise DataConfigError(f"expected a finite number > 0, got {ratio}", key="train_ratio")
        if rows_per_update < 1:
            problem = f"expected at least 1, got {rows_per_update}"
            raise DataConfigError(problem, key="rows_per_update")
        self._per_step = Fraction(str(ratio)) / rows_per_update
        self._owed = Fraction(0)  # in [0, 1)

    def due(self, num_steps: int) -> int:
        """Return how many updates follow `num_steps` >= 0 further environment steps."""
        self._owed += num_steps * self._per_step
        whole = int(self._owed)
        self._owed -= whole
        return whole

    def state_dict(self) -> dict[str, Any]:
        """Return the part of an update that is owed."""
        return {"owed": str(self._owed)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, with another ratio too.

        Raises:
            DataConfigError: the state is not one of a `TrainRatio`.
        """
        try:
            owed = Fraction(state["owed"])
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            problem = f"expected the state of a TrainRatio, got {state!r}"
            raise DataConfigError(problem, key="train_ratio") from error
        if not 0 <= owed < 1:
            problem = f"expected a part of an update in [0, 1), got {owed}"
            raise DataConfigError(problem, key="train_ratio")
        self._owed = owed
