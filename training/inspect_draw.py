"""Drawing of what `statewise inspect` found: three panels, and the numbers as JSON beside them."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from statewise.training.inspect import Inspection, LayerReport
from statewise.training.plot import COLORS
from statewise.training.run import RunError, read_json, write_json

MARK: dict[str, Any] = {"color": "0.6", "linewidth": 1.0}
SMALLEST = 1e-6  # of what is drawn, relative to the largest
WINDOW = "the policy acts on a window of steps: no state is carried"


def write_figure(found: Inspection, head: dict[str, Any], out: Path) -> Path:
    """Draw, write the numbers to the same name with the ending .json, and return the figure.

    Args:
        found: what is drawn.
        head: env, preset, step and seed.
        out: its ending chooses the format; its folder is made.

    Raises:
        RunError: another ending, a file cannot be written, or the name with the ending .json is
            that of something else.
    """
    numbers = out.with_suffix(".json")
    _refuse_other(numbers)
    figure = draw(found, f"{head['env']}, {head['preset']} at {head['step']:,}")
    supported = sorted(figure.canvas.get_supported_filetypes())
    if out.suffix.removeprefix(".").lower() not in supported:
        raise RunError(f"{out}: expected a suffix among {', '.join(supported)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out)
        write_json(numbers, head | found.as_json())
    except OSError as error:
        raise RunError(f"the figure {out} cannot be written: {error.strerror}") from error
    return out


def _refuse_other(numbers: Path) -> None:
    """Raise RunError if a file is there that no inspection wrote, such as eval.json of the run."""
    if not numbers.exists():
        return
    try:
        known = read_json(numbers)
    except RunError:
        known = {}
    if not {"influence", "memory_starts"} <= known.keys():
        raise RunError(
            f"--out: expected a name whose {numbers.name} is free for the numbers, got one that is "
            f"another file's, {numbers}: choose another"
        )


def draw(found: Inspection, title: str) -> Figure:
    """Return the figure: time constants, norms of the states, influence of the past."""
    figure = Figure(figsize=(8, 9.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    constants, norms, past = figure.subplots(3, 1)
    _draw_constants(constants, found)
    _draw_norms(norms, found)
    _draw_influence(past, found)
    for axes in (constants, norms, past):
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _label(name: str, layer: LayerReport) -> str:
    met = ", at the steps played" if layer.recurrence == "selective" else ""
    return f"layer {name}: {layer.kind}{met}"


def _write(axes: Axes, lines: list[str]) -> None:
    """Write words where there is nothing to draw."""
    axes.text(0.5, 0.5, "\n".join(lines), ha="center", va="center", transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_constants(axes: Axes, found: Inspection) -> None:
    axes.set_title("time constants of the recurrence", fontsize="medium", loc="left")
    drawn = False
    for number, (name, layer) in enumerate(found.layers.items()):
        tau = np.array(layer.time_constants)
        kept = np.isfinite(tau) & (tau > 0)  # 0 and infinity have no place on the axis
        if not kept.any():
            continue
        rank = (np.arange(len(tau)) + 0.5) / len(tau)
        axes.plot(
            rank[kept],
            tau[kept],
            color=COLORS[number % len(COLORS)],
            marker="." if len(tau) <= 64 else "",
            label=_label(name, layer),
        )
        drawn = True
    without = [
        f"{_label(n, layer)}: {layer.note}" for n, layer in found.layers.items() if layer.note
    ]
    if not drawn:
        _write(axes, without or [found.note])
        return
    axes.set_yscale("log")
    axes.set_xlim(0, 1)
    axes.axhline(len(found.played.valid), linestyle=":", label="steps played", **MARK)
    axes.set_xlabel("share of the states that last shorter")
    axes.set_ylabel("steps")
    axes.legend(fontsize="small", edgecolor="none")


def _draw_norms(axes: Axes, found: Inspection) -> None:
    axes.set_title("norm of the state", fontsize="medium", loc="left")
    played = found.played
    if not played.norms:
        _write(axes, [WINDOW])
        return
    for number, (name, norm) in enumerate(played.norms.items()):
        axes.plot(norm.numpy(), color=COLORS[number % len(COLORS)], label=f"layer {name}")
    episodes = (played.is_first & ~played.reset).nonzero().flatten().tolist()
    for words, rows, style in (
        ("memory begins", played.reset.nonzero().flatten().tolist(), "-"),
        ("episode begins", episodes, ":"),
    ):
        for i, row in enumerate(rows):
            axes.axvline(row, linestyle=style, label="" if i else words, zorder=0, **MARK)
    axes.set_xlim(-0.5, max(len(played.valid) - 0.5, 0.5))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step")
    axes.set_ylabel("|h|")
    axes.legend(fontsize="small", edgecolor="none")


def _draw_influence(axes: Axes, found: Inspection) -> None:
    quantity, mean, share, pairs = found.influence
    axes.set_title(f"influence of past steps on the {quantity}", fontsize="medium", loc="left")
    enough = int((pairs >= pairs.max() / 4).sum())  # beyond it means of few actions
    marker = "o" if len(pairs) <= 128 else ""
    lines = ((share, "share of an action's gradient, mean"), (mean, "size of the gradient, mean"))
    for (values, words), color in zip(lines, COLORS, strict=False):
        axes.plot(values.numpy(), color=color, marker=marker, markersize=3, alpha=0.3)
        axes.plot(values[:enough].numpy(), color=color, marker=marker, markersize=3, label=words)
    positive = torch.cat((share, mean))
    positive = positive[positive > 0]
    if len(positive):
        axes.set_yscale("log")
        low = max(float(positive.min()), float(positive.max()) * SMALLEST)
        axes.set_ylim(bottom=10 ** math.floor(math.log10(low)))
    axes.set_xlim(-0.5, max(len(pairs) - 0.5, 0.5))
    axes.set_xlabel(f"steps before the action; {int(pairs.max())} actions, pale where few have it")
    axes.legend(fontsize="small", edgecolor="none")
