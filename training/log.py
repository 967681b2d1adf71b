"""Metrics: one JSON object per line in metrics.jsonl, and the same scalars for TensorBoard.

Names are `group/name`, Stable-Baselines3's where it has one. The step axis is environment
steps, or updates of agents that learn from data. A resumed run drops what was written after its
checkpoint, in both places, so that no step appears twice.
"""

import json
import math
import os
import time
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from statewise.training.run import RunDirectory, RunError

_TB_FLUSH_S = 120


class MetricsWarning(UserWarning):
    """The metrics of a resumed run have a gap."""


class MetricLogger:
    """Writes the metrics of one run.

    Nothing is removed by making one: lines are appended.

    Args:
        run: where `metrics.jsonl` and `tb/` are.
        start_step: None for a new run; else the first step that this logger writes, at least
            0: TensorBoard drops what it has from there on.
        wall_offset_s: seconds of training before this process, at least 0.
    """

    def __init__(
        self, run: RunDirectory, *, start_step: int | None = None, wall_offset_s: float = 0.0
    ) -> None:
        self._next_step = start_step or 0
        self._start_s = time.monotonic() - wall_offset_s
        self._file = run.metrics_path.open("ab")
        self._tensorboard: SummaryWriter = SummaryWriter(
            str(run.tb_dir), purge_step=start_step, flush_secs=_TB_FLUSH_S
        )

    @classmethod
    def resume(cls, run: RunDirectory, state: Mapping[str, Any]) -> "MetricLogger":
        """Go on from what `state_dict` returned; lines written after it are cut off."""
        offset, size = state["offset"], _size(run)
        if size < offset:
            warnings.warn(
                f"{run.metrics_path} holds {size} bytes, {offset} when the checkpoint was made:"
                " the curves have a gap",
                MetricsWarning,
                stacklevel=2,
            )
        elif size > offset:
            os.truncate(run.metrics_path, offset)
        return cls(run, start_step=state["start_step"], wall_offset_s=state["wall_s"])

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step; NaN and infinities become null in metrics.jsonl.

        Args:
            step: environment steps so far, never lower than at the call before.
            metrics: numbers by name, `group/name`.
        """
        # The last step may be written twice, by training and by an evaluation after it.
        assert step >= self._next_step - 1, (step, self._next_step)
        self._next_step = step + 1
        wall_s = self._wall_s()
        row: dict[str, float | None] = {"step": step, "wall_s": round(wall_s, 3)}
        for name, value in metrics.items():
            number = float(value)
            row[name] = number if math.isfinite(number) else None
            self._tensorboard.add_scalar(name, number, step)
        self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def state_dict(self) -> dict[str, float]:
        """Return what `resume` needs, once everything written so far is on the disk.

        What belongs to a step is to be written before the state is taken.
        """
        os.fsync(self._file.fileno())
        self._tensorboard.flush()
        return {
            "offset": self._file.tell(),
            "start_step": self._next_step,
            "wall_s": self._wall_s(),
        }

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._tensorboard.close()

    def __enter__(self) -> "MetricLogger":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _wall_s(self) -> float:
        return time.monotonic() - self._start_s


def _size(run: RunDirectory) -> int:
    return run.metrics_path.stat().st_size if run.metrics_path.exists() else 0


def read_metrics(run: RunDirectory) -> list[dict[str, float]]:
    """Return the rows of metrics.jsonl, null as NaN; empty if nothing was written yet.

    A last line without its end is ignored: it is being written, or the process died in it.

    Raises:
        RunError: a line before it is not a JSON object.
    """
    if not run.metrics_path.exists():
        return []
    lines = run.metrics_path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
            rows.append({k: math.nan if v is None else v for k, v in row.items()})
        except (ValueError, AttributeError) as error:
            raise RunError(
                f"{run.metrics_path}, line {number}: expected a JSON object: delete the line"
            ) from error
    return rows
