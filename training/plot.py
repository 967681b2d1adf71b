"""Learning curves from run directories: one run with its evaluation, or many runs compared."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from statewise.training.log import read_metrics
from statewise.training.run import RunDirectory, RunError, read_json
from statewise.training.statistics import mean_interval

METRIC = "rollout/ep_rew_mean"
# Okabe and Ito's colours, told apart by colour-blind readers; the pale yellow is left out.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":")
_MIN_FOR_INTERVAL = 3  # of two runs an interval says little: their range is drawn instead

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """The learning curve of a run, and what it is compared by."""

    run: RunDirectory
    env: str
    label: str
    steps: Floats
    """(P,) environment steps, rising."""
    returns: Floats
    """(P,) mean episode return."""


def _read_curve(path: Path) -> Curve:
    run = RunDirectory.open(path)
    points = {row["step"]: row[METRIC] for row in read_metrics(run) if METRIC in row}
    points = {step: value for step, value in points.items() if math.isfinite(value)}
    if not points:
        raise RunError(f"{path} has no {METRIC} yet: plot it once an episode has ended")
    try:
        config = yaml.safe_load(run.config_path.read_bytes())
        env, kind = config["env"]["id"], config["agent"]["sequence"]["kind"]
        preset = run.read_preset().removesuffix(".yaml") or config["system"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise RunError(
            f"{run.config_path}: expected system, env.id and agent.sequence.kind"
        ) from error
    steps = sorted(points)
    values = np.array([points[step] for step in steps])
    return Curve(run, env, f"{preset}, {kind}", np.array(steps, dtype=np.float64), values)


def _start_axes(title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    # Figure's own canvas: pyplot would keep the figure, and might ask for a display.
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("episode return")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
    return figure, axes


def _draw_line(axes: Axes, steps: Floats, values: Floats, label: str, number: int) -> str:
    """Draw a curve and return its colour."""
    color = COLORS[number % len(COLORS)]
    axes.plot(
        steps,
        values,
        color=color,
        linestyle=STYLES[number // len(COLORS) % len(STYLES)],
        marker="o" if len(steps) == 1 else "",
        linewidth=1.8,
        label=label,
    )
    return color


def _draw_evaluation(axes: Axes, curve: Curve) -> None:
    path = curve.run.eval_path
    if not path.exists():
        return
    evaluation = read_json(path)
    try:
        mean, step = float(evaluation["return_mean"]), int(evaluation["step"])
        low, high = evaluation["return_ci95"]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path}: expected step, return_mean and return_ci95: run `statewise eval` again"
        ) from error
    label = f"evaluation at {step:,} steps: {mean:.3g}"
    axes.axhline(mean, color=COLORS[1], linestyle="--", linewidth=1.4, label=label)
    if low is not None and high is not None:
        axes.axhspan(low, high, color=COLORS[1], alpha=0.12, linewidth=0, label="its 95 % interval")


def _plot_one(curve: Curve) -> Figure:
    figure, axes = _start_axes(curve.env)
    _draw_line(axes, curve.steps, curve.returns, f"{curve.label}, training", 0)
    _draw_evaluation(axes, curve)
    axes.legend(edgecolor="none")
    return figure


def aggregate(curves: Sequence[Curve]) -> tuple[Floats, Floats, Floats, Floats]:
    """Return steps, mean, low and high over runs, each (P,).

    The steps are all those of any run inside the part that every run has; between two of its
    points a run is interpolated. Low and high are the 95 % interval of the mean from three
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
    if len(curves) < _MIN_FOR_INTERVAL:
        return steps, values.mean(0), values.min(0), values.max(0)
    mean, low, high = np.array([mean_interval(column) for column in values.T]).T
    return steps, mean, low, high


def _plot_groups(curves: Sequence[Curve]) -> Figure:
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.env, curve.label), []).append(curve)
    envs = sorted({curve.env for curve in curves})
    figure, axes = _start_axes(", ".join(envs))
    for number, ((env, label), members) in enumerate(groups.items()):
        steps, mean, low, high = aggregate(members)
        name = label if len(envs) == 1 else f"{env}: {label}"
        if len(members) == 1:
            _draw_line(axes, steps, mean, name, number)
            continue
        band = "range" if len(members) < _MIN_FOR_INTERVAL else "95 % interval"
        name += f" ({len(members)} runs, mean and {band})"
        color = _draw_line(axes, steps, mean, name, number)
        axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
    axes.legend(edgecolor="none", fontsize="small" if len(groups) > 4 else "medium")
    return figure


def plot_runs(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Draw learning curves and return the path of the figure.

    One run: its curve, and its evaluation if there is one. Several runs: mean and interval
    for each environment, preset and sequence model.

    Args:
        runs: run directories, at least one.
        out: the figure; its suffix chooses the format. None: `plots/learning_curve.png` in
            the run, or `learning_curves.png` in the working directory for several.

    Raises:
        RunError: a run cannot be read or has no returns yet, or `out` cannot be written.
    """
    if not runs:
        raise RunError("plot: expected at least one run directory, got none")
    curves = [_read_curve(path) for path in runs]
    if out is None and len(curves) == 1:
        out = curves[0].run.plots_dir / "learning_curve.png"
    out = out or Path("learning_curves.png")
    figure = _plot_one(curves[0]) if len(curves) == 1 else _plot_groups(curves)
    supported = sorted(figure.canvas.get_supported_filetypes())
    if out.suffix.removeprefix(".").lower() not in supported:
        raise RunError(f"{out}: expected a suffix among {', '.join(supported)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out)
    except OSError as error:
        raise RunError(f"the figure {out} cannot be written: {error.strerror}") from error
    return out
