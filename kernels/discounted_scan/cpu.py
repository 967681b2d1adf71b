"""The discounted scan as a C++ loop (`discounted_scan.cpp`)."""

import torch
from torch import Tensor


def forward(x: Tensor, discount: Tensor, last: Tensor) -> Tensor:
    """Run the scan."""
    y: Tensor = torch.ops.statewise_cpu.discounted_scan_forward(x, discount, last)
    return y


def backward(
    grad: Tensor, discount: Tensor, y: Tensor, last: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the adjoint, forward in time."""
    dx, ddiscount, dlast = torch.ops.statewise_cpu.discounted_scan_backward(grad, discount, y, last)
    return dx, ddiscount, dlast
