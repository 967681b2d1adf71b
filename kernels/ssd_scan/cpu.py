"""The scan of Mamba-2 in C++ (`ssd_scan.cpp`), on torch's own threads."""

import torch
from torch import Tensor

from statewise.kernels.ssd_scan.torch import Backward, Forward


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    D: Tensor | None,
    h0: Tensor,
    reset: Tensor | None,
    chunk: int,
) -> Forward:
    """Run the scan; see `op.ssd_scan` for the shapes; D is (H, P)."""
    y, last = torch.ops.statewise_cpu.ssd_scan_forward(x, dt, A, Bm, Cm, D, h0, reset, chunk)
    return y, last


def backward(
    grad: Tensor,
    grad_last: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    D: Tensor | None,
    h0: Tensor,
    reset: Tensor | None,
    chunk: int,
) -> Backward:
    """Run the adjoint; the gradient of D is empty where there is none."""
    return torch.ops.statewise_cpu.ssd_scan_backward(
        grad, grad_last, x, dt, A, Bm, Cm, D, h0, reset, chunk
    )
