import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statewise.training import statistics
from statewise.training.statistics import (
    bootstrap_interval,
    interquartile_mean,
    mean_interval,
    spearman,
    student_quantile,
)

# Quantiles at 0.975 from printed tables of Student's distribution.
TABLE = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306,
    9: 2.262, 10: 2.228, 15: 2.131, 20: 2.086, 25: 2.060, 30: 2.042, 40: 2.021, 60: 2.000,
    120: 1.980, 1000: 1.962, 10**9: 1.960,
}  # fmt: skip


@pytest.mark.parametrize(("df", "expected"), TABLE.items())
def test_student_quantiles_agree_with_printed_tables(df: int, expected: float) -> None:
    assert student_quantile(0.975, df) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.9995])
def test_student_quantiles_with_closed_forms(probability: float) -> None:
    # df 1 is Cauchy's distribution; for df 2, P(T <= t) = 1/2 + t / (2 sqrt(2 + t^2)).
    assert student_quantile(probability, 1) == pytest.approx(
        math.tan(math.pi * (probability - 0.5)), rel=1e-9
    )
    u = 2 * probability - 1
    assert student_quantile(probability, 2) == pytest.approx(
        u * math.sqrt(2 / (1 - u**2)), rel=1e-9
    )


@pytest.mark.parametrize("probability", [0.9, 0.975, 0.995])
@pytest.mark.parametrize("df", [199, 200])
def test_series_and_expansion_meet_where_one_takes_over(probability: float, df: int) -> None:
    z = statistics.NormalDist().inv_cdf(probability)
    expanded = statistics._student_quantile_expanded(z, df)
    assert student_quantile(probability, df) == pytest.approx(expanded, abs=1e-7)


def test_mean_interval_by_hand() -> None:
    # 1..5: mean 3, variance 10 / 4, standard error sqrt(2.5 / 5) = 0.70711, t(4) = 2.7764
    mean, low, high = mean_interval([1, 2, 3, 4, 5])
    assert mean == 3
    assert (low, high) == pytest.approx((3 - 1.96324, 3 + 1.96324), abs=1e-4)


def test_mean_interval_follows_the_level() -> None:
    # two values 0, 2: standard error 1; t(1) at 0.75 is tan(pi / 4) = 1
    assert mean_interval([0, 2], level=0.5) == pytest.approx((1, 0, 2))


def test_one_value_has_no_interval() -> None:
    mean, low, high = mean_interval([2.5])
    assert mean == 2.5
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize(("values", "level"), [([], 0.95), ([1, 2], 1.0), ([1, 2], 0.0)])
def test_mean_interval_refuses_nothing_and_impossible_levels(
    values: list[float], level: float
) -> None:
    with pytest.raises(ValueError, match=r"expected values and a level in \(0, 1\)"):
        mean_interval(values, level)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (range(8), 3.5),  # 2 3 4 5
        ([0, 0, 1, 100], 0.5),  # 0 1
        ([5, 1, 3], 3),  # a quarter of three is none: all
        ([7], 7),
        ([-100, 1, 2, 3, 4, 5, 100], 3),  # one cut on each side: 1 2 3 4 5
    ],
)
def test_interquartile_mean_by_hand(scores: list[float], expected: float) -> None:
    assert interquartile_mean(list(scores)) == expected


def test_interquartile_mean_pools_all_axes() -> None:
    assert interquartile_mean(np.arange(8.0).reshape(2, 2, 2)) == 3.5
    with pytest.raises(ValueError, match="at least one score"):
        interquartile_mean([])


def test_bootstrap_interval_is_that_of_all_equally_likely_draws() -> None:
    values = [0.0, 1.0, 5.0]
    every = [interquartile_mean(draw) for draw in itertools.product(values, repeat=3)]
    low, high = np.quantile(every, [0.1, 0.9])
    found = bootstrap_interval(values, np.random.default_rng(0), 20_000, level=0.8)
    assert found.mean == 2
    assert (found.low, found.high) == pytest.approx((low, high))


def test_bootstrap_keeps_each_task_to_its_own_scores() -> None:
    # Within a task all runs agree, so no draw can differ; pooled draws would.
    values = np.tile([0.0, 10.0, 50.0], (4, 1))
    expected = interquartile_mean(values)
    assert bootstrap_interval(values, np.random.default_rng(0), 50) == (expected,) * 3


def test_bootstrap_repeats_with_the_same_generator_state() -> None:
    values = np.linspace(0, 1, 9)
    a, b, c = (bootstrap_interval(values, np.random.default_rng(s), 20) for s in (1, 1, 2))
    assert a == b != c


@pytest.mark.parametrize(
    ("shape", "repetitions", "level"), [((0,), 10, 0.9), ((1, 1, 1), 10, 0.9), ((3,), 0, 0.9),
                                        ((3,), 10, 1.0)]
)  # fmt: skip
def test_bootstrap_refuses_what_it_cannot_do(
    shape: tuple[int, ...], repetitions: int, level: float
) -> None:
    with pytest.raises(ValueError, match="bootstrap: expected"):
        bootstrap_interval(np.zeros(shape), np.random.default_rng(0), repetitions, level)


# --- rank correlation


@given(order=st.permutations(range(7)))
def test_rank_correlation_without_equal_values_has_a_closed_form(order: list[int]) -> None:
    # 1 - 6 sum d^2 / (n (n^2 - 1)), whatever the values behind the ranks
    d = [a - b for a, b in enumerate(order)]
    expected = 1 - 6 * sum(x * x for x in d) / (7 * 48)
    values = [math.exp(rank) for rank in order]
    assert spearman(range(7), values) == pytest.approx(expected, abs=1e-12)
    assert spearman(values, range(7)) == pytest.approx(expected, abs=1e-12)


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    # ranks 0, 1, 2, 3 and 0, 1.5, 1.5, 3: the correlation of these numbers
    expected = float(np.corrcoef([0, 1, 2, 3], [0, 1.5, 1.5, 3])[0, 1])
    assert spearman([1, 2, 3, 4], [5, 6, 6, 9]) == pytest.approx(expected, abs=1e-12)
    assert spearman([1, 2, 3], [4, 4, 4]) == 0


# --- scores of runs on many tasks

SCORES = np.array([[0.0, 0.4, 3.0], [0.2, 0.8, 1.0]])
"""Two runs on three tasks: means 0.1, 0.6 and 2."""


def test_statistics_of_scores_by_hand() -> None:
    assert statistics.mean_score(SCORES) == pytest.approx(0.9)
    assert statistics.median_score(SCORES) == pytest.approx(0.6)  # that of all scores is 0.6 too
    assert statistics.median_score(SCORES[:1]) == pytest.approx(0.4)
    assert statistics.iqm(SCORES) == pytest.approx((0.2 + 0.4 + 0.8 + 1) / 4)
    # shortfalls 1, 0.6, 0, 0.8, 0.2, 0
    assert statistics.optimality_gap(SCORES) == pytest.approx(2.6 / 6)


def test_the_median_is_over_tasks_and_not_over_runs() -> None:
    scores = np.array([[0.0, 0.0, 9.0], [0.0, 3.0, 9.0], [0.0, 0.0, 9.0]])
    assert statistics.median_score(scores) == 1


def test_a_profile_is_the_share_of_runs_above_each_threshold() -> None:
    profile = statistics.performance_profile(SCORES, [-1, 0, 0.4, 2, 3])
    assert profile.tolist() == pytest.approx([1, 5 / 6, 3 / 6, 1 / 6, 0])


@given(
    x=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    y=st.lists(st.integers(0, 3), min_size=6, max_size=6),
)
def test_probability_of_improvement_is_that_of_a_loop_over_pairs(
    x: list[int], y: list[int]
) -> None:
    a, b = np.reshape(x, (2, 2)), np.reshape(y, (3, 2))
    tasks = [[(s > o) + (s == o) / 2 for s in a[:, task] for o in b[:, task]] for task in range(2)]
    expected = float(np.mean([np.mean(pairs) for pairs in tasks]))
    assert statistics.probability_of_improvement(a, b) == pytest.approx(expected)
    assert statistics.probability_of_improvement(b, a) == pytest.approx(1 - expected)


@pytest.mark.parametrize(
    "statistic",
    [
        statistics.iqm,
        statistics.mean_score,
        statistics.median_score,
        statistics.optimality_gap,
        lambda scores: statistics.performance_profile(scores, [0.3, 0.9]),
    ],
)
def test_statistics_take_leading_axes(statistic: statistics.Statistic) -> None:
    many = np.random.default_rng(0).normal(size=(2, 3, 5, 4))
    whole = statistic(many)
    for i, j in itertools.product(range(2), range(3)):
        np.testing.assert_allclose(whole[i, j], statistic(many[i, j]), rtol=1e-12)


def test_the_band_of_a_profile_is_that_of_all_equally_likely_draws() -> None:
    # Two runs 0 and 1: above 0.5 are none, half or all of a draw, with 1/4, 1/2, 1/4.
    def profile(scores: statistics.Floats) -> statistics.Floats:
        above: statistics.Floats = statistics.performance_profile(scores, [0.5, 2])
        return above

    rng = np.random.default_rng(0)
    found = statistics.bootstrap_band([0.0, 1.0], rng, 2000, level=0.4, statistic=profile)
    assert [one.tolist() for one in found] == [[0.5, 0], [0.5, 0], [0.5, 0]]
    found = statistics.bootstrap_band([0.0, 1.0], rng, 2000, level=0.6, statistic=profile)
    assert [one.tolist() for one in found] == [[0.5, 0], [0, 0], [1, 0]]


def test_the_interval_of_an_improvement_draws_both_sides() -> None:
    # P is 1/2 of the pairs; a draw of one side alone is 0, 1/2 or 1 with 1/4, 1/2, 1/4.
    rng = np.random.default_rng(0)
    one = statistics.improvement_interval([0.0, 2.0], [1.0], rng, 2000, level=0.4)
    assert one == (0.5, 0.5, 0.5)
    assert statistics.improvement_interval([0.0, 2.0], [1.0], rng, 2000, 0.6) == (0.5, 0, 1)
    assert statistics.improvement_interval([1.0], [0.0, 2.0], rng, 2000, 0.6) == (0.5, 0, 1)
    with pytest.raises(ValueError, match="the same tasks, got 3 and 2"):
        statistics.improvement_interval(SCORES, SCORES[:, :2], rng)


def test_draws_in_parts_are_as_many_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_CHUNK", 13)
    assert statistics._chunks(5, 6) == [2, 2, 1]
    seen = []

    def count(scores: statistics.Floats) -> statistics.Floats:
        seen.append(scores.shape)
        return statistics.mean_score(scores)

    statistics.bootstrap_interval(SCORES, np.random.default_rng(0), 5, statistic=count)
    assert seen == [(2, 2, 3), (2, 2, 3), (1, 2, 3), (2, 3)]
