"""Sequence layers over the kernels: SSMs and recurrent baselines behind one contract."""

from statewise.ssm.build import SEQUENCES, SequenceConfig, build_sequence
from statewise.ssm.protocol import Cache, SequenceModel, State

__all__ = ["SEQUENCES", "Cache", "SequenceConfig", "SequenceModel", "State", "build_sequence"]
