"""The finished runs of `bench diagnose` and the CSV file that keeps them."""

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from statewise.training.run import write_atomic
from statewise.training.schema import ConfigError

INTEGERS = ("seed", "budget", "updates", "parameters")
NUMBERS = ("accuracy", "accuracy_long", "minutes")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row of the file: a core trained on a task from one seed."""

    core: str
    task: str
    seed: int
    budget: int  # updates allowed
    settings: str  # the others, as `DiagnoseOptions.settings` writes them
    updates: int  # made: training stops when nothing is left to learn
    reached: int | None  # the update at which the accuracy in training had reached 0.95
    accuracy: float  # in [0, 1], on new sequences of the length of training
    accuracy_long: float  # the same at twice the length
    parameters: int
    minutes: float  # of processor time

    @property
    def key(self) -> tuple[str, str, int, int, str]:
        """What was asked for; two runs of one key are the same run."""
        return (self.core, self.task, self.seed, self.budget, self.settings)


COLUMNS = tuple(entry.name for entry in fields(Run))


def read_runs(path: Path) -> list[Run]:
    """Return the runs that a file holds; none where there is no file.

    Raises:
        ConfigError: it is no file of this command.
    """
    if not path.exists():
        return []
    reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ConfigError(
            f"{path}: expected the columns {', '.join(COLUMNS)}, got "
            f"{', '.join(reader.fieldnames or ()) or 'none'}: move the file away"
        )
    return [_read_row(row, f"{path}, line {reader.line_num}") for row in reader]


def _read_row(row: dict[str, str], where: str) -> Run:
    values: dict[str, Any] = dict(row)
    try:
        values |= {name: int(row[name]) for name in INTEGERS}
        values |= {name: float(row[name]) for name in NUMBERS}
        values["reached"] = int(row["reached"]) if row["reached"] else None
        return Run(**values)
    except (TypeError, ValueError):
        words = ", ".join(str(value) for value in row.values())
        raise ConfigError(
            f"{where}: expected a run with the columns of the first line, got {words}: "
            "remove the line"
        ) from None


def write_runs(path: Path, runs: Iterable[Run]) -> None:
    """Write the file anew, whole or not at all."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for run in runs:
        writer.writerow(
            {
                key: f"{value:.6g}" if isinstance(value, float) else value
                for key, value in asdict(run).items()
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, file.getvalue().encode())
