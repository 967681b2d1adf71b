"""Data sets and settings with which a world model learns from data in a second."""

from pathlib import Path
from typing import Any

import numpy as np

from statewise.data import DatasetInfo, Episode, EpisodeDataset, write_npz
from statewise.data.episode import ArraySpec
from statewise.training.api import with_data
from statewise.training.config import S4WMRun, apply_overrides, load_preset

PRESET = "s4wm/delayed_offer"
TINY: dict[str, Any] = {
    "total_updates": 6,
    "log_every": 2,
    "checkpoint__every_updates": 3,
    "agent__sampling": "packed",
    "agent__length": 64,
    "agent__starts": "any",
    "agent__batch_size": 4,
    "agent__world__encoder": {"hidden": [8], "depth": 1},
    "agent__world__decoder": {"hidden": [8], "depth": 1},
    "agent__world__heads": {"hidden": [8]},
    "agent__world__latents": {"num": 2, "classes": 3},
    "agent__world__parallel": {
        "deter": 8,
        "input_hidden": [],
        "prior_hidden": [8],
        "posterior_hidden": [8],
        "sequence": {"kind": "s5", "num_layers": 1, "d_model": 8, "s5": {"state_size": 4}},
    },
    "eval__context": 0,
    "eval__every_updates": 3,
    "eval__samples": 2,
    "eval__batch_size": 2,
}


def settings(data: Path | None, **changes: Any) -> S4WMRun:
    values = {key.replace("__", "."): value for key, value in (TINY | changes).items()}
    config = with_data(apply_overrides(load_preset(PRESET), values), data)
    assert isinstance(config, S4WMRun)
    return config


def picture_data(count: int = 3, steps: int = 4, *, size: int = 64) -> EpisodeDataset:
    """Return episodes of random pictures and pushes, with a reward of 0 or 1 at the end."""
    draw = np.random.default_rng(0)
    episodes = [
        Episode(
            observations={
                "eye": draw.integers(256, size=(steps + 1, size, size, 3), dtype=np.uint8),
                "speed": draw.normal(size=(steps + 1, 2)).astype(np.float32),
            },
            actions=draw.uniform(-2, 2, (steps, 1)).astype(np.float32),
            rewards=np.array([0] * (steps - 1) + [index % 2], np.float32),
            terminated=False,
            truncated=True,
        )
        for index in range(count)
    ]
    push = ArraySpec((1,), "float32", np.full(1, -2, np.float32), np.full(1, 2, np.float32))
    return EpisodeDataset.from_episodes(episodes, DatasetInfo(env_id="Eye-v0", action_spec=push))


def pictures(folder: Path, **changes: Any) -> Path:
    """Write pictures and return their file."""
    path = folder / "pictures.npz"
    write_npz(picture_data(**changes), path)
    return path
