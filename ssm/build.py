"""From a configuration to a stack of blocks; the literal table of all layers."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Literal, NamedTuple

from statewise.kernels import Backend
from statewise.ssm.attention import AttentionConfig, AttentionLayer
from statewise.ssm.block import Block, BlockConfig, Gate, Norm, resolve
from statewise.ssm.delta_net import GatedDeltaNetConfig, GatedDeltaNetLayer
from statewise.ssm.dss import DSSConfig, DSSLayer
from statewise.ssm.forgetful import Forgetful
from statewise.ssm.gru import GRULayer
from statewise.ssm.lru import LRUConfig, LRULayer
from statewise.ssm.lssl import LSSLConfig, LSSLLayer
from statewise.ssm.lstm import LSTMLayer
from statewise.ssm.mamba import MambaConfig, MambaLayer
from statewise.ssm.mamba2 import Mamba2Config, Mamba2Layer
from statewise.ssm.protocol import SequenceModel
from statewise.ssm.rg_lru import RGLRUConfig, RGLRULayer
from statewise.ssm.s4 import S4Config, S4Layer
from statewise.ssm.s4d import S4DConfig, S4DLayer
from statewise.ssm.s5 import S5Config, S5Layer
from statewise.ssm.stack import Stack

Kind = Literal[
    "s5",
    "lru",
    "rg_lru",
    "s4",
    "s4d",
    "dss",
    "lssl",
    "mamba",
    "mamba2",
    "delta_net",
    "gru",
    "lstm",
    "attention",
]
NO_BACKEND = ("gru", "lstm", "attention")


@dataclass(frozen=True, kw_only=True)
class SequenceConfig:
    """A stack of equal blocks; the settings of one kind of layer stand under its name."""

    kind: Kind = "s5"
    num_layers: int = 2  # >= 1
    d_model: int = 64  # >= 1, width of every block
    backend: Backend = "auto"  # of the scans; GRU, LSTM and attention have none
    memory: Literal["kept", "none"] = "kept"  # none: cleared before every step, the control
    block: BlockConfig = field(default_factory=BlockConfig)
    s5: S5Config = field(default_factory=S5Config)
    lru: LRUConfig = field(default_factory=LRUConfig)
    rg_lru: RGLRUConfig = field(default_factory=RGLRUConfig)
    s4: S4Config = field(default_factory=S4Config)
    s4d: S4DConfig = field(default_factory=S4DConfig)
    dss: DSSConfig = field(default_factory=DSSConfig)
    lssl: LSSLConfig = field(default_factory=LSSLConfig)
    mamba: MambaConfig = field(default_factory=MambaConfig)
    mamba2: Mamba2Config = field(default_factory=Mamba2Config)
    delta_net: GatedDeltaNetConfig = field(default_factory=GatedDeltaNetConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)

    def __post_init__(self) -> None:
        for name in ("num_layers", "d_model"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        ignored = [
            name
            for name in (f.name for f in fields(self) if f.name in SEQUENCES)
            if name != self.kind and getattr(self, name) != type(getattr(self, name))()
        ]
        if self.backend != "auto" and self.kind in NO_BACKEND:
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
    "rg_lru": SequenceRow(
        lambda c: RGLRULayer(c.d_model, c.rg_lru, c.backend),
        "gated real-valued linear recurrence with convolution (De et al. 2024)",
        "docs/systems/rg_lru.md",
        norm="rms",
        gate="mlp",
    ),
    "s4": SequenceRow(
        lambda c: S4Layer(c.d_model, c.s4, c.backend),
        "diagonal plus low-rank SSM per channel, HiPPO start (Gu et al. 2022)",
        "docs/systems/s4.md",
    ),
    "s4d": SequenceRow(
        lambda c: S4DLayer(c.d_model, c.s4d, c.backend),
        "diagonal SSM per channel (Gu et al. 2022)",
        "docs/systems/s4.md",
    ),
    "dss": SequenceRow(
        lambda c: DSSLayer(c.d_model, c.dss, c.backend),
        "diagonal SSM per channel without an input matrix (Gupta et al. 2022)",
        "docs/systems/s4.md",
    ),
    "lssl": SequenceRow(
        lambda c: LSSLLayer(c.d_model, c.lssl, c.backend),
        "dense SSM per channel, small states: the oracle of S4 (Gu et al. 2021)",
        "docs/systems/s4.md",
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
        "docs/systems/mamba.md",
        norm="rms",
        gate="none",
    ),
    "delta_net": SequenceRow(
        lambda c: GatedDeltaNetLayer(c.d_model, c.delta_net, c.backend),
        "gated delta rule: a matrix corrected at every step (Yang et al. 2024)",
        "docs/systems/delta_net.md",
        norm="rms",
        gate="mlp",
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
    "attention": SequenceRow(
        lambda c: AttentionLayer(c.d_model, c.attention),
        "causal attention over a sliding window, baseline (Vaswani et al. 2017)",
        "docs/systems/baselines.md",
        gate="mlp",
    ),
}


def build_sequence(config: SequenceConfig) -> Stack | Forgetful:
    """Return the stack that `config` describes."""
    row = SEQUENCES[config.kind]
    block = resolve(config.block, row.norm, row.gate)
    stack = Stack([Block(row.make(config), block) for _ in range(config.num_layers)])
    return stack if config.memory == "kept" else Forgetful(stack)
