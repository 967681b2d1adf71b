"""A counting environment with data of it, and settings with which a system learns in a second."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from statewise.data import EpisodeDataset, write_d4rl
from statewise.data.episode import DatasetInfo, Episode
from tests.training.toys import CounterEnv

COUNTER = "toy/OfflineCounter-v0"
REF_MIN, REF_MAX = 10.0, 30.0
TARGETS = (20.0, 5.0)
COMMON: dict[str, Any] = {
    "env__id": COUNTER,
    "total_updates": 12,
    "log_every": 4,
    "agent__batch_size": 4,
    "eval__episodes": 5,
    "eval__num_envs": 2,
    "checkpoint__every_updates": 5,
}
TOLD: dict[str, Any] = COMMON | {"eval__targets": TARGETS, "agent__return_scale": 10.0}
DT: dict[str, Any] = TOLD | {
    "agent__d_model": 8,
    "agent__num_layers": 1,
    "agent__context": 4,
    "agent__num_timesteps": 20,
    "agent__dropout": 0.1,
}
S4: dict[str, Any] = TOLD | {
    "agent__d_embed": 4,
    "agent__sequence__d_model": 8,
    "agent__sequence__num_layers": 1,
    "agent__sequence__s4d__state_size": 4,
}

BC: dict[str, Any] = COMMON | {"agent__hidden": [8]}
# Of every system that learns from data.
TINY: dict[str, dict[str, Any]] = {
    "dt": DT,
    "decision_s4": S4,
    "decision_mamba": TOLD | {"agent__d_model": 8, "agent__num_layers": 1},
    "decision_mamba_mg": TOLD | {"agent__d_model": 8, "agent__num_layers": 1},
    "bc": BC,
    "td3bc": BC,
    "iql": BC,
}


def register() -> None:
    """Make the id known to gymnasium; calling it again changes nothing."""
    if COUNTER not in gymnasium.registry:
        gymnasium.register(COUNTER, entry_point=CounterEnv)


def words(settings: dict[str, Any]) -> list[str]:
    """Return settings as a command line has them."""
    found = []
    for name, value in settings.items():
        entries = value if isinstance(value, tuple | list) else [value]
        found += [f"--{name.replace('__', '.')}", *map(str, entries)]
    return found


def play(env: gymnasium.Env[Any, Any], count: int, seed: int) -> list[Episode]:
    """Return episodes of random actions."""
    env.action_space.seed(seed)
    episodes = []
    for index in range(count):
        obs, actions, rewards, over = [env.reset(seed=seed + index)[0]], [], [], (False, False)
        while not any(over):
            actions.append(env.action_space.sample())
            after, reward, *over, _ = env.step(actions[-1])
            obs.append(after)
            rewards.append(reward)
        episodes.append(
            Episode(
                observations={"obs": np.stack(obs).astype(np.float32)},
                actions=np.array(actions),
                rewards=np.array(rewards, np.float32),
                terminated=over[0],
                truncated=over[1],
            )
        )
    return episodes


def counter_data(count: int = 12, seed: int = 0, **info: Any) -> EpisodeDataset:
    known = {"env_id": COUNTER, "ref_min": REF_MIN, "ref_max": REF_MAX} | info
    return EpisodeDataset.from_episodes(play(CounterEnv(), count, seed), DatasetInfo(**known))


def written(folder: Path, name: str = "counter", **changes: Any) -> Path:
    """Write a data set and return its file."""
    path = folder / f"{name}.hdf5"
    write_d4rl(counter_data(**changes), path)
    return path
