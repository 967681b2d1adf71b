"""Agents with batches that are drawn once and for all, and what two processes do with them.

Run as a program, `distributed_cases FOLDER PORT...`, this is one of the two processes; a test
compares what both leave in the folder.
"""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from statewise.__main__ import main
from statewise.agents import parallel
from statewise.agents.build import AGENTS
from statewise.agents.offline.protocol import ObsStatistics
from statewise.agents.recurrent_ppo import RecurrentPPO
from statewise.data.samplers import SampledBatch, TransitionBatch
from statewise.data.step import Batch, Step
from statewise.nets.encoder import EncoderConfig
from statewise.ssm.build import SequenceConfig
from statewise.training import api
from statewise.training.checkpoint import to_bytes
from statewise.training.collector import Collector
from statewise.training.distributed import Joined
from tests.training import offline_cases

PROCESSES, ROWS, T, UPDATES = 2, 6, 7, 3
OBS, ACTION = spaces.Dict({"obs": spaces.Box(-9, 9, (3,))}), spaces.Box(-1, 1, (2,))
LENGTHS = torch.tensor([7, 2, 5, 1, 3, 2])  # valid rows of the lines: 14 and 6 in a process
OFFLINE: dict[str, dict[str, Any]] = {
    "dt": {"d_model": 8, "num_layers": 1, "context": T, "dropout": 0.0, "num_timesteps": 9},
    "decision_s4": {"d_embed": 4},
    "decision_mamba_mg": {"d_model": 8, "num_layers": 1},
    "ad": {"sequence": SequenceConfig(kind="s5", num_layers=1, d_model=8), "context": T},
    "bc": {"hidden": (8,), "batch_size": ROWS},
    "td3bc": {"hidden": (8,), "batch_size": ROWS, "target_noise": 0.0, "policy_delay": 1},
    "iql": {"hidden": (8,), "batch_size": ROWS},
}
SEQUENCES = ("dt", "decision_s4", "decision_mamba_mg", "ad")
TARGET_KL = 0.1
SIGNALLED_AT = 3  # rollouts


class JointPPO(RecurrentPPO):
    """One process whose minibatches are those of two."""

    def minibatches_of_two(self) -> None:
        self.shuffles = [torch.Generator().manual_seed(rank) for rank in range(PROCESSES)]

    def _minibatches(self, num_rows: int) -> Iterator[Tensor]:
        half = num_rows // PROCESSES
        orders = [torch.randperm(half, generator=one) for one in self.shuffles]
        pairs = zip(*(order.chunk(self.config.num_minibatches) for order in orders), strict=True)
        for one, two in pairs:
            yield torch.cat((one, two + half))


def ppo(kind: type[RecurrentPPO], normalize: Any) -> RecurrentPPO:
    config = AGENTS["ppo"].config(
        num_epochs=4,
        num_minibatches=3,
        target_kl=TARGET_KL,
        max_grad_norm=0.1,
        learning_rate=1e-3,
        normalize_advantage=normalize,
        encoder=EncoderConfig(hidden=(8,)),
        sequence=SequenceConfig(kind="s5", num_layers=1, d_model=8),
        head_hidden=(8,),
    )
    agent = kind(config, OBS, ACTION, total_steps=300, seed=0)
    agent.network.double()
    return agent


def offline(system: str) -> Any:
    moments = ObsStatistics({"obs": np.zeros(3)}, {"obs": np.ones(3)})
    settings = OFFLINE[system] | ({"warmup_updates": 1} if system in SEQUENCES else {})
    agent = AGENTS[system].make(
        AGENTS[system].config(**settings),
        OBS,
        ACTION,
        statistics=moments,
        total_updates=UPDATES,
        seed=0,
    )
    for network in networks(agent).values():
        network.double()
    return agent


def networks(agent: Any) -> dict[str, torch.nn.Module]:
    for name in ("network", "policy"):
        if hasattr(agent, name) and not hasattr(agent, "networks"):
            return {name: getattr(agent, name)}
    found: dict[str, torch.nn.Module] = agent.networks
    return found


def steps(draw: torch.Generator) -> Step:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    at, last = torch.arange(T), LENGTHS[:, None] - 1
    first = (at == 0).expand(ROWS, T)
    return Step(
        obs={"obs": normal(ROWS, T, 3)},
        is_first=first,
        reset=first,
        action=normal(ROWS, T, 2).clamp(-0.9, 0.9),
        reward=normal(ROWS, T) * 3,
        terminated=(at == last) & (LENGTHS[:, None] > 2),
        truncated=(at == last) & (LENGTHS[:, None] <= 2),
        valid=at <= last,
    )


def joint_batch(agent: Any, number: int) -> Any:
    """Return the batch of an update for all processes."""
    draw = torch.Generator().manual_seed(number)
    step = steps(draw)
    if isinstance(agent, RecurrentPPO):
        values = torch.randn((2, ROWS, T), generator=draw, dtype=torch.float64)
        extras = {"value": values[0], "log_prob": values[1] / 50 - 2}
        return Batch(step, agent.initial_state(ROWS), extras, values[0].roll(-1, 1))
    number_of = torch.arange(ROWS)
    if not hasattr(agent, "networks"):
        at = torch.arange(T).expand(ROWS, T) * step.valid
        return SampledBatch(step, step.reward.flip(1).cumsum(1).flip(1), at, number_of)
    return TransitionBatch(
        obs={"obs": step.obs["obs"][:, 0]},
        action=step.action[:, 0],
        reward=step.reward[:, 0],
        next_obs={"obs": step.obs["obs"][:, 1]},
        terminated=step.terminated[:, 2],
        truncated=step.truncated[:, 2],
        episode=number_of,
        timestep=number_of,
    )


def rows(tree: Any, kept: slice) -> Any:
    """Return some rows of everything in a batch."""
    if isinstance(tree, Tensor):
        return tree[kept]
    if isinstance(tree, dict):
        return {key: rows(entry, kept) for key, entry in tree.items()}
    return type(tree)(*(rows(entry, kept) for entry in tree))


def learned(agent: Any, kept: slice) -> dict[str, Any]:
    """Let an agent learn from its rows of the batches; return weights and the last metrics."""
    metrics: dict[str, float] = {}
    for number in range(UPDATES):
        metrics = agent.update(rows(joint_batch(agent, number), kept))
    weights = {name: network.state_dict() for name, network in networks(agent).items()}
    return {"weights": weights, "metrics": metrics}


def all_learned(kind: type[RecurrentPPO], kept: slice, rank: int) -> dict[str, Any]:
    results = {}
    for normalize in ("rollout", "minibatch"):
        agent = ppo(kind, normalize)
        agent.shuffle.manual_seed(rank)
        if isinstance(agent, JointPPO):
            agent.minibatches_of_two()
        results[f"ppo-{normalize}"] = learned(agent, kept)
    for system in OFFLINE:
        results[system] = learned(offline(system), kept)
        results[system]["metrics"] = parallel.mean_metrics(results[system]["metrics"])
    return results


def online_words(run: Path, total_steps: int, **changes: Any) -> list[str]:
    """Return the words that train recurrent PPO on a small task."""
    settings: dict[str, Any] = {
        "env__num_envs": 4,
        "env__kwargs__length": 5,
        "rollout_steps": 6,
        "total_steps": total_steps,
        "agent__num_minibatches": 2,
        "agent__encoder__hidden": [8],
        "agent__sequence__num_layers": 1,
        "agent__sequence__d_model": 8,
        "agent__head_hidden": [8],
        "checkpoint__every_steps": 40,
        "checkpoint__keep": 9,
    }
    return ["ppo/memory_chain", "--run", str(run), *offline_cases.words(settings | changes)]


def offline_words(data: Path, run: Path) -> list[str]:
    settings = offline_cases.TINY["dt"] | {"eval__every_updates": 6}
    words = offline_cases.words(settings)
    return ["dt/rtg_dial", "--data", str(data), "--run", str(run), *words]


@contextmanager
def signalled(number: int) -> Iterator[None]:
    """Send this process a signal in a rollout; SIGKILL gives the program no warning."""
    collect, calls = Collector.collect, [0]

    def counted(self: Collector) -> Any:
        calls[0] += 1
        if calls[0] == SIGNALLED_AT:
            os.kill(os.getpid(), number)
        return collect(self)

    with mock.patch.object(Collector, "collect", counted):
        yield


@contextmanager
def spoiled() -> Iterator[None]:
    """Let a reward of this process be NaN."""
    collect = Collector.collect

    def with_nan(self: Collector) -> Any:
        rollout = collect(self)
        rollout.batch.step.reward[0, 0] = torch.nan
        return rollout

    with mock.patch.object(Collector, "collect", with_nan):
        yield


def status_of(words: list[str]) -> int:
    """Return the exit status of a command."""
    try:
        return main(words)
    except SystemExit as end:
        return int(str(end.code))


def work(folder: Path, ports: list[str]) -> None:
    """Do what the tests look at, as one of two processes."""
    rank, statuses = int(os.environ["RANK"]), []
    half = ROWS // PROCESSES
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    offline_cases.register()

    os.environ["MASTER_PORT"] = ports.pop()
    with Joined():
        results = all_learned(RecurrentPPO, slice(rank * half, (rank + 1) * half), rank)
        (folder / f"learned-{rank}").write_bytes(to_bytes(results))
        statuses.append(main(["train", *online_words(folder / "online", 200)]))
        statuses.append(main(["train", *offline_words(folder / "counter.hdf5", folder / "dt")]))
        for name in ("online", "dt"):
            if rank == 0:
                forget_the_last(folder / name, folder / f"{name}-again")
            parallel.any_of(False)
            statuses.append(main(["train", "--resume", str(folder / f"{name}-again")]))
        assert api.load(folder / "dt").step == 12

    os.environ["MASTER_PORT"] = ports.pop()
    odd = {"env__num_envs": 3, "agent__num_minibatches": 3}
    statuses.append(status_of(["train", *online_words(folder / "odd", 200, **odd)]))
    troubles: dict[str, AbstractContextManager[None]] = {
        "spoiled": spoiled(),
        "stopped": signalled(signal.SIGTERM),
        "killed": signalled(signal.SIGKILL),
    }
    for name, trouble in troubles.items():
        os.environ["MASTER_PORT"] = ports.pop()
        (folder / f"statuses-{rank}").write_bytes(to_bytes({"statuses": statuses}))
        with trouble if rank else nullcontext():
            statuses.append(status_of(["train", *online_words(folder / name, 10_000)]))
    sys.exit(statuses[-1])


def forget_the_last(run: Path, copy: Path) -> None:
    """Copy a run as it was at a checkpoint before its last."""
    shutil.copytree(run, copy)
    found = sorted((copy / "checkpoints").iterdir(), key=lambda entry: int(entry.name))
    for entry in found[len(found) // 2 :]:
        shutil.rmtree(entry)


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2:])
