"""Videos of evaluations: they show the episodes of eval.json, whatever chose the actions."""

import ctypes.util
import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v3 as imageio
import imageio_ffmpeg
import numpy as np
import pytest
from gymnasium import spaces

import statewise
from statewise.__main__ import main
from statewise.envs.protocol import EnvError
from statewise.training import evaluate_trials, video
from statewise.training.config import ConfigError
from statewise.training.evaluate import EvalOptions
from statewise.training.run import RunError
from statewise.training.video import VideoOptions, film_run, open_camera
from statewise.training.video_file import MIN_HEIGHT, Frame, write_video
from tests.training import offline_cases as cases
from tests.training.test_inspect import PPO, WORLD
from tests.training.toys import CounterEnv

DRAWN, TRIALS, CHANCE = "toy/Drawn-v0", "toy/DrawnTrials-v0", "toy/DrawnByChance-v0"


class DrawnEnv(CounterEnv):
    """CounterEnv whose picture says the length so far, and eight times the return, modulo 256."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 7}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode
        self._total = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self._total = 0.0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, *rest = super().step(action)
        self._total += reward
        return obs, reward, *rest

    def render(self) -> Any:
        frame = np.zeros((4, 6, 3), np.uint8)
        frame[..., 0], frame[..., 1:] = self._count, int(8 * self._total) % 256
        return frame


class ByChanceEnv(DrawnEnv):
    """Pays what numpy's own generator says, which no seed of the environment sets."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, *rest = super().step(action)
        return obs, reward + np.random.random(), *rest  # noqa: NPY002


class PictureEnv(gymnasium.Env[Any, Any]):
    """Two steps of pictures, which it does not render."""

    observation_space = spaces.Box(0, 255, (3, 8, 8), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._count = 0
        return np.full((3, 8, 8), 9, np.uint8), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._count += 1
        picture = np.full((3, 8, 8), self._count, np.uint8)
        return picture, 1.0, self._count == 2, False, {}


@pytest.fixture(scope="module", autouse=True)
def _ready(no_waiting_for_the_disk: None) -> None:
    cases.register()
    for name, make in ((DRAWN, DrawnEnv), (CHANCE, ByChanceEnv), ("toy/Pictures-v0", PictureEnv)):
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=make)


@pytest.fixture
def filmed(monkeypatch: pytest.MonkeyPatch) -> list[Frame]:
    """Return the list to which frames go, in place of a file."""
    frames: list[Frame] = []

    def keep(path: Path, shown: Iterable[Frame], fps: float) -> None:
        frames.extend(shown)

    monkeypatch.setattr(video, "write_video", keep)
    return frames


def ppo(env_id: str = DRAWN, **changes: Any) -> Any:
    return statewise.make("ppo/cartpole", env__id=env_id, **PPO | changes)


def agents(name: str) -> Any:
    if name == "ppo":
        return ppo()
    if name == "r2i":
        return statewise.make("r2i/delayed_offer", env__id=DRAWN, **WORLD)
    tiny = cases.TINY[name] | {"env__id": DRAWN}
    return statewise.make(
        f"{name}/pendulum", data=cases.counter_data(count=6, env_id=DRAWN), **tiny
    )


# --- which episodes


@pytest.mark.parametrize("name", ["ppo", "r2i", "decision_s4", "bc"])
def test_the_filmed_episodes_are_the_first_of_eval_json(
    name: str, tmp_path: Path, filmed: list[Frame]
) -> None:
    run = agents(name).save(tmp_path / "run")
    options = EvalOptions(episodes=5, num_envs=2, seed=4, actions="sample")
    _, out = film_run(run, options, VideoOptions(episodes=4))
    assert out == run / "videos" / "0.mp4"
    found = json.loads((run / "eval.json").read_text())["episodes"][:4]
    assert [(one["seed"], one["index"]) for one in found] == [(4, 0), (4, 1), (5, 0), (5, 1)]
    count = np.array([frame[0, 0, 0] for frame in filmed])
    last = np.append(np.flatnonzero(count == 0)[1:] - 1, len(count) - 1)
    assert count[last].tolist() == [one["length"] for one in found]
    said = [int(filmed[i][0, 0, 1]) for i in last]
    assert said == [int(8 * one["return"]) % 256 for one in found]


@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
@pytest.mark.parametrize("memory", ["trial", "episode"])
def test_a_trial_is_filmed_as_a_whole(
    autoreset: str,
    memory: str,
    tmp_path: Path,
    filmed: list[Frame],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluate_trials, "draw_by_episode", lambda *args: None)
    trial = {"episodes": 2, "memory": memory, "value_ends": memory}
    made = ppo(env__autoreset=autoreset, env__trial=trial)
    run = made.save(tmp_path / "run")
    film_run(run, EvalOptions(episodes=4, num_envs=2, seed=1), VideoOptions(episodes=3))
    trials = json.loads((run / "eval.json").read_text())["episodes"][:3]
    assert [one["seed"] for one in trials] == [1, 1, 2]
    count = np.array([frame[0, 0, 0] for frame in filmed])
    starts = np.flatnonzero(count == 0)
    assert len(starts) == 6
    returns = [value for one in trials for value in one["returns"]]
    # Without a row of its own a last observation inside a trial is not seen by a whole trial.
    whole = autoreset == "next_step" or memory == "episode"
    last = [*(starts[1:] - 1), len(count) - 1]
    shown = [i for number, i in enumerate(last) if whole or number % 2]
    wanted = [value for number, value in enumerate(returns) if whole or number % 2]
    assert [int(filmed[i][0, 0, 1]) for i in shown] == [int(8 * x) % 256 for x in wanted]


def test_pictures_are_filmed_as_they_are_seen_where_nothing_renders(
    tmp_path: Path, filmed: list[Frame]
) -> None:
    run = ppo("toy/Pictures-v0").save(tmp_path / "run")
    film_run(run, EvalOptions(episodes=1, num_envs=1), VideoOptions())
    assert [frame.shape for frame in filmed] == [(8, 8, 3)] * 3
    assert [int(frame[0, 0, 0]) for frame in filmed] == [9, 1, 2]


# --- the file


@pytest.mark.parametrize(("suffix", "size"), [(".mp4", (5, 7)), (".gif", (200, 301))])
def test_every_frame_is_in_the_file(suffix: str, size: tuple[int, int], tmp_path: Path) -> None:
    frames = [np.full((*size, 3), 20 * i, np.uint8) for i in range(10)]
    path = tmp_path / "new" / f"out{suffix}"
    write_video(path, iter(frames), 20.0)
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    factor = max(1, -(-MIN_HEIGHT // size[0]))
    height, width = (factor * n + factor * n % 2 * (suffix == ".mp4") for n in size)
    if suffix == ".gif":
        back = imageio.imread(path, index=None)
        assert imageio.immeta(path)["duration"] == 50
    else:
        words = ["-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        read = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), *words], capture_output=True)
        assert f"{width}x{height}, ".encode() in read.stderr
        assert b" 20 fps, " in read.stderr
        back = np.frombuffer(read.stdout, np.uint8).reshape(-1, height, width, 3)
    assert back.shape == (10, height, width, 3)
    means = back.reshape(10, -1).mean(1)
    np.testing.assert_allclose(means, 20 * np.arange(10), atol=3)


def test_a_video_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "out.gif"
    path.write_bytes(b"old")
    good = np.zeros((8, 8, 3), np.uint8)
    for bad, words in (
        (np.zeros((8, 8), np.uint8), r"\(Y, X, 3\) of bytes"),
        (np.zeros((8, 8, 3)), "float64 in frame 1"),
        (None, "NoneType"),
        (np.zeros((9, 8, 3), np.uint8), "of one size"),
    ):
        with pytest.raises(EnvError, match=words):
            write_video(path, iter([good, bad]), 5.0)  # type: ignore[list-item]
    assert [one.name for one in tmp_path.iterdir()] == ["out.gif"]
    assert path.read_bytes() == b"old"
    with pytest.raises(RunError, match="cannot be written"):
        write_video(path / "inner.gif", iter([good]), 5.0)


def test_the_command_prints_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ppo().save(tmp_path / "run")
    out = tmp_path / "out.gif"
    words = ["eval", str(run), "--episodes", "2", "--num-envs", "2"]
    assert main([*words, "--video", str(out), "--video-episodes", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    lengths = [one["length"] for one in json.loads((run / "eval.json").read_text())["episodes"]]
    assert (
        imageio.immeta(out)["duration"] == 140
    )  # a hundredth of a second at best, of 7 per second
    assert 0 < len(imageio.imread(out, index=None)) <= sum(lengths) + 2


# --- what goes wrong


def test_wrong_words_are_refused_before_anything_is_played(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ppo("CartPole-v1").save(tmp_path / "run")
    for words, text in (
        (["--video", "out.avi"], "expected a file ending in .mp4 or .gif, got out.avi"),
        (["--video-episodes", "2"], "expected --video with --video-episodes"),
        (
            ["--video", "--video-episodes", "3", "--episodes", "2"],
            "at most the 2 episodes of the evaluation, got 3",
        ),
    ):
        assert main(["eval", str(run), *words]) == 2
        assert text in capsys.readouterr().err
    assert not (run / "eval.json").exists()


def test_an_environment_that_cannot_be_drawn_names_those_that_can(tmp_path: Path) -> None:
    run = ppo(cases.COUNTER).save(tmp_path / "run")
    with pytest.raises(EnvError, match=r"render mode rgb_array.*got toy/OfflineCounter.*MiniGrid-"):
        film_run(run, EvalOptions(), VideoOptions())
    assert not (run / "eval.json").exists()


def test_a_world_model_alone_has_nothing_to_film(tmp_path: Path) -> None:
    from statewise.training.api import TrainedWorldModel
    from tests.training import world_data_cases

    data = cases.written(tmp_path, count=20)
    run = TrainedWorldModel(world_data_cases.settings(data)).save(tmp_path / "run")
    expected = (
        f"--video: expected a run with a policy, got s4wm in {run}, .*: use statewise imagine"
    )
    with pytest.raises(ConfigError, match=expected):
        film_run(run, EvalOptions(), VideoOptions())


class LoudEnv(DrawnEnv):
    """Says where its sounds would go."""

    drivers: list[str | None] = []  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.drivers.append(os.environ.get("SDL_AUDIODRIVER"))


@pytest.mark.parametrize(("chosen", "expected"), [(None, "dummy"), ("alsa", "alsa")])
def test_what_is_filmed_makes_no_sound_unless_asked_to(
    chosen: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDL_AUDIODRIVER", "put back afterwards")
    if chosen is None:
        monkeypatch.delenv("SDL_AUDIODRIVER")
    else:
        monkeypatch.setenv("SDL_AUDIODRIVER", chosen)
    trained = statewise.make("ppo/cartpole", env=LoudEnv, **PPO)
    LoudEnv.drivers.clear()
    open_camera(trained)[0].close()
    assert LoudEnv.drivers == [expected, expected]  # the one that is looked at, and that is filmed


def test_an_episode_that_does_not_repeat_is_an_error(tmp_path: Path, filmed: list[Frame]) -> None:
    run = ppo(CHANCE).save(tmp_path / "run")
    with pytest.raises(EnvError, match=r"elsewhere than self\.np_random"):
        film_run(run, EvalOptions(episodes=1, num_envs=1), VideoOptions())


@pytest.mark.parametrize("missing", ["package", "library"])
def test_what_is_missing_to_draw_is_named(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filmed: list[Frame]
) -> None:
    run = ppo().save(tmp_path / "run")
    if missing == "package":

        def render(self: Any) -> Any:
            raise gymnasium.error.DependencyNotInstalled("pygame is not installed, run `pip x`")

        monkeypatch.setattr(DrawnEnv, "render", render)
        text = r"expected what draws toy/Drawn-v0, got none: pygame is not installed, run `pip x`"
    else:
        monkeypatch.setattr(DrawnEnv, "mujoco_renderer", None, raising=False)
        monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
        monkeypatch.delenv("MUJOCO_GL", raising=False)
        text = r"got none: apt-get install .* libosmesa6 libegl1"
    with pytest.raises(EnvError, match=text):
        film_run(run, EvalOptions(episodes=1, num_envs=1), VideoOptions())
