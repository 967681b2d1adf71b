"""The selective scan as a loop over time: the meaning of the op, and the oracle of its tests."""

import torch
from torch import Tensor

from statewise.kernels.selective_scan.step import advance, gated, steps


def forward(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    h0: Tensor,
    reset: Tensor | None,
    a_override: Tensor | None,
    softplus: bool,
    signed: bool,
) -> tuple[Tensor, Tensor]:
    """Run the scan one step at a time.

    Args:
        u: (B, T, E).
        dt: (B, T, E).
        A: (E, N), real or complex.
        Bm: (B, T, G, N), as A.
        Cm: (B, T, G, N).
        D: (E,) or None.
        z: (B, T, E) or None.
        dt_bias: (E,) or None.
        h0: (B, E, N).
        reset: (B, T) bool or None.
        a_override: (N,) or None.
        softplus: of dt + dt_bias.
        signed: decay 2 exp(d A) - 1.

    Returns:
        y (B, T, E) in the dtype of u, and the last state. Differentiable any number of times.
    """
    real = h0.real.dtype if h0.is_complex() else h0.dtype
    d = steps(dt.to(real), dt_bias, softplus)
    x = u.to(real)
    resets = () if reset is None else reset.unbind(1)
    h, outputs = h0, []
    sequences = (x.unbind(1), d.unbind(1), Bm.to(h0.dtype).unbind(1), Cm.to(h0.dtype).unbind(1))
    for t, (x_t, d_t, B_t, C_t) in enumerate(zip(*sequences, strict=True)):
        if reset is not None:
            h = torch.where(resets[t][:, None, None], torch.zeros_like(h), h)
        y_t, h = advance(h, x_t, d_t, A, B_t, C_t, a_override, signed)
        outputs.append(y_t)
    y = torch.stack(outputs, 1)
    return gated(y, x, D, None if z is None else z.to(real)).to(u.dtype), h
