"""Previous action, previous reward and first-step flag against a plain loop over episodes."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from statewise.envs.build import EnvConfig, make_env, wrap_single
from statewise.envs.previous import PreviousInputs
from statewise.envs.protocol import Arrived, Bools, EnvError, Obs, VectorEnv
from statewise.envs.vector import GymnasiumVectorEnv
from tests.envs.toys import CountingEnv, NativeCounting, rollout

INPUTS = ("previous_action", "previous_reward", "first_step")


def make(kind: str) -> VectorEnv:
    how, _, mode = kind.partition(" ")
    config = EnvConfig(
        id="toy", num_envs=3, vectorization=how, autoreset=mode or "next_step", inputs=INPUTS
    )
    return make_env(config, CountingEnv)


@pytest.mark.parametrize("kind", ["sync", "sync same_step", "async"])
def test_inputs_equal_a_plain_loop_over_episodes(kind: str) -> None:
    env = make(kind)
    rows = rollout(env, 40, seed=9)
    env.close()
    for index in range(3):
        came = (np.zeros(3), 0.0, 1.0)
        for obs, is_first, action, arrived in rows:
            if is_first[index]:
                came = (np.zeros(3), 0.0, 1.0)
            shown = tuple(obs[name][index] for name in INPUTS)
            assert np.array_equal(shown[0], came[0])
            assert (shown[1].item(), shown[2].item()) == came[1:]
            if arrived.valid[index]:
                came = (np.eye(3)[action[index]], float(arrived.reward[index]), 0.0)
            over = arrived.terminated[index] or arrived.truncated[index]
            if over and arrived.final_obs is not None:
                final = tuple(arrived.final_obs[name][index] for name in INPUTS)
                assert np.array_equal(final[0], came[0])
                assert (final[1].item(), final[2].item()) == came[1:]


@pytest.mark.parametrize("kind", ["sync", "sync same_step"])
def test_the_single_wrapper_shows_what_the_vector_shows(kind: str) -> None:
    rows = rollout(make(kind), 30, seed=9)
    single = wrap_single(CountingEnv(), INPUTS)
    expected, _ = single.reset(seed=9)
    for obs, _, action, arrived in rows:
        assert {k: v[0].tolist() for k, v in obs.items()} == {
            k: v.tolist() for k, v in expected.items()
        }
        if not arrived.valid[0]:
            expected, _ = single.reset()
            continue
        expected, reward, terminated, truncated, _ = single.step(action[0])
        assert single.observation_space.contains(expected)
        assert (reward, terminated, truncated) == (
            arrived.reward[0], arrived.terminated[0], arrived.truncated[0]
        )  # fmt: skip
        if (terminated or truncated) and arrived.final_obs is not None:
            final = {k: v[0].tolist() for k, v in arrived.final_obs.items()}
            assert final == {k: v.tolist() for k, v in expected.items()}
            expected, _ = single.reset()


def test_vector_and_single_declare_the_same_spaces() -> None:
    vector, single = make("sync"), wrap_single(CountingEnv(), INPUTS)
    assert vector.obs_space == single.observation_space
    assert vector.action_space == single.action_space == spaces.Discrete(3)
    flat = wrap_single(CountingEnv())
    assert list(flat.observation_space) == ["code.0", "code.1", "position"]
    assert flat.observation_space.contains(flat.reset(seed=0)[0])


def test_continuous_actions_are_shown_clipped() -> None:
    config = EnvConfig(id="Pendulum-v1", num_envs=1, inputs=("previous_action",))
    env = make_env(config)
    env.reset(0)
    arrived = env.step(np.array([[7.0]], dtype=np.float32))
    assert arrived.obs["previous_action"].tolist() == [[2.0]]
    single = wrap_single(CountingEnv(), ("first_step",))
    assert list(single.observation_space)[-1] == "first_step"


def test_the_single_wrapper_clips_what_the_environment_gets() -> None:
    pendulum = make_env(EnvConfig(id="Pendulum-v1", num_envs=1, inputs=INPUTS))
    pendulum.reset(3)
    arrived = pendulum.step(np.array([[-9.0]], dtype=np.float32))
    single = wrap_single(gymnasium.make("Pendulum-v1"), INPUTS)
    single.reset(seed=3)
    obs, *_ = single.step(np.array([-9.0], dtype=np.float32))
    assert {k: v.tolist() for k, v in obs.items()} == {
        k: v[0].tolist() for k, v in arrived.obs.items()
    }


def test_an_observation_of_the_same_name_is_refused() -> None:
    inner = make("sync")
    with pytest.raises(EnvError, match="named 'first_step'"):
        PreviousInputs(inner, ("first_step",))


class Trial:
    """Two episodes of one trial: the second begins without a reset of the memory."""

    num_envs, resume = 1, "episode"
    obs_space = spaces.Dict(obs=spaces.Discrete(9))
    action_space: spaces.Space[Any] = spaces.Discrete(2)

    def __init__(self) -> None:
        self._t = 0

    def reset(self, seed: int | None = None) -> tuple[Obs, Bools]:
        return {"obs": np.zeros(1, np.int64)}, np.ones(1, dtype=bool)

    def step(self, action: Any) -> Arrived:
        self._t += 1
        no, yes = np.zeros(1, dtype=bool), np.ones(1, dtype=bool)
        ended, ignored = self._t == 1, self._t == 2
        return Arrived(
            obs={"obs": np.array([self._t])},
            is_first=yes if ignored else no,
            reset=no,
            reward=np.array([0.0 if ignored else 5.0], dtype=np.float32),
            terminated=yes if ended else no,
            truncated=no,
            valid=no if ignored else yes,
            final_obs=None,
        )

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> tuple[Obs, Bools]:
        return self.reset()

    def close(self) -> None:
        return


def test_inputs_cross_the_episode_ends_of_a_trial() -> None:
    env = PreviousInputs(Trial(), INPUTS)
    env.reset()
    final = env.step(np.array([1]))
    second = env.step(np.array([0]))  # ignored: row of the final observation
    for arrived in (final, second):
        assert arrived.obs["previous_action"].tolist() == [[0, 1]]
        assert arrived.obs["previous_reward"].tolist() == [[5]]
    assert final.obs["first_step"].item() == 0
    assert second.obs["first_step"].item() == 1


def test_native_environments_take_inputs_too() -> None:
    env = PreviousInputs(GymnasiumVectorEnv(NativeCounting(2)), INPUTS)
    for obs, is_first, _, _ in rollout(env, 15, seed=1):
        assert obs["first_step"][:, 0].tolist() == is_first.tolist()
        assert not obs["previous_reward"][is_first].any()  # NativeCounting's is stale there
