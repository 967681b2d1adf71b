"""Every arm of the claim about MuJoCo starts on data of Hopper's shape."""

from pathlib import Path

import numpy as np
import pytest

import statewise
from statewise.bench.claims import load_claim
from statewise.data import DatasetInfo, Episode, EpisodeDataset, write_d4rl

ARMS = [arm for arm in load_claim("offline_mujoco").arms if arm.name.endswith("hopper_full")]


@pytest.fixture(scope="module")
def hopper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes of 11 observed numbers and 3 actions, that end when it falls."""
    draw = np.random.default_rng(0)
    episodes = [
        Episode(
            observations={"obs": draw.normal(size=(steps + 1, 11))},
            actions=draw.uniform(-1, 1, (steps, 3)).astype(np.float32),
            rewards=draw.uniform(0, 3, steps).astype(np.float32),
            terminated=True,
            truncated=False,
        )
        for steps in (30, 12, 21, 40, 25, 10, 15, 18, 22, 31, 11)
    ]
    info = DatasetInfo(env_id="Hopper-v5", max_episode_steps=1000, ref_min=20.0, ref_max=3000.0)
    path = tmp_path_factory.mktemp("hopper") / "medium-replay.hdf5"
    write_d4rl(EpisodeDataset.from_episodes(episodes, info), path)
    return path


def test_the_table_has_every_agent_on_every_data_set() -> None:
    claim = load_claim("offline_mujoco")
    sets = list(dict.fromkeys(arm.data.name for arm in claim.arms if arm.data is not None))
    assert len(sets) == 3
    names = [arm.name.removesuffix("_hopper_full") for arm in ARMS]
    assert [arm.name for arm in claim.arms] == [f"{name}_{one}" for one in sets for name in names]
    updates = {getattr(arm.config(1), "total_updates", None) for arm in claim.arms}
    assert updates == {2000}


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: str(arm.name))
def test_an_arm_takes_updates_on_hopper_and_acts(arm: object, hopper: Path) -> None:
    overrides = {key.replace(".", "__"): value for key, value in arm.overrides.items()}  # type: ignore[attr-defined]
    preset = arm.preset  # type: ignore[attr-defined]
    trained = statewise.make(preset, data=hopper, agent__batch_size=2, **overrides)
    trained.fit(n_steps=2)
    env = trained.make_env()
    action, _ = trained.predict(env.reset(seed=0)[0], deterministic=True)
    env.close()
    assert action.shape == (3,)
    assert np.isfinite(action).all()
