"""`statewise reproduce`: train the arms of a claim, evaluate, compare, tabulate and draw."""

import csv
import io
import signal
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from statewise.bench.arm import run_path
from statewise.bench.claims import Claim
from statewise.bench.process import Answer, finish, start
from statewise.training.log import read_metrics
from statewise.training.plot import COLORS, METRIC, Curve, aggregate
from statewise.training.run import RunDirectory, write_atomic

COLUMNS = (
    "preset",
    "arm",
    "core",
    "task",
    "seed",
    "steps",
    "score",
    "ci_low",
    "ci_high",
    "minutes",
)


@dataclass(frozen=True)
class Result:
    """What came out of a claim."""

    rows: list[Answer]
    """One per arm and seed, with the keys of `COLUMNS`."""
    passed: bool
    verdicts: list[str]
    """One line per check."""
    written: list[Path]
    """The table and the figure."""


def reproduce(
    source: str,
    claim: Claim,
    *,
    seeds: Sequence[int],
    root: Path,
    out: Path,
    workers: int,
    say: Callable[[str], None],
) -> Result:
    """Bring every run of a claim to its end and check the claim.

    Runs that are finished are not repeated, half-finished ones go on where they stopped.

    Args:
        source: name or path that `claim` was loaded from.
        claim: what is claimed.
        seeds: at least one.
        root: folder of the runs, `<root>/<claim>/<arm>-seed<k>`.
        out: folder of the table `<claim>.csv` and the figure `<claim>.png`.
        workers: runs at a time, each on one thread; at least 1.
        say: is told of every run that has ended.

    Raises:
        RunError: a run failed.
        KeyboardInterrupt: Ctrl-C; the runs under way have saved a checkpoint.
    """
    jobs = [
        {
            "kind": "arm",
            "system": f"{claim.name}, {arm.name}, seed {seed}",
            "claim": source,
            "arm": arm.name,
            "seed": seed,
            "root": str(root),
            "threads": 1,
        }
        for seed in seeds
        for arm in claim.arms
    ]
    rows = _Pool(workers, say).run(jobs)
    order = [arm.name for arm in claim.arms]
    rows.sort(key=lambda row: (order.index(row["arm"]), row["seed"]))
    scores = {name: [row["score"] for row in rows if row["arm"] == name] for name in order}
    verdicts = [check.verdict(scores[check.arm]) for check in claim.checks]
    out.mkdir(parents=True, exist_ok=True)
    table, figure = out / f"{claim.name}.csv", out / f"{claim.name}.png"
    write_atomic(table, table_text(rows).encode())
    draw_claim(claim, seeds, root, figure)
    passed = all(ok for ok, _ in verdicts)
    return Result(rows, passed, [line for _, line in verdicts], [table, figure])


class _Pool:
    """Runs jobs in worker processes, some at a time, and stops them gently on Ctrl-C."""

    def __init__(self, workers: int, say: Callable[[str], None]):
        self._workers, self._say = workers, say
        self._processes: list[subprocess.Popen[str]] = []
        self._stopping = False

    def run(self, jobs: Sequence[dict[str, Any]]) -> list[Answer]:
        """Return the answers in any order."""
        rows: list[Answer] = []
        with ThreadPoolExecutor(self._workers) as executor:
            waiting = {executor.submit(self._one, job) for job in jobs}
            try:
                while waiting:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    rows += [self._tell(future, len(jobs)) for future in done]
            except BaseException:
                self._stopping = True
                for future in waiting:
                    future.cancel()
                for process in self._processes:
                    if process.poll() is None:
                        process.send_signal(signal.SIGINT)
                raise
        return rows

    def _one(self, job: dict[str, Any]) -> Answer:
        if self._stopping:
            raise KeyboardInterrupt
        process = start(job)
        self._processes.append(process)
        return finish(process, job["system"])

    def _tell(self, future: Future[Answer], total: int) -> Answer:
        row = future.result()
        self._say(
            f"{row['arm']}, seed {row['seed']}: {row['score']:.4f} after {row['steps']} steps, "
            f"{row['minutes']:.1f} minutes ({total} runs in all)"
        )
        return row


def table_text(rows: Sequence[Answer]) -> str:
    """Return the result table as CSV."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {
                key: f"{value:.6g}" if isinstance(value, float) else value
                for key, value in row.items()
            }
        )
    return file.getvalue()


def draw_claim(claim: Claim, seeds: Sequence[int], root: Path, path: Path) -> None:
    """Draw the learning curves of all arms, mean and band over the seeds, and the limits."""
    # Figure's own canvas: pyplot would keep the figure, and might ask for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, arm in enumerate(claim.arms):
        color = COLORS[number % len(COLORS)]
        curves = [_curve(run_path(root, claim, arm.name, seed), arm.name) for seed in seeds]
        steps, mean, low, high = aggregate(curves)
        band = "95 % interval" if len(curves) > 2 else "range"
        axes.plot(steps, mean, color=color, label=f"{arm.name} ({len(curves)} seeds, {band})")
        axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
        for check in claim.checks:
            if check.arm == arm.name:
                axes.axhline(check.limit, color=color, linestyle=":", linewidth=1)
    axes.set_title(claim.title)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("episode return in training (dotted: claimed limits)")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(edgecolor="none")
    figure.savefig(path)


def _curve(path: Path, label: str) -> Curve:
    run = RunDirectory.open(path)
    rows = [row for row in read_metrics(run) if np.isfinite(row.get(METRIC, np.nan))]
    steps = np.array([row["step"] for row in rows], dtype=np.float64)
    return Curve(run, "", label, steps, np.array([row[METRIC] for row in rows], np.float64))
