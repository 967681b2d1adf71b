"""Learning curves from run directories: one run with its evaluation, or many runs compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from statewise.data.scores import normalized_score
from statewise.training.plot_curves import (
    AXES,
    MIN_FOR_INTERVAL,
    RETURN,
    SCORE,
    Curve,
    Floats,
    aggregate,
    read_curves,
)
from statewise.training.run import RunError, read_json

__all__ = ["COLORS", "aggregate", "draw_line", "plot_runs", "read_curves", "start_axes"]

# Okabe and Ito's colours, told apart by colour-blind readers; the pale yellow is left out.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":")


def start_axes(title: str, curve: Curve) -> tuple[Figure, Axes]:
    """Return a figure with axes for this curve and others of its kind."""
    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    # Figure's own canvas: pyplot would keep the figure, and might ask for a display.
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(curve.x_label)
    axes.set_ylabel(curve.y_label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.02)
    return figure, axes


def draw_line(axes: Axes, steps: Floats, values: Floats, label: str, number: int) -> str:
    """Draw the curve of this number, told apart by colour and then by line; return its colour."""
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


class _Evaluation(NamedTuple):
    """What eval.json says, as returns or scores."""

    quantity: str
    """As in `AXES`."""
    label: str
    mean: float
    interval: tuple[float, float] | None
    """None where it is not known."""


def _read_evaluation(curve: Curve) -> _Evaluation | None:
    """Return the evaluation in the unit of the curve; beside a loss as a score, if it has one."""
    path = curve.run.eval_path
    if not path.exists():
        return None
    found = read_json(path)
    if "generation" in found:  # of a world model, which has no returns
        return None
    is_score = curve.metric == SCORE or (curve.is_loss and found.get("score") is not None)
    try:
        values = [float(found["return_mean"])]
        values += [float(bound) for bound in found["return_ci95"] if bound is not None]
        step, target = int(found["step"]), found.get("target")
        if is_score:
            reference = found["reference"]["min"], found["reference"]["max"]
            values = [float(normalized_score(value, reference)) for value in values]
    except (KeyError, TypeError, ValueError) as error:
        needed = "step, return_mean and return_ci95" + (", and reference" if is_score else "")
        raise RunError(f"{path}: expected {needed}: run `statewise eval` again") from error
    unit = "updates" if "data_sha256" in found else "steps"
    asked = "" if target is None else f", target {target:g}"
    return _Evaluation(
        AXES[SCORE if is_score else RETURN],
        f"evaluation at {step:,} {unit}{asked}: {values[0]:.3g}",
        values[0],
        (values[1], values[2]) if len(values) == 3 else None,
    )


def _draw_evaluation(axes: Axes, curve: Curve) -> None:
    """Draw it as a line with its interval; beside a loss on an axis of its own."""
    evaluation = _read_evaluation(curve)
    if evaluation is None:
        return
    if curve.is_loss:
        axes = axes.twinx()
        axes.set_ylabel(evaluation.quantity)
        axes.spines["top"].set_visible(False)
    axes.axhline(
        evaluation.mean, color=COLORS[1], linestyle="--", linewidth=1.4, label=evaluation.label
    )
    if evaluation.interval is not None:
        low, high = evaluation.interval
        axes.axhspan(low, high, color=COLORS[1], alpha=0.12, linewidth=0, label="its 95 % interval")


def _plot_one(curve: Curve) -> Figure:
    figure, axes = start_axes(curve.env, curve)
    what = "evaluations on the way" if curve.metric in (SCORE, RETURN) else "training"
    draw_line(axes, curve.steps, curve.returns, f"{curve.label}, {what}", 0)
    _draw_evaluation(axes, curve)
    handles = [handle for each in figure.axes for handle in each.get_legend_handles_labels()[0]]
    figure.axes[-1].legend(handles=handles, edgecolor="none")
    return figure


def _plot_groups(curves: Sequence[Curve]) -> Figure:
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.env, curve.label), []).append(curve)
    envs = sorted({curve.env for curve in curves})
    figure, axes = start_axes(", ".join(envs), curves[0])
    for number, ((env, label), members) in enumerate(groups.items()):
        steps, mean, low, high = aggregate(members)
        name = label if len(envs) == 1 else f"{env}: {label}"
        if len(members) == 1:
            draw_line(axes, steps, mean, name, number)
            continue
        band = "range" if len(members) < MIN_FOR_INTERVAL else "95 % interval"
        name += f" ({len(members)} runs, mean and {band})"
        color = draw_line(axes, steps, mean, name, number)
        axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
    axes.legend(edgecolor="none", fontsize="small" if len(groups) > 4 else "medium")
    return figure


def plot_runs(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Draw learning curves and return the path of the figure.

    One run: its curve, and its evaluation if there is one. Several runs: mean and interval
    for each environment, preset, sequence model and data set. See `training.plot_curves` for
    what a run is drawn by.

    Args:
        runs: run directories, at least one.
        out: the figure; its suffix chooses the format. None: `plots/learning_curve.png` in
            the run, or `learning_curves.png` in the working directory for several.

    Raises:
        RunError: a run cannot be read or has no curve yet, the runs have none in common, or `out`
            cannot be written.
    """
    if not runs:
        raise RunError("plot: expected at least one run directory, got none")
    curves = read_curves(runs)
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
