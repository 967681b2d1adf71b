"""Flat arrays of steps, as D4RL files and plain npz hold them, made into episodes.

    observations, actions, rewards, terminals [, timeouts, next_observations, infos/...]

The final observation of an episode is the row of `next_observations` at its last step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from statewise.data import checks
from statewise.data.episode import Array, ArraySpec, DatasetInfo
from statewise.data.errors import DataConfigError
from statewise.data.memory import Index, canonical
from statewise.data.split import Ends, Incomplete, Split

Mode = Literal["memory", "lazy"]


def next_key(key: str) -> str:
    """Return the name in the file of the observations that follow those of `key`."""
    return key.replace("observations", "next_observations", 1)


def shaped(name: str, values: Array) -> Array:
    """Return rows as an episode has them: rewards (N,) float32, actions (N, A) or (N,) integer."""
    if name == "rewards":
        return values.reshape(-1).astype(np.float32)
    if name == "actions" and values.dtype.kind == "f":
        return canonical(values.reshape(len(values), -1) if values.ndim == 1 else values)
    if name == "actions" and values.dtype.kind in "iu" and values.shape[1:] == (1,):
        return values.reshape(-1)
    return values if name.startswith("infos/") else canonical(values)


def checked_actions(
    values: Array, info: DatasetInfo, repair: str, offset: int
) -> tuple[Array, int]:
    """Return actions, clipped if asked for, and how many rows exceed their bounds slightly."""
    spec = info.action_spec
    if repair == "clip_actions" and spec is not None and spec.num_choices is None:
        low, high = (None if b is None else b.astype(values.dtype) for b in (spec.low, spec.high))
        if low is not None or high is not None:
            values = np.clip(values, low, high)
    return values, checks.check_actions(values, spec, info.source or None, offset)


class FlatArray(Protocol):
    """An array that is read by slices of rows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of numpy."""
        ...

    def __getitem__(self, rows: slice, /) -> Array:
        """Return rows."""
        ...


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """How flat steps are read.

    Raises:
        DataConfigError: a field is out of its range.
    """

    max_episode_steps: int | None = None  # >= 1; None: what the file or the task says
    incomplete: Incomplete = "drop"  # steps after the last end; their return to go is too low
    ends: Ends | Literal["auto"] = "auto"  # what ends an episode; auto: timeouts in AntMaze
    infos: Literal["keep", "drop"] = "keep"
    repair: Literal["none", "clip_actions"] = "none"  # clips whatever is out of bounds
    task: str | None = None  # name in D4RL, "hopper-medium-v2"; None: by the file's name
    action_spec: ArraySpec | None = None  # bounds or choices; None: what the file or task says
    memory_budget: int | None = None  # bytes, >= 1; None: half of the machine's memory

    def __post_init__(self) -> None:
        for name in ("max_episode_steps", "memory_budget"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataConfigError(f"expected at least 1, got {value}", key=name)
        checks.check_choice("incomplete", self.incomplete, get_args(Incomplete))
        checks.check_choice("ends", self.ends, ("auto", *get_args(Ends)))
        checks.check_choice("infos", self.infos, ("keep", "drop"))
        checks.check_choice("repair", self.repair, ("none", "clip_actions"))


class FlatSource:
    """An `EpisodeSource` that reads its rows from flat arrays when asked.

    Args:
        arrays: by name in the file, rows (N, ...).
        names: from names of an `EpisodeSource` to names in the file.
        split: the episodes.
        has_final: (E,).
        info: what is known beside the steps.
        repair: as in `ReadConfig`.
    """

    def __init__(
        self,
        *,
        arrays: Mapping[str, FlatArray],
        names: Mapping[str, str],
        split: Split,
        has_final: NDArray[np.bool_],
        info: DatasetInfo,
        repair: str,
    ) -> None:
        self.info, self.names, self.has_final = info, tuple(names), has_final
        self.lengths: Index = split.lengths
        self.terminated, self.truncated = split.terminated, split.truncated
        self._arrays, self._keys, self._starts, self._repair = arrays, names, split.starts, repair

    def read(self, name: str, index: int, begin: int, end: int) -> Array:
        """Return rows begin .. end - 1 of an array of episode `index`.

        Raises:
            DatasetCorrupt: the file is damaged there.
            NonFinite, ActionRange: the rows hold what a data set must not.
        """
        start, steps = int(self._starts[index]), int(self.lengths[index])
        key = self._keys[name]
        values = self._rows(name, key, start + begin, start + min(end, steps))
        if name.startswith("observations/") and end > steps and self.has_final[index]:
            last = start + steps - 1
            final = self._rows(name, next_key(key), last, last + 1)
            values = final if begin >= steps else np.concatenate([values, final])
        return values

    def _rows(self, name: str, key: str, begin: int, end: int) -> Array:
        values = shaped(name, self._arrays[key][slice(begin, max(begin, end))])
        if name.startswith("infos/"):
            return values
        checks.check_finite(key, values, self.info.source or None, begin)
        if name != "actions":
            return values
        return checked_actions(values, self.info, self._repair, begin)[0]
