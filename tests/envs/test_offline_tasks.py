"""The environments of the analytic data sets: exact rows, best returns, vector and single."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from statewise.envs import tasks
from statewise.envs.build import EnvConfig, make_env
from statewise.envs.protocol import EnvError
from statewise.envs.tasks.delayed_cue import LEFT, RIGHT, WAIT, DelayedCue, DelayedCueVector
from statewise.envs.tasks.double_integrator import (
    DT,
    FORCE,
    STEPS,
    DoubleIntegrator,
    DoubleIntegratorVector,
)
from statewise.envs.tasks.rtg_dial import RtgDial, RtgDialVector

PAIRS: list[Any] = [
    pytest.param(RtgDial, RtgDialVector, {"length": 4}, id="dial"),
    pytest.param(DelayedCue, DelayedCueVector, {"length": 3}, id="cue"),
    pytest.param(DoubleIntegrator, DoubleIntegratorVector, {}, id="integrator"),
]


@pytest.mark.parametrize(("single", "vector", "kwargs"), PAIRS)
def test_the_vector_equals_single_environments_with_their_seeds(
    single: Any, vector: Any, kwargs: dict[str, int]
) -> None:
    several, alone = vector(3, **kwargs), [single(**kwargs) for _ in range(3)]
    batched, _ = several.reset(seed=5)
    rows = [env.reset(seed=5 + i)[0] for i, env in enumerate(alone)]
    several.action_space.seed(0)
    over, ends = False, 0
    for _ in range(110):
        assert np.array_equal(batched, np.stack(rows))
        assert all(several.single_observation_space.contains(row) for row in rows)
        action = several.action_space.sample()
        batched, *found, _ = several.step(action)
        if over:
            rows = [env.reset()[0] for env in alone]
            assert not np.any(found)
            over = False
            continue
        results = [env.step(action[i]) for i, env in enumerate(alone)]
        rows = [result[0] for result in results]
        for number, values in enumerate(found):
            assert values.tolist() == [result[1 + number] for result in results]
        over = bool(found[1].all() or found[2].all())
        ends += over
    assert ends >= 2


def test_the_dial_pays_each_action_once_and_ends_as_terminated() -> None:
    env = RtgDial(length=4)
    rows = [env.reset(seed=0)[0]]
    rewards, ends = [], []
    for action in (0.25, -0.5, 1.5, 1.0):
        obs, reward, terminated, truncated, _ = env.step(np.array([action], np.float32))
        rows.append(obs)
        rewards.append(reward)
        ends.append((terminated, truncated))
    assert np.array(rows).tolist() == [[t / 4, 1] for t in range(5)]
    assert rewards == [0.25, 0, 1, 1]
    assert ends == [(False, False)] * 3 + [(True, False)]


def test_a_policy_that_divides_the_return_to_go_by_the_time_left_gets_what_it_asked_for() -> None:
    env = RtgDial()
    for target in (2.0, 10.0, 17.0):
        obs, _ = env.reset(seed=0)
        left, over = target, False
        while not over:
            action = left / (20 - round(obs[0] * 20))
            obs, reward, over, _, _ = env.step(np.array([action], np.float32))
            left -= reward
        assert left == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("length", [1, 4])
def test_only_the_side_of_the_cue_at_the_last_step_is_paid(length: int) -> None:
    env = DelayedCueVector(2, length=length)
    env.reset(seed=0)
    env.arrays["cue"][:] = -1, 1
    assert env.observe().tolist() == [[-1, 0], [1, 0]]
    for answer, paid in (((LEFT, RIGHT), [1, 1]), ((RIGHT, LEFT), [0, 0]), ((WAIT, WAIT), [0, 0])):
        for t in range(length):
            obs, reward, terminated, _, _ = env.step(np.array(answer))  # too early: nothing
            assert reward.tolist() == [0, 0]
            assert not terminated.any()
            assert obs.tolist() == [[0, float(t == length - 1)]] * 2
        obs, reward, terminated, truncated, _ = env.step(np.array(answer))
        assert reward.tolist() == paid
        assert terminated.all()
        assert not truncated.any()
        assert obs.tolist() == [[0, 0]] * 2
        env.reset()
        env.arrays["cue"][:] = -1, 1


def test_both_cues_come_equally_often() -> None:
    cues = DelayedCueVector(400).reset(seed=0)[0][:, 0]
    assert set(cues) == {-1, 1}
    assert abs(cues.mean()) < 4 / np.sqrt(400)


def test_a_constant_force_moves_the_mass_along_a_parabola() -> None:
    env = DoubleIntegrator()
    start = env.reset(seed=0)[0].astype(np.float64)
    ends, total = [], 0.0
    for t in range(STEPS):
        obs, reward, terminated, truncated, _ = env.step(np.array([9.0], np.float32))
        s = DT * (t + 1)
        exact = [start[0] + start[1] * s + FORCE * s**2 / 2, start[1] + FORCE * s]
        assert np.allclose(obs, exact, rtol=1e-6)  # 9 was clipped to 3
        ends.append((terminated, truncated))
        total += reward
    assert ends == [(False, False)] * (STEPS - 1) + [(False, True)]
    times = DT * np.arange(STEPS)
    places = start[0] + start[1] * times + FORCE * times**2 / 2
    speeds = start[1] + FORCE * times
    assert total == pytest.approx(-(places**2 + 0.1 * speeds**2 + FORCE**2).sum(), rel=1e-5)


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_declared_space_holds_the_farthest_place(sign: int) -> None:
    env = DoubleIntegratorVector(1)
    env.reset(seed=0)
    env.arrays["state"][:] = sign
    for _ in range(STEPS):
        obs = env.step(np.array([[sign * FORCE]]))[0]
    assert env.single_observation_space.contains(obs[0])


@pytest.mark.parametrize("name", ["RtgDial", "DelayedCue", "DoubleIntegrator"])
def test_the_ids_reach_the_vector_environments(name: str) -> None:
    assert f"statewise/{name}-v0" in tasks.TASKS
    env = make_env(EnvConfig(id=f"statewise/{name}-v0", num_envs=2))
    obs, is_first = env.reset(seed=0)
    assert obs["obs"].shape == (2, 2)
    assert is_first.all()
    assert env.resume == "exact"
    env.close()
    single = gymnasium.make(f"statewise/{name}-v0")
    assert single.reset(seed=0)[0].shape == (2,)


@pytest.mark.parametrize("make", [lambda: RtgDial(length=0), lambda: DelayedCue(length=0)])
def test_sizes_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(EnvError, match="expected length >= 1, got 0"):
        make()
