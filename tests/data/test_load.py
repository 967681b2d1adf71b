"""One function reads every kind of data set, whatever its name."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statewise.data import DatasetInfo, EpisodeDataset, load_dataset, write_d4rl, write_npz
from statewise.data.minari import write_minari
from tests.data.episodes import assert_same_episodes, integrate, integrator_episodes


@pytest.fixture
def toy() -> EpisodeDataset:
    info = DatasetInfo(env_id="toy/double-integrator")
    return EpisodeDataset.from_episodes(integrator_episodes([5, 1, 30, 7]), info)


def test_files_are_known_by_their_content(tmp_path: Path, toy: EpisodeDataset) -> None:
    write_d4rl(toy, tmp_path / "first")
    write_npz(toy, tmp_path / "second.hdf5")
    for name in ("first", "second.hdf5"):
        assert_same_episodes(load_dataset(tmp_path / name), list(toy.episodes()))


@pytest.mark.parametrize("mode", ["memory", "lazy"])
def test_a_data_set_survives_every_format_bit_for_bit(
    tmp_path: Path, toy: EpisodeDataset, mode: Any
) -> None:
    write_d4rl(toy, tmp_path / "a.hdf5")
    from_d4rl = load_dataset(tmp_path / "a.hdf5", mode=mode)
    folder = write_minari(from_d4rl.episodes(), from_d4rl.info, "toy/integrator-v0", root=tmp_path)
    from_minari = load_dataset(folder, mode=mode)
    write_npz(from_minari, tmp_path / "b.npz")
    found = load_dataset(tmp_path / "b.npz")
    assert_same_episodes(found, list(toy.episodes()))
    assert found.has_final.all()
    for episode in found.episodes():
        states = episode.observations["obs"]
        for t, action in enumerate(episode.actions):
            np.testing.assert_array_equal(integrate(states[t], action), states[t + 1])


def test_a_folder_of_dqn_replay_is_known_by_its_files(tmp_path: Path) -> None:
    steps = 30
    arrays = {
        "observation": np.random.default_rng(0).integers(0, 256, (steps, 84, 84), np.uint8),
        "action": np.arange(steps, dtype=np.int32) % 3,
        "reward": np.ones(steps, np.float32),
        "terminal": (np.arange(steps) % 10 == 9).astype(np.uint8),
    }
    folder = tmp_path / "Pong" / "1"
    (folder / "replay_logs").mkdir(parents=True)
    for name, values in arrays.items():
        path = folder / "replay_logs" / f"$store$_{name}_ckpt.0.gz"
        with gzip.open(path, "wb") as stream:
            np.save(stream, values, allow_pickle=False)
    for path in (folder, folder / "replay_logs"):
        dataset = load_dataset(path)
        assert set(dataset.lengths.tolist()) == {10}
        assert dataset.returns.tolist() == [10.0] * len(dataset)
