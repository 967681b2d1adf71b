"""The replay: relabelling, pairs of rows, the ring, budgets, and how stale stored states are."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from statewise.agents.offline.hidden_replay import (
    HiddenReplay,
    PlayedEpisode,
    Transitions,
    returns_to_go,
    staleness,
)
from tests.agents.offline.finetune_cases import agent_of, played
from tests.tolerance import assert_within


def numbered(number: int, T: int, *, terminated: bool = False) -> PlayedEpisode:
    """Return an episode whose every entry says which episode and step it is of."""
    mark = 100.0 * number + torch.arange(T + 1)
    return PlayedEpisode(
        obs={"obs": mark[:, None]},
        action=mark[:-1, None] + 0.25,
        reward=torch.arange(T) + 1.0,
        asked=mark,
        terminated=terminated,
        state={"0.h": mark[:, None] + 0.5},
    )


def replay_of(capacity: int, **changes: Any) -> HiddenReplay:
    arguments: dict[str, Any] = {
        "obs": {"obs": torch.zeros(1)},
        "width": 1,
        "state": {"0.h": torch.zeros(1, 1)},
        "budget_gib": 1.0,
    } | changes
    return HiddenReplay(capacity, **arguments)


def everything(replay: HiddenReplay) -> Transitions:
    """Return each transition that can be drawn, sorted."""
    batch = replay.sample(400, torch.Generator().manual_seed(0))
    marks = batch.obs["obs"][:, 0]
    order = [int((marks == mark).nonzero()[0]) for mark in marks.unique()]

    def rows(x: Any) -> Any:
        return {k: v[order] for k, v in x.items()} if isinstance(x, dict) else x[order]

    return Transitions(*(rows(x) for x in batch))


@settings(max_examples=30)
@given(st.lists(st.floats(-16, 16, width=32), min_size=1, max_size=40))
def test_the_stored_return_to_go_is_the_sum_of_the_rewards_to_come(rewards: list[float]) -> None:
    found = returns_to_go(torch.tensor(rewards)).tolist()
    assert found[-1] == 0.0
    for t, value in enumerate(found):
        assert value == pytest.approx(sum(rewards[t:]), abs=1e-4)


def test_relabelling_shifts_what_was_asked_for_by_what_was_left_of_it() -> None:
    agent = agent_of()
    episode = played(agent, 9)
    shifted = episode.asked - episode.asked[-1]
    torch.testing.assert_close(returns_to_go(episode.reward), shifted, atol=1e-5, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    capacity=st.integers(8, 20),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=8),
)
def test_a_full_ring_loses_the_oldest_rows_and_pairs_none_across_episodes(
    capacity: int, lengths: list[int]
) -> None:
    replay = replay_of(capacity)
    for number, T in enumerate(lengths):
        replay.add(numbered(number, T, terminated=number % 2 == 1))
    rows = [(n, t, T) for n, T in enumerate(lengths) for t in range(T + 1)][-capacity:]
    expected = [(n, t, T) for n, t, T in rows if t < T]
    assert len(replay) == len(rows)
    assert replay.num_transitions == len(expected)
    if not expected:
        return
    found = everything(replay)
    marks = torch.tensor([100.0 * n + t for n, t, _ in expected])
    assert torch.equal(found.obs["obs"][:, 0], marks)
    assert torch.equal(found.next_obs["obs"][:, 0], marks + 1)
    assert torch.equal(found.state["0.h"][:, 0], marks + 0.5)
    assert torch.equal(found.next_state["0.h"][:, 0], marks + 1.5)
    assert torch.equal(found.action[:, 0], marks + 0.25)
    before = torch.tensor([100.0 * n + t - 0.75 if t else 0.0 for n, t, _ in expected])
    assert torch.equal(found.previous[:, 0], before)
    ends = [t == T - 1 and n % 2 == 1 for n, t, T in expected]
    assert found.terminated.tolist() == ends
    assert torch.equal(found.rtg, found.reward + found.next_rtg)


def test_every_row_is_drawn_equally_often() -> None:
    replay = replay_of(20)
    replay.add(numbered(0, 3))
    replay.add(numbered(1, 7))
    drawn = replay.sample(20_000, torch.Generator().manual_seed(1)).obs["obs"][:, 0]
    counts = drawn.unique(return_counts=True)[1]
    assert len(counts) == 10
    # Six deviations of a share of 1/10.
    assert (counts / 20_000 - 0.1).abs().max() < 6 * (0.09 / 20_000) ** 0.5


def test_the_rows_of_an_episode_come_in_order_and_without_those_overwritten() -> None:
    replay = replay_of(10)
    for number in range(3):
        replay.add(numbered(number, 4))
    # 15 rows in 10 places: the first episode is gone.
    assert replay.num_episodes == 2
    assert replay.states(replay.rows_of(0))["0.h"][:, 0].tolist() == [100.5 + t for t in range(5)]
    replay.add(numbered(3, 1))
    assert replay.states(replay.rows_of(0))["0.h"][:, 0].tolist() == [102.5, 103.5, 104.5]
    assert replay.states(replay.rows_of(2))["0.h"][:, 0].tolist() == [300.5, 301.5]


def test_states_are_replaced_where_they_belong() -> None:
    replay = replay_of(10)
    for number in range(2):
        replay.add(numbered(number, 3))
    replay.put_states(replay.rows_of(1), {"0.h": torch.full((4, 1), -1.0)})
    found = everything(replay)
    assert found.state["0.h"][:, 0].tolist() == [0.5, 1.5, 2.5, -1.0, -1.0, -1.0]


def test_a_replay_beyond_its_budget_says_what_it_takes_and_what_to_do() -> None:
    state = {"0.h": torch.zeros(1, 64, 32, 2)}
    # 64 * 32 * 2 + obs 1, previous 1, action 1, rtg, asked, reward: 4102 floats; 2 flags.
    size = 100_000 * (4102 * 4 + 2) / 2**30
    replay_of(100, state=state, budget_gib=size / 1000 * 1.0001)
    with pytest.raises(ValueError, match=r"1\.53 GiB for 100000 rows with 16\.4 kB") as caught:
        replay_of(100_000, state=state)
    assert f"{size:.2f}" == "1.53"
    assert "\n" not in str(caught.value)
    assert "lower replay_size, raise replay_gib" in str(caught.value)


def test_an_episode_longer_than_the_replay_is_refused() -> None:
    with pytest.raises(ValueError, match="expected episodes of at most 7 steps, got 8"):
        replay_of(8).add(numbered(0, 8))


def test_a_saved_replay_goes_on_bit_by_bit() -> None:
    one, other = replay_of(10), replay_of(10)
    other.add(numbered(9, 5))
    for number in range(3):
        one.add(numbered(number, 4))
    other.load_state_dict(one.state_dict())
    for replay in (one, other):
        replay.add(numbered(3, 2))
    for a, b in zip(everything(one), everything(other), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    with pytest.raises(ValueError, match="expected 12 rows"):
        replay_of(12).load_state_dict(one.state_dict())


def test_recomputed_states_are_the_stored_ones_while_the_weights_stay() -> None:
    agent = agent_of(depth=3)
    episode = played(agent, 9)
    state = {key: value[:1] for key, value in episode.state.items()}
    replay = HiddenReplay(14, {"obs": torch.zeros(3)}, 2, state, 1.0)
    replay.add(episode)
    for keep in (10, 6):
        index = replay.rows_of(0)
        assert len(index) == keep
        (fresh,) = replay.recomputed(agent.policy, [index])
        gaps = staleness(replay.states(index), fresh)
        assert sorted(gaps) == ["0", "1", "2"]
        assert max(gaps.values()) < 1e-5
        replay.add(played(agent, 7))
    with torch.no_grad():
        agent.policy.tokens.embed_obs.weight.mul_(1.5)  # type: ignore[attr-defined]
    index = replay.rows_of(replay.num_episodes - 1)
    gaps = staleness(replay.states(index), replay.recomputed(agent.policy, [index])[0])
    assert min(gaps.values()) > 1e-3


def test_episodes_are_recomputed_together_as_alone() -> None:
    agent = agent_of()
    state = {key: value[:1] for key, value in played(agent, 1).state.items()}
    replay = HiddenReplay(30, {"obs": torch.zeros(3)}, 2, state, 1.0)
    for T in (3, 9, 5):
        replay.add(played(agent, T, seed=T))
    rows = [replay.rows_of(k) for k in range(3)]
    together = replay.recomputed(agent.policy, rows)
    for index, found in zip(rows, together, strict=True):
        (alone,) = replay.recomputed(agent.policy, [index])
        for key, value in alone.items():
            assert len(value) == len(index)
            assert_within(found[key], value, 1e-6)


def test_staleness_is_the_share_of_the_state_that_is_wrong() -> None:
    stored = {"0.h": torch.tensor([1.0, 2.0]), "1.h": torch.zeros(2), "1.conv": torch.ones(2)}
    fresh = {"0.h": torch.tensor([1.0, 2.0]), "1.h": torch.ones(2), "1.conv": torch.ones(2)}
    assert staleness(stored, fresh) == {"0": 0.0, "1": 0.5}
