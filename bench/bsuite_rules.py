"""How bsuite scores its experiments: each from the mean return of whole runs, by a rule of its own.

Osband et al. 2020, "Behaviour Suite for Reinforcement Learning"; rules as in its release 0.3.6.
A score is of an experiment, not of one setting: the share of settings that pass, or what their
mean is worth.

Deviations: mean returns are what the log of a run has, see `suite_run`. The rewards of an umbrella
chain that are drawn at random, of mean 0, are in its returns; bsuite counts without them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A sweep over settings of one environment."""

    settings: int  # how many, at least 1
    episodes: int  # of a run that count, at least 1
    score: Callable[[Sequence[float]], float]  # mean return of each run -> [0, 1]


def memory_score(returns: Sequence[float]) -> float:
    """Return the share of runs with less than 0.75 of the errors of guessing (37.5 %).

    Args:
        returns: mean return of each run, an error being -1 and a right answer 1.
    """
    return fmean((1 - mean) / 2 / 0.5 < 0.75 for mean in returns)


def umbrella_score(returns: Sequence[float]) -> float:
    """Return the share of runs whose regret, 1 less the mean return, is below 0.5."""
    return fmean(1 - mean < 0.5 for mean in returns)


def discounting_score(returns: Sequence[float]) -> float:
    """Return 1 where the mean of all runs is the best 1.1, and 0 from 1 down."""
    return min(1.0, max(0.0, 1 - 10 * (1.1 - fmean(returns))))


EXPERIMENTS = {
    "memory_len": Experiment(settings=23, episodes=10_000, score=memory_score),
    "memory_size": Experiment(settings=17, episodes=10_000, score=memory_score),
    "discounting_chain": Experiment(settings=20, episodes=1_000, score=discounting_score),
    "umbrella_length": Experiment(settings=23, episodes=10_000, score=umbrella_score),
    "umbrella_distract": Experiment(settings=23, episodes=10_000, score=umbrella_score),
}
"""Those about memory and about what an action leads to long after it."""


def experiment_of(task: str) -> str:
    """Return the experiment of an id such as bsuite:memory_len/3."""
    return task.removeprefix("bsuite:").partition("/")[0]
