"""Settings of the skeleton, shared by all world models."""

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from statewise.nets.dreamer_layers import Norm
from statewise.nets.latents import LatentConfig
from statewise.worldmodels.decoder import ObsDecoderConfig
from statewise.worldmodels.encoder import ObsEncoderConfig
from statewise.worldmodels.parallel import ParallelConfig
from statewise.worldmodels.rssm import RSSMConfig


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Hidden layers of a head."""

    hidden: tuple[int, ...] = (512, 512)  # widths, each >= 1
    norm: Norm = "layer"

    def __post_init__(self) -> None:
        if min(self.hidden, default=1) < 1:
            raise ValueError(f"hidden: expected widths >= 1, got {self.hidden}")


@dataclass(frozen=True, kw_only=True)
class WorldLossScale:
    """Coefficients of the terms of a world model's loss, each >= 0."""

    decoder: float = 1.0
    reward: float = 1.0
    cont: float = 1.0
    dyn: float = 0.5
    rep: float = 0.1

    def __post_init__(self) -> None:
        for name in self.names():
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")

    def names(self) -> set[str]:
        """Return the names of the terms."""
        return {f.name for f in fields(self)}


@dataclass(frozen=True, kw_only=True)
class WorldModelConfig:
    """Sizes and coefficients of a `WorldModel`; the settings of one core stand under its name."""

    core: Literal["rssm", "parallel"] = "rssm"
    latents: LatentConfig = field(default_factory=LatentConfig)
    encoder: ObsEncoderConfig = field(default_factory=ObsEncoderConfig)
    decoder: ObsDecoderConfig = field(default_factory=ObsDecoderConfig)
    rssm: RSSMConfig = field(default_factory=RSSMConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    heads: HeadConfig = field(default_factory=HeadConfig)  # of reward and continue
    decoder_reads: Literal["deter_stoch", "stoch"] = "deter_stoch"
    heads_read: Literal["deter_stoch", "deter"] = "deter_stoch"
    two_hot: Literal["symlog", "symexp"] = "symlog"  # symexp: bins of the code of 2024
    reward_scale: float = 1.0  # > 0, multiplies rewards: bins lie about 0.16 apart, see `TwoHot`
    reward_outscale: float = 0.0  # >= 0, of the reward head's output layer; 0: nothing at first
    free_nats: float = 1.0  # >= 0, of dyn and rep
    free_over: Literal["row", "batch"] = (
        "row"  # below which they are not asked: each, or their mean
    )
    first_rows: Literal["count", "context"] = "count"  # context: first observations only condition
    cont_horizon: float = 0.0  # 0, or > 1: continue targets are 1 - 1 / horizon
    loss_scale: WorldLossScale = field(default_factory=WorldLossScale)

    def __post_init__(self) -> None:
        for name in ("reward_outscale", "free_nats"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if not 0 < self.reward_scale < math.inf:
            raise ValueError(f"reward_scale: expected a positive number, got {self.reward_scale}")
        if self.cont_horizon != 0 and not self.cont_horizon > 1:
            raise ValueError(f"cont_horizon: expected 0 or more than 1, got {self.cont_horizon}")
        other = "parallel" if self.core == "rssm" else "rssm"
        if getattr(self, other) != type(getattr(self, other))():
            raise ValueError(
                f"{other}: would be ignored with core {self.core!r}: remove the settings or change"
                " core"
            )
