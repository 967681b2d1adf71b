"""Experience: the stored step and the one function that shifts it."""

from statewise.data.shift import Arrival, to_arrival
from statewise.data.step import Batch, Step

__all__ = ["Arrival", "Batch", "Step", "to_arrival"]
