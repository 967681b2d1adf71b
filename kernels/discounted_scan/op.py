"""The public discounted scan, under GAE and lambda-returns.

    y_t = x_t + discount_t * y_{t+1},    y_T = last

A discount of 0 is a cut: y_t is x_t even if y_{t+1} is not finite.

Backward, forward in time, with v the adjoint of y:

    v_t = g_t + discount_{t-1} v_{t-1},  dx_t = v_t,  ddiscount_t = v_t y_{t+1},
    dlast = discount_{T-1} v_{T-1}
"""

from typing import Any

import torch
from torch import Tensor

from statewise.kernels.checks import require_one_device, require_shape
from statewise.kernels.discounted_scan import reference
from statewise.kernels.dispatch import Backend, launcher, select_backend


@torch.library.custom_op("statewise::discounted_scan", mutates_args=())
def _discounted_scan(x: Tensor, discount: Tensor, last: Tensor, backend: str) -> Tensor:
    return launcher("discounted_scan", backend).forward(x, discount, last)


@_discounted_scan.register_fake
def _(x: Tensor, discount: Tensor, last: Tensor, backend: str) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("statewise::discounted_scan_backward", mutates_args=())
def _discounted_scan_backward(
    grad: Tensor, discount: Tensor, y: Tensor, last: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return launcher("discounted_scan", backend).backward(grad, discount, y, last)


@_discounted_scan_backward.register_fake
def _(
    grad: Tensor, discount: Tensor, y: Tensor, last: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return y.new_empty(y.shape), y.new_empty(y.shape), last.new_empty(last.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, discount, last, ctx.backend = inputs
    ctx.save_for_backward(discount, output, last)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    discount, y, last = ctx.saved_tensors
    return (*_discounted_scan_backward(grad, discount, y, last, ctx.backend), None)


_discounted_scan.register_autograd(_backward, setup_context=_setup_context)


def discounted_scan(
    x: Tensor, discount: Tensor, *, last: Tensor | None = None, backend: Backend = "auto"
) -> Tensor:
    """Run y_t = x_t + discount_t * y_{t+1} backwards in time.

    Args:
        x: (B, T), float32 or float64.
        discount: (B, T), same dtype.
        last: (B,), y_T; None means 0.
        backend: as in `linear_scan`.

    Returns:
        y (B, T), differentiable in x, discount and last.

    Raises:
        ValueError: a shape or dtype does not fit.
        BackendError: the backend asked for by name cannot run; says why.
    """
    if x.dim() != 2 or discount.shape != x.shape:
        raise ValueError(
            f"discounted_scan: x and discount must both be (B, T), got {tuple(x.shape)} "
            f"and {tuple(discount.shape)}"
        )
    last = x.new_zeros(x.shape[0]) if last is None else last
    require_shape("discounted_scan", "last", last, (x.shape[0],))
    if x.dtype not in (torch.float32, torch.float64) or {discount.dtype, last.dtype} != {x.dtype}:
        raise ValueError(
            "discounted_scan: x, discount and last must share float32 or float64, got "
            f"{x.dtype}, {discount.dtype}, {last.dtype}: convert them"
        )
    require_one_device("discounted_scan", x=x, discount=discount, last=last)
    chosen = select_backend("discounted_scan", x.device, x.dtype, backend)
    if x.numel() == 0:
        return x.clone()
    if chosen == "reference":
        return reference.forward(x, discount, last)
    y: Tensor = _discounted_scan(x, discount, last, chosen)
    return y
