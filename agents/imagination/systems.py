"""The systems that imagine: one agent, what its world model is made of, and defaults.

    dreamer   GRU, posterior with memory          Hafner et al. 2023
    r2i       S5 by default, posterior without    Samsami et al. 2024
    drama     Mamba-2 by default, heads on h      Wang et al. 2025

Presets hold the sizes; the page of each system compares them with the papers'.
"""

from dataclasses import dataclass, field
from typing import Literal

from statewise.agents.imagination.agent import ImaginationConfig, WorldOptimizerConfig
from statewise.agents.optimizer import Kind
from statewise.ssm.build import SequenceConfig
from statewise.worldmodels.config import WorldModelConfig
from statewise.worldmodels.decoder import ObsDecoderConfig
from statewise.worldmodels.encoder import ObsEncoderConfig, PictureLayers
from statewise.worldmodels.parallel import ParallelConfig


@dataclass(frozen=True, kw_only=True)
class DreamerWorldConfig(WorldModelConfig):
    """The world model of Dreamer."""

    core: Literal["rssm"] = "rssm"


@dataclass(frozen=True, kw_only=True)
class R2IWorldConfig(WorldModelConfig):
    """The world model of R2I: any sequence layer."""

    core: Literal["parallel"] = "parallel"


def _mamba2() -> ParallelConfig:
    sequence = SequenceConfig(kind="mamba2", num_layers=2, d_model=512)
    return ParallelConfig(output="norm", norm="rms", prior_hidden=(), sequence=sequence)


@dataclass(frozen=True, kw_only=True)
class DramaEncoderConfig(ObsEncoderConfig):
    """How Drama reads observations."""

    depth: int = 16
    pictures: PictureLayers = "drama"


@dataclass(frozen=True, kw_only=True)
class DramaDecoderConfig(ObsDecoderConfig):
    """How Drama draws observations."""

    depth: int = 16
    pictures: PictureLayers = "drama"


@dataclass(frozen=True, kw_only=True)
class DramaWorldConfig(WorldModelConfig):
    """The world model of Drama: the decoder reads z alone, the heads h alone."""

    core: Literal["parallel"] = "parallel"
    encoder: DramaEncoderConfig = field(default_factory=DramaEncoderConfig)
    decoder: DramaDecoderConfig = field(default_factory=DramaDecoderConfig)
    parallel: ParallelConfig = field(default_factory=_mamba2)
    decoder_reads: Literal["deter_stoch", "stoch"] = "stoch"
    heads_read: Literal["deter_stoch", "deter"] = "deter"
    free_over: Literal["row", "batch"] = "batch"


@dataclass(frozen=True, kw_only=True)
class DramaOptimizerConfig(WorldOptimizerConfig):
    """How the world model of Drama learns."""

    learning_rate: float = 4e-5
    eps: float = 1e-20
    warmup_updates: int = 1000
    kind: Kind = "laprop"


@dataclass(frozen=True, kw_only=True)
class DreamerConfig(ImaginationConfig):
    """Hyper-parameters of Dreamer."""

    world: DreamerWorldConfig = field(default_factory=DreamerWorldConfig)


@dataclass(frozen=True, kw_only=True)
class R2IConfig(ImaginationConfig):
    """Hyper-parameters of R2I."""

    world: R2IWorldConfig = field(default_factory=R2IWorldConfig)


@dataclass(frozen=True, kw_only=True)
class DramaConfig(ImaginationConfig):
    """Hyper-parameters of Drama."""

    world: DramaWorldConfig = field(default_factory=DramaWorldConfig)
    optimizer: DramaOptimizerConfig = field(default_factory=DramaOptimizerConfig)
