"""Reading flat arrays of steps once from front to back: checks, and copies into memory."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from statewise.data import checks
from statewise.data.episode import Array, DatasetInfo, EpisodeSource
from statewise.data.errors import EmptyDataset
from statewise.data.flat import (
    FlatArray,
    FlatSource,
    Mode,
    ReadConfig,
    checked_actions,
    next_key,
    shaped,
)
from statewise.data.memory import Index, MemorySource, consecutive, spec_of, starts_of
from statewise.data.row_checks import RowChecks
from statewise.data.split import Split, split_steps

_BLOCK = 2**23  # bytes that are read at a time
_LOOK = 2**14  # rows that are checked when a lazy source is opened
UNKNOWN_FINAL = "metadata/unknown_final_steps"
"""Ours: last steps of episodes whose row of next_observations means nothing."""


def episodes_from_flat(
    arrays: Mapping[str, FlatArray],
    info: DatasetInfo,
    config: ReadConfig,
    *,
    mode: Mode,
    maze: bool = False,
) -> EpisodeSource:
    """Make episodes of flat arrays, checking them.

    In memory everything is checked; a lazy source checks its flags, its first rows, and
    whatever it reads later.

    Args:
        arrays: by name in the file.
        info: what is known; `info.source` names the file in messages.
        config: how to read; `ends` "auto" counts as "flags".
        mode: "memory" or "lazy".
        maze: observations begin with a position that must not jump.

    Raises:
        DatasetError: one of its subclasses; see `statewise.data.errors`.
    """
    names = _names(arrays, info, config)
    info = _with_specs(arrays, names, info, config)
    split = _split(arrays, info, config)
    flat = _Flat(
        arrays=arrays,
        names=names,
        split=split,
        has_final=_known_finals(arrays, names, split),
        info=info,
        repair=config.repair,
    )
    rows = RowChecks(info, split.borders, maze=maze)
    if mode == "lazy":
        return _lazy_source(flat, rows)
    budget = config.memory_budget or default_budget()
    return _memory_source(flat, rows, budget)


def default_budget() -> int:
    """Return half of the memory of this machine, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _names(
    arrays: Mapping[str, FlatArray], info: DatasetInfo, config: ReadConfig
) -> dict[str, str]:
    """Return names of an `EpisodeSource` and where the file has them, checking shapes."""
    file: checks.File = info.source or None
    observations = [key for key in arrays if key.split("/")[0] == "observations"]
    present = {*arrays, *(key.split("/")[0] for key in observations)}
    checks.check_keys(present, ("observations", "actions", "rewards", "terminals"), file)
    single = next(iter(info.obs_specs), "obs") if len(info.obs_specs) <= 1 else "obs"
    names = {f"observations/{key.partition('/')[2] or single}": key for key in sorted(observations)}
    names |= {"actions": "actions", "rewards": "rewards"}
    if config.infos == "keep":
        names |= {key: key for key in sorted(arrays) if key.startswith("infos/")}
    beside = [next_key(key) for key in observations if next_key(key) in arrays]
    beside += [key for key in ("terminals", "timeouts") if key in arrays]
    lengths = {}
    for key in (*names.values(), *beside):
        checks.check_numeric(key, arrays[key].dtype, file)
        shape = arrays[key].shape
        if key in ("rewards", "terminals", "timeouts"):
            checks.check_vector(key, shape, file)
        lengths[key] = shape[0] if shape else 0
    checks.check_equal_lengths(lengths, file)
    if lengths["rewards"] == 0:
        raise EmptyDataset("expected at least one step, got none", file=file, key="rewards")
    return names


def _with_specs(
    arrays: Mapping[str, FlatArray], names: Mapping[str, str], info: DatasetInfo, config: ReadConfig
) -> DatasetInfo:
    """Return `info` with specs of all arrays, checked against those that were declared."""
    file: checks.File = info.source or None
    declared = config.action_spec or info.action_spec
    action = shaped("actions", arrays["actions"][0:1])
    if declared is not None:
        checks.check_spec("actions", action.shape[1:], action.dtype, declared, file)
    specs = {}
    for name, key in names.items():
        if not name.startswith("observations/"):
            continue
        label, row = name.removeprefix("observations/"), shaped(name, arrays[key][0:1])
        specs[label] = spec_of(row, info.obs_specs.get(label))
        for each in (key, next_key(key)):
            if each in arrays:
                shape, dtype = arrays[each].shape[1:], arrays[each].dtype
                checks.check_spec(each, shape, dtype, specs[label], file)
    return replace(
        info,
        obs_specs=specs,
        action_spec=spec_of(action, declared),
        max_episode_steps=config.max_episode_steps or info.max_episode_steps,
    )


def _split(arrays: Mapping[str, FlatArray], info: DatasetInfo, config: ReadConfig) -> Split:
    file: checks.File = info.source or None
    whole = slice(0, arrays["rewards"].shape[0])
    flags = {
        key: checks.read_flags(key, arrays[key][whole], file)
        for key in ("terminals", "timeouts")
        if key in arrays
    }
    rewards = shaped("rewards", arrays["rewards"][whole]) if config.ends == "first_reward" else None
    return split_steps(
        flags["terminals"],
        flags.get("timeouts"),
        max_episode_steps=info.max_episode_steps,
        ends="flags" if config.ends == "auto" else config.ends,
        incomplete=config.incomplete,
        rewards=rewards,
        file=file,
    )


def _known_finals(
    arrays: Mapping[str, FlatArray], names: Mapping[str, str], split: Split
) -> NDArray[np.bool_]:
    """Return (E,) whether the observations after the last step are in the file."""
    observations = [key for name, key in names.items() if name.startswith("observations/")]
    if not all(next_key(key) in arrays for key in observations):
        return np.zeros(len(split.ends), np.bool_)
    if UNKNOWN_FINAL not in arrays:
        return np.ones(len(split.ends), np.bool_)
    unknown = arrays[UNKNOWN_FINAL]
    return ~np.isin(split.ends - 1, unknown[slice(0, unknown.shape[0])])


def _lazy_source(flat: "_Flat", rows: RowChecks) -> FlatSource:
    """Check the first rows only."""
    for name in flat.names:
        for offset, values, following in _blocks(flat, name, _LOOK):
            _check(flat, rows, name, offset, values, following)
    rows.finish(whole=False)
    return FlatSource(
        arrays=flat.arrays,
        names=flat.names,
        split=flat.split,
        has_final=flat.has_final,
        info=flat.info,
        repair=flat.repair,
    )


def _memory_source(flat: "_Flat", rows: RowChecks, budget: int) -> MemorySource:
    """Check and copy everything.

    Raises:
        MemoryBudget: the copies would need more than `budget` bytes.
    """
    split, file = flat.split, flat.info.source or None
    observed = split.lengths + flat.has_final
    counts = {
        name: observed if name.startswith("observations/") else split.lengths for name in flat.names
    }
    required = sum(
        int(counts[name].sum()) * shaped(name, flat.arrays[key][0:1]).nbytes
        for name, key in flat.names.items()
    )
    checks.check_memory(required, budget, file)
    copied = {name: _copy(flat, rows, name, counts[name]) for name in flat.names}
    rows.finish(whole=True)
    source = MemorySource(
        arrays=copied,
        first={name: starts_of(count) for name, count in counts.items()},
        rows=counts,
        terminated=split.terminated,
        truncated=split.truncated,
        info=flat.info,
    )
    checks.warn_of_repeats(_signatures(source), file)
    return source


def _blocks(flat: "_Flat", name: str, limit: int) -> Iterator[tuple[int, Array, Array | None]]:
    """Yield first row, rows, and following observations of an array, a few at a time."""
    key = flat.names[name]
    array = flat.arrays[key]
    following = flat.arrays.get(next_key(key)) if name.startswith("observations/") else None
    size = max(1, _BLOCK // max(1, array[0:1].nbytes))
    limit = min(limit, len(flat.split.borders))
    for begin in range(0, limit, size):
        rows = slice(begin, min(begin + size, limit))
        after = None if following is None else shaped(name, following[rows])
        yield begin, shaped(name, array[rows]), after


def _check(
    flat: "_Flat",
    rows: RowChecks,
    name: str,
    offset: int,
    values: Array,
    following: Array | None,
) -> Array:
    """Check a block; return it, with actions clipped if that was asked for."""
    if name.startswith("infos/"):
        return values
    key = flat.names[name]
    rows.finite(key, values, offset)
    if name == "actions":
        values, slack = checked_actions(values, flat.info, flat.repair, offset)
        rows.slack += slack
    elif name.startswith("observations/"):
        rows.observations(name, values, offset)
        if following is not None:
            rows.finite(next_key(key), following, offset)
            rows.aligned(name, values, following, offset)
    return values


def _copy(flat: "_Flat", rows: RowChecks, name: str, counts: Index) -> Array:
    """Return the rows of all episodes of one array, final observations included."""
    split, row = flat.split, shaped(name, flat.arrays[flat.names[name]][0:1])
    out = np.empty((int(counts.sum()), *row.shape[1:]), row.dtype)
    first = starts_of(counts)
    for begin, block, following in _blocks(flat, name, len(split.borders)):
        values = _check(flat, rows, name, begin, block, following)
        end = begin + len(values)
        some = slice(
            int(np.searchsorted(split.ends, begin, side="right")),
            int(np.searchsorted(split.starts, end)),
        )
        start = np.maximum(split.starts[some], begin)
        number = np.minimum(split.ends[some], end) - start
        target = consecutive(first[some] + start - split.starts[some], number)
        out[target] = values[consecutive(start - begin, number)]
        if following is not None:
            last = split.ends[some] - 1
            here = (last < end) & (counts[some] > split.lengths[some])
            out[(first + counts - 1)[some][here]] = following[last[here] - begin]
    return out


def _signatures(source: MemorySource) -> list[bytes]:
    """Return the first, middle and last rows of each episode as bytes.

    Nothing for choices or pictures, of which honest data may hold the same twice.
    """
    names = [name for name in source.names if name.startswith(("observations/", "actions"))]
    if any(source.arrays[name].dtype.kind != "f" for name in names):
        return []
    found = []
    for index, steps in enumerate(source.lengths.tolist()):
        rows = [
            source.read(name, index, row, row + 1).tobytes()
            for name in names
            for row in (0, steps // 2, steps - 1)
        ]
        found.append(steps.to_bytes(8, "little") + b"".join(rows))
    return found


@dataclass(frozen=True, kw_only=True)
class _Flat:
    """Arrays and what was found out about them; fields as in `FlatSource`."""

    arrays: Mapping[str, FlatArray]
    names: Mapping[str, str]
    split: Split
    has_final: NDArray[np.bool_]
    info: DatasetInfo
    repair: str
