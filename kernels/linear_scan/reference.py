"""The linear scan as a loop over time: the meaning of the op, and the oracle of its tests."""

import torch
from torch import Tensor


def forward(
    a: Tensor, b: Tensor, h0: Tensor, reset: Tensor | None, h_init: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run h_t = a_t * prev_t + b_t with prev_t = h_init where reset_t, else h_{t-1}.

    Args:
        a: (B, T, D) or (D,), real or complex.
        b: (B, T, D).
        h0: (B, D), state before the first step.
        reset: (B, T) bool or None.
        h_init: (D,) or None, which means 0.

    Returns:
        h (B, T, D) in the dtype of b and the last state (B, D) in that of h0.
        Differentiable any number of times.
    """
    restored = torch.zeros_like(h0[0]) if h_init is None else h_init
    coefficients = a.unbind(1) if a.dim() == 3 else (a,) * b.shape[1]
    resets = () if reset is None else reset.unbind(1)
    h, states = h0, []
    for t, (a_t, b_t) in enumerate(zip(coefficients, b.unbind(1), strict=True)):
        if reset is not None:
            h = torch.where(resets[t][:, None], restored, h)
        h = a_t * h + b_t
        states.append(h)
    return torch.stack(states, 1).to(b.dtype), h
