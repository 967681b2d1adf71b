"""A counting environment with a Box of actions, and a small agent trained on data of it."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from statewise.data import EpisodeDataset, write_d4rl
from statewise.data.episode import DatasetInfo
from statewise.training.api import train
from tests.training.offline_cases import REF_MAX, REF_MIN, S4, play
from tests.training.toys import CounterEnv

ID = "toy/BoxCounter-v0"
BOX = spaces.Box(-2, 2, (1,), dtype=np.float32)


class BoxCounter(CounterEnv):
    """Counts to a length of 3 .. 9; reward: count + action / 8."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = BOX

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(0)
        return obs, reward + float(action[0]) / 8, terminated, truncated, info


def register() -> None:
    """Make the id known to gymnasium; calling it again changes nothing."""
    if ID not in gymnasium.registry:
        gymnasium.register(ID, entry_point=BoxCounter)


def trained_run(folder: Path, **info: Any) -> Path:
    """Train a small Decision S4 on random episodes, and return its run."""
    register()
    known = {"env_id": ID, "ref_min": REF_MIN, "ref_max": REF_MAX} | info
    data = EpisodeDataset.from_episodes(play(BoxCounter(), 8, 0), DatasetInfo(**known))
    write_d4rl(data, folder / "box.hdf5")
    settings = S4 | {"env__id": ID, "total_updates": 3, "agent__sequence__num_layers": 2}
    run = folder / "offline"
    train("decision_s4/pendulum", run=run, data=folder / "box.hdf5", **settings)
    return run
