"""D4RL files: round trips, the layout that D4RL itself reads, and reading them lazily."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from statewise.data import (
    ArraySpec,
    DatasetInfo,
    EpisodeDataset,
    MemorySource,
    ReadConfig,
    WindowConfig,
    WindowSampler,
    load_dataset,
    read_d4rl,
    read_npz,
    write_d4rl,
    write_npz,
)
from statewise.data.errors import (
    DatasetWarning,
    EmptyDataset,
    NoEpisodeBoundary,
    SpecMismatch,
)
from statewise.data.files import sha256_of
from tests.data.episodes import (
    assert_same_episodes,
    flat_arrays,
    integrate,
    integrator_episodes,
    random_episode,
    write_hdf5,
)

MODES = ("memory", "lazy")
INFO = DatasetInfo(
    env_id="toy/double-integrator",
    action_spec=ArraySpec(
        shape=(1,),
        dtype="float32",
        low=np.full(1, -np.inf, np.float32),
        high=np.ones(1, np.float32),
    ),
    max_episode_steps=30,
    ref_min=-50.0,
    ref_max=-1.5,
    generator={"algorithm": "LQR", "seed": 3, "noise": 0.1, "versions": {"numpy": "2"}},
)


@pytest.fixture
def toy() -> EpisodeDataset:
    return EpisodeDataset.from_episodes(integrator_episodes([5, 1, 30, 7]), INFO)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_written_is_read_back_bit_for_bit(
    tmp_path: Path, toy: EpisodeDataset, mode: Any
) -> None:
    path = tmp_path / "toy.hdf5"
    write_d4rl(toy, path)
    found = read_d4rl(path, mode=mode)
    assert_same_episodes(found, list(toy.episodes()))
    assert found.has_final.all()
    assert found.info.env_id == INFO.env_id
    assert found.info.generator == INFO.generator
    assert (found.info.ref_min, found.info.ref_max) == (-50.0, -1.5)
    assert found.info.max_episode_steps == 30
    assert found.info.action_spec is not None
    np.testing.assert_array_equal(found.info.action_spec.low, INFO.action_spec.low)
    np.testing.assert_array_equal(found.info.action_spec.high, INFO.action_spec.high)
    assert found.info.sha256 == (sha256_of(path) if mode == "memory" else "")


@pytest.mark.parametrize("suffix", ["hdf5", "npz"])
def test_pushing_the_stored_state_gives_the_next_stored_state(
    tmp_path: Path, toy: EpisodeDataset, suffix: str
) -> None:
    path = tmp_path / f"toy.{suffix}"
    (write_d4rl if suffix == "hdf5" else write_npz)(toy, path)
    for mode in MODES if suffix == "hdf5" else ("memory",):
        for episode in load_dataset(path, mode=mode).episodes():
            states = episode.observations["obs"]
            for t, action in enumerate(episode.actions):
                np.testing.assert_array_equal(integrate(states[t], action), states[t + 1])


def test_the_layout_is_that_of_d4rl(tmp_path: Path, toy: EpisodeDataset) -> None:
    path = tmp_path / "toy.hdf5"
    write_d4rl(toy, path)
    with h5py.File(path) as file:
        types = {
            "observations": ((43, 2), np.float32),
            "next_observations": ((43, 2), np.float32),
            "actions": ((43, 1), np.float32),
            "rewards": ((43,), np.float32),
            "terminals": ((43,), np.bool_),
            "timeouts": ((43,), np.bool_),
            "infos/energy": ((43,), np.float32),
        }
        for key, (shape, dtype) in types.items():
            assert (file[key].shape, file[key].dtype) == (shape, dtype)
            assert file[key].compression == "gzip"
        assert file["metadata/algorithm"][()] == b"LQR"
        assert file["metadata/noise"][()] == 0.1
        assert file["metadata/versions/numpy"][()] == b"2"
        terminals, timeouts = file["terminals"][:], file["timeouts"][:]
        assert np.flatnonzero(terminals).tolist() == [4, 35]
        assert np.flatnonzero(timeouts).tolist() == [5, 42]
        inside = ~(terminals | timeouts)[:-1]
        left, right = file["next_observations"][:-1], file["observations"][1:]
        np.testing.assert_array_equal(left[inside], right[inside])


def test_the_splitting_rule_of_d4rl_finds_the_episodes_that_were_written(
    tmp_path: Path, toy: EpisodeDataset
) -> None:
    write_d4rl(toy, tmp_path / "toy.hdf5")
    with h5py.File(tmp_path / "toy.hdf5") as file:
        rows = {key: file[key][:] for key in ("observations", "actions", "rewards")}
        ends = file["terminals"][:] | file["timeouts"][:]
        terminals = file["terminals"][:]
    found, begin = [], 0
    for t in range(len(ends)):  # step by step, as its sequence_dataset does
        if ends[t]:
            found.append((begin, t + 1, bool(terminals[t])))
            begin = t + 1
    assert begin == len(ends)
    for (first, last, terminated), episode in zip(found, toy.episodes(), strict=True):
        assert terminated == episode.terminated
        for key, wanted in (
            ("observations", episode.observations["obs"][: last - first]),
            ("actions", episode.actions),
            ("rewards", episode.rewards),
        ):
            np.testing.assert_array_equal(rows[key][first:last], wanted)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("some", ["none", "one of two"])
def test_final_observations_that_are_not_known_stay_unknown(
    tmp_path: Path, mode: Any, some: str
) -> None:
    episodes = [random_episode(4, final=some != "none"), random_episode(3, final=False)]
    write_d4rl(EpisodeDataset.from_episodes(episodes), tmp_path / "a.hdf5")
    found = read_d4rl(tmp_path / "a.hdf5", mode=mode)
    assert_same_episodes(found, episodes)
    assert found.has_final.tolist() == [some != "none", False]


@pytest.mark.parametrize("mode", MODES)
def test_discrete_actions_and_pictures_keep_their_types(tmp_path: Path, mode: Any) -> None:
    generator = np.random.default_rng(0)
    arrays = flat_arrays(10)
    pictures = generator.integers(0, 256, (10, 4, 4, 3), np.uint8)
    arrays |= {"observations": pictures, "actions": generator.integers(0, 3, (10, 1))}
    del arrays["next_observations"]
    found = read_d4rl(write_hdf5(tmp_path / "a.hdf5", arrays), mode=mode)
    episode = found.episode(1)
    assert episode.actions.tolist() == arrays["actions"][5:, 0].tolist()
    assert episode.observations["obs"].dtype == np.uint8
    np.testing.assert_array_equal(episode.observations["obs"], pictures[5:])
    write_d4rl(found, tmp_path / "b.hdf5")
    assert_same_episodes(read_d4rl(tmp_path / "b.hdf5", mode=mode), list(found.episodes()))


@pytest.mark.parametrize("mode", MODES)
def test_columns_of_rewards_and_flags_are_squeezed(tmp_path: Path, mode: Any) -> None:
    arrays = flat_arrays()
    flat = read_d4rl(write_hdf5(tmp_path / "a.hdf5", arrays), mode=mode)
    for key in ("rewards", "terminals", "timeouts"):
        arrays[key] = arrays[key][:, None].astype(np.float64)
    columns = read_d4rl(write_hdf5(tmp_path / "b.hdf5", arrays), mode=mode)
    assert_same_episodes(columns, list(flat.episodes()))


@pytest.mark.parametrize("mode", MODES)
def test_the_final_observation_is_the_one_that_followed_the_last_step(
    tmp_path: Path, mode: Any
) -> None:
    arrays = flat_arrays(12, end_every=4)
    found = read_d4rl(write_hdf5(tmp_path / "a.hdf5", arrays), mode=mode)
    for index, episode in enumerate(found.episodes()):
        finals = arrays["next_observations"][4 * index + 3]
        np.testing.assert_array_equal(episode.observations["obs"][-1], finals)
        np.testing.assert_array_equal(
            episode.observations["obs"][:-1], arrays["observations"][4 * index : 4 * index + 4]
        )


@pytest.mark.parametrize("mode", MODES)
def test_a_file_without_timeouts_is_cut_at_the_horizon_of_its_task(
    tmp_path: Path, mode: Any
) -> None:
    generator = np.random.default_rng(0)
    arrays = {
        "observations": generator.normal(size=(2000, 11)).astype(np.float32),
        "actions": generator.uniform(-1, 1, (2000, 3)).astype(np.float32),
        "rewards": np.ones(2000, np.float32),
        "terminals": np.zeros(2000, np.bool_),
    }
    found = read_d4rl(write_hdf5(tmp_path / "hopper_medium.hdf5", arrays), mode=mode)
    assert found.lengths.tolist() == [1000, 1000]
    assert found.returns.tolist() == [1000.0, 1000.0]
    assert found.info.env_id == "hopper-medium-v0"
    assert (found.info.ref_min, found.info.ref_max) == (-20.272305, 3234.3)


def test_the_tail_is_dropped_by_default(tmp_path: Path) -> None:
    arrays = flat_arrays(13, end_every=5)
    path = write_hdf5(tmp_path / "a.hdf5", arrays)
    assert read_d4rl(path).lengths.tolist() == [5, 5]
    kept = read_d4rl(path, config=ReadConfig(incomplete="keep"))
    assert kept.lengths.tolist() == [5, 5, 3]
    assert kept.truncated.tolist() == [True, True, True]
    assert kept.has_final[2]


def test_metadata_of_others_becomes_the_generator(tmp_path: Path) -> None:
    arrays = flat_arrays() | {
        "metadata/algorithm": np.bytes_(b"SAC"),
        "metadata/iteration": np.array(7),
        "metadata/policy/nonlinearity": np.bytes_(b"relu"),
        "metadata/policy/fc0/weight": np.ones((4, 4)),
    }
    found = read_d4rl(write_hdf5(tmp_path / "a.hdf5", arrays))
    expected = {"algorithm": "SAC", "iteration": 7, "policy/nonlinearity": "relu"}
    assert found.info.generator == expected


@pytest.mark.parametrize(
    ("ends", "lengths", "terminated"),
    [("auto", [6, 6], False), ("first_reward", [3, 4], True), ("flags", [3, 1, 2, 4, 2], None)],
)
def test_an_ant_in_a_maze_goes_on_after_its_goal(
    tmp_path: Path, ends: Any, lengths: list[int], terminated: bool | None
) -> None:
    generator = np.random.default_rng(0)
    rewards = np.zeros(12, np.float32)
    rewards[[2, 3, 9]] = 1
    arrays = {
        "observations": generator.normal(size=(12, 29)).astype(np.float32),
        "actions": generator.uniform(-1, 1, (12, 8)).astype(np.float32),
        "rewards": rewards,
        "terminals": rewards > 0,
        "timeouts": np.arange(12) % 6 == 5,
    }
    path = write_hdf5(tmp_path / "Ant_maze_u-maze_noblock.hdf5", arrays)
    found = read_d4rl(path, config=ReadConfig(ends=ends, task="antmaze-umaze-v2"))
    assert found.lengths.tolist() == lengths
    if terminated is not None:
        assert found.terminated.tolist() == [terminated] * 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("block", [2**23, 1, 7 * 29 * 8, 6 * 29 * 8])
def test_a_jump_in_a_maze_is_allowed_between_episodes_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: Any, at_end: bool, block: int
) -> None:
    monkeypatch.setattr("statewise.data.flat_read._BLOCK", block)
    arrays = {
        "observations": np.random.default_rng(0).normal(size=(12, 29)),
        "actions": np.random.default_rng(1).uniform(-1, 1, (12, 8)),
        "rewards": np.zeros(12),
        "terminals": np.zeros(12, bool),
        "timeouts": np.arange(12) % 6 == 5,
    }
    arrays["observations"][6 if at_end else 7 :, 0] += 20
    path = write_hdf5(tmp_path / "antmaze-umaze-v2.hdf5", arrays)
    if at_end:
        assert len(read_d4rl(path, mode=mode)) == 2
        return
    with pytest.raises(ValueError, match=r"observations\[6\]: expected steps of at most 5"):
        read_d4rl(path, mode=mode)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("hopper-medium-replay-v0", "D4RL #86"),
        ("walker2d-full-replay-v1", "D4RL #86"),
        ("antmaze-large-play-v0", "D4RL #77"),
        ("maze2d-umaze-v1", "D4RL #194"),
        ("hopper-medium-v2", "expected a mean return of about 1422"),
    ],
)
def test_defects_that_are_known_are_told(tmp_path: Path, task: str, message: str) -> None:
    sizes = {"hopper": (11, 3), "walker2d": (17, 6), "antmaze": (29, 8), "maze2d": (4, 2)}
    observation, action = sizes[task.split("-")[0]]
    generator = np.random.default_rng(0)
    arrays = {
        "observations": generator.uniform(size=(10, observation)).astype(np.float32),
        "actions": generator.uniform(-1, 1, (10, action)).astype(np.float32),
        "rewards": np.ones(10, np.float32),
        "terminals": np.zeros(10, bool),
        "timeouts": np.arange(10) % 5 == 4,
    }
    path = write_hdf5(tmp_path / f"{task}.hdf5", arrays)
    with pytest.warns(DatasetWarning, match=message):
        read_d4rl(path)


def test_dictionaries_of_observations_are_for_npz(tmp_path: Path) -> None:
    episodes = [random_episode(4, keys=("a", "b")), random_episode(2, keys=("a", "b"))]
    dataset = EpisodeDataset.from_episodes(episodes)
    with pytest.raises(SpecMismatch, match=r"expected one array of observations.*write npz"):
        write_d4rl(dataset, tmp_path / "a.hdf5")
    assert list(tmp_path.iterdir()) == []
    write_npz(dataset, tmp_path / "a.npz")
    assert_same_episodes(read_npz(tmp_path / "a.npz"), episodes)


def test_npz_keeps_everything_that_hdf5_does(tmp_path: Path, toy: EpisodeDataset) -> None:
    write_npz(toy, tmp_path / "a.npz")
    found = read_npz(tmp_path / "a.npz")
    assert_same_episodes(found, list(toy.episodes()))
    assert found.info.generator == INFO.generator
    assert found.info.sha256 == sha256_of(tmp_path / "a.npz")
    episodes = [random_episode(4), random_episode(3, final=False)]
    write_npz(EpisodeDataset.from_episodes(episodes), tmp_path / "b.npz")
    assert_same_episodes(read_npz(tmp_path / "b.npz"), episodes)


def test_an_end_of_both_kinds_is_written_as_terminal(tmp_path: Path) -> None:
    episodes = [random_episode(3, truncated=True), random_episode(4, truncated=True)]
    dataset = EpisodeDataset.from_episodes(episodes)
    write_d4rl(dataset, tmp_path / "a.hdf5")
    write_npz(dataset, tmp_path / "a.npz")
    for name in ("a.hdf5", "a.npz"):
        found = load_dataset(tmp_path / name)
        assert (found.terminated.tolist(), found.truncated.tolist()) == ([True] * 2, [False] * 2)


def test_an_episode_without_an_end_is_not_written(tmp_path: Path) -> None:
    episodes = [random_episode(3), random_episode(4, terminated=False)]
    dataset = EpisodeDataset.from_episodes(episodes)
    for write in (write_d4rl, write_npz):
        with pytest.raises(NoEpisodeBoundary, match=r"episode\[1\]: .* mark it truncated"):
            write(dataset, tmp_path / "a")
        with pytest.raises(EmptyDataset):
            write(dataset.subset([]), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_reading_changes_nothing_in_the_file(tmp_path: Path, toy: EpisodeDataset) -> None:
    path = tmp_path / "toy.hdf5"
    write_d4rl(toy, path)
    path.chmod(0o444)
    before = (sha256_of(path), path.stat().st_mtime_ns)
    for mode in MODES:
        load_dataset(path, mode=mode).statistics()  # type: ignore[arg-type]
    assert (sha256_of(path), path.stat().st_mtime_ns) == before


def test_arrays_in_memory_do_not_share_their_rows_with_the_reader(toy: EpisodeDataset) -> None:
    view = toy.source.read("rewards", 0, 0, 3)
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    copy = toy.episode(0)
    copy.rewards[0] = 99
    assert toy.episode(0).rewards[0] != 99


def test_blocks_do_not_show_in_what_is_read(
    tmp_path: Path, toy: EpisodeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "toy.hdf5"
    monkeypatch.setattr("statewise.data.d4rl._BLOCK", 40)
    write_d4rl(toy, path)
    for size in (1, 8, 24, 56):
        monkeypatch.setattr("statewise.data.flat_read._BLOCK", size)
        found = read_d4rl(path)
        assert isinstance(found.source, MemorySource)
        assert_same_episodes(found, list(toy.episodes()))


def test_a_lazy_source_gives_the_same_batches(tmp_path: Path, toy: EpisodeDataset) -> None:
    write_d4rl(toy, tmp_path / "toy.hdf5")
    config = WindowConfig(length=6, batch_size=16, final="include")
    batches = [
        WindowSampler(read_d4rl(tmp_path / "toy.hdf5", mode=mode), config, np.random.default_rng(0))
        for mode in MODES  # type: ignore[misc]
    ]
    left, right = (sampler.sample() for sampler in batches)
    for name in ("is_first", "reset", "action", "reward", "terminated", "truncated", "valid"):
        assert torch.equal(getattr(left.step, name), getattr(right.step, name))
    assert torch.equal(left.step.obs["obs"], right.step.obs["obs"])
    assert torch.equal(left.rtg, right.rtg)
    assert torch.equal(left.timestep, right.timestep)


def test_a_lazy_source_stays_small_on_a_large_file(tmp_path: Path) -> None:
    """160 MB of observations: the process may grow by HDF5's caches and a block, 48 MB."""
    path = tmp_path / "large.hdf5"
    steps, width = 200_000, 200
    block = np.random.default_rng(0).normal(size=(10_000, width)).astype(np.float32)
    with h5py.File(path, "w") as file:
        stored = file.create_dataset("observations", (steps, width), "f4", chunks=(500, width))
        for begin in range(0, steps, 10_000):
            stored[begin : begin + 10_000] = block
        file["actions"] = np.zeros((steps, 2), np.float32)
        file["rewards"] = np.ones(steps, np.float32)
        file["terminals"] = np.zeros(steps, bool)
        file["timeouts"] = np.arange(steps) % 1000 == 999
    code = textwrap.dedent(
        """
        import resource, sys
        import numpy as np
        from statewise.data import WindowConfig, WindowSampler, read_d4rl
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = peak()
        dataset = read_d4rl(sys.argv[1], mode="lazy")
        sampler = WindowSampler(dataset, WindowConfig(), np.random.default_rng(0))
        for _ in range(5):
            assert sampler.sample().step.obs["obs"].shape == (64, 20, 200)
        assert dataset.statistics().return_mean == 1000
        print(peak() - before)
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    grown = int(result.stdout) * 1024
    assert path.stat().st_size > 160e6
    assert grown < 48e6, f"grew by {grown / 1e6:.0f} MB"
