"""The tables of a suite, CSV: a row per run, those that are not finished named, and statistics."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from statewise.bench.claim_table import NOT_RUN, cell_text
from statewise.bench.suite_run import SuiteRun
from statewise.bench.suite_statistics import Line, Rows

COLUMNS = (
    *("preset", "task", "seed", "steps", "return", "ci_low", "ci_high"),
    *("best_return", "run_return", "episodes", "score", "minutes"),
)


def table_text(runs: Sequence[SuiteRun], rows: Rows) -> str:
    """Return the table of the runs, preset by preset; one that is not finished has no numbers."""
    names = list(dict.fromkeys(run.name for run in runs))
    tasks = list(dict.fromkeys(run.task for run in runs))
    ordered = sorted(runs, key=lambda r: (names.index(r.name), tasks.index(r.task), r.seed))
    lines: list[dict[str, Any]] = []
    for run in ordered:
        head = {"preset": run.name, "task": run.task, "seed": run.seed, "score": NOT_RUN}
        lines.append({**head, **rows.get(run.key, {})})
    return _csv(COLUMNS, lines)


def summary_text(lines: Sequence[Line]) -> str:
    """Return the table of the statistics."""
    return _csv(Line._fields, [line._asdict() for line in lines])


def _csv(columns: Sequence[str], lines: Sequence[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([cell_text(line.get(column)) for column in columns] for line in lines)
    return file.getvalue()
