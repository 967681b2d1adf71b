"""The summary of a claim: a line per arm, in Markdown."""

import math
from collections.abc import Collection, Iterable, Sequence
from statistics import fmean

from statewise.bench.claim_checks import Rows
from statewise.bench.claim_metrics import MINUTES, Measure
from statewise.bench.claim_table import NEVER, NO_DATA, NOT_RUN, columns_of
from statewise.bench.claims import Claim
from statewise.bench.table import short_number
from statewise.training.statistics import mean_interval

PER_RUN = {
    "parameters": "parameters",
    "updates_per_s": "updates/s",
    "tokens_per_s": "tokens/s",
    "ms_per_action": "ms per action",
    "minutes": "minutes",
}
"""Columns of the result table whose mean over seeds is shown, and their headings."""


def summary_lines(
    claim: Claim, rows: Rows, seeds: Sequence[int], absent: Collection[str] = ()
) -> list[str]:
    """Return a table with a line per arm: what is measured over seeds, its size and its speed.

    Args:
        claim: what is claimed.
        rows: of the finished runs.
        seeds: that were asked for.
        absent: arms that have no data.
    """
    measures = claim.measures() or (Measure(),)
    heads = ["arm", *(["data"] if claim.kind != "online" else []), "runs"]
    for one in measures:
        name = one.column.replace("_", " ")
        heads += [name] if one.reaches is not None else [f"{name} [95 %]", "lowest..highest"]
    heads += ["reached at"] if claim.reached is not None else []
    shown = _shown(claim)
    lines = [[*heads, *(PER_RUN[column] for column in shown)]]
    for arm in claim.arms:
        own = [rows[arm.name, seed] for seed in sorted(seeds) if (arm.name, seed) in rows]
        cells = [arm.name, *([arm.data.name] if arm.data else [])]
        if not own:
            lines.append([*cells, NO_DATA if arm.name in absent else NOT_RUN])
            continue
        cells.append(f"{len(own)} of {len(seeds)}")
        for one in measures:
            cells += _cells(one, [row[one.column] for row in own])
        if claim.reached is not None:
            cells.append(
                " ".join(NEVER if r["reached"] is None else str(r["reached"]) for r in own)
            )
        lines.append(cells + [number_text(fmean(row[column] for row in own)) for column in shown])
    return [*aligned(lines), *_devices(rows)]


def _devices(rows: Rows) -> list[str]:
    """Return what is said of runs that were trained on a GPU."""
    num = sum(row.get("device", "cpu") != "cpu" for row in rows.values())
    said = f"Trained on a GPU: {num} of {len(rows)} runs. Milliseconds per action are of a CPU."
    return ["", said] if num else []


def _shown(claim: Claim) -> list[str]:
    """Return those of `PER_RUN` that the table has; minutes unless its speeds tell the cost."""
    left_out = MINUTES if claim.kind == "policies" else ""
    return [column for column in PER_RUN if column in columns_of(claim) and column != left_out]


def document(source: str, claim: Claim, summary: Sequence[str], verdicts: Sequence[str]) -> str:
    """Return the page of a claim: what it says, the summary, the verdicts, the command."""
    per = {"online": "episodes", "policies": "episodes per target", "worlds": "episodes held out"}
    played = f"{claim.actions} actions, " if claim.actions else ""
    unit = "trials" if claim.has_trials else per[claim.kind]
    legend = (
        f"Last checkpoint, {played}{unit}: {claim.episodes}. Means "
        "over seeds with the 95 % interval of Student's t; then the lowest and the highest seed."
    )
    for one in claim.measures():
        if one.reaches is not None:
            unit = MINUTES if one.unit == MINUTES else claim.unit
            legend += (
                f" {one.column.replace('_', ' ')}: per seed, after how many {unit} it is first"
                f" {one.reaches:g} or more."
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


def _cells(measure: Measure, values: Sequence[float | None]) -> list[str]:
    if measure.reaches is None:
        return _spread(values)
    return [" ".join(NEVER if value is None else short_number(value) for value in values)]


def _spread(values: Sequence[float | None]) -> list[str]:
    known = [value for value in values if value is not None]
    if not known:
        return ["", ""]
    mean, low, high = mean_interval(known)
    interval = "" if math.isnan(low) else f" [{number_text(low)}, {number_text(high)}]"
    return [
        f"{number_text(mean)}{interval}",
        f"{number_text(min(known))}..{number_text(max(known))}",
    ]


def number_text(value: float) -> str:
    """Return four digits, large numbers in whole, and no exponents."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, min(4, 3 - math.floor(math.log10(abs(value)))))
    return f"{value:,.{digits}f}"


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of a Markdown table, padded so that they also read as plain text."""
    width = len(lines[0])
    filled = [[*line, *[""] * (width - len(line))] for line in lines]
    sizes = [max(3, *(len(line[i]) for line in filled)) for i in range(width)]
    head, *rest = (_joined(cell.ljust(size) for cell, size in zip(line, sizes, strict=True))
                   for line in filled)  # fmt: skip
    return [head, _joined("-" * size for size in sizes), *rest]


def _joined(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
