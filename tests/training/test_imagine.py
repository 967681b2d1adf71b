"""`statewise imagine`: what is drawn of which run, and where imagination begins."""

from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import torch

import statewise
from statewise.__main__ import main
from statewise.training import api
from statewise.training.api import TrainedWorldModel
from statewise.training.config import ConfigError
from statewise.training.imagine import (
    ImagineOptions,
    Scene,
    Told,
    describe,
    episodes_of,
    imagine,
    make_scene,
    play,
)
from statewise.training.imagine_draw import (
    BLUE,
    EDGE,
    LABEL,
    ORANGE,
    make_curves,
    make_frames,
    scene_frames,
)
from statewise.training.run import RunDirectory
from statewise.training.trained_world import TrainedWorldAgent
from statewise.worldmodels.entries import Entry
from tests.training import offline_cases
from tests.training import world_data_cases as cases
from tests.training.toys import CounterEnv

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")
WORLD = {key: value for key, value in cases.TINY.items() if key.startswith("agent__world")}
EYE = Entry(key="eye", kind="picture", shape=(64, 64, 3))


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a saved model of numbers."""
    folder = tmp_path_factory.mktemp("numbers")
    data = offline_cases.written(folder, count=20)
    return TrainedWorldModel(cases.settings(data)).save(folder / "run")


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a saved model of pictures and numbers."""
    folder = tmp_path_factory.mktemp("moving")
    data = cases.pictures(folder, count=20)
    return TrainedWorldModel(cases.settings(data)).save(folder / "run")


@pytest.fixture(scope="module")
def agent() -> TrainedWorldAgent:
    behavior = {"agent__behavior__actor_hidden": [8], "agent__behavior__critic_hidden": [8]}
    made = statewise.make("r2i/delayed_offer", env=CounterEnv, env__kwargs={}, **WORLD, **behavior)
    assert isinstance(made, TrainedWorldAgent)
    return made


def told(n: int, value: float) -> Told:
    eye = np.full((n, 64, 64, 3), value, np.float32)
    return Told({"eye": eye}, np.zeros(n, np.float32), np.ones(n, np.float32))


def test_a_model_from_data_shows_held_out_episodes_as_curves(
    numbers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["imagine", str(numbers), "--episodes", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(numbers / "plots" / "imagine.png")
    assert len(lines) == 3  # two are held out
    trained = statewise.load(numbers)
    steps = episodes_of(trained, 2, 0)
    held_out = trained.parts.held_out
    for index, (line, step) in enumerate(zip(lines[:2], steps, strict=True)):
        rows = int(held_out.lengths[index]) + 1
        assert step.valid.shape == (1, rows)
        context = rows // 2
        assert line.startswith(f"episode {index}: context {context}, imagined {rows - context}, ")
    assert imageio.imread(numbers / "plots" / "imagine.png").ndim == 3


def test_context_horizon_and_seed_choose_what_is_imagined(numbers: Path) -> None:
    trained = statewise.load(numbers)
    step = episodes_of(trained, 1, 0)[0]

    def scene(seed: int, **given: int) -> Scene:
        generator = torch.Generator().manual_seed(seed)
        return make_scene(trained.agent.world, step, 0, generator, **given)

    first, again, other = (scene(seed, context=2, horizon=2) for seed in (1, 1, 2))
    assert (first.context, len(first.truth.reward), len(first.imagined.reward)) == (2, 4, 2)
    assert describe(first, 0).startswith("episode 0: context 2, imagined 2, mean square obs ")
    np.testing.assert_array_equal(first.imagined.obs["obs"], again.imagined.obs["obs"])
    assert not np.array_equal(first.imagined.obs["obs"], other.imagined.obs["obs"])
    rows = int(trained.parts.held_out.lengths[0]) + 1
    whole = scene(1)
    np.testing.assert_array_equal(whole.truth.obs["obs"], step.obs["obs"][0])
    np.testing.assert_array_equal(whole.truth.reward[1:], step.reward[0, :-1])
    ends = bool(step.terminated.any())
    assert whole.truth.cont.tolist() == [1.0] * (rows - 1) + [0.0 if ends else 1.0]


def test_pictures_become_a_gif_with_a_frame_per_row(moving: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gif"
    assert main(["imagine", str(moving), "--context", "3", "--out", str(out)]) == 0
    frames = imageio.imread(out, index=None)
    assert len(frames) == 5
    assert main(["imagine", str(moving), "--episodes", "1"]) == 0
    assert (moving / "plots" / "imagine.gif").is_file()


def test_frames_show_truth_model_and_difference_and_mark_where_imagination_begins() -> None:
    truth = told(5, 0.25)
    scene = Scene(3, truth, told(5, 0.75), told(2, 0.25))
    frames = scene_frames(scene, 0, EYE)
    assert frames.shape[0] == 5
    size = (frames.shape[2] - 2 * 8) // 3
    assert size == 3 * 64 + 2 * EDGE  # enlarged
    middle = LABEL + EDGE + 96
    for t in range(5):
        columns = [frames[t, middle, i * (size + 8) + size // 2] for i in range(3)]
        values = [64, 191, 191] if t < 3 else [64, 64, 128]
        for column, value in zip(columns, values, strict=True):
            np.testing.assert_allclose(column, value, atol=1)
        frame = frames[t, middle, size + 8 + EDGE // 2]
        assert tuple(frame) == (BLUE if t < 3 else ORANGE)
        bar = frames[t, LABEL + size + EDGE]
        width = len(bar) // 5
        colors = [tuple(bar[width * i + width // 2]) for i in range(5)]
        assert colors == [(0, 0, 0) if i == t else BLUE if i < 3 else ORANGE for i in range(5)]


def test_scenes_of_different_lengths_share_frames() -> None:
    scenes = [
        Scene(1, told(3, 0.0), told(3, 0.0), told(2, 0.0)),
        Scene(2, told(6, 1.0), told(6, 1.0), told(4, 1.0)),
    ]
    frames = make_frames(scenes, [EYE])
    assert len(frames) == 6
    height = frames.shape[1] // 2
    assert (frames[2:, :height] == frames[2, :height]).all()
    assert not (frames[5, height:] == frames[2, height:]).all()


def test_grey_pictures_and_stacks_are_shown_too() -> None:
    for shape, channel_last in (((64, 64, 1), True), ((4, 64, 64), False)):
        entry = Entry(key="eye", kind="picture", shape=shape)
        eye = np.zeros((2, *shape), np.float32)
        eye[..., -1 if channel_last else slice(None)] = 0.0
        if not channel_last:
            eye[:, -1] = 1.0
        one = told(2, 0.0)._replace(obs={"eye": eye})
        frames = scene_frames(Scene(1, one, one, one._replace(obs={"eye": eye[1:]})), 0, entry)
        value = frames[0, LABEL + EDGE + 5, EDGE + 5]
        assert tuple(value) == ((0, 0, 0) if channel_last else (255, 255, 255))


def test_the_figure_has_a_panel_for_everything(numbers: Path) -> None:
    trained = statewise.load(numbers)
    world = trained.agent.world
    generator = torch.Generator().manual_seed(0)
    scenes = [
        make_scene(world, step, i, generator) for i, step in enumerate(episodes_of(trained, 2, 0))
    ]
    figure = make_curves(scenes, list(world.decoder.entries.values()))
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels[::2] == ["obs", "mean square", "reward", "continues"]
    reward = figure.axes[4].lines
    np.testing.assert_array_equal(reward[0].get_ydata(), scenes[0].truth.reward)
    assert reward[2].get_xdata()[0] == scenes[0].context
    assert len(reward[2].get_xdata()) == len(scenes[0].imagined.reward)
    mark = [line for line in reward if line.get_linestyle() == ":"]
    assert mark[0].get_xdata()[0] == scenes[0].context - 0.5


def test_errors_are_against_the_truth_of_the_same_rows() -> None:
    truth = told(4, 0.0)
    truth.obs["eye"][:] = np.arange(4, dtype=np.float32)[:, None, None, None]
    scene = Scene(1, truth, told(4, 0.0), told(3, 1.0))
    seen, imagined = scene.errors("eye")
    assert seen.tolist() == [0, 1, 4, 9]
    assert imagined.tolist() == [0, 1, 4]


def test_an_agent_that_imagines_plays_the_episodes(agent: TrainedWorldAgent) -> None:
    played = play(agent, 2, seed=3)
    for index, episode in enumerate(played):
        env = CounterEnv()
        obs, _ = env.reset(seed=3 + index)
        for t in range(len(episode)):
            np.testing.assert_array_equal(episode.observations["obs"][t], obs)
            obs, reward, terminated, truncated, _ = env.step(episode.actions[t])
            assert episode.rewards[t] == np.float32(reward)
        np.testing.assert_array_equal(episode.observations["obs"][-1], obs)
        assert (episode.terminated, episode.truncated) == (terminated, truncated)


def test_a_run_in_an_environment_is_drawn(
    agent: TrainedWorldAgent, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    RunDirectory.create(tmp_path / "run", "", {})
    monkeypatch.setattr(api, "load", lambda path, checkpoint, device: agent)
    shown = imagine(tmp_path / "run", ImagineOptions(episodes=1, context=1))
    assert shown.path == tmp_path / "run" / "plots" / "imagine.png"
    assert shown.path.is_file()
    assert shown.lines[0].startswith("episode 0: context 1, imagined ")


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"context": 50}, r"imagine: expected a context of 1 to \d+ of the \d+ observations of ep"),
        ({"out": Path("a.gif")}, r"imagine: expected pictures for a\.gif, got numbers alone \(obs"),
        ({"out": Path("a.mp4")}, r"imagine: expected --out ending in \.gif or \.png, got a\.mp4"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(options: Any, pattern: str, numbers: Path) -> None:
    with pytest.raises(ConfigError, match=pattern) as error:
        imagine(numbers, ImagineOptions(**options))
    assert "\n" not in str(error.value)


def test_a_run_without_a_world_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = statewise.make("ppo/cartpole").save(tmp_path / "run")
    assert main(["imagine", str(run)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: imagine: expected a run with a world model (dreamer, r2i, drama")
    assert err.count("\n") == 1
    assert main(["imagine", str(tmp_path / "no")]) == 2
    assert main(["imagine", str(run), "--context", "0"]) == 2
    assert "expected an integer of at least 1, got '0'" in capsys.readouterr().err


def test_a_figure_that_cannot_be_written_is_one_line(
    numbers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["imagine", str(numbers), "--out", str(tmp_path / "file" / "a.png")]) == 2
    assert "cannot be written" in capsys.readouterr().err
