"""Variants of the layers with a time-invariant recurrence: S4, S4D, DSS, LSSL and options of S5, for the laws."""

from collections.abc import Callable

from statewise.ssm import SequenceModel

LAYERS: dict[str, Callable[[], SequenceModel]] = {}
