"""`statewise reproduce`: train the arms of a claim, evaluate, compare, tabulate and draw."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from statewise.bench.arm import ClaimRun, find_row
from statewise.bench.claim_by_episode import draw_by_episode
from statewise.bench.claim_figure import draw_curves
from statewise.bench.claim_series import draw_series
from statewise.bench.claim_table import NEVER, table_text
from statewise.bench.claims import Claim
from statewise.bench.data_job import data_jobs, lacking
from statewise.bench.offline_claim_figure import draw_seeds
from statewise.bench.pool import Pool
from statewise.bench.process import Answer, Job
from statewise.bench.summary import document, summary_lines
from statewise.bench.table import short_number
from statewise.training.run import RunError, write_atomic
from statewise.training.schema import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is made of a claim, and where."""

    seeds: tuple[int, ...]  # at least one
    arms: tuple[str, ...]  # names; runs of others are not made, but shown if they are there
    root: Path  # of the runs, `<root>/<claim>/<arm>-seed<k>`
    data_root: Path  # of the data sets
    out: Path  # folder of `<claim>.csv`, `<claim>.png`, and `Claim.has_summary` `<claim>.md`
    workers: int  # runs at a time, each on one thread, >= 1
    device: str = "cpu"  # of the runs that are made


@dataclass(frozen=True)
class Result:
    """What came out of a claim."""

    rows: list[Answer]
    """One per run that is finished, in the order of arms and seeds."""
    passed: bool
    """Whether all checks hold; not if one of them lacks runs."""
    verdicts: list[str]
    """One line per check."""
    summary: list[str]
    """A table of the arms, where the claim has one."""
    written: list[Path]
    """The table and the figure, and the summary."""


def reproduce(source: str, claim: Claim, plan: Plan, say: Callable[[str], None]) -> Result:
    """Bring the runs of a claim to their end and check the claim.

    Data sets and runs that are finished are not made again, half-finished ones go on where they
    stopped. The tables are written after Ctrl-C and after an error too, if a run is finished.

    Args:
        source: name or path that `claim` was loaded from.
        claim: what is claimed.
        plan: which runs, and where.
        say: is told of every data set and run that has ended.

    Raises:
        ConfigError: an arm that the claim does not have.
        RunError: a run failed.
        KeyboardInterrupt: Ctrl-C; the runs under way have saved a checkpoint.
    """
    names = [arm.name for arm in claim.arms]
    for name in plan.arms:
        if name not in names:
            problem = f"expected arms among {', '.join(names)}, got {name!r}"
            raise ConfigError(f"--arms: {problem}{nearest(name, names)}")
    absent = lacking(claim, plan.data_root)
    for folder in dict.fromkeys(folder for arm, folder in absent.items() if arm in plan.arms):
        of = ", ".join(arm for arm in plan.arms if absent.get(arm) == folder)
        say(f"no data in {folder}, which this claim does not make: not run: {of}")
    wanted = [
        ClaimRun(claim, claim.arm(name), seed, plan.root, plan.data_root, plan.device)
        for seed in plan.seeds
        for name in names
        if name in plan.arms and name not in absent
    ]
    pool = Pool(plan.workers)

    def tell(row: Answer) -> None:
        say(_progress(claim, row, len(wanted)))

    try:
        pool.run(
            data_jobs(source, claim, plan.arms, plan.data_root),
            lambda made: say(f"{made['folder']}: made {', '.join(made['made']) or 'nothing new'}"),
        )
        rows = [find_row(run) for run in wanted]
        for row in rows:
            if row is not None:
                tell(row)
        left = [run for run, row in zip(wanted, rows, strict=True) if row is None]
        pool.run([_job(source, run) for run in left], tell)
    except (KeyboardInterrupt, RunError):
        _report(source, claim, plan)
        raise
    return _report(source, claim, plan)


def _job(source: str, run: ClaimRun) -> Job:
    return {
        "kind": "arm",
        "system": f"{run.claim.name}, {run.arm.name}, seed {run.seed}",
        "claim": source,
        "arm": run.arm.name,
        "seed": run.seed,
        "root": str(run.root),
        "data_root": str(run.data_root),
        "device": run.device,
        "threads": 1,
    }


def _progress(claim: Claim, row: Answer, total: int) -> str:
    if claim.kind == "worlds":
        values = [(one.column, row[one.column]) for one in claim.measures()]
        said = "; ".join(f"{name} {NEVER if x is None else short_number(x)}" for name, x in values)
    else:
        # Agents that learn from data have no score where the data have no reference returns.
        said = f"{row['return'] if row['score'] is None else row['score']:.4f}"
    return (
        f"{row['arm']}, seed {row['seed']}: {said} after {row['steps']} {claim.unit}, "
        f"{row['minutes']:.1f} minutes ({total} runs in all)"
    )


def _report(source: str, claim: Claim, plan: Plan) -> Result:
    """Check what is finished, and write it down unless nothing is."""
    rows: dict[tuple[str, int], Answer] = {}
    for arm in claim.arms:
        for seed in sorted(plan.seeds):
            row = find_row(ClaimRun(claim, arm, seed, plan.root, plan.data_root))
            if row is not None:
                rows[arm.name, seed] = row
    judged = [check.judge(rows, plan.seeds) for check in claim.checks]
    verdicts = [line for _, line in judged]
    absent = lacking(claim, plan.data_root)
    summary = summary_lines(claim, rows, plan.seeds, absent) if claim.has_summary else []
    written = []
    if rows:
        plan.out.mkdir(parents=True, exist_ok=True)
        table, figure = (plan.out / f"{claim.name}.{ending}" for ending in ("csv", "png"))
        write_atomic(table, table_text(claim, rows, plan.seeds, absent).encode())
        written = [table, figure]
        if claim.arms[0].series:
            draw_series(claim, rows, plan.seeds, figure)
        elif claim.has_trials:
            draw_by_episode(claim, rows, plan.root, figure)
        elif claim.kind == "policies":
            draw_seeds(claim, rows, plan.seeds, figure)
        else:
            draw_curves(claim, rows, plan.root, figure)
        if claim.has_summary:
            page = plan.out / f"{claim.name}.md"
            write_atomic(page, document(source, claim, summary, verdicts).encode())
            written.append(page)
    return Result(list(rows.values()), all(ok for ok, _ in judged), verdicts, summary, written)
