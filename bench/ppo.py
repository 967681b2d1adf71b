"""`bench ppo`: recurrent PPO here and in sb3-contrib, and what the memory costs in an update.

One process per system and case; systems take turns over the rounds. A rate is environment
steps per second over whole iterations, collection and update, the first iteration left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from statewise.bench.measure import Timing
from statewise.bench.process import Answer, Job, launch
from statewise.bench.scan import Outcome
from statewise.bench.table import Figure
from statewise.bench.update_systems import SYSTEMS as UPDATE_SYSTEMS

OURS = "statewise"
PEER = "sb3-contrib RecurrentPPO"
PRESET = "ppo/cartpole"
NUM_ENVS, EPOCHS, MINIBATCHES = 16, 10, 4
LONG = 512  # steps of a rollout
EQUAL_WORK = {
    "env.num_envs": NUM_ENVS,
    "agent.num_epochs": EPOCHS,
    "agent.num_minibatches": MINIBATCHES,
}
# 519 thousand parameters, 10 % below RecurrentPPO's two LSTMs of 256 (578 thousand). Of the
# sizes within 20 % this is among the fastest: one wide layer has larger matrix products than two.
EQUAL_SIZE = {
    "agent.sequence.num_layers": 1,
    "agent.sequence.d_model": 320,
    "agent.sequence.s5.state_size": 384,
}


@dataclass(frozen=True, kw_only=True)
class PPOOptions:
    """What is measured and how long."""

    rollouts: tuple[int, ...] = (128, 1024)  # the first one also at default sizes
    lengths: tuple[int, ...] = (104, 1024)  # T of the updates without environments
    threads: int = 2  # of the training cases
    rounds: int = 2
    iterations: int = 3  # per round, at least 2, the first not counted; long rollouts take 2
    seconds: float = 2.0  # per update measurement
    num_envs: int = 32  # of the updates without environments


@dataclass(frozen=True)
class _Run:
    """One system in one case, with what its rounds gave."""

    case: str
    system: str
    job: Job
    answers: list[Answer]


def _ours(case: str, system: str, options: PPOOptions, overrides: dict[str, Any]) -> _Run:
    threads = {"num_threads": options.threads}
    job = _job(options, OURS, preset=PRESET, overrides=EQUAL_WORK | threads | overrides)
    return _Run(case, system, job, [])


def _job(options: PPOOptions, system: str, **fields: Any) -> Job:
    base = {"kind": "ppo", "system": system, "threads": options.threads}
    return base | {"iterations": options.iterations} | fields


def _training_runs(options: PPOOptions) -> list[_Run]:
    runs = []
    for rollout in options.rollouts:
        case = f"CartPole-v1, equal size, rollout {rollout}"
        iterations = options.iterations if rollout < LONG else 2
        ours = _ours(case, "statewise S5", options, EQUAL_SIZE | {"rollout_steps": rollout})
        ours.job["iterations"] = iterations
        runs.append(ours)
        peer = _job(
            options,
            PEER,
            env="CartPole-v1",
            num_envs=NUM_ENVS,
            rollout=rollout,
            epochs=EPOCHS,
            minibatches=MINIBATCHES,
            iterations=iterations,
        )
        runs.append(_Run(case, PEER, peer, []))
    own = f"CartPole-v1, own default size, rollout {options.rollouts[0]}"
    runs.append(_ours(own, "statewise S5", options, {"rollout_steps": options.rollouts[0]}))
    # RecurrentPPO's default size is what the others were made equal to: the same measurement.
    runs.append(_Run(own, PEER, runs[1].job, runs[1].answers))
    recall = {"kind": "ppo", "system": OURS, "preset": "ppo/repeat_previous_easy", "threads": 1}
    recall |= {"overrides": {"num_threads": 1}, "iterations": 4 * options.iterations}
    runs.append(_Run("RepeatPreviousEasy, preset", "statewise S5", recall, []))
    return runs


def run_ppo(options: PPOOptions, say: Callable[[str], None]) -> Outcome:
    """Measure all cases; `say` is told what is going on."""
    outcome = Outcome()
    runs = _training_runs(options)
    absent = set()
    for number in range(options.rounds):
        for run in runs:
            if len(run.answers) > number or run.system in absent:
                continue
            say(f"round {number + 1} of {options.rounds}: {run.system}, {run.case}")
            answer = launch(run.job)
            if "missing" in answer:
                absent.add(run.system)
                outcome.missing.append(f"{run.system}: {answer['missing']}")
            else:
                run.answers.append(answer)
    found = [run for run in runs if run.answers]
    for metric in ("iteration", "update", "parameters"):
        outcome.figures += [_figure(run, metric) for run in found]
    outcome.figures.sort(key=lambda figure: [run.case for run in runs].index(figure.case))
    outcome.figures += _update_figures(options, say)
    return outcome


def _figure(run: _Run, metric: str) -> Figure:
    if metric == "parameters":
        value = float(run.answers[0]["parameters"])
        return Figure(run.case, run.system, metric, value, "numbers")
    phases = ("collect", "update") if metric == "iteration" else ("update",)
    rates, timing = [], Timing([], [])
    for answer in run.answers:
        for i in range(1, len(answer["steps"])):
            timing.wall.append(sum(answer["wall"][phase][i] for phase in phases))
            timing.cpu.append(sum(answer["cpu"][phase][i] for phase in phases))
            rates.append(answer["steps"][i] / timing.wall[-1])
    name = {"iteration": "env steps", "update": "env steps, update only"}[metric]
    threads = int(run.job["threads"])
    return Figure(run.case, run.system, name, median(rates), "steps/s", timing, threads)


def _update_figures(options: PPOOptions, say: Callable[[str], None]) -> list[Figure]:
    """Time the network's forward and backward with each memory, on one thread."""
    figures = []
    for T in options.lengths:
        case = f"one update, d = 64, {options.num_envs} x {T}"
        timings = {system: Timing([], []) for system in UPDATE_SYSTEMS}
        for number in range(options.rounds):
            for system, timing in timings.items():
                say(f"round {number + 1} of {options.rounds}: {system}, {case}")
                job = {"kind": "update", "system": system, "threads": 1, "T": T, "reps": 20}
                job |= {"num_envs": options.num_envs, "seconds": options.seconds}
                wall, cpu = launch(job)["timing"]
                timing.wall.extend(wall)
                timing.cpu.extend(cpu)
        for metric, pick in (("median", median), ("best", min)):
            figures += [
                Figure(case, system, metric, 1e3 * pick(timing.wall), "ms", timing)
                for system, timing in timings.items()
            ]
    return figures
