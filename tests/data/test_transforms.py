"""Data sets made from data sets: what changes, and that nothing else does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from statewise.data import (
    ArraySpec,
    DatasetInfo,
    Episode,
    EpisodeDataset,
    concatenate,
    delayed_reward,
    keep_best,
    mask_observations,
    noisy_actions,
    read_d4rl,
    returns_to_go,
    scale_rewards,
    write_d4rl,
)
from statewise.data.errors import (
    DataConfigError,
    EmptyDataset,
    EnvMismatch,
    ShapeError,
    SpecMismatch,
)
from tests.data.episodes import assert_same_episodes, dataset_of, random_episode

LENGTHS = (3, 1, 5, 2)


@pytest.fixture(params=["memory", "lazy"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> EpisodeDataset:
    made = dataset_of(*LENGTHS)
    if request.param == "memory":
        return made
    write_d4rl(made, tmp_path / "a.hdf5")
    return read_d4rl(tmp_path / "a.hdf5", mode="lazy")


def with_returns(*returns: float, lengths: tuple[int, ...]) -> EpisodeDataset:
    episodes = []
    for number, (value, steps) in enumerate(zip(returns, lengths, strict=True)):
        rewards = np.zeros(steps, np.float32)
        rewards[0] = value
        episode = random_episode(steps, seed=number)
        episodes.append(Episode(**{**vars(episode), "rewards": rewards}))
    return EpisodeDataset.from_episodes(episodes)


def unchanged(left: EpisodeDataset, right: EpisodeDataset, *but: str) -> None:
    """Compare all arrays except those named."""
    assert (left.lengths.tolist(), left.source.names) == (
        right.lengths.tolist(),
        right.source.names,
    )
    for name in (name for name in left.source.names if name not in but):
        for index, steps in enumerate(left.lengths.tolist()):
            rows = [d.source.read(name, index, 0, steps + 1) for d in (left, right)]
            np.testing.assert_array_equal(*rows)


def test_the_best_trajectories_are_kept_in_their_order() -> None:
    dataset = with_returns(1, 5, 3, 4, 2, lengths=(2, 3, 1, 4, 2))
    for fraction, kept in ((0.4, [1, 3]), (0.59, [1, 3]), (0.6, [1, 2, 3]), (1.0, [0, 1, 2, 3, 4])):
        best = keep_best(dataset, fraction)
        assert_same_episodes(best, [dataset.episode(i) for i in kept])
    assert keep_best(dataset, 0.01).returns.tolist() == [5.0]


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(-3, 3)), min_size=1, max_size=8),
    st.floats(0.01, 1),
)
def test_the_best_timesteps_are_those_that_a_loop_takes(
    episodes: list[tuple[int, int]], fraction: float
) -> None:
    lengths = tuple(steps for steps, _ in episodes)
    dataset = with_returns(*(float(value) for _, value in episodes), lengths=lengths)
    best = keep_best(dataset, fraction, of="timesteps")
    limit, taken, steps = int(fraction * sum(lengths) + 1e-6), [], 0
    for index in sorted(range(len(lengths)), key=lambda i: -episodes[i][1]):
        if taken and steps + lengths[index] > limit:
            break
        taken.append(index)
        steps += lengths[index]
    assert_same_episodes(best, [dataset.episode(i) for i in sorted(taken)])


def test_a_delayed_reward_keeps_every_return(dataset: EpisodeDataset) -> None:
    late = delayed_reward(dataset)
    np.testing.assert_allclose(late.returns, dataset.returns, rtol=1e-6)
    for episode in late.episodes():
        assert not episode.rewards[:-1].any()
    unchanged(late, dataset, "rewards")
    assert late.info.generator["changes"] == [{"name": "delayed_reward"}]


def test_rewards_are_scaled_then_shifted(dataset: EpisodeDataset) -> None:
    known = dataset.with_info(ref_min=-1.0, ref_max=3.0)
    scaled = scale_rewards(known, scale=2.0)
    np.testing.assert_allclose(scaled.returns, 2 * dataset.returns, rtol=1e-6)
    assert (scaled.info.ref_min, scaled.info.ref_max) == (-2.0, 6.0)
    shifted = scale_rewards(known, scale=2.0, shift=-1.0)
    np.testing.assert_allclose(
        shifted.returns, 2 * dataset.returns - dataset.lengths, rtol=1e-5, atol=1e-5
    )
    assert (shifted.info.ref_min, shifted.info.ref_max) == (None, None)
    unchanged(shifted, dataset, "rewards")
    again = scale_rewards(shifted, scale=0.5, shift=0.5)
    np.testing.assert_allclose(again.returns, dataset.returns, rtol=1e-5, atol=1e-5)
    assert [change["name"] for change in again.info.generator["changes"]] == ["scale_rewards"] * 2


def test_hidden_entries_are_zero_or_gone(dataset: EpisodeDataset) -> None:
    zeroed = mask_observations(dataset, [0, 2])
    removed = mask_observations(dataset, [0, 2], how="remove")
    for index, episode in enumerate(dataset.episodes()):
        kept = episode.observations["obs"]
        np.testing.assert_array_equal(zeroed.episode(index).observations["obs"], kept * [0, 1, 0])
        np.testing.assert_array_equal(removed.episode(index).observations["obs"], kept[:, 1:2])
    assert removed.info.obs_specs["obs"].shape == (1,)
    unchanged(zeroed, dataset, "observations/obs")
    unchanged(removed, dataset, "observations/obs")
    assert removed.statistics().obs_mean["obs"].shape == (1,)


def test_noise_replaces_a_share_of_the_actions_within_their_bounds() -> None:
    low, high = np.array([-1, 0], np.float32), np.array([1, 5], np.float32)
    spec = ArraySpec(shape=(2,), dtype="float32", low=low, high=high)
    zeros = np.zeros((4000, 2), np.float32)
    episode = Episode(**{**vars(random_episode(4000)), "actions": zeros})
    dataset = EpisodeDataset.from_episodes([episode], DatasetInfo(action_spec=spec))
    noisy = noisy_actions(dataset, 0.25, np.random.default_rng(0))
    found = noisy.episode(0).actions
    replaced = found.any(1)
    assert abs(replaced.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)
    assert (found >= low).all()
    assert (found <= high).all()
    assert found[replaced, 1].mean() == pytest.approx(2.5, abs=0.3)
    np.testing.assert_array_equal(
        found, noisy_actions(dataset, 0.25, np.random.default_rng(0)).episode(0).actions
    )
    unchanged(noisy, dataset, "actions")
    assert not dataset.episode(0).actions.any()


def test_noise_on_choices_draws_choices() -> None:
    spec = ArraySpec(shape=(), dtype="int64", num_choices=(4,))
    episode = Episode(**{**vars(random_episode(2000)), "actions": np.zeros(2000, np.int64)})
    dataset = EpisodeDataset.from_episodes([episode], DatasetInfo(action_spec=spec))
    found = noisy_actions(dataset, 1.0, np.random.default_rng(0)).episode(0).actions
    assert found.dtype == np.int64
    counts = np.bincount(found, minlength=4)
    assert len(counts) == 4
    assert np.abs(counts - 500).max() < 4 * np.sqrt(2000 * 0.25 * 0.75)


def test_noise_works_on_every_source(dataset: EpisodeDataset) -> None:
    noisy = noisy_actions(dataset, 0.5, np.random.default_rng(0))
    unchanged(noisy, dataset, "actions")
    actions = np.concatenate([e.actions for e in noisy.episodes()])
    before = np.concatenate([e.actions for e in dataset.episodes()])
    assert 0 < (actions != before).any(1).sum() < len(actions)


def test_concatenated_sets_follow_each_other(dataset: EpisodeDataset) -> None:
    other = dataset_of(7, 2)
    both = concatenate([dataset, other])
    assert_same_episodes(both, [*dataset.episodes(), *other.episodes()])
    parts = both.info.generator["changes"][-1]["parts"]
    assert [part["num_episodes"] for part in parts] == [4, 2]


def test_sets_of_different_kinds_are_not_concatenated() -> None:
    dataset = dataset_of(3)
    with pytest.raises(EnvMismatch, match="env_id: expected data of toy, got other"):
        concatenate([dataset, dataset.with_info(env_id="other")])
    with pytest.raises(SpecMismatch, match="observations/obs: expected"):
        concatenate([dataset, mask_observations(dataset, [0], how="remove")])
    with pytest.raises(SpecMismatch, match="observations/x: expected None"):
        concatenate([dataset, dataset_of(3, keys=("obs", "x"))])
    with pytest.raises(EmptyDataset, match="at least one data set"):
        concatenate([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: keep_best(d, 0.0), r"fraction: expected a number in \(0, 1\], got 0.0"),
        (lambda d: keep_best(d, 0.5, of="steps"), "of: expected one of trajectories, timesteps"),
        (lambda d: scale_rewards(d, scale=0.0), "scale: expected finite numbers and scale > 0"),
        (lambda d: scale_rewards(d, shift=np.inf), "scale: "),
        (lambda d: mask_observations(d, [3]), r"indices: expected entries 0 \.\. 2, got \[3\]"),
        (lambda d: mask_observations(d, [0], key="x"), "key: expected vector observations"),
        (lambda d: mask_observations(d, [0, 1, 2], how="remove"), "some entry to stay"),
        (lambda d: mask_observations(d, [0], how="blur"), "how: expected one of zero, remove"),
        (lambda d: noisy_actions(d, 1.5, np.random.default_rng(0)), "fraction: "),
    ],
)
def test_settings_out_of_range_are_refused(change: Any, message: str) -> None:
    with pytest.raises(DataConfigError, match=message):
        change(dataset_of(3))


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.floats(0.1, 1))
def test_returns_to_go_are_sums_of_what_comes(rewards: list[float], discount: float) -> None:
    values = np.array(rewards, np.float32)
    found = returns_to_go(values, discount)
    for t in range(len(values)):
        powers = discount ** np.arange(len(values) - t)
        expected = float((values[t:].astype(np.float64) * powers).sum())
        assert found[t] == pytest.approx(expected, abs=1e-9)


def test_returns_to_go_need_a_vector_and_a_discount() -> None:
    assert returns_to_go(np.array([1, 2, 3], np.float32)).tolist() == [6, 5, 3]
    assert returns_to_go(np.array([1, 2, 4], np.float32), 0.5).tolist() == [3, 4, 4]
    with pytest.raises(DataConfigError, match="discount"):
        returns_to_go(np.zeros(3), 0.0)
    with pytest.raises(ShapeError, match=r"rewards: expected shape \(T,\), got \(3, 1\)"):
        returns_to_go(np.zeros((3, 1)))
