"""Data sets for the tests: a system that can be simulated again, and random episodes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from statewise.data import DatasetInfo, Episode, EpisodeDataset

Arrays = dict[str, np.ndarray[Any, Any]]


def integrate(x: np.ndarray[Any, Any], action: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Step a double integrator in float32: position and speed (2,), push (1,)."""
    x = x.astype(np.float32)
    push = np.float32(0.1) * action.astype(np.float32)[0]
    return np.array([x[0] + np.float32(0.1) * x[1], x[1] + push], np.float32)


def integrator_episodes(lengths: Sequence[int], *, seed: int = 0) -> list[Episode]:
    """Roll out random pushes; every second episode terminates, the others are cut off."""
    generator = np.random.default_rng(seed)
    episodes = []
    for index, steps in enumerate(lengths):
        actions = generator.uniform(-1, 1, (steps, 1)).astype(np.float32)
        states = [generator.normal(size=2).astype(np.float32)]
        for action in actions:
            states.append(integrate(states[-1], action))
        observations = np.stack(states)
        episodes.append(
            Episode(
                observations={"obs": observations},
                actions=actions,
                rewards=-np.square(observations[:-1]).sum(1),
                terminated=index % 2 == 0,
                truncated=index % 2 == 1,
                infos={"energy": np.square(observations[:-1, 1])},
                index=index,
            )
        )
    return episodes


def random_episode(
    steps: int,
    *,
    seed: int = 0,
    final: bool = True,
    terminated: bool = True,
    truncated: bool = False,
    keys: Sequence[str] = ("obs",),
) -> Episode:
    """Return an episode whose observation t begins with the number t."""
    generator = np.random.default_rng([seed, steps])
    rows = steps + int(final)
    observations = {}
    for key in keys:
        values = generator.normal(size=(rows, 3)).astype(np.float32)
        values[:, 0] = np.arange(rows)
        observations[key] = values
    return Episode(
        observations=observations,
        actions=generator.uniform(-1, 1, (steps, 2)).astype(np.float32),
        rewards=generator.normal(size=steps).astype(np.float32),
        terminated=terminated,
        truncated=truncated,
    )


def dataset_of(*lengths: int, **settings: Any) -> EpisodeDataset:
    """Return random episodes of these lengths in memory."""
    episodes = [random_episode(n, seed=i, **settings) for i, n in enumerate(lengths)]
    return EpisodeDataset.from_episodes(episodes, DatasetInfo(env_id="toy"))


def assert_same_episodes(actual: EpisodeDataset, expected: Sequence[Episode]) -> None:
    """Compare bit for bit, infos included."""
    assert len(actual) == len(expected)
    for found, wanted in zip(actual.episodes(), expected, strict=True):
        assert (found.terminated, found.truncated) == (wanted.terminated, wanted.truncated)
        assert list(found.observations) == list(wanted.observations)
        pairs = [(found.actions, wanted.actions), (found.rewards, wanted.rewards)]
        pairs += [(found.observations[k], wanted.observations[k]) for k in wanted.observations]
        pairs += [(found.infos[k], wanted.infos[k]) for k in wanted.infos]
        for left, right in pairs:
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)


def flat_arrays(steps: int = 20, *, end_every: int = 5, seed: int = 0) -> Arrays:
    """Return the arrays of a good file: episodes of `end_every` steps that time out."""
    generator = np.random.default_rng(seed)
    timeouts = np.arange(steps) % end_every == end_every - 1
    observations = generator.normal(size=(steps, 3)).astype(np.float32)
    following = np.concatenate([observations[1:], observations[:1]])
    following[timeouts] += 1
    return {
        "observations": observations,
        "actions": generator.uniform(-1, 1, (steps, 2)).astype(np.float32),
        "rewards": generator.normal(size=steps).astype(np.float32),
        "terminals": np.zeros(steps, np.bool_),
        "timeouts": timeouts,
        "next_observations": following,
    }


def write_hdf5(path: Path, arrays: Arrays, **attributes: Any) -> Path:
    """Write arrays as they are."""
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file.create_dataset(key, data=values)
        file.attrs.update(attributes)
    return path
