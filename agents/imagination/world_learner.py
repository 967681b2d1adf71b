"""A world model that learns from data, without a policy: S4WM, and its backbones' comparison.

Paper: Deng, Park and Ahn 2023, "Facing Off World Model Backbones: RNNs, Transformers, and S4".

    loss = sum over rows of  -log p(o_t | h_t, z_t) - log p(r_t | h_t, z_t) - log p(c_t | h_t, z_t)
           + alpha KL(sg q || p) + (1 - alpha) KL(q || sg p),     alpha = 0.8

The skeleton, its memories and its losses are those of the agents that imagine; the defaults are
S4WM's. The first observation of an episode only conditions.

Deviations: S4D stands for S4; blocks have a gate, and no network of their own at the end; there is
a continue head (`loss_scale.cont` 0 takes its loss away).
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from gymnasium import spaces

from statewise.agents.generators import restore
from statewise.agents.imagination.agent import WorldOptimizerConfig, learn_world
from statewise.agents.offline.protocol import Sampling
from statewise.agents.optimizer import Optimizer, Schedule
from statewise.agents.protocol import Metrics
from statewise.agents.recurrent_ppo import EncoderFactory
from statewise.agents.state_dicts import check_keys, load_weights
from statewise.data.samplers import SampledBatch, StreamConfig, StreamStart, TrajectoryConfig
from statewise.data.shift import to_arrival
from statewise.data.step import moved
from statewise.ssm.build import Kind, SequenceConfig
from statewise.worldmodels.config import WorldLossScale, WorldModelConfig
from statewise.worldmodels.model import WorldModel
from statewise.worldmodels.parallel import ParallelConfig

_LENGTH, _BUCKETS = 64, 1


@dataclass(frozen=True, kw_only=True)
class S4WMSequence(SequenceConfig):
    """The layers of S4WM."""

    kind: Kind = "s4d"
    num_layers: int = 8  # >= 1
    d_model: int = 512  # >= 1


@dataclass(frozen=True, kw_only=True)
class S4WMParallel(ParallelConfig):
    """The memory of S4WM, of one parallel pass."""

    input_hidden: tuple[int, ...] = (512,)
    prior_hidden: tuple[int, ...] = (512, 512)
    sequence: S4WMSequence = field(default_factory=S4WMSequence)


@dataclass(frozen=True, kw_only=True)
class S4WMLossScale(WorldLossScale):
    """Coefficients of the terms of the loss, each >= 0; dyn is alpha, rep is 1 - alpha."""

    dyn: float = 0.8
    rep: float = 0.2


@dataclass(frozen=True, kw_only=True)
class S4WMWorldConfig(WorldModelConfig):
    """The world model of S4WM: any memory, of one parallel pass or (core rssm) of a GRU."""

    core: Literal["rssm", "parallel"] = "parallel"
    parallel: S4WMParallel = field(default_factory=S4WMParallel)
    reward_outscale: float = 1.0  # a head that begins with nothing is slow where memory decides
    first_rows: Literal["count", "context"] = "context"
    loss_scale: S4WMLossScale = field(default_factory=S4WMLossScale)


@dataclass(frozen=True, kw_only=True)
class S4WMOptimizerConfig(WorldOptimizerConfig):
    """How the world model of S4WM learns."""

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_updates: int = 1000
    schedule: Schedule = "constant"  # after the warm-up; see `rate_factor`


@dataclass(frozen=True, kw_only=True)
class S4WMConfig:
    """Settings of a `WorldLearner`.

    A batch has, by `sampling`,

        episodes   whole episodes, a line each, padded to the longest of them
        packed     whole episodes, of which short ones share a line
        stream     lines of `length` rows that go on over the ends of episodes
    """

    world: S4WMWorldConfig = field(default_factory=S4WMWorldConfig)
    optimizer: S4WMOptimizerConfig = field(default_factory=S4WMOptimizerConfig)
    batch_size: int = 8  # >= 1, episodes; lines of a stream
    sampling: Literal["episodes", "packed", "stream"] = "episodes"
    buckets: int = _BUCKETS  # >= 1 groups of episodes of like lengths; not of a stream
    length: int = _LENGTH  # >= 2, rows of a line of a stream
    starts: StreamStart = "any"  # of a stream; episode: lines begin with first rows

    def __post_init__(self) -> None:
        for name, low in (("batch_size", 1), ("buckets", 1), ("length", 2)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}: expected at least {low}, got {getattr(self, name)}")
        is_stream = self.sampling == "stream"
        ignored = {
            "buckets": is_stream and self.buckets != _BUCKETS,
            "length": not is_stream and self.length != _LENGTH,
            "starts": not is_stream and self.starts != "any",
        }
        for name in (name for name, is_ignored in ignored.items() if is_ignored):
            raise ValueError(
                f"{name}: would be ignored with sampling {self.sampling!r}: remove the setting or"
                " change sampling"
            )

    def batches(self) -> Sampling:
        """Return which batches are drawn; final observations are rows."""
        if self.sampling == "stream":
            return StreamConfig(
                length=self.length, batch_size=self.batch_size, starts=self.starts, final="include"
            )
        return TrajectoryConfig(
            batch_size=self.batch_size,
            buckets=self.buckets,
            packing="rows" if self.sampling == "packed" else "none",
            final="include",
        )


class WorldLearner:
    """A world model that learns from batches of a data set.

    Args:
        config: settings.
        obs_space: flat, of one environment.
        action_space: of one environment.
        total_updates: >= 1, of the run: where the schedule ends.
        seed: of weights and noise.
        device: where it lives.
        encoder: see `ImaginationAgent`.

    Raises:
        ValueError: a space that cannot be modelled.
    """

    def __init__(
        self,
        config: S4WMConfig,
        obs_space: spaces.Dict,
        action_space: spaces.Space[Any],
        *,
        total_updates: int,
        seed: int,
        device: torch.device | str = "cpu",
        encoder: EncoderFactory | None = None,
    ):
        self.config = config
        self.device = torch.device(device)
        self.sampling = config.batches()
        self.updates_made = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            front = None if encoder is None else encoder(obs_space)
            self.world = WorldModel(obs_space, action_space, config.world, front).to(self.device)
        self.world.eval()
        self.optimizer = Optimizer(self.world, config.optimizer.settings(total_updates))
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def end_at(self, total_updates: int) -> None:
        """Let the schedule end after so many updates, >= 1, those made so far included."""
        self.optimizer.settings = self.config.optimizer.settings(total_updates)

    def update(self, batch: SampledBatch) -> Metrics:
        """Take one gradient step on rows (B, T); the losses by name.

        The first row of a line that begins inside an episode only conditions.

        Raises:
            NonFiniteLossError: the loss or its gradient is NaN or infinite.
        """
        step = moved(batch.step, self.device)
        self.world.train()
        arrival = to_arrival(step)
        noise = self.world.noise(*arrival.counts.shape, generator=self.generator)
        action = self.world.action_in(arrival)
        seen = self.world.observe(step.obs, action, None, step.reset, noise)
        metrics = learn_world(self.world, self.optimizer, (step, arrival, seen), self.updates_made)
        self.world.eval()
        self.updates_made += 1
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return weights, moments, the generator and the counter of updates."""
        return {
            "world": self.world.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "updates_made": self.updates_made,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: keys or shapes differ; one line that names the first difference.
        """
        check_keys(self.state_dict(), state)
        load_weights(self.world, state["world"])
        self.optimizer.load_state_dict(state["optimizer"])
        restore(self.generator, state["generator"])
        self.updates_made = int(state["updates_made"])
