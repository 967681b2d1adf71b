"""The figure of a claim about agents that learn from data: dots of seeds, mean and interval."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from statewise.bench.claim_checks import Check, Rows
from statewise.bench.claim_metrics import Measure
from statewise.bench.claim_table import NOT_RUN
from statewise.bench.claims import Claim
from statewise.training.plot import COLORS
from statewise.training.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL, LINE, HEAD = 4.2, 0.32, 1.7  # inches: width of a metric, height of an arm, of the rest
NAMES = 2.2  # inches
SETS = 3  # beside each other in the legend
LOW, HIGH = -0.4, 0.4  # of a limit, in lines of its arm
LEGEND = (
    "dots: seeds; bar: mean and 95 % interval; dotted: limit, of a lead from the other arm's mean"
)


def draw_seeds(claim: Claim, rows: Rows, seeds: Sequence[int], path: Path) -> None:
    """Draw a panel per metric that is checked, with a line per arm.

    Args:
        claim: of agents that learn from data.
        rows: of the finished runs.
        seeds: that were asked for.
        path: of the figure.
    """
    # Figure's own canvas: pyplot would keep the figure, and might ask for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measures = claim.measures() or (Measure(),)
    size = (NAMES + PANEL * len(measures), HEAD + LINE * len(claim.arms))
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        _draw_measure(axes, claim, measure, rows, seeds)
    panels[0].set_yticks(range(len(claim.arms)), [arm.name for arm in claim.arms])
    panels[0].set_ylim(len(claim.arms) - 0.5, -0.5)
    figure.suptitle(claim.title)
    names = _data_names(claim)
    for number, name in enumerate(names):
        panels[0].plot([], [], "o", color=COLORS[number % len(COLORS)], label=name)
    figure.legend(
        loc="outside lower center",
        ncols=min(len(names), SETS),
        title=LEGEND,
        edgecolor="none",
        fontsize="small",
        title_fontsize="x-small",
    )
    figure.savefig(path)


def _data_names(claim: Claim) -> list[str]:
    return list(dict.fromkeys(arm.data.name for arm in claim.arms if arm.data is not None))


def _draw_measure(
    axes: "Axes", claim: Claim, measure: Measure, rows: Rows, seeds: Sequence[int]
) -> None:
    sets = _data_names(claim)
    for line, arm in enumerate(claim.arms):
        found = [rows[arm.name, seed][measure.column] for seed in seeds if (arm.name, seed) in rows]
        values = [value for value in found if value is not None]
        if not found:
            axes.annotate(
                NOT_RUN,
                (0.01, line),
                xycoords=("axes fraction", "data"),
                va="center",
                fontsize="x-small",
                color="0.4",
            )
        if not values:
            continue
        color = COLORS[sets.index(arm.data.name if arm.data else "") % len(COLORS)]
        mean, low, high = mean_interval(values)
        if math.isfinite(low):
            axes.plot([low, high], [line, line], color=color, linewidth=3, alpha=0.3)
        axes.plot([mean, mean], [line + LOW / 2, line + HIGH / 2], color=color, linewidth=2)
        axes.plot(values, [line] * len(values), "o", color=color, markersize=4)
    for check in claim.checks:
        limit = _limit(check, rows, seeds)
        if check.measure == measure and limit is not None:
            line = [arm.name for arm in claim.arms].index(check.arm)
            axes.plot([limit, limit], [line + LOW, line + HIGH], ":", color="black", linewidth=1.5)
    axes.set_xlabel(measure.column.replace("_", " "))
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _limit(check: Check, rows: Rows, seeds: Sequence[int]) -> float | None:
    """Return where a limit is drawn, None where the arm it is measured from has no runs."""
    if check.other is None:
        return check.limit
    column = check.measure.column
    found = [rows[check.other, seed][column] for seed in seeds if (check.other, seed) in rows]
    values = [value for value in found if value is not None]
    if not values:
        return None
    return fmean(values) + check.limit if check.over else fmean(values) * check.limit
