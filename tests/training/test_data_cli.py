"""`statewise data`: what a user types, and the one line for what does not work."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from statewise import __main__ as program
from statewise.data import load_dataset
from statewise.data.d4rl import write_d4rl
from statewise.data.toys import double_integrator
from statewise.training import data_cli
from statewise.training import make_data as making
from statewise.training.make_data_recipes import MakeConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*constant entries")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.hdf5"
    write_d4rl(double_integrator(3, random_share=0.2), path)
    return path


def said(argv: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """Run `statewise data ...` that must succeed and return what it says."""
    capsys.readouterr()
    assert program.main(["data", *map(str, argv)]) == 0
    return " ".join(capsys.readouterr().out.split())


def error_line(argv: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """Run `statewise data ...` that must fail and return its one line."""
    capsys.readouterr()
    assert program.main(["data", *map(str, argv)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err.strip()


def test_help_lists_the_actions_and_how_long_they_take(capsys: pytest.CaptureFixture[str]) -> None:
    text = said([], capsys)
    assert text == said(["--help"], capsys)
    for name, action in data_cli.ACTIONS.items():
        assert f"{name} {(action.__doc__ or '').splitlines()[0]}" in text
        with pytest.raises(SystemExit) as caught:
            program.main(["data", name, "--help"])
        assert caught.value.code == 0
        assert f"usage: statewise data {name}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        program.main(["data", "make", "--help"])
    text = capsys.readouterr().out
    assert "about an hour per 200,000 steps" in text
    assert "an afternoon in all" in text


def test_an_analytic_set_is_made_shown_and_not_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["make", "delayed-cue", "--episodes", 6, "--seed", 3]
    text = said(command, capsys)
    assert "datasets/delayed-cue" in text
    assert "expert │ 6 │ 186 │ 1 │ 0 │ 1 │ 1 │ 100.0" in text
    again = said(command, capsys)
    assert again.startswith("datasets/delayed-cue is complete: nothing to do")
    for path in ("expert.hdf5", "minari/expert-v0"):
        assert len(load_dataset(tmp_path / "datasets/delayed-cue" / path)) == 6
    error = error_line(["make", "delayed-cue", "--episodes", 7], capsys)
    assert "recipe.json: episodes: expected 6 as this folder was made with, got 7" in error


def test_another_length_has_a_folder_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for words, folder, steps in (([], "rtg-dial", 20), (["--length", 7], "rtg-dial-7", 7)):
        said(["make", "rtg-dial", "--episodes", 1, *words], capsys)
        assert load_dataset(tmp_path / "datasets" / folder / "mixed.hdf5").num_steps == steps
    error = error_line(["make", "pendulum", "--length", 7], capsys)
    assert "expected no --length for pendulum, got 7: rtg-dial, delayed-cue, " in error
    assert error.rstrip().endswith("and dark-room-histories have one")


def test_what_was_typed_reaches_the_maker(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def record(config: MakeConfig, out: Path, levels: list[str], *, console: Any) -> list[str]:
        calls.append((config, out, levels))
        assert console is not None
        out.mkdir()
        (out / "recipe.json").write_text('{"levels": {}}')
        return ["expert"]

    monkeypatch.setattr(making, "make_data", record)
    words = (
        "make Reacher-v5 --steps 900 --algorithm td3 --episodes 8 --seed 2 --levels expert random"
    )
    said([*words.split(), "--out", tmp_path / "x"], capsys)
    config, out, levels = calls[0]
    assert (config.env_id, config.steps, config.algorithm) == ("Reacher-v5", 900, "td3")
    assert (config.episodes, config.seed) == (8, 2)
    assert (out, levels) == (tmp_path / "x", ["expert", "random"])


def test_inspect_shows_the_numbers_of_the_data_set(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = said(["inspect", source], capsys)
    assert "environment │ statewise/DoubleIntegrator-v0" in text
    assert "episodes │ 3" in text
    assert "steps │ 150" in text
    assert "truncated │ 3" in text
    assert "generator/random_share │ 0.2" in text


def test_converting_around_the_three_layouts_changes_no_bit(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["copy-v0", "copy.npz", "copy.h5", "back.hdf5"]
    for before, after in zip([source.name, *names], names, strict=False):
        text = said(["convert", tmp_path / before, tmp_path / after], capsys)
        assert text.endswith(f"{after}: 3 episodes, 150 steps")
    first = load_dataset(source)
    for name in names:
        other = load_dataset(tmp_path / name)
        assert_array_equal(other.truncated, first.truncated)
        assert_array_equal(other.terminated, first.terminated)
        assert (other.info.env_id, other.info.ref_max) == (first.info.env_id, first.info.ref_max)
        for one, two in zip(first.episodes(), other.episodes(), strict=True):
            assert_array_equal(one.observations["obs"], two.observations["obs"])
            assert len(two.observations["obs"]) == 51
            assert_array_equal(one.actions, two.actions)
            assert_array_equal(one.rewards, two.rewards)


def test_the_layout_can_be_named_and_a_target_replaced(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "plain.data"
    said(["convert", source, target, "--to", "npz"], capsys)
    with np.load(target) as stored:
        assert stored["actions"].shape == (150, 1)
    assert "expected no such file" in error_line(
        ["convert", source, target, "--to", "d4rl"], capsys
    )
    said(["convert", source, target, "--to", "d4rl", "--overwrite"], capsys)
    assert target.read_bytes()[1:4] == b"HDF"


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["mkae"], "expected one of make, inspect, convert, got 'mkae': did you mean make?"),
        (["make"], "data make: the following arguments are required: ENV"),
        (["make", "pendlum"], "expected --steps for pendlum"),
        (["make", "pendulum", "--steps", "ten"], "expected an integer of at least 1, got 'ten'"),
        (["make", "pendulum", "--steps", "900"], "steps: expected more than the 1000 random ones"),
        (["make", "rtg-dial", "--steps", "9"], "expected no --steps for rtg-dial, got 9"),
        (["make", "rtg-dial", "--levels", "expert"], "expected levels among mixed, got 'expert'"),
        (["make", "rtg-dial", "--out", "{there}"], "it holds source.hdf5: pass another --out"),
        (["make", "CartPole-v1", "--steps", "99"], "expected a bounded vector of floats as action"),
        (["make", "Pendulm-v1", "--steps", "99"], "did you mean Pendulum-v1"),
        (["make", "pendulum", "--algorithm", "ppo"], "invalid choice: 'ppo'"),
        (["inspect", "{there}/nothing.hdf5"], "expected a file, got nothing: check the path"),
        (["inspect", "{there}"], "expected a Minari data set"),
        (["convert", "{there}/source.hdf5"], "the following arguments are required: DST"),
        (["convert", "{there}/source.hdf5", "x.csv"], "expected DST to end in .hdf5, .h5, .npz or"),
        (["convert", "{there}/source.hdf5", "{there}/no/x.npz"], "expected a folder, got nothing"),
        (["convert", "{there}/source.hdf5", "{there}/x", "--to", "minari"], "form (namespace/)"),
        (["convert", "{there}/source.hdf5", "x.npz", "--to", "csv"], "invalid choice: 'csv'"),
    ],
)
def test_what_does_not_work_is_said_in_one_line(
    argv: list[str], text: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("stable_baselines3")
    assert text in error_line([word.format(there=source.parent) for word in argv], capsys)


def test_nothing_is_left_behind_by_a_conversion_that_failed(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    folder = tmp_path / "out"
    folder.mkdir()
    shutil.copy(source, folder / "a.hdf5")
    monkeypatch.setattr("statewise.data.files.os.replace", full)
    line = error_line(["convert", source, folder / "a.hdf5", "--overwrite"], capsys)
    assert "No space left on device: free some space; what was there before is unchanged" in line
    assert [path.name for path in folder.iterdir()] == ["a.hdf5"]
    assert (folder / "a.hdf5").read_bytes() == source.read_bytes()
