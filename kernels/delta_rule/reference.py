"""The gated delta rule as a loop over time: the meaning of the op, and its oracle."""

import torch
from torch import Tensor


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    h: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run one step: q, k (B, H, K), v (B, H, V), g, beta (B, H), h (B, H, K, V), reset (B,).

    Returns:
        o (B, H, V) and the next state, differentiable any number of times.
    """
    if reset is not None:
        h = torch.where(reset[:, None, None, None], 0.0, h)
    h = g.exp()[..., None, None] * h
    error = beta[..., None, None] * (v[..., None, :] - k[..., None, :] @ h)
    h = torch.addcmul(h, k[..., None], error)
    return (q[..., None, :] @ h)[..., 0, :], h


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    h0: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run T steps, T >= 1: all inputs with a time axis after the batch, in the dtype of h0."""
    h, outputs = h0, []
    resets = (None,) * q.shape[1] if reset is None else reset.unbind(1)
    steps = zip(q.unbind(1), k.unbind(1), v.unbind(1), g.unbind(1), beta.unbind(1), strict=True)
    for inputs, cut in zip(steps, resets, strict=True):
        o, h = step(*inputs, h, cut)
        outputs.append(o)
    return torch.stack(outputs, 1), h
