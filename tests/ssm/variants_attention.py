"""Variants of causal attention, Gated DeltaNet and RG-LRU, for the laws."""

from collections.abc import Callable

from statewise.ssm import SequenceModel

LAYERS: dict[str, Callable[[], SequenceModel]] = {}
