"""World models from data: runs, exact resume, evaluations of held-out episodes, refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import statewise
from statewise.__main__ import main
from statewise.agents.optimizer import rate_factor
from statewise.data import load_dataset, write_d4rl
from statewise.data.episode import ArraySpec
from statewise.data.errors import DatasetError
from statewise.training.api import TrainedWorldModel, resume_training, run_training
from statewise.training.config import ConfigError, load_preset
from statewise.training.evaluate import EvalOptions
from statewise.training.plot_curves import read_curves
from statewise.training.run import RunDirectory, RunError
from statewise.training.world_facts import space_of, split_last
from tests.training import offline_cases
from tests.training import world_data_cases as cases
from tests.training.test_offline import CrashError, crash_at, same_end
from tests.training.test_resume import curves

WORDS = ["statewise", "train", cases.PRESET]
pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return offline_cases.written(tmp_path_factory.mktemp("data"), count=20)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that was left alone."""
    return train(cases.settings(data), tmp_path_factory.mktemp("runs") / "whole")


def train(config: Any, run: Path) -> Path:
    return run_training(config, run, WORDS, quiet=True)


def line_of(error: pytest.ExceptionInfo[Exception]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- data


def test_the_last_episodes_are_held_out(data: Path, whole: Path) -> None:
    every = load_dataset(data)
    parts = split_last(every, 0.1)
    assert (len(parts.learned), len(parts.held_out)) == (18, 2)
    for part, first in ((parts.learned, 0), (parts.held_out, 18)):
        for number, episode in enumerate(part.episodes()):
            wanted = every.episode(first + number)
            np.testing.assert_array_equal(episode.rewards, wanted.rewards)
    manifest = RunDirectory.open(whole).read_manifest()
    assert manifest["data"]["num_episodes"] == 18
    assert manifest["held_out"]["num_episodes"] == 2
    assert manifest["data"]["sha256"] == [every.info.sha256]
    assert len(split_last(every, 0.001).held_out) == len(split_last(every, 0.999).learned) == 1
    with pytest.raises(DatasetError, match="expected two or more episodes"):
        split_last(every.subset([0]), 0.5)


def test_spaces_come_from_the_data_and_are_known_without_them(data: Path, whole: Path) -> None:
    trained = statewise.load(whole)
    assert isinstance(trained, TrainedWorldModel)
    assert trained.action_space == spaces.Discrete(3)  # those that occur: the file does not say
    assert trained.obs_space == spaces.Dict({"obs": spaces.Box(-np.inf, np.inf, (3,), np.float32)})
    assert space_of(ArraySpec((2,), "int64", num_choices=(2, 5))) == spaces.MultiDiscrete([2, 5])
    assert space_of(ArraySpec((), "bool")) == spaces.Discrete(2)
    eye = space_of(ArraySpec((64, 64, 3), "uint8"))
    assert eye == spaces.Box(0, 255, (64, 64, 3), np.uint8)


def test_other_episodes_can_be_held_out(data: Path, tmp_path: Path) -> None:
    other = offline_cases.written(tmp_path, "other", count=3, seed=50)
    trained = TrainedWorldModel(cases.settings(data, eval__data=str(other)))
    assert (len(trained.parts.learned), len(trained.parts.held_out)) == (20, 3)
    assert trained.facts.held_out.paths == (str(other),)
    _, report = trained.evaluate(EvalOptions())
    assert report["data_sha256"] == [load_dataset(other).info.sha256]
    assert report["episodes"] == 3
    with pytest.raises(DatasetError, match=r"observations/obs: expected rows .* got none") as error:
        TrainedWorldModel(cases.settings(data, eval__data=str(cases.pictures(tmp_path))))
    line_of(error)


# --- runs


def test_a_run_that_dies_goes_on_bit_for_bit(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repair = crash_at(monkeypatch, 4)
    with pytest.raises(CrashError):
        train(cases.settings(data), tmp_path / "run")
    repair()
    monkeypatch.chdir(tmp_path)  # the data are found from anywhere
    resume_training(tmp_path / "run", WORDS, quiet=True)
    same_end(tmp_path / "run", whole)
    assert [one["step"] for one in RunDirectory.open(tmp_path / "run").read_manifest()["resumed"]]
    with pytest.raises(RunError, match="is complete at 6 updates: nothing to resume"):
        resume_training(whole, WORDS, quiet=True)


def test_evaluations_on_the_way_change_nothing_that_is_learned(
    data: Path, whole: Path, tmp_path: Path
) -> None:
    quiet = train(cases.settings(data, eval__every_updates=0), tmp_path / "quiet")
    states = [statewise.load(run).agent.state_dict()["world"] for run in (quiet, whole)]
    assert all(torch.equal(x, states[1][key]) for key, x in states[0].items())


def test_the_log_has_losses_and_evaluations(whole: Path) -> None:
    rows = curves(whole)
    assert [row["step"] for row in rows] == [2, 3, 4, 6]
    for row in rows:
        losses = {"decoder", "reward", "cont", "dyn", "rep", "kl"}
        assert {f"world_model/{name}_loss" for name in losses} <= row.keys()
        assert "offline/world_model/decoder_loss" not in row
    for row in (rows[1], rows[3]):
        assert {"eval/reconstruction", "eval/generation"} <= row.keys()
        assert row["eval/reward_accuracy_inference"] in (0.0, 0.5, 1.0)  # of two episodes
        assert row["eval/reward_accuracy_imagination"] in (0.0, 0.25, 0.5, 0.75, 1.0)
    assert "eval/generation" not in rows[0]


@pytest.mark.parametrize("sampling", ["episodes", "packed", "stream"])
def test_final_observations_are_no_padding(sampling: str, data: Path) -> None:
    stream = {"agent__length": 12, "agent__starts": "episode"} if sampling == "stream" else {}
    trained = TrainedWorldModel(cases.settings(data, agent__sampling=sampling, **stream))
    with trained.source() as sampler:
        batch = sampler.sample()
        valid, rows = trained.loop(sampler, None).count_rows(batch)
    assert rows == batch.step.valid.numel()
    known = int((load_dataset(data).lengths[batch.episode] + 1).sum())
    assert valid == (rows if sampling == "stream" else known)
    assert int(batch.step.valid.sum()) < valid <= rows


def test_an_evaluation_writes_everything_and_is_repeated(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(whole)]) == 0
    first = json.loads((whole / "eval.json").read_text())
    assert main(["eval", str(whole)]) == 0
    assert json.loads((whole / "eval.json").read_text()) == first
    assert (first["step"], first["episodes"], first["samples"]) == (6, 2, 2)
    assert first["context"] == "half"
    assert first["env"] == offline_cases.COUNTER
    for name in ("reconstruction", "generation"):
        entry = first[name]["entries"]["obs"]
        assert first[name]["loss"] == entry["loss"] > 0
        assert len(entry["loss_per_step"]) == len(entry["mse_per_step"]) > 1
    rewards = first["reward"]
    assert rewards["chance"] == 0.5  # two episodes with different last rewards
    assert [row["episodes"] for row in rewards["values"]] == [1, 1]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("reconstruction ")
    assert lines[3] == f"2 episodes, context half of each, 2 rollouts: {whole / 'eval.json'}"
    assert main(["eval", str(whole), "--seed", "7"]) == 0
    other = json.loads((whole / "eval.json").read_text())
    assert other["generation"]["loss"] != first["generation"]["loss"]
    assert main(["eval", str(whole), "--episodes", "1"]) == 0
    assert json.loads((whole / "eval.json").read_text())["episodes"] == 1


def test_a_run_is_drawn_by_its_loss(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (curve,) = read_curves([whole])
    assert curve.metric == "world_model/decoder_loss"
    assert curve.label == f"{cases.PRESET}, s5, counter"
    assert (curve.env, curve.y_label) == (offline_cases.COUNTER, "decoder loss")
    assert main(["eval", str(whole)]) == 0
    assert main(["plot", str(whole), "--out", str(tmp_path / "a.png")]) == 0
    assert main(["list", "presets"]) == 0
    assert cases.PRESET in capsys.readouterr().out


def test_it_learns_on_in_memory_and_is_saved(data: Path, whole: Path, tmp_path: Path) -> None:
    trained = statewise.load(whole)
    assert trained.fit(n_steps=2).step == 8
    assert trained.fit(load_dataset(data), n_steps=1).step == 9
    assert trained.fit(data, n_steps=1).step == 10
    again = statewise.load(trained.save(tmp_path / "saved"))
    assert again.step == 10
    assert again.evaluate(EvalOptions()) == statewise.load(tmp_path / "saved").evaluate(
        EvalOptions()
    )
    with pytest.raises(ConfigError, match="fit: expected observations") as error:
        trained.fit(cases.picture_data(), n_steps=1)
    line_of(error)


def test_a_cosine_ends_with_the_updates_of_a_run_and_of_what_is_learned_on(data: Path) -> None:
    cosine = {"agent__optimizer": {"schedule": "cosine", "warmup_updates": 0}}
    made = statewise.make(cases.PRESET, data=load_dataset(data), **cases.TINY | cosine)
    assert isinstance(made, TrainedWorldModel)
    settings = made.agent.optimizer.settings
    assert rate_factor(made.config.total_updates, settings) == 0
    assert rate_factor(made.config.total_updates - 1, settings) > 0
    made.fit(n_steps=2)
    assert rate_factor(made.fit(n_steps=3).step, made.agent.optimizer.settings) == 0
    assert made.agent.optimizer.settings.total_updates == 5


def test_it_is_made_and_trained_from_python(data: Path) -> None:
    made = statewise.make(cases.PRESET, data=load_dataset(data), **cases.TINY)
    assert isinstance(made, TrainedWorldModel)
    assert made.fit(n_steps=1).step == 1


def test_pictures_and_numbers_are_learned_together(tmp_path: Path) -> None:
    trained = TrainedWorldModel(cases.settings(cases.pictures(tmp_path), agent__batch_size=2))
    trained.fit(n_steps=1)
    assert trained.action_space == spaces.Box(-2, 2, (1,), np.float32)
    _, report = trained.evaluate(EvalOptions())
    assert list(report["generation"]["entries"]) == ["speed", "eye"]


# --- refusals


@pytest.mark.parametrize(
    "call",
    [
        lambda t: t.predict(None),
        lambda t: t.make_env(),
        lambda t: t.wrap(gymnasium.Env()),
        lambda t: t.learn(5),
        lambda t: t.export("a.pt2"),
    ],
    ids=["predict", "make_env", "wrap", "learn", "export"],
)
def test_there_is_no_policy(call: Callable[[Any], Any], whole: Path) -> None:
    with pytest.raises(ConfigError, match="expected a system with a policy, got s4wm") as error:
        call(statewise.load(whole))
    line_of(error)


def no_rewards(folder: Path) -> Path:
    dataset = offline_cases.counter_data()
    silent = [
        type(one)(**{**vars(one), "rewards": np.zeros_like(one.rewards), "source_id": ""})
        for one in dataset.episodes()
    ]
    path = folder / "silent.hdf5"
    write_d4rl(type(dataset).from_episodes(silent, dataset.info), path)
    return path


def test_data_without_rewards_are_refused_where_rewards_are_learned(tmp_path: Path) -> None:
    path = no_rewards(tmp_path)
    with pytest.raises(ConfigError, match=r"data: expected rewards, as agent\.world") as error:
        TrainedWorldModel(cases.settings(path))
    line_of(error)
    TrainedWorldModel(cases.settings(path, agent__world__loss_scale__reward=0.0))


def test_a_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    path = cases.pictures(tmp_path, size=48)
    with pytest.raises(ConfigError, match=r"'eye'.*square picture.*got 48 x 48") as error:
        TrainedWorldModel(cases.settings(path))
    line_of(error)


def test_data_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = offline_cases.written(tmp_path, "bad", count=4)
    import h5py

    with h5py.File(path, "r+") as file:
        file["observations"][3, 1] = np.nan
    with pytest.raises(DatasetError, match=r"observations.*finite") as error:
        TrainedWorldModel(cases.settings(path))
    line_of(error)


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        (
            {"eval__context": 50},
            r"eval\.context: expected .*fewer than the \d+ of episode 0, got 5",
        ),
        ({"agent__world__core": "rssm"}, r"agent\.world\.parallel: would be ignored with core"),
        ({"eval__held_out": 1.0}, r"eval\.held_out: expected a share in \(0, 1\), got 1"),
        ({"eval__data": "a", "eval__held_out": 0.2}, r"eval\.held_out: would be ignored with data"),
        ({"eval__samples": 0}, r"eval\.samples: expected at least 1, got 0"),
    ],
)
def test_wrong_settings_are_one_line(changes: Any, pattern: str, data: Path) -> None:
    with pytest.raises(ConfigError, match=pattern) as error:
        TrainedWorldModel(cases.settings(data, **changes))
    line_of(error)


def test_options_of_agents_that_play_are_refused(whole: Path, data: Path) -> None:
    trained = statewise.load(whole)
    for options in (EvalOptions(num_envs=2), EvalOptions(actions="sample")):
        with pytest.raises(ConfigError, match=r"eval: expected no .* for s4wm") as error:
            trained.evaluate(options)
        line_of(error)
    with pytest.raises(ConfigError, match="env: expected none for s4wm"):
        TrainedWorldModel(cases.settings(data), env=gymnasium.Env)
    with pytest.raises(ConfigError, match=r"data\.paths: expected one or more data sets"):
        TrainedWorldModel(cases.settings(None))


def test_a_run_does_not_go_on_with_other_data(data: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.hdf5"
    own.write_bytes(data.read_bytes())
    saved = TrainedWorldModel(cases.settings(own)).save(tmp_path / "saved")
    own.unlink()
    with pytest.raises(RunError, match=r"own\.hdf5: expected the data of this run, got nothing"):
        statewise.load(saved).evaluate(EvalOptions())


def test_the_presets_are_of_world_models_on_s5() -> None:
    for name in ("s4wm/delayed_offer", "s4wm/doors_keys", "s4wm/hallway", "s4wm/pong"):
        config = load_preset(name)
        assert config.agent.world.parallel.sequence.kind == "s5"
        assert config.data.paths == ()
