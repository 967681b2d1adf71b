"""Learning histories of the dark room: the environment plays them back, and learners get better."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statewise.data import EpisodeDataset, concatenate, toy_histories
from statewise.data.errors import DataConfigError
from statewise.data.history_sampler import history_numbers
from statewise.data.toy_histories import EPISODES, dark_room_histories, learn, split_cells
from statewise.envs.tasks.dark_room import DarkRoomVector, choose_goals
from statewise.envs.trials import TrialConfig


def stacked(dataset: EpisodeDataset, name: str) -> Any:
    """Return an array of episodes of equal lengths, (E, T or T + 1, ...)."""
    return np.stack([dataset.source.read(name, i, 0, 10**9) for i in range(len(dataset))])


@pytest.mark.parametrize(("size", "length", "goals"), [(5, 10, "train"), (4, 7, "held_out")])
def test_the_environment_plays_the_histories_back(size: int, length: int, goals: Any) -> None:
    data = dark_room_histories(2 * EPISODES, size=size, length=length, goals=goals, seed=3)
    actions, rewards = stacked(data, "actions"), stacked(data, "rewards")
    seen, goal = stacked(data, "observations/obs"), choose_goals(size**2, goals)[:2]
    assert data.terminated.all()
    env = DarkRoomVector(len(data), size=size, steps=length)
    env.set_trials(TrialConfig(episodes=2))
    env.reset(seed=0)
    env.arrays["goal_x"][:], env.arrays["goal_y"][:] = np.divmod(goal.repeat(EPISODES), size)
    assert np.array_equal(env.observe(), seen[:, 0])
    for t in range(length):
        reward, over = env.advance(actions[:, t])
        assert np.array_equal(reward, rewards[:, t])
        assert np.array_equal(env.observe(), seen[:, t + 1])
        assert over.all() == (t == length - 1)


@pytest.mark.parametrize("count", [4, 25, 81])
def test_goals_are_split_as_in_the_environment(count: int) -> None:
    for goals in ("all", "train", "held_out"):
        assert np.array_equal(split_cells(count, goals), choose_goals(count, goals))


def test_returns_rise_from_those_of_a_search_to_the_best() -> None:
    goal = np.tile(np.arange(25), 8)
    lived = learn(goal, size=5, length=10, generator=np.random.default_rng(0))
    by_episode = lived.reward.sum(2).mean(0)
    assert by_episode[0] < 1
    assert by_episode[10] > by_episode[2] + 2
    assert by_episode[-1] > 7.8
    assert toy_histories.best_return(5, 10) == pytest.approx(8.56)
    assert toy_histories.best_return(9, 20) == pytest.approx(16.54, abs=0.005)


def test_the_lower_reference_is_what_random_actions_return() -> None:
    low = dark_room_histories(1, size=3, length=4, goals="held_out").info.ref_min
    env = DarkRoomVector(3000, size=3, steps=4)
    env.reset(seed=5)
    drawn = np.random.default_rng(0).integers(5, size=(4, 3000))
    returns = sum(env.advance(action)[0] for action in drawn)
    assert low == pytest.approx(float(np.mean(returns)), abs=4 * np.std(returns) / 3000**0.5)


def test_a_learner_is_q_learning_backwards_with_a_bonus_for_what_was_seldom_tried() -> None:
    size, length, goal = 3, 5, 2
    lived = learn(np.array([goal]), size=size, length=length, generator=np.random.default_rng(7))
    generator = np.random.default_rng(7)
    value: dict[Any, float] = defaultdict(float)
    tries: dict[Any, int] = defaultdict(int)
    for episode in range(EPISODES):
        at, steps = (1, 1), []
        for t in range(length):
            ties = 1e-6 * generator.uniform(size=(1, 5))[0]
            hope = [value[at, a] + (1 + tries[at, a]) ** -0.5 + ties[a] for a in range(5)]
            action = int(np.argmax(hope))
            move = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))[action]
            after = tuple(min(max(x + dx, 0), size - 1) for x, dx in zip(at, move, strict=True))
            tries[at, action] += 1
            steps.append((at, action, float(after == divmod(goal, size)), after))
            assert lived.cell[0, episode, t] == at[0] * size + at[1]
            assert (lived.action[0, episode, t], lived.reward[0, episode, t]) == steps[-1][1:3]
            at = after
        for at, action, reward, after in reversed(steps):
            aim = reward + 0.9 * max(value[after, a] for a in range(5))
            value[at, action] += toy_histories.LEARNING_RATE * (aim - value[at, action])


def test_the_marks_tell_where_a_history_begins_in_files_and_joined_sets_too(
    tmp_path: Path,
) -> None:
    from statewise.data import load_dataset, write_d4rl
    from statewise.data.minari_write import write_minari

    data = dark_room_histories(EPISODES + 3)
    expected = [*range(EPISODES), 0, 1, 2]
    assert history_numbers(data).tolist() == expected
    assert history_numbers(concatenate([data, data])).tolist() == 2 * expected
    write_d4rl(data, tmp_path / "a.hdf5")
    write_minari(data.episodes(), data.info, "a-v0", root=tmp_path)
    for path in (tmp_path / "a.hdf5", tmp_path / "a-v0"):
        for mode in ("memory", "lazy"):
            assert history_numbers(load_dataset(path, mode=mode)).tolist() == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"num_episodes": 0}, {"length": 0}, {"size": 1}, {"goals": "x"}])
def test_what_cannot_be_made_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataConfigError, match="expected"):
        dark_room_histories(**({"num_episodes": 1} | wrong))
