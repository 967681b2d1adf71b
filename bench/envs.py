"""`bench envs`: environment steps per second through each adapter, beside the backend's own loop.

Both get random actions of the same space; every system runs in a process of its own, and the two
of a case take turns over several rounds. All steps are counted, those that only reset as well.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import NamedTuple

from statewise.bench.process import Job
from statewise.bench.rounds import run_rounds
from statewise.bench.scan import Outcome
from statewise.bench.table import Figure

OURS = "statewise"
SYNC, VECTOR, ENVPOOL, GYMNAX = "gymnasium sync", "gymnasium vector", "envpool", "gymnax"
ALE, DM_ENV = "ale-py vector", "dm_env"
BESIDE = "speed / the backend alone"  # ratio of medians
METRIC = "env steps median"


class Case(NamedTuple):
    """One environment through one backend."""

    env_id: str
    num_envs: int
    vectorization: str
    peer: str
    """Which of `envs_systems.PEERS` steps it without us."""

    @property
    def name(self) -> str:
        """What tables show."""
        return f"{self.env_id}, {self.vectorization}, {self.num_envs} environments"


CASES: tuple[Case, ...] = (
    Case("CartPole-v1", 16, "sync", SYNC),
    Case("CartPole-v1", 64, "vector_entry_point", VECTOR),
    Case("envpool:CartPole-v1", 64, "auto", ENVPOOL),
    Case("gymnax:CartPole-v1", 1024, "auto", GYMNAX),
    Case("envpool:Pong-v5", 16, "auto", ENVPOOL),
    Case("ALE/Pong-v5", 16, "vector_entry_point", ALE),
    Case("HalfCheetah-v5", 8, "sync", SYNC),
    Case("envpool:HalfCheetah-v5", 8, "auto", ENVPOOL),
    Case("envpool:WalkerWalk-v1", 16, "auto", ENVPOOL),
    Case("dmc:walker-walk", 4, "sync", DM_ENV),
    Case("popgym-RepeatPreviousEasy-v0", 16, "sync", SYNC),
    Case("MiniGrid-MemoryS7-v0", 16, "sync", SYNC),
    Case("bsuite:memory_len/5", 16, "sync", DM_ENV),
)


@dataclass(frozen=True, kw_only=True)
class EnvsOptions:
    """What is measured and how long."""

    cases: tuple[Case, ...] = CASES
    num_envs: int = 0  # of every case; 0: as the case says
    threads: int = 2  # of torch, and of backends that have their own
    rounds: int = 3
    reps: int = 10
    seconds: float = 2.0
    steps: int = 16  # of all environments in one timed call


def run_envs(options: EnvsOptions, say: Callable[[str], None]) -> Outcome:
    """Measure all cases; `say` is told what is going on."""
    outcome = Outcome()
    for case in options.cases:
        num_envs = options.num_envs or case.num_envs
        sized = case._replace(num_envs=num_envs)
        job = partial(_job, options, sized)
        systems = (OURS, case.peer)
        found = run_rounds(sized.name, systems, options.rounds, job, outcome, say)
        rates = {}
        for system, timing in found.timings.items():
            rates[system] = options.steps * num_envs / median(timing.wall)
            outcome.figures.append(
                Figure(sized.name, system, METRIC, rates[system], "steps/s", timing)
            )
        if len(rates) == 2:
            ratio = rates[OURS] / rates[case.peer]
            outcome.figures.append(Figure(sized.name, OURS, BESIDE, ratio, "x"))
    return outcome


def _job(options: EnvsOptions, case: Case, system: str, check: bool) -> Job:
    return {
        "kind": "envs",
        "system": system,
        "env": case.env_id,
        "num_envs": case.num_envs,
        "vectorization": case.vectorization,
        "check": check,
        "threads": options.threads,
        "reps": options.reps,
        "seconds": options.seconds,
        "steps": options.steps,
    }
