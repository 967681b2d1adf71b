"""The figure of a claim whose arms are points of lines: what is checked, over where they stand."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from statewise.bench.claim_checks import Rows
from statewise.bench.claim_metrics import Measure
from statewise.bench.claim_table import NEVER
from statewise.bench.claims import Arm, Claim
from statewise.training.plot import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 5.0, 4.5  # inches, of a panel
_NUDGE = 0.12  # between the lines of a point, in points of the axis


def draw_series(claim: Claim, rows: Rows, seeds: Sequence[int], path: Path) -> None:
    """Draw a panel per number that is checked: seeds as dots, a line through their medians.

    Args:
        claim: whose arms have `series` and `at`.
        rows: of the finished runs.
        seeds: that were asked for.
        path: of the figure.
    """
    # Figure's own canvas: pyplot would keep the figure, and might ask for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measures = claim.measures() or (Measure(),)
    figure = Figure(figsize=(WIDTH * len(measures), HEIGHT), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(measures), squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        _draw(axes, claim, measure, rows, seeds)
    panels[0].legend(edgecolor="none")
    figure.suptitle(claim.title)
    figure.savefig(path)


def _draw(axes: "Axes", claim: Claim, measure: Measure, rows: Rows, seeds: Sequence[int]) -> None:
    places = sorted({arm.at for arm in claim.arms})
    names = list(dict.fromkeys(arm.series for arm in claim.arms))
    is_never = False
    for number, name in enumerate(names):
        color, line = COLORS[number % len(COLORS)], []
        for arm in sorted((arm for arm in claim.arms if arm.series == name), key=_place):
            x = places.index(arm.at) + _NUDGE * (number - (len(names) - 1) / 2)
            own = [rows[arm.name, seed] for seed in seeds if (arm.name, seed) in rows]
            values = [row[measure.column] for row in own]
            reached = [value for value in values if value is not None]
            axes.plot([x] * len(reached), reached, "o", color=color, alpha=0.6, markersize=4)
            if measure.reaches is not None:
                # As if it had been reached at the end, marked as what was not.
                ends = [row[measure.unit] for row in own if row[measure.column] is None]
                axes.plot([x] * len(ends), ends, "^", color=color, fillstyle="none")
                is_never, reached = is_never or bool(ends), [*reached, *ends]
            if reached:
                line.append((x, median(reached)))
        axes.plot(*zip(*line, strict=True), color=color, label=name) if line else None
    axes.set_xticks(range(len(places)), [f"{place:g}" for place in places])
    if is_never:
        axes.set_title(f"triangles: {NEVER} in this run", fontsize="small")
    axes.set_xlabel(claim.axis)
    axes.set_ylabel(measure.column.replace("_", " "))
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _place(arm: Arm) -> float:
    return arm.at
