"""Configuration of agents with a world model, and of world models that learn from data."""

from dataclasses import dataclass, field
from typing import Any, Literal

from statewise.agents.imagination.agent import ImaginationConfig
from statewise.agents.imagination.systems import DramaConfig, DreamerConfig, R2IConfig
from statewise.agents.imagination.world_learner import S4WMConfig
from statewise.data.replay_config import ReplayConfig
from statewise.envs.build import EnvConfig
from statewise.training.offline_config import DataRunConfig
from statewise.training.schema import check_at_least, check_device


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """What an update learns from, and how often there is one."""

    batch_size: int = 16  # windows, >= 1
    length: int = 64  # rows of a window, >= 2
    train_ratio: float = 32.0  # > 0, replayed rows per environment step
    prefill: int = 1024  # environment steps before the first update, >= 1
    context: int = 0  # rows of further windows that imagination starts after; 0: from the others
    num_contexts: int = 0  # those windows per update, >= 1 with a context, else 0

    def __post_init__(self) -> None:
        check_at_least(1, batch_size=self.batch_size, prefill=self.prefill)
        check_at_least(2, length=self.length)
        if (self.context >= 1) != (self.num_contexts >= 1) or min(
            self.context, self.num_contexts
        ) < 0:
            raise ValueError(
                "num_contexts: expected at least 1 with a context and 0 without, got"
                f" {self.num_contexts} with context {self.context}"
            )
        if not self.train_ratio > 0:
            raise ValueError(f"train_ratio: expected a positive number, got {self.train_ratio}")

    @property
    def rows(self) -> int:
        """Rows of an update."""
        return self.batch_size * self.length


@dataclass(frozen=True, kw_only=True)
class WorldCheckpointConfig:
    """When checkpoints are written and how many stay."""

    every_steps: int = 20_000  # environment steps between two checkpoints, >= 1
    keep: int = 2  # newest checkpoints kept, >= 1; each holds a replay in memory

    def __post_init__(self) -> None:
        check_at_least(1, every_steps=self.every_steps, keep=self.keep)


@dataclass(frozen=True, kw_only=True)
class WorldEvalConfig:
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
class WorldTrainConfig:
    """Everything that determines the training of an agent that imagines."""

    system: str  # key of `agents.build.AGENTS`
    env: EnvConfig
    agent: ImaginationConfig
    total_steps: int  # environment steps of the whole run, all environments together, >= 1
    windows: WindowConfig = field(default_factory=WindowConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    log_every: int = 50  # updates between two lines of the log, >= 1
    seed: int = 0  # root of every random stream, >= 0
    device: str = "cpu"  # "cpu", "cuda" or "cuda:N"
    num_threads: int = 1  # threads of one tensor operation, >= 1
    checkpoint: WorldCheckpointConfig = field(default_factory=WorldCheckpointConfig)
    eval: WorldEvalConfig = field(default_factory=WorldEvalConfig)

    def __post_init__(self) -> None:
        check_at_least(
            1,
            total_steps=self.total_steps,
            log_every=self.log_every,
            num_threads=self.num_threads,
        )
        check_at_least(0, seed=self.seed)
        check_device(self.device)
        if self.windows.context and self.agent.behavior.num_starts:
            raise ValueError(
                "agent.behavior.num_starts: would be ignored with windows.context, which says where"
                " rollouts start: remove one of them"
            )
        if self.windows.prefill > self.replay.capacity:
            raise ValueError(
                f"windows.prefill: expected at most replay.capacity ({self.replay.capacity}), got "
                f"{self.windows.prefill}"
            )

    @property
    def end(self) -> int:
        """Where training ends, in environment steps."""
        return self.total_steps


@dataclass(frozen=True, kw_only=True)
class DreamerRun(WorldTrainConfig):
    """A training of Dreamer."""

    system: Literal["dreamer"]
    agent: DreamerConfig


@dataclass(frozen=True, kw_only=True)
class R2IRun(WorldTrainConfig):
    """A training of R2I."""

    system: Literal["r2i"]
    agent: R2IConfig


@dataclass(frozen=True, kw_only=True)
class DramaRun(WorldTrainConfig):
    """A training of Drama."""

    system: Literal["drama"]
    agent: DramaConfig


HELD_OUT = 0.1


@dataclass(frozen=True, kw_only=True)
class OpenLoopEvalConfig:
    """How a world model is evaluated: it sees the beginnings of episodes and imagines the rest."""

    data: str = ""  # data set of these episodes; "": the last ones of those that are learned from
    held_out: float = HELD_OUT  # (0, 1), share of the latter, which training leaves out
    episodes: int = 100  # the first so many of them, >= 1
    context: int = 0  # observations that are seen, >= 1; 0: half of each episode's
    samples: int = 8  # rollouts of each episode, >= 1
    batch_size: int = 16  # episodes at a time, >= 1
    every_updates: int = 0  # updates between two evaluations while training; 0: none

    def __post_init__(self) -> None:
        check_at_least(1, episodes=self.episodes, samples=self.samples, batch_size=self.batch_size)
        check_at_least(0, context=self.context, every_updates=self.every_updates)
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out: expected a share in (0, 1), got {self.held_out}")
        if self.data and self.held_out != HELD_OUT:
            raise ValueError(
                f"held_out: would be ignored with data {self.data}: remove one of the two"
            )


@dataclass(frozen=True, kw_only=True)
class S4WMRun(DataRunConfig):
    """A training of a world model on data."""

    system: Literal["s4wm"]
    agent: S4WMConfig
    eval: OpenLoopEvalConfig = field(default_factory=OpenLoopEvalConfig)
