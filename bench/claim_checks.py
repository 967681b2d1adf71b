"""What a claim checks: a statistic over the seeds of an arm, or how it compares with another arm.

The comparison is a lead, seed by seed (`over`), or the ratio of the two statistics (`ratio_to`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from statewise.bench.claim_metrics import FIELDS, SCORE, Measurable, Measure, read_measure
from statewise.bench.plain_values import PlainReader
from statewise.bench.process import Answer
from statewise.training.statistics import mean_interval

STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "second_lowest": lambda scores: sorted(scores)[min(1, len(scores) - 1)],
    "median": median,
    "mean": fmean,
    "max": max,
    "abs_mean": lambda scores: abs(fmean(scores)),
    # Of Student's 95 % interval of the mean.
    "interval_low": lambda scores: mean_interval(scores).low,
    "interval_high": lambda scores: mean_interval(scores).high,
}
LIMITS: dict[str, tuple[str, Callable[[float, float], bool]]] = {
    "at_least": (">=", lambda value, limit: value >= limit),
    "at_most": ("<=", lambda value, limit: value <= limit),
    "below": ("<", lambda value, limit: value < limit),
}
_OTHERS = ("over", "ratio_to")
_SCORE = Measure()

Rows = Mapping[tuple[str, int], Answer]
"""(arm, seed) -> a row of the result table."""


@dataclass(frozen=True)
class Check:
    """A statistic over the seeds of an arm, and its limit."""

    arm: str
    statistic: str
    relation: str
    limit: float
    measure: Measure = _SCORE
    over: str | None = None
    """An arm whose measure is taken off, seed by seed."""
    ratio_to: str | None = None
    """An arm by whose statistic that of `arm` is divided."""

    @property
    def other(self) -> str | None:
        """The arm it is compared with."""
        return self.over or self.ratio_to

    @property
    def subject(self) -> str:
        """What is checked, in words."""
        arms = f"{self.arm} over {self.over}" if self.over else self.arm
        arms = f"{arms} to {self.ratio_to}" if self.ratio_to else arms
        return arms if self.measure.metric == SCORE else f"{arms}, {self.measure.column}"

    def verdict(self, scores: Sequence[float]) -> tuple[bool, str]:
        """Return whether the check holds, and a line that says so with the number."""
        return self._verdict(STATISTICS[self.statistic](scores), f"{self.statistic} of", scores)

    def judge(self, rows: Rows, seeds: Sequence[int]) -> tuple[bool, str]:
        """Return the verdict on the runs of these seeds; NOT RUN while one of them is missing."""
        arms = [self.arm] if self.other is None else [self.arm, self.other]
        missing = sum((arm, seed) not in rows for arm in arms for seed in seeds)
        if missing:
            total = len(arms) * len(seeds)
            return False, f"NOT RUN  {self.subject}: {missing} of {total} runs are missing"
        values = [[self._value(rows[arm, seed], arm) for seed in seeds] for arm in arms]
        known = [[value for value in each if value is not None] for each in values]
        if known != values:
            why = (
                "it was not logged often enough, or says nothing about these data"
                if self.measure.is_logged or "." in self.measure.metric
                else "the data have no reference returns"
            )
            return False, f"FAIL  {self.subject}: no {self.measure.column}: {why}"
        ours, theirs = known[0], known[-1]
        if self.over is not None:
            ours = [one - other for one, other in zip(ours, theirs, strict=True)]
        if self.ratio_to is None:
            return self.verdict(ours)
        above, below = (STATISTICS[self.statistic](each) for each in (ours, theirs))
        ratio = above / below if below else math.inf
        return self._verdict(ratio, f"ratio of the {self.statistic} over", ours)

    def _value(self, row: Answer, arm: str) -> float | None:
        """Return the number of a run.

        What was never reached counts as infinite, but above the line of a ratio that is claimed
        to be large as the whole run, which is less than it would have taken.
        """
        value: float | None = row.get(self.measure.column)
        if value is not None or self.measure.reaches is None:
            return value
        is_bound = self.ratio_to is not None and arm == self.arm and self.relation == "at_least"
        return float(row[self.measure.unit]) if is_bound else math.inf

    def _verdict(self, value: float, words: str, scores: Sequence[float]) -> tuple[bool, str]:
        sign, holds = LIMITS[self.relation]
        passed = holds(value, self.limit)
        is_never = math.isinf(value) and self.measure.reaches is not None
        shown = "never" if is_never else f"{value:.4f}"
        line = (
            f"{'PASS' if passed else 'FAIL'}  {self.subject}: {words} {len(scores)} seeds {shown},"
            f" claimed {sign} {self.limit:g}"
        )
        return passed, line


def read_check(
    reader: PlainReader, value: Any, where: str, arms: Mapping[str, Measurable]
) -> Check:
    """Return a check of the file.

    Args:
        reader: of the claim file.
        value: the entry.
        where: its place.
        arms: names, with what their runs can be measured by.

    Raises:
        ConfigError: it is something else, or an arm does not have what is checked.
    """
    fields = reader.mapping(value, where, ("arm", "statistic"), (*LIMITS, *FIELDS, *_OTHERS))
    arm = reader.choice(fields["arm"], f"{where}.arm", tuple(arms))
    statistic = reader.choice(fields["statistic"], f"{where}.statistic", tuple(STATISTICS))
    given = [key for key in LIMITS if key in fields]
    if len(given) != 1:
        reader.fail(where, f"exactly one of {', '.join(LIMITS)}", ", ".join(given) or "none")
    limit = reader.number(fields[given[0]], f"{where}.{given[0]}")
    measure = read_measure(reader, fields, where)
    found = [key for key in _OTHERS if key in fields]
    if len(found) > 1:
        reader.fail(where, "over or ratio_to", "both", plain=True)
    if measure.reaches is not None and "over" in fields:
        reader.fail(f"{where}.over", "ratio_to, as a run may never get there", fields["over"])
    compared = {}
    for key in found:
        others = [name for name in arms if name != arm] or ["(there is no other arm)"]
        compared[key] = reader.choice(fields[key], f"{where}.{key}", others)
    for name in (arm, *compared.values()):
        lacking = arms[name].lacks(measure)
        if lacking:
            words = f"{lacking}, which {name} has"
            reader.fail(f"{where}.metric", words, measure.metric)
    return Check(arm, statistic, given[0], limit, measure, **compared)
