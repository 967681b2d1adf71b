"""The words of `statewise bench diagnose`, and its report."""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from statewise.training.arguments import count, seed

if TYPE_CHECKING:
    from rich.table import Table

    from statewise.bench.diagnose import DiagnoseOptions
    from statewise.bench.diagnose_table import Cells

NOT_AS_EXPECTED = 1


class Report(NamedTuple):
    """What the command prints, and its exit status."""

    table: "Table"
    lines: list[str]
    status: int


def add_words(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--core", nargs="+", metavar="NAME", help="layers; by default all")
    parser.add_argument("--task", nargs="+", metavar="NAME", help="by default all six")
    parser.add_argument("--seeds", type=seed, nargs="+", help="by default 1 2 3")
    parser.add_argument("--updates", type=count, help="of each run, at most")
    parser.add_argument("--workers", type=count, help="runs at a time, by default one per core")
    parser.add_argument("--out", type=Path, help="by default docs/results if it exists, or results")
    parser.add_argument("--json", type=Path, metavar="F", help="write the rows to a file")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes: does it run; kept only with --out"
    )


def diagnose(words: argparse.Namespace, say: Callable[[str], None]) -> Report:
    """Train what is asked for; the status is 1 where an expectation does not hold."""
    from statewise.bench.diagnose_table import LEGEND, build_table, verdicts

    options = _options(words)
    written: list[Path] = []
    if words.quick and words.out is None:
        with tempfile.TemporaryDirectory() as folder:
            cells, _ = _train_and_draw(options, Path(folder), say)
    else:
        docs = Path("docs") / "results"
        out = words.out or (docs if docs.is_dir() else Path("results"))
        cells, written = _train_and_draw(options, out, say)
    if words.json is not None:
        _write_json(cells, words.json)
        written.append(words.json)
    passed, found = verdicts(cells)
    lines = [LEGEND, *found]
    if written:
        lines.append(" ".join(map(str, written)))
    return Report(build_table(cells), lines, 0 if passed else NOT_AS_EXPECTED)


def _options(words: argparse.Namespace) -> "DiagnoseOptions":
    from statewise.bench.diagnose import DiagnoseOptions
    from statewise.bench.table import num_cores

    base = DiagnoseOptions()
    if words.quick:
        base = DiagnoseOptions(
            cores=("s5", "mamba"), tasks=("parity",), seeds=(1,), updates=2, batch=4, width=16
        )
    return replace(
        base,
        cores=tuple(dict.fromkeys(words.core or base.cores)),
        tasks=tuple(dict.fromkeys(words.task or base.tasks)),
        seeds=tuple(dict.fromkeys(words.seeds or base.seeds)),
        updates=words.updates or base.updates,
        workers=words.workers or num_cores(),
    )


def _train_and_draw(
    options: "DiagnoseOptions", out: Path, say: Callable[[str], None]
) -> "tuple[Cells, list[Path]]":
    """Return the cells of the table, and the files written."""
    from statewise.bench.diagnose import FILE, run_diagnose
    from statewise.bench.diagnose_figure import FIGURE, draw_cells
    from statewise.bench.diagnose_table import summarize

    cells = summarize(run_diagnose(options, out, say), options.seeds)
    draw_cells(cells, options.title(), out / FIGURE)
    return cells, [out / FILE, out / FIGURE]


def _write_json(cells: "Cells", path: Path) -> None:
    from statewise.bench.table import Figure, build_rows
    from statewise.training.run import write_json

    figures = [
        Figure(task, core, metric, getattr(cell, metric), "share")
        for (core, task), cell in cells.items()
        for metric in ("accuracy", "accuracy_long")
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, build_rows("diagnose", figures))
