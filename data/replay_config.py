"""Settings of a replay, and what is drawn from it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from statewise.data import checks
from statewise.data.dfs import DfsConfig
from statewise.data.errors import DataConfigError, MemoryBudget
from statewise.data.memory import Index
from statewise.data.replay_sampler import StartKind
from statewise.data.replay_spec import RowSpec
from statewise.data.step import Step

StorageKind = Literal["memory", "memmap"]
ReplayState = Literal["zero", "stored", "burn_in"]
Weights = Literal["uniform", "dfs"]


class WindowRefs(NamedTuple):
    """Where windows came from."""

    worker: Index
    """(B,)."""
    start: Index
    """(B,) number of row 0 in the worker's stream, counted from its very first row."""


class ReplayBatch(NamedTuple):
    """Windows of a replay."""

    step: Step
    """(B, T, ...); with burn-in (B, n + T, ...)."""
    previous: Step
    """(B, ...) the row before each window, for `to_arrival(step, previous=previous)`. Where a
    window begins with the very first row of a stream there is none: all zeros, `valid` False,
    which `to_arrival` reads as nothing known; that row is the first of an episode."""
    state: dict[str, Tensor]
    """(B, ...) memory before row 0 of each window; {} unless `replay_state` is "stored"."""
    refs: WindowRefs
    """For `Replay.write_state`."""
    burn_in: int
    """n: the first n rows only fill the memory and enter no loss."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Settings of a `Replay`.

    Raises:
        DataConfigError: a field is out of its range, or would have no effect.
    """

    capacity: int = 1_000_000  # >= 1, rows of all workers together
    storage: StorageKind = "memory"  # memmap: files below a folder
    max_bytes: int = 16 * 2**30  # >= 1, most that rows in memory may take
    replay_state: ReplayState = "zero"  # memory before row 0: reset, as stored, or burnt in
    burn_in: int = 0  # rows before a window that fill the memory: none with "zero", or from the
    # stored memory on with "stored" (0 or more), or from a reset on with "burn_in" (1 or more)
    starts: StartKind = "any"  # episode: windows begin with first rows of episodes
    weights: Weights = "uniform"  # dfs: by how often a start was drawn
    dfs: DfsConfig = field(default_factory=DfsConfig)  # read with weights "dfs" alone

    def __post_init__(self) -> None:
        checks.check_choice("replay.storage", self.storage, get_args(StorageKind))
        checks.check_choice("replay.replay_state", self.replay_state, get_args(ReplayState))
        checks.check_choice("replay.starts", self.starts, get_args(StartKind))
        checks.check_choice("replay.weights", self.weights, get_args(Weights))
        for key in ("capacity", "max_bytes"):
            if getattr(self, key) < 1:
                problem = f"expected at least 1, got {getattr(self, key)}"
                raise DataConfigError(problem, key=f"replay.{key}")
        is_fit = {
            "zero": self.burn_in == 0,
            "stored": self.burn_in >= 0,
            "burn_in": self.burn_in >= 1,
        }[self.replay_state]
        if not is_fit:
            raise DataConfigError(
                "expected at least 1 with replay_state 'burn_in', 0 or more with 'stored' and 0"
                f" with 'zero', got {self.burn_in} with {self.replay_state!r}",
                key="replay.burn_in",
            )
        if self.weights == "uniform" and self.dfs != DfsConfig():
            problem = "expected no settings with weights 'uniform', got some"
            raise DataConfigError(problem, key="replay.dfs", hint="set replay.weights dfs")


def check_settings(
    spec: RowSpec,
    config: ReplayConfig,
    num_workers: int,
    folder: Path | None,
    spare: int | None = None,
) -> None:
    """Check what the settings of a replay mean for its rows.

    Raises:
        DataConfigError: settings that do not fit each other.
        MemoryBudget: the rows would need more than `max_bytes` of memory.
    """
    if num_workers < 1 or config.capacity // num_workers < 2:
        raise DataConfigError(
            f"expected at least 2 rows for each of {num_workers} workers, got {config.capacity}",
            key="replay.capacity",
            hint="raise it",
        )
    if (config.storage == "memmap") != (folder is not None):
        raise DataConfigError(
            f"expected a folder with storage 'memmap' and none without, got {folder} with"
            f" {config.storage!r}",
            key="replay.storage",
        )
    if spare is not None and (folder is None or spare < 1):
        raise DataConfigError(
            f"expected at least 1 with storage 'memmap' and none without, got {spare} with"
            f" {config.storage!r}",
            key="spare",
        )
    if (config.replay_state == "stored") != bool(spec.state):
        raise DataConfigError(
            f"expected rows with a state for 'stored' and without one otherwise, got"
            f" {sorted(spec.state) or 'none'} with {config.replay_state!r}",
            key="replay.replay_state",
        )
    required = config.capacity // num_workers * num_workers * spec.bytes_per_row
    if config.storage == "memory" and required > config.max_bytes:
        raise MemoryBudget(
            f"expected at most {config.max_bytes / 2**30:.3g} GiB, capacity {config.capacity}"
            f" rows need {required / 2**30:.3g} GiB",
            key="replay.capacity",
            hint="lower replay.capacity, or set replay.storage memmap",
        )
