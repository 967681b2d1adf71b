"""Episodes in memory: one flat array per name, and where each episode begins in it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.data import checks
from statewise.data.episode import Array, ArraySpec, DatasetInfo, Episode
from statewise.data.errors import LengthMismatch, SpecMismatch

Index = NDArray[np.int64]


def canonical(values: Array) -> Array:
    """Return observations or actions with every floating width made float32."""
    if values.dtype.kind != "f":
        return values
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, and is found
        return values.astype(np.float32)


def starts_of(counts: Index) -> Index:
    """Return (E,) where each of E consecutive stretches of `counts` rows begins."""
    return np.cumsum(counts) - counts


def consecutive(first: Index, counts: Index) -> Index:
    """Return first[0], first[0] + 1, ... for counts[0] numbers, then those of first[1], ..."""
    within = np.arange(counts.sum()) - np.repeat(starts_of(counts), counts)
    rows: Index = np.repeat(first, counts) + within
    return rows


class MemorySource:
    """An `EpisodeSource` whose steps are in memory.

    Args:
        arrays: flat arrays by name, of any number of rows.
        first: (E,) per name, row of an array at which each episode begins.
        rows: (E,) per name, rows of each episode: its steps, one more where the final row is
            known.
        terminated: (E,).
        truncated: (E,).
        info: what is known beside the steps; missing specs are filled in.
    """

    def __init__(
        self,
        *,
        arrays: Mapping[str, Array],
        first: Mapping[str, Index],
        rows: Mapping[str, Index],
        terminated: NDArray[np.bool_],
        truncated: NDArray[np.bool_],
        info: DatasetInfo,
    ) -> None:
        self.arrays, self.first, self.rows = dict(arrays), dict(first), dict(rows)
        self.terminated, self.truncated = terminated, truncated
        self.names = tuple(arrays)
        self.lengths: Index = self.rows["rewards"]
        self.has_final: NDArray[np.bool_] = np.ones(len(self.lengths), np.bool_)
        for name in observation_names(self.names):
            self.has_final &= self.rows[name] > self.lengths
        self.info = complete_info(info, self.arrays)

    @classmethod
    def from_episodes(cls, episodes: Sequence[Episode], info: DatasetInfo) -> "MemorySource":
        """Copy episodes into flat arrays and check them.

        Floating observations and actions become float32. Infos that some episode lacks are
        left out.

        Raises:
            EmptyDataset: no episode, or one without steps.
            LengthMismatch, SpecMismatch, NonFinite, ActionRange, EpisodeTooLong: what an
                episode holds contradicts itself, another episode, or `info`.
        """
        checks.check_some_episodes(len(episodes), info.source or None)
        for number, episode in enumerate(episodes):
            _check_episode(episode, episodes[0], number, info.source or None)
        parts = _parts(episodes)
        rows = {
            name: np.array([len(part) for part in each], np.int64) for name, each in parts.items()
        }
        arrays = {name: np.concatenate(each) for name, each in parts.items()}
        source = cls(
            arrays=arrays,
            first={name: starts_of(count) for name, count in rows.items()},
            rows=rows,
            terminated=np.array([episode.terminated for episode in episodes], np.bool_),
            truncated=np.array([episode.truncated for episode in episodes], np.bool_),
            info=info,
        )
        _check_values(source)
        return source

    def read(self, name: str, index: int, begin: int, end: int) -> Array:
        """Return rows begin .. end - 1 of an array of episode `index`, a read-only view.

        Rows beyond those of the episode are left out.
        """
        first = self.first[name][index]
        view = self.arrays[name][first + begin : first + min(end, self.rows[name][index])]
        view.flags.writeable = False
        return view

    def gather(self, name: str, episode: Index, row: Index) -> Array:
        """Return a copy of single rows: (...) episodes and rows -> (..., *shape of a row)."""
        values: Array = self.arrays[name][self.first[name][episode] + row]
        return values

    def select(self, indices: Index) -> "MemorySource":
        """Return some of the episodes, in the order given, over the same arrays."""
        return MemorySource(
            arrays=self.arrays,
            first={name: first[indices] for name, first in self.first.items()},
            rows={name: rows[indices] for name, rows in self.rows.items()},
            terminated=self.terminated[indices],
            truncated=self.truncated[indices],
            info=self.info,
        )

    def replace(self, arrays: Mapping[str, Array], info: DatasetInfo) -> "MemorySource":
        """Return the same episodes with some arrays exchanged for others of as many rows."""
        return MemorySource(
            arrays={**self.arrays, **arrays},
            first=self.first,
            rows=self.rows,
            terminated=self.terminated,
            truncated=self.truncated,
            info=info,
        )


def observation_names(names: Sequence[str]) -> list[str]:
    """Return the names of the arrays that hold observations."""
    return [name for name in names if name.startswith("observations/")]


def spec_of(values: Array, declared: ArraySpec | None = None) -> ArraySpec:
    """Return what rows of an array (N, ...) are, with the bounds that were declared."""
    if declared is not None:
        return declared
    return ArraySpec(shape=values.shape[1:], dtype=str(values.dtype))


def complete_info(info: DatasetInfo, arrays: Mapping[str, Any]) -> DatasetInfo:
    """Return `info` with the specs that it lacks, taken from arrays (N, ...) by name."""
    specs = {
        name.removeprefix("observations/"): spec_of(
            arrays[name], info.obs_specs.get(name.removeprefix("observations/"))
        )
        for name in observation_names(tuple(arrays))
    }
    return replace(info, obs_specs=specs, action_spec=spec_of(arrays["actions"], info.action_spec))


def _parts(episodes: Sequence[Episode]) -> dict[str, list[Array]]:
    """Return the arrays of all episodes by name."""
    parts = {
        f"observations/{key}": [canonical(np.asarray(e.observations[key])) for e in episodes]
        for key in episodes[0].observations
    }
    parts["actions"] = [canonical(np.asarray(e.actions)) for e in episodes]
    parts["rewards"] = [np.asarray(e.rewards, np.float32).reshape(-1) for e in episodes]
    shared = [key for key in episodes[0].infos if all(key in e.infos for e in episodes)]
    for key in shared:
        parts[f"infos/{key}"] = [np.asarray(e.infos[key]) for e in episodes]
    return parts


def _check_episode(episode: Episode, pattern: Episode, number: int, file: checks.File) -> None:
    """Check lengths within an episode, and keys, shapes and dtypes against the first one."""
    checks.check_some_episodes(len(episode), file, hint=f"episode[{number}] has no step")
    checks.check_vector("rewards", np.shape(episode.rewards), file)
    if set(episode.observations) != set(pattern.observations) or not episode.observations:
        raise SpecMismatch(
            f"expected the observations {sorted(pattern.observations)},"
            f" got {sorted(episode.observations)}",
            file=file,
            key="episode",
            index=number,
            hint="give every episode the same keys, at least one",
        )
    _check_lengths(episode, number, file)
    pairs = {
        f"observations/{key}": (episode.observations[key], pattern.observations[key])
        for key in pattern.observations
    }
    pairs["actions"] = (episode.actions, pattern.actions)
    for name, (values, others) in pairs.items():
        checks.check_numeric(name, np.asarray(values).dtype, file)
        spec = spec_of(canonical(np.asarray(others)))
        checks.check_spec(name, values.shape[1:], values.dtype, spec, file)
    for key in set(episode.infos) & set(pattern.infos):
        values, others = np.asarray(episode.infos[key]), np.asarray(pattern.infos[key])
        if values.shape[1:] != others.shape[1:]:
            raise SpecMismatch(
                f"expected rows of shape {others.shape[1:]}, got {values.shape[1:]}",
                file=file,
                key=f"infos/{key}",
                index=number,
            )


def _check_lengths(episode: Episode, number: int, file: checks.File) -> None:
    steps = len(episode)
    allowed: dict[str, tuple[Array, tuple[int, ...]]] = {
        f"observations/{k}": (v, (steps, steps + 1)) for k, v in episode.observations.items()
    }
    allowed |= {f"infos/{k}": (v, (steps, steps + 1)) for k, v in episode.infos.items()}
    allowed["actions"] = (episode.actions, (steps,))
    for name, (values, lengths) in allowed.items():
        if len(values) not in lengths:
            raise LengthMismatch(
                f"expected {' or '.join(map(str, lengths))} rows of {name}, got {len(values)}",
                file=file,
                key="episode",
                index=number,
            )
    finals = {len(values) - steps for values in episode.observations.values()}
    if len(finals) > 1:
        raise LengthMismatch(
            "expected a final observation of every key or of none, got some",
            file=file,
            key="episode",
            index=number,
        )


def _check_values(source: MemorySource) -> None:
    """Check numbers against the specs of the source's info."""
    info, file = source.info, source.info.source or None
    for name in (*observation_names(source.names), "actions", "rewards"):
        checks.check_finite(name, source.arrays[name], file)
    for name in observation_names(source.names):
        values, key = source.arrays[name], name.removeprefix("observations/")
        checks.check_spec(name, values.shape[1:], values.dtype, info.obs_specs[key], file)
    actions = source.arrays["actions"]
    if info.action_spec is not None:
        checks.check_spec("actions", actions.shape[1:], actions.dtype, info.action_spec, file)
    slack = checks.check_actions(actions, info.action_spec, file)
    if slack:
        checks.warn(f"actions: {slack} rows exceed their bounds by up to 1e-3", file)
    checks.check_episode_lengths(source.lengths, info.max_episode_steps, file)
