"""The time-invariant scan as a loop over time: what the op means, and the oracle of its tests."""

import torch
from torch import Tensor


def forward(
    x: Tensor, abar: Tensor, bbar: Tensor, c: Tensor, h0: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run h_t = abar * prev_t + bbar x_t, y_t = 2 Re sum_n c h_t.

    Args:
        x: (B, T, H), real.
        abar: (H, N), complex; so are bbar and c.
        bbar: (H, N).
        c: (H, N).
        h0: (B, H, N), complex.
        reset: (B, T) bool or None.

    Returns:
        y (B, T, H) in the dtype of x and the last state (B, H, N).
        Differentiable any number of times.
    """
    resets = () if reset is None else reset.unbind(1)
    h, outputs = h0, []
    for t, x_t in enumerate(x.unbind(1)):
        y, h = step(x_t, abar, bbar, c, h, None if reset is None else resets[t])
        outputs.append(y)
    return torch.stack(outputs, 1), h


def step(
    x: Tensor, abar: Tensor, bbar: Tensor, c: Tensor, h: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run one step: x (B, H), reset (B,) bool; see `forward`."""
    if reset is not None:
        h = torch.where(reset[:, None, None], 0, h)
    h = abar * h + bbar * x[..., None].to(h.real.dtype)
    return 2 * (c * h).sum(-1).real.to(x.dtype), h
