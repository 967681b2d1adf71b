"""`bench worldmodel`: the same world model with a scan and with a GRU.

Every system runs in a process of its own; the systems of a case take turns over several rounds.
An update is the whole of it on windows with resets: forward, backward, clipping and AdamW. A step
of imagination is one of the memory, the prior and its sample. The peer is our GRU model with
torch's own cell in place of ours: it tells whether our baseline is as fast as it can be.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import NamedTuple

from statewise.bench.measure import Timing
from statewise.bench.process import Job
from statewise.bench.rounds import run_rounds
from statewise.bench.scan import Outcome
from statewise.bench.table import Figure, place_of

R2I = "statewise R2I (S5)"
GRU = "statewise Dreamer, GRU-RSSM"
GRU_Z = "statewise Dreamer, GRU with q(z|o)"
CELL = "torch.nn.GRUCell in the same loop"
SYSTEMS = (R2I, GRU, GRU_Z, CELL)
WIDE = (16, 64, 256)
OVER_RSSM, OVER_Z, OVER_CELL = "speed / GRU-RSSM", "speed / GRU q(z|o)", "speed / GRUCell"


class Case(NamedTuple):
    """One shape; see `worldmodel_systems`."""

    name: str
    mode: str
    """"update" or "imagine"."""
    batch: int
    steps: int
    width: int


@dataclass(frozen=True, kw_only=True)
class WorldModelOptions:
    """What is measured and how long."""

    lengths: tuple[int, ...] = (32, 128, 512, 1024)  # T of the updates at batch 4, width 64
    wide: tuple[int, int, int] = WIDE  # B, T and width of one more update
    rollouts: int = 512  # of 15 steps
    threads: int = 2
    device: str = "cpu"
    rounds: int = 3
    reps: int = 7
    seconds: float = 8.0
    least_seconds: float = 2.0
    """Of each system in a round: the speed of a shared machine changes from second to second, and
    seven short updates would fall within one of them."""


def cases_of(options: WorldModelOptions) -> tuple[Case, ...]:
    """Return the cases of a run."""
    (B, steps, width), N = options.wide, options.rollouts
    return (
        *(Case(f"update, B 4, width 64, T {T}", "update", 4, T, 64) for T in options.lengths),
        Case(f"update, B {B}, width {width}, T {steps}", "update", B, steps, width),
        Case(f"imagination, {N} rollouts, width 64", "imagine", N, 15, 64),
    )


def run_worldmodel(options: WorldModelOptions, say: Callable[[str], None]) -> Outcome:
    """Measure all cases; `say` is told what is going on."""
    outcome = Outcome()
    for case in cases_of(options):
        job = partial(_job, options, case)
        found = run_rounds(case.name, SYSTEMS, options.rounds, job, outcome, say)
        outcome.figures += _figures(options, case, found.timings)
        outcome.figures += [
            Figure(_shown(options, case), system, "parameters", count, "")
            for system, count in found.parameters.items()
        ]
    return outcome


def _job(options: WorldModelOptions, case: Case, system: str, check: bool) -> Job:
    return {
        "kind": "worldmodel",
        "mode": case.mode,
        "system": system,
        "batch": case.batch,
        "steps": case.steps,
        "width": case.width,
        "check": check,
        "threads": options.threads,
        "device": options.device,
        "reps": options.reps,
        "seconds": options.seconds,
        "least_seconds": options.least_seconds,
    }


def _shown(options: WorldModelOptions, case: Case) -> str:
    """Return the name of a case with where it was measured."""
    return f"{case.name}, {place_of(options.device, options.threads)}"


def _figures(options: WorldModelOptions, case: Case, timings: dict[str, Timing]) -> list[Figure]:
    name = _shown(options, case)
    rows = case.batch * case.steps
    figures = []
    for kind, pick in (("median", median), ("best", min)):
        for system, t in timings.items():
            seconds = pick(t.wall)
            metric, value, unit = f"update {kind}", 1e3 * seconds, "ms"
            if case.mode == "imagine":
                metric, value, unit = f"imagined steps {kind}", rows / seconds, "steps/s"
            figures.append(Figure(name, system, metric, value, unit, t, options.threads))
    for metric, peer in ((OVER_RSSM, GRU), (OVER_Z, GRU_Z), (OVER_CELL, CELL)):
        if peer in timings:
            theirs = median(timings[peer].wall)
            figures += [
                Figure(name, system, metric, theirs / median(t.wall), "x")
                for system, t in timings.items()
                if system != peer
            ]
    return figures
