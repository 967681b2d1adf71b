"""Causal convolution along time through the real FFT, padded so that nothing wraps around.

    y_t = sum_{l <= t} k_l x_{t-l} + D x_t

The gradient is the same convolution reversed in time; the spectra are computed again in the
backward pass instead of being kept.
"""

from typing import Any

import torch
from torch import Tensor

from statewise.kernels.checks import FLOATS, require_dtype, require_one_device, require_shape

OP = "fft_conv"
WORK = 1 << 20  # numbers to transform at once: more rows than these need only take memory


def _size(least: int) -> int:
    """Return the smallest 2^i 3^j 5^k >= least: lengths whose transforms are fast."""
    best = 1
    while best < least:
        best *= 2
    five = 1
    while five < best:
        three = five
        while three < best:
            size = three
            while size < least:
                size *= 2
            best = min(best, size)
            three *= 3
        five *= 5
    return best


def _rows(x: Tensor) -> int:
    """Return how many rows of x (B, T, H) are transformed at once."""
    return max(1, WORK // (x.shape[1] * x.shape[2]))


def _spectrum(x: Tensor, size: int) -> Tensor:
    """Transform x (B, T, H) along time: (B, H, size // 2 + 1)."""
    return torch.fft.rfft(x.transpose(1, 2).contiguous(), size)


def _series(spectrum: Tensor, size: int, T: int) -> Tensor:
    """Undo `_spectrum`, the first T steps of it."""
    return torch.fft.irfft(spectrum, size)[..., :T].transpose(1, 2)


@torch.library.custom_op("statewise::fft_conv", mutates_args=())
def _fft_conv(x: Tensor, k: Tensor) -> Tensor:
    T = x.shape[1]
    size = _size(T + k.shape[1])
    K = torch.fft.rfft(k, size)
    y = x.new_empty(x.shape)
    for part, out in zip(x.split(_rows(x)), y.split(_rows(x)), strict=True):
        out.copy_(_series(_spectrum(part, size) * K, size, T))
    return y


@_fft_conv.register_fake
def _(x: Tensor, k: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("statewise::fft_conv_backward", mutates_args=())
def _fft_conv_backward(
    grad: Tensor, x: Tensor, k: Tensor, need_x: bool, need_k: bool
) -> tuple[Tensor, Tensor]:
    T, L = x.shape[1], k.shape[1]
    size = _size(T + L)
    K = torch.fft.rfft(k, size)
    dx = x.new_empty(x.shape if need_x else (0,))
    dK = torch.zeros_like(K)
    step = _rows(x)
    for begin in range(0, len(x), step):
        G = _spectrum(grad[begin : begin + step], size)
        if need_k:
            dK += (G * _spectrum(x[begin : begin + step], size).conj_physical()).sum(0)
        if need_x:
            dx[begin : begin + step] = _series(G * K.conj_physical(), size, T)
    dk = torch.fft.irfft(dK, size)[:, :L].contiguous() if need_k else k.new_empty(0)
    return dx, dk


@_fft_conv_backward.register_fake
def _(grad: Tensor, x: Tensor, k: Tensor, need_x: bool, need_k: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape if need_x else (0,)), k.new_empty(k.shape if need_k else (0,))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    need_x, need_k = ctx.needs_input_grad
    dx, dk = _fft_conv_backward(grad, *ctx.saved_tensors, need_x, need_k)
    return dx if need_x else None, dk if need_k else None


_fft_conv.register_autograd(_backward, setup_context=_setup_context)


def fft_conv(x: Tensor, k: Tensor, *, D: Tensor | None = None) -> Tensor:
    """Convolve each channel with its own kernel, causally.

    Args:
        x: (B, T, H), real; float32 or float64. FFTs in half precision lose the result.
        k: (H, L) in the dtype of x; what lies beyond T does not count.
        D: (H,), skip; None is 0.

    Returns:
        y (B, T, H); differentiable (once) in x, k and D.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    if x.dim() != 3 or k.dim() != 2 or k.shape[0] != x.shape[2]:
        raise ValueError(
            f"{OP}: x must be (B, T, H) and k (H, L), got {tuple(x.shape)} and {tuple(k.shape)}"
        )
    if x.dtype not in (torch.float32, torch.float64) or k.dtype != x.dtype:
        raise ValueError(
            f"{OP}: x and k must both be float32 or float64, got {x.dtype} and {k.dtype}: "
            "convert them"
        )
    require_shape(OP, "D", D, (k.shape[0],))
    require_dtype(OP, FLOATS, D=D)
    require_one_device(OP, x=x, k=k, D=D)
    k = k[:, : x.shape[1]]
    if x.numel() == 0:
        return x.clone()
    y = x * 0 if k.shape[1] == 0 else _fft_conv(x, k)
    return y if D is None else y + D.to(x.dtype) * x
