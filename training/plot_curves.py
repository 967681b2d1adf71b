"""What `statewise plot` draws: curves of runs, read from what they have logged, and their mean.

A run in its environment is drawn by its episode returns over environment steps. A run on data is
drawn over updates: by the scores of its evaluations on the way, without reference returns by their
returns, without evaluations, or of a world model, by its loss. Runs that are drawn together share
what they are drawn by.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from statewise.training.log import read_metrics
from statewise.training.run import RunDirectory, RunError
from statewise.training.statistics import mean_interval

METRIC = "rollout/ep_rew_mean"
SCORE, RETURN = "eval/score", "eval/return_mean"
AXES = {METRIC: "episode return", SCORE: "score", RETURN: "episode return"}
LOSSES = ("offline/", "world_model/")  # groups of the losses of runs on data
MIN_FOR_INTERVAL = 5  # of fewer runs, one of which jumps, an interval leaves what can be: range
_UNITS = {False: "environment steps", True: "updates"}  # by whether a run is on data

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """The learning curve of a run, and what it is compared by."""

    run: RunDirectory
    env: str
    label: str
    steps: Floats
    """(P,) environment steps or updates, rising."""
    returns: Floats
    """(P,) mean episode return, or what `metric` says."""
    metric: str = METRIC

    @property
    def is_loss(self) -> bool:
        """Whether it says nothing about returns."""
        return self.metric not in AXES

    @property
    def x_label(self) -> str:
        """What `steps` counts."""
        return _UNITS[self.metric != METRIC]

    @property
    def y_label(self) -> str:
        """What `returns` holds."""
        loss = self.metric.partition("/")[2].replace("_", " ")
        return AXES.get(self.metric, loss)


@dataclass(frozen=True)
class _Logged:
    """A run with the curves that it can be drawn by."""

    run: RunDirectory
    env: str
    label: str
    is_on_data: bool
    points: dict[str, dict[float, float]]
    """By metric, the one to prefer first: finite values by step."""

    def curve(self, metric: str) -> Curve:
        points = self.points[metric]
        steps = sorted(points)
        values = np.array([points[step] for step in steps])
        return Curve(
            self.run, self.env, self.label, np.array(steps, dtype=np.float64), values, metric
        )


def _data_words(data: dict[str, Any]) -> list[str]:
    """Return which data a run learned from, and what was done to them."""
    words = [" + ".join(Path(path).stem for path in data["paths"])]
    if (share := data.get("keep_best", 1.0)) < 1:
        words.append(f"best {100 * share:g} %")
    if data.get("reward") == "delayed":
        words.append("delayed reward")
    return words


def _memory_words(agent: dict[str, Any], env: dict[str, Any], is_on_data: bool) -> list[str]:
    """Return the layer of the memory, if there is one, and when a control's is cleared."""
    if "world" in agent:
        world = agent["world"]
        sequence = world["parallel"]["sequence"] if world["core"] == "parallel" else {"kind": "gru"}
    elif is_on_data and "sequence" not in agent:
        return []
    else:
        sequence = agent["sequence"]
    words = [str(sequence["kind"])]
    words += ["without memory"] if sequence.get("memory") == "none" else []
    words += ["memory of an episode"] if env.get("trial", {}).get("memory") == "episode" else []
    return words


def _describe(run: RunDirectory) -> tuple[str, str, bool]:
    """Return environment, label, and whether the run is on data.

    Raises:
        RunError: the settings do not say.
    """
    manifest = run.read_manifest()
    try:
        config: dict[str, Any] = yaml.safe_load(run.config_path.read_bytes())
        system, agent, data = config["system"], config["agent"], config.get("data")
        env = (
            config.get("env", {"id": ""})["id"]
            or (data and manifest["data"]["env_id"])
            or "own environment"
        )
        words = [run.read_preset().removesuffix(".yaml") or system]
        if "finetune" in manifest:
            words = [f"{system} fine-tuned"]
        words += _memory_words(agent, config.get("env", {}), data is not None)
        words += [] if data is None else _data_words(data)
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{run.config_path}: expected system, env.id and agent.sequence.kind"
        ) from error
    return (
        str(env),
        ", ".join(word for word in words if word),
        data is not None and "finetune" not in manifest,
    )


def _read(path: Path) -> _Logged:
    run = RunDirectory.open(path)
    env, label, is_on_data = _describe(run)
    rows = read_metrics(run)
    names = [METRIC]
    if is_on_data:
        logged = dict.fromkeys(name for row in rows for name in row)
        losses = [name for name in logged if name.startswith(LOSSES) and name.endswith("loss")]
        names = [SCORE, RETURN, *losses]
    points = {
        name: {row["step"]: row[name] for row in rows if math.isfinite(row.get(name, math.nan))}
        for name in names
    }
    found = {name: values for name, values in points.items() if values}
    if not found and is_on_data:
        raise RunError(f"{path} has no evaluation and no loss yet: plot it once they are logged")
    if not found:
        raise RunError(f"{path} has no {METRIC} yet: plot it once an episode has ended")
    return _Logged(run, env, label, is_on_data, found)


def read_curves(paths: Sequence[Path]) -> list[Curve]:
    """Return a curve of every run, all of the same metric.

    Raises:
        RunError: a run cannot be read or has no curve yet, some are on data and others are not,
            or there is nothing that all have logged.
    """
    runs = [_read(path) for path in paths]
    first = runs[0]
    for other in runs:
        if other.is_on_data != first.is_on_data:
            units = [f"{one.run.path} over {_UNITS[one.is_on_data]}" for one in (first, other)]
            raise RunError(
                f"plot: expected runs on data or runs in an environment, got {' and '.join(units)}:"
                " plot them apart"
            )
    shared = [name for name in first.points if all(name in one.points for one in runs)]
    if not shared:
        raise RunError(
            f"plot: expected a loss or evaluations in all of the runs, got {len(runs)} runs that"
            " share none: plot them one by one, or train with --eval.every-updates N"
        )
    return [one.curve(shared[0]) for one in runs]


def aggregate(curves: Sequence[Curve]) -> tuple[Floats, Floats, Floats, Floats]:
    """Return steps, mean, low and high over runs, each (P,).

    The steps are all those of any run inside the part that every run has; between two of its
    points a run is interpolated. Low and high are the 95 % interval of the mean from five
    runs on, and the lowest and highest run below that.

    Raises:
        RunError: there is no step that all runs have reached.
    """
    first = max(curve.steps[0] for curve in curves)
    last = min(curve.steps[-1] for curve in curves)
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    steps = steps[(steps >= first) & (steps <= last)]
    if not steps.size:
        raise RunError(
            f"the runs of {curves[0].label} on {curves[0].env} have no step in common:"
            " plot them one by one"
        )
    values = np.stack([np.interp(steps, curve.steps, curve.returns) for curve in curves])
    if len(curves) < MIN_FOR_INTERVAL:
        return steps, values.mean(0), values.min(0), values.max(0)
    mean, low, high = np.array([mean_interval(column) for column in values.T]).T
    return steps, mean, low, high
