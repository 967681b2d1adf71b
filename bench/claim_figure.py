"""The learning curves of a claim: mean and band over the seeds of each arm, and its limits."""

from collections.abc import Collection
from pathlib import Path

from statewise.bench.arm import run_path
from statewise.bench.claims import Claim
from statewise.training.plot import COLORS, aggregate, read_curves, start_axes
from statewise.training.plot_curves import MIN_FOR_INTERVAL


def draw_curves(claim: Claim, runs: Collection[tuple[str, int]], root: Path, path: Path) -> None:
    """Draw the learning curves of all arms, mean and band over the seeds, and the limits.

    Args:
        claim: of agents that learn in their environment.
        runs: (arm, seed) of those that are finished, at least one.
        root: folder of all claims' runs.
        path: of the figure.

    Raises:
        RunError: a run has logged no return.
    """
    curves = {
        name: read_curves([run_path(root, claim, *run) for run in runs if run[0] == name])
        for name in dict.fromkeys(name for name, _ in runs)
    }
    figure, axes = start_axes(claim.title, next(iter(curves.values()))[0])
    axes.set_ylabel("episode return in training (dotted: claimed limits)")
    for number, arm in enumerate(claim.arms):
        if arm.name not in curves:
            continue
        color, own = COLORS[number % len(COLORS)], curves[arm.name]
        steps, mean, low, high = aggregate(own)
        band = "95 % interval" if len(own) >= MIN_FOR_INTERVAL else "range"
        axes.plot(steps, mean, color=color, label=f"{arm.name} ({len(own)} seeds, {band})")
        axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
        for check in claim.checks:
            if check.arm == arm.name and check.over is None:
                axes.axhline(check.limit, color=color, linestyle=":", linewidth=1)
    axes.legend(edgecolor="none")
    figure.savefig(path)
