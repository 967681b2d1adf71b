"""A run that is killed at any moment and resumed ends bit for bit like one that was left alone."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from statewise.training.api import load, resume_training, run_training
from statewise.training.checkpoint import CheckpointWarning, load_checkpoint, newest_checkpoint
from statewise.training.config import load_preset
from statewise.training.log import read_metrics
from statewise.training.run import RunDirectory, RunError

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 200  # generous: a loaded machine is no reason to fail

TASKS: dict[str, dict[str, Any]] = {
    "popgym": {"id": "popgym-RepeatPreviousEasy-v0", "inputs": ["previous_action", "first_step"]},
    "memory_chain": {"id": "statewise/MemoryChain-v0", "kwargs": {"length": 9}},
    "cartpole": {
        "id": "CartPole-v1",
        "vectorization": "sync",
        "inputs": ["previous_action", "previous_reward"],
    },
}

# Runs every command of a list in a child of its own, which kills itself, without any warning to
# the program, at the n-th call of a function. One start of the interpreter serves all of them.
RUNNER = """
import importlib, json, os, signal, sys
for name in json.loads(sys.argv[2]):
    importlib.import_module(name)
import torch
import torch._dynamo  # torch's optimisers import it when they are first made
torch.set_num_threads(1)
from statewise.__main__ import main
from statewise.envs.vector import GymnasiumVectorEnv
from statewise.training import api, config
from statewise.training.log import MetricLogger

os.fsync = lambda descriptor: None  # what a killed process wrote stays without it

PLACES = {
    "fsync": (os, "fsync"),
    "rename": (os, "rename"),
    "step": (GymnasiumVectorEnv, "step"),
    "write": (MetricLogger, "write"),
    "backward": (torch.Tensor, "backward"),
}

def kill_at(place, number):
    owner, name = PLACES[place]
    function, left = getattr(owner, name), [number]
    def counted(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    setattr(owner, name, counted)

def run(argv, kill):
    pid = os.fork()
    if pid == 0:
        if kill:
            kill_at(*kill)
        os._exit(main(argv))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

print(json.dumps([run(*job) for job in json.loads(sys.argv[1])]))
"""
pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def write_preset(
    folder: Path, task: str, total_steps: int = 700, *, every_steps: int = 90, **changes: Any
) -> Path:
    """Write a preset that trains in a second, with a checkpoint every few rollouts."""
    preset = {
        "system": "ppo",
        "env": {"num_envs": 2} | TASKS[task] | changes,
        "rollout_steps": 16,
        "total_steps": total_steps,
        "seed": 3,
        "agent": {
            "num_minibatches": 2,
            "num_epochs": 2,
            "encoder": {"hidden": [8]},
            "sequence": {"kind": "s5", "num_layers": 1, "d_model": 8},
            "head_hidden": [8],
        },
        "checkpoint": {"every_steps": every_steps, "keep": 3},
    }
    path = folder / f"{task}.yaml"
    path.write_text(yaml.safe_dump(preset))
    return path


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def run_jobs(
    jobs: list[tuple[list[str], tuple[str, int] | None]], folder: Path, *imported: str
) -> list[int]:
    """Run commands one after the other; return their exit codes, -9 where one was killed.

    The modules `imported` are so before the first of them.
    """
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, json.dumps(jobs), json.dumps(imported)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def train_in_process(preset: Path, run: Path) -> Path:
    return run_training(load_preset(str(preset)), run, ["statewise", "train"], quiet=True)


def final_state(run: Path) -> dict[str, Any]:
    """Return the last checkpoint without what depends on the clock."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    state = load_checkpoint(newest)
    assert state["logger"].pop("wall_s") > 0
    state["logger"].pop("offset")
    return state


def assert_same(found: Any, expected: Any, path: str = "state") -> None:
    """Compare nested values bit for bit."""
    assert type(found) is type(expected), path
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key in expected:
            assert_same(found[key], expected[key], f"{path}.{key}")
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype, path
        assert torch.equal(found, expected), path
    elif isinstance(expected, np.ndarray):
        assert np.array_equal(found, expected), path
    else:
        assert found == expected, path


def curves(run: Path) -> list[dict[str, float]]:
    """Return the rows of metrics.jsonl without what depends on the clock."""
    rows = read_metrics(RunDirectory.open(run))
    return [
        {k: v for k, v in row.items() if k != "wall_s" and not k.startswith("time/")}
        for row in rows
    ]


def assert_same_run(found: Path, expected: Path) -> None:
    assert_same(final_state(found), final_state(expected))
    steps = [row["step"] for row in curves(found)]
    assert steps == sorted(set(steps))
    assert curves(found) == curves(expected)
    leftovers = [entry.name for entry in (found / "checkpoints").iterdir() if "." in entry.name]
    assert leftovers == []


def damage_cut(checkpoint: Path) -> None:
    path = checkpoint / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def damage_bit(checkpoint: Path) -> None:
    path = checkpoint / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def damage_text(checkpoint: Path) -> None:
    (checkpoint / "state.json").write_bytes(b'{"checksum": "12')


def damage_missing(checkpoint: Path) -> None:
    (checkpoint / "state.json").unlink()


# --- killed


def kills(task: str) -> list[tuple[str, int] | None]:
    """Draw moments: in the first rollout, an update, between the two, and inside checkpoints."""
    draw = random.Random(task)
    return [
        ("step", draw.randint(1, 16)),
        ("backward", draw.randint(5, 20)),
        ("write", draw.randint(3, 5)),
        ("fsync", draw.randint(3, 8)),
        ("rename", 1),
        ("step", draw.randint(5, 25)),
        None,
    ]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make, for every task, a run that was killed six times and one that was left alone."""
    pytest.importorskip("popgym")
    folder = tmp_path_factory.mktemp("killed")
    jobs: list[Any] = []
    for task in TASKS:
        preset = str(write_preset(folder, task))
        first, *others = kills(task)
        jobs.append((["train", preset, "--run", f"{task}-killed"], first))
        jobs += [(["train", "--resume", f"{task}-killed"], kill) for kill in others]
        jobs.append((["train", preset, "--run", f"{task}-whole"], None))
    assert run_jobs(jobs, folder, "popgym") == ([-signal.SIGKILL] * 6 + [0, 0]) * len(TASKS)
    return folder


@pytest.mark.xdist_group("killed")
@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_run_killed_again_and_again_ends_like_one_left_alone(task: str, killed: Path) -> None:
    assert_same_run(killed / f"{task}-killed", killed / f"{task}-whole")
    rows = curves(killed / f"{task}-whole")
    assert len(rows) > 20
    assert rows[-1]["step"] >= 700


@pytest.mark.xdist_group("killed")
def test_the_same_seed_in_another_process_gives_the_same_run(killed: Path, tmp_path: Path) -> None:
    preset = killed / "memory_chain.yaml"
    here = train_in_process(preset, tmp_path / "here")
    assert_same_run(here, killed / "memory_chain-whole")
    other = load_preset(str(preset), ["--seed", "4", "--total-steps", "100"])
    run_training(other, tmp_path / "other", ["statewise", "train"], quiet=True)
    assert curves(tmp_path / "other") != curves(here)[: len(curves(tmp_path / "other"))]


# --- stopped from outside


def start(*words: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "statewise", "train", *map(str, words)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_lines(process: subprocess.Popen[str], run: Path, number: int) -> None:
    """Wait until metrics.jsonl holds so many lines."""
    deadline = time.monotonic() + DEADLINE_S
    while num_lines(run) < number:
        if process.poll() is not None:
            pytest.fail(f"ended before line {number}: {process.communicate()[1]}")
        if time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"waited in vain for line {number}")
        time.sleep(0.002)


def num_lines(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def interrupt(process: subprocess.Popen[str], run: Path) -> None:
    """Press Ctrl-C, and check that the process saves what it has and leaves with 130."""
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert out == ""
    rows = curves(run)
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    assert newest.name == str(int(rows[-1]["step"]))  # nothing of the last update is lost
    assert load(run).step == rows[-1]["step"]


def test_a_run_killed_and_interrupted_from_outside_goes_on_as_if_it_were_not(
    tmp_path: Path,
) -> None:
    preset = write_preset(tmp_path, "cartpole", total_steps=1500, every_steps=500)
    run = tmp_path / "run"
    process = start(preset, "--run", run)
    wait_for_lines(process, run, 20)  # the first checkpoint is at line 17 or so
    process.kill()
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode == -signal.SIGKILL
    kept = num_lines(run)
    process = start("--resume", run)
    wait_for_lines(process, run, kept + 3)
    interrupt(process, run)
    resume_training(run, ["statewise", "train", "--resume", str(run)], quiet=True)
    assert_same_run(run, train_in_process(preset, tmp_path / "whole"))


def test_ctrl_c_leaves_worker_processes_to_the_trainer(tmp_path: Path) -> None:
    preset = write_preset(
        tmp_path, "cartpole", total_steps=10**6, vectorization="async", every_steps=10**6
    )
    run = tmp_path / "run"
    process = start(preset, "--run", run)
    wait_for_lines(process, run, 2)
    interrupt(process, run)


# --- damaged


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    return train_in_process(write_preset(folder, "memory_chain", 400), folder / "run")


@pytest.mark.parametrize(
    "damage",
    [damage_cut, damage_bit, damage_text, damage_missing],
    ids=lambda damage: damage.__name__,
)
def test_a_damaged_newest_checkpoint_is_skipped_and_the_end_is_the_same(
    damage: Callable[[Path], None], finished: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    damage(newest)
    with pytest.warns(CheckpointWarning, match=f"checkpoint skipped: .*{newest.name}"):
        resume_training(run, ["statewise", "train", "--resume", str(run)], quiet=True)
    assert_same_run(run, finished)


def test_without_a_whole_checkpoint_nothing_is_touched(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for checkpoint in (run / "checkpoints").iterdir():
        damage_text(checkpoint)
    before = (run / "metrics.jsonl").read_bytes()
    with (
        pytest.warns(CheckpointWarning, match="checkpoint skipped"),
        pytest.raises(ValueError, match="holds no valid checkpoint"),
    ):
        resume_training(run, ["statewise", "train", "--resume", str(run)], quiet=True)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_complete_run_is_not_trained_again(finished: Path) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match="nothing to resume"):
        resume_training(finished, ["statewise", "train", "--resume", str(finished)], quiet=True)
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_two_processes_do_not_train_in_one_run(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    with (
        RunDirectory.open(run).lock(),
        pytest.raises(RunError, match="is in use by process"),
    ):
        resume_training(run, ["statewise", "train", "--resume", str(run)], quiet=True)
