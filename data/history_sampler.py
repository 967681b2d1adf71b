"""Windows of learning histories, which run on over the ends of their episodes.

A history is what a learner has lived through, episode after episode of one task. In a data set
its episodes follow one another, and `infos/history_episode` is the number of each, 0, 1, 2, ...;
a new history begins where that is 0. Rows are as `data.rows` has them, without final observations:

    row         0    1    2    3    4
    obs         A0   A1   B0   B1   C0        episodes of two steps
    is_first    1    .    1    .    1
    reset       1    .    .    .    .         at the left edge alone
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from statewise.data import checks
from statewise.data.dataset import EpisodeDataset
from statewise.data.errors import DataConfigError, EmptyDataset, MissingKey, SpecMismatch
from statewise.data.memory import Index, MemorySource
from statewise.data.rows import Stretches, all_returns_to_go, lay_out
from statewise.data.samplers import SampledBatch, Sampler

HISTORY_EPISODE = "history_episode"
HistoryStart = Literal["history", "episode"]


@dataclass(frozen=True, kw_only=True)
class HistoryConfig:
    """Settings of a `HistorySampler`.

    Raises:
        DataConfigError: a field is out of its range.
    """

    length: int | None = 160  # T >= 1, rows of a window; None: to the end of the history, padded
    batch_size: int = 32  # >= 1
    every: int = 1  # k >= 1: only every k-th episode of a history, so that it improves faster
    starts: HistoryStart = "history"  # of windows; episode: with any episode that leaves T rows

    def __post_init__(self) -> None:
        for key in ("length", "batch_size", "every"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise DataConfigError(f"expected at least 1, got {value}", key=key)
        checks.check_choice("starts", self.starts, get_args(HistoryStart))


class Chains(NamedTuple):
    """Episodes that follow one another in windows, chain after chain."""

    episode: Index
    """(E,) numbers of the episodes, each once."""
    begins: NDArray[np.bool_]
    """(E,) the first of a chain."""
    end: Index
    """(E,) the place behind the last of the chain that a place belongs to."""


def history_numbers(dataset: EpisodeDataset) -> Index:
    """Return (E,) the number of each episode within its history.

    Raises:
        MissingKey: the data do not say.
        SpecMismatch: the episodes of a history are not all there, one after the other.
    """
    source, file = dataset.source, dataset.info.source or None
    name = f"infos/{HISTORY_EPISODE}"
    if name not in source.names:
        raise MissingKey(
            f"expected this key, got {', '.join(source.names)}",
            file=file,
            key=name,
            hint="use learning histories: `statewise data make dark-room-histories`",
        )
    firsts = [source.read(name, index, 0, 1)[0] for index in range(len(source.lengths))]
    number = np.array(firsts).astype(np.int64)
    expected = np.concatenate([np.zeros(1, np.int64), number[:-1] + 1])
    wrong = np.flatnonzero((number != 0) & (number != expected))
    if wrong.size:
        at = int(wrong[0])
        raise SpecMismatch(
            f"expected 0 or {expected[at]}, the next of its history, got {number[at]}",
            file=file,
            key=name,
            index=at,
            hint="use whole histories in their order, without data.keep_best",
        )
    return number


def chains_of(number: Index, every: int) -> Chains:
    """Return the chains of histories: of each, those that begin with its first k episodes.

    Args:
        number: (E,) of the episodes within their histories.
        every: k >= 1, the distance of the episodes of a chain.
    """
    history = np.cumsum(number == 0)
    phase = number % every
    episode = np.lexsort((number, phase, history))
    begins = number[episode] < every
    ends = np.append(np.flatnonzero(begins)[1:], len(number))
    return Chains(episode, begins, ends[np.cumsum(begins) - 1])


class HistorySampler(Sampler):
    """Lines of T rows of one history each, whose memory is cleared at the left edge alone.

    Args:
        dataset: learning histories, at least one.
        config: sizes and variants.
        generator: is drawn from.

    Raises:
        EmptyDataset: no episode, or no history of T rows.
        MissingKey, SpecMismatch: the data are no histories, see `history_numbers`.
    """

    def __init__(
        self, dataset: EpisodeDataset, config: HistoryConfig, generator: np.random.Generator
    ) -> None:
        super().__init__(dataset, generator)
        self.config = config
        self._chains = chains_of(history_numbers(dataset), config.every)
        rows = self.source.lengths[self._chains.episode]
        until = np.cumsum(rows)
        self._left: Index = until[self._chains.end - 1] - until + rows
        is_start = self._chains.begins | (config.starts == "episode")
        self._starts = np.flatnonzero(is_start & (self._left >= (config.length or 1)))
        if not self._starts.size:
            raise EmptyDataset(
                f"expected a history of at least {config.length} steps, every {config.every}"
                f" episodes, got at most {self._left.max()}",
                file=dataset.info.source or None,
                hint="use a shorter window, or more episodes of a history",
            )
        source = self.source
        self._known = all_returns_to_go(source) if isinstance(source, MemorySource) else None

    def sample(self) -> SampledBatch:
        """Draw B windows, (B, T)."""
        drawn = self.generator.integers(len(self._starts), size=self.config.batch_size)
        place = self._starts[drawn]
        width = self.config.length or int(self._left[place].max())
        stretches = self._stretches(place, width)
        shape = (len(place), width)
        rows = lay_out(self.source, stretches, shape, known=self._known)
        joint = np.zeros(shape, np.bool_)
        joint[stretches.line, stretches.column] = stretches.column > 0
        step = rows.step._replace(reset=rows.step.reset & ~torch.from_numpy(joint))
        return SampledBatch(step, rows.rtg, rows.timestep, torch.from_numpy(stretches.episode))

    def _stretches(self, place: Index, width: int) -> Stretches:
        """Return the episodes, whole but for the last, that fill lines from these places on."""
        line, column, pieces = np.arange(len(place)), np.zeros(len(place), np.int64), list[Any]()
        while len(line):
            episode = self._chains.episode[place]
            count = np.minimum(self.source.lengths[episode], width - column)
            pieces.append((episode, np.zeros_like(count), count, line, column))
            column = column + count
            goes_on = (column < width) & (place + 1 < self._chains.end[place])
            place, line, column = (values[goes_on] for values in (place + 1, line, column))
        joined = [np.concatenate(parts) for parts in zip(*pieces, strict=True)]
        order = np.lexsort((joined[4], joined[3]))
        return Stretches(*(part[order] for part in joined))
