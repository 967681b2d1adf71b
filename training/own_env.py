"""A run on an environment of one's own: what its manifest says of it, and what stands in for it.

No setting names a callable, so the run cannot make its environments again. The manifest says so,
with the spaces: an agent is loaded and chooses actions without the callable, and whatever would
play asks for it.
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from statewise.envs.build import Factory
from statewise.training.run import OWN_ENV, RunError


class Spaces(NamedTuple):
    """What an agent sees and does."""

    obs: spaces.Dict
    """Flat."""
    action: spaces.Space[Any]
    """Of one environment, as it declares it."""


class NotGiven:
    """Stands where the callable belongs, in an agent that was loaded without it.

    Args:
        run: what was loaded.
        spaces: as the manifest has them.
    """

    def __init__(self, run: Path, spaces: Spaces) -> None:
        self.run, self.spaces = run, spaces

    def __call__(self, **kwargs: Any) -> NoReturn:
        """Refuse, whatever the arguments."""
        raise RunError(ask_for(self.run))


def ask_for(run: Path, call: str = "load") -> str:
    """Return the line that asks for the callable of a run.

    Args:
        run: what was trained on it.
        call: the function of `statewise` that takes it.
    """
    return (
        f"expected the environment of your own that {run} was trained on, got none: give the "
        f"callable from Python, statewise.{call}({str(run)!r}, env=...)"
    )


def given(factory: Factory | None) -> Factory | None:
    """Return the callable, None where settings name the environment.

    Raises:
        RunError: it is one that was not given.
    """
    if isinstance(factory, NotGiven):
        factory()
    return factory


def note(factory: Factory | None, known: Spaces) -> dict[str, Any]:
    """Return entries of a manifest, none where settings name the environment."""
    if factory is None:
        return {}
    obs = {key: _described(space) for key, space in known.obs.spaces.items()}
    return {OWN_ENV: {"observation": obs, "action": _described(known.action)}}


def stand_in(run: Path, manifest: dict[str, Any]) -> NotGiven | None:
    """Return what stands for the callable of a run, None where settings name its environment.

    Raises:
        RunError: it is needed, because the manifest does not have the spaces.
    """
    noted = manifest.get(OWN_ENV)
    if not noted:
        return None
    try:
        obs = {key: _space(entry) for key, entry in noted["observation"].items()}
        known = Spaces(spaces.Dict(OrderedDict(obs)), _space(noted["action"]))
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(ask_for(run)) from error
    return NotGiven(run, known)


def spaces_in(env: gymnasium.Env[Any, Any]) -> Spaces:
    """Return the spaces of an environment as an agent gets it, and close it."""
    assert isinstance(env.observation_space, spaces.Dict), env.observation_space
    known = Spaces(env.observation_space, env.action_space)
    env.close()
    return known


def _described(space: spaces.Space[Any]) -> dict[str, Any]:
    """Return a space without parts for a file, in which a bound at infinity becomes null."""
    if isinstance(space, spaces.Box):
        bounds = {"low": _bound(space.low), "high": _bound(space.high)}
        return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        counts = {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
        return {"type": "MultiDiscrete", "dtype": str(space.dtype), **counts}
    assert isinstance(space, spaces.MultiBinary), space
    return {"type": "MultiBinary", "shape": list(space.shape)}


def _bound(values: NDArray[Any]) -> Any:
    """Return bounds as a number, where they are all the same, or as lists of them."""
    is_one = values.size > 0 and bool(np.all(values == values.flat[0]))
    return values.flat[0].item() if is_one else values.tolist()


def _space(entry: dict[str, Any]) -> spaces.Space[Any]:
    """Return the space that `_described` gave the entry of."""
    kind = entry["type"]
    if kind == "Box":
        dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
        low, high = (
            np.broadcast_to(_numbers(entry[side], beyond, dtype), shape)
            for side, beyond in (("low", -np.inf), ("high", np.inf))
        )
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(entry["n"], start=entry["start"])
    if kind == "MultiDiscrete":
        start = np.array(entry["start"])
        return spaces.MultiDiscrete(
            np.array(entry["nvec"]), np.dtype(entry["dtype"]).type, start=start
        )
    if kind == "MultiBinary":
        shape = entry["shape"]
        return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)
    raise ValueError(f"expected a space without parts, got {kind!r}")


def _numbers(bound: Any, beyond: float, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return bounds as an array, `beyond` where there is none."""
    values = np.array(bound, object)
    values[values == None] = beyond  # noqa: E711  (of an array, element by element)
    return values.astype(dtype)
