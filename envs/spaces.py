"""Flat spaces: every observation becomes a flat dict of arrays, every action a float vector.

An observation space may be a tree of Dict and Tuple spaces. `flatten_space` and `flatten_obs`
name its leaves by their path ("obs" for a space that is a leaf itself, else "a.b", "0", "1.x").
Values are 0 .. n - 1 in flat Discrete and MultiDiscrete spaces whatever their `start` was.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from numpy.typing import NDArray

from statewise.envs.protocol import Obs, UnsupportedSpaceError

Path = tuple[str | int, ...]


def _leaves(space: spaces.Space[Any], path: Path = ()) -> Iterator[tuple[Path, spaces.Space[Any]]]:
    """Yield the leaf spaces of a tree of Dict and Tuple spaces with their paths."""
    if isinstance(space, spaces.Dict):
        for name, inner in space.spaces.items():
            yield from _leaves(inner, (*path, name))
    elif isinstance(space, spaces.Tuple):
        for index, inner in enumerate(space.spaces):
            yield from _leaves(inner, (*path, index))
    else:
        yield path, space


def _key(path: Path) -> str:
    return ".".join(str(part) for part in path) if path else "obs"


def _flat_box(space: spaces.Box, dtype: Any) -> spaces.Box:
    """Return the box in another dtype, and a scalar made a vector of one."""
    shape = space.shape or (1,)
    with np.errstate(over="ignore"):  # a bound beyond float32 is no bound
        low, high = space.low.astype(dtype), space.high.astype(dtype)
    return spaces.Box(low.reshape(shape), high.reshape(shape), dtype=dtype)


def _flat_leaf(key: str, space: spaces.Space[Any]) -> spaces.Space[Any]:
    if isinstance(space, spaces.Box):
        return _flat_box(space, np.float32 if space.dtype == np.float64 else space.dtype)
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(space.nvec.reshape(-1))
    if isinstance(space, spaces.MultiBinary):
        return spaces.MultiBinary(int(np.prod(space.shape)))
    raise UnsupportedSpaceError(
        f"expected a Box, Discrete, MultiDiscrete or MultiBinary observation, got {space} in "
        f"{key!r}: wrap the environment so that it returns one of these"
    )


def flatten_space(space: spaces.Space[Any]) -> spaces.Dict:
    """Return the flat dict of the leaf spaces of one environment's observation space.

    Box keeps its shape and dtype, except float64 -> float32 and shape () -> (1,); the others
    start at 0 and have one axis.

    Raises:
        UnsupportedSpaceError: a leaf of another kind, two leaves of one name, or no leaf.
    """
    flat: OrderedDict[str, spaces.Space[Any]] = OrderedDict()  # keeps the order of the tree
    for path, leaf in _leaves(space):
        key = _key(path)
        if key in flat:
            raise UnsupportedSpaceError(
                f"expected one observation per name, got two named {key!r} in {space}: rename one"
            )
        flat[key] = _flat_leaf(key, leaf)
    if not flat:
        raise UnsupportedSpaceError(f"expected at least one observation, got the empty {space}")
    return spaces.Dict(flat)


def _flat_array(leaf: spaces.Space[Any], batched: Any) -> NDArray[Any]:
    """Return a fresh array (N, ...) with the values of the flat leaf."""
    values = np.asarray(batched)
    if isinstance(leaf, spaces.Box):
        dtype = np.float32 if leaf.dtype == np.float64 else leaf.dtype
        return np.array(values, dtype=dtype).reshape(len(values), *(leaf.shape or (1,)))
    if isinstance(leaf, spaces.Discrete):
        return np.asarray(values - leaf.start, dtype=np.int64)
    if isinstance(leaf, spaces.MultiDiscrete):
        shifted: NDArray[Any] = np.asarray(values - leaf.start, dtype=np.int64)
        return shifted.reshape(len(values), -1)
    return np.array(values, dtype=leaf.dtype).reshape(len(values), -1)


def flatten_obs(space: spaces.Space[Any], batched_obs: Any) -> Obs:
    """Flatten the observations of a gymnasium vector environment.

    Args:
        space: observation space of ONE environment.
        batched_obs: N observations as a vector environment returns them: the tree of the
            space with arrays (N, ...) at its leaves.

    Returns:
        Fresh arrays (N, ...) that fit `flatten_space(space)`.
    """
    flat: Obs = {}
    for path, leaf in _leaves(space):
        values = batched_obs
        for part in path:
            values = values[part]
        flat[_key(path)] = _flat_array(leaf, values)
    return flat


def flatten_list(space: spaces.Space[Any], observations: list[Any]) -> Obs:
    """Stack single observations of `space` and flatten them to arrays (N, ...)."""
    empty = create_empty_array(space, n=len(observations))
    return flatten_obs(space, concatenate(space, observations, empty))


def check_action_space(space: spaces.Space[Any]) -> None:
    """Raise UnsupportedSpaceError unless a policy head exists for the action space.

    Heads exist for Discrete, MultiDiscrete with one axis and float Box with one axis, bounded
    or not.
    """
    supported = (
        isinstance(space, spaces.Discrete)
        or (isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1)
        or (
            isinstance(space, spaces.Box)
            and len(space.shape) == 1
            and np.issubdtype(space.dtype, np.floating)
        )
    )
    if not supported:
        raise UnsupportedSpaceError(
            "expected a Discrete, 1-D MultiDiscrete or 1-D float Box action space, got "
            f"{space}: wrap the environment so that it takes one of these"
        )


def flatten_action_space(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """Return the action space an agent sees: values start at 0, boxes are float32.

    Raises:
        UnsupportedSpaceError: no policy head exists for the space.
    """
    check_action_space(space)
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(space.nvec)
    assert isinstance(space, spaces.Box), space
    return space if space.dtype == np.float32 else _flat_box(space, np.float32)


def restore_action(space: spaces.Space[Any], action: NDArray[Any]) -> NDArray[Any]:
    """Turn an agent's actions into those the environment takes; always a fresh array.

    Args:
        space: action space of ONE environment, as the environment declares it.
        action: (...) actions of `flatten_action_space(space)`; any leading axes.

    Returns:
        The actions with `start` added, or clipped to the box, in the space's dtype.
    """
    if isinstance(space, spaces.Box):
        clipped: NDArray[Any] = np.clip(action, space.low, space.high).astype(space.dtype)
        return clipped
    assert isinstance(space, spaces.Discrete | spaces.MultiDiscrete), space
    shifted: NDArray[Any] = np.asarray(action).astype(space.dtype) + space.start
    return shifted


def action_width(space: spaces.Space[Any]) -> int:
    """Return the number of floats `encode_action` makes of one action of `space`."""
    check_action_space(space)
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    assert isinstance(space, spaces.Box), space
    return space.shape[0]


def encode_action(space: spaces.Space[Any], batched_action: NDArray[Any]) -> NDArray[np.float32]:
    """Encode actions as vectors: one-hot, concatenated one-hots, or the values of a box.

    Args:
        space: action space of ONE environment.
        batched_action: (N,) for Discrete, (N, k) for MultiDiscrete and Box; values of `space`.

    Returns:
        (N, action_width(space)) float32, a fresh array.
    """
    if isinstance(space, spaces.Box):
        return np.array(batched_action, dtype=np.float32)
    assert isinstance(space, spaces.Discrete | spaces.MultiDiscrete), space
    code = np.zeros((len(batched_action), action_width(space)), dtype=np.float32)
    columns = batched_action - space.start
    if isinstance(space, spaces.MultiDiscrete):
        columns = columns + (np.cumsum(space.nvec) - space.nvec)
    else:
        columns = columns[:, None]
    code[np.arange(len(code))[:, None], columns] = 1.0
    return code
