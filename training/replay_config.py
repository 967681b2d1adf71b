"""Configuration of agents that learn in their environment from a replay."""

from dataclasses import dataclass, field
from typing import Any, Literal

from statewise.agents.recurrent_sac import RecurrentSACConfig
from statewise.data.replay_config import ReplayConfig
from statewise.envs.build import EnvConfig
from statewise.training.schema import check_at_least, check_device


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """What an update learns from, and how often there is one."""

    batch_size: int = 16  # windows, >= 1
    length: int = 64  # rows of a window, >= 2
    train_ratio: float = 32.0  # > 0, replayed rows per environment step
    prefill: int = 1024  # environment steps before the first update, >= 1

    def __post_init__(self) -> None:
        check_at_least(1, batch_size=self.batch_size, prefill=self.prefill)
        check_at_least(2, length=self.length)
        if not self.train_ratio > 0:
            raise ValueError(f"train_ratio: expected a positive number, got {self.train_ratio}")

    @property
    def rows(self) -> int:
        """Rows of an update."""
        return self.batch_size * self.length

    @property
    def longest(self) -> int:
        """Rows of the longest window that is drawn, burn-in not counted."""
        return self.length


@dataclass(frozen=True, kw_only=True)
class ReplayCheckpointConfig:
    """When checkpoints are written and how many stay."""

    every_steps: int = 20_000  # environment steps between two checkpoints, >= 1
    keep: int = 2  # newest checkpoints kept, >= 1; each holds a replay in memory

    def __post_init__(self) -> None:
        check_at_least(1, every_steps=self.every_steps, keep=self.keep)


@dataclass(frozen=True, kw_only=True)
class ReplayEvalConfig:
    """How a trained agent is evaluated."""

    episodes: int = 100  # episodes per evaluation, >= 1
    num_envs: int = 16  # environments stepped together, >= 1
    actions: Literal["greedy", "sample"] = "sample"  # mode of the policy, or a sample of it
    every_steps: int = 0  # environment steps between two evaluations while training; 0: none
    kwargs: dict[str, Any] = field(default_factory=dict)  # laid over env.kwargs

    def __post_init__(self) -> None:
        check_at_least(1, episodes=self.episodes, num_envs=self.num_envs)
        check_at_least(0, every_steps=self.every_steps)


@dataclass(frozen=True, kw_only=True)
class ReplayTrainConfig:
    """Everything that determines a training in an environment, from a replay."""

    system: str  # key of `agents.build.AGENTS`
    env: EnvConfig
    agent: Any  # the system's own
    total_steps: int  # environment steps of the whole run, all environments together, >= 1
    windows: WindowConfig = field(default_factory=WindowConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    log_every: int = 50  # updates between two lines of the log, >= 1
    seed: int = 0  # root of every random stream, >= 0
    device: str = "cpu"  # "cpu", "cuda" or "cuda:N"
    num_threads: int = 1  # threads of one tensor operation, >= 1
    checkpoint: ReplayCheckpointConfig = field(default_factory=ReplayCheckpointConfig)
    eval: ReplayEvalConfig = field(default_factory=ReplayEvalConfig)

    def __post_init__(self) -> None:
        check_at_least(
            1,
            total_steps=self.total_steps,
            log_every=self.log_every,
            num_threads=self.num_threads,
        )
        check_at_least(0, seed=self.seed)
        check_device(self.device)
        if self.windows.prefill > self.replay.capacity:
            raise ValueError(
                f"windows.prefill: expected at most replay.capacity ({self.replay.capacity}), got "
                f"{self.windows.prefill}"
            )
        self._check_windows()
        self._check_trials()

    def _check_trials(self) -> None:
        """Refuse trials in which the memory would read rows in training that it never acted on."""
        trial, env = self.env.trial, self.env
        is_one_memory = trial.is_on and trial.memory == "trial" and trial.value_ends == "episode"
        if is_one_memory and env.autoreset == "same_step":
            raise ValueError(
                "env.autoreset: expected next_step with a replay, where values end with episodes "
                "and the memory does not (env.trial.value_ends episode), got same_step: final "
                "observations are rows of the replay, which acting does not read then"
            )

    def _check_windows(self) -> None:
        """Refuse a replay in which no window would ever, or not yet, be found."""
        num_envs, burn_in = self.env.num_envs, self.replay.burn_in
        length = self.windows.longest
        what = "windows.length" if length == self.windows.length else "windows.context"
        if burn_in:
            length, what = length + burn_in, "a window and its burn-in"
        rows = self.replay.capacity // num_envs
        if rows <= length:  # a full ring of N rows holds N - length windows
            raise ValueError(
                f"replay.capacity: expected more than {what} ({length}) rows of each of "
                f"{num_envs} environments, got {rows}: set {num_envs * (length + 1)} or more"
            )
        rows = -(-self.windows.prefill // num_envs)
        if rows < length:
            raise ValueError(
                f"windows.prefill: expected {what} ({length}) rows of each of {num_envs} "
                f"environments, got {rows}: set {num_envs * length} or more"
            )

    @property
    def end(self) -> int:
        """Where training ends, in environment steps."""
        return self.total_steps


@dataclass(frozen=True, kw_only=True)
class RecurrentSACRun(ReplayTrainConfig):
    """A training of recurrent SAC."""

    system: Literal["sac"]
    agent: RecurrentSACConfig
