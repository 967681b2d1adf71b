"""Replay: every window is a piece of one stream, all starts are equal, flags are as stored."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from statewise.agents.sac_losses import following
from statewise.data import Step, to_arrival
from statewise.data.replay_sampler import ReplayTooSmall
from tests.data.replay_streams import (
    SPEC,
    WITH_STATE,
    Streams,
    assert_same_batch,
    line,
    make,
    rng,
    stream,
    together,
)

STATES = ({"replay_state": "zero"}, {"replay_state": "burn_in", "burn_in": 2})
chunks = st.lists(
    st.tuples(st.integers(1, 25), st.sampled_from([None, [0], [2], [2, 0], [1]])), max_size=8
)


@settings(max_examples=50)
@example(2, [(8, None)], 6, STATES[0], "episode", [1])  # no room for a window, in a full ring
@given(
    st.integers(2, 12),
    chunks,
    st.integers(1, 6),
    st.sampled_from(STATES),
    st.sampled_from(["any", "episode"]),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
)
def test_the_windows_are_exactly_the_pieces_of_each_stream(
    kept: int, appended: Any, length: int, state: Any, starts: Any, lengths: list[int]
) -> None:
    """Frequency-based weights draw every start once, so that all of them can be compared."""
    made = make(kept, 3, starts=starts, weights="dfs", **state)
    streams = Streams(made.replay, lengths)
    for rows, workers in appended:
        streams.append(rows, workers)
    expected = streams.starts(length + made.replay.config.burn_in, kept)
    if starts == "episode":
        expected = {(w, n) for w, n in expected if bool(stream(w, [n], lengths).is_first)}
    assert streams.replay.num_starts(length) == len(expected)
    assert len(streams.replay) == sum(min(kept, len(rows)) for rows in streams.rows)
    if not expected:
        with pytest.raises(ReplayTooSmall, match="rows held by 3 workers"):
            streams.replay.sample(1, length, rng())
        return
    batch = streams.replay.sample(len(expected), length, rng())
    assert batch.step.valid.shape == (len(expected), length + made.replay.config.burn_in)
    assert streams.check_windows(batch, kept) == expected


@settings(max_examples=25)
@given(chunks, st.integers(1, 6), st.integers(0, 99))
def test_uniform_windows_are_pieces_of_a_stream(appended: Any, length: int, seed: int) -> None:
    streams = make(9, 3)
    streams.append(10)
    for rows, workers in appended:
        streams.append(rows, workers)
    streams.check_windows(streams.replay.sample(12, length, rng(seed)), 9)


@pytest.mark.parametrize("starts", ["any", "episode"])
def test_every_start_is_equally_likely(starts: Any) -> None:
    streams = make(20, 3, starts=starts)
    streams.append(33, [0])  # wrapped
    streams.append(11, [1])
    streams.append(3, [2])  # too short for any window
    total, draws = streams.replay.num_starts(4), 6000
    generator = rng(1)
    batch = streams.replay.sample(draws, 4, generator).refs
    pairs, counts = np.unique(np.stack([batch.worker, batch.start]), axis=1, return_counts=True)
    assert pairs.shape[1] == total
    chi2 = float((np.square(counts - draws / total) / (draws / total)).sum())
    freedom = total - 1  # mean of chi^2; its deviation is sqrt(2 freedom)
    assert chi2 < freedom + 4 * np.sqrt(2 * freedom)


def test_equal_generators_draw_equal_batches() -> None:
    streams = make()
    streams.append(30)
    first, second = (streams.replay.sample(5, 4, rng(3)) for _ in range(2))
    assert_same_batch(first, second)


@pytest.mark.parametrize(
    ("kind", "burn_in"), [("zero", 0), ("stored", 0), ("stored", 2), ("burn_in", 3)]
)
def test_a_reset_is_forced_at_row_0_alone_and_is_first_never(kind: Any, burn_in: int) -> None:
    spec = WITH_STATE if kind == "stored" else SPEC
    streams = make(40, 2, spec, replay_state=kind, burn_in=burn_in)
    streams.append(50)
    batch = streams.replay.sample(64, 6, rng())
    number = torch.from_numpy(batch.refs.start[:, None] + np.arange(6 + burn_in))
    is_first = stream(0, number).is_first
    assert not is_first.all(1).any()
    assert is_first[:, 0].any()
    assert torch.equal(batch.step.is_first, is_first)
    forced = is_first.clone()
    if kind != "stored":
        forced[:, 0] = True
    assert torch.equal(batch.step.reset, forced)
    assert batch.burn_in == burn_in


def test_a_memory_that_outlives_episodes_keeps_its_own_resets() -> None:
    streams = make(40, 1)
    step = together([stream(0, np.arange(30))])
    streams.replay.append(step._replace(reset=torch.arange(30)[None] % 12 == 0))
    batch = streams.replay.sample(16, 5, rng())
    number = torch.from_numpy(batch.refs.start[:, None] + np.arange(5))
    assert torch.equal(batch.step.reset[:, 1:], number[:, 1:] % 12 == 0)


@settings(max_examples=20)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(1, 8))
def test_arrivals_of_a_window_are_those_of_the_whole_stream(
    lengths: list[int], length: int
) -> None:
    streams = Streams(make(25, 2, weights="dfs").replay, lengths)
    streams.append(25)
    batch = streams.replay.sample(streams.replay.num_starts(length), length, rng())
    windows = to_arrival(batch.step, previous=batch.previous)
    whole = to_arrival(stream(np.arange(2)[:, None], np.tile(np.arange(25), (2, 1)), lengths))
    worker, start = batch.refs.worker[:, None], batch.refs.start[:, None]
    for found, expected in zip(windows, whole, strict=True):
        assert torch.equal(found, expected[worker, start + np.arange(length)])
    assert windows.counts.all()


def test_an_episode_goes_on_at_a_time_limit_and_ends_at_a_terminal_row() -> None:
    """The target of the continue head: 1 - is_terminal, on final rows too."""
    streams = make(40, 1, weights="dfs")
    streams.append(24)  # rows 3, 11, 15 and 17 .. are final; episodes end by turns
    for length in (1, 3):
        batch = streams.replay.sample(streams.replay.num_starts(length), length, rng())
        arrival = to_arrival(batch.step, previous=batch.previous)
        final = ~batch.step.valid
        number = torch.from_numpy(batch.refs.start[:, None] + np.arange(length))
        terminated = stream(0, (number - 1).clamp(min=0)).terminated
        assert (final & terminated).any()
        assert (final & ~terminated).any()
        assert torch.equal(arrival.is_terminal, final & terminated)
        assert torch.equal(arrival.is_last, final)
        assert arrival.counts.all()


def test_the_first_row_of_a_stream_has_no_row_before_it() -> None:
    streams = make(30, 1)
    streams.append(30)  # the last slot of the ring is filled
    batch = streams.replay.sample(1, 30, rng())
    assert not batch.previous.valid.any()
    assert not batch.previous.action.any()
    arrival = to_arrival(batch.step, previous=batch.previous)
    assert bool(arrival.counts[0, 0])
    assert not arrival.reward_in[0, 0]


@pytest.mark.parametrize("single", [True, False])
def test_rows_come_one_by_one_or_in_chunks(single: bool) -> None:
    streams, other = make(7, 2), make(7, 2)
    for n in range(11):
        step = together([line(stream(w, [n]), 0) for w in range(2)])
        other.replay.append(step if single else Step(*map(_with_time, step)))
    streams.append(11)
    left, right = (one.replay.sample(9, 3, rng()) for one in (streams, other))
    assert_same_batch(left, right)


def _with_time(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _with_time(one) for key, one in values.items()}
    return values.unsqueeze(1)


def test_rows_are_copied() -> None:
    """Not kept: an environment may write into the arrays that it handed out."""
    streams = make(8, 1)
    step = together([stream(0, np.arange(8))])
    streams.replay.append(step)
    step.obs["image"].zero_()
    batch = streams.replay.sample(1, 8, rng())
    assert batch.step.obs["image"].any()
    batch.step.obs["image"].zero_()
    assert streams.replay.sample(1, 8, rng()).step.obs["image"].any()


def test_pictures_stay_bytes() -> None:
    streams = make()
    streams.append(9)
    batch = streams.replay.sample(2, 4, rng())
    assert batch.step.obs["image"].dtype == batch.previous.obs["image"].dtype == torch.uint8


def test_the_streams_of_these_tests_have_all_kinds_of_rows() -> None:
    step = stream(0, np.arange(24))
    ended = step.terminated | step.truncated
    assert step.terminated.any()
    assert step.truncated.any()
    assert torch.equal(step.valid[1:], ~ended[:-1])
    for before, after in itertools.pairwise(range(24)):
        assert bool(step.is_first[after]) == (not step.valid[before])


@pytest.mark.parametrize("num", range(1, 13))
@pytest.mark.parametrize("kept", [40, 16])
def test_no_row_leads_over_a_break(num: int, kept: int) -> None:
    replay = make(kept, 1).replay
    for n in range(num):
        replay.append(stream([0], [n]))
    was = stream(np.array([[0]]), np.arange(num)[None])
    replay.break_off()
    for n in range(4):  # the first episode of another stream
        replay.append(stream([7], [n]))
    step = replay.sample(1, num + 4, rng()).step
    value, rows = following(torch.arange(num + 4.0)[None], step)
    led = rows[0] & ~step.terminated[0, :-1]
    assert torch.equal(value[0, led], torch.arange(1.0, num + 4)[led])  # by the very next row
    assert not led[num - 1]  # which is no row of the other stream
    assert torch.equal(step.is_first[0, :num], was.is_first[0])
    counted = was.valid[0] & ~was.terminated[0]
    lost = counted & ~torch.cat((led, torch.ones(1, dtype=torch.bool)))[:num]
    assert lost.nonzero().flatten().tolist() == ([num - 1] if counted[-1] else [])
    assert not step.reward[0, :num][~step.valid[0, :num]].any()


def test_an_episode_of_a_trial_that_had_just_begun_still_follows_the_one_before() -> None:
    """A backend that resets in the same step stores no final row inside a trial."""
    replay = make(8, 1).replay
    flags = {name: torch.zeros(1, 3, dtype=torch.bool) for name in ("terminated", "truncated")}
    first = torch.tensor([[True, False, True]])
    rows = stream([0], np.arange(3)[None])._replace(
        valid=torch.ones(1, 3, dtype=torch.bool), is_first=first, **flags
    )
    replay.append(rows)
    replay.break_off()
    replay.append(stream([7], [0]))
    value, counted = following(torch.arange(4.0)[None], replay.sample(1, 4, rng()).step)
    assert counted.tolist() == [[True, True, False]]
    assert value[0, :2].tolist() == [1.0, 2.0]
