"""The figure of a claim about trials: the return over the episodes of a trial, arm by arm."""

from collections.abc import Collection
from pathlib import Path

import numpy as np

from statewise.bench.arm import run_path
from statewise.bench.claims import Claim
from statewise.training.evaluate_trials import start_by_episode
from statewise.training.plot import COLORS
from statewise.training.plot_curves import MIN_FOR_INTERVAL
from statewise.training.run import RunDirectory, read_json
from statewise.training.statistics import mean_interval


def draw_by_episode(
    claim: Claim, runs: Collection[tuple[str, int]], root: Path, path: Path
) -> None:
    """Draw a line per arm, the mean over its seeds, with its interval or range.

    Args:
        claim: whose arms learn in trials.
        runs: (arm, seed) of those that are finished, at least one.
        root: folder of all claims' runs.
        path: of the figure.
    """
    figure, axes = start_by_episode(claim.title)
    for number, arm in enumerate(claim.arms):
        own = [
            [one["mean"] for one in _evaluation(claim, *run, root)["return_by_episode"]]
            for run in runs
            if run[0] == arm.name
        ]
        if not own:
            continue
        count = min(len(means) for means in own)  # trials of steps may differ in episodes
        values = np.array([means[:count] for means in own])
        mean, low, high = values.mean(0), values.min(0), values.max(0)
        band = "range"
        if len(own) >= MIN_FOR_INTERVAL:
            _, low, high = np.array([mean_interval(column) for column in values.T]).T
            band = "95 % interval"
        color, places = COLORS[number % len(COLORS)], np.arange(1, count + 1)
        label = f"{arm.name} ({len(own)} seeds, {band})"
        axes.plot(places, mean, color=color, marker="o", label=label)
        axes.fill_between(places, low, high, color=color, alpha=0.18, linewidth=0)
    axes.legend(edgecolor="none")
    figure.savefig(path)


def _evaluation(claim: Claim, arm: str, seed: int, root: Path) -> dict[str, list[dict[str, float]]]:
    return read_json(RunDirectory.open(run_path(root, claim, arm, seed)).eval_path)
