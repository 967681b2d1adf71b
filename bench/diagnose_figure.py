"""The table of `bench diagnose` as a picture: a heat map that also reads without its colours."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from statewise.bench.diagnose_table import Cell, Cells, rows_and_columns
from statewise.bench.diagnose_tasks import TASKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURE = "diagnose.png"
COLORS = "cividis"  # rises in lightness, alike for colour-blind readers
LIGHT = 0.55  # of the map from which on text is black
NARROWEST = 8.0  # inches; the title needs them
CELL = (1.5, 0.4)  # inches of a task and of a core


def draw_cells(cells: Cells, title: str, path: Path) -> None:
    """Draw accuracies: per task at the length of training, and at twice that length.

    Colours go from chance to 1; what every seed solved has a mark and is bold.

    Args:
        cells: at least one.
        title: says how the runs were made.
        path: of a .png file, in a folder that exists.
    """
    # Figure's own canvas: pyplot would keep the figure, and might ask for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown_cores, tasks = rows_and_columns(cells)
    width = max(NARROWEST, 2.8 + CELL[0] * len(tasks))
    size = (width, 1.6 + CELL[1] * len(shown_cores))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shades = np.full((len(shown_cores), 2 * len(tasks)), np.nan)
    for row, core in enumerate(shown_cores):
        for column, task in enumerate(tasks):
            cell = cells.get((core, task))
            if cell is None:
                axes.text(2 * column + 0.5, row, "not run", ha="center", va="center", fontsize=8)
            else:
                shades[row, 2 * column : 2 * column + 2] = _write(axes, cell, task, column, row)
    image = axes.imshow(shades, cmap=COLORS, vmin=0, vmax=1, aspect="auto")
    _label(axes, shown_cores, tasks)
    bar = figure.colorbar(image, ax=axes, ticks=[0, 1], fraction=0.03, pad=0.02)
    bar.ax.set_yticklabels(["chance", "all right"])
    bar.outline.set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path)


def _write(axes: "Axes", cell: Cell, task: str, column: int, row: int) -> tuple[float, float]:
    """Write both numbers of a cell and return their shades: 0 at chance, 1 where all is right."""
    chance = TASKS[task].chance
    marks = ("\N{CHECK MARK} " if cell.solved else "", "")
    weights = ("bold" if cell.solved else "normal", "normal")
    short, long = (
        max(0.0, (value - chance) / (1 - chance)) for value in (cell.accuracy, cell.accuracy_long)
    )
    for half, (value, shade) in enumerate(((cell.accuracy, short), (cell.accuracy_long, long))):
        axes.text(
            2 * column + half,
            row,
            f"{marks[half]}{value:.2f}",
            ha="center",
            va="center",
            fontsize=9,
            fontweight=weights[half],
            color="black" if shade >= LIGHT else "white",
        )
    return short, long


def _label(axes: "Axes", shown_cores: list[str], tasks: list[str]) -> None:
    """Name rows and columns, and part the tasks from each other."""
    names = [f"{task}\nchance {TASKS[task].chance:.3g}" for task in tasks]
    axes.set_xticks(2 * np.arange(len(tasks)) + 0.5, names)
    axes.set_yticks(range(len(shown_cores)), shown_cores)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_xticks(2 * np.arange(1, len(tasks)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, len(shown_cores)) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=3)
    axes.tick_params(which="minor", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(
        "accuracy at the length of training | at twice that length;   "
        "\N{CHECK MARK} at least 0.95 in every seed",
        fontsize=9,
    )
