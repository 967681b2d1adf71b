"""The whole way from an environment to data sets in a folder: exact, cached, resumed."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from statewise.data import EpisodeDataset, load_dataset
from statewise.data.errors import DatasetError, NoReferenceScore
from statewise.training import make_data as module
from statewise.training import make_data_train as training
from statewise.training.make_data import make_data
from statewise.training.make_data_folder import DataFolder
from statewise.training.make_data_recipes import LEVELS, TOYS, ToyConfig
from statewise.training.make_data_rollout import make_environment
from statewise.training.make_data_sac import Trainer
from statewise.training.progress import Progress
from statewise.training.run import RunDirectory
from statewise.training.schema import ConfigError
from statewise.training.seeding import Seeds
from tests.training.data_cases import REACH, register, tiny

pytest.importorskip("stable_baselines3")
register()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every level, of one training that was not stopped."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("data") / "reach"
    assert make_data(tiny(), out) == list(LEVELS)
    return out


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def recipe(out: Path) -> dict[str, Any]:
    return DataFolder(out).recipe


def hashes(out: Path) -> dict[str, list[str]]:
    keys = ("sha256", "minari_sha256")
    return {level: [entry[key] for key in keys] for level, entry in recipe(out)["levels"].items()}


def arrays(dataset: EpisodeDataset, index: int) -> tuple[Any, Any, Any]:
    episode = dataset.episode(index)
    return episode.observations["obs"], episode.actions, episode.rewards


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_is_the_same_in_both_layouts_and_says_what_it_is(
    made: Path, level: str
) -> None:
    flat = load_dataset(made / f"{level}.hdf5")
    minari = load_dataset(made / "minari" / f"{level}-v0")
    assert len(flat) == len(minari)
    for index in range(len(flat)):
        for one, other in zip(arrays(flat, index), arrays(minari, index), strict=True):
            assert_array_equal(one, other)
    assert_array_equal(flat.terminated, minari.terminated)
    assert_array_equal(flat.truncated, minari.truncated)
    assert flat.has_final.all()
    for info in (flat.info, minari.info):
        assert info.env_id == REACH
        assert info.max_episode_steps == 10
        chosen = recipe(made)["chosen"]
        assert (info.ref_min, info.ref_max) == (chosen["ref_min"], chosen["ref_max"])
        assert info.action_spec is not None
        assert info.action_spec.high is not None
        assert info.action_spec.high.tolist() == [2]
        assert info.generator["level"] == level
        assert info.generator["algorithm"] == "sac"
        assert info.generator["versions"]["stable-baselines3"]


def test_the_package_minari_loads_what_was_made(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(made / "minari"))
    ours = load_dataset(made / "expert.hdf5")
    theirs = minari.load_dataset("expert-v0")
    assert theirs.total_episodes == len(ours)
    for number, episode in enumerate(theirs.iterate_episodes()):
        found = (episode.observations, episode.actions, episode.rewards)
        for one, other in zip(found, arrays(ours, number), strict=True):
            assert_array_equal(one, other)
        assert episode.terminations[-1] == ours.terminated[number]
    metadata = theirs.storage.metadata
    assert metadata["ref_max_score"] == ours.info.ref_max


@pytest.mark.parametrize("level", ["random", "medium", "expert"])
def test_playing_the_actions_again_gives_every_row_flag_and_final_observation(
    made: Path, level: str
) -> None:
    dataset = load_dataset(made / f"{level}.hdf5")
    env, seed = make_environment(REACH), Seeds(0).integer(f"{level}.episodes")
    assert len(dataset) == 5
    for index in range(len(dataset)):
        obs, actions, rewards = arrays(dataset, index)
        assert_array_equal(env.reset(seed=seed + index)[0], obs[0])
        for t, action in enumerate(actions):
            found, reward, terminated, truncated, _ = env.step(action)
            assert_array_equal(found, obs[t + 1])
            assert np.float32(reward) == rewards[t]
            last = t == len(actions) - 1
            assert terminated == (dataset.terminated[index] and last)
            assert (truncated and not terminated) == (dataset.truncated[index] and last)


def test_the_replay_is_what_the_training_saw_with_actions_in_units_of_the_environment(
    made: Path,
) -> None:
    dataset = load_dataset(made / "full-replay.hdf5")
    env = make_environment(REACH)
    obs = env.reset(seed=Seeds(0).integer("policy"))[0]
    for index in range(len(dataset)):
        observations, actions, _ = arrays(dataset, index)
        assert_array_equal(obs, observations[0])
        for t, action in enumerate(actions):
            obs, _, terminated, truncated, _ = env.step(action)
            assert_array_equal(obs, observations[t + 1])
        assert terminated == dataset.terminated[index]
        assert (truncated and not terminated) == dataset.truncated[index]
        obs = env.reset()[0]
    assert dataset.terminated.any()
    assert dataset.truncated.any()
    assert max(np.abs(arrays(dataset, i)[1]).max() for i in range(len(dataset))) > 1
    assert 90 < dataset.num_steps <= 100  # at most the unfinished episode is missing


def test_the_medium_replay_is_the_beginning_of_the_full_one(made: Path) -> None:
    part, whole = (load_dataset(made / f"{kind}-replay.hdf5") for kind in ("medium", "full"))
    step = recipe(made)["chosen"]["medium"]
    ends = np.cumsum(whole.lengths)
    assert len(part) == (ends <= step).sum()
    for index in range(len(part)):
        for one, other in zip(arrays(part, index), arrays(whole, index), strict=True):
            assert_array_equal(one, other)


def test_medium_expert_is_the_one_after_the_other(made: Path) -> None:
    both = load_dataset(made / "medium-expert.hdf5")
    parts = [load_dataset(made / f"{level}.hdf5") for level in ("medium", "expert")]
    assert_array_equal(both.returns, np.concatenate([part.returns for part in parts]))


def test_scores_and_curve_are_noted(made: Path) -> None:
    noted = recipe(made)
    low, high = noted["chosen"]["ref_min"], noted["chosen"]["ref_max"]
    assert [step for step, _ in noted["curve"]] == [50, 75, 100]
    best = max(noted["curve"], key=lambda entry: entry[1])
    assert noted["chosen"]["expert"] == best[0]
    for level, entry in noted["levels"].items():
        returns = load_dataset(made / f"{level}.hdf5").returns
        assert entry["return_mean"] == pytest.approx(returns.mean())
        assert entry["score"] == pytest.approx(100 * (returns.mean() - low) / (high - low))
    # uniform actions in [-2, 2] pay -(1 + 4 / 3) per step on average
    steps = np.concatenate([arrays(load_dataset(made / "random.hdf5"), i)[2] for i in range(5)])
    assert steps.mean() == pytest.approx(-7 / 3, abs=4 * 2.4 / np.sqrt(len(steps)))


def test_what_is_complete_is_not_made_again(copied: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()}
    assert make_data(tiny(), copied) == []
    changed = [path.name for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert changed == [".lock"]


def test_a_missing_or_damaged_level_is_made_again_without_training(
    copied: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(Trainer, "train_to", fail)
    (copied / "medium-replay.hdf5").unlink()
    with (copied / "expert.hdf5").open("ab") as file:
        file.write(b"x")
    assert make_data(tiny(), copied, ["expert", "random"]) == ["expert"]
    assert make_data(tiny(), copied) == ["medium-replay"]
    assert hashes(copied) == hashes(made)


def test_a_training_that_was_stopped_goes_on_to_the_same_files(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = [13, 62]  # before anything was saved, and between two states

    class Stopping(Progress):
        def update(self, step: int, episode_return: float | None = None) -> None:
            if step == stops[0]:
                raise KeyboardInterrupt
            super().update(step, episode_return)

    out = tmp_path / "stopped"
    while stops:
        with monkeypatch.context() as patch:
            patch.setattr(training, "Progress", Stopping)
            with pytest.raises(KeyboardInterrupt):
                make_data(tiny(), out)
        stops.pop(0)
        np.random.seed(99)  # noqa: NPY002 - what another process would bring
        torch.manual_seed(99)
    assert [path.name for path in (out / "training/checkpoints").iterdir() if path.name[0] != "."]
    make_data(tiny(), out)
    assert hashes(out) == hashes(made)
    assert recipe(out)["curve"] == recipe(made)["curve"]


def numpy_stream() -> Any:
    state: Any = np.random.get_state()  # noqa: NPY002
    return state[1]


def test_the_global_generators_are_as_before(copied: Path) -> None:
    (copied / "expert.hdf5").unlink()
    before = torch.get_rng_state(), numpy_stream()
    make_data(tiny(), copied)
    assert torch.equal(before[0], torch.get_rng_state())
    assert_array_equal(before[1], numpy_stream())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"steps": 150}, "steps: expected 100 as this folder was made with, got 150"),
        ({"seed": 1}, "seed: expected 0 as"),
        ({"algorithm": "td3"}, "algorithm: expected sac"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(
    made: Path, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        make_data(tiny(**changes), made)
    assert "pass another --out" in str(caught.value)


def test_folders_that_are_something_else_are_refused(tmp_path: Path) -> None:
    config = ToyConfig(toy="rtg-dial", episodes=2)
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ConfigError, match=r"it holds mine\.txt: pass another --out"):
        make_data(config, tmp_path)
    with pytest.raises(ConfigError, match="expected a folder"):
        make_data(config, tmp_path / "mine.txt")
    (tmp_path / "recipe.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ConfigError, match="expected a recipe of format 1"):
        make_data(config, tmp_path)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with (
        RunDirectory(tmp_path).lock(),
        pytest.raises(ConfigError, match=r"is in use by process .*another --out"),
    ):
        make_data(ToyConfig(toy="rtg-dial", episodes=2), tmp_path)


def test_a_full_disk_leaves_the_level_that_was_there(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = DataFolder(copied)
    folder.note(levels={k: v for k, v in folder.recipe["levels"].items() if k != "random"})
    before = {path: path.read_bytes() for path in copied.glob("*.hdf5")}

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("statewise.data.files.os.replace", full)
        with pytest.raises(DatasetError, match="No space left on device"):
            make_data(tiny(), copied)
    assert {path: path.read_bytes() for path in copied.glob("*.hdf5")} == before
    assert [p.name for p in copied.iterdir() if p.suffix == ".tmp"] == []
    assert make_data(tiny(), copied) == ["random"]


def test_a_policy_that_learnt_nothing_is_no_reference(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied / "random.hdf5").unlink()
    content = {key: value for key, value in recipe(copied).items() if key != "chosen"}
    (copied / "recipe.json").write_text(json.dumps(content))
    monkeypatch.setattr(module, "evaluate", lambda *_, **__: np.array([-3.0]))
    with pytest.raises(
        NoReferenceScore, match="better than random actions, got mean returns of -3"
    ):
        make_data(tiny(), copied)
    assert not (copied / "random.hdf5").exists()


def test_a_level_that_does_not_exist_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got 'expret': did you mean expert"):
        make_data(tiny(), tmp_path / "new", ["expret"])
    assert not (tmp_path / "new").exists()


@pytest.mark.filterwarnings("ignore:.*constant entries")  # of the dial: (t / T, 1)
@pytest.mark.parametrize("toy", TOYS)
def test_the_analytic_sets_are_made_by_the_same_call(toy: str, tmp_path: Path) -> None:
    config = ToyConfig(toy=toy, episodes=4, seed=2)
    levels = make_data(config, tmp_path)
    assert make_data(config, tmp_path) == []
    for level in levels:
        for path in (tmp_path / f"{level}.hdf5", tmp_path / "minari" / f"{level}-v0"):
            dataset, expected = load_dataset(path), config.make(level)
            assert len(dataset) == 4
            for index in range(4):
                pairs = zip(arrays(dataset, index), arrays(expected, index), strict=True)
                assert all(np.array_equal(*pair) for pair in pairs)
            assert (dataset.info.ref_min, dataset.info.ref_max) == (
                expected.info.ref_min,
                expected.info.ref_max,
            )
            assert dataset.info.env_id == expected.info.env_id
