"""What is known about the tasks of D4RL beside their data: sizes, horizons, and defects.

Sources: the release (Fu et al. 2020, "D4RL: Datasets for Deep Data-Driven Reinforcement
Learning") and its issues; a number "#86" is one of Farama-Foundation/D4RL.
"""

import difflib
from typing import NamedTuple

import numpy as np

from statewise.data import checks
from statewise.data.episode import ArraySpec
from statewise.data.errors import DataConfigError
from statewise.data.scores import REFERENCE_SCORES


class Task(NamedTuple):
    """A data set of D4RL."""

    name: str
    """ "hopper-medium-v2"."""
    observation_size: int
    action_size: int
    max_episode_steps: int


_SIZES = {
    "halfcheetah": (17, 6, 1000),
    "hopper": (11, 3, 1000),
    "walker2d": (17, 6, 1000),
    "ant": (111, 8, 1000),
    "antmaze": (29, 8, 1000),
    "maze2d": (4, 2, 300),
    "kitchen": (60, 9, 280),
    "pen": (45, 24, 100),
    "hammer": (46, 26, 200),
    "door": (39, 28, 200),
    "relocate": (39, 30, 200),
}
LOCOMOTION = ("halfcheetah", "hopper", "walker2d", "ant")
MAZES = ("antmaze", "maze2d")
_MAZE_STEPS = {
    "antmaze-umaze": 700,
    "maze2d-open": 150,
    "maze2d-umaze": 300,
    "maze2d-medium": 600,
    "maze2d-large": 800,
}
_MEAN_RETURNS = {
    "halfcheetah-medium-v2": 4770.0,
    "halfcheetah-medium-replay-v2": 3093.0,
    "hopper-medium-v2": 1422.0,
    "hopper-medium-replay-v2": 467.0,
    "hopper-expert-v2": 3511.0,
    "walker2d-medium-v2": 2852.0,
    "walker2d-medium-replay-v2": 683.0,
}
_MEAN_TOLERANCE = 0.01  # relative


def find_task(name: str) -> Task | None:
    """Return the task of a data set or of a file's name, None if it is none of D4RL.

    "hopper_medium-v2", the name of a file, is "hopper-medium-v2"; a name without a version is of
    version 0; every "Ant_maze_..." is an AntMaze, whose map its name may not tell.
    """
    plain = name.lower().replace("_", "-").replace("ant-maze", "antmaze")
    for full in (plain, f"{plain}-v0"):
        family = full.split("-")[0]
        if family in _SIZES and (full in REFERENCE_SCORES or family == "antmaze"):
            observation_size, action_size, steps = _SIZES[family]
            maze = "-".join(full.split("-")[:2])
            return Task(full, observation_size, action_size, _MAZE_STEPS.get(maze, steps))
    return None


def named_task(name: str) -> Task:
    """Return the task of a data set.

    Raises:
        DataConfigError: D4RL has none of this name, or none whose sizes are known.
    """
    task = find_task(name)
    if task is None:
        near = difflib.get_close_matches(name, REFERENCE_SCORES, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else "leave it out"
        raise DataConfigError(f"expected a task of D4RL, got {name!r}", key="task", hint=hint)
    return task


def family_of(task: Task) -> str:
    """Return the first word of the name, "hopper"."""
    return task.name.split("-")[0]


def task_specs(task: Task) -> tuple[ArraySpec, ArraySpec]:
    """Return what observations and actions of the task are.

    Bounds are known of locomotion tasks only: actions in [-1, 1].
    """
    low = high = None
    if family_of(task) in LOCOMOTION:
        high = np.ones(task.action_size, np.float32)
        low = -high
    return (
        ArraySpec(shape=(task.observation_size,), dtype="float32"),
        ArraySpec(shape=(task.action_size,), dtype="float32", low=low, high=high),
    )


def warn_of_defects(task: Task, file: checks.File) -> None:
    """Warn of what is known to be wrong with the released data of a task."""
    family, version = family_of(task), task.name.rpartition("-")[2]
    old = version in ("v0", "v1")
    if family in ("hopper", "walker2d") and "replay" in task.name and old:
        checks.warn(f"{task.name}: its timeouts are wrong (D4RL #86): use v2", file)
    if family == "antmaze" and version == "v0":
        checks.warn(f"{task.name}: timeouts and resets differ (D4RL #77, #146): use v2", file)
    if family == "maze2d":
        checks.warn(f"{task.name}: rewards are one step late (D4RL #194)", file)


def warn_of_other_returns(task: Task, mean_return: float, file: checks.File) -> None:
    """Warn if the mean return is not that of the released data, where it is known."""
    expected = _MEAN_RETURNS.get(task.name)
    if expected is not None and abs(mean_return - expected) > _MEAN_TOLERANCE * abs(expected):
        checks.warn(
            f"{task.name}: expected a mean return of about {expected:g}, got {mean_return:.5g}:"
            " the file may be another data set",
            file,
        )
