"""Minari data sets: reading. `write_minari` is in `minari_write`.

Format: https://minari.farama.org, versions 0.4.0 to 0.5.4. Observations have one row more than
there are actions: the final one. The package minari is not needed.

Deviations:
    Floats are float32. Episodes that neither terminated nor were truncated are truncated, with
    a warning. Infos that are not a number per step in every episode are left out, text without
    a warning.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.data import checks
from statewise.data.episode import Array, DatasetInfo
from statewise.data.errors import (
    DatasetError,
    EmptyDataset,
    MinariCount,
    MinariEpisode,
    MinariName,
    MissingKey,
)
from statewise.data.files import sha256_of
from statewise.data.flat import Mode
from statewise.data.flat_read import default_budget
from statewise.data.memory import Index, MemorySource, starts_of
from statewise.data.minari_arrow import ArrowStore
from statewise.data.minari_hdf5 import Hdf5Store
from statewise.data.minari_layout import (
    METADATA,
    Store,
    Stored,
    find_folder,
    info_of,
    read_metadata,
)
from statewise.data.minari_spaces import Leaf, action_leaf, observation_leaves
from statewise.data.minari_write import MinariMetadata, write_minari

__all__ = ["MinariMetadata", "MinariSource", "read_minari", "write_minari"]

_FLAGS = ("terminations", "truncations")


class MinariSource:
    """An `EpisodeSource` that reads a Minari data set when asked; the file stays open.

    Args:
        store: the file.
        leaves: spaces by name of the array, "actions" among them.
        scan: what was found in the file.
        info: what is known beside the steps.
    """

    has_final: NDArray[np.bool_]

    def __init__(
        self, store: Store, leaves: Mapping[str, Leaf], scan: "_Scan", info: DatasetInfo
    ) -> None:
        self.info, self.names = info, (*leaves, "rewards", *scan.infos)
        self.lengths: Index = np.array(scan.lengths, np.int64)
        self.terminated = np.array(scan.terminated, np.bool_)
        self.truncated = np.array(scan.truncated, np.bool_)
        self.has_final = np.ones(len(scan.lengths), np.bool_)
        self._store, self._leaves, self._infos = store, dict(leaves), scan.infos

    def read(self, name: str, index: int, begin: int, end: int) -> Array:
        """Return rows begin .. end - 1 of an array of episode `index`.

        Raises:
            DatasetCorrupt: the file is damaged there.
            NonFinite, ActionRange: the rows hold what a data set must not.
        """
        values = self._store.read(name, index, begin, max(begin, end))
        if name in self._infos:
            return values.astype(self._infos[name].dtype, copy=False)
        file, key = self._store.file, f"episode[{index}]/{name}"
        if name == "rewards":
            values = values.reshape(-1).astype(np.float32)
        else:
            values = self._leaves[name].convert(values)
        checks.check_finite(key, values, file, begin)
        if name == "actions":
            checks.check_actions(values, self.info.action_spec, file, begin)
        return values

    def row(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return shape and dtype of the rows of an array."""
        if name in self._infos:
            return self._infos[name].shape, self._infos[name].dtype
        if name == "rewards":
            return (), np.dtype(np.float32)
        spec = self._leaves[name].spec
        return spec.shape, np.dtype(spec.dtype)

    def rows(self, name: str) -> Index:
        """Return (E,) how many rows an array has in each episode."""
        if name in self._infos:
            return np.array(self._infos[name].lengths, np.int64)
        return self.lengths + int(name.startswith("observations/"))


def read_minari(
    path_or_id: Path | str,
    *,
    mode: Mode = "memory",
    root: Path | str | None = None,
    memory_budget: int | None = None,
) -> MemorySource | MinariSource:
    """Read a Minari data set.

    Args:
        path_or_id: text is an id, "mujoco/hopper/expert-v0"; a `Path` is the folder of a set.
        mode: "memory" reads and checks everything and takes the sha256; "lazy" checks lengths
            and flags, leaves the file open, and checks the rest where it is read.
        root: folder of all sets; None means MINARI_DATASETS_PATH, else ~/.minari/datasets.
        memory_budget: bytes for mode "memory"; None is half of the machine's memory.

    Returns:
        An `EpisodeSource`. Every final observation is known.

    Raises:
        DatasetError: one of its subclasses; see `statewise.data.errors`.
    """
    checks.check_choice("mode", mode, ("memory", "lazy"))
    folder = find_folder(path_or_id, root)
    metadata = read_metadata(folder)
    if isinstance(path_or_id, str) and metadata["dataset_id"] != path_or_id:
        raise MinariName(
            f"expected {path_or_id}, got {metadata['dataset_id']!r}",
            file=folder / METADATA,
            key="dataset_id",
            hint="rename the folder, or correct the id",
        )
    source, close = _open(folder, metadata)
    if mode == "lazy":
        return source
    try:
        return _in_memory(source, memory_budget or default_budget())
    finally:
        close()


def _open(folder: Path, metadata: Mapping[str, Any]) -> tuple[MinariSource, Callable[[], None]]:
    """Return the source and the function that closes its file."""
    file = folder / METADATA
    observations = observation_leaves(metadata["observation_space"], file)
    action = action_leaf(metadata["action_space"], file)
    store: Hdf5Store | ArrowStore
    if metadata["data_format"] == "hdf5":
        jpeg = "jpeg" if metadata.get("jpeg_encoding", True) else "raw"
        store = Hdf5Store(folder, observations, action, jpeg_encoding=jpeg)
    else:
        store = ArrowStore(folder, observations, action, data_format=metadata["data_format"])
    leaves = {f"observations/{leaf.name}": leaf for leaf in observations} | {"actions": action}
    info = replace(
        info_of(metadata, folder),
        obs_specs={leaf.name: leaf.spec for leaf in observations},
        action_spec=action.spec,
    )
    try:
        scan = _scan(store, leaves, metadata, file)
        checks.check_episode_lengths(
            np.array(scan.lengths, np.int64), info.max_episode_steps, store.file
        )
    except DatasetError:
        store.close()
        raise
    return MinariSource(store, leaves, scan, info), store.close


def _in_memory(source: MinariSource, budget: int) -> MemorySource:
    """Copy everything into flat arrays.

    Raises:
        MemoryBudget: they would need more than `budget` bytes.
    """
    counts = {name: source.rows(name) for name in source.names}
    required = 0
    for name, count in counts.items():
        shape, dtype = source.row(name)
        required += int(count.sum()) * int(np.prod(shape)) * dtype.itemsize
    folder = Path(source.info.source)
    checks.check_memory(required, budget, folder)
    arrays = _copied(source, counts)
    slack = checks.check_actions(arrays["actions"], source.info.action_spec, folder)
    if slack:
        checks.warn(f"actions: {slack} rows exceed their bounds by up to 1e-3", folder)
    return MemorySource(
        arrays=arrays,
        first={name: starts_of(count) for name, count in counts.items()},
        rows=counts,
        terminated=source.terminated,
        truncated=source.truncated,
        info=replace(source.info, sha256=sha256_of(folder)),
    )


def _copied(source: MinariSource, counts: Mapping[str, Index]) -> dict[str, Array]:
    """Return the rows of all episodes by name, read episode by episode."""
    arrays = {}
    for name, count in counts.items():
        shape, dtype = source.row(name)
        arrays[name] = np.empty((int(count.sum()), *shape), dtype)
    begin = dict.fromkeys(counts, 0)
    for index in range(len(source.lengths)):
        for name, count in counts.items():
            end = begin[name] + int(count[index])
            arrays[name][begin[name] : end] = source.read(name, index, 0, int(count[index]))
            begin[name] = end
    return arrays


def _scan(
    store: Store, leaves: Mapping[str, Leaf], metadata: Mapping[str, Any], file: Path
) -> "_Scan":
    """Look at the lengths and flags of all episodes.

    Raises:
        MinariCount, MinariEpisode, MissingKey, SpecMismatch, ShapeError: they contradict each
            other or the metadata.
        EmptyDataset: no episode, or one without a step.
    """
    numbers, total = store.numbers(), metadata["total_episodes"]
    if numbers != list(range(total)):
        missing = sorted(set(range(total)) ^ set(numbers))[0]
        raise MinariCount(
            f"expected the episodes 0 .. {total - 1}, got {len(numbers)}",
            file=store.file,
            key="episode",
            index=missing,
            hint=f"correct total_episodes in {file.name}, or number them without gaps",
        )
    checks.check_some_episodes(total, store.file)
    scan = _Scan()
    for index in numbers:
        _scan_episode(store, leaves, index, scan)
    if sum(scan.lengths) != metadata["total_steps"]:
        raise MinariCount(
            f"expected {metadata['total_steps']} steps, got {sum(scan.lengths)} in the episodes",
            file=file,
            key="total_steps",
            hint="correct the number, or get the set again",
        )
    scan.leave_out_infos(store.file)
    return scan


def _scan_episode(store: Store, leaves: Mapping[str, Leaf], index: int, scan: "_Scan") -> None:
    arrays, file = store.arrays(index), store.file
    for name in (*leaves, "rewards", *_FLAGS):
        if name not in arrays:
            raise MissingKey(
                f"expected {name}, got {', '.join(arrays)}", file=file, key="episode", index=index
            )
    steps = arrays["rewards"].length
    if steps < 1:
        raise EmptyDataset("expected a step, got none", file=file, key="episode", index=index)
    for name in ("rewards", *_FLAGS):
        checks.check_numeric(f"episode[{index}]/{name}", arrays[name].dtype, file)
        shape = (arrays[name].length, *arrays[name].shape)
        checks.check_vector(f"episode[{index}]/{name}", shape, file)
    for name in (*leaves, *_FLAGS):
        expected = steps + int(name.startswith("observations/"))
        if arrays[name].length != expected:
            raise MinariEpisode(
                f"expected {expected} rows of {name} for {steps} rewards,"
                f" got {arrays[name].length}",
                file=file,
                key="episode",
                index=index,
                hint="the set was written by an old version: get a newer one",
            )
    for name, leaf in leaves.items():
        stored = arrays[name]
        key = f"episode[{index}]/{name}"
        checks.check_spec(key, stored.shape, stored.dtype, leaf.stored, file)
    _check_attributes(store.attributes(index), index, steps, file)
    scan.lengths.append(steps)
    flags = [_last_flag(store, name, index, steps) for name in _FLAGS]
    scan.terminated.append(flags[0])
    scan.truncated.append(flags[1] or not flags[0])
    scan.num_unmarked += not any(flags)
    for name, stored in arrays.items():
        if name.startswith("infos/") and stored.dtype.kind in "biuf":
            scan.add_info(name, stored, steps)


def _check_attributes(attributes: Mapping[str, Any], index: int, steps: int, file: Path) -> None:
    for key, expected in (("id", index), ("total_steps", steps)):
        found = attributes.get(key, expected)
        if not np.array_equal(found, expected):
            raise MinariCount(
                f"expected {key} {expected}, got {found}", file=file, key="episode", index=index
            )


def _last_flag(store: Store, name: str, index: int, steps: int) -> bool:
    """Return the last flag, the others of which must be False."""
    key = f"episode[{index}]/{name}"
    flags = checks.read_flags(key, store.read(name, index, 0, steps), store.file)
    if flags[:-1].any():
        raise MinariEpisode(
            f"expected {name} at the last of {steps} steps, got one at step {flags.argmax()}",
            file=store.file,
            key="episode",
            index=index,
            hint="cut the episode there",
        )
    return bool(flags[-1])


@dataclass(kw_only=True)
class _Info:
    """An array of infos, over all episodes so far."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    lengths: list[int]


@dataclass(kw_only=True)
class _Scan:
    """Lengths and flags of all episodes, and the infos that they share."""

    lengths: list[int] = field(default_factory=list)
    terminated: list[bool] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    num_unmarked: int = 0
    infos: dict[str, _Info] = field(default_factory=dict)
    unusable: set[str] = field(default_factory=set)

    def add_info(self, name: str, stored: Stored, steps: int) -> None:
        """See the info of the latest episode."""
        known = self.infos.setdefault(
            name, _Info(shape=stored.shape, dtype=stored.dtype, lengths=[])
        )
        known.lengths.append(stored.length)
        known.dtype = np.result_type(known.dtype, stored.dtype)
        if stored.length not in (steps, steps + 1) or stored.shape != known.shape:
            self.unusable.add(name)

    def leave_out_infos(self, file: Path) -> None:
        """Forget infos that some episode lacks or has otherwise, and warn of what was found."""
        total = len(self.lengths)
        self.unusable |= {name for name, i in self.infos.items() if len(i.lengths) != total}
        if self.unusable:
            names: Sequence[str] = sorted(self.unusable)
            checks.warn(f"{', '.join(names)}: left out: not per step in every episode", file)
        self.infos = {name: i for name, i in self.infos.items() if name not in self.unusable}
        if self.num_unmarked:
            checks.warn(
                f"{self.num_unmarked} of {total} episodes end without a flag: taken as truncated",
                file,
            )
