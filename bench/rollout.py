"""`bench rollout`: acting and stepping, as the collector of PPO does it, without updates.

S5 beside the same encoder and heads without memory, and beside the environments alone under
random actions: what is left between the two is the cost of the memory, and of the network.
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

S5 = "statewise S5"
WITHOUT = "statewise without memory"
ALONE = "environments alone"
SYSTEMS = (S5, WITHOUT, ALONE)
BESIDE = "speed / without memory"  # ratio of medians
METRIC = "env steps median"


class Case(NamedTuple):
    """Environments that are acted in, the policy being that of the preset `ppo/cartpole`."""

    env_id: str
    num_envs: int
    rows: int
    """T of a rollout."""

    @property
    def name(self) -> str:
        """What tables show."""
        return f"{self.env_id}, {self.num_envs} environments"


CASES: tuple[Case, ...] = (
    Case("gymnax:CartPole-v1", 1024, 16),
    Case("envpool:Pong-v5", 16, 16),
)


@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """What is measured and how long."""

    cases: tuple[Case, ...] = CASES
    num_envs: int = 0  # of every case; 0: as the case says
    threads: int = 2  # of torch, and of envpool
    rounds: int = 3
    reps: int = 10
    seconds: float = 5.0


def run_rollout(options: RolloutOptions, say: Callable[[str], None]) -> Outcome:
    """Measure all cases; `say` is told what is going on."""
    outcome = Outcome()
    for case in options.cases:
        sized = case._replace(num_envs=options.num_envs or case.num_envs)
        job = partial(_job, options, sized)
        name = f"{sized.name}, threads {options.threads}"
        found = run_rounds(name, SYSTEMS, options.rounds, job, outcome, say)
        steps = sized.num_envs * sized.rows
        rates = {system: steps / median(t.wall) for system, t in found.timings.items()}
        outcome.figures += [
            Figure(name, system, METRIC, rate, "steps/s", found.timings[system])
            for system, rate in rates.items()
        ]
        if S5 in rates and WITHOUT in rates:
            outcome.figures.append(Figure(name, S5, BESIDE, rates[S5] / rates[WITHOUT], "x"))
    return outcome


def _job(options: RolloutOptions, case: Case, system: str, check: bool) -> Job:
    return {
        "kind": "rollout",
        "system": system,
        "env": case.env_id,
        "num_envs": case.num_envs,
        "rows": case.rows,
        "check": check,
        "threads": options.threads,
        "reps": options.reps,
        "seconds": options.seconds,
    }
