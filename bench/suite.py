"""`statewise suite`: presets on the tasks of a suite from several seeds, and their statistics."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from statewise.bench.pool import Workers
from statewise.bench.process import Answer, Job
from statewise.bench.suite_figure import draw_suite
from statewise.bench.suite_run import (
    SuiteRun,
    find_row,
    job_of,
    load_online,
    name_of,
    plan_run,
    refuse_fixed,
)
from statewise.bench.suite_statistics import Line, summarize
from statewise.bench.suite_table import summary_text, table_text
from statewise.bench.suites import Suite
from statewise.envs.build import find_family
from statewise.envs.protocol import EnvError
from statewise.training.run import RunError, write_atomic
from statewise.training.schema import ConfigError


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run of a suite, and where."""

    presets: tuple[str, ...]  # names or paths, at least one
    tasks: tuple[str, ...]  # ids, at least one
    seeds: tuple[int, ...]  # at least one
    overrides: tuple[str, ...]  # of all presets, words of a command line
    root: Path  # of the runs, `<root>/<suite>/<preset>/<task>-seed<k>`
    out: Path  # folder of the tables and figures


@dataclass(frozen=True)
class Result:
    """What came out of a suite."""

    rows: list[Answer]
    """One per run that is finished."""
    missing: list[str]
    """A line per run that is not, with the reason where it is known."""
    summary: list[Line]
    """The statistics."""
    written: list[Path]
    """Tables and figures; none if nothing is finished."""


def run_suite(suite: Suite, plan: Plan, workers: Workers, say: Callable[[str], None]) -> Result:
    """Bring the runs of a suite to their end, and write tables and figures.

    Runs that are finished are not made again, half-finished ones go on where they stopped. A run
    that fails stops no other. The tables are written after Ctrl-C, too.

    Args:
        suite: whose tasks they are.
        plan: which runs, and where.
        workers: run the jobs.
        say: is told of every run that has ended.

    Raises:
        ConfigError: a preset or an override, before anything is run.
        EnvError: the package of a task is not installed, before anything is run.
        KeyboardInterrupt: Ctrl-C; the runs under way have saved a checkpoint.
    """
    runs = planned(suite, plan)
    reasons: dict[tuple[str, str, int], str] = {}
    by_job = {str(run): run for run in runs}
    left = [run for run in runs if find_row(run) is None]
    num_done = len(runs) - len(left)
    say(f"{num_done} of {len(runs)} runs are finished")

    def tell(row: Answer) -> None:
        nonlocal num_done
        num_done += 1
        say(
            f"{num_done} of {len(runs)}: {row['preset']}, {row['task']}, seed {row['seed']}: "
            f"return {row['return']:.4g} after {row['steps']} steps, {row['minutes']:.1f} minutes"
        )

    def failed(job: Job, error: RunError) -> None:
        reason = " ".join(str(error).split())
        reasons[by_job[job["system"]].key] = reason
        say(f"failed: {reason}")

    try:
        workers.run([job_of(run) for run in left], tell, failed)
    except KeyboardInterrupt:
        report(suite, runs, plan.out, reasons)
        raise
    return report(suite, runs, plan.out, reasons)


def planned(suite: Suite, plan: Plan) -> list[SuiteRun]:
    """Return all runs, seed by seed, so that early ones tell something about every task.

    Raises:
        ConfigError: a preset or an override, or two presets of one name.
        EnvError: the package of a task is not installed.
    """
    refuse_fixed(plan.overrides)
    for task in plan.tasks:
        family = find_family(task)
        if line := family.missing():
            raise EnvError(f"{task}: {family.extra} needs: {line}")
    bases = {preset: load_online(preset, plan.overrides) for preset in plan.presets}
    names = [name_of(preset) for preset in bases]
    if len(set(names)) < len(names):
        raise ConfigError(f"--preset: expected different names, got {', '.join(names)}: rename one")
    return [
        plan_run(suite, plan.root, preset, plan.overrides, task, seed)
        for seed in plan.seeds
        for task in plan.tasks
        for preset in bases.items()
    ]


def report(
    suite: Suite, runs: Sequence[SuiteRun], out: Path, reasons: dict[tuple[str, str, int], str]
) -> Result:
    """Write down what is finished, unless nothing is.

    Args:
        suite: whose runs they are.
        runs: all that were planned.
        out: folder of the tables and figures.
        reasons: why runs failed, by `SuiteRun.key`.
    """
    found = {run.key: find_row(run) for run in runs}
    rows = {key: row for key, row in found.items() if row is not None}
    for (_, task, _), row in rows.items():
        row["score"] = suite.score(task, row)
    missing = [reasons.get(run.key, f"{run}: not run") for run in runs if run.key not in rows]
    if not rows:
        return Result([], missing, [], [])
    summary = summarize(suite, runs, rows)
    out.mkdir(parents=True, exist_ok=True)
    table, numbers = (out / f"{suite.name}{end}.csv" for end in ("", "_summary"))
    write_atomic(table, table_text(runs, rows).encode())
    write_atomic(numbers, summary_text(summary).encode())
    figures = draw_suite(suite, runs, rows, summary, out)
    return Result(list(rows.values()), missing, summary, [table, numbers, *figures])
