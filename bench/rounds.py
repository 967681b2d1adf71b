"""Systems of one case taking turns over several rounds, each in a process of its own."""

from collections.abc import Callable
from dataclasses import dataclass, field

from statewise.bench.measure import Timing
from statewise.bench.process import Job, launch
from statewise.bench.scan import Outcome


@dataclass
class Found:
    """What the rounds of a case gave, by system."""

    timings: dict[str, Timing] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)


def run_rounds(
    name: str,
    systems: tuple[str, ...],
    rounds: int,
    job: Callable[[str, bool], Job],
    outcome: Outcome,
    say: Callable[[str], None],
) -> Found:
    """Time all systems once per round; what cannot run or fails its check is left out.

    Args:
        name: of the case.
        systems: in the order of the turns.
        rounds: at least 1.
        job: makes the job of a system, and whether it is to be checked, which the first round is.
        outcome: learns what is missing or refused.
        say: is told what is going on.
    """
    found = Found()
    open_systems = list(systems)
    for number in range(rounds):
        for system in list(open_systems):
            say(f"{name}, round {number + 1} of {rounds}: {system}")
            answer = launch(job(system, number == 0))
            for problem, places in (("missing", outcome.missing), ("refused", outcome.refused)):
                if answer.get(problem):
                    places.append(f"{name}, {system}: {answer[problem]}")
                    open_systems.remove(system)
                    break
            else:
                timing = found.timings.setdefault(system, Timing([], []))
                wall, cpu = answer["timing"]
                timing.wall.extend(wall)
                timing.cpu.extend(cpu)
                found.parameters[system] = answer["parameters"]
    return found
