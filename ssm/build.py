"""From a configuration to a stack of blocks; the literal table of all layers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from statewise.kernels import Backend
from statewise.ssm.block import Block, BlockConfig, Gate, Norm, resolve
from statewise.ssm.gru import GRULayer
from statewise.ssm.lru import LRUConfig, LRULayer
from statewise.ssm.lstm import LSTMLayer
from statewise.ssm.mamba import MambaConfig, MambaLayer
from statewise.ssm.mamba2 import Mamba2Config, Mamba2Layer
from statewise.ssm.protocol import SequenceModel
from statewise.ssm.s5 import S5Config, S5Layer
from statewise.ssm.stack import Stack


@dataclass(frozen=True, kw_only=True)
class SequenceConfig:
    """A stack of equal blocks."""

    kind: Literal["s5", "lru", "mamba", "mamba2", "gru", "lstm"] = "s5"
    num_layers: int = 2  # >= 1
    d_model: int = 64  # >= 1, width of every block
    backend: Backend = "auto"  # of the scans; GRU and LSTM have none
    block: BlockConfig = field(default_factory=BlockConfig)
    s5: S5Config = field(default_factory=S5Config)  # only with kind s5
    lru: LRUConfig = field(default_factory=LRUConfig)  # only with kind lru
    mamba: MambaConfig = field(default_factory=MambaConfig)  # only with kind mamba
    mamba2: Mamba2Config = field(default_factory=Mamba2Config)  # only with kind mamba2

    def __post_init__(self) -> None:
        for name in ("num_layers", "d_model"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        own = {
            "s5": S5Config(),
            "lru": LRUConfig(),
            "mamba": MambaConfig(),
            "mamba2": Mamba2Config(),
        }
        ignored = [
            name
            for name, default in own.items()
            if name != self.kind and getattr(self, name) != default
        ]
        if self.backend != "auto" and self.kind in ("gru", "lstm"):
            ignored.append("backend")
        if ignored:
            raise ValueError(
                f"{ignored[0]}: would be ignored with kind {self.kind!r}: remove the setting or "
                "change kind"
            )


class SequenceRow(NamedTuple):
    """One layer of the suite."""

    make: Callable[[SequenceConfig], SequenceModel]
    about: str
    page: str
    norm: Norm = "layer"
    """Of its block, where the configuration leaves it open."""
    gate: Gate = "full_glu"


SEQUENCES: dict[str, SequenceRow] = {
    "s5": SequenceRow(
        lambda c: S5Layer(c.d_model, c.s5, c.backend),
        "diagonal multi-input SSM, HiPPO start (Smith et al. 2023)",
        "docs/systems/s5.md",
    ),
    "lru": SequenceRow(
        lambda c: LRULayer(c.d_model, c.lru, c.backend),
        "linear recurrent unit, ring start (Orvieto et al. 2023)",
        "docs/systems/lru.md",
    ),
    "mamba": SequenceRow(
        lambda c: MambaLayer(c.d_model, c.mamba, c.backend),
        "selective SSM with convolution and gate (Gu & Dao 2023)",
        "docs/systems/mamba.md",
        norm="rms",
        gate="none",
    ),
    "mamba2": SequenceRow(
        lambda c: Mamba2Layer(c.d_model, c.mamba2, c.backend),
        "selective SSM with one decay per head, in matrix products (Dao & Gu 2024)",
        "docs/systems/mamba2.md",
        norm="rms",
        gate="none",
    ),
    "gru": SequenceRow(
        lambda c: GRULayer(c.d_model),
        "gated recurrent unit, baseline (Cho et al. 2014)",
        "docs/systems/baselines.md",
    ),
    "lstm": SequenceRow(
        lambda c: LSTMLayer(c.d_model),
        "long short-term memory, baseline (Hochreiter & Schmidhuber 1997)",
        "docs/systems/baselines.md",
    ),
}


def build_sequence(config: SequenceConfig) -> Stack:
    """Return the stack that `config` describes."""
    row = SEQUENCES[config.kind]
    block = resolve(config.block, row.norm, row.gate)
    return Stack([Block(row.make(config), block) for _ in range(config.num_layers)])
