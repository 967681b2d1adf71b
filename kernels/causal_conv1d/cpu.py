"""The causal convolution in C++ on torch's own threads (`causal_conv1d.cpp`)."""

import torch
from torch import Tensor

from statewise.kernels.causal_conv1d.torch import Backward, Forward


def forward(
    x: Tensor, w: Tensor, bias: Tensor | None, state: Tensor, reset: Tensor | None, silu: bool
) -> Forward:
    """Run the convolution; see `op.causal_conv1d` for the shapes."""
    y, after = torch.ops.statewise_cpu.causal_conv1d_forward(x, w, bias, state, reset, silu)
    return y, after


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
    dx, dw, dbias, dstate = torch.ops.statewise_cpu.causal_conv1d_backward(
        grad, grad_state, x, w, bias, state, reset, silu
    )
    return dx, dw, dbias, dstate
