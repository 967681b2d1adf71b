"""Configuration of agents with a world model, and of world models that learn from data."""

from dataclasses import dataclass, field
from typing import Literal

from statewise.agents.imagination.agent import ImaginationConfig
from statewise.agents.imagination.systems import DramaConfig, DreamerConfig, R2IConfig
from statewise.agents.imagination.world_learner import S4WMConfig
from statewise.training.offline_config import DataRunConfig
from statewise.training.replay_config import ReplayTrainConfig, WindowConfig
from statewise.training.schema import check_at_least
from statewise.worldmodels.parallel import TRACE_LARGE


@dataclass(frozen=True, kw_only=True)
class WorldWindowConfig(WindowConfig):
    """What an update of a world model and of a behaviour learns from."""

    context: int = 0  # rows of further windows that imagination starts after; 0: from the others
    num_contexts: int = 0  # those windows per update, >= 1 with a context, else 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.context >= 1) != (self.num_contexts >= 1) or min(
            self.context, self.num_contexts
        ) < 0:
            raise ValueError(
                "num_contexts: expected at least 1 with a context and 0 without, got"
                f" {self.num_contexts} with context {self.context}"
            )

    @property
    def longest(self) -> int:
        """Rows of the longest window that is drawn, burn-in not counted."""
        return max(self.length, self.context)


@dataclass(frozen=True, kw_only=True)
class WorldTrainConfig(ReplayTrainConfig):
    """Everything that determines the training of an agent that imagines."""

    agent: ImaginationConfig
    windows: WorldWindowConfig = field(default_factory=WorldWindowConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.windows.context and self.agent.behavior.num_starts:
            raise ValueError(
                "agent.behavior.num_starts: would be ignored with windows.context, which says where"
                " rollouts start: remove one of them"
            )
        if self.env.trial.is_on:
            raise ValueError(
                "env.trial: expected none with a world model, which ends its memory and its "
                f"returns with each episode, got {self.env.trial}: use ppo, sac or ad"
            )
        world = self.agent.world
        few = world.core == "parallel" and world.parallel.gives_few_states
        if few and not self.windows.context and self.windows.length < TRACE_LARGE:
            raise ValueError(
                f"windows.length: expected at least {TRACE_LARGE}, since rollouts start at every "
                f"{TRACE_LARGE}th row with {world.parallel.sequence.kind}, got "
                f"{self.windows.length}: raise it, or set windows.context"
            )


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
