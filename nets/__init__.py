"""Networks around the memory: encoders, heads and action distributions."""

from statewise.nets.distributions import (
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
)
from statewise.nets.encoder import Encoder, EncoderConfig
from statewise.nets.heads import PolicyHead, ValueHead, mlp

__all__ = [
    "Categorical",
    "DiagonalGaussian",
    "Distribution",
    "Encoder",
    "EncoderConfig",
    "MultiCategorical",
    "PolicyHead",
    "ValueHead",
    "mlp",
]
