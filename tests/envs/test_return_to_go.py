"""The return still to be got, and stacked environments, against plain loops over episodes."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from statewise.envs.build import EnvConfig, make_env, wrap_single
from statewise.envs.previous import PreviousInputs
from statewise.envs.protocol import Arrived, EnvError, VectorEnv
from statewise.envs.return_to_go import ReturnToGo, ReturnToGoWrapper, RewardTime
from statewise.envs.stacked import Stacked
from statewise.envs.vector import GymnasiumVectorEnv
from tests.envs.toys import CountingEnv, NativeCounting, rollout

TARGETS = (100.0, -3.5, 0.0)


def make(mode: str = "next_step", num_envs: int = 3) -> VectorEnv:
    config = EnvConfig(id="toy", num_envs=num_envs, vectorization="sync", autoreset=mode)
    return make_env(config, CountingEnv)


def told(mode: str = "next_step", reward: RewardTime = "as_is") -> VectorEnv:
    return ReturnToGo(make(mode), TARGETS, reward=reward)


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_what_is_left_equals_a_plain_loop_over_episodes(mode: str) -> None:
    rows = rollout(told(mode), 40, seed=9)
    num_ends = 0
    for index, target in enumerate(TARGETS):
        left = target
        for obs, is_first, _, arrived in rows:
            if is_first[index]:
                left = target
            assert obs["return_to_go"][index].tolist() == [np.float32(left)]
            if arrived.valid[index]:
                left -= float(arrived.reward[index])
            over = arrived.terminated[index] or arrived.truncated[index]
            num_ends += over
            if over and mode == "same_step":
                assert arrived.final_obs["return_to_go"][index].tolist() == [np.float32(left)]
            elif over:  # the final observation is a row of its own, with what was left
                assert arrived.obs["return_to_go"][index].tolist() == [np.float32(left)]
    assert num_ends > 20


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_with_delayed_rewards_the_whole_target_is_left_until_the_episode_has_ended(
    mode: str,
) -> None:
    rows = rollout(told(mode, "delayed"), 40, seed=9)
    num_ends = 0
    for index, target in enumerate(TARGETS):
        got = 0.0
        for obs, is_first, _, arrived in rows:
            if arrived.valid[index]:
                assert obs["return_to_go"][index].tolist() == [np.float32(target)]
            got = (0.0 if is_first[index] else got) + float(arrived.reward[index])
            if arrived.terminated[index] or arrived.truncated[index]:
                final = arrived.obs if mode == "next_step" else arrived.final_obs
                assert final["return_to_go"][index].tolist() == [np.float32(target - got)]
                num_ends += 1
    assert num_ends > 20


@pytest.mark.parametrize("reward", ["as_is", "delayed"])
@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_the_single_wrapper_shows_what_the_vector_shows(mode: str, reward: RewardTime) -> None:
    rows = rollout(told(mode, reward), 30, seed=9)
    single = ReturnToGoWrapper(wrap_single(CountingEnv()), TARGETS[0], reward=reward)
    expected, _ = single.reset(seed=9)
    for obs, _, action, arrived in rows:
        assert single.observation_space.contains(expected)
        assert {k: v[0].tolist() for k, v in obs.items()} == {
            k: v.tolist() for k, v in expected.items()
        }
        if not arrived.valid[0]:
            expected, _ = single.reset()
            continue
        expected, reward, terminated, truncated, _ = single.step(action[0])
        assert (reward, terminated, truncated) == (
            arrived.reward[0], arrived.terminated[0], arrived.truncated[0]
        )  # fmt: skip
        if (terminated or truncated) and arrived.final_obs is not None:
            final = {k: v[0].tolist() for k, v in arrived.final_obs.items()}
            assert final == {k: v.tolist() for k, v in expected.items()}
            expected, _ = single.reset()


def test_rewards_of_any_fraction_are_summed_alike_in_both_forms() -> None:
    vector = ReturnToGo(make_env(EnvConfig(id="Pendulum-v1", num_envs=1)), [-150.0])
    single = ReturnToGoWrapper(wrap_single(gymnasium.make("Pendulum-v1")), -150.0)
    vector.reset(4)
    single.reset(seed=4)
    for t in range(120):
        action = np.array([np.sin(t)], np.float32)
        arrived, obs = vector.step(action[None]), single.step(action)[0]
        assert arrived.obs["return_to_go"][0].tolist() == obs["return_to_go"].tolist()
    assert obs["return_to_go"].item() > 0


@pytest.mark.parametrize("reward", ["as_is", "delayed"])
def test_going_on_from_a_state_shows_the_same(reward: RewardTime) -> None:
    env, other = told(reward=reward), told(reward=reward)
    rollout(env, 13, seed=3)
    state = env.state_dict()
    after = rollout_from(other, 20, state)
    assert after[1:] == go_on(env, 20)
    assert after == rollout_from(env, 20, state)
    assert {len(set(row[0])) for row in after} != {1}


def rollout_from(env: VectorEnv, steps: int, state: dict[str, Any]) -> list[Any]:
    obs, is_first = env.load_state_dict(state)
    return [(obs["return_to_go"][:, 0].tolist(), is_first.tolist()), *go_on(env, steps)]


def go_on(env: VectorEnv, steps: int) -> list[Any]:
    seen = []
    for _ in range(steps):
        arrived = env.step(np.ones(env.num_envs, np.int64))
        seen.append((arrived.obs["return_to_go"][:, 0].tolist(), arrived.is_first.tolist()))
    return seen


class Episodic(GymnasiumVectorEnv):
    """Starts new episodes instead of going on."""

    def __init__(self) -> None:
        super().__init__(NativeCounting(1))
        assert self.resume == "episode"


def test_new_episodes_after_a_resume_ask_for_the_whole_target() -> None:
    env = ReturnToGo(Episodic(), [7.0])
    env.reset(1)
    env.step(np.array([2]))
    obs, is_first = env.load_state_dict(env.state_dict())
    assert is_first.all()
    assert obs["return_to_go"].tolist() == [[7.0]]


class Trial(Episodic):
    """The memory lives on over episodes."""

    def step(self, action: Any) -> Arrived:
        arrived = super().step(action)
        return arrived._replace(reset=np.zeros_like(arrived.reset))


def test_a_trial_asks_for_the_whole_target_in_each_of_its_episodes() -> None:
    for obs, is_first, _, _ in rollout(ReturnToGo(Trial(), [7.0]), 15, seed=1):
        assert (obs["return_to_go"][:, 0] == 7.0).tolist() == is_first.tolist()


def test_vector_and_single_declare_the_same_spaces() -> None:
    single = ReturnToGoWrapper(wrap_single(CountingEnv()), 1.0)
    assert told().obs_space == single.observation_space
    assert list(told().obs_space)[-1] == "return_to_go"
    assert told().action_space == single.action_space


@pytest.mark.parametrize("targets", [(1.0, 2.0), (1.0, 2.0, np.nan), (1.0, np.inf, 2.0), 3.0])
def test_wrong_targets_are_refused(targets: Any) -> None:
    with pytest.raises(EnvError, match="expected 3 finite targets"):
        ReturnToGo(make(), targets)


def test_an_observation_of_the_same_name_is_refused() -> None:
    with pytest.raises(EnvError, match="named 'return_to_go'"):
        ReturnToGo(told(), TARGETS)
    with pytest.raises(EnvError, match="named 'return_to_go'"):
        ReturnToGoWrapper(ReturnToGoWrapper(wrap_single(CountingEnv()), 1.0), 1.0)


def test_a_plain_observation_is_to_be_wrapped_first() -> None:
    with pytest.raises(EnvError, match="wrap_single first"):
        ReturnToGoWrapper(gymnasium.make("CartPole-v1"), 1.0)
    with pytest.raises(EnvError, match="expected 1 finite targets"):
        ReturnToGoWrapper(wrap_single(CountingEnv()), float("nan"))


# --- stacked


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_stacked_environments_are_their_parts_side_by_side(mode: str) -> None:
    stacked = Stacked([make(mode, 2), make(mode, 3)])
    assert stacked.num_envs == 5
    rows = rollout(stacked, 25, seed=11)
    for begin, end in ((0, 2), (2, 5)):
        for whole, part in zip(rows, rollout(make(mode, end - begin), 25, seed=11), strict=True):
            for key, values in part[0].items():
                assert np.array_equal(whole[0][key][begin:end], values), key
            assert np.array_equal(whole[1][begin:end], part[1])
            for name in ("is_first", "reset", "reward", "terminated", "truncated", "valid"):
                found, expected = getattr(whole[3], name), getattr(part[3], name)
                assert np.array_equal(found[begin:end], expected), name
            if part[3].final_obs is not None:
                ended = part[3].terminated | part[3].truncated
                for key, values in part[3].final_obs.items():
                    assert np.array_equal(whole[3].final_obs[key][begin:end][ended], values[ended])


def test_stacked_environments_go_on_from_a_state() -> None:
    env, other = (ReturnToGo(Stacked([make(), make(num_envs=1)]), np.arange(4.0)) for _ in "ab")
    rollout(env, 7, seed=2)
    state = env.state_dict()
    assert rollout_from(env, 12, state) == rollout_from(other, 12, state)


def test_inputs_can_be_added_before_and_after_stacking() -> None:
    inside = Stacked([PreviousInputs(make(), ("previous_action",)) for _ in range(2)])
    outside = PreviousInputs(Stacked([make(), make()]), ("previous_action",))
    pairs = zip(rollout(inside, 20, seed=5), rollout(outside, 20, seed=5), strict=True)
    for (a, *_), (b, *_) in pairs:
        assert all(np.array_equal(a[key], b[key]) for key in b)


def test_environments_of_other_spaces_do_not_stack() -> None:
    with pytest.raises(EnvError, match="at least one"):
        Stacked([])
    other = make_env(EnvConfig(id="CartPole-v1", num_envs=1))
    assert isinstance(other.action_space, spaces.Discrete)
    with pytest.raises(EnvError, match="of the same spaces"):
        Stacked([make(), other])
