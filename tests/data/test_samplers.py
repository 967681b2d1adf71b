"""Samplers: what is in a batch, how often it comes, and that episodes never touch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from statewise.data import (
    EpisodeDataset,
    SampledBatch,
    StreamConfig,
    StreamSampler,
    TrajectoryConfig,
    TrajectorySampler,
    TransitionConfig,
    TransitionSampler,
    WindowConfig,
    WindowSampler,
    read_d4rl,
    returns_to_go,
    to_arrival,
    write_d4rl,
)
from statewise.data.errors import DataConfigError, EmptyDataset
from statewise.data.samplers import pack
from tests.data.episodes import dataset_of, random_episode

FINALS = ("include", "exclude")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def lazily(dataset: EpisodeDataset, tmp_path: Path) -> EpisodeDataset:
    write_d4rl(dataset, tmp_path / "lazy.hdf5")
    return read_d4rl(tmp_path / "lazy.hdf5", mode="lazy")


def check_line(
    dataset: EpisodeDataset, batch: SampledBatch, line: int, pieces: list[tuple[int, int, int]]
) -> None:
    """Compare a line of a batch, row by row, with pieces (episode, first row, rows)."""
    step, column = batch.step, 0
    for number, begin, rows in pieces:
        episode = dataset.episode(number)
        steps, rtg = len(episode), returns_to_go(episode.rewards)
        for t in range(begin, begin + rows):
            at = (line, column)
            np.testing.assert_array_equal(step.obs["obs"][at], episode.observations["obs"][t])
            assert bool(step.is_first[at]) == (t == 0)
            assert bool(step.reset[at]) == (t == begin)
            assert int(batch.timestep[at]) == t
            assert bool(step.valid[at]) == (t < steps)
            assert bool(step.terminated[at]) == (t == steps - 1 and episode.terminated)
            assert bool(step.truncated[at]) == (t == steps - 1 and episode.truncated)
            if t < steps:
                np.testing.assert_array_equal(step.action[at], episode.actions[t])
                assert step.reward[at] == episode.rewards[t]
                assert batch.rtg[at] == np.float32(rtg[t])
            else:
                assert not step.action[at].any()
                assert (step.reward[at], batch.rtg[at]) == (0, 0)
            column += 1
    for place in range(column, step.valid.shape[1]):
        at = (line, place)
        for values in (*step.obs.values(), step.action, step.reward, batch.rtg, batch.timestep):
            assert not values[at].any()
        for flags in (step.valid, step.terminated, step.truncated):
            assert not flags[at]
        before = (line, place - 1)
        after_end = bool(step.terminated[before] | step.truncated[before])
        assert bool(step.is_first[at]) == bool(step.reset[at]) == after_end


def rows_of(dataset: EpisodeDataset, number: int, final: str) -> int:
    extra = final == "include" and bool(dataset.has_final[number])
    return int(dataset.lengths[number]) + int(extra)


def window_pieces(
    dataset: EpisodeDataset, batch: SampledBatch, line: int, length: int, final: str
) -> list[tuple[int, int, int]]:
    number, begin = int(batch.episode[line]), int(batch.timestep[line, 0])
    return [(number, begin, min(length, rows_of(dataset, number, final) - begin))]


lengths_of = st.lists(st.integers(1, 7), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(lengths_of, st.integers(1, 9), st.sampled_from(FINALS), st.booleans(), st.integers(0, 99))
def test_a_window_holds_rows_of_one_episode_only(
    lengths: list[int], length: int, final: Any, known: bool, seed: int
) -> None:
    dataset = dataset_of(*lengths, final=known)
    config = WindowConfig(length=length, batch_size=5, final=final)
    batch = WindowSampler(dataset, config, rng(seed)).sample()
    assert batch.step.valid.shape == (5, length)
    for line in range(5):
        pieces = window_pieces(dataset, batch, line, length, final)
        check_line(dataset, batch, line, pieces)
    # The first row is always a step, and resets are there and where padding follows an end.
    assert batch.step.valid[:, 0].all()
    assert batch.step.reset[:, 0].all()


@settings(max_examples=60, deadline=None)
@given(lengths_of, st.sampled_from(FINALS), st.booleans(), st.integers(1, 3), st.integers(0, 99))
def test_packed_lines_hold_whole_episodes_in_a_row(
    lengths: list[int], final: Any, known: bool, buckets: int, seed: int
) -> None:
    dataset = dataset_of(*lengths, final=known)
    config = TrajectoryConfig(batch_size=6, final=final, packing="rows", buckets=buckets)
    batch = TrajectorySampler(dataset, config, rng(seed)).sample()
    left = batch.episode.tolist()
    assert len(left) == 6
    width = batch.step.valid.shape[1]
    assert width == max(rows_of(dataset, number, final) for number in left)
    for line in range(len(batch.step.valid)):
        pieces: list[tuple[int, int, int]] = []
        while left and sum(p[2] for p in pieces) + rows_of(dataset, left[0], final) <= width:
            if pieces and int(batch.timestep[line, sum(p[2] for p in pieces)]) != 0:
                break
            following = sum(p[2] for p in pieces)
            if following < width and not batch.step.valid[line, following]:
                break
            number = left.pop(0)
            pieces.append((number, 0, rows_of(dataset, number, final)))
        assert pieces
        check_line(dataset, batch, line, pieces)
    assert not left


@pytest.mark.parametrize("final", FINALS)
def test_whole_episodes_are_padded_to_the_longest(final: Any) -> None:
    dataset = dataset_of(3, 9, 5)
    config = TrajectoryConfig(batch_size=8, final=final)
    batch = TrajectorySampler(dataset, config, rng()).sample()
    numbers = batch.episode.tolist()
    assert batch.step.valid.shape == (8, max(rows_of(dataset, n, final) for n in numbers))
    for line, number in enumerate(numbers):
        check_line(dataset, batch, line, [(number, 0, rows_of(dataset, number, final))])


@pytest.mark.parametrize("final", FINALS)
@pytest.mark.parametrize("packing", ["none", "rows", "windows"])
def test_padding_is_never_taken_for_a_final_observation(final: Any, packing: Any) -> None:
    dataset = dataset_of(3, 9, 5, 1)
    if packing == "windows":
        windows = WindowConfig(length=6, batch_size=32, final=final)
        batch = WindowSampler(dataset, windows, rng()).sample()
    else:
        config = TrajectoryConfig(batch_size=8, final=final, packing=packing)
        batch = TrajectorySampler(dataset, config, rng()).sample()
    arrival, step = to_arrival(batch.step), batch.step
    assert not arrival.counts[~step.valid & (step.obs["obs"] == 0).all(-1)].any()
    ends = step.terminated | step.truncated
    if final == "include":
        assert torch.equal(arrival.is_last[:, 1:], ends[:, :-1])
    else:
        assert not arrival.is_last.any()


def chi_square(counts: np.ndarray[Any, Any], shares: np.ndarray[Any, Any]) -> float:
    """Return the statistic over its degrees of freedom; about 1 if the shares are right."""
    expected = counts.sum() * shares
    return float(((counts - expected) ** 2 / expected).sum() / (len(counts) - 1))


def test_every_step_is_equally_likely_to_begin_a_window() -> None:
    dataset = dataset_of(2, 9, 5, 4)
    config = WindowConfig(length=3, batch_size=20_000)
    batch = WindowSampler(dataset, config, rng()).sample()
    first = np.cumsum(dataset.lengths) - dataset.lengths
    flat = first[batch.episode.numpy()] + batch.timestep[:, 0].numpy()
    counts = np.bincount(flat, minlength=20)
    assert chi_square(counts, np.full(20, 1 / 20)) < 2.2  # 19 degrees: p about 0.002


@pytest.mark.parametrize("buckets", [1, 3])
def test_long_episodes_come_in_proportion_to_their_length(buckets: int) -> None:
    dataset = dataset_of(1, 2, 3, 4, 5, 6, 7, 8)
    config = TrajectoryConfig(batch_size=10, buckets=buckets)
    sampler = TrajectorySampler(dataset, config, rng())
    # With buckets the draws of a batch are not independent: only the first one is counted.
    drawn = [sampler.sample().episode[0].item() for _ in range(3000)]
    counts = np.bincount(drawn, minlength=8)
    assert chi_square(counts, dataset.lengths / dataset.num_steps) < 3.2  # 7 degrees: p 0.002


def test_buckets_and_packing_save_padding() -> None:
    dataset = dataset_of(*range(1, 41))
    shares = {}
    for name, settings_of in {
        "plain": {},
        "buckets": {"buckets": 8},
        "packed": {"packing": "rows"},
    }.items():
        config = TrajectoryConfig(batch_size=32, **settings_of)  # type: ignore[arg-type]
        sampler = TrajectorySampler(dataset, config, rng())
        assert sampler.padding_share == 0
        padding = rows = 0
        for _ in range(20):
            batch = sampler.sample()
            padding += int((~batch.step.valid).sum())
            rows += batch.step.valid.numel()
        assert sampler.padding_share == padding / rows
        shares[name] = sampler.padding_share
    assert shares["buckets"] < shares["plain"] / 2
    assert shares["packed"] < shares["plain"] / 2


def test_final_rows_are_no_padding() -> None:
    dataset = dataset_of(4, 4)
    config = TrajectoryConfig(batch_size=3, final="include")
    sampler = TrajectorySampler(dataset, config, rng())
    assert not sampler.sample().step.valid.all()
    assert sampler.padding_share == 0


@given(st.lists(st.integers(1, 10), min_size=1, max_size=12), st.integers(0, 5))
def test_packed_pieces_do_not_overlap_and_leave_no_two_half_empty_lines(
    sizes: list[int], extra: int
) -> None:
    rows, width = np.array(sizes), max(sizes) + extra
    line, column = pack(rows, width)
    used = np.zeros((line.max() + 1, width), int)
    for piece, size in enumerate(sizes):
        assert column[piece] + size <= width
        used[line[piece], column[piece] : column[piece] + size] += 1
    assert used.max() == 1
    filled = used.sum(1)
    assert (filled > 0).all()
    assert (filled * 2 <= width).sum() <= 1


def stream_pieces(
    dataset: EpisodeDataset, batch: SampledBatch, line: int, left: list[int], final: str
) -> list[tuple[int, int, int]]:
    """Return the pieces of a line; their episodes are taken from the front of `left`."""
    length, pieces, column = batch.step.valid.shape[1], [], 0
    while column < length:
        number, begin = left.pop(0), int(batch.timestep[line, column])
        assert begin == 0 or column == 0
        rows = min(rows_of(dataset, number, final) - begin, length - column)
        pieces.append((number, begin, rows))
        column += rows
    return pieces


@settings(max_examples=60, deadline=None)
@given(
    lengths_of,
    st.integers(1, 20),
    st.sampled_from(FINALS),
    st.booleans(),
    st.sampled_from(["any", "episode"]),
    st.integers(0, 99),
)
def test_a_stream_goes_on_with_the_next_episode_and_is_full(
    lengths: list[int], length: int, final: Any, known: bool, starts: Any, seed: int
) -> None:
    dataset = dataset_of(*lengths, final=known)
    config = StreamConfig(length=length, batch_size=4, starts=starts, final=final)
    batch = StreamSampler(dataset, config, rng(seed)).sample()
    assert batch.step.valid.shape == (4, length)
    left = batch.episode.tolist()
    for line in range(4):
        pieces = stream_pieces(dataset, batch, line, left, final)
        assert sum(rows for _, _, rows in pieces) == length
        assert starts == "any" or pieces[0][1] == 0
        check_line(dataset, batch, line, pieces)
    assert not left


def test_every_row_of_a_stream_is_equally_likely() -> None:
    dataset = dataset_of(2, 9, 5, 4)
    config = StreamConfig(length=8, batch_size=6000)
    batch = StreamSampler(dataset, config, rng()).sample()
    first = np.cumsum(dataset.lengths + 1) - dataset.lengths - 1
    left, counts = batch.episode.tolist(), np.zeros((8, 24))
    for line in range(6000):
        column = 0
        for number, begin, rows in stream_pieces(dataset, batch, line, left, "include"):
            flat = first[number] + begin + np.arange(rows)
            counts[column + np.arange(rows), flat] += 1
            column += rows
    for column in (0, 3, 7):
        assert chi_square(counts[column], np.full(24, 1 / 24)) < 2.1  # 23 degrees: p about 0.002


def test_windows_without_padding_are_full() -> None:
    dataset = dataset_of(3, 9, 5, 1)
    for final, starts in (("exclude", [0, 6, 2, 0]), ("include", [1, 7, 3, 0])):
        config = WindowConfig(length=4, batch_size=2000, final=final, padding="none")  # type: ignore[arg-type]
        batch = WindowSampler(dataset, config, rng()).sample()
        found = {(int(e), int(t)) for e, t in zip(batch.episode, batch.timestep[:, 0], strict=True)}
        assert found == {(e, t) for e, count in enumerate(starts) for t in range(count)}
        assert (batch.timestep[:, 1:] - batch.timestep[:, :-1] == 1).all()


def test_a_window_of_one_row_without_padding_begins_at_steps_only() -> None:
    config = WindowConfig(length=1, batch_size=500, final="include", padding="none")
    batch = WindowSampler(dataset_of(3, 2), config, rng()).sample()
    assert batch.step.valid.all()


# transitions


def test_a_transition_holds_what_followed_its_step() -> None:
    dataset = EpisodeDataset.from_episodes(
        [
            random_episode(3),
            random_episode(2, seed=1, terminated=False, truncated=True),
            random_episode(4, seed=2, final=False),
            random_episode(2, seed=3, final=False, terminated=False, truncated=True),
        ]
    )
    batch = TransitionSampler(dataset, TransitionConfig(batch_size=400), rng()).sample()
    seen = set()
    for i in range(400):
        number, t = int(batch.episode[i]), int(batch.timestep[i])
        seen.add((number, t))
        episode = dataset.episode(number)
        observations, last = episode.observations["obs"], t == len(episode) - 1
        following = observations[min(t + 1, len(observations) - 1)]
        np.testing.assert_array_equal(batch.obs["obs"][i], observations[t])
        np.testing.assert_array_equal(batch.next_obs["obs"][i], following)
        np.testing.assert_array_equal(batch.action[i], episode.actions[t])
        assert batch.reward[i] == episode.rewards[t]
        assert bool(batch.terminated[i]) == (last and episode.terminated)
        assert bool(batch.truncated[i]) == (last and episode.truncated)
    # The cut step whose final observation is not known, (3, 1), is the only one left out.
    expected = {(e, t) for e, steps in enumerate((3, 2, 4, 2)) for t in range(steps)} - {(3, 1)}
    assert seen == expected


def test_transitions_of_a_lazy_source_are_the_same(tmp_path: Path) -> None:
    dataset = EpisodeDataset.from_episodes(
        [random_episode(3), random_episode(5, final=False, terminated=False, truncated=True)]
    )
    config = TransitionConfig(batch_size=50)
    left = TransitionSampler(dataset, config, rng()).sample()
    right = TransitionSampler(lazily(dataset, tmp_path), config, rng()).sample()
    for name in ("action", "reward", "terminated", "truncated", "episode", "timestep"):
        assert torch.equal(getattr(left, name), getattr(right, name))
    assert torch.equal(left.obs["obs"], right.obs["obs"])
    assert torch.equal(left.next_obs["obs"], right.next_obs["obs"])


def test_a_data_set_without_any_known_next_observation_has_no_transitions() -> None:
    dataset = dataset_of(1, 1, final=False, terminated=False, truncated=True)
    with pytest.raises(EmptyDataset, match="expected a step with a known next observation"):
        TransitionSampler(dataset, TransitionConfig(), rng())


# all of them


@pytest.mark.parametrize("final", FINALS)
def test_trajectories_of_a_lazy_source_are_the_same(tmp_path: Path, final: Any) -> None:
    dataset = dataset_of(3, 9, 5, 1)
    config = TrajectoryConfig(batch_size=8, final=final, packing="rows")
    left = TrajectorySampler(dataset, config, rng()).sample()
    right = TrajectorySampler(lazily(dataset, tmp_path), config, rng()).sample()
    for name in ("is_first", "reset", "action", "reward", "terminated", "truncated", "valid"):
        assert torch.equal(getattr(left.step, name), getattr(right.step, name))
    assert torch.equal(left.step.obs["obs"], right.step.obs["obs"])
    assert torch.equal(left.rtg, right.rtg)


def samplers(generator: np.random.Generator) -> list[Any]:
    dataset = dataset_of(3, 9, 5, 1)
    return [
        WindowSampler(dataset, WindowConfig(length=3, batch_size=4), generator),
        TrajectorySampler(dataset, TrajectoryConfig(batch_size=4), generator),
        TransitionSampler(dataset, TransitionConfig(batch_size=4), generator),
        StreamSampler(dataset, StreamConfig(length=5, batch_size=4), generator),
    ]


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.MT19937])
def test_a_restored_sampler_goes_on_where_it_was(kind: int, bits: Any) -> None:
    sampler = samplers(np.random.Generator(bits(3)))[kind]
    sampler.sample()
    state = sampler.state_dict()
    expected = [sampler.sample() for _ in range(3)]
    other = samplers(np.random.Generator(bits(99)))[kind]
    other.load_state_dict(state)
    for batch in expected:
        again = other.sample()
        assert torch.equal(batch.episode, again.episode)
        assert torch.equal(batch.timestep, again.timestep)


def test_a_state_of_another_generator_is_refused() -> None:
    sampler = samplers(rng())[0]
    for state in ({}, {"generator": np.random.MT19937(0).state}):
        with pytest.raises(DataConfigError, match="generator: expected the state of a PCG64"):
            sampler.load_state_dict(state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WindowConfig(length=0), "length: expected at least 1, got 0"),
        (lambda: WindowConfig(batch_size=0), "batch_size: "),
        (lambda: WindowConfig(final="maybe"), "final: expected one of include, exclude"),  # type: ignore[arg-type]
        (lambda: WindowConfig(padding="left"), "padding: expected one of right, none"),  # type: ignore[arg-type]
        (lambda: TrajectoryConfig(buckets=0), "buckets: "),
        (lambda: TrajectoryConfig(packing="all"), "packing: expected one of none, rows"),  # type: ignore[arg-type]
        (lambda: TransitionConfig(batch_size=-1), "batch_size: "),
        (lambda: StreamConfig(length=0), "length: expected at least 1, got 0"),
        (lambda: StreamConfig(starts="end"), "starts: expected one of any, episode"),  # type: ignore[arg-type]
    ],
)
def test_settings_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(DataConfigError, match=message):
        make()


def test_nothing_is_sampled_from_an_empty_data_set() -> None:
    empty = dataset_of(3).subset([])
    for make, config in (
        (WindowSampler, WindowConfig()),
        (TrajectorySampler, TrajectoryConfig()),
        (TransitionSampler, TransitionConfig()),
        (StreamSampler, StreamConfig()),
    ):
        with pytest.raises(EmptyDataset, match="expected at least one episode"):
            make(empty, config, rng())  # type: ignore[arg-type]


def test_discrete_actions_and_pictures_keep_their_types() -> None:
    episode = random_episode(4)
    pictures = np.arange(5 * 2 * 2 * 3).reshape(5, 2, 2, 3).astype(np.uint8)
    changes = {"observations": {"obs": pictures}, "actions": np.array([0, 2, 1, 0])}
    dataset = EpisodeDataset.from_episodes([type(episode)(**{**vars(episode), **changes})])
    batch = WindowSampler(dataset, WindowConfig(length=3, batch_size=4), rng()).sample()
    assert batch.step.obs["obs"].dtype == torch.uint8
    assert batch.step.obs["obs"].shape == (4, 3, 2, 2, 3)
    assert batch.step.action.dtype == torch.int64
    assert batch.step.action.shape == (4, 3)
    assert batch.rtg.dtype == torch.float32
    assert batch.timestep.dtype == torch.int64
