"""What a world model from data needs to know of them: spaces, held-out episodes, and their note."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from statewise.data.dataset import EpisodeDataset
from statewise.data.description import info_from, info_text
from statewise.data.episode import Array, ArraySpec, DatasetInfo
from statewise.data.errors import DatasetCorrupt, EmptyDataset, SpecMismatch
from statewise.training.offline_config import SourceConfig
from statewise.training.offline_data import DataFacts, describe_data, prepared, read_data
from statewise.training.run import RunError
from statewise.training.schema import ConfigError
from statewise.training.world_config import OpenLoopEvalConfig


class WorldFacts(NamedTuple):
    """What the manifest of a run says about the data of a world model."""

    learned: DataFacts
    held_out: DataFacts
    """Paths and sums are empty where they are those that were learned from."""
    info: DatasetInfo
    """Specs of observations and actions."""

    def as_json(self) -> dict[str, Any]:
        """Return entries of a manifest."""
        specs = DatasetInfo(obs_specs=self.info.obs_specs, action_spec=self.info.action_spec)
        return {
            "data": self.learned.as_json(),
            "held_out": self.held_out.as_json(),
            "specs": json.loads(info_text(specs)),
        }

    @classmethod
    def from_manifest(cls, manifest: dict[str, Any], file: Path) -> "WorldFacts":
        """Read what `as_json` gave from a manifest.

        Raises:
            RunError: it is not there.
        """
        learned, held_out = (
            DataFacts.from_manifest({"data": manifest.get(key)}, file)
            for key in ("data", "held_out")
        )
        try:
            info = info_from(json.dumps(manifest.get("specs")), DatasetInfo(), "specs")
        except DatasetCorrupt as error:
            raise RunError(f"{file}: {error}") from error
        return cls(learned, held_out, info)


class Parts(NamedTuple):
    """The data of a run."""

    learned: EpisodeDataset
    held_out: EpisodeDataset
    """For evaluations alone."""


def read_parts(
    data: SourceConfig, evaluation: OpenLoopEvalConfig, dataset: EpisodeDataset | None = None
) -> Parts:
    """Read what is learned from and what is held out.

    Args:
        data: of the run.
        evaluation: of the run.
        dataset: in place of `data.paths`.

    Raises:
        ConfigError: there are no data.
        DatasetError: they cannot be read, are too few, or do not belong together.
    """
    whole = read_data(data) if dataset is None else prepared(dataset, data)
    whole = whole.with_info(action_spec=_with_choices(whole))
    if not evaluation.data:
        return split_last(whole, evaluation.held_out)
    # All of them: a choice of the best is for what is learned from.
    others = read_data(replace(data, keep_best=1.0), [evaluation.data])
    _check_same(whole.info, others.info)
    return Parts(whole, others)


def split_last(dataset: EpisodeDataset, share: float) -> Parts:
    """Hold out the last episodes.

    Args:
        dataset: of two episodes or more.
        share: in (0, 1), rounded down, but at least one episode, and one that is left.

    Raises:
        EmptyDataset: there are fewer.
    """
    if len(dataset) < 2:
        raise EmptyDataset(
            f"expected two or more episodes, one of them held out, got {len(dataset)}",
            file=dataset.info.source or None,
            hint="give more, or name others with --eval.data",
        )
    count = min(max(1, int(share * len(dataset) + 1e-6)), len(dataset) - 1)
    first = len(dataset) - count
    return Parts(dataset.subset(range(first)), dataset.subset(range(first, len(dataset))))


def facts_of(parts: Parts, paths: tuple[str, ...], held_out_path: str) -> WorldFacts:
    """Return what is noted of data that were read from `paths`, () for data from Python.

    Raises:
        EmptyDataset: there is no episode.
    """
    return WorldFacts(
        learned=describe_data(parts.learned, paths),
        held_out=describe_data(parts.held_out, (held_out_path,) if held_out_path else ()),
        info=parts.learned.info,
    )


def check_rewards(dataset: EpisodeDataset, coefficient: float) -> None:
    """Raise ConfigError if rewards are to be learned and there are none."""
    if coefficient == 0 or dataset.returns.any():
        return
    source = dataset.source
    steps = enumerate(source.lengths.tolist())
    if not any(source.read("rewards", index, 0, count).any() for index, count in steps):
        raise ConfigError(
            f"data: expected rewards, as agent.world.loss_scale.reward is {coefficient:g}, got 0"
            " at every step: set --agent.world.loss_scale.reward 0 to learn without"
        )


def space_of(spec: ArraySpec) -> spaces.Space[Any]:
    """Return the space of one row: indices where choices are known, else a box."""
    dtype = np.dtype(spec.dtype)
    if dtype == np.bool_:
        return spaces.MultiBinary(spec.shape) if spec.shape else spaces.Discrete(2)
    if spec.num_choices is not None:
        if spec.shape == ():
            return spaces.Discrete(spec.num_choices[0])
        return spaces.MultiDiscrete(np.array(spec.num_choices, np.int64).reshape(spec.shape))
    limits: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    low, high = (-np.inf, np.inf) if dtype.kind == "f" else (limits.min, limits.max)
    return spaces.Box(
        np.broadcast_to(np.asarray(low if spec.low is None else spec.low, dtype), spec.shape),
        np.broadcast_to(np.asarray(high if spec.high is None else spec.high, dtype), spec.shape),
        spec.shape,
        dtype.type,
    )


def spaces_of(info: DatasetInfo) -> tuple[spaces.Dict, spaces.Space[Any]]:
    """Return the spaces of the observations, flat, and of the actions."""
    assert info.action_spec is not None, "data sets that were read have one"
    obs = spaces.Dict({key: space_of(spec) for key, spec in info.obs_specs.items()})
    return obs, space_of(info.action_spec)


def _with_choices(dataset: EpisodeDataset) -> ArraySpec:
    """Return the spec of the actions; of integers without known choices those that occur."""
    spec = dataset.info.action_spec
    assert spec is not None, "data sets that were read have one"
    if spec.num_choices is not None or np.dtype(spec.dtype).kind == "f":
        return spec
    largest: Array = np.zeros(spec.shape, np.int64)
    for index, count in enumerate(dataset.lengths.tolist()):
        actions = dataset.source.read("actions", index, 0, count)
        largest = np.maximum(largest, actions.max(0))
        if actions.min() < 0:
            raise SpecMismatch(
                f"expected choices counted from 0, got {actions.min()}",
                file=dataset.info.source or None,
                key="actions",
                index=index,
                hint="count them from 0, or store them as floats",
            )
    return spec._replace(num_choices=tuple((largest.ravel() + 1).tolist()))


def _check_same(learned: DatasetInfo, held_out: DatasetInfo) -> None:
    """Raise SpecMismatch unless rows of the two are of the same shape and dtype."""
    named = {f"observations/{key}": spec for key, spec in learned.obs_specs.items()}
    found = {f"observations/{key}": spec for key, spec in held_out.obs_specs.items()}
    assert learned.action_spec is not None
    assert held_out.action_spec is not None
    named["actions"], found["actions"] = learned.action_spec, held_out.action_spec
    for name, wanted in named.items():
        got = found.get(name)
        if got is None or got[:2] != wanted[:2]:
            words = "none" if got is None else f"{got.shape} of {got.dtype}"
            raise SpecMismatch(
                f"expected rows of shape {wanted.shape} and {wanted.dtype}, as those that are"
                f" learned from, got {words}",
                file=held_out.source or None,
                key=name,
                hint="give --eval.data of the same environment",
            )
