"""A run on learning histories: it resumes exactly, is evaluated over trials, and predicts."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import statewise
from statewise.data import EpisodeDataset, write_d4rl
from statewise.data.toy_histories import EPISODES, dark_room_histories
from statewise.training.api import resume_training
from statewise.training.config import ConfigError, load_preset
from statewise.training.evaluate import evaluate_run
from statewise.training.evaluate_trials import TrialsResult
from statewise.training.log import read_metrics
from statewise.training.playing import PlayingAgent
from statewise.training.run import RunDirectory

TINY: dict[str, Any] = {
    "env__trial": {"episodes": 3},
    "total_updates": 4,
    "log_every": 2,
    "agent__batch_size": 2,
    "agent__context": 30,
    "agent__sequence__num_layers": 1,
    "agent__sequence__d_model": 8,
    "checkpoint": {"every_updates": 2, "keep": 9},
    "eval": {"episodes": 5, "num_envs": 2, "actions": "greedy", "every_updates": 2},
}
pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture(scope="module")
def data() -> EpisodeDataset:
    return dark_room_histories(2 * EPISODES)


def logged(path: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in row.items() if not key.startswith(("time/", "wall"))}
        for row in read_metrics(RunDirectory.open(path))
    ]


def play_trial(trained: PlayingAgent, seed: int) -> float:
    """Return what `predict` gets in one trial, which is one episode to the caller."""
    env = trained.make_env()
    obs, _ = env.reset(seed=seed)
    total, state, start, over = 0.0, None, np.ones(1, bool), False
    while not over:
        action, state = trained.predict(obs, state, start, deterministic=True)
        obs, reward, terminated, truncated, _ = env.step(action)
        total, start, over = total + float(reward), np.zeros(1, bool), terminated or truncated
    return total


def test_a_run_resumes_exactly_and_is_evaluated_over_trials(
    tmp_path: Path, data: EpisodeDataset
) -> None:
    write_d4rl(data, tmp_path / "train.hdf5")
    whole = statewise.train(
        *("ad/dark_room",),
        run=tmp_path / "whole",
        data=tmp_path / "train.hdf5",
        **TINY,
    )
    half = shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(half / "checkpoints" / "4")
    resume_training(half, ["statewise"])
    rows = logged(tmp_path / "whole")
    assert logged(half) == rows
    result = evaluate_run(tmp_path / "whole")
    assert isinstance(result, TrialsResult)
    report = json.loads((tmp_path / "whole" / "eval.json").read_text())
    assert len(report["return_by_episode"]) == 3
    assert len(report["episodes"]) == 5
    assert [one["target"] for one in report["targets"]] == [None]
    low, high = report["reference"]["min"], report["reference"]["max"]
    assert report["score"] == pytest.approx(100 * (report["return_mean"] - low) / (high - low))
    names = ("return_mean", "first_episode", "last_episode", "adaptation_gain", "score")
    for name in names:  # the evaluation on the way was of the same agent and seeds
        assert rows[-1][f"eval/{name}"] == pytest.approx(report[name])
    assert (tmp_path / "whole" / "plots" / "return_by_episode.png").stat().st_size > 1000
    for index in (0, 3):
        one = report["episodes"][index]
        if one["index"] == 0:
            assert play_trial(whole, one["seed"]) == sum(one["returns"])


def test_goals_of_the_evaluation_are_those_that_no_history_has() -> None:
    config = load_preset("ad/dark_room")
    assert config.env.kwargs == {"goals": "held_out"}  # type: ignore[union-attr]
    made = config.env.config(None, 2, ())  # type: ignore[union-attr, call-arg, misc]
    assert (made.trial.episodes, made.autoreset) == (16, "same_step")


def test_what_does_not_fit_is_refused_in_one_line(data: EpisodeDataset) -> None:
    agent = statewise.make("ad/dark_room", data=data, **TINY)
    with pytest.raises(ConfigError, match="targets: expected none for ad"):
        agent.evaluate(statewise.training.evaluate.EvalOptions(targets=(1.0,)))
    with pytest.raises(ConfigError, match=r"env\.trial\.episodes: expected at least 1, got 0"):
        load_preset("ad/dark_room", ["--env.trial.episodes", "0"])
    assert agent.fit(n_steps=1).step == 1
