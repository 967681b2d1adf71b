"""The discounted scan on GPUs (`triton_kernels.py`): a row per program, tiles of time in a tree."""

import torch
from torch import Tensor

from statewise.kernels.discounted_scan import triton_kernels as kernels
from statewise.kernels.triton_launch import (
    WARP,
    CompileCase,
    compile_cases,
    dense_rows,
    launch,
    power_of_two,
)

TILE = 1024  # steps of one associative scan, at most
PER_LANE = 4  # of them


def _sizes(T: int) -> tuple[int, int]:
    """Return the length of a tile and the number of warps that share it."""
    tile = min(power_of_two(T), TILE)
    return tile, max(tile // (WARP * PER_LANE), 1)


def forward(x: Tensor, discount: Tensor, last: Tensor) -> Tensor:
    """Run the scan; see `op.discounted_scan` for the shapes."""
    x, discount, last = dense_rows(x), dense_rows(discount), last.contiguous()
    (B, T), y = x.shape, x.new_empty(x.shape)
    tile, num_warps = _sizes(T)
    launch(
        kernels.scan_kernel, B, num_warps, x, discount, last, y, T, x.stride(0),
        discount.stride(0), TILE=tile,
    )  # fmt: skip
    return y


def backward(
    grad: Tensor, discount: Tensor, y: Tensor, last: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the adjoint, forward in time."""
    grad, discount, y = dense_rows(grad), dense_rows(discount), y.contiguous()
    last = last.contiguous()
    B, T = y.shape
    dx, ddiscount, dlast = y.new_empty(y.shape), y.new_empty(y.shape), last.new_empty(last.shape)
    tile, num_warps = _sizes(T)
    launch(
        kernels.adjoint_kernel, B, num_warps, grad, discount, y, last, dx, ddiscount, dlast, T,
        grad.stride(0), discount.stride(0), TILE=tile,
    )  # fmt: skip
    return dx, ddiscount, dlast


def _example(dtype: torch.dtype, B: int, T: int) -> None:
    x = torch.empty(B, T, dtype=dtype, device="meta")
    last = torch.empty(B, dtype=dtype, device="meta")
    backward(x, x, forward(x, x, last), last)


# There is no bfloat16 here: the op takes float32 and float64.
COMPILE_CASES: list[CompileCase] = [
    case
    for name, T in (("short", 128), ("long", 1024))
    for case in compile_cases(
        f"{name}-float32",
        lambda: _example(torch.float32, 64, T),  # noqa: B023 - run at once
    )
]
