"""Episodes of Pong by a script: what it does, and that data and game agree."""

import importlib.util

import numpy as np
import pytest

from statewise.envs.build import EnvConfig, make_single
from statewise.envs.protocol import EnvError
from statewise.training.make_data_pong import DOWN, PONG, STAY, UP, chase, pong

pytest.importorskip("ale_py")


@pytest.mark.parametrize(
    ("paddle", "ball", "action"),
    [(100, 100, STAY), (100, 104, DOWN), (100, 96, UP), (100, 97, STAY), (100, 0, STAY)],
)
def test_the_paddle_goes_to_the_row_of_the_ball(paddle: int, ball: int, action: int) -> None:
    assert chase(paddle, ball) == action


def test_who_follows_the_ball_returns_more_of_them() -> None:
    lost = {chases: pong(2, chases=chases, steps=500).returns for chases in (0.0, 1.0)}
    assert lost[1.0].sum() >= lost[0.0].sum() + 5  # of about 17 points lost


def test_the_game_answers_the_recorded_actions_with_the_recorded_pictures() -> None:
    dataset = pong(2, steps=40, seed=5)
    assert dataset.info.env_id == PONG
    assert [len(episode) for episode in dataset.episodes()] == [40, 40]
    env = make_single(EnvConfig(id=PONG))
    episode = dataset.episode(1)
    pictures = [env.reset(seed=6)[0]["obs"]]
    for action, reward in zip(episode.actions, episode.rewards, strict=True):
        obs, got, *_ = env.step(int(action))
        pictures.append(obs["obs"])
        assert got == reward
    np.testing.assert_array_equal(episode.observations["obs"], pictures)
    assert episode.truncated
    assert not episode.terminated
    assert set(np.unique(episode.actions)) <= {STAY, UP, DOWN}
    again = pong(2, steps=40, seed=5).episode(1)
    np.testing.assert_array_equal(episode.actions, again.actions)


def test_without_the_game_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ale_py" else find(name)
    )
    with pytest.raises(EnvError, match=r"atari needs: pip install 'statewise\[atari\]'"):
        pong(1)
