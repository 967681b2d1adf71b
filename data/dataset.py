"""A data set of episodes, whatever its source, and its statistics."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.data.checks import check_some_episodes
from statewise.data.episode import Array, DatasetInfo, Episode, EpisodeSource
from statewise.data.errors import DataConfigError
from statewise.data.memory import Index, MemorySource, consecutive, observation_names
from statewise.data.rows import Stretches, lay_out
from statewise.data.step import Step
from statewise.data.views import select, with_info

_BLOCK = 2**23  # bytes of observations that are worked on at a time


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Numbers about a data set. Deviations are those of a population (divided by n)."""

    obs_mean: dict[str, NDArray[np.float64]]
    """Per key, of the shape of one observation, over all that an action was taken at."""
    obs_std: dict[str, NDArray[np.float64]]
    num_episodes: int
    num_steps: int
    num_terminated: int
    num_truncated: int
    num_final: int
    """Episodes whose final observation is known."""
    return_mean: float
    return_std: float
    return_min: float
    return_max: float
    length_mean: float
    length_min: int
    length_max: int


class EpisodeDataset:
    """Episodes in memory or in a file.

    Args:
        source: where the steps are.
    """

    def __init__(self, source: EpisodeSource) -> None:
        self.source = source

    @classmethod
    def from_episodes(
        cls, episodes: Sequence[Episode], info: DatasetInfo | None = None
    ) -> "EpisodeDataset":
        """Copy episodes into memory; raises what `MemorySource.from_episodes` does."""
        return cls(MemorySource.from_episodes(episodes, info or DatasetInfo()))

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.source.lengths)

    @property
    def info(self) -> DatasetInfo:
        """What is known beside the steps."""
        return self.source.info

    @property
    def lengths(self) -> Index:
        """(E,) steps per episode."""
        return self.source.lengths

    @property
    def terminated(self) -> NDArray[np.bool_]:
        """(E,) whether a rule of the task ended the episode."""
        return self.source.terminated

    @property
    def truncated(self) -> NDArray[np.bool_]:
        """(E,) whether the episode was cut off."""
        return self.source.truncated

    @property
    def has_final(self) -> NDArray[np.bool_]:
        """(E,) whether the final observation is known."""
        return self.source.has_final

    @property
    def num_steps(self) -> int:
        """Steps of all episodes."""
        return int(self.lengths.sum())

    @cached_property
    def returns(self) -> NDArray[np.float64]:
        """(E,) undiscounted sums of rewards; read once."""
        sums = [
            self.source.read("rewards", index, 0, int(steps)).sum(dtype=np.float64)
            for index, steps in enumerate(self.lengths)
        ]
        return np.array(sums, np.float64)

    def episode(self, index: int) -> Episode:
        """Return a copy of one episode; negative numbers count from the end.

        Raises:
            IndexError: there is no such episode.
        """
        number = range(len(self))[index]
        steps = int(self.lengths[number])

        def rows(name: str) -> Array:
            return np.array(self.source.read(name, number, 0, steps + 1))

        names = self.source.names
        return Episode(
            observations={
                name.removeprefix("observations/"): rows(name) for name in observation_names(names)
            },
            actions=rows("actions"),
            rewards=rows("rewards"),
            terminated=bool(self.terminated[number]),
            truncated=bool(self.truncated[number]),
            infos={
                name.removeprefix("infos/"): rows(name)
                for name in names
                if name.startswith("infos/")
            },
            source_id=self.info.source,
            index=number,
        )

    def episodes(self) -> Iterator[Episode]:
        """Yield copies of all episodes."""
        return (self.episode(index) for index in range(len(self)))

    def steps(self, index: int, begin: int = 0, end: int | None = None) -> Step:
        """Return rows begin .. end - 1 of an episode, (1, T, ...).

        Args:
            index: of the episode.
            begin: first row; the first one returned has `reset`.
            end: None means to the end, with the final observation where it is known.

        Raises:
            DataConfigError: no row is asked for, or one that the episode does not have.
        """
        number = range(len(self))[index]
        last = int(self.lengths[number]) + int(self.has_final[number])
        end = last if end is None else end
        if not 0 <= begin < end <= last:
            problem = f"expected 0 <= begin < end <= {last}, got {begin} and {end}"
            raise DataConfigError(problem, key="episode", index=number)
        numbers = (np.array([value], np.int64) for value in (number, begin, end, 0, 0))
        return lay_out(self.source, Stretches(*numbers), (1, end - begin)).step

    def whole(self, indices: Sequence[int] | Index) -> Step:
        """Return whole episodes, a line each, padded on the right: (B, T, ...).

        Final observations are rows where they are known.

        Raises:
            IndexError: there is no such episode.
        """
        number = np.arange(len(self), dtype=np.int64)[np.asarray(indices, np.int64)]
        rows = self.lengths[number] + self.has_final[number]
        line, zero = np.arange(len(number)), np.zeros(len(number), np.int64)
        shape = (len(number), int(rows.max()))
        return lay_out(self.source, Stretches(number, zero, rows, line, zero), shape).step

    def subset(self, indices: Sequence[int] | Index) -> "EpisodeDataset":
        """Return some of the episodes, in the order given; it may be none.

        Raises:
            IndexError: there is no such episode.
        """
        chosen = np.arange(len(self), dtype=np.int64)[np.asarray(indices, np.int64)]
        return EpisodeDataset(select(self.source, chosen))

    def with_info(self, **fields: Any) -> "EpisodeDataset":
        """Return the same steps with some fields of `info` exchanged."""
        return EpisodeDataset(with_info(self.source, replace(self.info, **fields)))

    def statistics(self) -> Statistics:
        """Return statistics, computed at the first call by reading all steps once.

        Raises:
            EmptyDataset: there is no episode.
        """
        return self._statistics

    @cached_property
    def _statistics(self) -> Statistics:
        check_some_episodes(len(self), self.info.source or None)
        moments = {
            name.removeprefix("observations/"): _moments(self.source, name)
            for name in observation_names(self.source.names)
        }
        return Statistics(
            obs_mean={key: mean for key, (mean, _) in moments.items()},
            obs_std={key: std for key, (_, std) in moments.items()},
            num_episodes=len(self),
            num_steps=self.num_steps,
            num_terminated=int(self.terminated.sum()),
            num_truncated=int(self.truncated.sum()),
            num_final=int(self.has_final.sum()),
            return_mean=float(self.returns.mean()),
            return_std=float(self.returns.std()),
            return_min=float(self.returns.min()),
            return_max=float(self.returns.max()),
            length_mean=float(self.lengths.mean()),
            length_min=int(self.lengths.min()),
            length_max=int(self.lengths.max()),
        )


def _blocks(source: EpisodeSource, name: str) -> Iterator[Array]:
    """Yield rows (n, ...) of all observations that an action was taken at, a few at a time."""
    row = source.read(name, 0, 0, 1)
    size = max(1, _BLOCK // max(1, row.size * 8))
    if isinstance(source, MemorySource):
        rows = consecutive(source.first[name], source.lengths)
        for begin in range(0, len(rows), size):
            yield source.arrays[name][rows[begin : begin + size]]
        return
    for index, steps in enumerate(source.lengths):
        for begin in range(0, int(steps), size):
            yield source.read(name, index, begin, min(begin + size, int(steps)))


def _moments(source: EpisodeSource, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of an observation, accumulated in float64.

    Differences to the first row are summed, so that what never changes has deviation 0 exactly;
    blocks are merged by the pairwise update of Chan et al. 1979.
    """
    origin = source.read(name, 0, 0, 1)[0].astype(np.float64)
    count, mean, spread = 0, np.zeros_like(origin), np.zeros_like(origin)
    for block in _blocks(source, name):
        values = block.astype(np.float64) - origin
        added, block_mean = len(values), values.mean(0)
        delta = block_mean - mean
        total = count + added
        spread += ((values - block_mean) ** 2).sum(0) + delta**2 * (count * added / total)
        mean += delta * (added / total)
        count = total
    return origin + mean, np.sqrt(spread / count)
