"""`bench diagnose`: which memory learns which task; every core on every task, in minutes.

A run is a core, a task and a seed, in a process of its own on one thread. Finished runs are kept
in `<out>/diagnose.csv` at once and are not repeated. Rows of other settings stay in the file and
out of the table.
"""

import subprocess
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from statewise.bench.diagnose_runs import Run, read_runs, write_runs
from statewise.bench.diagnose_tasks import TASKS
from statewise.bench.diagnose_train import cores
from statewise.bench.process import Answer, Job, finish, start
from statewise.training.schema import ConfigError, nearest

FILE = "diagnose.csv"
POLL = 0.1  # seconds between two looks at the workers


@dataclass(frozen=True, kw_only=True)
class DiagnoseOptions:
    """What is trained, and how; the defaults were tuned on seeds 11 and 12."""

    cores: tuple[str, ...] = tuple(cores())  # names of `diagnose_train.cores`, at least one
    tasks: tuple[str, ...] = tuple(TASKS)  # names of `diagnose_tasks.TASKS`, at least one
    seeds: tuple[int, ...] = (1, 2, 3)  # >= 0, at least one
    updates: int | None = None  # >= 1, at most, of a run; None means what its task has
    batch: int = 16  # >= 1, rows of an update, two episodes each
    width: int = 32  # >= 1, of the blocks
    num_layers: int = 2  # >= 1, blocks
    learning_rate: float = 1e-2  # > 0, its peak
    workers: int = 1  # >= 1, runs at a time

    def __post_init__(self) -> None:
        for option, asked, known in (
            ("--core", self.cores, tuple(cores())),
            ("--task", self.tasks, tuple(TASKS)),
        ):
            for name in asked:
                if name not in known:
                    raise ConfigError(
                        f"{option}: expected one of {', '.join(map(repr, known))}, got {name!r}"
                        f"{nearest(name, known)}"
                    )

    def budget(self, task: str) -> int:
        """Return how many updates a run of a task may take; it stops when all is learned."""
        return self.updates or TASKS[task].updates

    def settings(self, core: str) -> str:
        """Return what else decides a run's result, as the file has it."""
        own = (f"{name}={value}" for name, value in cores()[core].options.items())
        return " ".join((*self._shared(), *own))

    def title(self) -> str:
        """Return a line that says how the runs were made."""
        seeds = " ".join(map(str, self.seeds))
        return f"bench diagnose: seeds {seeds}, {' '.join(self._shared())}"

    def _shared(self) -> tuple[str, ...]:
        return (
            f"width={self.width}",
            f"layers={self.num_layers}",
            f"batch={self.batch}",
            f"rate={self.learning_rate:g}",
        )

    def wants(self, run: Run) -> bool:
        """Return whether a run of the file belongs to the table of these options."""
        return (
            run.core in cores()
            and run.task in TASKS
            and run.seed in self.seeds
            and run.budget == self.budget(run.task)
            and run.settings == self.settings(run.core)
        )


def run_diagnose(options: DiagnoseOptions, out: Path, say: Callable[[str], None]) -> list[Run]:
    """Bring every run that is asked for to its end.

    Args:
        options: what is asked for.
        out: folder of the file of runs.
        say: is told of every run that has ended.

    Returns:
        The runs of the file that have these settings and seeds, those of other cores and tasks
        included.

    Raises:
        ConfigError: the file in `out` is not of this command.
        RunError: a run failed; those that are finished are kept.
    """
    path = out / FILE
    jobs = _missing(options, path)
    asked = len(options.tasks) * len(options.cores) * len(options.seeds)
    if len(jobs) < asked:
        say(f"{asked - len(jobs)} of {asked} runs are in {path}")
    with closing(_answers(jobs, options.workers)) as answers:
        for number, (job, answer) in enumerate(answers, 1):
            run = Run(**answer, settings=options.settings(job["core"]))
            # Read again: another command may have added runs in the meantime.
            write_runs(path, _in_order([*(r for r in read_runs(path) if r.key != run.key), run]))
            say(
                f"{number} of {len(jobs)}: {run.core}, {run.task}, seed {run.seed}: accuracy "
                f"{run.accuracy:.3f}, at twice the length {run.accuracy_long:.3f}, after "
                f"{run.updates} updates"
            )
    return [run for run in read_runs(path) if options.wants(run)]


def _missing(options: DiagnoseOptions, path: Path) -> list[Job]:
    """Return a job for each run that the file does not have, task by task."""
    kept = {run.key for run in read_runs(path)}
    return [
        _job(options, core, task, seed)
        for task in options.tasks
        for core in options.cores
        for seed in options.seeds
        if (core, task, seed, options.budget(task), options.settings(core)) not in kept
    ]


def _job(options: DiagnoseOptions, core: str, task: str, seed: int) -> Job:
    return {
        "kind": "diagnose",
        "core": core,
        "task": task,
        "seed": seed,
        "budget": options.budget(task),
        "batch": options.batch,
        "width": options.width,
        "num_layers": options.num_layers,
        "learning_rate": options.learning_rate,
        "threads": 1,
    }


def _answers(jobs: Sequence[Job], workers: int) -> Generator[tuple[Job, Answer]]:
    """Run jobs in processes, some at a time; yield each with its answer when it has ended.

    What is still running when the generator is closed, or fails, is ended.
    """
    waiting, running = list(jobs), dict[subprocess.Popen[str], Job]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop(0)
                running[start(job)] = job
            ended = [process for process in running if process.poll() is not None]
            for process in ended:
                job = running.pop(process)
                name = f"{job['core']}, {job['task']}, seed {job['seed']}"
                yield job, finish(process, name)
            if not ended:
                time.sleep(POLL)
    finally:
        for process in running:
            process.kill()
            process.wait()


def _in_order(runs: Sequence[Run]) -> list[Run]:
    """Sort runs as the table has them; those of unknown names come last."""
    core_order, task_order = list(cores()), list(TASKS)

    def place(run: Run) -> tuple[int, int, int, int, str]:
        core = core_order.index(run.core) if run.core in core_order else len(core_order)
        task = task_order.index(run.task) if run.task in task_order else len(task_order)
        return (core, task, run.seed, run.budget, run.settings)

    return sorted(runs, key=place)
