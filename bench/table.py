"""What every benchmark reports: figures, rows for JSON, the printed table, the warnings."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from statewise.bench.measure import Timing

BUSY_LOAD = 0.5  # of the cores
BUSY_SHARE = 0.75  # of the threads
LOWER_IS_BETTER = {"ms": True, "steps/s": False}

Row = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One number of one system in one case; of equal case and metric the first is ours."""

    case: str
    system: str
    metric: str
    value: float
    unit: str
    """"ms", "steps/s", or another one, which no speedup is computed of."""
    timing: Timing | None = None
    """What `value` was computed from."""
    threads: int = 1


def build_rows(bench: str, figures: Sequence[Figure]) -> list[Row]:
    """Return one JSON row per figure; `speedup` is None where the metric is no speed."""
    ours: dict[tuple[str, str], float] = {}
    rows = []
    for figure in figures:
        own = ours.setdefault((figure.case, figure.metric), figure.value)
        lower = LOWER_IS_BETTER.get(figure.unit)
        speedup = None
        if lower is not None:
            speedup = figure.value / own if lower else own / figure.value
        rows.append(
            {
                "bench": bench,
                "case": figure.case,
                "system": figure.system,
                "metric": figure.metric,
                "value": figure.value,
                "unit": figure.unit,
                "speedup": speedup,
            }
        )
    return rows


def build_table(bench: str, figures: Sequence[Figure]) -> Table:
    """Return the figures as a table, with wall and CPU milliseconds per call."""
    table = Table(
        title=f"bench {bench}, load average {load_average():.2f} on {num_cores()} cores",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("case", no_wrap=True)
    table.add_column("system", overflow="fold")
    table.add_column("metric")
    for name in ("value", "unit", "wall ms", "cpu ms", "cpu/wall", "ours is faster by"):
        table.add_column(name, justify="right")
    before = ""
    for figure, row in zip(figures, build_rows(bench, figures), strict=True):
        timing = figure.timing
        cells = ["", "", ""]
        if timing is not None:
            wall, cpu = median(timing.wall), median(timing.cpu)
            cells = [f"{1e3 * wall:.4g}", f"{1e3 * cpu:.4g}", f"{timing.cores:.2f}"]
        speedup = row["speedup"]
        last = "" if speedup is None else f"{speedup:.3g} x"
        case = figure.case if figure.case != before else ""
        before = figure.case
        value = f"{figure.value:,.0f}" if figure.value >= 1000 else f"{figure.value:.4g}"
        words = (case, figure.system, figure.metric, value, figure.unit, *cells, last)
        table.add_row(*map(Text, words))
    return table


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def load_average() -> float:
    """Return the load average of the last minute."""
    return os.getloadavg()[0]


def warnings_of(figures: Sequence[Figure], load_before: float) -> list[str]:
    """Return a line for each reason to distrust the figures.

    Args:
        figures: the result.
        load_before: load average before the benchmark itself loaded the machine.
    """
    lines = []
    cores = num_cores()
    if load_before > BUSY_LOAD * cores:
        lines.append(
            f"warning: the machine was busy: load average {load_before:.2f} on {cores} cores "
            f"before the start, expected at most {BUSY_LOAD * cores:.1f}: measure again when idle"
        )
    timed = [figure for figure in figures if figure.timing is not None]
    starved = {
        f"{figure.system}, {figure.case}"
        for figure in timed
        if figure.timing is not None and figure.timing.cores < BUSY_SHARE * figure.threads
    }
    if starved:
        lines.append(
            f"warning: {len(starved)} of {len({(f.system, f.case) for f in timed})} measurements "
            "had fewer cores than threads (cpu/wall): others used the machine, or the code is "
            f"partly serial: first {min(starved)}"
        )
    return lines
