"""Splitting flat steps into episodes, against a loop that reads one step at a time."""

import warnings
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from statewise.data.errors import (
    DatasetWarning,
    EmptyDataset,
    EpisodeTooLong,
    NoEpisodeBoundary,
)
from statewise.data.split import split_steps


def flags(*numbers: int, size: int) -> NDArray[np.bool_]:
    values = np.zeros(size, np.bool_)
    values[list(numbers)] = True
    return values


def slow_split(
    terminals: NDArray[np.bool_],
    timeouts: NDArray[np.bool_] | None,
    limit: int | None,
    *,
    keep: bool,
) -> tuple[list[tuple[int, int, bool]], int]:
    """Return (start, end, terminated) of each episode, and the number of steps left over."""
    by_flag = timeouts is not None and bool(timeouts.any())
    episodes, start = [], 0
    for t in range(len(terminals)):
        count = t - start + 1
        cut = bool(timeouts[t]) if timeouts is not None and by_flag else count == limit
        if terminals[t] or cut:
            episodes.append((start, t + 1, bool(terminals[t])))
            start = t + 1
    left = len(terminals) - start
    if left and keep:
        episodes.append((start, len(terminals), False))
        left = 0
    return episodes, left


bits = st.lists(st.booleans(), min_size=1, max_size=30)


@settings(max_examples=300, deadline=None)
@given(st.data(), bits, st.booleans(), st.booleans())
def test_splitting_agrees_with_reading_step_by_step(
    data: Any, ends: list[bool], has_timeouts: bool, keep: bool
) -> None:
    terminals = np.array(ends)
    cuts = data.draw(st.lists(st.booleans(), min_size=len(ends), max_size=len(ends)))
    timeouts = np.array(cuts) if has_timeouts else None
    by_flag = timeouts is not None and bool(timeouts.any())
    limit = None if by_flag else data.draw(st.integers(1, 8))
    expected, left = slow_split(terminals, timeouts, limit, keep=keep)
    settings_of = {"max_episode_steps": limit, "incomplete": "keep" if keep else "drop"}
    if not expected:
        with pytest.raises(EmptyDataset, match="incomplete='keep'"):
            split_steps(terminals, timeouts, **settings_of)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DatasetWarning)
        split = split_steps(terminals, timeouts, **settings_of)
    found = zip(split.starts.tolist(), split.ends.tolist(), split.terminated.tolist(), strict=True)
    assert list(found) == expected
    assert split.dropped_steps == left
    np.testing.assert_array_equal(split.truncated, ~split.terminated)


def test_two_episodes_of_1000_steps_without_timeouts_have_1000_steps_each() -> None:
    split = split_steps(np.zeros(2000, np.bool_), None, max_episode_steps=1000)
    assert split.lengths.tolist() == [1000, 1000]
    assert split.truncated.tolist() == [True, True]


def test_a_terminal_restarts_the_count_of_steps() -> None:
    split = split_steps(flags(3, size=14), None, max_episode_steps=5)
    assert split.lengths.tolist() == [4, 5, 5]
    assert split.terminated.tolist() == [True, False, False]


def test_a_step_that_is_both_counts_as_terminal_with_a_warning() -> None:
    with pytest.warns(DatasetWarning, match="timeouts: 1 steps are also terminal"):
        split = split_steps(flags(2, size=6), flags(2, 5, size=6))
    assert split.terminated.tolist() == [True, False]
    assert split.truncated.tolist() == [False, True]


def test_the_unfinished_tail_is_dropped_and_counted_unless_it_is_kept() -> None:
    ends = flags(3, size=10)
    dropped = split_steps(ends, flags(3, size=10) & ~ends | flags(6, size=10))
    assert (dropped.lengths.tolist(), dropped.dropped_steps) == ([4, 3], 3)
    kept = split_steps(ends, flags(6, size=10), incomplete="keep")
    assert (kept.lengths.tolist(), kept.dropped_steps) == ([4, 3, 3], 0)
    assert kept.truncated.tolist() == [False, True, True]
    assert kept.borders.tolist() == flags(3, 6, size=10).tolist()


def test_a_goal_that_is_reached_ends_an_episode_only_if_asked_for() -> None:
    terminals, timeouts = flags(1, 2, 5, size=8), flags(3, 7, size=8)
    rewards = terminals.astype(np.float32)
    cut = split_steps(terminals, timeouts, ends="timeouts")
    assert cut.lengths.tolist() == [4, 4]
    assert not cut.terminated.any()
    first = split_steps(terminals, timeouts, ends="first_reward", rewards=rewards)
    assert first.starts.tolist() == [0, 4]
    assert first.ends.tolist() == [2, 6]
    assert first.terminated.all()
    assert not first.truncated.any()
    assert first.dropped_steps == 4


def test_an_episode_without_the_reward_stays_as_it_is() -> None:
    split = split_steps(
        flags(1, size=6),
        flags(2, 5, size=6),
        ends="first_reward",
        rewards=flags(1, size=6).astype(np.float32),
    )
    assert split.lengths.tolist() == [2, 3]
    assert split.terminated.tolist() == [True, False]
    assert split.truncated.tolist() == [False, True]


@pytest.mark.parametrize(
    ("timeouts", "key"), [(None, "terminals"), (np.zeros(4, bool), "timeouts")]
)
def test_no_flag_and_no_limit_is_an_error(timeouts: NDArray[np.bool_] | None, key: str) -> None:
    with pytest.raises(NoEpisodeBoundary, match=f"a.hdf5: {key}: .*give max_episode_steps"):
        split_steps(np.zeros(4, np.bool_), timeouts, file="a.hdf5")


def test_terminals_alone_warn_that_timeouts_may_be_missing() -> None:
    with pytest.warns(DatasetWarning, match="give max_episode_steps"):
        split = split_steps(flags(3, size=4), None)
    assert split.lengths.tolist() == [4]


@pytest.mark.parametrize("limit", [3, 4])
def test_an_episode_over_the_limit_is_an_error_and_one_at_the_limit_is_not(limit: int) -> None:
    expectation = (
        pytest.raises(EpisodeTooLong, match=r"episode\[1\]: expected at most 3 steps, got 4")
        if limit == 3
        else nullcontext()
    )
    with expectation:
        split_steps(flags(2, size=7), flags(6, size=7), max_episode_steps=limit)
