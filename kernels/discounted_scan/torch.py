"""The discounted scan through the linear scan in plain torch operations."""

import torch
from torch import Tensor

from statewise.kernels.linear_scan import torch as linear


def forward(x: Tensor, discount: Tensor, last: Tensor) -> Tensor:
    """Run the scan: the linear scan of width 1 on the time-reversed arrays."""
    a = discount.flip(1)
    y, _ = linear.forward(a[..., None], x.flip(1)[..., None], last[:, None], a == 0, None, False)
    return y[..., 0].flip(1).contiguous()


def backward(
    grad: Tensor, discount: Tensor, y: Tensor, last: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the adjoint, a linear scan forward in time with a_t = discount_{t-1}."""
    a = torch.roll(discount, 1, 1)
    v, _ = linear.forward(
        a[..., None], grad[..., None], torch.zeros_like(last)[:, None], a == 0, None, False
    )
    v = v[..., 0]
    following = torch.cat([y[:, 1:], last[:, None]], 1)
    return v.contiguous(), v * following, discount[:, -1] * v[:, -1]
