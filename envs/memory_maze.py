"""Memory Maze: `memory-maze:<size>`, for example `memory-maze:9x9`.

Paper: Pasukonis, Lillicrap and Hafner 2022, "Evaluating Long-Term Memory in 3D Mazes". A ball
rolls through a maze of rooms; the border of the picture has the colour of the object to be
reached, which pays 1. An episode is truncated after 1000 to 4000 steps.

Deviations: the tasks are loaded without gym, which importing the package would need; a maze is
built anew for each episode from a seed of `np_random`, so that an episode can be resumed.
"""

import importlib
import importlib.util
import logging
import sys
from collections.abc import Collection
from types import ModuleType
from typing import Any

from statewise.envs import dmc, opengl
from statewise.envs.dm_env import DmEnv

PREFIX = "memory-maze:"
SIZES = ("9x9", "11x11", "13x13", "15x15")


def missing() -> str:
    """Return "" if the package and dm_control are there, else the line that installs them."""
    found = all(importlib.util.find_spec(name) for name in ("memory_maze", "dm_control"))
    where = "" if sys.version_info < (3, 13) else " with Python 3.12 or older"
    return "" if found else f"pip install 'statewise[memory-maze]'{where}"


def ids() -> Collection[str]:
    """Return the ids that can be made."""
    return [PREFIX + size for size in SIZES]


def _tasks() -> Any:
    """Import the tasks of the package, but not the package itself, which registers with gym."""
    if "memory_maze" not in sys.modules:
        spec = importlib.util.find_spec("memory_maze")
        assert spec is not None, "missing"
        package = ModuleType("memory_maze")
        package.__path__ = list(spec.submodule_search_locations or ())
        package.__spec__ = spec
        sys.modules["memory_maze"] = package
        # said of the ball in every new maze
        logging.getLogger("absl").addFilter(lambda said: "no free joint" not in said.getMessage())
    return dmc.load_library("memory_maze.tasks")


def make(env_id: str, *, image_only_obs: bool = True, **kwargs: Any) -> DmEnv:
    """Make one maze. Observations: a picture (64, 64, 3) uint8.

    Args:
        env_id: with the prefix.
        image_only_obs: else a dictionary, for probing, with what other arguments add.
        **kwargs: of the package's tasks, for example `global_observables`, `good_visibility`,
            `camera_resolution` or `control_freq`.

    Raises:
        EnvError: there is no library to draw with.
        TypeError: an argument that the package does not know.
    """
    build = getattr(_tasks(), f"memory_maze_{env_id.removeprefix(PREFIX)}")
    opengl.check_mujoco(env_id)

    def begin(seed: int) -> Any:
        return build(seed=seed, image_only_obs=image_only_obs, **kwargs)

    return DmEnv(env_id, begin)
