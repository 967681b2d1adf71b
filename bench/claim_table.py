"""The result table of a claim: a row per run, CSV; runs that were not made are named in it."""

import csv
import io
from collections.abc import Collection, Sequence
from typing import Any

from statewise.bench.claim_checks import Rows
from statewise.bench.claim_metrics import METRICS, OPEN_LOOP, SCORE
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
WORLD_COLUMNS = (
    *("preset", "arm", "core", "task", "data", "seed", "steps"),
    *(*OPEN_LOOP, "updates_per_s", "tokens_per_s", "minutes"),
)
"""Of world models that learn from data; steps are updates."""
NOT_RUN = "not run"  # in the place of the score, or of the steps where there is no score
NO_DATA = f"{NOT_RUN}: no data"
NEVER = "never"  # in the place of when something was reached


def columns_of(claim: Claim) -> tuple[str, ...]:
    """Return the columns of a claim's table.

    What else is checked stands before the minutes; `reached` only if the claim asks for that.
    """
    own = {"online": COLUMNS, "policies": OFFLINE_COLUMNS, "worlds": WORLD_COLUMNS}[claim.kind]
    left_out = "reached" if claim.reached is None else ""
    columns = [column for column in own if column != left_out]
    more = [one.column for one in claim.measures() if one.column not in (*columns, *METRICS)]
    return (*columns[:-1], *more, columns[-1])


def table_text(claim: Claim, rows: Rows, seeds: Sequence[int], absent: Collection[str] = ()) -> str:
    """Return the table as CSV, in the order of arms and seeds; `absent` arms have no data."""
    file = io.StringIO()
    columns = columns_of(claim)
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    never = {one.column for one in claim.measures() if one.reaches is not None}
    for arm in claim.arms:
        for seed in sorted(seeds):
            found = rows.get((arm.name, seed))
            row = dict(found or _not_run(arm, seed))
            row["data"] = arm.data.name if arm.data else ""
            if found is None:
                place = SCORE if SCORE in columns else "steps"
                row[place] = NO_DATA if arm.name in absent else NOT_RUN
            else:
                row |= {key: NEVER for key in never if found[key] is None}
            writer.writerow({key: cell_text(row.get(key)) for key in columns})
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
    }


def cell_text(value: Any) -> str:
    """Return a number with six digits, None as nothing."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
