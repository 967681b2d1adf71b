"""`bench layers`: stacks of two layers beside what one would use instead.

Every system runs in a process of its own; the systems of a case take turns over several rounds.
Training is forward and backward of float32 sequences on two threads; acting is one step of one
environment on one thread. `statewise` systems come from `ssm/build.py` with default settings,
at the width and state size of their peers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from statewise.bench.measure import SLOW, Timing
from statewise.bench.process import launch
from statewise.bench.scan import Outcome
from statewise.bench.table import Figure, place_of
from statewise.ssm.build import SEQUENCES

Shape = tuple[int, int, int]
HISTORY = 500  # steps before the ones that are timed


class Case(NamedTuple):
    """Systems that are compared with each other; ours is the first."""

    name: str
    mode: str
    """"train", "scan" or "step"; see `layers_systems`."""
    systems: tuple[str, ...]


RECURRENT = ("torch.nn.LSTM", "torch.nn.GRU", "causal attention")
CASES = (
    Case("Mamba", "train", ("statewise mamba", "mambapy")),
    Case("S5 without resets", "train", ("statewise s5", *RECURRENT)),
    Case("S5 with resets", "train", ("statewise s5, resets", "masked GRU, step by step")),
    Case("selective scan", "scan", ("statewise selective_scan", "unbind reference")),
    Case("S5 step", "step", ("statewise s5", "torch.nn.GRU", "mambapy", "causal attention")),
    Case("Mamba step", "step", ("statewise mamba", "torch.nn.GRU", "mambapy", "causal attention")),
)


def every_layer() -> Case:
    """Return the case that trains each row of the table, S5 first."""
    others = [kind for kind in SEQUENCES if kind != "s5"]
    return Case("every layer", "train", tuple(f"statewise {kind}" for kind in ("s5", *others)))


def every_step() -> Case:
    """Return the case that steps each row of the table, S5 first."""
    return every_layer()._replace(name="every layer's step", mode="step")


@dataclass(frozen=True, kw_only=True)
class LayersOptions:
    """What is measured and how long."""

    shape: Shape = (16, 1024, 256)
    threads: int = 2  # of training; a step has one
    device: str = "cpu"
    rounds: int = 2
    reps: int = 5
    seconds: float = 4.0
    step_seconds: float = 1.0
    cases: tuple[Case, ...] = CASES


def run_layers(options: LayersOptions, say: Callable[[str], None]) -> Outcome:
    """Measure all cases; `say` is told what is going on."""
    outcome = Outcome()
    for case in options.cases:
        outcome.figures += _run_case(options, case, outcome, say)
    return outcome


def _run_case(
    options: LayersOptions, case: Case, outcome: Outcome, say: Callable[[str], None]
) -> list[Figure]:
    timings: dict[tuple[str, str], Timing] = {}
    facts: dict[tuple[str, str], tuple[float, str]] = {}
    open_systems = list(case.systems)
    threads = 1 if case.mode == "step" else options.threads
    for number in range(options.rounds):
        for system in list(open_systems):
            say(f"{case.name}, round {number + 1} of {options.rounds}: {system}")
            answer = launch(_job(options, case, system, threads))
            if "missing" in answer:
                outcome.missing.append(f"{case.name}, {system}: {answer['missing']}")
                open_systems.remove(system)
                continue
            for metric, (wall, cpu) in answer["timings"].items():
                timing = timings.setdefault((metric, system), Timing([], []))
                timing.wall.extend(wall)
                timing.cpu.extend(cpu)
            for metric, value, unit in answer["facts"]:
                facts[metric, system] = (value, unit)
            if max(median(wall) for wall, _ in answer["timings"].values()) > 5 * SLOW:
                open_systems.remove(system)  # very slow calls: one round says enough
    return _figures(options, case, threads, timings, facts)


def _job(options: LayersOptions, case: Case, system: str, threads: int) -> dict[str, Any]:
    return {
        "kind": "layers",
        "mode": case.mode,
        "system": system,
        "shape": options.shape,
        "history": HISTORY,
        "threads": threads,
        "device": options.device,
        "reps": options.reps,
        "seconds": options.step_seconds if case.mode == "step" else options.seconds,
    }


def _figures(
    options: LayersOptions,
    case: Case,
    threads: int,
    timings: dict[tuple[str, str], Timing],
    facts: dict[tuple[str, str], tuple[float, str]],
) -> list[Figure]:
    shape = f"width {options.shape[2]}" if case.mode == "step" else str(list(options.shape))
    name = f"{case.name}, {shape}, {place_of(options.device, threads)}"
    figures = []
    for metric in dict.fromkeys(metric for metric, _ in timings):
        for kind, pick in (("median", median), ("best", min)):
            figures += [
                Figure(name, s, f"{metric} {kind}", 1e3 * pick(t.wall), "ms", t, threads)
                for s in case.systems
                if (t := timings.get((metric, s))) is not None
            ]
    figures += [
        Figure(name, system, metric, value, unit)
        for (metric, system), (value, unit) in facts.items()
    ]
    return figures
