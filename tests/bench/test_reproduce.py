import csv
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from statewise.bench import arm, cli, resumable
from statewise.bench.arm import run_path
from statewise.bench.claim_table import COLUMNS
from statewise.bench.claims import load_claim
from statewise.training.api import TrainedAgent, load
from statewise.training.config import TrainConfig, dump_config
from statewise.training.log import read_metrics
from statewise.training.run import RunDirectory, RunError, build_manifest
from tests.bench.offline_claims import run_here

TOTAL = 600
OVERRIDES = {
    "total_steps": TOTAL,
    "rollout_steps": 32,
    "env.num_envs": 4,
    "agent.sequence.d_model": 8,
    "agent.num_epochs": 1,
}


@pytest.fixture
def claim_file(tmp_path: Path) -> Path:
    """A claim whose first check holds for any policy and whose second holds for none."""
    arms = [
        {"name": kind, "preset": "ppo/cartpole", "overrides": {**OVERRIDES, **core}}
        for kind, core in (("s5", {}), ("gru", {"agent.sequence.kind": "gru"}))
    ]
    checks = [
        {"arm": "s5", "statistic": "min", "at_least": 1},
        {"arm": "gru", "statistic": "max", "below": 1},
    ]
    claim = {"title": "T", "statement": "S", "seeds": [1, 2], "episodes": 3, "actions": "greedy"}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(claim | {"arms": arms, "checks": checks}))
    return path


def job(claim_file: Path, seed: int = 1) -> dict[str, Any]:
    root = str(claim_file.parent / "runs")
    return {"claim": str(claim_file), "arm": "s5", "seed": seed, "root": root, "data_root": "none"}


def path_of(claim_file: Path, seed: int = 1) -> Path:
    return run_path(claim_file.parent / "runs", load_claim(str(claim_file)), "s5", seed)


def test_a_claim_is_trained_checked_tabulated_and_drawn(
    claim_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, runs = claim_file.parent / "out", claim_file.parent / "runs"
    words = [str(claim_file), "--seeds", "1", "--out", str(out), "--run-root", str(runs)]
    assert cli.reproduce([*words, "--workers", "2"]) == 1
    text = capsys.readouterr().out
    assert "PASS  s5: min of 1 seeds" in text
    assert "FAIL  gru: max of 1 seeds" in text
    rows = list(csv.DictReader((out / "tiny.csv").read_text().splitlines()))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["arm"], row["core"], row["seed"]) for row in rows] == [
        ("s5", "s5", "1"),
        ("gru", "gru", "1"),
    ]
    for row in rows:
        assert int(row["steps"]) >= TOTAL
        assert float(row["ci_low"]) <= float(row["score"]) <= float(row["ci_high"])
    assert (out / "tiny.png").read_bytes().startswith(b"\x89PNG")
    trained = load(runs / "tiny" / "s5-seed1")
    assert trained.config.seed == 1
    assert trained.preset == "ppo/cartpole"

    # A claim that holds ends with 0, and a second call trains nothing.
    value = yaml.safe_load(claim_file.read_text())
    value["checks"] = value["checks"][:1]
    claim_file.write_text(yaml.safe_dump(value))
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}
    run_here(monkeypatch)
    assert cli.reproduce(words) == 0
    assert {p: p.stat().st_mtime_ns for p in runs.rglob("*") if p.is_file()} == before


def test_a_half_finished_run_goes_on_where_it_stopped(claim_file: Path) -> None:
    config = load_claim(str(claim_file)).arm("s5").config(1)
    assert isinstance(config, TrainConfig)
    trained = TrainedAgent(config)
    vector = trained.make_vector_env(config.env.num_envs)
    manifest = build_manifest(["statewise", "train", "ppo/cartpole"], 1, "cpu", vector.resume)
    run = RunDirectory.create(path_of(claim_file), dump_config(config), manifest)
    with closing(trained.loop(vector, run)) as training:
        training.start()
        while training.steps < TOTAL // 2:
            training.iterate()
        training.save()
    vector.close()
    before = read_metrics(run)
    row = arm.run_job(job(claim_file))
    after = read_metrics(run)
    assert row["steps"] >= TOTAL
    assert after[: len(before)] == before
    assert len(after) > len(before)


def test_a_run_killed_before_its_first_checkpoint_starts_anew(claim_file: Path) -> None:
    path = path_of(claim_file)
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("cut off")
    assert arm.run_job(job(claim_file))["steps"] >= TOTAL


def test_a_folder_of_something_else_is_left_alone(claim_file: Path) -> None:
    path = path_of(claim_file)
    path.mkdir(parents=True)
    (path / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match=r"expected a run or nothing, it holds thesis\.txt"):
        arm.run_job(job(claim_file))
    assert (path / "thesis.txt").read_text() == "mine"


def test_a_run_with_other_settings_is_an_error(claim_file: Path) -> None:
    arm.run_job(job(claim_file))
    value = yaml.safe_load(claim_file.read_text())
    value["arms"][0]["overrides"]["agent.learning_rate"] = 0.5
    claim_file.write_text(yaml.safe_dump(value))
    with pytest.raises(RunError, match="trained with other settings"):
        arm.run_job(job(claim_file))


def test_another_number_of_episodes_evaluates_again_without_training(
    claim_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm.run_job(job(claim_file))
    claim_file.write_text(claim_file.read_text().replace("episodes: 3", "episodes: 5"))
    monkeypatch.setattr(resumable, "run_training", None)
    monkeypatch.setattr(resumable, "resume_training", None)
    arm.run_job(job(claim_file))
    text = (path_of(claim_file) / "eval.json").read_text()
    assert text.count('"return":') == 5


@pytest.mark.parametrize("words", [[], ["t_maze", "--all"], ["t_maze", "--seeds", "x"]])
def test_wrong_words_are_user_errors(words: list[str]) -> None:
    with pytest.raises(cli.ConfigError, match="reproduce: "):
        cli.reproduce(words)
