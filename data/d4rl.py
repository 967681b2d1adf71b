"""D4RL files: flat arrays of steps in HDF5.

Paper: Fu et al. 2020, "D4RL: Datasets for Deep Data-Driven Reinforcement Learning".

    observations (N, S)   actions (N, A)   rewards (N,)   terminals (N,)   timeouts (N,)
    next_observations (N, S)   infos/... (N, ...)   metadata/...

Deviations:
    Episodes without timeouts are cut at the right step (see `split`), and their final
    observations are kept. AntMaze is cut at timeouts only: a reached goal does not end its
    episodes. What we write beyond the layout is in the attribute "statewise" of the file.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from statewise.data import checks
from statewise.data.d4rl_tasks import (
    LOCOMOTION,
    MAZES,
    Task,
    family_of,
    find_task,
    named_task,
    task_specs,
    warn_of_defects,
    warn_of_other_returns,
)
from statewise.data.dataset import EpisodeDataset
from statewise.data.description import info_from, info_text
from statewise.data.episode import Array, DatasetInfo, EpisodeSource
from statewise.data.errors import DatasetError, NoEpisodeBoundary, SpecMismatch
from statewise.data.files import (
    Hdf5Array,
    hdf5_arrays,
    open_hdf5,
    replacing,
    safe_name,
    sha256_of,
)
from statewise.data.flat import Mode, ReadConfig
from statewise.data.flat_read import UNKNOWN_FINAL, episodes_from_flat
from statewise.data.memory import observation_names
from statewise.data.scores import REFERENCE_SCORES

_ATTRIBUTE = "statewise"
_ATTRIBUTE_SIZE = 60_000  # characters; HDF5 stores attributes of less than 64 KiB
_CHUNK = 2**17  # bytes
_BLOCK = 2**22  # bytes that are written at a time


def read_d4rl(
    path: Path | str, *, mode: Mode = "memory", config: ReadConfig | None = None
) -> EpisodeDataset:
    """Read a D4RL file.

    Args:
        path: of the file, which is not changed.
        mode: "memory" reads and checks everything and takes the sha256; "lazy" keeps flags and
            offsets only, leaves the file open, and checks what it reads.
        config: how to read it; None is the default.

    Raises:
        DatasetError: one of its subclasses; see `statewise.data.errors`.
    """
    path, config = Path(path), config or ReadConfig()
    file = open_hdf5(path)
    try:
        task = named_task(config.task) if config.task else find_task(path.stem)
        arrays = {key: Hdf5Array(stored, path) for key, stored in hdf5_arrays(file).items()}
        info = _read_info(file, arrays, path, task)
        if mode == "memory":
            info = replace(info, sha256=sha256_of(path))
        family = "" if task is None else family_of(task)
        if config.ends == "auto":
            config = replace(config, ends="timeouts" if family == "antmaze" else "flags")
        source = episodes_from_flat(arrays, info, config, mode=mode, maze=family in MAZES)
    except DatasetError:
        file.close()
        raise
    if mode == "memory":
        file.close()
    dataset = EpisodeDataset(source)
    if task is not None:
        warn_of_defects(task, path)
        if mode == "memory":
            warn_of_other_returns(task, float(dataset.returns.mean()), path)
    return dataset


def _read_info(
    file: h5py.File, arrays: dict[str, Hdf5Array], path: Path, task: Task | None
) -> DatasetInfo:
    """Return what our attribute says, else what is known of the task, and the metadata."""
    info = DatasetInfo(source=str(path))
    text = file.attrs.get(_ATTRIBUTE)
    if isinstance(text, str):
        return info_from(text, info, _ATTRIBUTE)
    info = replace(info, generator=_metadata(arrays))
    if task is None:
        return info
    observation, action = task_specs(task)
    ref_min, ref_max = REFERENCE_SCORES.get(task.name, (None, None))
    is_certain = family_of(task) in LOCOMOTION or "timeouts" not in arrays
    return replace(
        info,
        env_id=task.name,
        obs_specs={"obs": observation},
        action_spec=action,
        max_episode_steps=task.max_episode_steps if is_certain else None,
        ref_min=ref_min,
        ref_max=ref_max,
    )


def _metadata(arrays: dict[str, Hdf5Array]) -> dict[str, Any]:
    """Return text and single numbers below metadata/; weights of policies are left out."""
    found: dict[str, Any] = {}
    for key, array in arrays.items():
        if not key.startswith("metadata/") or array.shape not in ((), (1,)):
            continue
        value = np.asarray(array[...]).reshape(-1)[0]
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        found[key.removeprefix("metadata/")] = value.item() if hasattr(value, "item") else value
    return found


def write_d4rl(dataset: EpisodeDataset, path: Path | str, *, overwrite: bool = False) -> None:
    """Write a data set as D4RL does: flat arrays, gzip.

    A step that is terminated and truncated is written as terminal. Infos lose the row of a
    final observation, for which the layout has no place; observations keep theirs as
    `next_observations`.

    Args:
        dataset: with one array of observations.
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
    if len(observations) != 1:
        raise SpecMismatch(
            f"expected one array of observations, got {', '.join(observations)}",
            file=path,
            hint="write npz or Minari",
        )
    text = info_text(source.info)
    if len(text) > _ATTRIBUTE_SIZE:
        problem = f"expected at most {_ATTRIBUTE_SIZE} characters, got {len(text)}"
        raise SpecMismatch(problem, file=path, key="generator", hint="store less in info")
    with replacing(path, overwrite=overwrite) as temporary, h5py.File(temporary, "x") as file:
        file.attrs[_ATTRIBUTE] = text
        for key, value in _flat_metadata(source.info.generator).items():
            file[f"metadata/{key}"] = value
        for key, value in flat_flags(source).items():
            _write(file, key, len(value), iter([value]))
        steps = dataset.num_steps
        for name in source.names:
            key = "observations" if name in observations else name
            _write(file, key, steps, step_rows(source, name))
        if source.has_final.any():
            _write(file, "next_observations", steps, next_rows(source, observations[0]))
            unknown = unknown_final_steps(source)
            if len(unknown):
                file[UNKNOWN_FINAL] = unknown


def check_writable(source: EpisodeSource, path: Path) -> None:
    """Check that flat arrays of steps can hold a source.

    Raises:
        EmptyDataset: there is no episode.
        NoEpisodeBoundary: an episode neither terminated nor was truncated.
        SpecMismatch: an array of text or objects.
    """
    checks.check_some_episodes(len(source.lengths), path)
    unmarked = ~(source.terminated | source.truncated)
    if unmarked.any():
        raise NoEpisodeBoundary(
            "expected a terminated or truncated episode, got neither",
            file=path,
            key="episode",
            index=int(unmarked.argmax()),
            hint="mark it truncated",
        )
    for name in source.names:
        checks.check_numeric(name, source.read(name, 0, 0, 1).dtype, path)


def flat_flags(source: EpisodeSource) -> dict[str, Array]:
    """Return terminals and timeouts (N,) of all steps; no step is both."""
    last = np.cumsum(source.lengths) - 1
    terminals = np.zeros(int(source.lengths.sum()), np.bool_)
    timeouts = np.zeros_like(terminals)
    terminals[last] = source.terminated
    timeouts[last] = source.truncated & ~source.terminated
    return {"terminals": terminals, "timeouts": timeouts}


def step_rows(source: EpisodeSource, name: str) -> Iterator[Array]:
    """Yield the rows of an array at which there was an action, episode by episode."""
    for index, steps in enumerate(source.lengths.tolist()):
        yield source.read(name, index, 0, steps)


def next_rows(source: EpisodeSource, name: str) -> Iterator[Array]:
    """Yield what followed these rows; the last one again where its follower is not known."""
    for index, steps in enumerate(source.lengths.tolist()):
        rows = source.read(name, index, 1, steps + 1)
        if not source.has_final[index]:
            rows = np.concatenate([rows, source.read(name, index, steps - 1, steps)])
        yield rows


def unknown_final_steps(source: EpisodeSource) -> Array:
    """Return the flat numbers of last steps whose next observation is not known."""
    return (np.cumsum(source.lengths) - 1)[~source.has_final]


def _write(file: h5py.File, key: str, steps: int, parts: Iterator[Array]) -> None:
    """Write rows into a new array of N steps, several parts at a time."""
    stored: h5py.Dataset | None = None
    waiting: list[Array] = []
    size = begin = 0
    for part in parts:
        if stored is None:
            rows = max(1, min(steps, _CHUNK // max(1, part[:1].nbytes)))
            shape, chunks = (steps, *part.shape[1:]), (rows, *part.shape[1:])
            stored = file.create_dataset(key, shape, part.dtype, chunks=chunks, compression="gzip")
        waiting.append(part)
        size += part.nbytes
        begin += len(part)
        if size >= _BLOCK or begin == steps:
            values = np.concatenate(waiting)
            stored[begin - len(values) : begin] = values
            waiting, size = [], 0


def _flat_metadata(generator: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return text and numbers of nested settings with keys joined by slashes."""
    found: dict[str, Any] = {}
    for key, value in generator.items():
        path = safe_name(f"{prefix}{key}")
        if isinstance(value, dict):
            found |= _flat_metadata(value, f"{path}/")
        elif isinstance(value, str | bool | int | float):
            found[path] = value
    return found
