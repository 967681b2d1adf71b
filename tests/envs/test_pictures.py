"""Pictures of another size are means over areas: nothing is cut off, in any layout and mode."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from statewise.envs.build import EnvConfig, make_env, make_single
from statewise.envs.pictures import is_picture, resize
from statewise.envs.protocol import EnvError
from statewise.nets.encoder import is_image
from tests.envs.toys import OBS_SPACE, CountingEnv, rollout, transitions


def pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class PictureEnv(CountingEnv):
    """CountingEnv with a picture (12, 20, 3) that shows the count, and one of 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict(
            {
                "eye": spaces.Box(0, 255, (12, 20, 3), np.uint8),
                "map": spaces.Box(0, 255, (1, 8, 8), np.uint8),
                **OBS_SPACE.spaces,
            }
        )

    def _obs(self) -> dict[str, Any]:
        eye = pictures(12, 20, 3) // 2 + np.uint8(9 * self._count)
        return super()._obs() | {"eye": eye, "map": np.full((1, 8, 8), self._count, np.uint8)}


def made(**settings: Any) -> Any:
    return make_env(EnvConfig(id="toy", num_envs=2, picture_size=8, **settings), PictureEnv)


def test_whole_factors_give_the_means_of_blocks() -> None:
    x = pictures(2, 24, 16, 3)
    blocks = x.astype(float).reshape(2, 8, 3, 8, 2, 3).mean((2, 4))
    assert np.abs(resize(x, 8) - blocks).max() <= 0.5 + 1e-4


@pytest.mark.parametrize(("height", "width", "size"), [(21, 16, 9), (8, 50, 20), (13, 13, 26)])
def test_each_pixel_is_the_mean_over_its_area(height: int, width: int, size: int) -> None:
    x = pictures(1, height, width, 1)
    # In units in which both old and new edges are whole, areas are counts.
    fine = x.astype(float).repeat(size, 1).repeat(size, 2)
    blocks = fine.reshape(size, height, size, width).mean((1, 3))
    assert np.abs(resize(x, size)[0, :, :, 0] - blocks).max() <= 0.5 + 1e-4


def test_opencv_resizes_by_area_to_the_same_pictures() -> None:
    import cv2

    x = pictures(2, 210, 160, 3)
    theirs = np.stack([cv2.resize(one, (64, 64), interpolation=cv2.INTER_AREA) for one in x])
    assert np.abs(resize(x, 64).astype(int) - theirs).max() <= 1
    assert np.array_equal(resize(np.moveaxis(x, -1, 1), 64), np.moveaxis(resize(x, 64), -1, 1))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, shape, dtype)
        for dtype in (np.uint8, np.float32)
        for shape in [(8, 8, 3), (7, 8, 3), (3, 8, 8), (3, 8, 7), (8, 7, 3), (84, 84), (9, 8, 9)]
    ],
    ids=str,
)
def test_what_is_resized_is_what_convolutions_read(space: spaces.Box) -> None:
    assert is_picture(space) == is_image(space)


def test_pictures_alone_change_and_both_modes_agree() -> None:
    plain = make_env(EnvConfig(id="toy", num_envs=2), PictureEnv)
    expected = transitions(rollout(plain, 30, 3), 1)
    for row in expected:
        for obs in (row["obs"], row["next"]):
            obs["eye"] = resize(np.array([obs["eye"]], np.uint8), 8)[0].tolist()
    assert transitions(rollout(made(), 30, 3), 1) == expected
    same = transitions(rollout(made(autoreset="same_step"), 30, 3), 1)
    assert same[: len(expected)] == expected[: len(same)]
    env = made(inputs=("first_step",))
    assert {key: env.obs_space[key].shape for key in ("eye", "map")} == {
        "eye": (8, 8, 3),
        "map": (1, 8, 8),
    }
    assert list(env.obs_space) == [*plain.obs_space, "first_step"]


def test_a_single_environment_sees_what_the_vector_sees() -> None:
    config = EnvConfig(id="toy", num_envs=1, picture_size=8, inputs=("previous_action",))
    vector, single = make_env(config, PictureEnv), make_single(config, PictureEnv)
    assert single.observation_space == vector.obs_space
    rows = [(vector.reset(5)[0], single.reset(seed=5)[0])]
    rows.append((vector.step(np.array([2])).obs, single.step(2)[0]))
    for many, one in rows:
        assert list(many) == list(one)
        assert all(np.array_equal(many[key][0], one[key]) for key in one)


def test_a_run_goes_on_with_resized_pictures() -> None:
    env, resumed = made(), made()
    env.reset(1)
    now = env.step(np.zeros(2, np.int64))
    obs, is_first = resumed.load_state_dict(env.state_dict())
    assert np.array_equal(obs["eye"], now.obs["eye"])
    assert np.array_equal(is_first, now.is_first)


@pytest.mark.parametrize(
    ("size", "message"),
    [(8, r"^env\.picture_size: expected pictures .*got none in obs: leave it out$")],
)
def test_a_size_without_pictures_is_refused(size: int, message: str) -> None:
    config = EnvConfig(id="CartPole-v1", num_envs=1, picture_size=size)
    for make in (make_env, make_single):
        with pytest.raises(EnvError, match=message):
            make(config)


class DeepEnv(gymnasium.Env[Any, Any]):
    observation_space = spaces.Box(0, 255, (16, 20, 9), np.uint8)
    action_space = spaces.Discrete(2)


def test_a_picture_with_more_channels_than_pixels_is_refused() -> None:
    with pytest.raises(EnvError, match="more than the 9 channels of 'obs', got 8: raise it"):
        make_env(EnvConfig(id="deep", num_envs=1, picture_size=8), DeepEnv)


def test_a_size_below_that_of_a_picture_names_the_field() -> None:
    with pytest.raises(ValueError, match=r"^picture_size: expected 0 or at least 8, got 7$"):
        EnvConfig(id="CartPole-v1", picture_size=7)
