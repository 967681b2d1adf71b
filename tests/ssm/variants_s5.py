"""Variants of S5's options from the literature, for the laws."""

from collections.abc import Callable

from statewise.ssm import SequenceModel

LAYERS: dict[str, Callable[[], SequenceModel]] = {}
