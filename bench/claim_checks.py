"""What a claim checks: a statistic over the seeds of an arm, or of its lead over another arm."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from statewise.bench.process import Answer
from statewise.training.config import OfflineTrainConfig, RunConfig

STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "median": median,
    "mean": fmean,
    "max": max,
    "abs_mean": lambda scores: abs(fmean(scores)),
}
LIMITS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "at_least": (">=", lambda value, limit: value >= limit),
    "at_most": ("<=", lambda value, limit: value <= limit),
    "below": ("<", lambda value, limit: value < limit),
}
SCORE = "score"
METRICS = ("return", SCORE, "spread", "spearman", "relative_error")
"""Of agents that learn from data; see `offline_arm.metrics_of`. Others have a score, their
mean return."""

Rows = Mapping[tuple[str, int], Answer]
"""(arm, seed) -> a row of the result table."""


def known_metrics(config: RunConfig) -> tuple[str, ...]:
    """Return what the evaluation of a run can be checked by."""
    if not isinstance(config, OfflineTrainConfig):
        return (SCORE,)
    targets = config.eval.returns_asked()
    of_several = ("spread", "spearman") if len(targets) > 1 else ()
    error = ("relative_error",) if targets and 0 not in targets else ()
    return ("return", SCORE, *of_several, *error)


@dataclass(frozen=True)
class Check:
    """A statistic over the seeds of an arm, and its limit."""

    arm: str
    statistic: str
    relation: str
    limit: float
    metric: str = SCORE
    over: str | None = None
    """An arm whose metric is taken off, seed by seed."""

    @property
    def subject(self) -> str:
        """What is checked, in words."""
        arms = self.arm if self.over is None else f"{self.arm} over {self.over}"
        return arms if self.metric == SCORE else f"{arms}, {self.metric}"

    def verdict(self, scores: Sequence[float]) -> tuple[bool, str]:
        """Return whether the check holds, and a line that says so with the number."""
        value = STATISTICS[self.statistic](scores)
        sign, holds = LIMITS[self.relation]
        passed = holds(value, self.limit)
        line = (
            f"{'PASS' if passed else 'FAIL'}  {self.subject}: {self.statistic} of {len(scores)} "
            f"seeds {value:.4f}, claimed {sign} {self.limit:g}"
        )
        return passed, line

    def judge(self, rows: Rows, seeds: Sequence[int]) -> tuple[bool, str]:
        """Return the verdict on the runs of these seeds; NOT RUN while one of them is missing."""
        arms = [self.arm] if self.over is None else [self.arm, self.over]
        missing = sum((arm, seed) not in rows for arm in arms for seed in seeds)
        if missing:
            total = len(arms) * len(seeds)
            return False, f"NOT RUN  {self.subject}: {missing} of {total} runs are missing"
        values = [[rows[arm, seed][self.metric] for seed in seeds] for arm in arms]
        if None in [*values[0], *values[-1]]:
            why = "the data have no reference returns"
            return False, f"FAIL  {self.subject}: no {self.metric}: {why}"
        if self.over is None:
            return self.verdict(values[0])
        return self.verdict([ours - theirs for ours, theirs in zip(*values, strict=True)])
