"""`bench scan`: the linear scan beside what one would use instead, one process per system.

Systems take turns over several rounds, so that a change of the machine's load meets all of
them. Time-varying real decays, resets in 2 % of the steps, float32.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from statewise.bench.measure import SLOW, Timing
from statewise.bench.process import Answer, Job, launch
from statewise.bench.table import Figure
from statewise.kernels.dispatch import BackendError, available

Shape = tuple[int, int, int]
SHAPES: tuple[Shape, ...] = ((16, 64, 256), (16, 1024, 256), (64, 256, 1024), (1, 16384, 512))
QUICK_SHAPES: tuple[Shape, ...] = ((2, 32, 16),)
MODES = ("forward", "forward+backward")
BACKENDS = ("cpu", "torch")
PEERS = (
    "torch.addcmul(out=)",
    "torch.nn.GRU",
    "torch.nn.LSTM",
    "jax.lax.associative_scan",
    "jax.lax.scan",
)


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """What is measured and how long."""

    shapes: tuple[Shape, ...] = SHAPES
    backends: tuple[str, ...] = BACKENDS  # the first that can run is "ours" in the speedups
    threads: tuple[int, ...] = (1,)
    rounds: int = 2
    reps: int = 20
    seconds: float = 1.0


@dataclass
class Outcome:
    """What a benchmark found."""

    figures: list[Figure] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """One line per measurement that was refused because the result was wrong."""
    missing: list[str] = field(default_factory=list)
    """One line per system that cannot run here, with the line that gets it."""


Timings = dict[tuple[str, Shape, str], Timing]


def run_scan(options: ScanOptions, say: Callable[[str], None]) -> Outcome:
    """Measure all systems; `say` is told what is going on.

    Raises:
        BackendError: none of our backends that were asked for can run.
    """
    outcome = Outcome()
    reasons = available()
    ours = []
    for backend in options.backends:
        if reasons[backend]:
            outcome.missing.append(f"statewise {backend}: {reasons[backend]}")
        else:
            ours.append(f"statewise {backend}")
    if not ours:
        raise BackendError("bench scan: " + "; ".join(outcome.missing))
    systems = [*ours, *PEERS]
    for threads in options.threads:
        timings = _run_rounds(options, systems, threads, outcome, say)
        outcome.figures += _figures(options, systems, threads, timings)
    return outcome


def _run_rounds(
    options: ScanOptions,
    systems: Sequence[str],
    threads: int,
    outcome: Outcome,
    say: Callable[[str], None],
) -> Timings:
    timings: Timings = {}
    # A refused or missing system gets no further turn, nor does a case of very slow calls.
    open_cases = {system: [(shape, list(MODES)) for shape in options.shapes] for system in systems}
    with tempfile.TemporaryDirectory() as cache:
        for number in range(options.rounds):
            for system in systems:
                if not open_cases[system]:
                    continue
                say(f"round {number + 1} of {options.rounds}, {threads} threads: {system}")
                job = _job(options, system, threads, open_cases[system], check=number == 0)
                answer = launch(
                    job,
                    JAX_PLATFORMS="cpu",
                    JAX_COMPILATION_CACHE_DIR=cache,
                    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.2",
                )
                open_cases[system] = _take(answer, system, timings, outcome)
    return timings


def _job(options: ScanOptions, system: str, threads: int, cases: list[Any], *, check: bool) -> Job:
    return {
        "kind": "scan",
        "system": system,
        "cases": cases,
        "check": check,
        "reps": options.reps,
        "seconds": options.seconds,
        "threads": threads,
        "pin": True,
    }


def _take(
    answer: Answer, system: str, timings: Timings, outcome: Outcome
) -> list[tuple[Shape, list[str]]]:
    """Keep what a worker measured; return the cases of the next round."""
    if "missing" in answer:
        outcome.missing.append(f"{system}: {answer['missing']}")
        return []
    left: list[tuple[Shape, list[str]]] = []
    for case in answer["cases"]:
        B, T, D = case["shape"]
        shape = (B, T, D)
        if case["refused"]:
            outcome.refused.append(f"{system} at {name_of(shape)}: {case['refused']}")
            continue
        for mode, (wall, cpu) in case["timings"].items():
            timing = timings.setdefault((system, shape, mode), Timing([], []))
            timing.wall.extend(wall)
            timing.cpu.extend(cpu)
        modes = [m for m, (wall, _) in case["timings"].items() if median(wall) < SLOW / 2]
        if modes:
            left.append((shape, modes))
    return left


def name_of(shape: Shape) -> str:
    """Return "16,1024,256", as on the command line."""
    return ",".join(map(str, shape))


def _figures(
    options: ScanOptions, systems: Sequence[str], threads: int, timings: Timings
) -> list[Figure]:
    figures = []
    for shape in options.shapes:
        case = f"{name_of(shape)} threads {threads}"
        for mode in MODES:
            found = [(s, timings[s, shape, mode]) for s in systems if (s, shape, mode) in timings]
            for metric, pick in (("median", median), ("best", min)):
                figures += [
                    Figure(case, system, f"{mode} {metric}", 1e3 * pick(t.wall), "ms", t, threads)
                    for system, t in found
                ]
    return figures
