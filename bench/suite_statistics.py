"""What the runs of a suite say together: statistics of scores with intervals, or bsuite's rules.

Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice". They
are taken over the tasks that every preset has finished with every seed: no run is made up, and
presets are compared on the same tasks. How many tasks and runs that are stands beside each number.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from statewise.bench.bsuite_rules import experiment_of
from statewise.bench.process import Answer
from statewise.bench.suite_run import SuiteRun
from statewise.bench.suites import Suite
from statewise.training.statistics import (
    Floats,
    Interval,
    Statistic,
    bootstrap_interval,
    improvement_interval,
    iqm,
    mean_score,
    median_score,
    optimality_gap,
)

Key = tuple[str, str, int]
Rows = Mapping[Key, Answer]

STATISTICS: dict[str, Statistic] = {
    "IQM": iqm,
    "median": median_score,
    "mean": mean_score,
    "optimality gap": optimality_gap,
}
IMPROVEMENT = "probability of improvement"
REPETITIONS = 50_000  # of the bootstrap
REPETITIONS_OF_MANY = 2_000  # of profiles and of what compares two presets
MIN_SEEDS = 2  # of one run per task there is nothing to draw


class Line(NamedTuple):
    """A statistic of a preset."""

    preset: str
    """Of a comparison: "A over B"."""
    statistic: str
    value: float
    low: float | None
    """The ends of its 95 % bootstrap interval; None with one seed, and of bsuite's scores."""
    high: float | None
    tasks: int
    runs: int


def complete_tasks(runs: Sequence[SuiteRun], rows: Rows) -> list[str]:
    """Return the tasks all of whose planned runs are finished and have a score, in order."""
    lacking = {run.task for run in runs if rows.get(run.key, {}).get("score") is None}
    return [task for task in dict.fromkeys(run.task for run in runs) if task not in lacking]


def matrix(
    runs: Sequence[SuiteRun], rows: Rows, preset: str, tasks: Sequence[str], column: str = "score"
) -> Floats:
    """Return the (seeds, tasks) numbers of a preset on tasks that are complete."""
    seeds = dict.fromkeys(run.seed for run in runs)
    return np.array([[rows[preset, task, seed][column] for task in tasks] for seed in seeds], float)


def summarize(suite: Suite, runs: Sequence[SuiteRun], rows: Rows) -> list[Line]:
    """Return the statistics of each preset, then the comparisons; none without complete tasks.

    Args:
        suite: whose runs they are.
        runs: all that were planned.
        rows: of those that are finished, with their `score`.
    """
    tasks = complete_tasks(runs, rows)
    names = list(dict.fromkeys(run.name for run in runs))
    if not tasks:
        return []
    if suite.experiments:
        return [line for name in names for line in _by_rules(suite, runs, rows, name, tasks)]
    lines = [line for name in names for line in _of_preset(suite, runs, rows, name, tasks)]
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            x, y = (matrix(runs, rows, name, tasks) for name in (first, second))
            found = improvement_interval(x, y, np.random.default_rng(0), REPETITIONS_OF_MANY)
            lines.append(_line(f"{first} over {second}", IMPROVEMENT, found, len(x), len(tasks), 2))
    return lines


def _of_preset(
    suite: Suite, runs: Sequence[SuiteRun], rows: Rows, name: str, tasks: Sequence[str]
) -> list[Line]:
    scores = matrix(runs, rows, name, tasks)
    wanted = [(statistic, scores, function) for statistic, function in STATISTICS.items()]
    if suite.best:
        best = matrix(runs, rows, name, tasks, "best_return")
        wanted += [(suite.best, best, mean_score)] if np.isfinite(best).all() else []
    lines = []
    for statistic, values, function in wanted:
        rng = np.random.default_rng(0)
        found = bootstrap_interval(values, rng, REPETITIONS, statistic=function)
        lines.append(_line(name, statistic, found, len(values), len(tasks)))
    return lines


def _line(
    preset: str, statistic: str, found: Interval, seeds: int, tasks: int, presets: int = 1
) -> Line:
    low, high = (found.low, found.high) if seeds >= MIN_SEEDS else (None, None)
    return Line(preset, statistic, found.mean, low, high, tasks, presets * seeds * tasks)


def _by_rules(
    suite: Suite, runs: Sequence[SuiteRun], rows: Rows, name: str, tasks: Sequence[str]
) -> list[Line]:
    """Return the score of each experiment, over the settings that are complete."""
    lines = []
    for experiment, rule in suite.experiments.items():
        own = [task for task in tasks if experiment_of(task) == experiment]
        if own:
            values = matrix(runs, rows, name, own, "run_return")
            means = [fmean(column) for column in values.T]
            score = rule.score(means)
            lines.append(Line(name, experiment, score, None, None, len(own), values.size))
    return lines
