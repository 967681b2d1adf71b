"""One run of a suite: a preset on a task from a seed, trained, or resumed, or found finished.

The score of a run is that of its last checkpoint. Two further numbers come from its log: the best
mean return of an update, which POPGym's MMER averages over runs, and the mean return of all
episodes of the training, which bsuite's rules are about.

Deviations: the log has at each update the mean of the last 100 episodes, not of those that ended
in it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statewise.bench.bsuite_rules import experiment_of
from statewise.bench.process import Answer, Job
from statewise.bench.resumable import finished_steps, minutes_of, train_to_end
from statewise.bench.suites import Suite
from statewise.envs.build import find_family
from statewise.training.config import (
    ReplayTrainConfig,
    RunConfig,
    TrainConfig,
    apply_overrides,
    load_preset,
)
from statewise.training.evaluate import evaluate_run
from statewise.training.log import read_metrics
from statewise.training.plot_curves import METRIC
from statewise.training.run import RunDirectory, read_json
from statewise.training.schema import ConfigError

EPISODES, LENGTH = "rollout/episodes", "rollout/ep_len_mean"
OnlineConfig = TrainConfig | ReplayTrainConfig

_FIXED = {
    "--env.id": "which each task has of its own: pass --tasks",
    "--seed": "which each run has of its own: pass --seeds N for the seeds 1 to N",
    "--num-threads": "since every run has one thread: pass --workers N for the runs at a time",
}
_UNSAFE = str.maketrans("/:", "--")


@dataclass(frozen=True, kw_only=True)
class SuiteRun:
    """A run of a suite, which may be made or not."""

    preset: str  # name or path
    name: str  # of the preset in tables and folders
    task: str  # id
    seed: int  # >= 0
    path: Path  # the run directory
    overrides: tuple[str, ...]  # of the preset, words of a command line
    values: Mapping[str, Any]  # laid over them, by dotted path
    episodes: int  # at most this many count for `run_return`; 0: all
    config: OnlineConfig  # the preset with all of these

    @property
    def key(self) -> tuple[str, str, int]:
        """What it is in the tables."""
        return self.name, self.task, self.seed

    def __str__(self) -> str:
        return f"{self.name}, {self.task}, seed {self.seed}"


def load_online(preset: str, overrides: Sequence[str]) -> OnlineConfig:
    """Read a preset of an agent that learns in its environment.

    Raises:
        ConfigError: no such preset, an override that does not fit, or another kind of preset.
    """
    config: RunConfig = load_preset(preset, overrides)
    if not isinstance(config, OnlineConfig):
        raise ConfigError(
            f"--preset: expected an agent that learns in its environment, got {preset}, which "
            "learns from data: see `statewise list presets`"
        )
    return config


def plan_run(
    suite: Suite,
    root: Path,
    preset: tuple[str, OnlineConfig],
    overrides: tuple[str, ...],
    task: str,
    seed: int,
) -> SuiteRun:
    """Return a run of a suite.

    What the preset says of environments (`env.kwargs`, `eval.kwargs`) is kept if its own task is of
    the same family as this one, over what the suite says; what the overrides say always is.

    Args:
        suite: it belongs to.
        root: folder of all suites' runs.
        preset: its name, or the path of a file, and what it says, overridden.
        overrides: of the preset, words of a command line.
        task: id.
        seed: of the run.

    Raises:
        ConfigError: settings that do not go together on this task.
    """
    source, base = preset
    values: dict[str, Any] = {"env.id": task, "seed": seed, "num_threads": 1}
    is_alike = _family(base.env.id) == _family(task)
    own = base if is_alike else _overrides_alone(source, overrides)
    values["env.kwargs"] = {**suite.kwargs_of(task), **own.env.kwargs}
    if not is_alike:
        values["eval.kwargs"] = own.eval.kwargs
    name = name_of(source)
    folder = f"{task.translate(_UNSAFE)}-seed{seed}"
    experiment = suite.experiments.get(experiment_of(task))
    return SuiteRun(
        preset=source,
        name=name,
        task=task,
        seed=seed,
        path=root / suite.name / name.translate(_UNSAFE) / folder,
        overrides=overrides,
        values=values,
        episodes=0 if experiment is None else experiment.episodes,
        config=apply_overrides(base, values),
    )


def _family(task: str) -> str:
    """Return what tasks of the same arguments have in common."""
    prefix = find_family(task).prefix
    return "dm_control/" if prefix == "dmc:" else prefix


def _overrides_alone(preset: str, overrides: tuple[str, ...]) -> OnlineConfig:
    """Return a preset whose arguments of environments are those of the overrides alone."""
    bare = apply_overrides(load_online(preset, ()), {"env.kwargs": {}, "eval.kwargs": {}})
    return apply_overrides(bare, overrides)


def refuse_fixed(overrides: Sequence[str]) -> None:
    """Refuse settings that a suite makes itself.

    Raises:
        ConfigError: there is one.
    """
    words = (word.partition("=")[0] for word in overrides)
    for word in words:
        if instead := _FIXED.get(word.replace("_", "-")):
            raise ConfigError(f"suite: expected no {word}, {instead}")


def name_of(preset: str) -> str:
    """Return what a preset is called in tables: its name, or that of its file."""
    return Path(preset).stem if preset.endswith((".yaml", ".yml")) else preset


def job_of(run: SuiteRun) -> Job:
    """Return the job that brings a run to its end, in a process that may have another folder."""
    is_file = run.preset.endswith((".yaml", ".yml"))
    return {
        "kind": "suite",
        "system": str(run),
        "preset": str(Path(run.preset).resolve()) if is_file else run.preset,
        "name": run.name,
        "task": run.task,
        "seed": run.seed,
        "path": str(run.path.resolve()),
        "overrides": list(run.overrides),
        "values": dict(run.values),
        "episodes": run.episodes,
        "threads": 1,
    }


def run_job(job: Job) -> Answer:
    """Bring one run to its end and evaluate its last checkpoint.

    Args:
        job: as `job_of` returns it.

    Returns:
        The row of the run, see `find_row`.

    Raises:
        ConfigError: the preset, or an override.
        RunError: the folder holds another run, or one that another process trains.
    """
    overrides = tuple(job["overrides"])
    config = apply_overrides(load_online(job["preset"], overrides), job["values"])
    run = SuiteRun(
        **{name: job[name] for name in ("preset", "name", "task", "seed", "values", "episodes")},
        path=Path(job["path"]),
        overrides=overrides,
        config=config,
    )
    words = ["--env.id", run.task, "--seed", str(run.seed)]
    command = ["statewise", "train", run.preset, *run.overrides, *words]
    steps = train_to_end(run.path, config, command)
    if _found_evaluation(run.path, config, steps) is None:
        evaluate_run(run.path, episodes=config.eval.episodes, actions=config.eval.actions)
    row = find_row(run)
    assert row is not None, run.path
    return row


def find_row(run: SuiteRun) -> Answer | None:
    """Return the row of a run that is finished, None of any other.

    Returns:
        preset, task, seed, steps; control_steps, which counts repeats of actions; return, ci_low
        and ci_high of the last checkpoint; best_return and run_return, see above; episodes of the
        training that it counts; minutes.
    """
    config = run.config
    steps = finished_steps(run.path, config)
    evaluation = None if steps is None else _found_evaluation(run.path, config, steps)
    if steps is None or evaluation is None:
        return None
    directory = RunDirectory.open(run.path)
    low, high = evaluation["return_ci95"]
    log = read_metrics(directory)
    run_return, episodes = mean_of_run(log, run.episodes)
    return {
        "preset": run.name,
        "task": run.task,
        "seed": run.seed,
        "steps": steps,
        "control_steps": steps * int(config.env.kwargs.get("action_repeat", 1)),
        "return": evaluation["return_mean"],
        "ci_low": low,
        "ci_high": high,
        "best_return": max(_means(log), default=None),
        "run_return": run_return,
        "episodes": episodes,
        "minutes": minutes_of(directory),
    }


def mean_of_run(log: Sequence[Mapping[str, float]], at_most: int = 0) -> tuple[float | None, int]:
    """Return the mean return of all episodes of a training, and how many they are.

    Each line's mean counts as often as episodes ended since the line before: as logged, else steps
    by their mean length.

    Args:
        log: the rows of `metrics.jsonl`.
        at_most: the first so many episodes count; 0: all.

    Returns:
        The mean, None if no episode has ended; the number of episodes.
    """
    total, num, before = 0.0, 0.0, 0.0
    for row in log:
        ended = row.get(EPISODES, (row["step"] - before) / row.get(LENGTH, math.inf))
        before = row["step"]
        if at_most:
            ended = min(ended, at_most - num)
        if ended > 0 and math.isfinite(row.get(METRIC, math.nan)):
            total += ended * row[METRIC]
            num += ended
    return (total / num if num else None), round(num)


def _means(log: Sequence[Mapping[str, float]]) -> list[float]:
    return [row[METRIC] for row in log if math.isfinite(row.get(METRIC, math.nan))]


def _found_evaluation(path: Path, config: OnlineConfig, steps: int) -> Mapping[str, Any] | None:
    """Return the evaluation of this checkpoint as the settings have it, None without one."""
    file = RunDirectory.open(path).eval_path
    found = read_json(file) if file.is_file() else {}
    played = (found.get("step"), found.get("actions"), len(found.get("episodes", ())))
    wanted = (steps, config.eval.actions, config.eval.episodes)
    return found if played == wanted else None
