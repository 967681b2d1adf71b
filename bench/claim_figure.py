"""The learning curves of a claim: mean and band over the seeds of each arm, and its limits."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from statewise.bench.arm import run_path
from statewise.bench.claim_checks import Check
from statewise.bench.claim_metrics import SCORE, STEPS
from statewise.bench.claims import Claim
from statewise.training.log import read_metrics
from statewise.training.plot import COLORS, aggregate, draw_line, read_curves, start_axes
from statewise.training.plot_curves import METRIC, MIN_FOR_INTERVAL, Curve
from statewise.training.run import RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_curves(claim: Claim, runs: Collection[tuple[str, int]], root: Path, path: Path) -> None:
    """Draw the learning curves of all arms, mean and band over the seeds, and the limits.

    The curves are those of the first logged metric that is checked, else of the returns in
    training.

    Args:
        claim: of agents that learn in their environment, or of world models from data.
        runs: (arm, seed) of those that are finished, at least one.
        root: folder of all claims' runs.
        path: of the figure.

    Raises:
        RunError: a run has logged no return.
    """
    metric = next((one.metric for one in claim.measures() if one.is_logged), METRIC)
    curves: dict[str, list[Curve]] = {}
    for name in dict.fromkeys(name for name, _ in runs):
        paths = [run_path(root, claim, *run) for run in runs if run[0] == name]
        curves[name] = (
            read_curves(paths) if metric == METRIC else [read_curve(one, metric) for one in paths]
        )
    figure, axes = start_axes(claim.title, next(iter(curves.values()))[0])
    axes.set_xlabel("updates" if claim.kind == "worlds" else "environment steps")
    words = "episode return in training" if metric == METRIC else metric.replace("_", " ")
    axes.set_ylabel(f"{words} (dotted: claimed limits)")
    for number, arm in enumerate(claim.arms):
        own = [curve for curve in curves.get(arm.name, ()) if len(curve.steps)]
        if not own:
            continue
        steps, mean, low, high = aggregate(own)
        band = "95 % interval" if len(own) >= MIN_FOR_INTERVAL else "range"
        color = draw_line(axes, steps, mean, f"{arm.name} ({len(own)} seeds, {band})", number)
        axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
        for check in claim.checks:
            if check.arm == arm.name and check.other is None:
                _draw_limit(axes, check, metric, color)
    if len(claim.arms) > len(COLORS):
        axes.legend(edgecolor="none", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    else:
        axes.legend(edgecolor="none")
    figure.savefig(path)


def read_curve(path: Path, metric: str) -> Curve:
    """Return the curve of a logged number; without points if it was never finite."""
    run = RunDirectory.open(path)
    rows = [row for row in read_metrics(run) if math.isfinite(row.get(metric, math.nan))]
    steps, values = ([row[name] for row in rows] for name in ("step", metric))
    return Curve(run, "", "", np.array(steps, float), np.array(values, float), metric)


def _draw_limit(axes: "Axes", check: Check, metric: str, color: str) -> None:
    """Draw what a check asks of these curves: a height, and the step until which it counts."""
    measure = check.measure
    is_drawn = measure.metric == metric or (metric == METRIC and measure.metric == SCORE)
    if not is_drawn or measure.unit != STEPS:
        return
    height = check.limit if measure.reaches is None else measure.reaches
    axes.axhline(height, color=color, linestyle=":", linewidth=1)
    if measure.reaches is not None:
        axes.axvline(check.limit, color=color, linestyle=":", linewidth=1)
