"""The scan of Mamba-2 as a loop over time: the meaning of the op, and its oracle."""

import torch
from torch import Tensor


def step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    D: Tensor | None,
    h: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run one step; differentiable any number of times.

    Args:
        x: (B, H, P), input of H heads.
        dt: (B, H), positive.
        A: (H,), negative.
        Bm: (B, G, N), G dividing H.
        Cm: (B, G, N).
        D: (H, P) or None.
        h: (B, H, P, N), the accumulation dtype.
        reset: (B,) bool or None.

    Returns:
        y (B, H, P) and the next state.
    """
    if reset is not None:
        h = torch.where(reset[:, None, None, None], torch.zeros_like(h), h)
    repeats = x.shape[1] // Bm.shape[1]
    Bm, Cm = (m.repeat_interleave(repeats, 1) if repeats > 1 else m for m in (Bm, Cm))
    decay = torch.exp(dt * A)[..., None, None]
    h = decay * h + (dt[..., None] * x)[..., None] * Bm[..., None, :]
    y = torch.matmul(h, Cm[..., None])[..., 0]
    return (y if D is None else torch.addcmul(y, D, x)), h


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    D: Tensor | None,
    h0: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run T steps; every array but A, D and h0 has time as its second axis."""
    h, outputs = h0, []
    resets = (None,) * x.shape[1] if reset is None else reset.unbind(1)
    wide = (v.to(h0.dtype).unbind(1) for v in (x, dt, Bm, Cm))
    for x_t, dt_t, B_t, C_t, flag in zip(*wide, resets, strict=True):
        y, h = step(x_t, dt_t, A, B_t, C_t, D, h, flag)
        outputs.append(y)
    return torch.stack(outputs, 1).to(x.dtype), h
