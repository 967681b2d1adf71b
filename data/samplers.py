"""Random batches of a data set: windows, whole episodes, and single transitions.

Every step of the data set is equally likely to be the one that is drawn: an episode comes with a
probability proportional to its length; in streams, which go on with the next one, all come equally
often. A sampler draws from the generator it is given and from
nothing else, so that its state is the generator's.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from statewise.data import checks
from statewise.data.dataset import EpisodeDataset
from statewise.data.episode import Array, EpisodeSource
from statewise.data.errors import DataConfigError, EmptyDataset
from statewise.data.memory import Index, MemorySource, observation_names
from statewise.data.rows import Rows, Stretches, all_returns_to_go, lay_out
from statewise.data.step import Step

Final = Literal["include", "exclude"]
StreamStart = Literal["any", "episode"]


class SampledBatch(NamedTuple):
    """Rows of a data set, padded on the right."""

    step: Step
    """(B, T, ...)."""
    rtg: Tensor
    """(B, T) float32: sum of rewards from here to the end of the WHOLE episode; 0 on padding."""
    timestep: Tensor
    """(B, T) int64 within the episode; 0 on padding."""
    episode: Tensor
    """(B,) int64 numbers of the episodes; of packed rows and streams (n,), line after line."""


class TransitionBatch(NamedTuple):
    """Steps and what followed them."""

    obs: dict[str, Tensor]
    """(B, ...) per key."""
    action: Tensor
    """(B, ...)."""
    reward: Tensor
    """(B,)."""
    next_obs: dict[str, Tensor]
    """(B, ...) per key; where an episode ended its own final observation. Where it terminated
    and that is not known, `obs` again, which no bootstrapping reads."""
    terminated: Tensor
    """(B,) bool."""
    truncated: Tensor
    """(B,) bool."""
    episode: Tensor
    """(B,) int64."""
    timestep: Tensor
    """(B,) int64."""


def _check_at_least_one(**values: int) -> None:
    for key, value in values.items():
        if value < 1:
            raise DataConfigError(f"expected at least 1, got {value}", key=key)


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """Settings of a `WindowSampler`.

    Raises:
        DataConfigError: a field is out of its range.
    """

    length: int = 20  # K >= 1, rows of a window
    batch_size: int = 64  # >= 1
    final: Final = "exclude"  # whether a known final observation is a row
    padding: Literal["right", "none"] = "right"  # none: only windows inside an episode

    def __post_init__(self) -> None:
        _check_at_least_one(length=self.length, batch_size=self.batch_size)
        checks.check_choice("final", self.final, get_args(Final))
        checks.check_choice("padding", self.padding, ("right", "none"))


@dataclass(frozen=True, kw_only=True)
class TrajectoryConfig:
    """Settings of a `TrajectorySampler`.

    Raises:
        DataConfigError: a field is out of its range.
    """

    batch_size: int = 64  # >= 1, episodes per batch
    final: Final = "exclude"  # whether a known final observation is a row
    buckets: int = 1  # >= 1 groups of like lengths; a batch is drawn within one of them
    packing: Literal["none", "rows"] = "none"  # rows: short episodes share a line

    def __post_init__(self) -> None:
        _check_at_least_one(batch_size=self.batch_size, buckets=self.buckets)
        checks.check_choice("final", self.final, get_args(Final))
        checks.check_choice("packing", self.packing, ("none", "rows"))


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Settings of a `StreamSampler`.

    Raises:
        DataConfigError: a field is out of its range.
    """

    length: int = 64  # T >= 1, rows of a line
    batch_size: int = 16  # >= 1, lines
    starts: StreamStart = "any"  # episode: lines begin with first rows of episodes
    final: Final = "include"  # whether a known final observation is a row

    def __post_init__(self) -> None:
        _check_at_least_one(length=self.length, batch_size=self.batch_size)
        checks.check_choice("final", self.final, get_args(Final))
        checks.check_choice("starts", self.starts, get_args(StreamStart))


@dataclass(frozen=True, kw_only=True)
class TransitionConfig:
    """Settings of a `TransitionSampler`.

    Raises:
        DataConfigError: a field is out of its range.
    """

    batch_size: int = 256  # >= 1

    def __post_init__(self) -> None:
        _check_at_least_one(batch_size=self.batch_size)


class Sampler(ABC):
    """Draws from a data set; its state is that of its generator.

    Raises:
        EmptyDataset: there is no episode.
    """

    def __init__(self, dataset: EpisodeDataset, generator: np.random.Generator) -> None:
        checks.check_some_episodes(len(dataset), dataset.info.source or None)
        self.source: EpisodeSource = dataset.source
        self.generator = generator

    @abstractmethod
    def sample(self) -> SampledBatch | TransitionBatch:
        """Draw the next batch."""

    def state_dict(self) -> dict[str, Any]:
        """Return what the next batches depend on."""
        return {"generator": self.generator.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the batches that would have come after `state_dict`.

        Raises:
            DataConfigError: the state is not that of such a generator.
        """
        try:
            self.generator.bit_generator.state = state["generator"]
        except (KeyError, TypeError, ValueError) as error:
            name = type(self.generator.bit_generator).__name__
            problem = f"expected the state of a {name}, got another"
            raise DataConfigError(problem, key="generator") from error

    def _available(self, final: Final) -> Index:
        """Return (E,) rows per episode."""
        extra = self.source.has_final if final == "include" else 0
        return self.source.lengths + extra


class WindowSampler(Sampler):
    """Windows of K rows that begin at any step of an episode and end with it.

    Args:
        dataset: with at least one episode.
        config: sizes and variants.
        generator: is drawn from.

    Raises:
        EmptyDataset: no episode, or without padding none of K rows.
    """

    def __init__(
        self, dataset: EpisodeDataset, config: WindowConfig, generator: np.random.Generator
    ) -> None:
        super().__init__(dataset, generator)
        self.config = config
        self._rows = self._available(config.final)
        starts = self.source.lengths
        if config.padding == "none":
            longest, file = int(self._rows.max()), dataset.info.source or None
            checks.check_window(longest, config.length, file)
            starts = np.clip(self._rows - config.length + 1, 0, starts)
        self._ends = np.cumsum(starts)
        self._known = _known_returns(self.source)

    def sample(self) -> SampledBatch:
        """Draw B windows, (B, K)."""
        size = self.config.batch_size
        drawn = self.generator.integers(self._ends[-1], size=size)
        episode, begin = _locate(self._ends, drawn)
        end = np.minimum(begin + self.config.length, self._rows[episode])
        stretches = Stretches(episode, begin, end, np.arange(size), np.zeros(size, np.int64))
        shape = (size, self.config.length)
        return _batch(lay_out(self.source, stretches, shape, known=self._known), episode)


class TrajectorySampler(Sampler):
    """Whole episodes, in lines as long as the longest of the batch.

    Args:
        dataset: with at least one episode.
        config: sizes and variants.
        generator: is drawn from.

    Raises:
        EmptyDataset: no episode.
    """

    def __init__(
        self, dataset: EpisodeDataset, config: TrajectoryConfig, generator: np.random.Generator
    ) -> None:
        super().__init__(dataset, generator)
        self.config = config
        self._rows = self._available(config.final)
        self._order: Index = np.argsort(self.source.lengths, kind="stable")
        self._ends = np.cumsum(self.source.lengths[self._order])
        self._borders = _bucket_borders(self._ends, config.buckets)
        self._known = _known_returns(self.source)
        self._num_rows = self._num_padding = 0

    @property
    def padding_share(self) -> float:
        """Share of the rows sampled so far that are padding; 0 before the first batch."""
        return self._num_padding / max(1, self._num_rows)

    def sample(self) -> SampledBatch:
        """Draw B episodes: (B, T), or fewer lines where they are packed."""
        total, size = int(self._ends[-1]), self.config.batch_size
        bucket = np.searchsorted(self._borders, self.generator.integers(total), side="right")
        low = 0 if bucket == 0 else self._borders[bucket - 1]
        drawn = self.generator.integers(low, self._borders[bucket], size=size)
        episode = self._order[_locate(self._ends, drawn)[0]]
        rows = self._rows[episode]
        width = int(rows.max())
        line, column = np.arange(size), np.zeros(size, np.int64)
        if self.config.packing == "rows":
            line, column = pack(rows, width)
            order = np.lexsort((column, line))
            episode, rows, line, column = (x[order] for x in (episode, rows, line, column))
        stretches = Stretches(episode, np.zeros(size, np.int64), rows, line, column)
        shape = (int(line.max()) + 1, width)
        laid_out = lay_out(self.source, stretches, shape, known=self._known)
        self._num_rows += laid_out.is_padding.size
        self._num_padding += int(laid_out.is_padding.sum())
        return _batch(laid_out, episode)


class StreamSampler(Sampler):
    """Lines of T rows, cut from an endless stream of episodes in random order.

    A line goes on over the ends of its episodes, each of which is drawn from all with equal
    chances, and is full: nothing is padding. Its last episode may be cut off, and with `starts`
    "any" also its first, whose memory is then not known: `reset`, but not `is_first`.

    Args:
        dataset: with at least one episode.
        config: sizes and variants.
        generator: is drawn from.

    Raises:
        EmptyDataset: no episode.
    """

    def __init__(
        self, dataset: EpisodeDataset, config: StreamConfig, generator: np.random.Generator
    ) -> None:
        super().__init__(dataset, generator)
        self.config = config
        self._rows = self._available(config.final)
        self._ends = np.cumsum(self._rows)
        self._known = _known_returns(self.source)

    def sample(self) -> SampledBatch:
        """Draw B lines, (B, T)."""
        size, length = self.config.batch_size, self.config.length
        line, column = np.arange(size), np.zeros(size, np.int64)
        if self.config.starts == "any":
            episode, begin = _locate(self._ends, self.generator.integers(self._ends[-1], size=size))
        else:
            episode, begin = self.generator.integers(len(self._rows), size=size), column
        pieces = []
        while len(line):
            end = np.minimum(self._rows[episode], begin + length - column)
            pieces.append(Stretches(episode, begin, end, line, column))
            column = column + end - begin
            line, column = line[column < length], column[column < length]
            episode = self.generator.integers(len(self._rows), size=len(line))
            begin = np.zeros(len(line), np.int64)
        joined = Stretches(*(np.concatenate(parts) for parts in zip(*pieces, strict=True)))
        order = np.lexsort((joined.column, joined.line))
        stretches = Stretches(*(part[order] for part in joined))
        rows = lay_out(self.source, stretches, (size, length), known=self._known)
        return _batch(rows, stretches.episode)


class TransitionSampler(Sampler):
    """Single steps with what followed them.

    The last step of an episode that was cut off is left out where its final observation is not
    known.

    Args:
        dataset: with at least one usable step.
        config: sizes.
        generator: is drawn from.

    Raises:
        EmptyDataset: no usable step.
    """

    def __init__(
        self, dataset: EpisodeDataset, config: TransitionConfig, generator: np.random.Generator
    ) -> None:
        super().__init__(dataset, generator)
        self.config = config
        unknown = ~self.source.has_final & ~self.source.terminated
        self._ends = np.cumsum(self.source.lengths - unknown)
        if self._ends[-1] == 0:
            raise EmptyDataset(
                "expected a step with a known next observation, got none",
                file=dataset.info.source or None,
                hint="use data that hold next_observations",
            )

    def sample(self) -> TransitionBatch:
        """Draw B transitions."""
        source = self.source
        drawn = self.generator.integers(self._ends[-1], size=self.config.batch_size)
        episode, row = _locate(self._ends, drawn)
        last = row == source.lengths[episode] - 1
        following = row + (~last | source.has_final[episode])

        def observed(rows: Index) -> dict[str, Tensor]:
            return {
                name.removeprefix("observations/"): _single(source, name, episode, rows)
                for name in observation_names(source.names)
            }

        return TransitionBatch(
            obs=observed(row),
            action=_single(source, "actions", episode, row),
            reward=_single(source, "rewards", episode, row),
            next_obs=observed(following),
            terminated=torch.from_numpy(last & source.terminated[episode]),
            truncated=torch.from_numpy(last & source.truncated[episode]),
            episode=torch.from_numpy(episode),
            timestep=torch.from_numpy(row),
        )


def pack(rows: Index, width: int) -> tuple[Index, Index]:
    """Return line and first column (n,) of n pieces, the longest first into the first gap.

    Args:
        rows: (n,) lengths, each 1 .. width.
        width: of a line.
    """
    line, column = np.zeros_like(rows), np.zeros_like(rows)
    used: list[int] = []
    for piece in np.argsort(-rows, kind="stable"):
        size = int(rows[piece])
        fits = (number for number, filled in enumerate(used) if filled + size <= width)
        number = next(fits, len(used))
        if number == len(used):
            used.append(0)
        line[piece], column[piece] = number, used[number]
        used[number] += size
    return line, column


def _locate(ends: Index, drawn: Index) -> tuple[Index, Index]:
    """Return the stretch and the place in it of numbers 0 .. ends[-1] - 1."""
    stretch = np.searchsorted(ends, drawn, side="right")
    before = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    return stretch, drawn - before[stretch]


def _bucket_borders(ends: Index, buckets: int) -> Index:
    """Return increasing ends of buckets of about as many steps each, at ends of episodes."""
    wanted = ends[-1] * np.arange(1, buckets + 1) // buckets
    borders: Index = np.unique(ends[np.searchsorted(ends, wanted)])
    return borders


def _known_returns(source: EpisodeSource) -> NDArray[np.float64] | None:
    return all_returns_to_go(source) if isinstance(source, MemorySource) else None


def _single(source: EpisodeSource, name: str, episode: Index, row: Index) -> Tensor:
    """Return single rows (B, ...) of an array."""
    if isinstance(source, MemorySource):
        return torch.from_numpy(np.asarray(source.gather(name, episode, row)))
    rows: list[Array] = [
        source.read(name, int(e), int(t), int(t) + 1) for e, t in zip(episode, row, strict=True)
    ]
    return torch.from_numpy(np.concatenate(rows))


def _batch(rows: Rows, episode: Index) -> SampledBatch:
    return SampledBatch(rows.step, rows.rtg, rows.timestep, torch.from_numpy(episode))
