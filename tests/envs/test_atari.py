"""Atari through the adapter, beside a loop over ale-py itself."""

import importlib.util
from collections.abc import Iterator
from typing import Any

import ale_py
import cv2
import numpy as np
import pytest
from gymnasium import spaces

from statewise.envs.atari import SeededEpisodes
from statewise.envs.build import EnvConfig, make_env
from statewise.envs.protocol import EnvError, VectorEnv
from tests.envs.test_resumable import play

ID = "ALE/Pong-v5"
FRAMES = 50  # of an episode
SHORT = {"max_num_frames_per_episode": FRAMES}


def made(**settings: Any) -> VectorEnv:
    kwargs = SHORT | settings.pop("kwargs", {})
    return make_env(EnvConfig(id=ID, num_envs=1, kwargs=kwargs, **settings))


def their_episodes(seed: int | None, actions: list[int]) -> Iterator[dict[str, Any]]:
    """Play episodes with the console alone: sticky actions, 4 frames per action, 2 pooled."""
    game = ale_py.AtariEnv(
        "pong", frameskip=1, repeat_action_probability=0.25, max_num_frames_per_episode=FRAMES
    )
    is_over = True
    for action in actions:
        reward = 0.0
        if is_over:
            game.reset(seed=seed)
            frames = 0
            for _ in range(game.np_random.integers(1, 31)):
                game.step(0)
                frames += 1
            screen, is_over = game.ale.getScreenGrayscale(), False
        else:
            seen = []
            for _ in range(4):
                reward += game.step(action)[1]
                seen.append(game.ale.getScreenGrayscale())
                frames += 1
                if frames == FRAMES:
                    is_over = True
                    break
            # gymnasium does not draw the frame in which an episode ends
            if len(seen) == 4:
                screen = np.maximum(seen[2], screen if is_over else seen[3])
        small = cv2.resize(screen, (64, 64), interpolation=cv2.INTER_AREA)
        yield {"obs": small[None, :, :, None], "reward": reward, "ends": is_over}
        if is_over:
            seed = int(game.np_random.integers(2**31))


def test_transitions_are_those_of_the_console() -> None:
    env = made()
    actions = np.random.default_rng(1).integers(6, size=26).tolist()
    theirs = list(their_episodes(7, actions))
    assert np.array_equal(env.reset(7)[0]["obs"], theirs[0]["obs"])
    for t, (action, row) in enumerate(zip(actions[1:], theirs[1:], strict=True)):
        arrived = env.step(np.array([action]))
        assert np.array_equal(arrived.obs["obs"], row["obs"]), t
        assert (arrived.reward[0], arrived.truncated[0]) == (row["reward"], row["ends"])
        assert not arrived.terminated.any()
    assert sum(row["ends"] for row in theirs) >= 2


def test_final_observations_are_handed_aside_where_asked() -> None:
    plain, same = made(), made(autoreset="same_step")
    plain.reset(3)
    same.reset(3)
    for action in [2, 3] * 20:
        expected, found = plain.step(np.array([action])), same.step(np.array([action]))
        if found.final_obs is not None:
            assert np.array_equal(found.final_obs["obs"], expected.obs["obs"])
            first = plain.step(np.array([0]))  # the row that only resets
            assert np.array_equal(found.obs["obs"], first.obs["obs"])
            return
        assert np.array_equal(found.obs["obs"], expected.obs["obs"])
    pytest.fail("no episode ended")


def test_resume_is_exact_though_actions_stick() -> None:
    env, resumed = made(), made()
    assert env.resume == "exact"
    env.reset(0)
    begun = [any(row["is_first"]) for row in play(env, 0, 15)]
    assert any(begun)  # a second episode, without a seed
    state = env.state_dict()
    rows = play(env, 15, 28)
    resumed.load_state_dict(state)
    assert play(resumed, 15, 28) == rows
    assert any(any(row["truncated"]) for row in rows)


@pytest.mark.parametrize(
    ("kwargs", "shape", "num_actions"),
    [
        ({}, (64, 64, 1), 6),
        ({"grayscale_obs": False, "screen_size": 32, "full_action_space": True}, (32, 32, 3), 18),
    ],
)
def test_size_colours_and_actions_are_settings(
    kwargs: dict[str, Any], shape: tuple[int, ...], num_actions: int
) -> None:
    env = made(kwargs=kwargs)
    assert env.obs_space["obs"] == spaces.Box(0, 255, shape, np.uint8)
    assert env.action_space == spaces.Discrete(num_actions)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"frameskip": 4}, f"got frameskip for {ID}: set frame_skip"),
        ({"obs_type": "ram"}, f"got obs_type for {ID}: set grayscale_obs"),
        ({"frame_skip": 0}, f"expected frame_skip at least 1, got 0 for {ID}"),
        ({"screen_size": 7}, "expected screen_size at least 8, got 7"),
        ({"noop_max": -1}, "expected noop_max at least 0, got -1"),
        ({"sticky": 1}, f"{ID} cannot be made with"),
    ],
)
def test_arguments_out_of_range_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        made(kwargs=kwargs)


def test_ale_pys_own_threads_are_taken_only_where_asked_for() -> None:
    assert made().resume == "exact"
    vec = made(vectorization="vector_entry_point")
    assert vec.resume == "episode"
    assert vec.obs_space == made().obs_space
    vec.close()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"terminal_on_life_loss": True},
            "no terminal_on_life_loss .*: use env.vectorization sync",
        ),
        ({"frameskip": 4}, "got frameskip for ALE/Pong-v5: set frame_skip"),
        ({"screen_size": 4}, "expected screen_size at least 8, got 4"),
        ({"mode": 1}, "ALE/Pong-v5 cannot be made with"),
    ],
)
def test_what_they_cannot_do_is_one_line(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=message):
        made(vectorization="vector_entry_point", kwargs=kwargs)


def test_episodes_without_a_seed_differ() -> None:
    class Drawn:
        np_random = np.random.default_rng(0)
        metadata: dict[str, Any] = {}  # noqa: RUF012
        unwrapped = property(lambda self: self)

        def reset(self, *, seed: int, options: Any) -> tuple[int, dict[str, Any]]:
            return seed, {}

    env = SeededEpisodes.__new__(SeededEpisodes)
    env.env = Drawn()  # type: ignore[assignment]
    assert env.reset(seed=4)[0] == 4
    assert env.reset()[0] != env.reset()[0]


@pytest.mark.parametrize("package", ["ale_py", "cv2"])
def test_without_a_package_its_line_is_shown(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(EnvError) as error:
        make_env(EnvConfig(id=ID))
    assert str(error.value) == "atari needs: pip install 'statewise[atari]'"
