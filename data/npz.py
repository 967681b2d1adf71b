"""Plain npz files with the arrays of D4RL, and several observations if there are.

    observations or observations/KEY, actions, rewards, terminals
    [, timeouts, next_observations or next_observations/KEY, infos/KEY]

What we write beyond that is JSON in the entry "statewise".
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from statewise.data import checks
from statewise.data.d4rl import (
    check_writable,
    flat_flags,
    next_rows,
    step_rows,
    unknown_final_steps,
)
from statewise.data.dataset import EpisodeDataset
from statewise.data.description import info_from, info_text
from statewise.data.episode import Array, DatasetInfo
from statewise.data.errors import DataConfigError
from statewise.data.files import npz_arrays, npz_headers, replacing, sha256_of, write_npz_arrays
from statewise.data.flat import Mode, ReadConfig
from statewise.data.flat_read import UNKNOWN_FINAL, default_budget, episodes_from_flat
from statewise.data.memory import observation_names

_ENTRY = "statewise"


def read_npz(
    path: Path | str, *, mode: Mode = "memory", config: ReadConfig | None = None
) -> EpisodeDataset:
    """Read an npz of flat arrays.

    Args:
        path: of the file, which is not changed.
        mode: "memory"; an archive cannot be read in pieces.
        config: how to read it, without a `task`; None is the default.

    Raises:
        DataConfigError: another mode, or a task.
        DatasetError: one of its subclasses; see `statewise.data.errors`.
    """
    path, config = Path(path), config or ReadConfig()
    if mode != "memory":
        raise DataConfigError(
            f"expected 'memory' for npz, got {mode!r}",
            file=path,
            key="mode",
            hint="convert it to HDF5",
        )
    if config.task is not None:
        raise DataConfigError(
            f"expected none for npz, got {config.task!r}",
            file=path,
            key="task",
            hint="only files of D4RL belong to its tasks",
        )
    headers = npz_headers(path)
    required = sum(int(np.prod(shape)) * dtype.itemsize for shape, dtype in headers.values())
    # Twice: the arrays of the archive, and the episodes made of them.
    budget = config.memory_budget or default_budget()
    lazily = "convert it to HDF5 and read with mode='lazy'"
    checks.check_memory(2 * required, budget, path, lazily=lazily)
    arrays = npz_arrays(path)
    info = DatasetInfo(source=str(path), sha256=sha256_of(path))
    if _ENTRY in arrays:
        info = info_from(str(arrays.pop(_ENTRY)), info, _ENTRY)
    return EpisodeDataset(episodes_from_flat(arrays, info, config, mode=mode))


def write_npz(dataset: EpisodeDataset, path: Path | str, *, overwrite: bool = False) -> None:
    """Write a data set as a compressed npz; see `write_d4rl` for what is lost.

    Args:
        dataset: is read into memory.
        path: of the file to write; it appears when it is whole.
        overwrite: replace a file that is there.

    Raises:
        DatasetExists: there is a file and `overwrite` is False.
        EmptyDataset, NoEpisodeBoundary, SpecMismatch: the data do not fit into the layout.
        DatasetError: the disk is full or refuses.
    """
    source, path = dataset.source, Path(path)
    check_writable(source, path)
    observations = observation_names(source.names)
    arrays: dict[str, Array] = {_ENTRY: np.array(info_text(source.info)), **flat_flags(source)}
    for name in source.names:
        key = "observations" if observations == [name] else name
        arrays[key] = _whole(step_rows(source, name))
        if name in observations and source.has_final.any():
            arrays[f"next_{key}"] = _whole(next_rows(source, name))
    if source.has_final.any() and not source.has_final.all():
        arrays[UNKNOWN_FINAL] = unknown_final_steps(source)
    with replacing(path, overwrite=overwrite) as temporary:
        write_npz_arrays(temporary, arrays)


def _whole(parts: Iterator[Array]) -> Array:
    return np.concatenate(list(parts))
