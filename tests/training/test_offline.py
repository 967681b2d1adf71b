"""Runs on data: what is logged, evaluated and saved, and that a stopped run goes on bit for bit."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import statewise
from statewise.__main__ import main
from statewise.data import DatasetInfo, EpisodeDataset, concatenate, load_dataset, write_d4rl
from statewise.data.errors import DatasetError, EnvMismatch, SpecMismatch
from statewise.training.api import TrainedOfflineAgent, resume_training, run_training, with_data
from statewise.training.config import ConfigError, OfflineTrainConfig, apply_overrides, load_preset
from statewise.training.evaluate import EvalResult, TargetResult
from statewise.training.loop import Stopped
from statewise.training.offline import OfflineTraining, count_rows
from statewise.training.offline_config import DataConfig
from statewise.training.offline_data import make_sampler, read_data
from statewise.training.progress import Progress
from statewise.training.run import RunDirectory, RunError
from statewise.training.seeding import Seeds
from tests.training import offline_cases as cases
from tests.training.test_resume import assert_same, curves, final_state, run_jobs

WORDS = ["statewise", "train", "dt/pendulum"]


@pytest.fixture(scope="module", autouse=True)
def _ready(no_waiting_for_the_disk: None) -> None:
    cases.register()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases.written(tmp_path_factory.mktemp("data"))


def settings(data: Path | None, preset: str = "dt/pendulum", **changes: Any) -> OfflineTrainConfig:
    tiny = {"dt/pendulum": cases.DT, "decision_s4/pendulum": cases.S4}[preset]
    values = {key.replace("__", "."): value for key, value in (tiny | changes).items()}
    config = with_data(apply_overrides(load_preset(preset), values), data)
    assert isinstance(config, OfflineTrainConfig)
    return config


def train(config: OfflineTrainConfig, run: Path) -> Path:
    return run_training(config, run, WORDS, quiet=True)


def same_end(found: Path, expected: Path) -> None:
    """Compare two runs without what depends on the clock."""
    states = [final_state(run) for run in (found, expected)]
    for state in states:
        for name in ("seconds", "sample_seconds"):
            state["means"].pop(name)
    assert_same(states[0], states[1])
    assert curves(found) == curves(expected)


# --- data


def test_several_files_are_put_one_after_the_other(data: Path, tmp_path: Path) -> None:
    other = cases.written(tmp_path, "other", count=5, seed=40)
    both = read_data(DataConfig(paths=(str(data), str(other))))
    expected = concatenate([load_dataset(data), load_dataset(other)])
    assert both.lengths.tolist() == expected.lengths.tolist()
    assert both.returns.tolist() == expected.returns.tolist()


@pytest.mark.parametrize("mode", ["memory", "lazy"])
def test_the_best_episodes_are_kept_and_rewards_delayed(mode: Any, data: Path) -> None:
    whole = load_dataset(data)
    config = DataConfig(paths=(str(data),), mode=mode, keep_best=0.25, reward="delayed")
    best = read_data(config)
    assert len(best) == 3
    assert sorted(best.returns) == sorted(whole.returns)[-3:]
    for episode in best.episodes():
        assert not episode.rewards[:-1].any()
        assert episode.rewards[-1] == pytest.approx(best.returns[episode.index])


def test_a_run_without_data_says_how_to_make_some(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^data\.paths: expected .*, got none: pass --data PATH"):
        train(settings(None), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("info", "changes", "error", "pattern"),
    [
        ({"env_id": "Other-v0"}, {}, EnvMismatch, r"expected data of toy/Off.*, got Other-v0"),
        ({}, {"env__id": "CartPole-v1"}, EnvMismatch, r"expected data of CartPole-v1, got toy"),
        ({"env_id": None}, {"env__id": "CartPole-v1"}, SpecMismatch, r"\(4,\).* as CartPole-v1"),
        ({"env_id": None}, {"env__id": "Acrobot-v1"}, SpecMismatch, r"\(6,\).* as Acrobot-v1"),
        ({"env_id": None}, {"env__id": ""}, ConfigError, r"^env\.id: expected the environment of"),
    ],
)
def test_data_of_another_environment_are_refused(
    info: dict[str, Any], changes: Any, error: type[Exception], pattern: str, tmp_path: Path
) -> None:
    path = cases.written(tmp_path, **info)
    with pytest.raises(error, match=pattern) as caught:
        train(settings(path, **changes), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_another_version_of_the_environment_can_be_allowed(tmp_path: Path) -> None:
    path = cases.written(tmp_path, env_id="toy/OfflineCounter-v1")
    config = settings(path, data__env_mismatch="warn")
    with pytest.warns(UserWarning, match=r"the data are of toy/OfflineCounter-v1"):
        agent = TrainedOfflineAgent(config)
    assert agent.env_id == cases.COUNTER


def test_the_environment_is_that_of_the_data_where_none_is_named(data: Path) -> None:
    agent = TrainedOfflineAgent(settings(data, env__id=""))
    assert agent.env_id == cases.COUNTER
    assert list(agent.obs_space) == ["obs", "previous_action", "return_to_go"]


# --- the loop


class Noting(OfflineTraining):
    """Remembers what every update gave and was given."""

    def __init__(self, config: OfflineTrainConfig, run: RunDirectory | None):
        trained = TrainedOfflineAgent(config)
        sampler = make_sampler(
            read_data(config.data), trained.agent.sampling, Seeds(config.seed).generator("data")
        )
        super().__init__(config, trained.agent, sampler, run, list)
        self.noted: list[dict[str, float]] = []
        self.rows: list[tuple[int, int]] = []
        draw = sampler.sample
        sampler.sample = lambda: self._note(draw())  # type: ignore[method-assign]

    def _note(self, batch: Any) -> Any:
        self.rows.append(count_rows(batch))
        return batch

    def iterate(self) -> dict[str, float]:
        self.noted.append(super().iterate())
        return self.noted[-1]


def test_a_line_of_metrics_holds_means_since_the_line_before(data: Path, tmp_path: Path) -> None:
    config = settings(data, total_updates=10)
    run = RunDirectory.create(tmp_path / "run", "", {})
    training = Noting(config, run)
    training.start()
    with Progress(10) as progress:
        training.train(progress)
    training.close()
    rows = curves_and_times(run.path)
    assert [row["step"] for row in rows] == [4, 8, 10]
    for row, begin, end in zip(rows, (0, 4, 8), (4, 8, 10), strict=True):
        for name in ("action_loss", "grad_norm"):
            expected = np.mean([losses[name] for losses in training.noted[begin:end]])
            assert row[f"offline/{name}"] == pytest.approx(expected, rel=1e-12)
        valid, rows_in_all = np.sum(training.rows[begin:end], 0)
        assert row["offline/padding_share"] == pytest.approx(1 - valid / rows_in_all)
        speed = row["time/tokens_per_s"] / row["time/updates_per_s"]
        assert speed == pytest.approx(valid / (end - begin))
        assert 0 < row["time/sample_share"] < 1
    assert 0 < rows[0]["offline/padding_share"] < 1
    assert training.shown(training.noted[-1]) == training.noted[-1]["action_loss"]


def curves_and_times(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_best_evaluation_on_the_way_is_kept_beside_the_last(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    returns = iter([3.0, 9.0, 5.0, 4.0])

    def play(self: TrainedOfflineAgent, options: Any) -> list[TargetResult]:
        value = next(returns)
        one = EvalResult(value, (0.0, 0.0), [])
        other = EvalResult(-value, (0.0, 0.0), [])
        return [TargetResult(20.0, one, value / 2), TargetResult(5.0, other, None)]

    monkeypatch.setattr(TrainedOfflineAgent, "play_targets", play)
    run = train(settings(data, eval__every_updates=3, total_updates=10), tmp_path / "run")
    rows = [row for row in curves(run) if "eval/return_mean" in row]
    assert [row["step"] for row in rows] == [3, 6, 9, 10]
    assert [row["eval/return_mean"] for row in rows] == [3, 9, 5, 4]
    assert [row["eval/score"] for row in rows] == [1.5, 4.5, 2.5, 2]
    assert [row["eval/return_mean/target_5"] for row in rows] == [-3, -9, -5, -4]
    assert [row["eval/best_return_mean"] for row in rows] == [3, 9, 9, 9]
    assert [row["eval/best_step"] for row in rows] == [3, 6, 6, 6]
    assert "eval/score/target_5" not in rows[0]
    assert all("offline/action_loss" in row for row in rows)


def test_the_best_evaluation_is_known_after_a_resume(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    returns = iter([9.0, 5.0, 5.0, 4.0, 3.0])

    def play(self: TrainedOfflineAgent, options: Any) -> list[TargetResult]:
        return [TargetResult(20.0, EvalResult(next(returns), (0.0, 0.0), []), None)]

    monkeypatch.setattr(TrainedOfflineAgent, "play_targets", play)
    config = settings(data, eval__every_updates=3, total_updates=10)
    repair = crash_at(monkeypatch, 7)  # the last checkpoint is of 5
    with pytest.raises(CrashError):
        train(config, tmp_path / "run")
    repair()
    resume_training(tmp_path / "run", WORDS, quiet=True)
    rows = [row for row in curves(tmp_path / "run") if "eval/return_mean" in row]
    assert [row["eval/return_mean"] for row in rows] == [9, 5, 4, 3]
    assert [row["eval/best_return_mean"] for row in rows] == [9, 9, 9, 9]
    assert [row["eval/best_step"] for row in rows] == [3, 3, 3, 3]


def test_evaluations_on_the_way_change_nothing_that_is_learned(data: Path, tmp_path: Path) -> None:
    plain = train(settings(data), tmp_path / "plain")
    seen = train(settings(data, eval__every_updates=4), tmp_path / "seen")
    assert_same(final_state(seen)["agent"], final_state(plain)["agent"])
    assert_same(final_state(seen)["sampler"], final_state(plain)["sampler"])


def test_reading_when_asked_learns_the_same_as_from_memory(data: Path, tmp_path: Path) -> None:
    memory = train(settings(data), tmp_path / "memory")
    lazy = train(settings(data, data__mode="lazy"), tmp_path / "lazy")
    assert_same(final_state(lazy)["agent"], final_state(memory)["agent"])
    manifests = [RunDirectory.open(run).read_manifest()["data"] for run in (memory, lazy)]
    assert manifests[0] == manifests[1]


def test_the_manifest_says_what_was_learned_from(data: Path, tmp_path: Path) -> None:
    run = train(settings(data, total_updates=1), tmp_path / "run")
    manifest = RunDirectory.open(run).read_manifest()
    whole = load_dataset(data)
    assert manifest["data"] == {
        "paths": [str(data)],
        "sha256": [whole.info.sha256],
        "env_id": cases.COUNTER,
        "obs_keys": ["obs"],
        "num_episodes": 12,
        "num_steps": whole.num_steps,
        "return_mean": pytest.approx(whole.returns.mean()),
        "ref_min": cases.REF_MIN,
        "ref_max": cases.REF_MAX,
    }
    assert "the order in which the data are drawn" in manifest["resume"]


# --- stopped


class CrashError(RuntimeError):
    """Stands for a process that dies: nothing after it is run."""


def crash_at(monkeypatch: pytest.MonkeyPatch, update: int) -> Callable[[], None]:
    """Let the process die in the middle of an update; return what undoes that."""
    iterate = OfflineTraining.iterate

    def mortal(self: OfflineTraining) -> dict[str, float]:
        if self.steps == update:
            self.agent.update(self.sampler.sample())
            raise CrashError
        return iterate(self)

    monkeypatch.setattr(OfflineTraining, "iterate", mortal)
    return lambda: monkeypatch.setattr(OfflineTraining, "iterate", iterate)


@pytest.mark.parametrize("preset", ["dt/pendulum", "decision_s4/pendulum"])
def test_a_run_that_dies_between_checkpoints_goes_on_bit_for_bit(
    preset: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(data, preset, eval__every_updates=6, eval__actions="sample")
    whole = train(config, tmp_path / "whole")
    for update in (3, 8):  # before the first checkpoint after the start, and in between two lines
        repair = crash_at(monkeypatch, update)
        run = tmp_path / "run"
        begin = partial(resume_training, run, WORDS, quiet=True)
        with pytest.raises(CrashError):
            begin() if run.exists() else train(config, run)
        repair()
    monkeypatch.chdir(tmp_path)  # the data are found from anywhere
    resume_training(run, WORDS, quiet=True)
    same_end(run, whole)
    assert [one["step"] for one in RunDirectory.open(run).read_manifest()["resumed"]] == [0, 5]
    with pytest.raises(RunError, match="is complete at 12 updates: nothing to resume"):
        resume_training(run, WORDS, quiet=True)


def test_a_run_that_is_killed_ends_like_one_left_alone(tmp_path: Path) -> None:
    episodes = cases.play(gymnasium.make("Pendulum-v1", max_episode_steps=20), 4, seed=5)
    info = DatasetInfo(env_id="Pendulum-v1")  # which the other process knows, too
    path = tmp_path / "data.hdf5"
    write_d4rl(EpisodeDataset.from_episodes(episodes, info), path)
    tiny = cases.DT | {"env__id": "Pendulum-v1", "env__kwargs__max_episode_steps": 20}
    tiny |= {"eval__every_updates": 6, "checkpoint__every_updates": 4}
    run, whole = tmp_path / "killed", tmp_path / "whole"
    argv = ["train", "dt/pendulum", *cases.words(tiny), "--data", str(path), "--run"]
    # While the checkpoint at 8 gets its name, after those at 0 and 4.
    assert run_jobs([([*argv, str(run)], ("rename", 3))], tmp_path) == [-signal.SIGKILL]
    assert main(["train", "--resume", str(run)]) == main([*argv, str(whole)]) == 0
    same_end(run, whole)
    resumed = RunDirectory.open(run).read_manifest()["resumed"]
    assert [one["step"] for one in resumed] == [4]


def test_ctrl_c_saves_and_the_run_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(data)
    update = Progress.update

    def press(self: Progress, step: int, value: float | None = None) -> None:
        update(self, step, value)
        if step == 7:
            os.kill(os.getpid(), signal.SIGINT)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", press)
        with pytest.raises(Stopped, match=r"stopped at 7 updates, saved: statewise train --resume"):
            train(config, run)
    assert statewise.load(run).step == 7
    resume_training(run, WORDS, quiet=True)
    same_end(run, train(config, tmp_path / "whole"))


def stopped(data: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    repair = crash_at(monkeypatch, 6)
    with pytest.raises(CrashError):
        train(settings(data), run)
    repair()
    return run


def test_a_run_does_not_go_on_with_other_data(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.hdf5"
    shutil.copy(data, own)
    run = stopped(own, tmp_path / "run", monkeypatch)
    before = (run / "manifest.json").read_bytes()
    shutil.copy(cases.written(tmp_path, "other", seed=50), own)
    with pytest.raises(RunError, match=r"own\.hdf5: expected the data that this run .*, got oth"):
        resume_training(run, WORDS, quiet=True)
    own.unlink()
    with pytest.raises(RunError, match=r"own\.hdf5: expected the data of this run, got nothing"):
        resume_training(run, WORDS, quiet=True)
    assert (run / "manifest.json").read_bytes() == before
    shutil.copy(data, own)
    resume_training(run, WORDS, quiet=True)
    same_end(run, train(settings(data), tmp_path / "whole"))


def test_a_loss_that_is_not_finite_keeps_its_batch_and_the_last_checkpoint(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    argv = ["train", "dt/pendulum", "--data", str(data), "--run", str(tmp_path / "run")]
    argv += cases.words(cases.DT)
    assert main([*argv, "--agent.learning-rate", "1e38", "--agent.warmup-updates", "0"]) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"error: expected a finite update, got .* after \d+ updates", err)
    batch = load_file(tmp_path / "run" / "bad_batch.safetensors")
    assert batch["step.obs.obs"].shape == (4, 4, 3)
    assert batch["rtg"].shape == (4, 4)
    assert batch["step.valid"].dtype == torch.bool
    assert statewise.load(tmp_path / "run").step in (0, 5)


def test_a_data_set_that_cannot_be_read_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "dt/pendulum", "--data", str(tmp_path / "no.hdf5")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "no.hdf5" in err
    assert err.count("\n") == 1


def test_an_empty_data_set_is_refused() -> None:
    empty = cases.counter_data().subset([])
    with pytest.raises(DatasetError, match="expected at least one episode, got none"):
        TrainedOfflineAgent(settings(None), data=EpisodeDataset(empty.source))
