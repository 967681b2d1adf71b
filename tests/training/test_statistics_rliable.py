"""Our statistics beside rliable's, the package of the paper, on the same scores."""

import warnings
from typing import Any

import numpy as np
import pytest

from statewise.training import statistics

REPETITIONS = 2000


@pytest.fixture(scope="module")
def rliable() -> tuple[Any, Any]:
    """Return its metrics and its library; what it imports warns of itself."""
    pytest.importorskip("rliable")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rliable import library, metrics
    return metrics, library


@pytest.fixture(scope="module")
def scores() -> tuple[Any, Any]:
    """Return the scores of two agents, five and four runs on six tasks, some of them equal."""
    rng = np.random.default_rng(3)
    level = rng.uniform(0, 1.5, size=6)
    return (
        np.round(level + rng.normal(0, 0.3, size=(5, 6)), 1),
        np.round(level - 0.1 + rng.normal(0, 0.3, size=(4, 6)), 1),
    )


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("aggregate_iqm", statistics.iqm),
        ("aggregate_mean", statistics.mean_score),
        ("aggregate_median", statistics.median_score),
        ("aggregate_optimality_gap", statistics.optimality_gap),
    ],
)
def test_aggregates_and_their_intervals_are_rliables(
    name: str, ours: statistics.Statistic, rliable: tuple[Any, Any], scores: tuple[Any, Any]
) -> None:
    metrics, library = rliable
    theirs = getattr(metrics, name)

    def vector(values: Any) -> Any:
        return np.array([theirs(values)])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        points, intervals = library.get_interval_estimates(
            {"x": scores[0]}, vector, reps=REPETITIONS, random_state=np.random.RandomState(0)
        )
    found = statistics.bootstrap_interval(
        scores[0], np.random.default_rng(0), REPETITIONS, statistic=ours
    )
    assert found.mean == pytest.approx(points["x"][0], abs=1e-12)
    # Both ends are of 2000 draws each: they differ by their chance alone.
    assert (found.low, found.high) == pytest.approx(intervals["x"][:, 0].tolist(), abs=0.02)


def test_improvement_and_profile_are_rliables(
    rliable: tuple[Any, Any], scores: tuple[Any, Any]
) -> None:
    metrics, library = rliable
    x, y = scores
    expected = metrics.probability_of_improvement(x, y)
    assert statistics.probability_of_improvement(x, y) == pytest.approx(expected, abs=1e-12)
    places = np.linspace(0, 2, 21)
    profile = [library.run_score_deviation(x, place) for place in places]
    assert statistics.performance_profile(x, places) == pytest.approx(profile, abs=1e-12)
