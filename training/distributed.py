"""One training run in several processes, which `torchrun` has started.

    torchrun --nproc-per-node 2 -m statewise train ppo/repeat_previous_easy

Each process steps its share of the environments, or draws its share of every batch, from random
streams of its own; weights and optimisers are equal in all (`agents.parallel`). Process 0 alone
writes the run directory, shows progress and evaluates, while the others wait. What differs
between processes is gathered for checkpoints. Of an error that reaches several, one speaks.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from statewise.agents import parallel
from statewise.agents.build import AGENTS
from statewise.agents.generators import generators_of
from statewise.agents.parallel import LostProcessError, num_processes, rank
from statewise.training.checkpoint import from_bytes, to_bytes
from statewise.training.config import ConfigError, OfflineTrainConfig, RunConfig, TrainConfig
from statewise.training.run import RunDirectory, RunError
from statewise.training.seeding import Seeds
from statewise.training.stepper import WINDOW

# How long a process waits for another one that is alive: an evaluation has to fit in.
TIMEOUT = timedelta(hours=1)
LOOPS = ("online", "offline")
"""The loops of `agents.build` that several processes can share."""
_PROCESSES = "processes"
_FAILED, _INTERRUPTED = 2, 130


def is_launched() -> bool:
    """Return whether torchrun started this process as one of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


class Joined:
    """While entered, the processes that torchrun started are one group; alone it does nothing.

    It does nothing, too, in a group that exists already. On an error that another process has
    told before, it ends this one without a word.
    """

    def __init__(self) -> None:
        self._store: Any = None

    def __enter__(self) -> None:
        if not is_launched() or dist.is_initialized():
            return
        self._store, own, size = next(rendezvous("env://", timeout=TIMEOUT))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, store=self._store, rank=own, world_size=size, timeout=TIMEOUT
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        store, self._store = self._store, None
        if store is None:
            return
        is_told = error is not None and not isinstance(error, SystemExit) and _is_told(store)
        dist.destroy_process_group()
        if is_told:
            status = _INTERRUPTED if isinstance(error, KeyboardInterrupt) else _FAILED
            raise SystemExit(status) from None


def _is_told(store: Any) -> bool:
    """Return whether another process has asked this before; False where that cannot be known."""
    try:
        return int(store.add("told", 1)) > 1
    except RuntimeError:  # the process that held the store is gone
        return False


def resume_line(path: Path, command: str = "train") -> str:
    """Return what goes on with a run in as many processes as there are.

    Args:
        path: the run; on an environment of one's own, which only Python can give, it is a call.
        command: of `statewise`, for any other.
    """
    processes = num_processes()
    start = "" if processes == 1 else f"torchrun --nproc-per-node {processes} "
    if RunDirectory(path).has_own_env():
        script = f" in a script that {start.rstrip()} starts" if start else ""
        return f"statewise.resume({str(path)!r}, env=...) in Python{script}"
    return f"{start}{'-m ' * bool(start)}statewise {command} --resume {path}"


@contextmanager
def tells_how_to_go_on(path: Path) -> Iterator[None]:
    """Add to the error about a lost process how the run goes on."""
    try:
        yield
    except LostProcessError as error:
        raise LostProcessError(
            f"{error}; the last checkpoint is intact: {resume_line(path)}"
        ) from error


def check_shares(config: RunConfig, processes: int) -> None:
    """Raise ConfigError unless a run can be divided among processes."""
    if processes == 1:
        return
    if AGENTS[config.system].loop not in LOOPS:
        able = ", ".join(name for name, row in AGENTS.items() if row.loop in LOOPS)
        raise ConfigError(
            f"torchrun: expected one of {able} for {processes} processes, got {config.system}, "
            "which trains in one: start `statewise train` without torchrun"
        )
    if config.device.startswith("cuda:"):
        raise ConfigError(
            f"device: expected cpu or cuda for {processes} processes, which take a GPU each, got "
            f"{config.device!r}: pass --device cuda"
        )
    if isinstance(config, TrainConfig):
        share = _divided("env.num_envs", config.env.num_envs, processes)
        if share % config.agent.num_minibatches:
            raise ConfigError(
                f"agent.num_minibatches: expected a divisor of the {share} environments of each "
                f"of {processes} processes, got {config.agent.num_minibatches}: change env.num_envs"
            )
    elif isinstance(config, OfflineTrainConfig):
        _divided("agent.batch_size", config.agent.batch_size, processes)


def _divided(name: str, number: int, processes: int) -> int:
    """Return the share of each process."""
    if number % processes:
        raise ConfigError(
            f"{name}: expected a multiple of the {processes} processes, got {number}: "
            f"pass --{name} {-(-number // processes) * processes}"
        )
    return number // processes


def take_device(config: RunConfig) -> None:
    """Let "cuda" mean a GPU of this process's own.

    Raises:
        ConfigError: there are fewer GPUs than processes on this machine.
    """
    if num_processes() == 1 or config.device != "cuda" or not torch.cuda.is_available():
        return
    local, found = int(os.environ.get("LOCAL_RANK", rank())), torch.cuda.device_count()
    if local >= found:
        raise ConfigError(
            f"device: expected a GPU for each process, got {found} of them for process "
            f"{local + 1} on this machine: lower --nproc-per-node or pass --device cpu"
        )
    torch.cuda.set_device(local)


def share(number: int) -> int:
    """Return this process's share of environments or of a batch; see `check_shares`."""
    return number // num_processes()


def share_sampling(sampling: Any) -> Any:
    """Return settings of batches with this process's share of the rows."""
    if num_processes() == 1:
        return sampling
    return dataclasses.replace(sampling, batch_size=share(sampling.batch_size))


def own_stream(name: str) -> str:
    """Return the name of a random stream in this process; that of process 0 is `name`."""
    return name if rank() == 0 else f"{name}-process-{rank()}"


def same_path(path: Path) -> Path:
    """Return the path that process 0 has."""
    return Path(parallel.from_first(str(path).encode()).decode())


def check_equal(agent: Any) -> None:
    """Raise RunError unless the agent is the same in all processes, generators aside."""
    if num_processes() == 1:
        return
    skipped = generators_of(agent)
    state = {key: value for key, value in agent.state_dict().items() if key not in skipped}
    digest = hashlib.sha256(to_bytes(state)).digest()
    if not parallel.any_of(parallel.from_first(digest) != digest):
        return
    raise RunError(
        f"expected the same agent in all {num_processes()} processes, got different weights: use "
        "the same versions, settings and files everywhere"
    )


def seed_own_streams(agent: Any, seed: int) -> None:
    """Let what an agent draws after its initial weights differ between processes.

    Args:
        agent: new.
        seed: of the run.
    """
    if rank() == 0:
        return
    for name, generator in generators_of(agent).items():
        generator.manual_seed(Seeds(seed).integer(own_stream(f"policy-{name}")))


def other_states(state: dict[str, Any], agent: Any) -> dict[str, Any]:
    """Gather for a checkpoint what differs between processes.

    Args:
        state: of the loop in this process, with that of the agent under "agent".
        agent: the agent.

    Returns:
        In process 0 an entry with what the others need; nothing in the others, or alone.
    """
    if num_processes() == 1:
        return {}
    kept = generators_of(agent)
    own = {name: entry for name, entry in state["agent"].items() if name in kept}
    gathered = parallel.gather_bytes(to_bytes(state | {"agent": own}))
    return {_PROCESSES: [from_bytes(one) for one in gathered[1:]]} if gathered else {}


def own_state(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return what this process goes on with, from the state of a checkpoint.

    Raises:
        RunError: it was written by another number of processes.
    """
    others = state.get(_PROCESSES, [])
    if len(others) + 1 != num_processes():
        count = len(others) + 1
        start = "without torchrun" if count == 1 else f"with torchrun --nproc-per-node {count}"
        raise RunError(
            f"{path}: expected {count} process{'es' * (count > 1)}, as its checkpoint has them, "
            f"got {num_processes()}: resume it {start}"
        )
    if rank() == 0:
        return state
    own = others[rank() - 1]
    return state | own | {"agent": state["agent"] | own["agent"]}


def other_batches(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """Return in process 0 the tensors of the other processes, by rank; nothing elsewhere."""
    if num_processes() == 1:
        return []
    return [from_bytes(one) for one in parallel.gather_bytes(to_bytes(batch))[1:]]


def joint_statistics(windows: dict[str, list[float]]) -> dict[str, float]:
    """Return the means over the latest episodes of all processes, in the others nothing.

    Args:
        windows: of this process, the latest values by name, the last one last.
    """
    if num_processes() == 1:
        return {name: float(np.mean(values)) for name, values in windows.items()}
    latest = max(1, WINDOW // num_processes())
    own = {name: values[-latest:] for name, values in windows.items()}
    joined: dict[str, list[float]] = {}
    for one in map(json.loads, parallel.gather_bytes(json.dumps(own).encode())):
        for name, values in one.items():
            joined.setdefault(name, []).extend(values)
    return {name: float(np.mean(values)) for name, values in joined.items()}
