"""A resumed run continues with the observations and rewards of the one that never stopped."""

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from statewise.envs.build import EnvConfig, make_env
from statewise.envs.protocol import EnvError, VectorEnv
from statewise.envs.resumable import ResumableEnv
from statewise.envs.vector import GymnasiumVectorEnv
from tests.envs.toys import CountingEnv, NativeCounting

Maker = Callable[[], VectorEnv]
INPUTS = ("previous_action", "previous_reward", "first_step")


def made(env_id: str, factory: Any = None, **settings: Any) -> Maker:
    config = EnvConfig(id=env_id, num_envs=3, inputs=INPUTS, **settings)
    return lambda: make_env(config, factory)


MAKERS: dict[str, Maker] = {
    "sync": made("toy", CountingEnv),
    "sync same_step": made("toy", CountingEnv, autoreset="same_step"),
    "continuous": made("Pendulum-v1", kwargs={"max_episode_steps": 7}),
    "time limit": made("CartPole-v1", vectorization="sync", kwargs={"max_episode_steps": 6}),
    "memory chain": made("statewise/MemoryChain-v0", kwargs={"length": 3}),
    "t-maze": made("statewise/TMaze-v0", kwargs={"length": 4}),
    "repeat previous": made("statewise/RepeatPrevious-v0"),
    "single task": made("statewise/TMaze-v0", vectorization="sync", kwargs={"length": 4}),
}


def actions(env: VectorEnv, t: int) -> np.ndarray:
    """Return actions that depend on the row number alone."""
    rng = np.random.default_rng(t)
    space = env.action_space
    if isinstance(space, spaces.Discrete):
        return rng.integers(space.n, size=env.num_envs)
    if isinstance(space, spaces.MultiDiscrete):
        return rng.integers(space.nvec, size=(env.num_envs, len(space.nvec)))
    return rng.normal(size=(env.num_envs, *(space.shape or ()))).astype(np.float32)


def play(env: VectorEnv, begin: int, end: int) -> list[dict[str, Any]]:
    rows = []
    for t in range(begin, end):
        row = env.step(actions(env, t))._asdict()
        obs, final = row.pop("obs"), row.pop("final_obs") or {}
        row |= {f"final {key}": values[row["terminated"] | row["truncated"]].tolist()
                for key, values in final.items()}  # fmt: skip
        rows.append({key: np.array(value).tolist() for key, value in (row | obs).items()})
    return rows


def check_resume(make: Maker, stops: range) -> None:
    straight = make()
    straight.reset(11)
    rows = play(straight, 0, stops.stop + 12)
    assert any(any(row["terminated"] + row["truncated"]) for row in rows)
    saving, resumed, again = straight, make(), make()
    saving.reset(11)
    play(saving, 0, stops.start)
    for stop in stops:
        obs, is_first = resumed.load_state_dict(deepcopy(saving.state_dict()))
        # a second stop at the same place, before any step
        again.load_state_dict(deepcopy(resumed.state_dict()))
        if stop:
            before = rows[stop - 1]
            assert is_first.tolist() == before["is_first"]
            assert {key: obs[key].tolist() for key in obs} == {key: before[key] for key in obs}
        assert play(resumed, stop, stop + 12) == rows[stop : stop + 12]
        assert play(again, stop, stop + 12) == rows[stop : stop + 12]
        play(saving, stop, stop + 1)
    for env in (saving, resumed, again):
        env.close()


@pytest.mark.parametrize("name", MAKERS)
def test_resume_is_exact_wherever_the_run_stopped(name: str) -> None:
    # episodes of the toy end within 2 to 5 steps, so the stops are before, at and after ends
    check_resume(MAKERS[name], range(14) if name != "repeat previous" else range(46, 56))


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_resume_is_exact_in_worker_processes(mode: str) -> None:
    make = made("toy", CountingEnv, vectorization="async", autoreset=mode)
    check_resume(make, range(2, 6))


@pytest.mark.parametrize("name", ["memory chain", "sync"])
def test_the_state_is_json_and_arrays(name: str) -> None:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return value.tolist() if isinstance(value, np.ndarray) else value

    env = MAKERS[name]()
    env.reset(3)
    play(env, 0, 3)
    state = plain(env.state_dict())
    assert json.loads(json.dumps(state)) == state


def test_only_the_current_episode_is_recorded() -> None:
    env = ResumableEnv(CountingEnv())
    env.reset(seed=0)
    for _ in range(20):
        _, _, terminated, truncated, _ = env.step(np.int64(1))
        assert len(env.snapshot()["actions"]) <= 5
        if terminated or truncated:
            assert env.snapshot()["ended"]
            env.reset()
            assert len(env.snapshot()["actions"]) == 0


def test_a_caller_may_write_into_what_it_got() -> None:
    env = MAKERS["sync"]()
    obs, _ = env.reset(0)
    before = obs["position"].copy()
    obs["position"][:] = 77
    resumed, _ = env.load_state_dict(env.state_dict())
    assert np.array_equal(resumed["position"], before)


def test_recorded_actions_survive_a_reused_action_array() -> None:
    env = ResumableEnv(gymnasium.make("Pendulum-v1"))
    env.reset(seed=0)
    action = np.array([0.5], dtype=np.float32)
    env.step(action)
    action[:] = -1
    assert env.snapshot()["actions"].tolist() == [[0.5]]


class Elsewhere(gymnasium.Env[Any, Any]):
    """Draws its observations from a generator that nobody can restore."""

    observation_space = spaces.Box(0, 1, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self._hidden = np.random.default_rng()

    def _obs(self) -> np.ndarray:
        return self._hidden.random(1).astype(np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._obs(), 0.0, False, False, {}


def test_randomness_from_elsewhere_is_an_error_of_one_line() -> None:
    env = make_env(EnvConfig(id="elsewhere", num_envs=2), Elsewhere)
    env.reset(0)
    with pytest.raises(EnvError, match="randomness from elsewhere") as error:
        env.load_state_dict(env.state_dict())
    assert "\n" not in str(error.value)


def test_environments_without_a_state_start_new_episodes() -> None:
    def make() -> GymnasiumVectorEnv:
        return GymnasiumVectorEnv(NativeCounting(3))

    env = make()
    assert env.resume == "episode"
    first, _ = env.reset(4)
    for _ in range(3):
        env.step(np.zeros(3, dtype=np.int64))
    state = env.state_dict()
    resumed = [make().load_state_dict(state) for _ in range(2)]
    for obs, is_first in resumed:
        assert is_first.all()
        assert obs["position"].tolist() == resumed[0][0]["position"].tolist()
    assert resumed[0][0]["position"].tolist() != first["position"].tolist()
    env.step(np.zeros(3, dtype=np.int64))
    assert env.state_dict()["seed"] != state["seed"]  # a later stop, other episodes


def test_previous_inputs_are_zero_where_new_episodes_start() -> None:
    config = EnvConfig(id="CartPole-v1", num_envs=2, inputs=("previous_action", "first_step"))
    env = make_env(config)
    env.reset(0)
    env.step(np.ones(2, dtype=np.int64))
    obs, is_first = env.load_state_dict(env.state_dict())
    assert is_first.all()
    assert not obs["previous_action"].any()
    assert obs["first_step"].all()


def test_a_state_of_other_environments_is_refused() -> None:
    env = make_env(EnvConfig(id="toy", num_envs=3), CountingEnv)
    env.reset(0)
    other = make_env(EnvConfig(id="toy", num_envs=2), CountingEnv)
    with pytest.raises(EnvError, match=r"'num_envs': 2.*got.*'num_envs': 3"):
        other.load_state_dict(env.state_dict())


def test_a_snapshot_before_a_reset_is_refused() -> None:
    with pytest.raises(EnvError, match="call reset first"):
        ResumableEnv(CountingEnv()).snapshot()
