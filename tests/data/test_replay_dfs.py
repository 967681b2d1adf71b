"""Frequency-based sampling against its formulas, and the train ratio against exact counting."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statewise.data.dfs import (
    DfsConfig,
    draw_without_replacement,
    imagination_logits,
    world_model_logits,
)
from statewise.data.errors import DataConfigError
from statewise.data.replay_config import ReplayConfig
from statewise.data.replay_ratio import TrainRatio
from tests.data.replay_streams import Streams, make, rng

counts = st.lists(st.integers(0, 10**6), min_size=1, max_size=6)


def softmax(logits: Any) -> Any:
    p = np.exp(np.asarray(logits) - np.max(logits))
    return p / p.sum()


def test_k_draws_lower_the_odds_of_a_start_by_exp_k_over_tau() -> None:
    for k, tau in ((1, 10.0), (7, 10.0), (7, 20.0)):
        p = softmax(world_model_logits(np.array([k, 0]), DfsConfig(tau=tau)))
        assert p[0] / p[1] == pytest.approx(math.exp(-k / tau), rel=1e-12)


def test_starts_that_were_never_drawn_are_equally_likely() -> None:
    zeros = np.zeros(5, np.int64)
    for logits in (
        world_model_logits(zeros, DfsConfig()),
        imagination_logits(zeros, zeros, CONFIG),
    ):
        np.testing.assert_array_equal(softmax(logits), np.full(5, 0.2))


CONFIG = DfsConfig(imagine_tau=10.0, imagine_ratio=64.0)


@settings(max_examples=40)
@given(counts, st.randoms(use_true_random=False))
def test_with_equal_weights_only_imagination_ahead_of_training_is_held_back(
    trained: list[int], random: Any
) -> None:
    imagined = [64 * random.randint(0, 2 * c + 3) for c in trained]
    logits = imagination_logits(np.array(trained), np.array(imagined), CONFIG)
    expected = [min(0, c - m // 64) / 10 for c, m in zip(trained, imagined, strict=True)]
    assert logits.tolist() == expected


@settings(max_examples=40)
@given(
    st.integers(0, 500), st.integers(0, 9000), st.floats(0, 3), st.floats(0, 3), st.floats(0.5, 90)
)
def test_imagination_follows_its_formula(
    c: int, m: int, alpha: float, beta: float, ratio: float
) -> None:
    config = DfsConfig(alpha=alpha, beta=beta, imagine_ratio=ratio, imagine_tau=3.0)
    rescaled = m / ratio
    score = c - alpha * rescaled - beta * (c - rescaled if c > rescaled else 0.0)
    found = imagination_logits(np.array([c]), np.array([m]), config)
    assert found[0] == pytest.approx(score / 3, rel=1e-12, abs=1e-9)


def test_batches_are_drawn_one_after_the_other_without_replacement() -> None:
    """The frequencies of ordered pairs: p_i p_j / (1 - p_i)."""
    logits, draws, generator = np.log([0.1, 0.2, 0.3, 0.4]), 4000, rng(5)
    p = softmax(logits)
    found: dict[tuple[int, ...], int] = {}
    for _ in range(draws):
        pair = tuple(draw_without_replacement(logits, 2, generator).tolist())
        found[pair] = found.get(pair, 0) + 1
    expected = {
        (i, j): draws * p[i] * p[j] / (1 - p[i]) for i, j in itertools.permutations(range(4), 2)
    }
    assert found.keys() == expected.keys()
    chi2 = sum((found[pair] - n) ** 2 / n for pair, n in expected.items())
    freedom = len(expected) - 1
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom)


def test_large_counts_do_not_underflow() -> None:
    """exp(-c / tau) is 0 for all of them; the smallest count wins all the same."""
    logits = world_model_logits(np.array([10**8, 10**8 + 10**4, 10**8 + 10**4]), DfsConfig())
    first = [int(draw_without_replacement(logits, 3, rng(i))[0]) for i in range(20)]
    assert first == [0] * 20
    assert sorted(draw_without_replacement(logits, 3, rng())) == [0, 1, 2]


def test_a_batch_is_in_the_order_of_its_draws() -> None:
    order = rng().permutation(2000)
    logits = np.empty(2000)
    logits[order] = -1000.0 * np.arange(2000)
    assert draw_without_replacement(logits, 900, rng()).tolist() == order[:900].tolist()


def counted(streams: Streams, name: str) -> Any:
    return streams.replay.state_dict()["dfs"][name]


def test_a_draw_counts_for_its_start_and_its_purpose_alone() -> None:
    streams = make(20, 2, weights="dfs")
    streams.append(20)
    refs = streams.replay.sample(5, 4, rng()).refs
    assert len(set(zip(*map(list, refs), strict=True))) == 5
    expected = np.zeros((2, 20), np.int64)
    expected[refs.worker, refs.start] = 1
    np.testing.assert_array_equal(counted(streams, "trained"), expected)
    assert not counted(streams, "imagined").any()
    other = streams.replay.sample(6, 2, rng(1), purpose="imagination").refs
    np.testing.assert_array_equal(counted(streams, "trained"), expected)
    expected[...] = 0
    expected[other.worker, other.start] = 1
    np.testing.assert_array_equal(counted(streams, "imagined"), expected)


def test_a_row_that_takes_the_place_of_another_was_never_drawn() -> None:
    streams = make(8, 2, weights="dfs")
    streams.append(8)
    streams.replay.sample(16, 1, rng())
    streams.replay.sample(16, 1, rng(), purpose="imagination")
    streams.append(3, [1])
    expected = np.ones((2, 8), np.int64)
    expected[1, :3] = 0
    for name in ("trained", "imagined"):
        np.testing.assert_array_equal(counted(streams, name), expected)


def test_a_resumed_replay_has_counted_as_much() -> None:
    streams, other = (make(8, 2, weights="dfs") for _ in range(2))
    streams.append(11)
    streams.replay.sample(5, 2, rng())
    streams.replay.sample(4, 2, rng(), purpose="imagination")
    other.replay.load_state_dict(streams.replay.state_dict())
    for name, total in (("trained", 5), ("imagined", 4)):
        assert counted(other, name).sum() == total
        np.testing.assert_array_equal(counted(other, name), counted(streams, name))


def test_draws_even_out_and_imagination_follows_training() -> None:
    streams = make(12, 1, weights="dfs", dfs=DfsConfig(tau=0.01, imagine_tau=0.01, imagine_ratio=1))
    streams.append(12)
    generator = rng(2)
    for _ in range(12):
        streams.replay.sample(1, 1, generator)
    assert counted(streams, "trained").tolist() == [[1] * 12]
    streams.replay.sample(4, 1, generator)
    trained = counted(streams, "trained")
    # A start with m <= c has score 0, one with m = c + 1 is held back: 28 draws bring all there.
    for _ in range(28):
        streams.replay.sample(1, 1, generator, purpose="imagination")
    np.testing.assert_array_equal(counted(streams, "imagined"), trained + 1)


@pytest.mark.parametrize("key", ["tau", "imagine_tau", "imagine_ratio", "alpha", "beta"])
def test_weights_out_of_their_range_are_refused(key: str) -> None:
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(DataConfigError, match=rf"replay\.dfs\.{key}: expected a finite number"):
            DfsConfig(**{key: value})
    if key in ("alpha", "beta"):
        DfsConfig(**{key: 0.0})
    else:
        with pytest.raises(DataConfigError, match="> 0, got 0"):
            DfsConfig(**{key: 0.0})


def test_weights_that_would_be_ignored_are_refused() -> None:
    with pytest.raises(DataConfigError, match=r"replay\.dfs: .* set replay\.weights dfs"):
        ReplayConfig(dfs=DfsConfig(tau=3.0))


# Train ratio


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 50), max_size=30),
    st.integers(1, 2000),
    st.integers(1, 3),
    st.integers(1, 300),
)
def test_updates_are_due_as_often_as_exact_counting_says(
    steps: list[int], numerator: int, decimals: int, rows: int
) -> None:
    ratio = TrainRatio(numerator / 10**decimals, rows)
    total = due = 0
    for n in steps:
        total, due = total + n, due + ratio.due(n)
        assert due == total * numerator // (10**decimals * rows)


def test_memory_maze_has_an_update_every_64_steps() -> None:
    ratio = TrainRatio(64, 4 * 1024)
    assert [n for n in range(1, 641) if ratio.due(1)] == list(range(64, 641, 64))


@pytest.mark.parametrize(("value", "rows"), [(0.1, 1), (0.3, 3)])
def test_a_tenth_of_an_update_adds_up_without_drift(value: float, rows: int) -> None:
    """As a binary number 0.1 is too large and 0.3 too small."""
    ratio = TrainRatio(value, rows)
    assert [n for n in range(1, 2001) if ratio.due(1)] == list(range(10, 2001, 10))


def test_a_resumed_ratio_goes_on_exactly() -> None:
    ratio, other = TrainRatio(7.3, 11), TrainRatio(7.3, 11)
    ratio.due(17)
    other.load_state_dict(ratio.state_dict())
    assert [ratio.due(1) for _ in range(40)] == [other.due(1) for _ in range(40)]


@pytest.mark.parametrize(
    "state", [{}, {"owed": "x"}, {"owed": "3/2"}, {"owed": "1/0"}, {"owed": "-1/2"}]
)
def test_another_state_of_a_ratio_is_refused(state: Any) -> None:
    with pytest.raises(DataConfigError, match="train_ratio: expected"):
        TrainRatio(1, 1).load_state_dict(state)


@pytest.mark.parametrize(("ratio", "rows"), [(0, 4), (-1, 4), (math.inf, 4), (math.nan, 4), (1, 0)])
def test_ratios_out_of_their_range_are_refused(ratio: float, rows: int) -> None:
    with pytest.raises(DataConfigError, match="expected"):
        TrainRatio(ratio, rows)
