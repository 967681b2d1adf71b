"""Observations of which a part is hidden: what stays, in vectors, alone and at final rows."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from statewise.envs.build import EnvConfig, make_env, make_single, wrap_like
from statewise.envs.protocol import EnvError

KEEP = ("obs[0:2]",)


def played(autoreset: str, keep: tuple[str, ...]) -> list[Any]:
    config = EnvConfig(id="Pendulum-v1", num_envs=2, autoreset=autoreset, keep=keep,
                       kwargs={"max_episode_steps": 3})  # type: ignore[arg-type]  # fmt: skip
    env = make_env(config)
    rows = [env.reset(5)[0]["obs"]]
    for _ in range(7):
        arrived = env.step(np.ones((2, 1), np.float32))
        rows.append(arrived.obs["obs"])
        if arrived.final_obs is not None:
            rows.append(arrived.final_obs["obs"])
    assert env.obs_space["obs"].shape == rows[0].shape[1:]
    env.close()
    return rows


@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
def test_a_range_of_numbers_is_what_is_left_of_every_row(autoreset: str) -> None:
    all_rows, some = played(autoreset, ()), played(autoreset, KEEP)
    assert len(all_rows) == len(some) == (8 if autoreset == "next_step" else 10)
    for whole, part in zip(all_rows, some, strict=True):
        assert np.array_equal(whole[:, :2], part)
        assert part.flags["C_CONTIGUOUS"]


def test_a_single_environment_sees_what_the_vector_sees_and_resumes() -> None:
    config = EnvConfig(id="Pendulum-v1", num_envs=1, keep=KEEP, inputs=("previous_action",))
    vector, single = make_env(config), make_single(config)
    own = wrap_like(config, gymnasium.make("Pendulum-v1"))
    assert vector.obs_space == single.observation_space == own.observation_space
    (many, _), (one, _), (mine, _) = vector.reset(3), single.reset(seed=3), own.reset(seed=3)
    for _ in range(3):
        for key in many:
            assert np.array_equal(many[key][0], one[key])
            assert np.array_equal(one[key], mine[key])
        action = np.array([0.5], np.float32)
        many, one, mine = vector.step(action[None]).obs, single.step(action)[0], own.step(action)[0]
    again = make_env(config)
    resumed, _ = again.load_state_dict(vector.state_dict())
    assert np.array_equal(resumed["obs"], many["obs"])


class TwoParts(gymnasium.Env[Any, Any]):
    observation_space = gymnasium.spaces.Dict(
        {
            "position": gymnasium.spaces.Box(-1, 1, (3,)),
            "velocity": gymnasium.spaces.Box(-9, 9, (3,)),
            "mode": gymnasium.spaces.Discrete(4),
        }
    )
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


def test_entries_are_kept_by_name() -> None:
    config = EnvConfig(id="own", num_envs=2, keep=("mode", "position[1:3]"))
    env = make_env(config, TwoParts)
    assert list(env.obs_space.spaces) == ["mode", "position"]
    assert env.obs_space["position"].shape == (2,)
    obs, _ = env.reset(0)
    assert env.obs_space.contains({key: values[0] for key, values in obs.items()})


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (("speed",), "expected entries of mode, position, velocity, got 'speed'"),
        (("position[1:4]",), "expected a range within a vector, got 1:4 of 'position'"),
        (("mode[0:1]",), "expected a range within a vector"),
        (("position[0:1]", "position[2:3]"), "expected every entry once"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_one_line(keep: tuple[str, ...], message: str) -> None:
    for make in (make_env, make_single):
        with pytest.raises(EnvError, match=message.replace("[", r"\[")) as caught:
            make(EnvConfig(id="own", num_envs=1, keep=keep), TwoParts)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["obs[3:3]", "obs[a:b]", "obs[0:2", ""])
def test_a_word_that_names_nothing_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"keep: expected names of observations"):
        EnvConfig(id="x", keep=(word,))
