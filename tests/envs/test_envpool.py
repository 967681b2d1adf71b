"""envpool through the adapter: its spaces, seeds, and what it is asked wrongly."""

import ctypes.util
import importlib.util
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from statewise.envs.build import EnvConfig, make_env, make_single, steps_together
from statewise.envs.envpool import EnvPool
from statewise.envs.protocol import EnvError
from statewise.envs.single import FirstOf
from tests.envs.test_resumable import actions, play
from tests.envs.toys import NativeCounting, NativeSameStep

ID = "envpool:CartPole-v1"


def config(env_id: str = ID, **settings: Any) -> EnvConfig:
    return EnvConfig(**{"id": env_id, "num_envs": 3} | settings)


def test_spaces_of_all_are_batched_and_floats_without_a_bound_have_none() -> None:
    vec = EnvPool("envpool:WalkerWalk-v1", 3)
    assert vec.single_action_space == spaces.Box(-1, 1, (6,))
    assert vec.action_space.shape == (3, 6)
    assert list(vec.single_observation_space) == ["orientations", "height", "velocity"]
    assert vec.observation_space["velocity"].shape == (3, 9)
    for leaf in vec.single_observation_space.values():
        assert leaf.dtype == np.float32
        assert (leaf.low == -np.inf).all()
        assert (leaf.high == np.inf).all()
    env = make_env(config("envpool:WalkerWalk-v1"))
    for key, values in env.reset(0)[0].items():
        assert values.dtype == np.float32
        assert all(env.obs_space[key].contains(row) for row in values)


def test_environment_i_has_seed_plus_i_and_a_reset_without_one_goes_on() -> None:
    env = make_env(config())
    first, again, other = (env.reset(seed)[0]["obs"] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert np.array_equal(first[1], other[0])
    assert not np.array_equal(env.reset()[0]["obs"], other)


def test_a_resumed_run_begins_other_episodes() -> None:
    env, resumed = make_env(config()), make_env(config())
    first, _ = env.reset(5)
    play(env, 0, 3)
    assert env.resume == "episode"
    obs, is_first = resumed.load_state_dict(env.state_dict())
    assert is_first.all()
    assert not np.array_equal(obs["obs"], first["obs"])


def test_a_single_environment_plays_what_the_first_of_many_plays() -> None:
    env, single = (
        make_env(config(kwargs={"max_episode_steps": 6})),
        make_single(config(kwargs={"max_episode_steps": 6})),
    )
    obs, _ = env.reset(3)
    alone, _ = single.reset(seed=3)
    assert np.array_equal(alone["obs"], obs["obs"][0])
    for t in range(20):
        action = actions(env, t)
        arrived = env.step(action)
        alone, reward, terminated, truncated, _ = single.step(action[0])
        assert np.array_equal(alone["obs"], arrived.obs["obs"][0])
        assert (reward, terminated, truncated) == (
            *(arrived.reward[0], arrived.terminated[0], arrived.truncated[0]),
        )
        if terminated or truncated:
            with pytest.raises(EnvError, match="call reset first"):
                single.step(action[0])
            alone, _ = single.reset()
            following = env.step(action).obs["obs"][0]
            assert np.array_equal(alone["obs"], following)


def test_the_first_of_several_or_of_the_other_auto_reset_is_refused() -> None:
    with pytest.raises(EnvError, match="of one under NEXT_STEP, got 2 under"):
        FirstOf(NativeCounting(2))
    with pytest.raises(EnvError, match=r"got 1 under AutoresetMode\.SAME_STEP"):
        FirstOf(NativeSameStep(1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env_id": "envpool:CartPol-v1"}, r"got 'envpool:CartPol-v1': did you mean .*CartPole-v1"),
        ({"kwargs": {"seed": 3}}, "got seed for envpool:CartPole-v1: leave it out, seeds come"),
        ({"kwargs": {"batch_size": 2}}, "got batch_size"),
        ({"kwargs": {"num_threads": 0}}, "expected num_threads at least 1, got 0"),
        ({"kwargs": {"wings": 2}}, r"CartPole-v1 cannot be made with \{'wings': 2\}"),
        ({"env_id": "envpool:ConnectFour-v1"}, "of one player, got 2 in envpool:ConnectFour-v1"),
        ({"vectorization": "sync"}, "auto or vector_entry_point, got 'sync' for 'envpool:"),
        (
            {"autoreset": "same_step"},
            "got an environment with NEXT_STEP .* env.autoreset next_step",
        ),
    ],
    ids=str,
)
def test_what_envpool_cannot_do_is_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message) as error:
        make_env(config(**settings))
    assert "\n" not in str(error.value)


def test_an_id_that_both_have_can_be_stepped_by_envpool() -> None:
    ours = make_env(config("Acrobot-v1", vectorization="envpool"))
    theirs = make_env(config("envpool:Acrobot-v1"))
    for env in (ours, theirs):
        env.reset(4)
    assert play(ours, 0, 5) == play(theirs, 0, 5)
    with pytest.raises(EnvError, match=r"did you mean .*envpool:Pong-v5"):
        make_env(config("ALE/Pong-v5", vectorization="envpool"))
    with pytest.raises(EnvError, match="a vector entry point, got 'mine'"):
        make_env(config("mine", vectorization="envpool"), lambda: gymnasium.make("CartPole-v1"))


def test_one_environment_of_such_an_id_is_envpools_too() -> None:
    asked = config("CartPole-v1", vectorization="envpool", kwargs={"num_threads": 1})
    many, _ = make_env(asked).reset(7)
    one, _ = make_single(asked).reset(seed=7)
    assert np.array_equal(one["obs"], many["obs"][0])
    theirs, _ = make_single(config("CartPole-v1")).reset(seed=7)
    assert not np.array_equal(one["obs"], theirs["obs"])
    assert steps_together(asked)
    assert not steps_together(config("CartPole-v1"))


def test_reset_options_are_refused() -> None:
    with pytest.raises(EnvError, match="no reset options"):
        EnvPool(ID, 1).reset(options={"reset_mask": np.ones(1, bool)})


def test_without_opengl_pictures_name_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    with pytest.raises(EnvError, match=r"expected libGL to draw envpool:CheetahRun-v1, .* libgl1"):
        make_env(config("envpool:CheetahRun-v1", kwargs={"from_pixels": True}))


def test_without_envpool_its_line_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "envpool" else find(name)
    )
    with pytest.raises(EnvError, match=r"^envpool needs: pip install 'statewise\[envpool\]'"):
        make_env(config())


def test_pictures_are_channel_first_bytes_as_the_encoder_takes_them() -> None:
    kwargs = {"img_height": 24, "img_width": 16, "stack_num": 2}
    env = make_env(config("envpool:Pong-v5", num_envs=1, kwargs=kwargs))
    assert env.obs_space["obs"] == spaces.Box(0, 255, (2, 24, 16), np.uint8)
    assert env.reset(0)[0]["obs"].shape == (1, 2, 24, 16)
    assert isinstance(env.action_space, gymnasium.spaces.Discrete)
