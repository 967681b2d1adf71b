"""Data sets: episodes in and out, rows, statistics, views, and their table."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from statewise.data import (
    ArraySpec,
    DatasetInfo,
    Episode,
    EpisodeDataset,
    MemorySource,
    dataset_table,
    read_d4rl,
    to_arrival,
    write_d4rl,
)
from statewise.data.errors import DataConfigError, EmptyDataset
from statewise.data.views import SubsetSource, join, select
from tests.data.episodes import (
    assert_same_episodes,
    dataset_of,
    integrator_episodes,
    random_episode,
)


def stored(tmp_path: Path, dataset: EpisodeDataset, mode: str) -> EpisodeDataset:
    """Return the data set itself, or a lazy one that holds the same."""
    if mode == "memory":
        return dataset
    write_d4rl(dataset, tmp_path / "stored.hdf5", overwrite=True)
    return read_d4rl(tmp_path / "stored.hdf5", mode="lazy")


MODES = ("memory", "lazy")


def test_episodes_come_back_as_they_were_put_in() -> None:
    episodes = [
        random_episode(4, keys=("a", "b")),
        random_episode(1, final=False, truncated=True, terminated=False, keys=("a", "b")),
        random_episode(9, seed=3, keys=("a", "b")),
    ]
    dataset = EpisodeDataset.from_episodes(episodes)
    assert_same_episodes(dataset, episodes)
    assert len(dataset) == 3
    assert dataset.num_steps == 14
    assert dataset.has_final.tolist() == [True, False, True]
    assert [dataset.episode(i).has_final for i in range(3)] == [True, False, True]
    assert dataset.episode(-1).index == 2
    with pytest.raises(IndexError):
        dataset.episode(3)


def test_infos_of_some_episodes_only_are_left_out_and_others_keep_their_rows() -> None:
    first = random_episode(3)
    infos = {"power": np.arange(3.0), "shared": np.arange(4)}
    episodes = [
        Episode(**{**vars(first), "infos": infos}),
        Episode(**{**vars(first), "infos": {"shared": np.arange(3)}}),
    ]
    dataset = EpisodeDataset.from_episodes(episodes)
    assert "infos/power" not in dataset.source.names
    assert dataset.episode(0).infos["shared"].tolist() == [0, 1, 2, 3]
    assert dataset.episode(1).infos["shared"].tolist() == [0, 1, 2]


def test_wide_floats_become_float32_and_specs_are_filled_in() -> None:
    episode = random_episode(3)
    wide = Episode(
        **{
            **vars(episode),
            "observations": {"obs": episode.observations["obs"].astype(np.float64)},
            "actions": episode.actions.astype(np.float64),
            "rewards": episode.rewards.astype(np.float64),
        }
    )
    dataset = EpisodeDataset.from_episodes([wide])
    assert_same_episodes(dataset, [episode])
    assert dataset.info.obs_specs == {"obs": ArraySpec(shape=(3,), dtype="float32")}
    assert dataset.info.action_spec == ArraySpec(shape=(2,), dtype="float32")


@pytest.mark.parametrize("mode", MODES)
def test_returns_are_summed_in_double_precision(tmp_path: Path, mode: str) -> None:
    rewards = np.array([1e8, 1, 1, 1, -1e8], np.float32)
    episode = Episode(**{**vars(random_episode(5)), "rewards": rewards})
    dataset = stored(tmp_path, EpisodeDataset.from_episodes([episode]), mode)
    assert dataset.returns.dtype == np.float64
    assert dataset.returns.tolist() == [3.0]
    assert dataset.returns is dataset.returns


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("block", [1, 100, 2**23])
def test_statistics_are_those_of_numpy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, block: int
) -> None:
    monkeypatch.setattr("statewise.data.dataset._BLOCK", block)
    dataset = stored(tmp_path, EpisodeDataset.from_episodes(integrator_episodes([5, 1, 30])), mode)
    numbers = dataset.statistics()
    seen = np.concatenate([e.observations["obs"][:-1] for e in dataset.episodes()])
    seen = seen.astype(np.float64)
    np.testing.assert_allclose(numbers.obs_mean["obs"], seen.mean(0), rtol=1e-12)
    np.testing.assert_allclose(numbers.obs_std["obs"], seen.std(0), rtol=1e-12)
    returns = np.array([e.rewards.sum(dtype=np.float64) for e in dataset.episodes()])
    assert (numbers.return_mean, numbers.return_std) == (returns.mean(), returns.std())
    assert (numbers.return_min, numbers.return_max) == (returns.min(), returns.max())
    assert (numbers.num_episodes, numbers.num_steps, numbers.num_final) == (3, 36, 3)
    assert (numbers.num_terminated, numbers.num_truncated) == (2, 1)
    assert (numbers.length_mean, numbers.length_min, numbers.length_max) == (12, 1, 30)
    assert dataset.statistics() is numbers


def test_a_mean_far_from_zero_does_not_hurt_the_deviation() -> None:
    episode = random_episode(1000)
    values = 1e6 + np.arange(1001, dtype=np.float32)[:, None] % 2 * [1, 0]
    values = values.astype(np.float32)
    far = Episode(**{**vars(episode), "observations": {"obs": values}})
    numbers = EpisodeDataset.from_episodes([far]).statistics()
    assert numbers.obs_std["obs"].tolist() == [0.5, 0.0]
    assert numbers.obs_mean["obs"].tolist() == [1e6 + 0.5, 1e6]


@pytest.mark.parametrize("mode", MODES)
def test_rows_are_those_of_the_stored_step(tmp_path: Path, mode: str) -> None:
    dataset = stored(tmp_path, EpisodeDataset.from_episodes(integrator_episodes([3, 4])), mode)
    episode, step = dataset.episode(0), dataset.steps(0)
    assert step.obs["obs"].shape == (1, 4, 2)
    np.testing.assert_array_equal(step.obs["obs"][0], episode.observations["obs"])
    np.testing.assert_array_equal(step.action[0, :3], episode.actions)
    np.testing.assert_array_equal(step.reward[0, :3], episode.rewards)
    assert step.action[0, 3].tolist() == [0.0]
    assert step.reward[0, 3] == 0
    assert step.is_first.tolist() == [[True, False, False, False]]
    assert step.reset.tolist() == [[True, False, False, False]]
    assert step.valid.tolist() == [[True, True, True, False]]
    assert step.terminated.tolist() == [[False, False, True, False]]
    assert not step.truncated.any()
    part = dataset.steps(0, 1, 3)
    assert part.is_first.tolist() == [[False, False]]
    assert part.reset.tolist() == [[True, False]]
    assert torch.equal(part.obs["obs"], step.obs["obs"][:, 1:3])
    for begin, end in ((2, 2), (-1, 2), (0, 5)):
        with pytest.raises(DataConfigError, match=r"episode\[0\]: expected 0 <= begin < end <= 4"):
            dataset.steps(0, begin, end)


def test_whole_episodes_share_a_batch_as_they_are_alone() -> None:
    dataset = dataset_of(3, 5, 1)
    step = dataset.whole([2, 1, 0])
    assert step.valid.shape == (3, 6)
    for line, number in enumerate((2, 1, 0)):
        alone = dataset.steps(number)
        rows = alone.valid.shape[1]
        for name, values in alone._asdict().items():
            found = getattr(step, name)
            if name == "obs":
                found, values = found["obs"], values["obs"]
            assert torch.equal(found[line, :rows], values[0]), name
        assert not step.valid[line, rows:].any()
    with pytest.raises(IndexError):
        dataset.whole([3])


def test_the_final_row_is_what_the_shift_to_arrivals_expects() -> None:
    dataset = EpisodeDataset.from_episodes(integrator_episodes([3, 4]))
    for index, terminal in ((0, True), (1, False)):
        arrival = to_arrival(dataset.steps(index))
        assert arrival.counts.all()
        assert arrival.is_last[0].tolist() == [False] * len(dataset.episode(index)) + [True]
        assert bool(arrival.is_terminal[0, -1]) == terminal
        np.testing.assert_array_equal(arrival.reward_in[0, 1:], dataset.episode(index).rewards)


@pytest.mark.parametrize("mode", MODES)
def test_a_subset_holds_the_episodes_asked_for(tmp_path: Path, mode: str) -> None:
    dataset = stored(tmp_path, dataset_of(3, 1, 5, 2), mode)
    chosen = dataset.subset([2, 0, -1])
    assert_same_episodes(chosen, [dataset.episode(i) for i in (2, 0, 3)])
    assert chosen.returns.tolist() == dataset.returns[[2, 0, 3]].tolist()
    assert chosen.info == dataset.info
    assert isinstance(chosen.source, MemorySource if mode == "memory" else SubsetSource)
    again = chosen.subset([1])
    assert_same_episodes(again, [dataset.episode(0)])
    with pytest.raises(IndexError):
        dataset.subset([4])
    with pytest.raises(EmptyDataset, match="expected at least one episode"):
        dataset.subset([]).statistics()


@pytest.mark.parametrize("mode", MODES)
def test_statistics_of_a_subset_are_its_own(tmp_path: Path, mode: str) -> None:
    dataset = stored(tmp_path, dataset_of(3, 1, 5, 2), mode).subset([3, 1])
    seen = np.concatenate([e.observations["obs"][:-1] for e in dataset.episodes()])
    np.testing.assert_allclose(
        dataset.statistics().obs_mean["obs"], seen.mean(0, dtype=np.float64), rtol=1e-12
    )


def test_gathered_rows_are_those_that_are_read() -> None:
    source = dataset_of(3, 1, 5).subset([2, 0]).source
    assert isinstance(source, MemorySource)
    episode, row = np.array([[0, 1], [0, 1]]), np.array([[5, 3], [2, 0]])
    found = source.gather("observations/obs", episode, row)
    assert found.shape == (2, 2, 3)
    for place in np.ndindex(2, 2):
        e, t = int(episode[place]), int(row[place])
        expected = source.read("observations/obs", e, t, t + 1)[0]
        np.testing.assert_array_equal(found[place], expected)


def test_joining_mixed_sources_reads_from_each(tmp_path: Path) -> None:
    first = dataset_of(3, 1)
    second = stored(tmp_path, dataset_of(5, 2), "lazy")
    joined = EpisodeDataset(join([first.source, second.source, first.source], DatasetInfo()))
    expected = [*first.episodes(), *second.episodes(), *first.episodes()]
    assert_same_episodes(joined, expected)
    part = EpisodeDataset(select(joined.source, np.array([2, 4])))
    assert_same_episodes(part, [expected[2], expected[4]])


def test_the_table_names_what_is_known() -> None:
    info = DatasetInfo(env_id="toy", ref_min=-10.0, ref_max=0.0, generator={"seed": 1})
    dataset = EpisodeDataset.from_episodes(integrator_episodes([5, 3]), info)
    table: dict[str, Any] = dict(dataset_table(dataset))
    assert table["episodes"] == "2"
    assert table["steps"] == "8"
    assert table["environment"] == "toy"
    assert table["length mean (min, max)"] == "4.0 (3, 5)"
    assert table["final observation known"] == "2 of 2"
    assert table["generator/seed"] == "1"
    assert table["infos"] == "energy"
    assert table["actions"] == "float32 (1,)"
    score = 100 * (dataset.returns.mean() + 10) / 10
    assert table["normalised score"] == f"{score:.2f} (-10.0, 0.0)"
    mean = dataset.statistics().obs_mean["obs"]
    assert table["observations/obs mean"] == f"{mean[0]:.4g}, {mean[1]:.4g}"
