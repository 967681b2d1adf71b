"""From the settings of a run to the data it learns from, what is noted of them, and batches."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from statewise.agents.offline.protocol import ObsStatistics, Sampling
from statewise.data.dataset import EpisodeDataset
from statewise.data.episode import ArraySpec, DatasetInfo
from statewise.data.errors import EmptyDataset, SpecMismatch
from statewise.data.files import sha256_of
from statewise.data.flat import ReadConfig
from statewise.data.history_sampler import HistoryConfig, HistorySampler
from statewise.data.load import load_dataset
from statewise.data.samplers import (
    Sampler,
    StreamConfig,
    StreamSampler,
    TrajectoryConfig,
    TrajectorySampler,
    TransitionSampler,
    WindowConfig,
    WindowSampler,
)
from statewise.data.transforms import concatenate, delayed_reward, keep_best
from statewise.training.offline_config import SourceConfig
from statewise.training.run import RunError
from statewise.training.schema import ConfigError

_DIGITS = 12  # of a sha256 in a message


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What the manifest of a run says about the data it learned from."""

    paths: tuple[str, ...]  # absolute; none where the data came from Python
    sha256: tuple[str, ...]  # of each of them
    env_id: str | None
    obs_keys: tuple[str, ...]  # of the observations
    num_episodes: int  # that were learned from
    num_steps: int
    return_mean: float
    ref_min: float | None
    ref_max: float | None

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return asdict(self)

    @classmethod
    def from_manifest(cls, manifest: dict[str, Any], file: Path) -> "DataFacts":
        """Read what `as_json` gave from a manifest.

        Raises:
            RunError: it is not there.
        """
        try:
            entry = manifest["data"]
            lists = {key: tuple(entry[key]) for key in ("paths", "sha256", "obs_keys")}
            return cls(**{**entry, **lists})
        except (KeyError, TypeError) as error:
            raise RunError(
                f"{file}: expected what the run learned from under 'data', got another manifest: "
                "use the one that the run was made with"
            ) from error


def check_paths(config: SourceConfig) -> None:
    """Raise ConfigError unless there is something to learn from."""
    if not config.paths:
        raise ConfigError(
            "data.paths: expected one or more data sets, got none: pass --data PATH; "
            "`statewise data make pendulum` makes some in datasets/pendulum"
        )


def read_data(config: SourceConfig, paths: Sequence[str] | None = None) -> EpisodeDataset:
    """Read and join the data sets of a run, and change them as it says.

    Args:
        config: which and how.
        paths: read instead of `config.paths`.

    Raises:
        ConfigError: there is no path, or a setting that a data set does not have.
        DatasetError: one of them cannot be read, or they do not belong together.
    """
    check_paths(config)
    sets = [_load(path, config) for path in paths or config.paths]
    return prepared(sets[0] if len(sets) == 1 else concatenate(sets), config)


def _load(path: str, config: SourceConfig) -> EpisodeDataset:
    """Read one data set as the settings say."""
    if config.max_episode_steps is None:
        return load_dataset(path, mode=config.mode)
    if Path(path).is_dir():
        raise ConfigError(
            "data.max_episode_steps: expected none for a folder, which knows its episodes, got "
            f"{config.max_episode_steps} with {path}: leave it out"
        )
    flat = ReadConfig(max_episode_steps=config.max_episode_steps)
    return load_dataset(path, mode=config.mode, config=flat)


def prepared(dataset: EpisodeDataset, config: SourceConfig) -> EpisodeDataset:
    """Return the data with the changes that the settings ask for."""
    if config.keep_best < 1:
        dataset = keep_best(dataset, config.keep_best)
    return delayed_reward(dataset) if config.reward == "delayed" else dataset


def describe_data(dataset: EpisodeDataset, paths: Sequence[str] = ()) -> DataFacts:
    """Return what is noted of data that were read from `paths`.

    Raises:
        EmptyDataset: there is no episode.
    """
    if not len(dataset):
        raise EmptyDataset("expected at least one episode, got none")
    info = dataset.info
    return DataFacts(
        paths=tuple(str(Path(path).resolve()) for path in paths),
        sha256=tuple(sha256_of(path) for path in paths),
        env_id=info.env_id,
        obs_keys=tuple(info.obs_specs),
        num_episodes=len(dataset),
        num_steps=dataset.num_steps,
        return_mean=float(dataset.returns.mean()),
        ref_min=info.ref_min,
        ref_max=info.ref_max,
    )


def check_same_data(facts: DataFacts) -> None:
    """Raise RunError if a file is not what it was when the run began."""
    for path, noted in zip(facts.paths, facts.sha256, strict=True):
        if not Path(path).exists():
            raise RunError(f"{path}: expected the data of this run, got nothing: put them back")
        if (found := sha256_of(path)) != noted:
            raise RunError(
                f"{path}: expected the data that this run began with (sha256 {noted[:_DIGITS]}), "
                f"got others ({found[:_DIGITS]}): put them back, or start a new run"
            )


def statistics_of(dataset: EpisodeDataset) -> ObsStatistics:
    """Return the moments of the observations."""
    numbers = dataset.statistics()
    return ObsStatistics(numbers.obs_mean, numbers.obs_std)


def spec_of(space: spaces.Space[Any]) -> ArraySpec:
    """Return the spec of a flat leaf space."""
    choices: tuple[int, ...] | None = None
    if isinstance(space, spaces.Discrete):
        choices = (int(space.n),)
    elif isinstance(space, spaces.MultiDiscrete):
        choices = tuple(int(n) for n in space.nvec)
    return ArraySpec(tuple(space.shape or ()), str(space.dtype), num_choices=choices)


def check_specs(
    info: DatasetInfo, obs_space: spaces.Dict, action_space: spaces.Space[Any], env_id: str
) -> None:
    """Raise SpecMismatch unless the rows of a data set are those of an environment.

    Args:
        info: of the data.
        obs_space: of the environment, flat; it may have more entries than the data.
        action_space: of the environment.
        env_id: for the message.
    """
    known = {key: spec_of(space) for key, space in obs_space.spaces.items()}
    pairs = [(f"observations/{key}", spec, known.get(key)) for key, spec in info.obs_specs.items()]
    if info.action_spec is not None:
        pairs.append(("actions", info.action_spec, spec_of(action_space)))
    for key, found, expected in pairs:
        if expected is None or not _agree(found, expected):
            raise SpecMismatch(
                f"expected {_words(expected)} as {env_id} has them, got {_words(found)}",
                file=info.source or None,
                key=key,
                hint="evaluate on the environment of the data: set env.id and env.kwargs",
            )


def _agree(found: ArraySpec, expected: ArraySpec) -> bool:
    floats = [np.dtype(spec.dtype).kind == "f" for spec in (found, expected)]
    known = None not in (found.num_choices, expected.num_choices)
    same_choices = not known or found.num_choices == expected.num_choices
    return found.shape == expected.shape and floats[0] == floats[1] and same_choices


def _words(spec: ArraySpec | None) -> str:
    if spec is None:
        return "none"
    choices = "" if spec.num_choices is None else f" with {spec.num_choices} choices"
    return f"rows of shape {spec.shape} and {spec.dtype}{choices}"


def make_sampler(
    dataset: EpisodeDataset, sampling: Sampling, generator: np.random.Generator
) -> Sampler:
    """Return the source of the batches that an agent takes.

    Raises:
        EmptyDataset: no episode, or history, is long enough.
        MissingKey, SpecMismatch: histories are asked for, and the data are none.
    """
    if isinstance(sampling, WindowConfig):
        return WindowSampler(dataset, sampling, generator)
    if isinstance(sampling, TrajectoryConfig):
        return TrajectorySampler(dataset, sampling, generator)
    if isinstance(sampling, HistoryConfig):
        return HistorySampler(dataset, sampling, generator)
    if isinstance(sampling, StreamConfig):
        return StreamSampler(dataset, sampling, generator)
    return TransitionSampler(dataset, sampling, generator)
