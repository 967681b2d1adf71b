"""The linear scan as a C++ loop on torch's own threads (`linear_scan.cpp`)."""

import torch
from torch import Tensor

from statewise.kernels.linear_scan.torch import Backward, Forward


def forward(
    a: Tensor, b: Tensor, h0: Tensor, reset: Tensor | None, h_init: Tensor | None, pairs: bool
) -> Forward:
    """Run the scan; see `op.linear_scan_pairs` for the shapes."""
    h, last = torch.ops.statewise_cpu.linear_scan_forward(a, b, h0, reset, h_init, pairs)
    return h, last


def differentiable(
    a: Tensor, b: Tensor, h0: Tensor, reset: Tensor | None, h_init: Tensor | None, pairs: bool
) -> Forward:
    """Run the scan with its adjoint in one call, outside of a compiler."""
    h, last = torch.ops.statewise_cpu.linear_scan(a, b, h0, reset, h_init, pairs)
    return h, last


def backward(
    grad_h: Tensor,
    grad_last: Tensor,
    a: Tensor,
    h: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    h_init: Tensor | None,
    pairs: bool,
    need_a: bool,
) -> Backward:
    """Run the adjoint scan."""
    da, db, dh0, dh_init = torch.ops.statewise_cpu.linear_scan_backward(
        grad_h, grad_last, a, h, h0, reset, h_init, pairs, need_a
    )
    return da, db, dh0, dh_init
