"""MiniGrid as choices: fields, directions and missions."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from statewise.envs.build import EnvConfig, make_env
from statewise.envs.minigrid import make, register
from statewise.envs.protocol import EnvError, UnsupportedSpaceError
from tests.envs.test_resumable import actions, check_resume, made

MEMORY, FETCH = "MiniGrid-MemoryS7-v0", "MiniGrid-Fetch-5x5-N2-v0"


def test_observations_are_flat_choices_inside_their_space() -> None:
    env = make_env(EnvConfig(id=FETCH, num_envs=2))
    assert env.obs_space["image"] == spaces.MultiDiscrete([11, 6, 4] * 49)
    assert env.obs_space["direction"] == spaces.Discrete(4)
    assert env.obs_space["mission"] == spaces.MultiDiscrete([5, 6, 2])
    obs, _ = env.reset(0)
    for t in range(20):
        for key, space in env.obs_space.items():
            assert all(space.contains(row) for row in obs[key]), key
        obs = env.step(actions(env, t)).obs


def test_a_mission_is_the_choice_of_its_words_and_the_grid_is_theirs() -> None:
    register()
    ours, theirs = make(FETCH), gymnasium.make(FETCH, disable_env_checker=True)
    words = theirs.observation_space["mission"].ordered_placeholders
    seen = set()
    for seed in range(6):
        (obs, _), (raw, _) = ours.reset(seed=seed), theirs.reset(seed=seed)
        said = [place[i] for place, i in zip(words, obs["mission"], strict=True)]
        assert raw["mission"] == "{} {} {}".format(*said)
        assert np.array_equal(obs["image"], raw["image"])
        assert obs["direction"] == raw["direction"]
        seen.add(raw["mission"])
    assert len(seen) > 2


def test_a_mission_without_a_choice_is_left_out() -> None:
    assert set(make_env(EnvConfig(id=MEMORY, num_envs=1)).obs_space) == {"image", "direction"}


def test_other_words_in_a_mission_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    env = make(FETCH)
    monkeypatch.setattr(env, "_table", {})
    with pytest.raises(EnvError, match="expected a mission of the task's own words, got '"):
        env.reset(seed=0)


def test_sentences_are_refused() -> None:
    register()
    with pytest.raises(UnsupportedSpaceError, match="made from lists of words, got BabyAI"):
        make("BabyAI-GoToObj-v0")


def test_resume_is_exact_around_an_episode_end() -> None:
    check_resume(made(MEMORY, kwargs={"max_steps": 6}), range(5, 7))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id": "MiniGrid-Memory-v0"}, "did you mean .*MiniGrid-Memory"),
        ({"id": MEMORY, "kwargs": {"wings": 2}}, "cannot be made with"),
        ({"id": "MiniGrid-WFC-MazeSimple-v0"}, "needs .*SimpleMaze.png, which minigrid lacks"),
    ],
)
def test_mistakes_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make_env(EnvConfig(num_envs=1, **settings)).reset(0)
