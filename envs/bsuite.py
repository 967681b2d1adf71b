"""The behaviour suite: `bsuite:<experiment>/<setting>`, for example `bsuite:memory_len/5`.

Paper: Osband et al. 2020, "Behaviour Suite for Reinforcement Learning". An id is one setting of a
sweep. Scores need all settings of an experiment and are no matter of this file.

Deviations: the generators are seeded from `np_random` for each episode, instead of once for the
whole experiment, so that an episode can be resumed; what a setting fixes by a `mapping_seed`
stays as it is.
"""

import importlib
import importlib.util
from collections.abc import Collection
from typing import Any

import numpy as np

from statewise.envs.dm_env import DmEnv
from statewise.envs.protocol import EnvError

PREFIX = "bsuite:"


def missing() -> str:
    """Return "" if bsuite can be imported, else the line that installs it."""
    found = importlib.util.find_spec("bsuite") is not None
    return "" if found else "pip install 'statewise[bsuite]'"


def ids() -> Collection[str]:
    """Return the ids of all settings."""
    return [PREFIX + name for name in importlib.import_module("bsuite.sweep").SWEEP]


def _reseed(env: Any, seed: int) -> None:
    """Give the environment and what is wrapped around it fresh generators."""
    depth = 0
    while env is not None:
        if "_rng" in vars(env):
            env._rng = np.random.RandomState([seed, depth])
        env, depth = vars(env).get("_env"), depth + 1


def make(env_id: str, **kwargs: Any) -> DmEnv:
    """Make one environment.

    Args:
        env_id: of a setting, with the prefix.
        **kwargs: instead of what the setting says, for example `memory_length`.

    Raises:
        EnvError: it needs a data set that is not there.
    """
    name = env_id.removeprefix(PREFIX)
    settings = importlib.import_module("bsuite.sweep").SETTINGS[name]
    experiment = name.partition("/")[0]
    try:
        env = importlib.import_module("bsuite").load(experiment, {**settings, **kwargs})
    except OSError as error:  # pictures of digits, which bsuite looks for in /tmp/mnist
        reason = " ".join(str(error).split())
        raise EnvError(f"{env_id} needs a data set that is missing: {reason}") from error

    def begin(seed: int) -> Any:
        _reseed(env, seed)
        return env

    return DmEnv(env_id, begin)
