"""The learning curves of a claim: mean and band over the seeds of each arm, and its limits."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from statewise.bench.arm import run_path
from statewise.bench.claims import Claim
from statewise.training.log import read_metrics
from statewise.training.plot import COLORS, METRIC, Curve, aggregate
from statewise.training.run import RunDirectory


def draw_curves(claim: Claim, runs: Collection[tuple[str, int]], root: Path, path: Path) -> None:
    """Draw the learning curves of all arms, mean and band over the seeds, and the limits.

    Args:
        claim: of agents that learn in their environment.
        runs: (arm, seed) of those that are finished, at least one.
        root: folder of all claims' runs.
        path: of the figure.
    """
    # Figure's own canvas: pyplot would keep the figure, and might ask for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, arm in enumerate(claim.arms):
        seeds = [seed for name, seed in runs if name == arm.name]
        if not seeds:
            continue
        color = COLORS[number % len(COLORS)]
        curves = [_curve(run_path(root, claim, arm.name, seed), arm.name) for seed in seeds]
        steps, mean, low, high = aggregate(curves)
        band = "95 % interval" if len(curves) > 2 else "range"
        axes.plot(steps, mean, color=color, label=f"{arm.name} ({len(curves)} seeds, {band})")
        axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
        for check in claim.checks:
            if check.arm == arm.name and check.over is None:
                axes.axhline(check.limit, color=color, linestyle=":", linewidth=1)
    axes.set_title(claim.title)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("episode return in training (dotted: claimed limits)")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(edgecolor="none")
    figure.savefig(path)


def _curve(path: Path, label: str) -> Curve:
    run = RunDirectory.open(path)
    rows = [row for row in read_metrics(run) if np.isfinite(row.get(METRIC, np.nan))]
    steps = np.array([row["step"] for row in rows], dtype=np.float64)
    return Curve(run, "", label, steps, np.array([row[METRIC] for row in rows], np.float64))
