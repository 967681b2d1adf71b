"""One episode, and what its arrays are."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class ArraySpec(NamedTuple):
    """What one array of observations or actions holds, without the axis of time."""

    shape: tuple[int, ...]
    dtype: str
    """Of numpy: "float32", "uint8", "int64"."""
    low: Array | None = None
    """Bounds of a box, of `shape`; None is unbounded or not known."""
    high: Array | None = None
    num_choices: tuple[int, ...] | None = None
    """Discrete values 0 .. n - 1: choices per entry, (n,) with shape () for a single one."""


@dataclass(frozen=True, kw_only=True)
class Episode:
    """T >= 1 steps: observation t, the action taken at it, and the reward that it caused."""

    observations: dict[str, Array]
    """(T + 1, ...) per key of the flat observation space ("obs" for a single array) where the
    final observation is known, else (T, ...)."""
    actions: Array
    """(T, A) float or (T,) integer."""
    rewards: NDArray[np.float32]
    """(T,)."""
    terminated: bool
    """The last step ended the episode by a rule of the task."""
    truncated: bool
    """The episode was cut off after the last step."""
    infos: dict[str, Array] = field(default_factory=dict)
    """(T, ...) or (T + 1, ...) each."""
    source_id: str = ""
    """File or data set it came from."""
    index: int = 0
    """Its number there."""

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def has_final(self) -> bool:
        """The final observation is known."""
        return all(len(values) == len(self) + 1 for values in self.observations.values())


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What is known about a data set beside its steps."""

    env_id: str | None = None
    obs_specs: dict[str, ArraySpec] = field(default_factory=dict)
    action_spec: ArraySpec | None = None
    max_episode_steps: int | None = None
    ref_min: float | None = None
    """Mean return of a random policy: normalised score 0."""
    ref_max: float | None = None
    """Mean return of an expert: normalised score 100."""
    source: str = ""
    """File or folder it was read from."""
    sha256: str = ""
    """Of the source's bytes; of a folder, of its files in the order of their names."""
    generator: dict[str, Any] = field(default_factory=dict)
    """How it was made: algorithm, seed, versions, settings."""


class EpisodeSource(Protocol):
    """Where the steps of a data set are: in memory, or in a file that is read when asked.

    Arrays are named "observations/KEY", "actions", "rewards" and "infos/KEY".
    """

    info: DatasetInfo
    lengths: NDArray[np.int64]
    """(E,) steps per episode, each >= 1."""
    terminated: NDArray[np.bool_]
    """(E,) of the last steps."""
    truncated: NDArray[np.bool_]
    """(E,) of the last steps."""
    has_final: NDArray[np.bool_]
    """(E,) whether the final observation is known."""
    names: tuple[str, ...]
    """The arrays that every episode has."""

    def read(self, name: str, index: int, begin: int, end: int) -> Array:
        """Return rows begin .. end - 1 of an array of episode `index`, a copy or read-only.

        Row T of "observations/KEY" is the final observation, where `has_final`.
        """
        ...
