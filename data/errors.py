"""What can be wrong with a data set: one class per kind, one line per error."""

# ruff: noqa: N818 -- the names say what is wrong; each is a DatasetError

from pathlib import Path


class DatasetError(ValueError):
    """A data set that cannot be used as it is.

    The message is one line: file, key and index where they are known, what was expected and what
    came, and what to do.

    Args:
        problem: "expected ..., got ...".
        file: where; None if it is not about a file.
        key: array or field inside the file.
        index: first step, row or episode that is wrong.
        hint: what to do.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: Path | str | None = None,
        key: str | None = None,
        index: int | None = None,
        hint: str = "",
    ):
        where = "" if key is None else key
        where += "" if index is None else f"[{index}]"
        parts = [str(file) if file is not None else "", where, problem, hint]
        super().__init__(": ".join(part for part in parts if part))


class DatasetNotFound(DatasetError):
    """No such file, an empty one, or a folder where a file was expected."""


class DatasetExists(DatasetError):
    """Something is there already and was not asked to be replaced."""


class DatasetCorrupt(DatasetError):
    """Not the format its name says, truncated, locked, or damaged inside."""


class MissingKey(DatasetError):
    """A required array is not there."""


class LengthMismatch(DatasetError):
    """Arrays that belong together have different numbers of steps."""


class Misaligned(DatasetError):
    """`next_observations` are not the observations of the next step."""


class NonFinite(DatasetError):
    """NaN or infinity in observations, actions or rewards."""


class SpecMismatch(DatasetError):
    """Shape or dtype differs from what the environment or the format says."""


class ActionRange(DatasetError):
    """An action outside of its bounds, or no valid choice."""


class ShapeError(DatasetError):
    """Rewards that are no vector, flags that are not 0 or 1."""


class NoEpisodeBoundary(DatasetError):
    """Nothing says where an episode ends."""


class EpisodeTooLong(DatasetError):
    """An episode has more steps than the environment allows."""


class EmptyDataset(DatasetError):
    """No step, or no episode that is long enough."""


class MissingBoundary(DatasetError):
    """A jump inside an episode: its end was not marked."""


class NoReferenceScore(DatasetError):
    """A normalised score was asked for, and its two reference returns are not known."""


class EnvMismatch(DatasetError):
    """The data are of another environment, or of another version of it."""


class DataConfigError(DatasetError):
    """A setting of a sampler or a target that cannot be used."""


class MemoryBudget(DatasetError):
    """The data would not fit into the memory that was allowed."""


class PickleRefused(DatasetError):
    """Pickled content, which could run any code."""


class UnsafePath(DatasetError):
    """A name or a link that leads out of its folder."""


class MinariError(DatasetError):
    """A Minari data set that contradicts itself or is of a kind that is not read."""


class MinariEpisode(MinariError):
    """An episode's arrays do not belong together."""


class MinariCount(MinariError):
    """Episode numbers or totals disagree with what is there."""


class MinariName(MinariError):
    """The id inside differs from the folder's, or is no id."""


class MinariVersion(MinariError):
    """Written by a version of minari that is not read."""


class MinariFormat(MinariError):
    """An unknown data format or type of space."""


class DatasetWarning(UserWarning):
    """Data that can be used but look wrong."""
