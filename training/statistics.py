"""Statistics of returns: mean with its interval, rank correlation, bootstrap intervals.

Student's distribution follows Abramowitz and Stegun, "Handbook of Mathematical Functions"
(1964), eq. 26.7.3, 26.7.4 and 26.7.5. The interquartile mean and its stratified bootstrap are
those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(2021).
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
    ordered = np.sort(np.asarray(scores, dtype=np.float64), axis=None)
    if not ordered.size:
        raise ValueError("interquartile_mean: expected at least one score, got none")
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean())


def _resample(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw as many runs as there are, with replacement, for every task on its own."""
    rows = rng.integers(len(values), size=values.shape)
    return np.take_along_axis(values, rows, axis=0)


def bootstrap_interval(
    values: Sequence[float] | NDArray[np.float64],
    rng: np.random.Generator,
    repetitions: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Return the interquartile mean with its percentile bootstrap interval.

    Args:
        values: (R,) scores of R runs, or (R, K) scores of R runs on K tasks; runs are drawn
            anew within each task (stratified).
        rng: the only source of chance.
        repetitions: at least 1.
        level: in (0, 1).

    Raises:
        ValueError: no values, more than two axes, or an argument outside its range.
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim not in (1, 2) or not scores.size or repetitions < 1 or not 0 < level < 1:
        raise ValueError(
            "bootstrap_interval: expected values (R,) or (R, K), repetitions >= 1 and a level in"
            f" (0, 1), got {scores.shape}, {repetitions} and {level}"
        )
    draws = [interquartile_mean(_resample(scores, rng)) for _ in range(repetitions)]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(interquartile_mean(scores), float(low), float(high))
