"""What the runs of `bench diagnose` say: the table, and what was expected of it.

Parity needs an eigenvalue that is not real and positive (Grazzi et al. 2024, theorem 1; Sarrof et
al. 2024), so cores whose decays lie in [0, 1] fail it at some length, as attention does (Hahn
2020); recurrent networks, signed decays and the delta rule with beta up to 2 track it. A product of
permutations also needs transitions that do not commute, which no diagonal core has (Merrill et al.
2024). A fixed convolution copies, and cannot choose what to copy (Gu & Dao 2023). Attention copies
(Jelassi et al. 2024) and recalls (Arora et al. 2023); the delta rule recalls (Yang et al. 2024).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from rich import box
from rich.table import Table
from rich.text import Text

from statewise.bench.diagnose_runs import Run
from statewise.bench.diagnose_tasks import TASKS
from statewise.bench.diagnose_train import cores

SOLVED = 0.95  # of what is asked for, in every seed
SEEDS = 3  # an expectation is judged from at least so many
NOT_RUN = "-"
Outcome = Literal["solves", "fails"]

EXPECTED: dict[tuple[str, str], Outcome] = {
    ("rg_lru", "parity"): "fails",
    ("mamba", "parity"): "fails",
    ("mamba, mimetic", "parity"): "fails",
    ("mamba2", "parity"): "fails",
    ("mamba2, mimetic", "parity"): "fails",
    ("delta_net", "parity"): "fails",
    ("attention", "parity"): "fails",
    ("mamba, signed", "parity"): "solves",
    ("delta_net, negative", "parity"): "solves",
    ("gru", "parity"): "solves",
    ("lstm", "parity"): "solves",
    ("s4", "permutations"): "fails",
    ("mamba", "permutations"): "fails",
    ("delta_net, negative", "permutations"): "solves",
    ("gru", "permutations"): "solves",
    ("lstm", "permutations"): "solves",
    ("s4", "copy"): "solves",
    ("attention", "copy"): "solves",
    ("s4", "selective copy"): "fails",
    ("mamba", "selective copy"): "solves",
    ("delta_net", "recall"): "solves",
    ("attention", "recall"): "solves",
}
"""What the literature says: "solves" at the length of training, "fails" at twice that length."""


@dataclass(frozen=True)
class Cell:
    """A core on a task, over seeds."""

    accuracy: float  # mean over seeds
    accuracy_long: float  # mean over seeds, at twice the length
    worst: float  # accuracy of the worst seed
    best_long: float  # of the best seed, at twice the length
    num_seeds: int  # that have run
    complete: bool  # all seeds that were asked for have run

    @property
    def solved(self) -> bool:
        """Whether every seed that was asked for learned it at the length of training."""
        return self.complete and self.worst >= SOLVED


LEGEND = (
    f"accuracy (* at least {SOLVED} in every seed), then accuracy at twice the length; "
    "under the task what guessing gets"
)
Cells = dict[tuple[str, str], Cell]


def summarize(runs: Sequence[Run], seeds: Sequence[int]) -> Cells:
    """Return a cell per core and task that has runs, in the order of both tables.

    Args:
        runs: of equal settings, one per core, task and seed.
        seeds: that were asked for; others do not count.
    """
    found: Cells = {}
    for core in cores():
        for task in TASKS:
            here = {r.seed: r for r in runs if (r.core, r.task) == (core, task) and r.seed in seeds}
            if here:
                short = [run.accuracy for run in here.values()]
                long = [run.accuracy_long for run in here.values()]
                found[core, task] = Cell(
                    fmean(short),
                    fmean(long),
                    min(short),
                    max(long),
                    len(here),
                    set(here) == set(seeds),
                )
    return found


def rows_and_columns(cells: Cells) -> tuple[list[str], list[str]]:
    """Return the cores and the tasks that have a cell, in order."""
    tasks = {task for _, task in cells}
    return list(dict.fromkeys(core for core, _ in cells)), [t for t in TASKS if t in tasks]


def verdicts(cells: Cells) -> tuple[bool, list[str]]:
    """Return whether all expectations that can be judged hold, and a line for each."""
    lines, passed = [], True
    for (core, task), outcome in EXPECTED.items():
        cell = cells.get((core, task))
        if cell is None or cell.num_seeds < SEEDS:
            continue
        if outcome == "solves":
            holds = cell.solved
            found = f"worst of {cell.num_seeds} seeds {cell.worst:.3f}, expected >= {SOLVED}"
        else:
            holds = cell.best_long < SOLVED
            found = (
                f"best of {cell.num_seeds} seeds {cell.best_long:.3f} at twice the length, "
                f"expected < {SOLVED}"
            )
        passed = passed and holds
        lines.append(f"{'PASS' if holds else 'FAIL'}  {core} {outcome} {task}: {found}")
    return passed, lines


def build_table(cells: Cells) -> Table:
    """Return the table: accuracy, a mark where solved, and accuracy at twice the length."""
    table = Table(title="diagnose", title_justify="left", box=box.SIMPLE_HEAD)
    shown_cores, tasks = rows_and_columns(cells)
    table.add_column("core\nchance")
    for task in tasks:
        table.add_column(f"{task}\n{TASKS[task].chance:.3g}", justify="right")
    for core in shown_cores:
        texts = (cell_text(cells.get((core, task))) for task in tasks)
        table.add_row(*map(Text, (core, *texts)))
    return table


def cell_text(cell: Cell | None) -> str:
    """Return "0.99* 0.75" for a solved task."""
    if cell is None:
        return NOT_RUN
    return f"{cell.accuracy:.2f}{'*' if cell.solved else ' '} {cell.accuracy_long:.2f}"
