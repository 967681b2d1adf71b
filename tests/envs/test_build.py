"""From ids and settings to environments; every refusal names what to do."""

import importlib.util
import os
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from statewise.envs.build import FAMILIES, EnvConfig, find_family, make_env
from statewise.envs.protocol import EnvError, UnsupportedSpaceError
from tests.envs.toys import CountingEnv

MADE = [
    pytest.param(
        row,
        id=row.prefix or "gymnasium",
        marks=[pytest.mark.xdist_group("jax")] if row.extra == "jax" else [],
    )
    for row in FAMILIES
    if row.prefix != "memory-maze:"  # builds and draws for seconds: see test_memory_maze.py
]


@pytest.mark.parametrize("family", MADE)
def test_every_family_makes_and_steps_its_example(family: Any) -> None:
    assert not family.missing()
    assert find_family(family.example) is family
    env = make_env(EnvConfig(id=family.example, num_envs=2, inputs=("first_step",)))
    obs, is_first = env.reset(0)
    assert is_first.all()
    assert obs["first_step"].shape == (2, 1)
    shape, dtype = env.action_space.shape or (), env.action_space.dtype
    arrived = env.step(np.zeros((2, *shape), dtype=dtype))
    assert list(arrived.obs) == list(env.obs_space)
    env.close()
    env.close()


@pytest.mark.parametrize(
    ("env_id", "settings", "resume"),
    [
        ("CartPole-v1", {}, "episode"),
        ("CartPole-v1", {"autoreset": "same_step"}, "exact"),
        ("CartPole-v1", {"vectorization": "sync"}, "exact"),
        ("Acrobot-v1", {}, "exact"),
        ("statewise/TMaze-v0", {}, "exact"),
        ("statewise/TMaze-v0", {"autoreset": "same_step"}, "exact"),
    ],
)
def test_auto_takes_the_vector_entry_point_where_it_can(
    env_id: str, settings: dict[str, Any], resume: str
) -> None:
    env = make_env(EnvConfig(id=env_id, num_envs=2, **settings))
    env.reset(0)
    assert env.resume == resume
    ours = env_id.startswith("statewise/")
    native = ours or (not settings and env_id != "Acrobot-v1")
    assert ("snapshots" not in env.state_dict()) == native


def test_environment_arguments_arrive() -> None:
    env = make_env(EnvConfig(id="statewise/MemoryChain-v0", num_envs=1, kwargs={"num_bits": 4}))
    assert env.obs_space["obs"].shape == (6,)
    limited = make_env(EnvConfig(id="Acrobot-v1", num_envs=1, kwargs={"max_episode_steps": 2}))
    limited.reset(0)
    ends = [limited.step(np.zeros(1, dtype=np.int64)).truncated[0] for _ in range(2)]
    assert ends == [False, True]


def test_a_factory_gets_the_arguments_and_its_id_is_a_label() -> None:
    env = make_env(EnvConfig(id="mine", num_envs=2, kwargs={"noise": False}), CountingEnv)
    env.reset(0)
    arrived = env.step(np.zeros(2, dtype=np.int64))
    assert arrived.obs["position"][:, 1].tolist() == [1.0, 1.0]  # action 0 is the space's 1


def test_same_seed_same_start_and_other_seed_another() -> None:
    env = make_env(EnvConfig(id="Acrobot-v1", num_envs=2))
    first, again, other = (env.reset(seed)[0]["obs"] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert np.array_equal(first[1], other[0])  # environment i has seed + i


def test_worker_processes_use_one_thread_and_leave_the_environment_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    config = EnvConfig(id="threads", num_envs=1, vectorization="async")
    env = make_env(config, ThreadsEnv)
    obs, _ = env.reset(0)
    env.close()
    assert obs["obs"].tolist() == [[1, 3]]
    assert "OPENBLAS_NUM_THREADS" not in os.environ


class ThreadsEnv(gymnasium.Env[Any, Any]):
    """Shows the thread settings of the process it is in."""

    observation_space = spaces.Box(0, 99, (2,), dtype=np.int64)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        return np.array([int(os.environ.get(name, 0)) for name in names]), {}


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("CartPol-v1", "CartPole-v1"),
        ("CartPole", "CartPole-v1"),
        ("statewise/MemoryChains-v0", "statewise/MemoryChain-v0"),
    ],
)
def test_an_unknown_id_gets_the_nearest_ones(wrong: str, right: str) -> None:
    with pytest.raises(EnvError, match=f"got '{wrong}': did you mean .*{right}"):
        make_env(EnvConfig(id=wrong))


def test_a_far_off_id_gets_a_hint() -> None:
    with pytest.raises(EnvError, match="register it first"):
        make_env(EnvConfig(id="%%%%"))


def test_a_missing_extra_gets_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "popgym" else find_spec(name)
    )
    with pytest.raises(EnvError) as error:
        make_env(EnvConfig(id="popgym-RepeatPreviousEasy-v0"))
    assert str(error.value) == "popgym needs: pip install 'statewise[popgym]'"


def test_a_missing_dependency_of_gymnasium_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "Box2D", None)
    monkeypatch.setitem(sys.modules, "gymnasium.envs.box2d", None)
    with pytest.raises(EnvError, match="LunarLander-v3 needs a package that is missing") as error:
        make_env(EnvConfig(id="LunarLander-v3", num_envs=1))
    assert "\n" not in str(error.value)


def test_unknown_arguments_name_the_environment() -> None:
    with pytest.raises(EnvError, match=r"TMaze-v0 cannot be made with \{'size': 3\}"):
        make_env(EnvConfig(id="statewise/TMaze-v0", kwargs={"size": 3}))


@pytest.mark.parametrize(
    ("env_id", "kwargs", "reason"),
    [
        ("FrozenLake-v1", {"map_name": "9x9"}, "'9x9'"),
        ("CartPole-v1", {"max_episode_steps": 0}, "to be positive, actually: 0"),
        ("HalfCheetah-v5", {"xml_file": "nothere.xml"}, "nothere.xml does not exist"),
    ],
)
def test_values_that_an_environment_refuses_in_its_own_way_are_one_line(
    env_id: str, kwargs: dict[str, Any], reason: str
) -> None:
    if env_id.startswith("Half"):
        pytest.importorskip("mujoco")
    with pytest.raises(EnvError, match=f"{env_id} cannot be made with .*{reason}") as error:
        make_env(EnvConfig(id=env_id, kwargs=kwargs, vectorization="sync"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"id": "Acrobot-v1", "vectorization": "vector_entry_point"}, "vector entry point"),
        (
            {"id": "CartPole-v1", "vectorization": "vector_entry_point", "autoreset": "same_step"},
            "got an environment with NEXT_STEP",
        ),
    ],
)
def test_settings_an_environment_cannot_meet_are_refused(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(EnvError, match=message):
        make_env(EnvConfig(**config))


def test_a_factory_has_no_vector_entry_point_and_must_return_an_environment() -> None:
    with pytest.raises(EnvError, match="vector entry point"):
        make_env(EnvConfig(id="mine", vectorization="vector_entry_point"), CountingEnv)
    with pytest.raises(EnvError, match=r"return a gymnasium\.Env, got dict"):
        make_env(EnvConfig(id="mine"), dict)


class TextEnv(CountingEnv):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict(text=spaces.Text(4))


def test_a_space_without_an_encoder_is_named() -> None:
    with pytest.raises(UnsupportedSpaceError, match=r"Text.* in 'text'"):
        make_env(EnvConfig(id="mine", num_envs=1), TextEnv)


@pytest.mark.parametrize(
    "fields",
    [
        {"id": ""},
        {"num_envs": 0},
        {"vectorization": "threads"},
        {"autoreset": "never"},
        {"inputs": ("previous_state",)},
        {"inputs": ("first_step", "first_step")},
        {"kwargs": {"num_envs": 4}},
    ],
    ids=str,
)
def test_settings_out_of_range_name_the_field(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(fields))}: expected"):
        EnvConfig(**({"id": "CartPole-v1"} | fields))


def test_importing_the_package_pulls_in_no_extra_and_no_torch() -> None:
    code = (
        "import sys, statewise.envs.build; "
        "extras = ('popgym', 'torch', 'pygame', 'ale_py', 'cv2', 'dm_control', 'mujoco', "
        "'envpool', 'jax', 'gymnax', 'bsuite', 'minigrid', 'memory_maze'); "
        "sys.exit(any(name in sys.modules for name in extras))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
