"""The causal convolution as a loop over time: the meaning of the op, and its oracle."""

import torch
import torch.nn.functional as F
from torch import Tensor


def step(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    state: Tensor,
    reset: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """Run one step: x (B, E), w (E, W), state (B, E, W - 1), reset (B,) bool.

    Returns:
        y (B, E) and the next state, differentiable any number of times.
    """
    if reset is not None:
        state = torch.where(reset[:, None, None], torch.zeros_like(state), state)
    window = torch.cat([state, x[..., None]], -1)
    y = (window * w).sum(-1)
    y = y if bias is None else y + bias
    return (F.silu(y) if silu else y), window[..., 1:]


def forward(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    state: Tensor,
    reset: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """Run T steps: x (B, T, E), reset (B, T)."""
    resets = () if reset is None else reset.unbind(1)
    outputs = []
    for t, x_t in enumerate(x.to(state.dtype).unbind(1)):
        y, state = step(x_t, w, bias, state, None if reset is None else resets[t], silu)
        outputs.append(y)
    return torch.stack(outputs, 1).to(x.dtype), state
