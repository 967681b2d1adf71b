"""The selective scan as a C++ loop on torch's own threads (`selective_scan.cpp`)."""

import torch
from torch import Tensor

from statewise.kernels.selective_scan.torch import Backward, Forward, Operands


def forward(operands: Operands, softplus: bool, signed: bool, pairs: bool, keep: bool) -> Forward:
    """Run the scan; keeps states on the way where `keep`."""
    y, last, kept = torch.ops.statewise_cpu.selective_scan_forward(
        *operands, softplus, signed, pairs, keep
    )
    return y, last, kept


def backward(
    grad: Tensor,
    grad_last: Tensor,
    operands: Operands,
    kept: Tensor,
    softplus: bool,
    signed: bool,
    pairs: bool,
) -> Backward:
    """Run the adjoint, chunk by chunk from the end."""
    return torch.ops.statewise_cpu.selective_scan_backward(
        grad, grad_last, *operands, kept, softplus, signed, pairs
    )
