"""dm_env in general: specs become spaces, episodes begin from seeds; bsuite through it."""

import importlib.util
from typing import Any

import bsuite
import dm_env
import numpy as np
import pytest
from bsuite import sweep
from dm_env import specs
from gymnasium import spaces
from gymnasium.utils.seeding import np_random

from statewise.envs.build import EnvConfig, make_env
from statewise.envs.dm_env import DmEnv, space_of
from statewise.envs.protocol import EnvError
from tests.envs.test_resumable import check_resume, made


class Toy(dm_env.Environment):
    """Two steps, then an end with a discount; shows its seed."""

    def __init__(self, seed: int, discount: float = 0.0) -> None:
        self.seed, self.discount, self.closed, self.taken = seed, discount, False, []

    def observation_spec(self) -> Any:
        pixels = specs.BoundedArray((2, 2, 3), np.uint8, 0, 255)
        return {"seed": specs.Array((), np.float64), "both": [pixels, specs.DiscreteArray(4)]}

    def action_spec(self) -> Any:
        return specs.BoundedArray((2,), np.float64, [-1, 0], 1)

    def _seen(self) -> Any:
        return {"seed": self.seed, "both": [np.full((2, 2, 3), 7, np.uint8), 3]}

    def reset(self) -> dm_env.TimeStep:
        self.taken = []
        return dm_env.restart(self._seen())

    def step(self, action: Any) -> dm_env.TimeStep:
        self.taken.append(action)
        if len(self.taken) < 2:
            return dm_env.transition(1.5, self._seen())
        return dm_env.TimeStep(dm_env.StepType.LAST, 2.0, self.discount, self._seen())

    def close(self) -> None:
        self.closed = True


def test_specs_become_spaces_and_values_fit_them() -> None:
    env = DmEnv("toy", Toy)
    assert env.observation_space == spaces.Dict(
        {
            "seed": spaces.Box(-np.inf, np.inf, (1,)),
            "both": spaces.Tuple([spaces.Box(0, 255, (2, 2, 3), np.uint8), spaces.Discrete(4)]),
        }
    )
    assert env.action_space == spaces.Box(np.float32([-1, 0]), np.float32([1, 1]))
    assert env.observation_space.contains(env.reset(seed=0)[0])
    assert space_of(specs.Array((3,), np.int32)) == spaces.Box(-np.inf, np.inf, (3,))


def test_each_episode_begins_with_a_seed_of_the_generator_and_closes_the_one_before() -> None:
    begun: list[Toy] = []
    env = DmEnv("toy", lambda seed: begun.append(Toy(seed)) or begun[-1])
    draws, _ = np_random(4)
    seeds = [int(draws.integers(2**32)) for _ in range(2)]
    for options in ({"seed": 4}, {}):
        env.reset(**options)
    assert [one.seed for one in begun] == [0, *seeds]
    assert [one.closed for one in begun] == [True, True, False]


@pytest.mark.parametrize(("discount", "ends"), [(0.0, (True, False)), (0.5, (False, True))])
def test_rewards_of_a_repeated_action_add_up_to_the_end(
    discount: float, ends: tuple[bool, bool]
) -> None:
    env = DmEnv("toy", lambda seed: Toy(seed, discount), action_repeat=3)
    env.reset(seed=0)
    _, reward, *flags, _ = env.step(np.ones(2, np.float32))
    assert (reward, tuple(flags)) == (3.5, ends)
    assert [one.dtype for one in env._env.taken] == [np.float64] * 2


# ---------------------------------------------------------------- bsuite


def test_memory_length_is_that_of_bsuite() -> None:
    env = make_env(EnvConfig(id="bsuite:memory_len/2", num_envs=1))
    theirs = bsuite.load("memory_len", sweep.SETTINGS["memory_len/2"])
    theirs._rng = np.random.RandomState([int(np_random(6)[0].integers(2**32)), 0])
    now, (obs, _) = theirs.reset(), env.reset(6)
    for t in range(4):
        assert np.array_equal(obs["obs"][0], now.observation)
        now, arrived = theirs.step(t % 2), env.step(np.array([t % 2]))
        assert arrived.reward[0] == now.reward
        assert arrived.terminated[0] == now.last()
        obs = arrived.obs
    assert now.last()


@pytest.mark.parametrize(
    ("name", "kwargs", "stop"),
    [
        ("memory_len/1", {}, 3),
        ("catch_noise/1", {}, 9),
        ("deep_sea_stochastic/0", {"size": 4}, 4),
        ("umbrella_length/0", {}, 2),
        ("catch_scale/0", {}, 9),
        ("mountain_car/0", {"max_steps": 5}, 5),
        ("discounting_chain/0", {}, 100),
        ("bandit_noise/0", {}, 1),
    ],
)
def test_resume_is_exact_around_an_episode_end(name: str, kwargs: Any, stop: int) -> None:
    check_resume(made(f"bsuite:{name}", kwargs=kwargs), range(stop - 1, stop + 1))


def test_every_setting_of_the_sweeps_has_an_id() -> None:
    with pytest.raises(EnvError, match=r"did you mean .*bsuite:memory_len/22"):
        make_env(EnvConfig(id="bsuite:memory_len/23"))


def test_missing_digits_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> None:
        raise FileNotFoundError(2, "No such file or directory", "/tmp/mnist/x")

    monkeypatch.setattr(bsuite, "load", load)
    with pytest.raises(
        EnvError, match=r"bsuite:mnist/0 needs a data set that is missing: .*mnist/x"
    ):
        make_env(EnvConfig(id="bsuite:mnist/0"))


def test_without_bsuite_its_line_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bsuite" else find(name)
    )
    with pytest.raises(EnvError, match=r"^bsuite needs: pip install 'statewise\[bsuite\]'"):
        make_env(EnvConfig(id="bsuite:memory_len/0"))
