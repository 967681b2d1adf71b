"""The summary of a claim about agents that learn from data: a line per arm, in Markdown."""

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from statewise.bench.claim_checks import SCORE, Rows
from statewise.bench.claim_table import NOT_RUN
from statewise.bench.claims import Arm, Claim
from statewise.training.statistics import mean_interval

PER_RUN = {
    "parameters": "parameters",
    "updates_per_s": "updates/s",
    "tokens_per_s": "tokens/s",
    "ms_per_action": "ms per action",
}
"""Columns of the result table whose mean over seeds is shown, and their headings."""


def summary_lines(claim: Claim, rows: Rows, seeds: Sequence[int]) -> list[str]:
    """Return a table with a line per arm: its metrics over seeds, its size and its speed."""
    metrics = claim.metrics() or (SCORE,)
    heads = ["arm", "data", "runs"]
    for metric in metrics:
        heads += [f"{metric.replace('_', ' ')} [95 %]", "lowest..highest"]
    heads += ["reached at"] if claim.reached is not None else []
    lines = [[*heads, *PER_RUN.values()]]
    lines += [_line(claim, arm, metrics, rows, seeds) for arm in claim.arms]
    return _aligned(lines)


def document(source: str, claim: Claim, summary: Sequence[str], verdicts: Sequence[str]) -> str:
    """Return the page of a claim: what it says, the summary, the verdicts, the command."""
    legend = (
        f"Last checkpoint, {claim.actions} actions, episodes per target: {claim.episodes}. Means "
        "over seeds with the 95 % interval of Student's t; then the lowest and the highest seed."
    )
    if claim.reached is not None:
        legend += (
            f" Reached at: per seed the first update whose evaluation returns {claim.reached:g}."
        )
    return "\n".join(
        [
            *(f"# {claim.title}", "", claim.statement, ""),
            *(*summary, "", legend, ""),
            *(*(f"* {line}" for line in verdicts), ""),
            *(f"Made by `statewise reproduce {source}`.", ""),
        ]
    )


def _line(
    claim: Claim, arm: Arm, metrics: Sequence[str], rows: Rows, seeds: Sequence[int]
) -> list[str]:
    own = [rows[arm.name, seed] for seed in sorted(seeds) if (arm.name, seed) in rows]
    cells = [arm.name, arm.data.name if arm.data else "", f"{len(own)} of {len(seeds)}"]
    if not own:
        return [*cells[:2], NOT_RUN]
    for metric in metrics:
        cells += _spread([row[metric] for row in own])
    if claim.reached is not None:
        cells.append(" ".join("never" if r["reached"] is None else str(r["reached"]) for r in own))
    return cells + [_number(fmean(row[column] for row in own)) for column in PER_RUN]


def _spread(values: Sequence[float | None]) -> list[str]:
    known = [value for value in values if value is not None]
    if not known:
        return ["", ""]
    mean, low, high = mean_interval(known)
    interval = "" if math.isnan(low) else f" [{_number(low)}, {_number(high)}]"
    return [f"{_number(mean)}{interval}", f"{_number(min(known))}..{_number(max(known))}"]


def _number(value: float) -> str:
    """Return four digits, large numbers in whole, and no exponents."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, min(4, 3 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{digits}f}"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of a Markdown table, padded so that they also read as plain text."""
    width = len(lines[0])
    filled = [[*line, *[""] * (width - len(line))] for line in lines]
    sizes = [max(3, *(len(line[i]) for line in filled)) for i in range(width)]
    head, *rest = (_joined(cell.ljust(size) for cell, size in zip(line, sizes, strict=True))
                   for line in filled)  # fmt: skip
    return [head, _joined("-" * size for size in sizes), *rest]


def _joined(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
