"""Variants of Mamba, Mamba-2 and their options, for the laws."""

from collections.abc import Callable

from statewise.ssm import SequenceModel

LAYERS: dict[str, Callable[[], SequenceModel]] = {}
