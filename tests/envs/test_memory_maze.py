"""Memory Maze: loaded without gym, its episodes from seeds; and what OpenGL is missing."""

import ctypes.util
import os
import subprocess
import sys
from typing import Any

import dm_env
import numpy as np
import pytest
from dm_env import specs
from gymnasium import spaces

from statewise.envs import memory_maze, opengl
from statewise.envs.build import EnvConfig, make_env
from statewise.envs.protocol import EnvError

ID = "memory-maze:9x9"


@pytest.mark.slow
def test_a_maze_is_drawn_and_comes_again_with_its_seed() -> None:
    env = memory_maze.make(ID)
    assert env.observation_space == spaces.Box(0, 255, (64, 64, 3), np.uint8)
    assert env.action_space == spaces.Discrete(6)
    seen = []
    for seed in (1, 2, 1):
        env.reset(seed=seed)
        seen.append(env.step(1)[0])
    env.close()
    assert np.array_equal(seen[0], seen[2])
    assert not np.array_equal(seen[0], seen[1])


class Fake(dm_env.Environment):
    """Stands for a maze; a picture of its seed."""

    def __init__(self, seed: int, image_only_obs: bool) -> None:
        assert image_only_obs
        self._picture = np.full((64, 64, 3), seed % 256, np.uint8)

    def observation_spec(self) -> Any:
        return specs.Array((64, 64, 3), np.uint8)

    def action_spec(self) -> Any:
        return specs.DiscreteArray(6)

    def reset(self) -> dm_env.TimeStep:
        return dm_env.restart(self._picture)

    def step(self, action: int) -> dm_env.TimeStep:
        return dm_env.truncation(1.0, self._picture)


def test_a_maze_is_built_for_each_episode_and_ends_by_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory_maze._tasks(), "memory_maze_9x9", Fake)
    env = make_env(EnvConfig(id=ID, num_envs=2))
    first = env.reset(1)[0]["obs"]
    ended = env.step(np.zeros(2, np.int64))
    assert ended.truncated.all()
    assert not ended.terminated.any()
    after = env.step(np.zeros(2, np.int64)).obs["obs"]
    assert not np.array_equal(after, first)
    assert np.array_equal(env.reset(1)[0]["obs"], first)


def test_the_tasks_are_imported_without_gym() -> None:
    code = (
        "import sys; sys.modules['gym'] = None; from statewise.envs import memory_maze; "
        "sys.exit(not hasattr(memory_maze._tasks(), 'memory_maze_15x15'))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], check=False)
    assert done.returncode == 0


def test_another_size_gets_the_nearest_ones() -> None:
    with pytest.raises(EnvError, match=r"did you mean .*memory-maze:9x9"):
        make_env(EnvConfig(id="memory-maze:8x8"))


# ---------------------------------------------------------------- OpenGL


@pytest.mark.parametrize(
    ("libraries", "gpu", "chosen"),
    [
        ({"OSMesa", "EGL"}, False, "osmesa"),
        ({"EGL"}, False, "egl"),
        ({"OSMesa", "EGL"}, True, "egl"),
        (set(), True, None),
    ],
)
def test_what_mujoco_draws_with_is_what_there_is(
    libraries: set[str], gpu: bool, chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setattr(opengl, "_has_gpu", lambda: gpu)
    monkeypatch.setattr(
        ctypes.util, "find_library", lambda name: name if name in libraries else None
    )
    opengl.choose_for_mujoco()
    assert os.environ.get("MUJOCO_GL") == chosen
    if chosen is None:
        with pytest.raises(EnvError, match=r"libOSMesa or libEGL to draw x, got none: apt-get .*"):
            opengl.check_mujoco("x")
    else:
        opengl.check_mujoco("x")


def test_the_users_choice_stays_and_is_named_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    opengl.choose_for_mujoco()
    assert os.environ["MUJOCO_GL"] == "osmesa"
    with pytest.raises(EnvError, match=r"expected libOSMesa to draw .*, got none: apt-get install"):
        make_env(EnvConfig(id=ID))
