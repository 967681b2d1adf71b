"""The kernels of the convolution mode in C++ on torch's own threads (`convolution.cpp`)."""

import torch
from torch import Tensor


def vandermonde(w: Tensor, a: Tensor, L: int) -> Tensor:
    """Return the kernel (H, L) of w, a (H, N, 2)."""
    k: Tensor = torch.ops.statewise_cpu.convolution_forward(w, a, L)
    return k


def vandermonde_backward(grad: Tensor, w: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of w and a."""
    dw, da = torch.ops.statewise_cpu.convolution_backward(grad, w, a)
    return dw, da


def cauchy(v: Tensor, s: Tensor, L: int) -> Tensor:
    """Return the sums (R, H, L // 2 + 1, 2) of v (R, H, N, 2) over s (H, N, 2)."""
    sums: Tensor = torch.ops.statewise_cpu.cauchy_forward(v, s, L)
    return sums


def cauchy_backward(grad: Tensor, v: Tensor, s: Tensor, L: int) -> tuple[Tensor, Tensor]:
    """Return the gradients of v and s."""
    dv, ds = torch.ops.statewise_cpu.cauchy_backward(grad, v, s, L)
    return dv, ds
