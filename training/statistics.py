"""Statistics of returns: mean with its interval, rank correlation, scores of runs on many tasks.

Student's distribution follows Abramowitz and Stegun, "Handbook of Mathematical Functions"
(1964), eq. 26.7.3, 26.7.4 and 26.7.5. Interquartile mean, optimality gap, performance profile,
probability of improvement and the stratified bootstrap are those of Agarwal et al., "Deep
Reinforcement Learning at the Edge of the Statistical Precipice" (2021). Their scores are (R, K),
R runs on each of K tasks; a statistic of them takes leading axes and reads the last two.
"""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Any]
"""(..., R, K) scores -> (...) numbers, or (..., P) of a statistic at P places."""

_CHUNK = 1 << 21  # scores drawn at a time
_SERIES_LIMIT = 200  # degrees of freedom; beyond, the expansion is exact to 1e-8


class Interval(NamedTuple):
    """A mean and the ends of its interval."""

    mean: float
    low: float
    high: float


def _student_within(t: float, df: int) -> float:
    """Return P(|T| <= t) for Student's T with `df` degrees of freedom (eq. 26.7.3, 26.7.4)."""
    angle = math.atan(t / math.sqrt(df))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = df % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(2 + odd, df + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    if odd:
        return 2 / math.pi * (angle + sine * total)
    return sine * total


def student_quantile(probability: float, df: int) -> float:
    """Return the quantile of Student's distribution.

    Args:
        probability: in [0.5, 1).
        df: degrees of freedom, at least 1.
    """
    assert 0.5 <= probability < 1, probability
    assert df >= 1, df
    if df > _SERIES_LIMIT:
        return _student_quantile_expanded(NormalDist().inv_cdf(probability), df)
    low, high = 0.0, 1.0
    while _student_within(high, df) < 2 * probability - 1:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if _student_within(middle, df) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _student_quantile_expanded(z: float, df: int) -> float:
    """Correct the normal quantile `z` by powers of 1 / df (eq. 26.7.5)."""
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / df + second / df**2 + third / df**3


def mean_interval(x: ArrayLike, level: float = 0.95) -> Interval:
    """Return the mean of independent values and its Student t interval.

    Args:
        x: (N,), N at least 1. One value has no interval: its ends are NaN.
        level: the probability that such an interval covers the true mean, in (0, 1).

    Raises:
        ValueError: no values, or a level outside its range.
    """
    values = np.asarray(x, dtype=np.float64).ravel()
    if not values.size or not 0 < level < 1:
        raise ValueError(
            f"mean_interval: expected values and a level in (0, 1), got {values.size} and {level}"
        )
    mean = float(values.mean())
    if values.size == 1:
        return Interval(mean, math.nan, math.nan)
    error = float(values.std(ddof=1)) / math.sqrt(values.size)
    half = student_quantile((1 + level) / 2, values.size - 1) * error
    return Interval(mean, mean - half, mean + half)


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Return the correlation of ranks, in [-1, 1]; equal values share the mean of their ranks.

    0 where all of x or all of y are equal, and have no order.

    Args:
        x: (N,), N at least 2.
        y: (N,).
    """
    centred = [_ranks(values) - (np.size(values) - 1) / 2 for values in (x, y)]
    norm = math.sqrt(float((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum()) / norm if norm else 0.0


def _ranks(x: ArrayLike) -> NDArray[np.float64]:
    """Return how many values are less than each, and half of the others that equal it."""
    values = np.asarray(x, dtype=np.float64)
    less = (values < values[:, None]).sum(1)
    equal = (values == values[:, None]).sum(1) - 1
    return np.asarray(less + equal / 2, dtype=np.float64)


def interquartile_mean(scores: ArrayLike) -> float:
    """Return the mean without the lowest and the highest quarter (each rounded down).

    Args:
        scores: of any shape, at least one; runs and tasks are pooled.

    Raises:
        ValueError: no scores.
    """
    values = np.asarray(scores, dtype=np.float64).reshape(-1, 1)
    if not values.size:
        raise ValueError("interquartile_mean: expected at least one score, got none")
    return float(iqm(values))


def iqm(scores: Floats) -> Any:
    """Return the interquartile mean of runs and tasks, (..., R, K) -> (...)."""
    ordered = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(-1)


def mean_score(scores: Floats) -> Any:
    """Return the mean over tasks of their means over runs, (..., R, K) -> (...)."""
    return scores.mean((-2, -1))


def median_score(scores: Floats) -> Any:
    """Return the median over tasks of their means over runs, (..., R, K) -> (...)."""
    return np.median(scores.mean(-2), axis=-1)


def optimality_gap(scores: Floats) -> Any:
    """Return by how much scores fall short of 1 on average, (..., R, K) -> (...).

    More than 1 counts as 1.
    """
    return 1 - np.minimum(scores, 1).mean((-2, -1))


def performance_profile(scores: Floats, thresholds: ArrayLike) -> Any:
    """Return the share of all runs above each threshold, (..., R, K) -> (..., P) for (P,)."""
    places = np.asarray(thresholds, dtype=np.float64)
    ordered = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    above = [(ordered > place).mean(-1) for place in places]
    return np.stack(above, axis=-1)


def probability_of_improvement(scores: ArrayLike, others: ArrayLike) -> Any:
    """Return how probable it is that a run of one is better than a run of the other.

    Averaged over tasks; equal scores count half. 0.5 says that neither is better.

    Args:
        scores: (..., R, K).
        others: (..., S, K), the same tasks.

    Returns:
        (...) numbers in [0, 1].
    """
    x = np.asarray(scores, dtype=np.float64)[..., :, None, :]
    y = np.asarray(others, dtype=np.float64)[..., None, :, :]
    return ((x > y) + 0.5 * (x == y)).mean((-3, -2, -1))


def _resample(values: Floats, number: int, rng: np.random.Generator) -> Floats:
    """Draw as many runs as there are, with replacement, for every task on its own.

    Returns:
        (number, R, K).
    """
    rows = rng.integers(len(values), size=(number, *values.shape))
    return np.take_along_axis(values[None], rows, axis=1)


def _chunks(repetitions: int, size: int) -> list[int]:
    """Return how many repetitions are drawn at a time, so that memory is bounded."""
    step = max(1, _CHUNK // size)
    return [min(step, repetitions - start) for start in range(0, repetitions, step)]


def bootstrap_band(
    values: ArrayLike,
    rng: np.random.Generator,
    repetitions: int = 2000,
    level: float = 0.95,
    statistic: Statistic = iqm,
) -> tuple[Any, Any, Any]:
    """Return a statistic, and the ends of its percentile bootstrap interval.

    Args:
        values: (R,) scores of R runs, or (R, K) scores of R runs on K tasks; runs are drawn
            anew within each task (stratified).
        rng: the only source of chance.
        repetitions: at least 1.
        level: in (0, 1).
        statistic: of the scores, at one or more places.

    Raises:
        ValueError: no values, more than two axes, or an argument outside its range.
    """
    scores = _checked(values, repetitions, level)
    sizes = _chunks(repetitions, scores.size)
    draws = np.concatenate([statistic(_resample(scores, size, rng)) for size in sizes])
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return statistic(scores), low, high


def bootstrap_interval(
    values: ArrayLike,
    rng: np.random.Generator,
    repetitions: int = 2000,
    level: float = 0.95,
    statistic: Statistic = iqm,
) -> Interval:
    """Return `bootstrap_band` of a statistic that is one number; by default the IQM."""
    return Interval(*map(float, bootstrap_band(values, rng, repetitions, level, statistic)))


def improvement_interval(
    values: ArrayLike,
    others: ArrayLike,
    rng: np.random.Generator,
    repetitions: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Return the probability of improvement with its interval; runs of both are drawn anew.

    Args:
        values: (R,) or (R, K).
        others: (S,) or (S, K), the same tasks.
        rng: the only source of chance.
        repetitions: at least 1.
        level: in (0, 1).

    Raises:
        ValueError: as `bootstrap_band`, or other tasks.
    """
    x, y = (_checked(one, repetitions, level) for one in (values, others))
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"improvement_interval: expected scores on the same tasks, got {x.shape[1]} and "
            f"{y.shape[1]} tasks"
        )
    draws = [
        probability_of_improvement(_resample(x, size, rng), _resample(y, size, rng))
        for size in _chunks(repetitions, x.size * len(y))
    ]
    low, high = np.quantile(np.concatenate(draws), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(probability_of_improvement(x, y)), float(low), float(high))


def _checked(values: ArrayLike, repetitions: int, level: float) -> Floats:
    """Return (R, K) scores."""
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim not in (1, 2) or not scores.size or repetitions < 1 or not 0 < level < 1:
        raise ValueError(
            "bootstrap: expected values (R,) or (R, K), repetitions >= 1 and a level in"
            f" (0, 1), got {scores.shape}, {repetitions} and {level}"
        )
    return scores.reshape(len(scores), -1)
