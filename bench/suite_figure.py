"""The figures of a suite: a learning curve per task; statistics, performance profile, progress."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from statewise.bench.claim_figure import read_curve
from statewise.bench.suite_run import SuiteRun
from statewise.bench.suite_statistics import (
    IMPROVEMENT,
    REPETITIONS_OF_MANY,
    STATISTICS,
    Key,
    Line,
    Rows,
    complete_tasks,
    matrix,
)
from statewise.bench.suites import Suite
from statewise.training.plot import COLORS, aggregate
from statewise.training.plot_curves import METRIC, Curve
from statewise.training.run import RunError
from statewise.training.statistics import (
    Floats,
    bootstrap_band,
    bootstrap_interval,
    performance_profile,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = dict[Key, Curve]

WIDE = 6  # panels beside each other
PANEL = (2.6, 2.1)  # inches
NUM_THRESHOLDS = 101
NUM_STEPS = 30  # of the progress over steps


def draw_suite(
    suite: Suite, runs: Sequence[SuiteRun], rows: Rows, summary: Sequence[Line], out: Path
) -> list[Path]:
    """Draw what is finished, and return the figures.

    Args:
        suite: whose runs they are.
        runs: all that were planned.
        rows: of those that are finished, at least one.
        summary: their statistics; without any there is no second figure.
        out: folder of the figures.
    """
    paths = [out / f"{suite.name}_curves.png"]
    names = list(dict.fromkeys(run.name for run in runs))
    curves = {run.key: read_curve(run.path, METRIC) for run in runs if run.key in rows}
    tasks = [task for task in dict.fromkeys(run.task for run in runs)
             if any(key[1] == task for key in curves)]  # fmt: skip
    figure, panels = _grid(f"{suite.title}: return in training over environment steps", tasks)
    for axes, task in zip(panels, tasks, strict=True):
        axes.set_title(task, fontsize=7)
        for number, name in enumerate(names):
            own = [curve for key, curve in curves.items() if key[:2] == (name, task)]
            _draw_curves(axes, own, name, COLORS[number % len(COLORS)])
    _share_legend(figure, panels)
    figure.savefig(paths[0])
    if summary:
        paths.append(out / f"{suite.name}.png")
        draw = _draw_rules if suite.experiments else _draw_scores
        draw(suite, runs, rows, summary, curves).savefig(paths[1])
    return paths


def _start(title: str, rows: int, columns: int, size: tuple[float, float]) -> "tuple[Figure, Any]":
    # Figure's own canvas: pyplot would keep the figure, and might ask for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * columns, size[1] * rows), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _grid(title: str, tasks: Sequence[str]) -> "tuple[Figure, list[Axes]]":
    """Return a figure with a panel per task."""
    columns = max(1, min(WIDE, len(tasks)))
    figure, grid = _start(title, max(1, math.ceil(len(tasks) / columns)), columns, PANEL)
    panels = list(grid.ravel())
    for axes in panels[len(tasks) :]:
        axes.set_axis_off()
    for axes in panels[: len(tasks)]:
        axes.tick_params(labelsize=6)
    return figure, panels[: len(tasks)]


def _draw_curves(axes: "Axes", curves: Sequence[Curve], name: str, color: str) -> None:
    """Draw mean and band of the curves that have points."""
    from matplotlib.ticker import EngFormatter

    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines[["top", "right"]].set_visible(False)
    drawn = [curve for curve in curves if len(curve.steps)]
    if not drawn:
        return
    try:
        steps, mean, low, high = aggregate(drawn)
    except RunError:  # no step in common
        return
    axes.plot(steps, mean, color=color, label=name, marker="o" if len(steps) == 1 else "")
    axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)


def _share_legend(figure: "Figure", panels: "Sequence[Axes]") -> None:
    found = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if found:
        figure.legend(found.values(), found, loc="outside lower center", edgecolor="none")


def _draw_scores(
    suite: Suite,
    runs: Sequence[SuiteRun],
    rows: Rows,
    summary: Sequence[Line],
    curves: Curves,
) -> "Figure":
    """Draw intervals of the statistics, the performance profile, and the IQM over steps."""
    tasks = complete_tasks(runs, rows)
    title = f"{suite.title}: {len(tasks)} tasks, {suite.scale}"
    figure, grid = _start(title, 1, 3, (4.2, 3.8))
    bars, profile, progress = grid[0]
    names = list(dict.fromkeys(run.name for run in runs))
    seeds = list(dict.fromkeys(run.seed for run in runs))
    thresholds = np.linspace(0, suite.profile_end, NUM_THRESHOLDS)
    for number, name in enumerate(names):
        color = COLORS[number % len(COLORS)]
        _draw_intervals(bars, summary, name, number / (2 * len(names)), color)
        scores = matrix(runs, rows, name, tasks)
        _draw_profile(profile, thresholds, scores, color)
        own = [[curves[name, task, seed] for task in tasks] for seed in seeds]
        _draw_progress(progress, suite, own, tasks, color)
    bars.set_yticks(range(len(STATISTICS)), list(STATISTICS))
    bars.invert_yaxis()
    bars.set_xlabel("with 95 % stratified bootstrap intervals")
    compared = [line for line in summary if line.statistic == IMPROVEMENT]
    if len(compared) == 1:
        bars.set_title(f"{compared[0].preset}: {compared[0].value:.2f} probable", fontsize=8)
    profile.set_xlabel(suite.scale)
    profile.set_ylabel("share of runs above")
    progress.set_xlabel("environment steps")
    progress.set_ylabel("IQM of returns in training, as scores")
    for axes in grid[0]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
    _share_legend(figure, [bars])
    return figure


def _draw_intervals(
    axes: "Axes", summary: Sequence[Line], name: str, shift: float, color: str
) -> None:
    own = {line.statistic: line for line in summary if line.preset == name}
    for place, statistic in enumerate(STATISTICS):
        line = own[statistic]
        low, high = (line.value if x is None else x for x in (line.low, line.high))
        y = place + shift
        axes.plot([low, high], [y, y], color=color, linewidth=6, alpha=0.3)
        label = name if place == 0 else None
        axes.plot(line.value, y, marker="|", color=color, linestyle="", label=label, markersize=12)


def _draw_profile(axes: "Axes", thresholds: Floats, scores: Floats, color: str) -> None:
    def profile(scores: Floats) -> Any:
        return performance_profile(scores, thresholds)

    rng = np.random.default_rng(0)
    middle, low, high = bootstrap_band(scores, rng, REPETITIONS_OF_MANY, statistic=profile)
    axes.plot(thresholds, middle, color=color)
    axes.fill_between(thresholds, low, high, color=color, alpha=0.18, linewidth=0)


def _draw_progress(
    axes: "Axes", suite: Suite, curves: Sequence[Sequence[Curve]], tasks: Sequence[str], color: str
) -> None:
    """Draw the IQM of the returns in training over steps, between those that every run has.

    Args:
        axes: of the panel.
        suite: which makes scores of returns.
        curves: by seed, then by task.
        tasks: ids.
        color: of the preset.
    """
    flat = [curve for row in curves for curve in row]
    if not all(len(curve.steps) for curve in flat):
        return
    first, last = max(c.steps[0] for c in flat), min(c.steps[-1] for c in flat)
    places = np.linspace(first, max(first, last), NUM_STEPS)
    rng, ends = np.random.default_rng(0), []
    for place in places:
        scores = [
            [suite.score(task, {"return": np.interp(place, curve.steps, curve.returns)})
             for task, curve in zip(tasks, row, strict=True)]
            for row in curves
        ]  # fmt: skip
        ends.append(bootstrap_interval(np.array(scores, float), rng, REPETITIONS_OF_MANY))
    middle, low, high = np.array(ends).T
    axes.plot(places, middle, color=color)
    axes.fill_between(places, low, high, color=color, alpha=0.18, linewidth=0)


def _draw_rules(
    suite: Suite,
    runs: Sequence[SuiteRun],
    rows: Rows,
    summary: Sequence[Line],
    curves: Curves,
) -> "Figure":
    """Draw the score of each experiment as a bar per preset."""
    figure, grid = _start(f"{suite.title}: {suite.scale}", 1, 1, (7, 3.8))
    axes = grid[0, 0]
    names = list(dict.fromkeys(line.preset for line in summary))
    found = list(dict.fromkeys(line.statistic for line in summary))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        own = [line for line in summary if line.preset == name]
        places = [found.index(line.statistic) + width * number for line in own]
        color = COLORS[number % len(COLORS)]
        axes.bar(places, [line.value for line in own], width, color=color, label=name)
    labels = {line.statistic: f"{line.statistic}\n{line.tasks} settings" for line in summary}
    axes.set_xticks(range(len(found)), [labels[name] for name in found], fontsize=8)
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(edgecolor="none")
    return figure
