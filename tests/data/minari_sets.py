"""Data sets made by the package minari, for the tests of what we read and write."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
from gymnasium import spaces
from minari import DataCollector, MinariDataset

from statewise.data import DatasetInfo, Episode, EpisodeDataset, EpisodeSource
from statewise.data.minari import write_minari
from statewise.envs.spaces import flatten_obs
from tests.data.episodes import integrator_episodes

ABOUT: dict[str, Any] = {
    "algorithm_name": "random",
    "author": "nobody",
    "author_email": "nobody@example.org",
    "code_permalink": "https://example.org",
    "description": "for tests",
}
Damage = Callable[[Path], object]
ID = "set/toy-v0"
TREE = "statewise-test/Tree-v0"

Box, Dict, Tuple = spaces.Box, spaces.Dict, spaces.Tuple


class TreeEnv(gymnasium.Env[Any, Any]):
    """Every kind of space that is read; observations are samples."""

    observation_space = Dict(
        {
            "camera": Box(0, 255, (36, 40, 3), np.uint8),
            "stack": Box(0, 255, (4, 8, 8), np.uint8),
            "inner": Dict({"pair": Tuple((Box(-1.0, 1.0, (2,), np.float64), spaces.Discrete(5)))}),
            "level": Box(0.0, 1.0, (), np.float32),
            "dial": spaces.MultiDiscrete([3, 4]),
            "switch": spaces.MultiBinary([2, 3]),
            "choice": spaces.Discrete(4, start=-2),
            "count": Box(-5, 5, (2, 2), np.int16),
        }
    )
    action_space = spaces.Discrete(3, start=1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.count = 0
        return self.observation_space.sample(), self.info()

    def info(self) -> dict[str, Any]:
        count = float(self.count)
        return {"count": count, "at": {"pos": np.array([count, -count]), "name": "here"}}

    def step(self, action: Any) -> Any:
        self.count += 1
        over = self.count == 3
        return self.observation_space.sample(), float(action), over, False, self.info()


@contextmanager
def tree_env() -> Iterator[None]:
    """Register the environment for a while, so that gymnasium makes it by its id."""
    gymnasium.register(TREE, f"{__name__}:TreeEnv", disable_env_checker=True, max_episode_steps=10)
    try:
        yield
    finally:
        del gymnasium.registry[TREE]


def collect(
    env_id: str, dataset_id: str, data_format: str, *, episodes: int = 3, **settings: Any
) -> MinariDataset:
    """Let minari record random episodes; the last one is left before its end."""
    settings = {"record_infos": False, "jpeg_encoding": True, "limit": None, **settings}
    limit = settings.pop("limit")
    extra = {} if limit is None else {"max_episode_steps": limit}
    env = DataCollector(gymnasium.make(env_id, **extra), data_format=data_format, **settings)
    env.action_space.seed(0)
    for episode in range(episodes):
        env.reset(seed=episode)
        for step in range(1000):
            _, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated or (episode == episodes - 1 and step == 1):
                break
    folders = [env._tmp_dir]
    dataset = env.create_dataset(dataset_id, eval_env=gymnasium.spec(env_id), **ABOUT)
    env.env.close()
    for folder in (*folders, env._tmp_dir):  # minari leaves its temporary folders to the collector
        folder.cleanup()
    return dataset


def load(dataset_id: str) -> MinariDataset:
    return minari.load_dataset(dataset_id)


def expected_episodes(dataset: MinariDataset) -> list[Episode]:
    """Return minari's episodes in our form; observations as the environment adapter has them."""
    action_space: Any = dataset.action_space
    found = []
    for index, data in enumerate(dataset.iterate_episodes()):
        actions = np.asarray(data.actions)
        if isinstance(action_space, spaces.Discrete):
            actions = actions - action_space.start
        found.append(
            Episode(
                observations=flatten_obs(dataset.observation_space, data.observations),
                actions=actions,
                rewards=np.asarray(data.rewards, np.float32),
                terminated=bool(data.terminations[-1]),
                truncated=bool(data.truncations[-1]),
                index=index,
            )
        )
    return found


def assert_equal(source: EpisodeSource, expected: list[Episode]) -> None:
    """Compare bit for bit, dtypes included."""
    dataset = EpisodeDataset(source)
    assert len(dataset) == len(expected)
    for actual, wanted in zip(dataset.episodes(), expected, strict=True):
        assert (actual.terminated, actual.truncated) == (wanted.terminated, wanted.truncated)
        assert set(actual.observations) == set(wanted.observations)
        pairs = [(actual.actions, wanted.actions), (actual.rewards, wanted.rewards)]
        pairs += [(actual.observations[k], wanted.observations[k]) for k in wanted.observations]
        pairs += [(actual.infos[k], wanted.infos[k]) for k in wanted.infos]
        for left, right in pairs:
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)


def toy_info(**fields: Any) -> DatasetInfo:
    return DatasetInfo(env_id="toy/Integrator-v0", **fields)


def make(root: Path, data_format: Any = "hdf5") -> Path:
    """Write episodes of 4, 1 and 6 steps and return the folder data/."""
    episodes = [replace(e, infos={}) for e in integrator_episodes((4, 1, 6))]
    return write_minari(episodes, toy_info(), ID, root=root, data_format=data_format) / "data"


def metadata(**fields: Any) -> Damage:
    """Exchange fields of the metadata; None takes one away."""

    def damage(data: Path) -> None:
        file = data / "metadata.json"
        content = {**json.loads(file.read_text()), **fields}
        file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return damage


def space(name: str, **node: Any) -> Damage:
    return metadata(**{name: json.dumps(node)})
