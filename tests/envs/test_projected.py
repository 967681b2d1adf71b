"""Tasks behind random projections: what is drawn when, and that they are the tasks."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from statewise.envs.build import EnvConfig, make_env
from statewise.envs.projected import REWARD_SCALES, SUITES, Projected, make
from statewise.envs.protocol import EnvError
from statewise.envs.trials import TrialConfig
from tests.envs.test_trials import plain


def maps(env: Projected) -> tuple[Any, Any, Any]:
    return env._env.spec.id, env._obs_map.tolist(), env._action_map.tolist()  # type: ignore[union-attr]


@pytest.mark.parametrize("name", REWARD_SCALES)
def test_behind_the_projections_is_the_task(name: str) -> None:
    env, task = make(f"projected/{name}"), gymnasium.make(name)
    env.reset(seed=3)
    rng = np.random.default_rng(0)
    env.np_random, env.new_trial = np.random.default_rng(5), False
    seen, _ = env.reset()
    obs, _ = task.reset(seed=int(np.random.default_rng(5).integers(2**31)))
    assert seen.shape == (8,)
    _, obs_map, action_map = maps(env)
    for _ in range(12):
        assert np.allclose(seen, np.array(obs_map) @ obs, rtol=1e-5, atol=1e-5)
        action = rng.uniform(-1, 1, 2)
        mixed = np.array(action_map) @ action
        chosen: Any = int(np.argmax(mixed))
        if isinstance(task.action_space, gymnasium.spaces.Box):
            high = task.action_space.high
            chosen = np.clip(mixed * high, -high, high).astype(np.float32)
        seen, reward, *ends, _ = env.step(action)
        obs, expected, *task_ends, _ = task.step(chosen)
        assert reward == pytest.approx(REWARD_SCALES[name] * float(expected), rel=1e-6)
        assert ends == task_ends
        if any(ends):
            break


def test_a_trial_draws_its_task_and_projections_once() -> None:
    env = make("projected/classic", tasks="train")
    env.reset(seed=0)
    drawn = []
    for episode in range(24):
        env.new_trial = episode % 3 == 0
        env.reset()
        drawn.append(maps(env))
    assert all(drawn[i] == drawn[i - i % 3] for i in range(24))
    assert len({str(one) for one in drawn}) == 8
    assert {one[0] for one in drawn} == set(SUITES["classic"].train)


def test_the_parts_of_a_suite_share_no_task() -> None:
    suite = SUITES["classic"]
    assert not set(suite.train) & set(suite.held_out)
    assert set(suite.tasks("all")) == set(REWARD_SCALES)
    env = make("projected/classic", tasks="held_out")
    env.reset(seed=0)
    assert maps(env)[0] == "Acrobot-v1"
    with pytest.raises(EnvError, match="expected tasks to be one of"):
        make("projected/classic", tasks="test")  # type: ignore[arg-type]
    with pytest.raises(EnvError, match="expected no tasks for one task"):
        make("projected/Acrobot-v1", tasks="train")


def test_projections_have_unit_gain_on_average() -> None:
    env = make("projected/Acrobot-v1")
    drawn = []
    for seed in range(150):
        env.reset(seed=seed)
        drawn.append((np.array(maps(env)[1]), np.array(maps(env)[2])))
    for part, width in ((0, 6), (1, 2)):
        squares = np.concatenate([one[part].ravel() for one in drawn]) ** 2
        assert abs(squares.mean() - 1 / width) < 4 * squares.std() / np.sqrt(squares.size)


def test_a_run_behind_projections_resumes_within_its_trial() -> None:
    config = EnvConfig(
        id="projected/classic", num_envs=2, autoreset="same_step", trial=TrialConfig(episodes=2)
    )
    env, other = make_env(config), make_env(config)
    env.reset(1)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (70, 2, 2)).astype(np.float32)
    for action in actions[:40]:
        env.step(action)
    other.load_state_dict(env.state_dict())
    for action in actions[40:]:
        assert plain(env.step(action)) == plain(other.step(action))
