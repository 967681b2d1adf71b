"""Two processes learn as one does from the joint batch, and go on, and stop, together."""

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

from statewise.__main__ import main
from statewise.training.api import load, resume_training
from statewise.training.checkpoint import from_bytes, load_checkpoint, newest_checkpoint
from statewise.training.config import ConfigError, load_preset
from statewise.training.distributed import check_shares
from statewise.training.log import read_metrics
from statewise.training.run import RunDirectory, RunError
from tests.tolerance import ORACLE_FLOAT64
from tests.training import distributed_cases as cases
from tests.training.offline_cases import written
from tests.training.test_resume import ROOT, assert_same, curves

pytestmark = pytest.mark.xdist_group("two_processes")

DEADLINE_S = 400  # generous: a loaded machine is no reason to fail
NAMES = ["ppo-rollout", "ppo-minibatch", *cases.OFFLINE]


class Pair(NamedTuple):
    """What two processes left."""

    folder: Path
    learned: list[dict[str, Any]]
    statuses: list[list[int]]
    ends: list[int]
    errors: list[str]


def free_ports(count: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [str(one.getsockname()[1]) for one in sockets]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    written(folder)
    command = [sys.executable, "-m", "tests.training.distributed_cases", str(folder)]
    command += free_ports(5)
    variables = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": "1",
    }
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [one.communicate(timeout=DEADLINE_S)[1] for one in started]
    finally:
        for one in started:
            one.kill()
    assert (folder / "statuses-1").exists(), "\n".join(errors)
    return Pair(
        folder,
        [from_bytes((folder / f"learned-{rank}").read_bytes()) for rank in range(2)],
        [from_bytes((folder / f"statuses-{rank}").read_bytes())["statuses"] for rank in range(2)],
        [one.returncode for one in started],
        errors,
    )


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What one process learns from the joint batches."""
    return cases.all_learned(cases.JointPPO, slice(None), 0)


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_learn_as_one_with_the_joint_batch(
    pair: Pair, alone: dict[str, Any], name: str
) -> None:
    one, two = (learned[name] for learned in pair.learned)
    assert_same(one["weights"], two["weights"])
    worst = 0.0
    for part, weights in alone[name]["weights"].items():
        for key, expected in weights.items():
            worst = max(worst, float((one["weights"][part][key] - expected).abs().max()))
    assert worst < ORACLE_FLOAT64
    # The share of clipped ratios is a float32 number.
    assert one["metrics"] == pytest.approx(alone[name]["metrics"], rel=1e-7, abs=ORACLE_FLOAT64)
    assert two["metrics"] == one["metrics"]


def test_the_processes_would_not_decide_alike_when_to_stop_the_epochs(
    alone: dict[str, Any],
) -> None:
    assert 1 < alone["ppo-rollout"]["metrics"]["num_epochs"] < 4


@pytest.mark.parametrize("name", ["online", "dt"])
def test_a_resumed_pair_ends_bit_for_bit_like_one_that_was_left_alone(
    pair: Pair, name: str
) -> None:
    states = []
    for run in (pair.folder / name, pair.folder / f"{name}-again"):
        newest = newest_checkpoint(run / "checkpoints")
        assert newest is not None
        state = load_checkpoint(newest)
        del state["logger"]
        state["processes"] = dict(enumerate(state["processes"], start=1))
        for means in (state.get("means"), state["processes"][1].get("means")):
            assert means is None or means["count"] == 0
        states.append(state)
    assert_same(*states)
    assert curves(pair.folder / name) == curves(pair.folder / f"{name}-again")


def test_processes_have_environments_batches_and_streams_of_their_own(pair: Pair) -> None:
    state, data = (
        load_checkpoint(newest_checkpoint(pair.folder / name / "checkpoints") or Path())
        for name in ("online", "dt")
    )
    (other,), (other_data) = state["processes"], data["processes"][0]
    assert other["agent"].keys() == {"generator", "shuffle"}
    for name, stream in other["agent"].items():
        assert not torch.equal(stream, state["agent"][name])
    assert len(other["collector"]["return"]) == len(state["collector"]["return"]) == 2
    assert other["collector"]["env"] != state["collector"]["env"]
    assert other_data["sampler"] != data["sampler"]


def test_metrics_are_those_of_both_processes(pair: Pair) -> None:
    online = RunDirectory.open(pair.folder / "online")
    newest = newest_checkpoint(online.checkpoints_dir)
    assert newest is not None
    state = load_checkpoint(newest)
    collectors = [state["collector"], state["processes"][0]["collector"]]
    returns = [value for one in collectors for value in one["returns"][-50:]]
    rows = read_metrics(online)
    assert rows[-1]["rollout/ep_rew_mean"] == pytest.approx(sum(returns) / len(returns))
    ended = sum(row["rollout/episodes"] for row in rows)
    assert ended == sum(len(one["returns"]) for one in collectors)
    assert rows[-1]["step"] == state["steps"] == state["agent"]["steps_seen"] >= 200
    assert online.read_manifest()["processes"] == 2


def test_another_number_of_processes_does_not_go_on(pair: Pair) -> None:
    run = pair.folder / "killed"
    with pytest.raises(RunError, match=r"expected 2 processes.* got 1.*nproc-per-node 2"):
        resume_training(run, [])


def test_an_error_of_both_is_told_once(pair: Pair) -> None:
    lines = [line for text in pair.errors for line in text.splitlines() if "num_envs" in line]
    assert lines == [
        "error: env.num_envs: expected a multiple of the 2 processes, got 3: pass --env.num_envs 4"
    ]
    assert [statuses[4] for statuses in pair.statuses] == [2, 2]
    assert [statuses[:4] for statuses in pair.statuses] == [[0] * 4] * 2


def test_a_loss_that_is_not_finite_stops_both_and_keeps_both_batches(pair: Pair) -> None:
    assert [statuses[5] for statuses in pair.statuses] == [2, 2]
    lines = [line for text in pair.errors for line in text.splitlines() if "finite" in line]
    assert len(lines) == 1
    assert lines[0].startswith("error: expected a finite update, got policy_gradient_loss")
    files = ("bad_batch.safetensors", "bad_batch_1.safetensors")
    rewards = [load_file(pair.folder / "spoiled" / name)["reward"] for name in files]
    assert [bool(reward.isnan().any()) for reward in rewards] == [False, True]


def test_a_signal_to_one_stops_both_with_a_checkpoint(pair: Pair) -> None:
    assert [statuses[6] for statuses in pair.statuses] == [130, 130]
    run = pair.folder / "stopped"
    steps = load(run).step
    assert steps > 0
    lines = [line for text in pair.errors for line in text.splitlines() if "stopped" in line]
    assert lines == [
        f"stopped at {steps} steps, saved: "
        f"torchrun --nproc-per-node 2 -m statewise train --resume {run}"
    ]


def test_a_lost_process_ends_the_other_with_one_line_and_a_whole_run(pair: Pair) -> None:
    assert pair.ends == [2, -9]
    run = pair.folder / "killed"
    (line,) = (line for line in pair.errors[0].splitlines() if "lost" in line)
    assert line.startswith("error: expected 2 processes to train together, lost one of them")
    assert line.endswith(f"torchrun --nproc-per-node 2 -m statewise train --resume {run}")
    assert "Traceback" not in "".join(pair.errors)
    assert load(run).step > 0


@pytest.mark.parametrize(
    ("preset", "overrides", "processes", "expected"),
    [
        ("dreamer/cartpole", {}, 2, "torchrun: expected one of ppo, .* got dreamer"),
        ("sac/pendulum_position", {}, 2, "torchrun: expected one of ppo, .* got sac"),
        ("bc/pendulum", {}, 3, "agent.batch_size: expected a multiple of the 3 .* got 64"),
        ("ppo/memory_chain", {}, 16, "agent.num_minibatches: expected a divisor of the 2 "),
        ("ppo/memory_chain", {"device": "cuda:0"}, 2, "device: expected cpu or cuda for 2"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    preset: str, overrides: dict[str, Any], processes: int, expected: str
) -> None:
    config = dataclasses.replace(load_preset(preset), **overrides)
    with pytest.raises(ConfigError, match=expected):
        check_shares(config, processes)
    check_shares(config, 1)


def test_other_commands_run_in_one_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err == (
        "error: torchrun: expected train, got doctor in 2 processes: start it alone\n"
    )
