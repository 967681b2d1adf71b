"""Every backend and auto-reset mode gives the same transitions; broken environments are named."""

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from statewise.envs.build import EnvConfig, make_env
from statewise.envs.protocol import EnvError, VectorEnv
from statewise.envs.vector import GymnasiumVectorEnv
from tests.envs.toys import CountingEnv, NativeCounting, NativeSameStep, rollout, transitions

NUM_ENVS = 3


def make(kind: str) -> VectorEnv:
    if kind == "native":
        return GymnasiumVectorEnv(NativeCounting(NUM_ENVS))
    if kind == "native same_step":
        return GymnasiumVectorEnv(NativeSameStep(NUM_ENVS))
    how, _, mode = kind.partition(" ")
    config = EnvConfig(
        id="toy", num_envs=NUM_ENVS, vectorization=how, autoreset=mode or "next_step"
    )
    return make_env(config, CountingEnv)


def expected(env_index: int, seed: int, number: int) -> list[dict[str, Any]]:
    """Play the single environment in a plain loop and list its transitions."""
    env, found = CountingEnv(), []

    def flat(obs: Any) -> dict[str, Any]:
        return {
            "code.0": obs["code"][0] - 3,
            "code.1": obs["code"][1].tolist(),
            "position": obs["position"].astype(np.float32).tolist(),
        }

    obs, is_first = flat(env.reset(seed=seed + env_index)[0]), True
    while len(found) < number:
        action = (int(np.float32(obs["position"]).sum()) + obs["code.0"]) % 3
        raw, reward, terminated, truncated, _ = env.step(action + 1)
        found.append(
            {
                "obs": obs,
                "is_first": is_first,
                "action": action,
                "reward": reward,
                "terminated": terminated,
                "truncated": truncated,
                "next": flat(raw),
            }
        )
        is_first = terminated or truncated
        obs = flat(env.reset()[0]) if is_first else flat(raw)
    return found


@pytest.fixture(
    params=["sync", "sync same_step", "async", "async same_step", "native", "native same_step"]
)
def env(request: pytest.FixtureRequest) -> Iterator[VectorEnv]:
    made = make(request.param)
    yield made
    made.close()


def test_valid_transitions_and_final_observations_are_those_of_the_plain_loop(
    env: VectorEnv,
) -> None:
    rows = rollout(env, 40, seed=5)
    kinds = set()
    for index in range(NUM_ENVS):
        found = transitions(rows, index)
        assert len(found) >= 26  # at most one row in three is a final observation
        assert found == expected(index, 5, len(found))
        kinds |= {(one["terminated"], one["truncated"]) for one in found}
    assert kinds == {(False, False), (True, False), (False, True)}


def test_reset_is_where_episodes_begin_and_flags_are_separate_arrays(env: VectorEnv) -> None:
    for _, _, _, arrived in rollout(env, 12, seed=0):
        assert np.array_equal(arrived.reset, arrived.is_first)
        assert not np.shares_memory(arrived.reset, arrived.is_first)
        assert arrived.reward.dtype == np.float32


def test_returned_arrays_are_never_written_again(env: VectorEnv) -> None:
    rows = rollout(env, 3, seed=0)
    kept = [arrived.obs["position"].copy() for _, _, _, arrived in rows]
    env.step(np.zeros(NUM_ENVS, dtype=np.int64))
    for before, (_, _, _, arrived) in zip(kept, rows, strict=True):
        assert np.array_equal(before, arrived.obs["position"])


def test_next_step_marks_the_row_whose_action_was_ignored() -> None:
    rows = rollout(make("sync"), 30, seed=2)
    over = np.zeros(NUM_ENVS, dtype=bool)
    for _, _, _, arrived in rows:
        assert arrived.final_obs is None
        assert np.array_equal(arrived.valid, ~over)
        assert np.array_equal(arrived.is_first, over)
        over = arrived.terminated | arrived.truncated


def test_same_step_rows_are_all_valid() -> None:
    for _, _, _, arrived in rollout(make("sync same_step"), 30, seed=2):
        ended = arrived.terminated | arrived.truncated
        assert arrived.valid.all()
        assert np.array_equal(arrived.is_first, ended)
        assert (arrived.final_obs is not None) == ended.any()


def test_making_same_step_environments_leaves_others_of_the_class_alone() -> None:
    first = make("sync")
    make("sync same_step")
    assert not rollout(first, 10, seed=0)[-1][3].final_obs
    assert "autoreset_mode" not in CountingEnv.metadata


class Scripted(gymnasium.Env[Any, Any]):
    """Returns the observations and rewards it is given; records its actions."""

    def __init__(self, space: spaces.Space[Any], obs: list[Any], reward: list[float]) -> None:
        self.observation_space = space
        self.action_space = spaces.Box(-1, 1, (1,))
        self._obs, self._reward, self.actions = obs, reward, []

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self._obs[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action.tolist())
        t = len(self.actions)
        return self._obs[t], self._reward[t], False, False, {}


def scripted(obs: list[float], reward: list[float]) -> VectorEnv:
    box = spaces.Dict(x=spaces.Box(-9, 9, (1,)))
    good = [{"x": np.zeros(1, np.float32)}] * len(obs)
    bad = [{"x": np.array([value], np.float32)} for value in obs]
    envs = [Scripted(box, good, [0.0] * len(obs)), Scripted(box, bad, reward)]
    return GymnasiumVectorEnv(SyncVectorEnv([lambda e=e: e for e in envs]))


@pytest.mark.parametrize(
    ("obs", "reward", "named"),
    [
        ([0, 0, np.nan], [0, 0, 0], "got NaN in 'x' of environment 1 at step 2"),
        ([0, -np.inf, 0], [0, 0, 0], "got -inf in 'x' of environment 1 at step 1"),
        ([0, 0, 0], [0, np.nan, 0], "got NaN in reward of environment 1 at step 1"),
    ],
    ids=["nan", "inf", "reward"],
)
def test_values_that_are_not_finite_are_named(
    obs: list[float], reward: list[float], named: str
) -> None:
    env = scripted(obs, reward)
    env.reset(0)
    with pytest.raises(EnvError, match=named):  # noqa: PT012 - the step is part of the claim
        for _ in range(2):
            env.step(np.zeros((2, 1), dtype=np.float32))


def test_a_first_observation_that_is_not_finite_is_named() -> None:
    with pytest.raises(EnvError, match="environment 1 at step 0"):
        scripted([np.nan], [0]).reset(0)


def test_continuous_actions_are_clipped() -> None:
    single = Scripted(spaces.Discrete(1), [0] * 3, [0.0] * 3)
    env = GymnasiumVectorEnv(SyncVectorEnv([lambda: single]))
    env.reset(0)
    env.step(np.array([[3.0]]))
    env.step(np.array([[-0.25]]))
    assert single.actions == [[1.0], [-0.25]]


def test_disabled_autoreset_is_refused() -> None:
    vec = SyncVectorEnv([CountingEnv], autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(EnvError, match=r"NEXT_STEP or SAME_STEP, got .*DISABLED"):
        GymnasiumVectorEnv(vec)


def test_stepping_before_a_reset_and_wrong_shapes_are_refused() -> None:
    env = make("sync")
    with pytest.raises(EnvError, match="call reset first"):
        env.step(np.zeros(NUM_ENVS, dtype=np.int64))
    with pytest.raises(EnvError, match="call reset first"):
        env.state_dict()
    env.reset(0)
    with pytest.raises(EnvError, match=r"actions of shape \(3,\), got \(2,\)"):
        env.step(np.zeros(2, dtype=np.int64))
