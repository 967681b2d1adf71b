"""`bench offline`: the return-conditioned policies beside transformers' Decision Transformer.

Every system runs in a process of its own; the systems of a case take turns over several rounds.
Training is the whole update: forward, backward, clipping and AdamW. Acting is one action of one
environment after a history. Rates count environment steps, of which a Decision Transformer has
three tokens each.
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
from statewise.bench.table import Figure

PEER = "transformers DecisionTransformerModel"
DS4 = "statewise Decision S4"  # at the width of its defaults
WIDE = f"{DS4}, equal width"
MAMBA = "statewise Decision Mamba"
DT = "statewise Decision Transformer"
TRAINED = (DS4, WIDE, MAMBA, DT, PEER)
ACTING = (DS4, WIDE, f"{MAMBA}, recurrent", f"{MAMBA}, window", DT, PEER)
BESIDE = "speed / transformers"  # ratio of medians


class Case(NamedTuple):
    """Systems that are compared with each other; ours are first."""

    name: str
    mode: str
    """"train" or "act"; see `offline_systems`."""
    systems: tuple[str, ...]
    steps: int
    """K: of a training sequence, and of a window in acting."""


@dataclass(frozen=True, kw_only=True)
class OfflineOptions:
    """What is measured and how long; the sizes are those of Decision Transformer on MuJoCo."""

    contexts: tuple[int, ...] = (20, 200)  # K of the training cases; acting has the first
    batch: int = 64  # sequences
    width: int = 128  # D of all but `DS4`
    history: int = 1000  # steps before the action that is timed
    threads: int = 2
    rounds: int = 3
    reps: int = 10
    seconds: float = 6.0
    act_seconds: float = 1.0


def cases_of(options: OfflineOptions) -> tuple[Case, ...]:
    """Return the cases of a run."""
    K = options.contexts[0]
    return (
        *(Case(f"training, K = {n}, batch {options.batch}", "train", TRAINED, n)
          for n in options.contexts),
        Case(f"acting after {options.history} steps, K = {K}", "act", ACTING, K),
    )  # fmt: skip


def run_offline(options: OfflineOptions, say: Callable[[str], None]) -> Outcome:
    """Measure all cases; `say` is told what is going on."""
    outcome = Outcome()
    sizes: dict[str, int] = {}
    for case in cases_of(options):
        job = partial(_job, options, case)
        found = run_rounds(case.name, case.systems, options.rounds, job, outcome, say)
        outcome.figures += _speeds(options, case, found.timings)
        if case.mode == "train":
            sizes = sizes or found.parameters
    outcome.figures += _sizes(sizes)
    return outcome


def _job(options: OfflineOptions, case: Case, system: str, check: bool) -> Job:
    return {
        "kind": "offline",
        "mode": case.mode,
        "system": system,
        "steps": case.steps,
        "batch": options.batch,
        "width": options.width,
        "history": options.history,
        "check": check,
        "threads": options.threads,
        "reps": options.reps,
        "seconds": options.act_seconds if case.mode == "act" else options.seconds,
    }


def _speeds(options: OfflineOptions, case: Case, timings: dict[str, Timing]) -> list[Figure]:
    name = f"{case.name}, threads {options.threads}"
    steps = options.batch * case.steps
    # One environment leaves little to share among threads: a second one idle is no warning.
    threads = 1 if case.mode == "act" else options.threads
    figures = []
    for kind, pick in (("median", median), ("best", min)):
        for system, t in timings.items():
            seconds = pick(t.wall)
            metric, value, unit = f"env steps {kind}", steps / seconds, "steps/s"
            if case.mode == "act":
                metric, value, unit = f"action {kind}", 1e3 * seconds, "ms"
            figures.append(Figure(name, system, metric, value, unit, t, threads))
    if PEER in timings:
        peer = median(timings[PEER].wall)
        figures += [
            Figure(name, system, BESIDE, peer / median(t.wall), "x")
            for system, t in timings.items()
            if system != PEER
        ]
    return figures


def _sizes(parameters: dict[str, int]) -> list[Figure]:
    """Return the numbers of trained parameters, and shares of our Decision Transformer's.

    That is the stricter measure: transformers' has a table of positions and heads beside.
    """
    figures = [
        Figure("size", system, "parameters", count, "") for system, count in parameters.items()
    ]
    if DT in parameters:
        figures += [
            Figure("size", system, "of Decision Transformer", 100 * count / parameters[DT], "%")
            for system, count in parameters.items()
        ]
    return figures
