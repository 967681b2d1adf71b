"""Windows of learning histories: rows, borders and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from statewise.data import EpisodeDataset, SampledBatch, concatenate, keep_best
from statewise.data.episode import Episode
from statewise.data.errors import DataConfigError, EmptyDataset, MissingKey, SpecMismatch
from statewise.data.history_sampler import HistoryConfig, HistorySampler, history_numbers


def histories(counts: tuple[int, ...], *, seed: int = 0, longest: int = 4) -> EpisodeDataset:
    """Return histories of so many episodes; observation [episode, step], action and reward tell."""
    rng, episodes = np.random.default_rng(seed), []
    for count in counts:
        for number in range(count):
            n, e = int(rng.integers(1, longest + 1)), len(episodes)
            obs = np.stack([np.full(n + 1, e), np.arange(n + 1)], 1).astype(np.float32)
            episodes.append(
                Episode(
                    observations={"obs": obs},
                    actions=100 * e + np.arange(n),
                    rewards=rng.normal(size=n).astype(np.float32),
                    terminated=e % 2 == 0,
                    truncated=e % 2 == 1,
                    infos={"history_episode": np.full(n, number)},
                )
            )
    return EpisodeDataset.from_episodes(episodes)


def draw(data: EpisodeDataset, seed: int = 0, **config: Any) -> SampledBatch:
    batch = HistorySampler(data, HistoryConfig(**config), np.random.default_rng(seed)).sample()
    assert isinstance(batch, SampledBatch)
    return batch


def check_line(data: EpisodeDataset, batch: SampledBatch, line: int, every: int) -> int:
    """Compare a line with a walk along its history; return its first episode."""
    number, step = history_numbers(data), batch.step
    width = step.valid.shape[1]
    first = episode = int(step.obs["obs"][line, 0, 0])
    t = 0
    for column in range(width):
        row = {name: getattr(step, name)[line, column] for name in step._fields if name != "obs"}
        if episode < 0:
            assert not row["valid"]
            assert (step.obs["obs"][line, column] == 0).all()
            continue
        one, last = data.episode(episode), int(data.lengths[episode]) - 1
        assert step.obs["obs"][line, column].tolist() == [episode, t]
        assert (row["action"], row["reward"]) == (100 * episode + t, one.rewards[t])
        assert (row["is_first"], row["reset"]) == (t == 0, column == 0)
        assert (row["terminated"], row["truncated"]) == (
            one.terminated and t == last,
            one.truncated and t == last,
        )
        assert row["valid"]
        assert batch.timestep[line, column] == t
        assert batch.rtg[line, column] == pytest.approx(one.rewards[t:].sum(), abs=1e-5)
        t += 1
        if t > last:
            t = 0
            follows = episode + every
            rest = number[episode + 1 : follows + 1]
            episode = follows if len(rest) == every and (rest > 0).all() else -1
    return first


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from(["history", "episode"]))
def test_a_line_walks_along_every_kth_episode_of_one_history(
    seed: int, every: int, starts: Any
) -> None:
    data = histories((7, 9, 6), seed=seed)
    batch = draw(data, seed, length=2, batch_size=6, every=every, starts=starts)
    number = history_numbers(data)
    for line in range(6):
        first = check_line(data, batch, line, every)
        assert starts == "episode" or number[first] < every
    assert batch.step.valid.all()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_whole_histories_end_in_padding_that_no_memory_reaches(seed: int, every: int) -> None:
    data = histories((4, 9), seed=seed)
    batch = draw(data, seed, length=None, batch_size=5, every=every)
    for line in range(5):
        check_line(data, batch, line, every)
    width = batch.step.valid.sum(1).max()
    assert batch.step.valid.shape == (5, width)


def test_all_starts_that_leave_a_full_line_are_drawn_and_no_others() -> None:
    data = histories((6, 4), longest=1)  # episodes of one step
    found = {
        key: {
            int(e)
            for seed in range(20)
            for e in draw(data, seed, length=2, every=2, starts=key).step.obs["obs"][:, 0, 0]
        }
        for key in ("history", "episode")
    }
    assert found == {"history": {0, 1, 6, 7}, "episode": {0, 1, 2, 3, 6, 7}}


def test_a_sampler_goes_on_where_its_state_was_taken() -> None:
    data = histories((8, 8))
    sampler = HistorySampler(data, HistoryConfig(length=3), np.random.default_rng(1))
    sampler.sample()
    state, expected = sampler.state_dict(), sampler.sample()
    other = HistorySampler(data, HistoryConfig(length=3), np.random.default_rng(9))
    other.load_state_dict(state)
    assert torch.equal(other.sample().step.reward, expected.step.reward)


def test_data_that_are_no_whole_histories_are_refused_in_one_line() -> None:
    data = histories((3, 3))
    plain = EpisodeDataset.from_episodes(
        [Episode(**{**vars(one), "infos": {}}) for one in data.episodes()]
    )
    cases: list[tuple[Any, EpisodeDataset, str]] = [
        (MissingKey, plain, "infos/history_episode: expected this key, got "),
        (SpecMismatch, data.subset([0, 2]), r"\[1\]: expected 0 or 1, .*, got 2: use whole"),
        (SpecMismatch, data.subset([1, 2]), r"\[0\]: expected 0 or 0, the next .*, got 1"),
        (SpecMismatch, keep_best(concatenate([data, data]), 0.5), "without data.keep_best"),
        (EmptyDataset, histories((2,), longest=1), "at least 3 steps, every 1 episodes, got at"),
    ]
    for kind, wrong, words in cases:
        with pytest.raises(kind, match=words) as caught:
            draw(wrong, length=3)
        assert "\n" not in str(caught.value)
    for key in ("length", "batch_size", "every"):
        with pytest.raises(DataConfigError, match=f"{key}: expected at least 1, got 0"):
            HistoryConfig(**{key: 0})  # type: ignore[arg-type]
    with pytest.raises(DataConfigError, match="starts: expected one of history, episode, got"):
        HistoryConfig(starts="any")  # type: ignore[arg-type]
