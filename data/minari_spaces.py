"""Spaces as Minari's metadata has them, made into flat array specs and back.

    {"type": "Box", "dtype", "shape", "low", "high"}      {"type": "Discrete", "start", "n"}
    {"type": "MultiDiscrete", "dtype", "nvec", "start"}   {"type": "MultiBinary", "n"}
    {"type": "Dict", "subspaces": {...}}                  {"type": "Tuple", "subspaces": [...]}

Leaves are named by their path, as the environment adapter names them: "obs" for a space that is
a leaf itself, else "a.b", "0", "1.x". Floats are float32, a scalar is a vector of one, choices
count from 0 and have one axis.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from statewise.data.episode import Array, ArraySpec
from statewise.data.errors import DatasetCorrupt, DatasetError, MinariFormat

TreePath = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One array of a space: how it is stored and what it becomes."""

    path: TreePath
    """Names of Dict and numbers of Tuple spaces on the way to it."""
    stored: ArraySpec
    """Shape and dtype of a row in the file."""
    spec: ArraySpec
    """What an episode has."""
    start: Array | None = None
    """Smallest choice, subtracted; None for values that are no choices."""

    @property
    def name(self) -> str:
        """Key of the flat observation space."""
        return ".".join(map(str, self.path)) if self.path else "obs"

    @property
    def is_image(self) -> bool:
        """Minari may have stored it as JPEG: uint8, 2 or 3 axes, both sides at least 32."""
        shape, spec = self.stored.shape, self.stored
        return (
            spec.dtype == "uint8"
            and len(shape) in (2, 3)
            and min(shape[:2]) >= 32
            and bool(np.all(spec.low == 0))
            and bool(np.all(spec.high == 255))
        )

    def convert(self, values: Array) -> Array:
        """Turn stored rows (n, ...) into those of an episode."""
        if self.start is not None:
            values = values.astype(np.int64) - self.start
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, and is found
            values = values.astype(self.spec.dtype, copy=False)
        return values.reshape(len(values), *self.spec.shape)


def observation_leaves(text: str, file: Path) -> tuple[Leaf, ...]:
    """Return the leaves of an observation space in the order of the tree.

    Args:
        text: JSON.
        file: for messages.

    Raises:
        MinariFormat: Text, an unknown type, no leaf, or two leaves of one name.
        DatasetCorrupt: no JSON.
    """
    leaves = tuple(_leaves(_node(text, file, "observation_space"), (), file))
    names = [leaf.name for leaf in leaves]
    if not names or len(set(names)) < len(names):
        raise MinariFormat(
            f"expected one or more observations of different names, got {names}",
            file=file,
            key="observation_space",
        )
    return leaves


def action_leaf(text: str, file: Path) -> Leaf:
    """Return the action space: Discrete, or MultiDiscrete or a Box of floats with one axis.

    Raises:
        MinariFormat: another space.
        DatasetCorrupt: no JSON.
    """
    node = _node(text, file, "action_space")
    kind = node.get("type")
    leaf = None if kind in ("Dict", "Tuple") else next(_leaves(node, (), file))
    if leaf is not None:
        is_vector = len(leaf.stored.shape) == 1
        is_float = np.dtype(leaf.stored.dtype).kind == "f"
        if kind == "Discrete" or (is_vector and (kind == "MultiDiscrete" or is_float)):
            return leaf
    raise MinariFormat(
        "expected Discrete, or MultiDiscrete or a float Box with one axis, got"
        f" {_described(node, leaf)}",
        file=file,
        key="action_space",
        hint="no policy takes others",
    )


def observation_text(specs: Mapping[str, ArraySpec]) -> str:
    """Return the JSON of a space: the leaf itself if it is called "obs", else a flat Dict."""
    if set(specs) == {"obs"}:
        return space_text(specs["obs"])
    subspaces = {key: _written(spec) for key, spec in specs.items()}
    return json.dumps({"type": "Dict", "subspaces": subspaces})


def space_text(spec: ArraySpec) -> str:
    """Return the JSON of one leaf; missing bounds are the widest of its dtype."""
    return json.dumps(_written(spec))


def _node(text: str, file: Path, key: str) -> dict[str, Any]:
    try:
        node = json.loads(text)
    except ValueError as error:
        raise DatasetCorrupt(
            f"expected the JSON of a space, got {text[:40]!r}", file=file, key=key
        ) from error
    if not isinstance(node, dict):
        raise MinariFormat(f"expected a space, got {text[:40]!r}", file=file, key=key)
    return node


def _leaves(node: dict[str, Any], path: TreePath, file: Path) -> Iterator[Leaf]:
    try:
        kind = node["type"]
        if kind == "Dict":
            for name, inner in node["subspaces"].items():
                yield from _leaves(inner, (*path, str(name)), file)
        elif kind == "Tuple":
            for number, inner in enumerate(node["subspaces"]):
                yield from _leaves(inner, (*path, number), file)
        else:
            yield _leaf(kind, node, path, file)
    except DatasetError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise MinariFormat(
            f"expected a space as minari writes it, got {str(node)[:80]}: {error!r}",
            file=file,
            key=".".join(map(str, path)) or "space",
        ) from error


def _leaf(kind: str, node: dict[str, Any], path: TreePath, file: Path) -> Leaf:
    if kind == "Box":
        return _box(node, path)
    if kind == "Discrete":
        first: Array = np.array(int(node.get("start", 0)))
        stored = ArraySpec(shape=(), dtype="int64")
        spec = ArraySpec(shape=(), dtype="int64", num_choices=(int(node["n"]),))
        return Leaf(path=path, stored=stored, spec=spec, start=first)
    if kind == "MultiDiscrete":
        counts = np.array(node["nvec"], np.int64)
        first = np.broadcast_to(np.array(node.get("start", 0), np.int64), counts.shape)
        stored = ArraySpec(shape=counts.shape, dtype=str(np.dtype(node["dtype"])))
        spec = ArraySpec((counts.size,), "int64", num_choices=tuple(counts.reshape(-1).tolist()))
        return Leaf(path=path, stored=stored, spec=spec, start=first)
    if kind == "MultiBinary":
        shape = tuple(np.atleast_1d(np.array(node["n"], np.int64)).tolist())
        size = int(np.prod(shape))
        spec = ArraySpec(shape=(size,), dtype="int8", num_choices=(2,) * size)
        return Leaf(path=path, stored=ArraySpec(shape=shape, dtype="int8"), spec=spec)
    raise MinariFormat(
        f"expected Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple, got {kind}",
        file=file,
        key=".".join(map(str, path)) or "space",
        hint="leave this entry out of the data set",
    )


def _box(node: dict[str, Any], path: TreePath) -> Leaf:
    dtype, shape = np.dtype(node["dtype"]), tuple(int(n) for n in node["shape"])
    if dtype.kind not in "biuf":
        raise TypeError(f"expected numbers, got {dtype}")
    low, high = (np.broadcast_to(np.array(node[k], dtype), shape) for k in ("low", "high"))
    stored = ArraySpec(shape=shape, dtype=str(dtype), low=low, high=high)
    with np.errstate(over="ignore"):  # a bound beyond float32 is no bound
        flat = np.dtype(np.float32) if dtype.kind == "f" else dtype
        low, high = (bound.astype(flat).reshape(shape or (1,)) for bound in (low, high))
    is_open = dtype.kind == "f" and bool(np.all(low == -np.inf) and np.all(high == np.inf))
    spec = ArraySpec(shape or (1,), str(flat), *((None, None) if is_open else (low, high)))
    return Leaf(path=path, stored=stored, spec=spec)


def _described(node: dict[str, Any], leaf: Leaf | None) -> str:
    if leaf is None:
        return str(node.get("type"))
    return f"{node.get('type')} of shape {leaf.stored.shape} and dtype {leaf.stored.dtype}"


def _written(spec: ArraySpec) -> dict[str, Any]:
    if spec.num_choices is None:
        low, high = _bounds(spec)
        return {
            "type": "Box",
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "low": low.tolist(),
            "high": high.tolist(),
        }
    if spec.shape == ():
        return {"type": "Discrete", "dtype": "int64", "start": 0, "n": spec.num_choices[0]}
    if spec.dtype == "int8" and set(spec.num_choices) == {2}:
        return {"type": "MultiBinary", "n": list(spec.shape)}
    counts = np.array(spec.num_choices, np.int64).reshape(spec.shape)
    return {
        "type": "MultiDiscrete",
        "dtype": spec.dtype,
        "nvec": counts.tolist(),
        "start": np.zeros_like(counts).tolist(),
    }


def _bounds(spec: ArraySpec) -> tuple[Array, Array]:
    """Return lowest and highest values of a box, with those of the dtype where none are given."""
    dtype = np.dtype(spec.dtype)
    limits: tuple[Any, Any] = (-np.inf, np.inf)
    if dtype.kind == "b":
        limits = (False, True)
    elif dtype.kind != "f":
        limits = (np.iinfo(dtype).min, np.iinfo(dtype).max)
    low, high = (
        np.broadcast_to(np.asarray(limit if given is None else given, dtype), spec.shape)
        for given, limit in ((spec.low, limits[0]), (spec.high, limits[1]))
    )
    return low, high
