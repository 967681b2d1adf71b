"""The time-invariant scan on GPUs (`triton_kernels.py`): one loop over time, or chunks of time."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from statewise.kernels.ssm_scan_lti import triton_kernels as kernels
from statewise.kernels.ssm_scan_lti.torch import CHUNK, Backward, Forward
from statewise.kernels.triton_launch import (
    WARP,
    CompileCase,
    Split,
    ceil_div,
    compile_cases,
    dense_rows,
    flags,
    launch,
    power_of_two,
    split_time,
)

UNROLL = 4  # steps loaded ahead
TILE = 4 * WARP  # states of a warp: those of one channel stay together
LARGEST_TILE = 8 * WARP  # where one channel has more states, several warps share it


class _Plan(NamedTuple):
    """What all launches of one call share."""

    B: int
    split: Split
    programs: int
    num_warps: int
    sizes: tuple[int, ...]  # T, H, N, blocks, chunks, length
    block_h: int
    block_n: int

    def run(self, kernel: object, *arguments: object, **constants: Any) -> None:
        launch(
            kernel, self.programs, self.num_warps, *arguments,
            BLOCK_H=self.block_h, BLOCK_N=self.block_n, UNROLL=UNROLL, **constants,
        )  # fmt: skip


def _plan(x: Tensor, a: Tensor) -> _Plan:
    (B, T, H), N = x.shape, a.shape[1]
    block_n = power_of_two(N)
    block_h = min(power_of_two(H), max(TILE // block_n, 1))
    blocks = ceil_div(H, block_h)
    split = split_time(ceil_div(B * H * N, TILE // WARP), T, CHUNK)
    num_warps = max(block_n // LARGEST_TILE, 1)
    programs = B * split.chunks * blocks
    return _Plan(B, split, programs, num_warps, (T, H, N, blocks, *split), block_h, block_n)


def _starts(
    plan: _Plan,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    start: Tensor,
    reset: Tensor | None,
    adjoint: bool,
) -> Tensor:
    """Return the state (or message) that every chunk finds, (B, chunks, H, N, 2)."""
    chunks, length = plan.split
    if chunks == 1:
        return start
    ends = start.new_empty((plan.B, chunks, *start.shape[1:]))
    cuts = None if reset is None else reset.new_empty((plan.B, chunks))
    plan.run(
        kernels.ends_kernel, x, a, b, reset, ends, cuts, *plan.sizes, *x.stride()[:2],
        ADJOINT=adjoint,
    )  # fmt: skip
    found = torch.empty_like(ends)
    width = a.shape[0] * a.shape[1]
    block = min(power_of_two(width), WARP)
    blocks = ceil_div(width, block)
    tail = x.shape[1] - (chunks - 1) * length
    launch(
        kernels.carry_kernel, plan.B * blocks, 1, start, ends, a, cuts, found, chunks, width,
        blocks, length, tail, ADJOINT=adjoint, BLOCK=block,
    )  # fmt: skip
    return found


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
    x, reset = dense_rows(x), flags(reset)
    abar, bbar, c, h0 = (v.contiguous() for v in (abar, bbar, c, h0))
    plan = _plan(x, abar)
    start = _starts(plan, x, abar, bbar, h0, reset, adjoint=False)
    y, last = x.new_empty(x.shape), h0.new_empty(h0.shape)
    number = (x.shape[1] - 1) // CHUNK if keep else 0
    kept = h0.new_empty((plan.B, number, *h0.shape[1:]))
    plan.run(
        kernels.scan_kernel, x, abar, bbar, c, start, reset, y, last, kept if number else None,
        *plan.sizes, *x.stride()[:2], EVERY=CHUNK,
    )  # fmt: skip
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
    """Run the adjoint; the sums over rows and chunks come last, in a fixed order."""
    grad, x, reset = dense_rows(grad), dense_rows(x), flags(reset)
    abar, bbar, c, h0, grad_last = (v.contiguous() for v in (abar, bbar, c, h0, grad_last))
    plan = _plan(x, abar)
    messages = _starts(plan, grad, abar, c, grad_last, reset, adjoint=True)
    dx, dh0 = x.new_empty(x.shape if need_x else (0,)), h0.new_empty(h0.shape)
    partial = (plan.B, plan.split.chunks, *h0.shape[1:]) if need_parameters else (0,)
    da, db, dc = (h0.new_empty(partial) for _ in range(3))
    sizes = (*plan.sizes, *grad.stride()[:2], *x.stride()[:2])
    plan.run(
        kernels.adjoint_kernel, grad, x, messages, abar, bbar, c, reset, dx if need_x else None,
        db if need_parameters else None, dh0, *sizes,
    )  # fmt: skip
    if not need_parameters:
        return dx, da, db, dc, dh0
    plan.run(
        kernels.sensitivity_kernel, grad, x, h0, kept, messages, abar, bbar, c, reset, da, dc,
        *sizes, EVERY=CHUNK,
    )  # fmt: skip
    return dx, da.sum((0, 1)), db.sum((0, 1)), dc.sum((0, 1)), dh0


def _example(dtype: torch.dtype, cut: bool, B: int, T: int, H: int, N: int) -> None:
    def tensor(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=kind, device="meta")

    x, h0 = tensor(B, T, H, kind=dtype), tensor(B, H, N, 2)
    a, b, c = (tensor(H, N, 2) for _ in range(3))
    reset = tensor(B, T, kind=torch.bool) if cut else None
    y, last, kept = forward(x, a, b, c, h0, reset, True)
    backward(y, last, x, a, b, c, h0, reset, kept, True, True)


COMPILE_CASES: list[CompileCase] = [
    case
    for dtype in (torch.float32, torch.bfloat16)
    for name, cut, shape in (
        ("reset", True, (2, 1024, 256, 32)),
        ("plain", False, (2, 1024, 256, 64)),
        ("serial", True, (64, 1024, 256, 16)),
    )
    for case in compile_cases(
        f"{name}-{str(dtype).removeprefix('torch.')}",
        lambda: _example(dtype, cut, *shape),  # noqa: B023 - run at once
    )
]
