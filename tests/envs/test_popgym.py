"""The real popgym through the adapter: spaces, exact resume, and our RepeatPrevious beside it."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from statewise.envs.build import EnvConfig, make_env
from tests.envs.test_resumable import actions, check_resume, made, play

pytest.importorskip("popgym")


@pytest.mark.parametrize(
    ("env_id", "obs", "action"),
    [
        ("RepeatPreviousEasy", {"obs": spaces.Discrete(4)}, spaces.Discrete(4)),
        ("AutoencodeEasy", {"0": spaces.Discrete(2), "1": spaces.Discrete(4)}, spaces.Discrete(4)),
        ("BattleshipEasy", {"obs": spaces.Discrete(2)}, spaces.MultiDiscrete([8, 8])),
        ("MineSweeperEasy", {"obs": spaces.Discrete(3)}, spaces.MultiDiscrete([4, 4])),
        ("CountRecallEasy", {"obs": spaces.MultiDiscrete([2, 2])}, spaces.Discrete(27)),
    ],
)
def test_observations_are_flat_and_inside_their_space(
    env_id: str, obs: dict[str, spaces.Space], action: spaces.Space
) -> None:
    env = make_env(
        EnvConfig(id=f"popgym-{env_id}-v0", num_envs=2, inputs=("previous_action", "first_step"))
    )
    assert {key: env.obs_space[key] for key in obs} == obs
    assert set(env.obs_space) == {*obs, "previous_action", "first_step"}
    assert env.action_space == action
    assert env.resume == "exact"
    current, _ = env.reset(0)
    for t in range(60):
        for key, space in env.obs_space.items():
            assert all(space.contains(row) for row in current[key]), key
        current = env.step(actions(env, t)).obs


# every source of randomness in popgym: decks, card boards, payouts, noise, ships, mines
@pytest.mark.parametrize(
    ("env_id", "stop"),
    [
        ("RepeatPreviousEasy", 50),
        ("AutoencodeEasy", 102),
        ("CountRecallEasy", 50),
        ("ConcentrationEasy", 103),
        ("HigherLowerEasy", 50),
        ("MultiarmedBanditEasy", 199),
        ("NoisyPositionOnlyCartPoleEasy", 12),
        ("NoisyPositionOnlyPendulumEasy", 199),
        ("BattleshipEasy", 63),
        ("MineSweeperEasy", 3),
    ],
)
def test_resume_is_exact_around_an_episode_end(env_id: str, stop: int) -> None:
    make = made(f"popgym-{env_id}-v0")
    saving, straight = make(), make()
    saving.reset(5)
    straight.reset(5)
    rows = play(straight, 0, stop + 8)
    assert any(any(row["terminated"] + row["truncated"]) for row in rows)
    first = max(stop - 5, 0)
    play(saving, 0, first)
    resumed = make()
    for begin in range(first, stop + 4):
        resumed.load_state_dict(saving.state_dict())
        assert play(resumed, begin, stop + 8) == rows[begin:]
        play(saving, begin, begin + 1)


def test_resume_is_exact_at_every_row_of_popgym() -> None:
    check_resume(made("popgym-RepeatPreviousEasy-v0"), range(110))


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [("Easy", {}), ("Medium", {"decks": 2, "k": 32}), ("Hard", {"decks": 3, "k": 64})],
)
def test_our_repeat_previous_deals_and_pays_as_popgym(name: str, kwargs: dict[str, Any]) -> None:
    theirs = make_env(EnvConfig(id=f"popgym-RepeatPrevious{name}-v0", num_envs=3))
    ours = make_env(EnvConfig(id="statewise/RepeatPrevious-v0", num_envs=3, kwargs=kwargs))
    assert np.array_equal(theirs.reset(7)[0]["obs"], ours.reset(7)[0]["obs"])
    for t in range(330):
        expected, found = theirs.step(actions(theirs, t)), ours.step(actions(ours, t))
        assert np.array_equal(expected.obs["obs"], found.obs["obs"])
        assert np.array_equal(expected.reward, found.reward)
        assert np.array_equal(expected.terminated, found.terminated)
        assert np.array_equal(expected.valid, found.valid)


def test_popgym_is_registered_by_its_prefix() -> None:
    make_env(EnvConfig(id="popgym-RepeatFirstEasy-v0", num_envs=1)).close()
    assert "popgym-RepeatFirstEasy-v0" in gymnasium.registry
