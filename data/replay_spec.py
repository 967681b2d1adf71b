"""What a row of a replay holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from statewise.data import checks
from statewise.data.episode import ArraySpec
from statewise.data.errors import SpecMismatch

_FLAGS = ("is_first", "reset", "terminated", "truncated", "valid")


@dataclass(frozen=True, kw_only=True)
class RowSpec:
    """What one row holds, without the axes of workers and time.

    Raises:
        SpecMismatch: an array that holds no numbers, or a state that is not floating.
    """

    obs: Mapping[str, ArraySpec]  # per key of the flat observation space
    action: ArraySpec
    state: Mapping[str, ArraySpec] = field(default_factory=dict)  # memory before the row; or none

    def __post_init__(self) -> None:
        for name, spec in self.fields.items():
            checks.check_numeric(name, np.dtype(spec.dtype))
            if 0 in spec.shape:
                problem = f"expected at least one number per row, got shape {spec.shape}"
                raise SpecMismatch(problem, key=name, hint="leave it out")
            if name.startswith("state/") and np.dtype(spec.dtype).kind != "f":
                raise SpecMismatch(f"expected a floating dtype, got {spec.dtype}", key=name)

    @cached_property
    def fields(self) -> dict[str, ArraySpec]:
        """Every array by name: "obs/KEY", "action", "reward", the flags, "state/KEY"."""
        flag = ArraySpec((), "bool")
        return {
            **{f"obs/{key}": spec for key, spec in self.obs.items()},
            "action": self.action,
            "reward": ArraySpec((), "float32"),
            **dict.fromkeys(_FLAGS, flag),
            **{f"state/{key}": spec for key, spec in self.state.items()},
        }

    @property
    def bytes_per_row(self) -> int:
        """Bytes that a row takes."""
        return sum(
            int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
            for spec in self.fields.values()
        )
