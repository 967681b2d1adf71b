"""A claim about trials, from its file to its table, figure and page."""

import csv
import os
from pathlib import Path

import pytest
import yaml

from statewise.bench.arm import run_job
from statewise.bench.claims import load_claim
from statewise.bench.data_job import data_jobs
from statewise.bench.data_job import run_job as make
from statewise.bench.reproduce import Plan, reproduce
from statewise.training.schema import ConfigError

TINY = {
    "env.num_envs": 2,
    "env.kwargs": {"size": 3, "steps": 3},
    "env.trial.episodes": 3,
    "rollout_steps": 18,
    "total_steps": 36,
    "agent.num_minibatches": 2,
    "agent.encoder.hidden": [8],
    "agent.sequence.num_layers": 1,
    "agent.sequence.d_model": 8,
    "agent.head_hidden": [8],
}


def write(folder: Path, check: dict[str, object]) -> str:
    path = folder / "room.yaml"
    value = {
        "title": "A small room",
        "statement": "S",
        "seeds": [1],
        "episodes": 4,
        "actions": "sample",
        "arms": [{"name": "s5", "preset": "ppo/dark_room", "overrides": TINY}],
        "checks": [{"arm": "s5", "statistic": "min", **check}],
    }
    path.write_text(yaml.safe_dump(value))
    return str(path)


def test_a_claim_about_trials_is_checked_tabulated_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    source = write(tmp_path, {"metric": "adaptation_gain", "at_least": -9})
    job = {"claim": source, "arm": "s5", "seed": 1, "root": str(tmp_path), "data_root": "none"}
    row = run_job(job)
    plan = Plan(
        seeds=(1,),
        arms=("s5",),
        root=tmp_path,
        data_root=tmp_path,
        out=tmp_path / "out",
        workers=1,
    )
    result = reproduce(source, load_claim(source), plan, lambda line: None)
    assert result.passed
    assert [path.name for path in result.written] == ["room.csv", "room.png", "room.md"]
    [found] = csv.DictReader((tmp_path / "out" / "room.csv").read_text().splitlines())
    assert float(found["adaptation_gain"]) == pytest.approx(row["adaptation_gain"], abs=1e-5)
    assert (tmp_path / "out" / "room.png").stat().st_size > 1000


def test_returns_by_episode_are_measured_as_far_as_trials_have_them(tmp_path: Path) -> None:
    logged = {"metric": "rollout/return_episode_3", "last": 3, "at_least": 0}
    assert load_claim(write(tmp_path, logged)).has_summary
    with pytest.raises(ConfigError, match=r"expected one of score, .*last_episode.*episode_3"):
        load_claim(write(tmp_path, logged | {"metric": "rollout/return_episode_4"}))


def test_a_claim_about_learning_histories_plays_trials_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    tiny = {
        "env.trial.episodes": 2,
        "total_updates": 2,
        "eval.every_updates": 0,
        "eval.num_envs": 2,
        "agent.batch_size": 1,
        "agent.context": 20,
        "agent.every": 1,
        **{key: value for key, value in TINY.items() if key.startswith("agent.sequence")},
    }
    value = {
        "title": "A small room",
        "statement": "S",
        "seeds": [1],
        "episodes": 3,
        "actions": "sample",
        "data": {"few": {"make": "dark-room-histories", "levels": ["train"], "episodes": 9}},
        "arms": [{"name": "s5", "preset": "ad/dark_room", "data": "few", "overrides": tiny}],
        "checks": [{"arm": "s5", "statistic": "min", "metric": "adaptation_gain", "at_least": -99}],
    }
    path = tmp_path / "ad.yaml"
    path.write_text(yaml.safe_dump(value))
    claim, data_root = load_claim(str(path)), tmp_path / "data"
    [data_job] = data_jobs(str(path), claim, ["s5"], data_root)
    make(data_job)
    job = {"claim": str(path), "arm": "s5", "seed": 1, "root": str(tmp_path)}
    row = run_job(job | {"data_root": str(data_root)})
    assert (row["core"], row["steps"]) == ("s5", 2)
    plan = Plan(
        seeds=(1,),
        arms=("s5",),
        root=tmp_path,
        data_root=data_root,
        out=tmp_path / "out",
        workers=1,
    )
    result = reproduce(str(path), claim, plan, lambda line: None)
    assert result.passed
    assert result.rows == [row]
    assert (tmp_path / "out" / "ad.png").stat().st_size > 1000
    assert "sample actions, trials: 3." in (tmp_path / "out" / "ad.md").read_text()
