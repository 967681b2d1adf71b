"""Stretches of a window between resets, for ops that compare pairs of steps.

A pair of steps with a reset between them gets the weight 0, but 0 times a number that is not
finite is NaN. So such ops replace broken steps by zeros, and let `poisoned` tell which results the
broken steps would have reached in a recurrence.
"""

import torch
from torch import Tensor


def starts(reset: Tensor | None, like: Tensor) -> Tensor:
    """Return the last reset at or before each step, (B, T) int64; -1 where there is none.

    Args:
        reset: (B, T) bool or None.
        like: (B, T, ...), for the shape and the device.
    """
    B, T = like.shape[:2]
    if reset is None:
        return torch.full((B, T), -1, device=like.device)
    steps = torch.arange(T, device=like.device)
    return torch.where(reset, steps, -1).cummax(1).values


def broken(x: Tensor) -> Tensor:
    """Tell where the last axis of x (..., N) holds NaN or infinity: (...) bool."""
    if x.shape[-1] == 0:
        return torch.zeros(x.shape[:-1], dtype=torch.bool, device=x.device)
    return ~(x.detach().abs().amax(-1) < torch.inf)


def poisoned(bad: Tensor, before: Tensor, start: Tensor) -> Tensor:
    """Tell which steps a broken step of their own stretch reaches, (B, T, H) bool.

    Args:
        bad: (B, T, H) bool, the broken steps.
        before: (B, H) bool, a broken state before the window.
        start: (B, T), what `starts` returned.
    """
    steps = torch.arange(bad.shape[1], device=bad.device)[:, None]
    last = torch.where(bad, steps, torch.where(before, -1, -2)[:, None]).cummax(1).values
    return last >= start[..., None]
