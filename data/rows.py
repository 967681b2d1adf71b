"""From stretches of episodes to rows of `Step`: the one place that lays them out.

Row t of an episode of T steps holds observation t, action t and reward t. A known final
observation may follow as row T, with `valid` False, action 0 and reward 0. What a batch has left
is padding: all zeros, `valid` False. The first row of padding after a step that ended its episode
is marked `is_first` and `reset`, so that `to_arrival` does not take it for a final observation.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from statewise.data import checks
from statewise.data.episode import Array, EpisodeSource
from statewise.data.errors import ShapeError
from statewise.data.memory import Index, MemorySource, consecutive, observation_names, starts_of
from statewise.data.step import Step


class Stretches(NamedTuple):
    """Rows begin .. end - 1 of n episodes, and where a batch has them; all (n,) int64."""

    episode: Index
    begin: Index
    end: Index
    """At most T, or T + 1 where the final observation is known."""
    line: Index
    """Of the batch."""
    column: Index
    """Of the first row."""


class Rows(NamedTuple):
    """Laid-out rows, (B, T, ...)."""

    step: Step
    rtg: Tensor
    """(B, T) float: rewards from here to the end of the whole episode; 0 on final rows."""
    timestep: Tensor
    """(B, T) int64 within the episode; T on its final row."""
    is_padding: NDArray[np.bool_]
    """(B, T)."""


def returns_to_go(rewards: Array, discount: float = 1.0) -> NDArray[np.float64]:
    """Return (T,) the discounted sums of rewards from each step to the end.

        R_t = r_t + discount * R_{t+1},   R_T = 0

    Args:
        rewards: (T,).
        discount: in (0, 1].

    Raises:
        DataConfigError: the discount is out of its range.
        ShapeError: rewards are no vector.
    """
    checks.check_discount(discount)
    if rewards.ndim != 1:
        raise ShapeError(f"expected shape (T,), got {rewards.shape}", key="rewards")
    if discount == 1:
        return np.cumsum(rewards[::-1], dtype=np.float64)[::-1]
    sums = np.zeros(len(rewards) + 1)
    for t in range(len(rewards) - 1, -1, -1):
        sums[t] = rewards[t] + discount * sums[t + 1]
    return sums[:-1]


def all_returns_to_go(source: MemorySource) -> NDArray[np.float64]:
    """Return (N,) undiscounted returns to go of all steps in the order of episodes."""
    parts = [
        returns_to_go(source.read("rewards", index, 0, int(steps)))
        for index, steps in enumerate(source.lengths)
    ]
    return np.concatenate(parts)


def _targets(stretches: Stretches, counts: Index, width: int) -> Index:
    """Return the flat rows of a batch of `width` columns that the stretches fill."""
    return consecutive(stretches.line * width + stretches.column, counts)


def _fill(source: EpisodeSource, name: str, stretches: Stretches, shape: tuple[int, int]) -> Array:
    """Return (B, T, ...) with rows of an array where the stretches are, 0 elsewhere."""
    counts = stretches.end - stretches.begin
    if name in ("actions", "rewards"):
        counts = np.minimum(stretches.end, source.lengths[stretches.episode]) - stretches.begin
    if isinstance(source, MemorySource):
        first = source.first[name][stretches.episode] + stretches.begin
        values = source.arrays[name][consecutive(first, counts)]
    else:
        values = np.concatenate(
            [
                source.read(name, int(episode), int(begin), int(begin + count))
                for episode, begin, count in zip(
                    stretches.episode, stretches.begin, counts, strict=True
                )
            ]
        )
    out = np.zeros((shape[0] * shape[1], *values.shape[1:]), values.dtype)
    out[_targets(stretches, counts, shape[1])] = values
    return out.reshape(*shape, *values.shape[1:])


def _returns_to_go(
    source: EpisodeSource, stretches: Stretches, known: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """Return the returns to go of the stretches' steps, one after the other."""
    lengths = source.lengths[stretches.episode]
    counts = np.minimum(stretches.end, lengths) - stretches.begin
    if known is not None:
        first = starts_of(source.lengths)[stretches.episode] + stretches.begin
        return known[consecutive(first, counts)]
    parts = []
    for episode, begin, count, steps in zip(
        stretches.episode, stretches.begin, counts, lengths, strict=True
    ):
        rewards = source.read("rewards", int(episode), int(begin), int(steps))
        parts.append(returns_to_go(rewards)[:count])
    return np.concatenate(parts)


def lay_out(
    source: EpisodeSource,
    stretches: Stretches,
    shape: tuple[int, int],
    *,
    known: NDArray[np.float64] | None = None,
) -> Rows:
    """Read stretches of episodes into the rows of a batch.

    The first row of every stretch has `reset`: the memory before it is not known, or of another
    episode.

    Args:
        source: where the steps are.
        stretches: which rows, and where they go; they must not overlap.
        shape: (B, T) of the batch.
        known: (N,) returns to go of all steps, if the caller has them.
    """
    counts = stretches.end - stretches.begin
    lengths = np.repeat(source.lengths[stretches.episode], counts)
    target = _targets(stretches, counts, shape[1])
    number = consecutive(stretches.begin, counts)

    def spread(values: Any, dtype: Any, rows: Array = target) -> Array:
        out = np.zeros(shape[0] * shape[1], dtype)
        out[rows] = values
        return out.reshape(shape)

    occupied = spread(True, np.bool_)
    last = number == lengths - 1
    ends = {
        name: spread(last & np.repeat(getattr(source, name)[stretches.episode], counts), np.bool_)
        for name in ("terminated", "truncated")
    }
    after_end = np.zeros(shape, np.bool_)
    after_end[:, 1:] = (ends["terminated"] | ends["truncated"])[:, :-1] & ~occupied[:, 1:]
    reset = spread(True, np.bool_, stretches.line * shape[1] + stretches.column) | after_end
    is_step = number < lengths
    rtg = spread(_returns_to_go(source, stretches, known), np.float32, target[is_step])
    step = Step(
        obs={
            name.removeprefix("observations/"): _tensor(_fill(source, name, stretches, shape))
            for name in observation_names(source.names)
        },
        is_first=_tensor(spread(number == 0, np.bool_) | after_end),
        reset=_tensor(reset),
        action=_tensor(_fill(source, "actions", stretches, shape)),
        reward=_tensor(_fill(source, "rewards", stretches, shape)),
        terminated=_tensor(ends["terminated"]),
        truncated=_tensor(ends["truncated"]),
        valid=_tensor(spread(is_step, np.bool_)),
    )
    return Rows(step, _tensor(rtg), _tensor(spread(number, np.int64)), ~occupied)


def _tensor(values: Array) -> Tensor:
    return torch.from_numpy(values)
