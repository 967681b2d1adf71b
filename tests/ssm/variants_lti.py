"""Variants of the layers with a time-invariant recurrence, for the laws."""

from collections.abc import Callable

from statewise.ssm import SequenceModel

LAYERS: dict[str, Callable[[], SequenceModel]] = {}
