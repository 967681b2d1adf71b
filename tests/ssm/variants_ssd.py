"""Variants of Mamba-2, for the laws."""

from collections.abc import Callable

from statewise.ssm import SequenceModel

LAYERS: dict[str, Callable[[], SequenceModel]] = {}
