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
OURS = "statewise"  # begins the name of each of our systems
LOWER_IS_BETTER = {"ms": True, "steps/s": False}

Row = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """One number of one system in one case."""

    case: str
    system: str
    metric: str
    value: float
    unit: str
    """"ms", "steps/s", or another one, which no speedup is computed of."""
    timing: Timing | None = None
    """What `value` was computed from."""
    threads: int = 1


def place_of(device: str, threads: int) -> str:
    """Return the words of a case for where it was measured."""
    return f"threads {threads}" if device == "cpu" else device


def build_rows(bench: str, figures: Sequence[Figure]) -> list[Row]:
    """Return one JSON row per figure.

    `speedup` says how many times ours is faster: 1 for ours, None where the metric is no speed
    or ours has no figure to compare with.
    """
    ours: dict[tuple[str, str], float] = {}
    for figure in figures:
        if figure.system.startswith(OURS):
            ours.setdefault((figure.case, figure.metric), figure.value)
    return [
        {
            "bench": bench,
            "case": figure.case,
            "system": figure.system,
            "metric": figure.metric,
            "value": figure.value,
            "unit": figure.unit,
            "speedup": _speedup(figure, ours.get((figure.case, figure.metric))),
        }
        for figure in figures
    ]


def _speedup(figure: Figure, own: float | None) -> float | None:
    lower_is_better = LOWER_IS_BETTER.get(figure.unit)
    if own is None or lower_is_better is None:
        return None
    return figure.value / own if lower_is_better else own / figure.value


def short_number(value: float) -> str:
    """Return four digits of a number, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def build_tables(bench: str, figures: Sequence[Figure]) -> list[Table]:
    """Return a table per case, with wall and CPU milliseconds per call or iteration."""
    tables: dict[str, Table] = {}
    for figure, row in zip(figures, build_rows(bench, figures), strict=True):
        table = tables.setdefault(figure.case, _start_table(f"{bench}: {figure.case}"))
        timing, speedup = figure.timing, row["speedup"]
        cells = ["", "", ""]
        if timing is not None:
            wall, cpu = median(timing.wall), median(timing.cpu)
            cells = [f"{1e3 * wall:.4g}", f"{1e3 * cpu:.4g}", f"{timing.cores:.2f}"]
        value = f"{short_number(figure.value)} {figure.unit}"
        faster = "" if speedup is None else f"{speedup:.3g} x"
        table.add_row(*map(Text, (figure.system, figure.metric, value, faster, *cells)))
    return list(tables.values())


def _start_table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("system")
    table.add_column("metric")
    for name in ("value", "ours faster", "wall ms", "cpu ms", "cpu/wall"):
        table.add_column(name, justify="right")
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
