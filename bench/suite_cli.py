"""The words of `statewise suite`, and what it prints."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from statewise.training.arguments import command_parser, count
from statewise.training.schema import ConfigError

if TYPE_CHECKING:
    from statewise.bench.suite import Result
    from statewise.bench.suite_statistics import Line
    from statewise.bench.suites import Suite

RUNS = Path("runs") / "suites"
UNFINISHED = 1
SUITES = ("popgym", "bsuite", "atari100k", "dmc")

_HELP = """\
What else begins with two dashes is a setting of every preset, as `statewise train` takes it.
What was stopped goes on when the command is given again; what is finished is not made again. Runs
that are not finished stand as "not run" in the table and enter no statistic.

status: 0 if every run is finished, else 1
"""


def suite(argv: list[str]) -> int:
    """Run presets on a suite: popgym|bsuite|atari100k|dmc --preset P ... [--tasks ...] ..."""
    parser = command_parser("suite", suite)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _HELP
    parser.add_argument("suite", choices=SUITES, help="the tasks, and how they are scored")
    parser.add_argument(
        "--preset", nargs="+", required=True, metavar="P", help="names or .yaml files"
    )
    parser.add_argument("--tasks", nargs="+", default=[], metavar="T", help="ids, or groups of ids")
    parser.add_argument("--seeds", type=count, metavar="N", help="1 to N; by default the suite's")
    parser.add_argument(
        "--steps", type=count, metavar="N", help="of a run; by default the preset's"
    )
    parser.add_argument("--run-root", type=Path, default=RUNS, help=f"by default {RUNS}")
    parser.add_argument("--out", type=Path, help="by default docs/results if it exists, or results")
    parser.add_argument("--workers", type=count, help="runs at a time, by default one per core")
    parser.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="over Ray, started on this machine, or of a cluster: auto, or HOST:PORT",
    )
    options, overrides = parser.parse_known_args(argv)
    return _run(options, tuple(overrides))


def _run(options: argparse.Namespace, overrides: tuple[str, ...]) -> int:
    from statewise.bench.pool import Pool, Workers
    from statewise.bench.ray_pool import LOCAL, RayPool, check_ray
    from statewise.bench.suite import Plan, run_suite
    from statewise.bench.suites import SUITES as TABLE
    from statewise.bench.table import num_cores

    chosen = TABLE[options.suite]
    docs = Path("docs") / "results"
    steps = () if options.steps is None else ("--total-steps", str(options.steps))
    plan = Plan(
        presets=tuple(dict.fromkeys(options.preset)),
        tasks=chosen.chosen(tuple(options.tasks)),
        seeds=tuple(range(1, (options.seeds or chosen.seeds) + 1)),
        overrides=(*overrides, *steps),
        root=options.run_root,
        out=options.out or (docs if docs.is_dir() else Path("results")),
    )
    workers: Workers = Pool(options.workers or num_cores())
    if options.ray is not None:
        if options.ray != LOCAL and options.workers is not None:
            raise ConfigError(
                f"suite: expected no --workers with --ray {options.ray}, got {options.workers}: "
                "a cluster has its own number of cores"
            )
        check_ray()
        workers = RayPool(options.ray, options.workers or num_cores())
    result = run_suite(chosen, plan, workers, _say)
    for line in (*_budget(chosen, result), *_statistics(result.summary)):
        print(line)
    for line in result.missing:
        print(f"missing: {line}")
    if result.written:
        print(" ".join(map(str, result.written)), flush=True)
    return UNFINISHED if result.missing else 0


def _budget(suite: "Suite", result: "Result") -> list[str]:
    """Return what is said where runs are no longer or shorter than published ones, within 1 %."""
    steps = [row["control_steps"] for row in result.rows]
    off = [count for count in steps if abs(count - suite.steps) > 0.01 * suite.steps]
    if not off or not suite.steps:
        return []
    return [
        f"These runs have {min(off):,} steps, repeats of actions counted; published results of "
        f"{suite.title} have {suite.steps:,}: do not compare them."
    ]


def _statistics(lines: "Sequence[Line]") -> list[str]:
    """Return the table of the statistics."""
    from statewise.bench.summary import aligned, number_text

    if not lines:
        return []
    cells = [["preset", "statistic", "value", "95 % interval", "tasks", "runs"]]
    for line in lines:
        ends = [number_text(end) for end in (line.low, line.high) if end is not None]
        interval = f"[{', '.join(ends)}]" if ends else ""
        value = number_text(line.value)
        cells.append(
            [line.preset, line.statistic, value, interval, f"{line.tasks}", f"{line.runs}"]
        )
    return aligned(cells)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
