"""The time-invariant scan as a C++ loop on torch's own threads (`ssm_scan_lti.cpp`)."""

import torch
from torch import Tensor

from statewise.kernels.ssm_scan_lti.torch import Backward, Forward


def forward(
    x: Tensor,
    abar: Tensor,
    bbar: Tensor,
    c: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    keep: bool,
) -> Forward:
    """Run the scan; keeps the states before steps 64, 128, ... where `keep`."""
    y, last, kept = torch.ops.statewise_cpu.ssm_scan_lti_forward(x, abar, bbar, c, h0, reset, keep)
    return y, last, kept


def backward(
    grad: Tensor,
    grad_last: Tensor,
    x: Tensor,
    abar: Tensor,
    bbar: Tensor,
    c: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    kept: Tensor,
    need_x: bool,
    need_parameters: bool,
) -> Backward:
    """Run the adjoint, chunk by chunk from the end."""
    dx, da, db, dc, dh0 = torch.ops.statewise_cpu.ssm_scan_lti_backward(
        grad, grad_last, x, abar, bbar, c, h0, reset, kept, need_x, need_parameters
    )
    return dx, da, db, dc, dh0
