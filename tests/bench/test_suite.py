"""The suite runner: what is finished stays, what was killed goes on, what fails is named."""

import csv
import json
import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from statewise.bench import pool, ray_pool, suite_statistics, worker
from statewise.bench import suite as runner
from statewise.bench.pool import Pool
from statewise.bench.process import Answer, Job
from statewise.bench.suite import Plan, planned, run_suite
from statewise.bench.suite_cli import suite
from statewise.bench.suites import SUITES
from statewise.training.api import load
from statewise.training.config import dump_config, load_preset
from statewise.training.run import RunError
from statewise.training.schema import ConfigError
from tests.bench.offline_claims import run_here

pytest.importorskip("popgym")

PPO = "ppo/repeat_previous_easy"
TASKS = ("popgym-RepeatPreviousEasy-v0", "popgym-CountRecallEasy-v0")
SMALL = {
    "rollout_steps": 32,
    "env.num_envs": 4,
    "agent.num_epochs": 1,
    "agent.num_minibatches": 1,
    "agent.sequence.d_model": 4,
    "agent.sequence.num_layers": 1,
    "agent.encoder.hidden": 4,
    "eval.episodes": 2,
    "eval.num_envs": 2,
    "checkpoint.every_steps": 100,
}
TINY = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]


def words(folder: Path, *, steps: int = 300, seeds: int = 1) -> list[str]:
    """Return a small suite, whose runs and tables are in a folder."""
    places = ["--run-root", str(folder / "runs"), "--out", str(folder / "out"), "--workers", "1"]
    told = ["--steps", str(steps), "--seeds", str(seeds), *places, *TINY]
    return ["popgym", "--preset", PPO, "--tasks", *TASKS, *told]


def run_of(folder: Path, task: str, seed: int = 1) -> Path:
    return folder / "runs" / "popgym" / "ppo-repeat_previous_easy" / f"{task}-seed{seed}"


def stamps(path: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}


def kill_half_way(told: list[str], run: Path) -> None:
    """Give the command to a process of its own, and kill it when a run has two checkpoints."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, from Python 3.12 on
        child = os.fork()  # a new interpreter would take seconds to import everything again
    if child == 0:
        os._exit(suite(told))
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if len([p for p in run.glob("checkpoints/[0-9]*") if p.name.isdecimal()]) > 1:
            os.kill(child, signal.SIGKILL)
            assert os.waitpid(child, 0)[1] == signal.SIGKILL
            return
        time.sleep(0.005)
    raise AssertionError(f"{run}: finished before it was killed")


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch cannot go on in a fork with CUDA")
def test_a_killed_suite_goes_on_and_repeats_no_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite_statistics, "REPETITIONS", 20)
    begun = run_here(monkeypatch)
    told = words(tmp_path, steps=1500)
    first, second = (run_of(tmp_path, task) for task in TASKS)
    kill_half_way(told, second)
    assert not (second / "eval.json").exists()
    finished, lines = stamps(first), (second / "metrics.jsonl").read_bytes()
    assert load(second).step > 0  # what was killed can be loaded

    assert suite(told) == 0
    assert [job["task"] for job in begun] == [TASKS[1]]
    assert stamps(first) == finished
    resumed = json.loads((second / "manifest.json").read_text())["resumed"]
    assert len(resumed) == 1
    assert resumed[0]["step"] > 0
    kept = lines.splitlines()[: resumed[0]["step"] // 128]
    assert (second / "metrics.jsonl").read_bytes().splitlines()[: len(kept)] == kept

    rows = list(csv.DictReader((tmp_path / "out" / "popgym.csv").read_text().splitlines()))
    assert [(row["task"], row["seed"]) for row in rows] == [(task, "1") for task in TASKS]
    for row in rows:
        assert int(row["steps"]) >= 1500
        assert float(row["score"]) == pytest.approx((float(row["return"]) + 1) / 2, abs=1e-5)
    for name in ("popgym.png", "popgym_curves.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    text = capsys.readouterr().out
    assert "published results of POPGym have 15,000,000" in text

    # A third call trains nothing.
    begun.clear()
    monkeypatch.setattr(runner, "draw_suite", lambda *_: [])
    before = stamps(tmp_path / "runs")
    assert suite(told) == 0
    assert begun == []
    assert stamps(tmp_path / "runs") == before


def test_a_run_that_fails_stops_no_other_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here(monkeypatch)
    other = run_of(tmp_path, TASKS[0])
    other.mkdir(parents=True)
    (other / "thesis.txt").write_text("mine")
    assert suite(words(tmp_path)) == 1
    seen = capsys.readouterr()
    [line] = [line for line in seen.out.splitlines() if line.startswith("missing")]
    assert "expected a run or nothing, it holds thesis.txt: move it" in line
    assert f"failed: {line.removeprefix('missing: ')}" in seen.err
    table = (tmp_path / "out" / "popgym.csv").read_text().splitlines()
    assert table[1] == f"{PPO},{TASKS[0]},1,,,,,,,,not run,"
    assert table[2].startswith(f"{PPO},{TASKS[1]},1,380,")
    # The task without its run is in no statistic.
    summary = list(
        csv.DictReader((tmp_path / "out" / "popgym_summary.csv").read_text().splitlines())
    )
    assert {(row["tasks"], row["runs"]) for row in summary} == {("1", "1")}


# --- pools


def answering(answers: dict[str, Any]) -> tuple[Any, Any]:
    """Return what stands for `start` and `finish`."""

    class Process:
        def __init__(self, job: Job) -> None:
            self.job = job

        def poll(self) -> int:
            return 0

    def finish(process: Process, name: str) -> Answer:
        answer = answers[name]
        if isinstance(answer, RunError):
            raise answer
        return {"of": name}

    return Process, finish


def test_a_failure_stops_the_jobs_unless_somebody_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    start, finish = answering({"a": RunError("a broke"), "b": 1, "c": 2})
    monkeypatch.setattr(pool, "start", start)
    monkeypatch.setattr(pool, "finish", finish)
    jobs = [{"system": name} for name in "abc"]
    told: list[str] = []
    with pytest.raises(RunError, match="a broke"):
        Pool(1).run(jobs, lambda answer: told.append(answer["of"]))
    told.clear()
    Pool(1).run(
        jobs,
        lambda answer: told.append(answer["of"]),
        lambda job, error: told.append(f"{job['system']}: {error}"),
    )
    assert sorted(told) == ["a: a broke", "b", "c"]


def test_jobs_run_over_ray_and_a_lost_worker_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    real = ray_pool.run_in_process

    def act(job: Job) -> Answer:
        if job["system"] == "lost":
            os.kill(os.getpid(), signal.SIGKILL)
        if job["system"] == "refused":
            raise RunError("refused: not today")
        return real(job)

    monkeypatch.setattr(ray_pool, "run_in_process", act)
    monkeypatch.setattr(suite_statistics, "REPETITIONS", 20)
    plan = Plan(
        presets=(PPO,),
        tasks=TASKS[:1],
        seeds=(1,),
        overrides=(*TINY, "--total_steps", "300"),
        root=tmp_path / "runs",
        out=tmp_path / "out",
    )
    failures: list[str] = []

    class WithOthers:
        """Ray, with two jobs beside those that are asked for."""

        def run(self, jobs: Any, tell: Any, failed: Any = None) -> None:
            others = [{"system": "lost"}, {"system": "refused"}]
            ray_pool.RayPool("local", 2).run(
                [*others, *jobs], tell, lambda job, error: failures.append(str(error))
            )

    result = run_suite(SUITES["popgym"], plan, WithOthers(), lambda line: None)
    assert sorted(failures) == [
        "lost: the Ray worker was lost (WorkerCrashedError): give the command again",
        "refused: not today",
    ]
    assert [row["task"] for row in result.rows] == [TASKS[0]]
    assert result.missing == []


def test_a_worker_hears_interrupts_although_its_parent_blocks_them() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        worker._hear_interrupts()
        assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, before)


# --- wrong words


def test_wrong_words_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = words(tmp_path)
    with pytest.raises(ConfigError, match="suite: argument suite: invalid choice: 'atari'"):
        suite(["atari", *told[1:]])
    with pytest.raises(ConfigError, match="suite: the following arguments are required: --preset"):
        suite(["popgym"])
    with pytest.raises(ConfigError, match="expected no --workers with --ray auto"):
        suite([*told, "--ray", "auto"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"expected Ray, .* pip install 'statewise\[tune\]'"):
        ray_pool.check_ray()


def test_two_presets_of_one_name_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "s5.yaml" for folder in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.write_text(dump_config(load_preset(PPO)))
    plan = Plan(
        presets=tuple(map(str, paths)),
        tasks=TASKS,
        seeds=(1,),
        overrides=(),
        root=tmp_path,
        out=tmp_path,
    )
    with pytest.raises(ConfigError, match="different names, got s5, s5: rename one"):
        planned(SUITES["popgym"], plan)
