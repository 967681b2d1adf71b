"""MiniGrid: `MiniGrid-<Task>-v0`, for example `MiniGrid-MemoryS7-v0`.

Library: Chevalier-Boisvert et al. 2023, "Minigrid & Miniworld: Modular & Customizable
Reinforcement Learning Environments for Goal-Oriented Tasks".

Deviations: fields of the grid are choices, so that they are read one-hot: kind, colour and state.
A mission is the choice of its words where a task has several, and is not observed where it has
one. BabyAI's sentences have no such form.
"""

import importlib
import importlib.util
import itertools
from collections import OrderedDict
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs.protocol import EnvError, UnsupportedSpaceError

FIELD = (11, 6, 4)  # kinds, colours, states (of a door) or directions (of the agent)


def missing() -> str:
    """Return "" if minigrid can be imported, else the line that installs it."""
    found = importlib.util.find_spec("minigrid") is not None
    return "" if found else "pip install 'statewise[minigrid]'"


def register() -> None:
    """Make the ids known to gymnasium, which importing the package does."""
    importlib.import_module("minigrid")


def _missions(space: Any) -> tuple[list[int], dict[str, NDArray[np.int64]]]:
    """Return how many words there are for each place, and the choice behind each mission."""
    places = space.ordered_placeholders or []
    table: dict[str, NDArray[np.int64]] = {}
    for choice in itertools.product(*(range(len(words)) for words in places)):
        words = [place[i] for place, i in zip(places, choice, strict=True)]
        table.setdefault(space.mission_func(*words), np.array(choice, dtype=np.int64))
    return [len(words) for words in places], table


class Choices(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A task whose observations are choices; see above.

    Args:
        env: a task of MiniGrid with its own observations.

    Raises:
        UnsupportedSpaceError: its mission is not made from lists of words.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        theirs = env.observation_space
        assert isinstance(theirs, spaces.Dict), theirs
        mission = theirs["mission"]
        if type(mission) is not importlib.import_module("minigrid.core.mission").MissionSpace:
            raise UnsupportedSpaceError(
                f"expected a mission made from lists of words, got {type(mission).__name__} in "
                "'mission': wrap the environment so that it returns numbers"
            )
        numbers, self._table = _missions(mission)
        shape = theirs["image"].shape
        assert shape is not None, theirs
        ours: list[tuple[str, spaces.Space[Any]]] = [
            ("image", spaces.MultiDiscrete(np.broadcast_to(FIELD, shape).copy())),
            ("direction", spaces.Discrete(4)),
        ]
        if numbers:
            ours.append(("mission", spaces.MultiDiscrete(numbers)))
        self._has_mission = bool(numbers)
        self._observation_space = spaces.Dict(OrderedDict(ours))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode.

        Raises:
            EnvError: the package lacks a file of the task, as minigrid 3.2 does for WFC.
        """
        try:
            obs, info = self.env.reset(seed=seed, options=options)
        except FileNotFoundError as error:
            name = "the environment" if self.spec is None else self.spec.id
            raise EnvError(f"{name} needs {error.filename}, which minigrid lacks") from error
        return self._read(obs), info

    def step(self, action: Any) -> tuple[dict[str, Any], Any, bool, bool, dict[str, Any]]:
        """Act."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._read(obs), reward, terminated, truncated, info

    def _read(self, obs: dict[str, Any]) -> dict[str, Any]:
        read = {"image": obs["image"].astype(np.int64), "direction": int(obs["direction"])}
        if self._has_mission:
            if obs["mission"] not in self._table:
                raise EnvError(
                    f"expected a mission of the task's own words, got {obs['mission']!r}: the "
                    "environment is at fault"
                )
            read["mission"] = self._table[obs["mission"]].copy()
        return read


def make(env_id: str, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    """Make one task.

    Args:
        env_id: of a registered task.
        **kwargs: of the task, for example `agent_view_size` or `max_steps`.

    Raises:
        UnsupportedSpaceError: its mission is not made from lists of words.
    """
    return Choices(gymnasium.make(env_id, disable_env_checker=True, **kwargs))
