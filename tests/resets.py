"""Reset patterns that every scan and every layer must honour."""

import torch
from torch import Tensor

KINDS = ("none", "all_false", "first", "last", "all", "random", "adjacent", "staggered")


def pattern(kind: str, B: int, T: int) -> Tensor | None:
    """Return reset (B, T) bool, or None for "none".

    "staggered" cuts every row somewhere else, as parallel environments do; "adjacent" cuts two
    steps in a row, where a shift by one would go unseen if only the first were looked at.
    """
    if kind == "none":
        return None
    reset = torch.zeros(B, T, dtype=torch.bool)
    if kind == "all_false" or T == 0:
        return reset
    rows = torch.arange(B)
    if kind == "first":
        reset[:, 0] = True
    elif kind == "last":
        reset[:, -1] = True
    elif kind == "all":
        reset[:] = True
    elif kind == "random":
        reset = torch.rand(B, T, generator=torch.Generator().manual_seed(B * 1009 + T)) < 0.25
    elif kind == "adjacent":
        reset[:, T // 2] = True
        reset[:, max(T // 2 - 1, 0)] = True
    elif kind == "staggered":
        reset[rows, (2 * rows + 1) % T] = True
        reset[rows, (3 * rows + T // 2) % T] = True
    else:
        raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")
    return reset
