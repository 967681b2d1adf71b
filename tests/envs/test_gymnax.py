"""gymnax through the adapter: memory it shares, resume, and what it is asked wrongly."""

import importlib
import importlib.util
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from statewise.envs.build import EnvConfig, make_env
from statewise.envs.gymnax import Gymnax, compiled
from statewise.envs.jax_vector import to_numpy
from statewise.envs.protocol import EnvError
from tests.envs.test_resumable import check_resume, made

pytestmark = pytest.mark.xdist_group("jax")  # imported and compiled once
jax = pytest.importorskip("jax")

ID = "gymnax:CartPole-v1"
SHORT = {"max_steps_in_episode": 14}  # as in test_identical_transitions.py


def test_results_are_numpy_arrays_over_the_memory_of_jax() -> None:
    vec = Gymnax(ID, 3, **SHORT)
    vec.reset(seed=0)
    outcome, _ = vec._go_on(vec._carry, jax.numpy.zeros(3, int))
    for array in outcome:
        view = to_numpy(array)
        assert view.ctypes.data == array.unsafe_buffer_pointer()
        assert np.array_equal(view, np.asarray(array))


def test_environments_of_equal_settings_share_their_compiled_functions() -> None:
    once, again, longer = Gymnax(ID, 3, **SHORT), Gymnax(ID, 3, **SHORT), Gymnax(ID, 3)
    assert once._go_on is again._go_on
    assert once._go_on is not longer._go_on


def test_a_step_is_compiled_once() -> None:
    vec = Gymnax(ID, 3, **SHORT)
    vec.reset(seed=0)
    for _ in range(3):
        vec.step(np.zeros(3, np.int64))
    assert vec._go_on._cache_size() == 1  # not twice: the numbers of the start have one type


def test_environment_i_has_seed_plus_i_and_a_reset_without_one_goes_on() -> None:
    env = make_env(EnvConfig(id=ID, num_envs=3, kwargs=SHORT))
    first, again, other = (env.reset(seed)[0]["obs"] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert np.array_equal(first[1], other[0])
    assert not np.array_equal(env.reset()[0]["obs"], other)


def test_resume_is_exact_around_an_episode_end() -> None:
    check_resume(made(ID, kwargs=SHORT), range(12, 15))


def test_the_row_that_restarts_has_no_reward_and_no_end() -> None:
    vec = Gymnax(ID, 3, **SHORT)
    vec.reset(seed=0)
    over = np.zeros(3, bool)
    num_restarts = 0
    for _ in range(40):
        _, reward, terminated, truncated, _ = vec.step(np.zeros(3, np.int64))
        assert np.array_equal(reward, ~over)
        assert not ((terminated | truncated) & over).any()
        over = terminated | truncated
        num_restarts += over.sum()
    assert num_restarts > 3


def test_a_loaded_state_is_stepped_by_the_same_compiled_function() -> None:
    vec, other = Gymnax(ID, 3, **SHORT), Gymnax(ID, 3, **SHORT)
    vec.reset(seed=0)
    other.load_state_dict(vec.state_dict())
    other.step(np.zeros(3, np.int64))
    assert other._go_on._cache_size() == 1


def test_boxes_are_float32_without_bounds_where_there_are_none() -> None:
    space = compiled(ID, tuple(SHORT.items())).obs_space
    assert isinstance(space, spaces.Box)
    assert space.low.tolist() == np.float32([-4.8, -np.inf, -0.41887903, -np.inf]).tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id": "gymnax:CartPole"}, "did you mean gymnax:CartPole-v1"),
        ({"kwargs": {"wings": 2}}, r"CartPole-v1 cannot be made with \{'wings': 2\}"),
        ({"vectorization": "async"}, "auto or vector_entry_point, got 'async'"),
        ({"autoreset": "same_step"}, "got an environment with NEXT_STEP"),
    ],
    ids=str,
)
def test_what_gymnax_cannot_do_is_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message) as error:
        make_env(EnvConfig(**{"id": ID} | settings))
    assert "\n" not in str(error.value)


def test_reset_options_are_refused() -> None:
    with pytest.raises(EnvError, match="no reset options"):
        Gymnax(ID, 3, **SHORT).reset(options={"x": 1})


def test_a_download_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(name: str) -> None:
        raise OSError("no route")

    monkeypatch.setattr(importlib.import_module("gymnax"), "make", make)
    with pytest.raises(EnvError, match="MNISTBandit-bsuite needs a download that failed: no route"):
        make_env(EnvConfig(id="gymnax:MNISTBandit-bsuite"))


def test_without_gymnax_its_line_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gymnax" else find(name)
    )
    with pytest.raises(EnvError, match=r"^jax needs: pip install 'statewise\[jax\]'"):
        make_env(EnvConfig(id=ID))
