"""Sources made of other sources: some of the episodes, several sets in a row, other values."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from statewise.data.episode import Array, DatasetInfo, EpisodeSource
from statewise.data.memory import Index, MemorySource, starts_of

RowMap = Callable[[Array], Array]


class SubsetSource:
    """Some episodes of a source, in the order given."""

    def __init__(self, source: EpisodeSource, indices: Index) -> None:
        self.info, self.names = source.info, source.names
        self.lengths: Index = source.lengths[indices]
        self.terminated: NDArray[np.bool_] = source.terminated[indices]
        self.truncated: NDArray[np.bool_] = source.truncated[indices]
        self.has_final: NDArray[np.bool_] = source.has_final[indices]
        self._source, self._indices = source, indices

    def read(self, name: str, index: int, begin: int, end: int) -> Array:
        """Return rows begin .. end - 1 of an array of episode `index`."""
        return self._source.read(name, int(self._indices[index]), begin, end)


class JoinedSource:
    """The episodes of several sources, one set after the other."""

    def __init__(self, sources: Sequence[EpisodeSource], info: DatasetInfo) -> None:
        self.info, self.names = info, shared_names(sources)
        self.lengths: Index = np.concatenate([s.lengths for s in sources])
        self.terminated: NDArray[np.bool_] = np.concatenate([s.terminated for s in sources])
        self.truncated: NDArray[np.bool_] = np.concatenate([s.truncated for s in sources])
        self.has_final: NDArray[np.bool_] = np.concatenate([s.has_final for s in sources])
        self._sources = tuple(sources)
        self._first = starts_of(np.array([len(s.lengths) for s in sources], np.int64))

    def read(self, name: str, index: int, begin: int, end: int) -> Array:
        """Return rows begin .. end - 1 of an array of episode `index`."""
        which = int(np.searchsorted(self._first, index, side="right")) - 1
        return self._sources[which].read(name, index - int(self._first[which]), begin, end)


class ChangedSource:
    """A source with arrays of steps exchanged, or rows passed through functions.

    Args:
        source: what everything else is read from.
        info: of the changed data.
        arrays: by name, flat arrays with one row per step of all episodes in order.
        row_maps: by name, functions from rows (n, ...) to rows (n, ...).
    """

    def __init__(
        self,
        source: EpisodeSource,
        info: DatasetInfo,
        *,
        arrays: Mapping[str, Array] | None = None,
        row_maps: Mapping[str, RowMap] | None = None,
    ) -> None:
        self.info, self.names, self.lengths = info, source.names, source.lengths
        self.terminated, self.truncated = source.terminated, source.truncated
        self.has_final = source.has_final
        self._source, self._arrays, self._row_maps = source, arrays or {}, row_maps or {}
        self._first = starts_of(source.lengths)

    def read(self, name: str, index: int, begin: int, end: int) -> Array:
        """Return rows begin .. end - 1 of an array of episode `index`."""
        if name in self._arrays:
            first = int(self._first[index])
            view = self._arrays[name][first + begin : first + min(end, int(self.lengths[index]))]
            view.flags.writeable = False
            return view
        values = self._source.read(name, index, begin, end)
        return self._row_maps[name](values) if name in self._row_maps else values


def shared_names(sources: Sequence[EpisodeSource]) -> tuple[str, ...]:
    """Return the arrays that every source has."""
    return tuple(name for name in sources[0].names if all(name in s.names for s in sources))


def select(source: EpisodeSource, indices: Index) -> EpisodeSource:
    """Return some of the episodes; of a source in memory without copying its arrays."""
    if isinstance(source, MemorySource):
        return source.select(indices)
    return SubsetSource(source, indices)


def join(sources: Sequence[EpisodeSource], info: DatasetInfo) -> EpisodeSource:
    """Return the episodes of all sources; sources in memory are copied into one."""
    in_memory = [source for source in sources if isinstance(source, MemorySource)]
    if len(in_memory) < len(sources):
        return JoinedSource(sources, info)
    names = shared_names(sources)
    before = {
        name: starts_of(np.array([len(source.arrays[name]) for source in in_memory], np.int64))
        for name in names
    }
    return MemorySource(
        arrays={name: np.concatenate([s.arrays[name] for s in in_memory]) for name in names},
        first={
            name: np.concatenate(
                [s.first[name] + start for s, start in zip(in_memory, before[name], strict=True)]
            )
            for name in names
        },
        rows={name: np.concatenate([s.rows[name] for s in in_memory]) for name in names},
        terminated=np.concatenate([source.terminated for source in in_memory]),
        truncated=np.concatenate([source.truncated for source in in_memory]),
        info=info,
    )


def with_steps(
    source: EpisodeSource, arrays: Mapping[str, Array], info: DatasetInfo
) -> EpisodeSource:
    """Return a source with flat arrays of steps, in the order of episodes, exchanged."""
    if not isinstance(source, MemorySource):
        return ChangedSource(source, info, arrays=arrays)
    first = starts_of(source.lengths)
    return MemorySource(
        arrays={**source.arrays, **arrays},
        first={**source.first, **dict.fromkeys(arrays, first)},
        rows={**source.rows, **dict.fromkeys(arrays, source.lengths)},
        terminated=source.terminated,
        truncated=source.truncated,
        info=info,
    )


def with_row_maps(
    source: EpisodeSource, row_maps: Mapping[str, RowMap], info: DatasetInfo
) -> EpisodeSource:
    """Return a source with the rows of some arrays passed through functions."""
    if not isinstance(source, MemorySource):
        return ChangedSource(source, info, row_maps=row_maps)
    mapped = {name: function(source.arrays[name]) for name, function in row_maps.items()}
    return source.replace(mapped, info)


def with_info(source: EpisodeSource, info: DatasetInfo) -> EpisodeSource:
    """Return a source with another `info`."""
    if isinstance(source, MemorySource):
        return source.replace({}, info)
    return ChangedSource(source, info)


def noted(info: DatasetInfo, **change: object) -> DatasetInfo:
    """Return `info` with a change of the data written down in its generator."""
    changes = [*info.generator.get("changes", []), change]
    return replace(info, generator={**info.generator, "changes": changes})
