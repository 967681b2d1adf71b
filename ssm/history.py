"""The last inputs as a state: what sliding windows hold after each step, with resets honoured."""

import torch
from torch import Tensor


def windows_after(values: Tensor, start: Tensor, size: int, every: int) -> Tensor:
    """Return the last `size` entries after steps every - 1, 2 * every - 1, ...

    Args:
        values: (B, size + T, ...), the `size` entries before the window and those of its T steps.
        start: (B, T), the last reset at or before each step, -1 where there is none.
        size: >= 0, entries in a state.
        every: >= 1.

    Returns:
        (B, T // every, size, ...), oldest first; entries from before the last reset are zeros.
    """
    # After step t the entries t + 1 ... t + size are the last; a reset at s hides those below
    # size + s.
    kept = values.unfold(1, size, 1)[:, every::every].movedim(-1, 2)
    begin = start[:, every - 1 :: every, None]
    steps = torch.arange(every - 1, start.shape[1], every, device=values.device)[:, None]
    entries = steps + 1 + torch.arange(size, device=values.device)
    hidden = (begin >= 0) & (entries < begin + size)
    return torch.where(hidden.view(*hidden.shape, *(1,) * (kept.dim() - 3)), 0.0, kept)
