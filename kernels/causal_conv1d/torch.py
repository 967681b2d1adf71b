"""The causal convolution in plain torch operations: W shifted copies, masked between segments."""

import torch
from torch import Tensor

Forward = tuple[Tensor, Tensor]
Backward = tuple[Tensor, Tensor, Tensor, Tensor]


def _extended(x: Tensor, state: Tensor) -> Tensor:
    """Put the state before the inputs: (B, W - 1 + T, E)."""
    return torch.cat([state.transpose(1, 2), x.to(state.dtype)], 1)


def _since_reset(reset: Tensor | None, B: int, T: int, device: torch.device) -> Tensor:
    """Return the steps since the last reset, (B, T); more than any width where there was none."""
    time = torch.arange(T, device=device)
    if reset is None:
        return (time + 2 * T + 1000).expand(B, T)
    last = torch.where(reset, time, -2 * T - 1000).cummax(1).values
    return time - last


def _taps(extended: Tensor, since: Tensor, T: int, W: int, j: int) -> Tensor:
    """Return the inputs j steps back, 0 where a reset lies between."""
    return torch.where((since >= j)[..., None], extended[:, W - 1 - j : W - 1 - j + T], 0)


def _sum(extended: Tensor, since: Tensor, w: Tensor, bias: Tensor | None, T: int) -> Tensor:
    W = w.shape[1]
    y = _taps(extended, since, T, W, 0) * w[:, W - 1]
    for j in range(1, W):
        y = y + _taps(extended, since, T, W, j) * w[:, W - 1 - j]
    return y if bias is None else y + bias


def _kept(since: Tensor, W: int) -> Tensor:
    """Return which entries of the next state lie behind the last reset, (B, W - 1)."""
    back = torch.arange(W - 2, -1, -1, device=since.device)
    return since[:, -1:] >= back


def forward(
    x: Tensor, w: Tensor, bias: Tensor | None, state: Tensor, reset: Tensor | None, silu: bool
) -> Forward:
    """Run the convolution; see `op.causal_conv1d` for the shapes."""
    (B, T, _), W = x.shape, w.shape[1]
    extended, since = _extended(x, state), _since_reset(reset, B, T, x.device)
    y = _sum(extended, since, w, bias, T)
    y = torch.nn.functional.silu(y) if silu else y
    after = torch.where(_kept(since, W)[..., None], extended[:, T : T + W - 1], 0)
    after = after.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    return y.to(x.dtype).contiguous(), after


def backward(
    grad: Tensor,
    grad_state: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    state: Tensor,
    reset: Tensor | None,
    silu: bool,
) -> Backward:
    """Run the adjoint."""
    (B, T, _), W = x.shape, w.shape[1]
    extended, since = _extended(x, state), _since_reset(reset, B, T, x.device)
    g = grad.to(state.dtype)
    if silu:
        pre = _sum(extended, since, w, bias, T)
        s = pre.sigmoid()
        g = g * s * (1 + pre * (1 - s))
    d_extended = torch.zeros_like(extended)
    d_taps = []
    for j in range(W):
        at = slice(W - 1 - j, W - 1 - j + T)
        through = torch.where((since >= j)[..., None], g, 0)
        d_extended[:, at] += through * w[:, W - 1 - j]
        d_taps.append((through * _taps(extended, since, T, W, j)).sum((0, 1)))
    after = torch.where(_kept(since, W)[..., None], grad_state.transpose(1, 2), 0)
    d_extended[:, T : T + W - 1] += after
    return (
        d_extended[:, W - 1 :].to(x.dtype).clone(),
        torch.stack(d_taps[::-1], 1),
        g.sum((0, 1)),
        d_extended[:, : W - 1].transpose(1, 2).clone(memory_format=torch.contiguous_format),
    )
