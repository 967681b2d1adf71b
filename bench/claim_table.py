"""The result table of a claim: a row per run, CSV; runs that were not made are named in it."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from statewise.bench.claim_checks import SCORE, Rows
from statewise.bench.claims import Arm, Claim
from statewise.bench.offline_arm import core_of
from statewise.training.config import S4WMRun

COLUMNS = (
    "preset",
    "arm",
    "core",
    "task",
    "seed",
    "steps",
    SCORE,
    "ci_low",
    "ci_high",
    "minutes",
)
"""Of agents that learn in their environment."""
OFFLINE_COLUMNS = (
    *("preset", "arm", "core", "task", "data", "seed", "steps", SCORE),
    *("return", "ci_low", "ci_high", "spread", "spearman", "relative_error", "reached"),
    *("parameters", "updates_per_s", "tokens_per_s", "ms_per_action", "minutes"),
)
"""Of agents that learn from data; steps are updates, the interval is that of the return."""
NOT_RUN = "not run"  # in the place of the score


def columns_of(claim: Claim) -> tuple[str, ...]:
    """Return the columns of a claim's table; `reached` only if it asks for that."""
    if not claim.has_data:
        return COLUMNS
    left_out = "reached" if claim.reached is None else ""
    return tuple(column for column in OFFLINE_COLUMNS if column != left_out)


def table_text(claim: Claim, rows: Rows, seeds: Sequence[int]) -> str:
    """Return the table as CSV, in the order of arms and seeds."""
    file = io.StringIO()
    columns = columns_of(claim)
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    for arm in claim.arms:
        for seed in sorted(seeds):
            row = rows.get((arm.name, seed)) or _not_run(arm, seed)
            row = row | {"data": arm.data.name if arm.data else ""}
            writer.writerow({key: _text(row.get(key)) for key in columns})
    return file.getvalue()


def _not_run(arm: Arm, seed: int) -> dict[str, Any]:
    config = arm.config(seed)
    env = "" if isinstance(config, S4WMRun) else config.env.id
    return {
        "preset": arm.preset,
        "arm": arm.name,
        "core": core_of(config),
        "task": env or (arm.data.env_id if arm.data else ""),
        "seed": seed,
        SCORE: NOT_RUN,
    }


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
