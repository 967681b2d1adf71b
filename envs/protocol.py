"""What every vector-environment adapter offers, and the errors adapters raise."""

from typing import Any, NamedTuple, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

Obs = dict[str, NDArray[Any]]
Bools = NDArray[np.bool_]
CUT = "cut_by_trial"
"""In the info of a step: its episode was cut off by the end of a trial, and would have gone on."""


class EnvError(ValueError):
    """An environment cannot be made or does not keep its contract."""


class UnsupportedSpaceError(EnvError):
    """A space for which there is no encoder or no policy head."""


class InTrial(NamedTuple):
    """What a step was in its trial; N environments."""

    ended: Bools
    """(N,): an episode ended by itself, whatever ends with it."""
    over: Bools
    """(N,): the trial ended."""
    place: NDArray[np.int64]
    """(N,): number of the step's episode within its trial, from 0."""


class Arrived(NamedTuple):
    """What a vector environment hands back from a step; N environments.

    `obs`, `is_first` and `reset` belong to row t + 1; the rest was caused by the action of
    row t.
    """

    obs: Obs
    """(N, ...) per key."""
    is_first: Bools
    """(N,): `obs` is the first observation of an episode."""
    reset: Bools
    """(N,): the memory is to be cleared before `obs` is read. Equal to `is_first` except in
    trials of several episodes."""
    reward: NDArray[np.float32]
    """(N,): 0 on rows that are not valid."""
    terminated: Bools
    truncated: Bools
    valid: Bools
    """(N,): False where row t held a final observation, whose action was ignored."""
    final_obs: Obs | None
    """SAME_STEP backends: the final observations of the episodes that ended in this step,
    (N, ...), rows without an end are meaningless; None where no episode ended and under
    NEXT_STEP, where the final observation is an ordinary row."""
    cut: Bools | None = None
    """(N,): what `CUT` says of the step; None is the same as nowhere."""
    trial: InTrial | None = None
    """None where every episode has a memory of its own."""

    @property
    def episode_ended(self) -> Bools:
        """(N,): an episode ended in this step; in trials it may not be `terminated`."""
        return self.terminated | self.truncated if self.trial is None else self.trial.ended


class VectorEnv(Protocol):
    """N environments stepped together, in the time convention of `docs/conventions.md`."""

    num_envs: int
    obs_space: spaces.Dict
    """Flat: every entry is a Box, Discrete, MultiDiscrete or MultiBinary space of ONE
    environment."""
    action_space: spaces.Space[Any]
    """Of ONE environment: Discrete, MultiDiscrete or Box."""
    resume: str
    """How a resumed run continues: "exact" or "episode" (starts new episodes)."""

    def reset(self, seed: int | None = None) -> tuple[Obs, Bools]:
        """Start N episodes; environment i is seeded with seed + i. Return obs, is_first."""
        ...

    def step(self, action: NDArray[Any]) -> Arrived:
        """Act in all environments; action (N, ...) as one environment takes it.

        Continuous actions are clipped to the space.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs: JSON-able values and numpy arrays."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Obs, Bools]:
        """Continue where `state_dict` was taken; return the current obs and is_first.

        With `resume == "episode"` new episodes start instead.
        """
        ...

    def close(self) -> None:
        """Free what the environments hold."""
        ...
