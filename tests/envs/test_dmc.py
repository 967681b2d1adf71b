"""The Control Suite through the adapter, beside dm_control itself."""

import importlib.util
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils import seeding

from statewise.envs import opengl
from statewise.envs.build import EnvConfig, make_env
from statewise.envs.dmc import load_library, make
from statewise.envs.protocol import EnvError
from tests.envs.test_resumable import check_resume, made

ID = "dm_control/cartpole-balance"
SHORT = {"time_limit": 0.06}  # six steps of 0.01 s


def their_rows(seed: int, actions: np.ndarray, repeat: int) -> list[dict[str, Any]]:
    """Play episodes with dm_control alone; return all observations, and what led to each."""
    draws, _ = seeding.np_random(seed)
    env = load_library("dm_control.suite").load(
        "cartpole", "balance", task_kwargs={"random": 0, **SHORT}
    )
    rows, now = [], None
    for action in actions:
        reward = 0.0
        if now is None or now.last():
            env.task.random.seed(int(draws.integers(2**32)))
            now = env.reset()
        else:
            for _ in range(repeat):
                now = env.step(np.clip(action, -1, 1).astype(np.float64))
                reward += now.reward
                if now.last():
                    break
        obs = {key: np.asarray(x, np.float32).tolist() for key, x in now.observation.items()}
        rows.append({"obs": obs, "reward": np.float32(reward), "ends": now.last()})
        assert not now.last() or now.discount == 1
    return rows


@pytest.mark.parametrize("repeat", [1, 4])
def test_transitions_are_those_of_dm_control(repeat: int) -> None:
    kwargs = {**SHORT, "action_repeat": repeat}
    env = make_env(EnvConfig(id=ID, num_envs=1, kwargs=kwargs))
    actions = np.random.default_rng(0).uniform(-1.5, 1.5, (20, 1)).astype(np.float32)
    obs, _ = env.reset(4)
    rows = [{"obs": {k: x[0].tolist() for k, x in obs.items()}, "reward": 0.0, "ends": False}]
    for action in actions[1:]:
        arrived = env.step(action[None])
        assert not arrived.terminated.any()
        rows.append(
            {
                "obs": {key: x[0].tolist() for key, x in arrived.obs.items()},
                "reward": arrived.reward[0],
                "ends": bool(arrived.truncated[0]),
            }
        )
    theirs = their_rows(4, actions, repeat)
    assert rows == theirs
    ends = [t for t, row in enumerate(rows) if row["ends"]]
    steps = -(-6 // repeat)
    assert ends == list(range(steps, 20, steps + 1))  # a row of its own starts each episode


def test_the_episodes_of_a_seed_differ_and_come_again() -> None:
    env = make(ID, **SHORT)
    first, second = env.reset(seed=1)[0], env.reset()[0]
    again = [env.reset(seed=1)[0], env.reset()[0]]
    for ours, theirs in zip((first, second), again, strict=True):
        assert np.array_equal(ours["position"], theirs["position"])
    assert not np.array_equal(first["position"], second["position"])


def test_resume_is_exact_around_an_episode_end() -> None:
    check_resume(made(ID, kwargs=SHORT), range(5, 7))


class Ending:
    """A time step that ends an episode."""

    reward, observation = 1.0, {"position": np.zeros(3), "velocity": np.array([2.0, 3.0])}

    def __init__(self, discount: float) -> None:
        self.discount = discount

    def last(self) -> bool:
        return True


@pytest.mark.parametrize(("discount", "ends"), [(0.0, (True, False)), (1.0, (False, True))])
def test_a_discount_of_0_is_an_end_and_any_other_a_limit(
    discount: float, ends: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make(ID, action_repeat=3)
    monkeypatch.setattr(env._env, "step", lambda _: Ending(discount))
    obs, reward, *flags, _ = env.step(np.zeros(1, np.float32))
    assert (obs["velocity"].tolist(), reward, tuple(flags)) == ([2.0, 3.0], 1.0, ends)


def test_numbers_without_an_axis_become_vectors() -> None:
    space = make("dmc:walker-walk").observation_space
    assert isinstance(space, spaces.Dict)
    shapes = {key: (one.shape, one.dtype) for key, one in space.items()}
    single = np.dtype(np.float32)
    assert shapes == {
        "orientations": ((14,), single),
        "height": ((1,), single),
        "velocity": ((9,), single),
    }


def test_triton_can_be_imported_after_mujoco_has_found_a_way_to_draw() -> None:
    code = "from statewise.envs import dmc; dmc.ids(); import triton"
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_both_kinds_of_ids_mean_the_same() -> None:
    long, short = (make_env(EnvConfig(id=i, num_envs=1)) for i in (ID, "dmc:cartpole-balance"))
    for ours, theirs in zip(long.reset(3)[0].values(), short.reset(3)[0].values(), strict=True):
        assert np.array_equal(ours, theirs)


def test_pictures_are_those_of_dm_control() -> None:
    opengl.choose_for_mujoco()
    try:
        opengl.check_mujoco(ID)
    except EnvError as error:
        pytest.skip(str(error))
    env = make("dmc:cartpole-balance", pixels=16)
    assert env.observation_space == spaces.Dict(pixels=spaces.Box(0, 255, (16, 16, 3), np.uint8))
    obs, _ = env.reset(seed=1)
    theirs = env._env._env.physics.render(16, 16, camera_id=0)
    assert np.array_equal(obs["pixels"], theirs)
    assert obs["pixels"].std() > 0
    env.close()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"pixels": 4}, f"expected pixels 0 or at least 8, got 4 for {ID}"),
        ({"camera": -1}, f"expected camera at least 0, got -1 for {ID}"),
        ({"action_repeat": 0}, f"expected action_repeat at least 1, got 0 for {ID}"),
        ({"time_limit": 0.0}, f"expected a positive time_limit, got 0.0 for {ID}"),
        ({"size": 3}, f"{ID} cannot be made with"),
    ],
)
def test_arguments_out_of_range_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make_env(EnvConfig(id=ID, num_envs=1, kwargs=kwargs))


def test_an_unknown_task_gets_the_nearest_ones() -> None:
    with pytest.raises(EnvError, match=r"did you mean .*dm_control/cartpole-balance"):
        make_env(EnvConfig(id="dm_control/cartpole-balanced"))
    with pytest.raises(EnvError, match=r"did you mean .*dmc:cartpole-balance"):
        make_env(EnvConfig(id="dmc:cartpole-balanced"))


def test_without_dm_control_its_line_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "dm_control" else find(name)
    )
    with pytest.raises(EnvError, match=r"^dmc needs: pip install 'statewise\[dmc\]'"):
        make_env(EnvConfig(id=ID))
