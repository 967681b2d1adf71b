"""The linear scan on GPUs (`triton_kernels.py`): one loop over time, or chunks of time."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from statewise.kernels.linear_scan import triton_kernels as kernels
from statewise.kernels.linear_scan.torch import Backward, Forward
from statewise.kernels.triton_launch import (
    CompileCase,
    Split,
    ceil_div,
    channel_block,
    compile_cases,
    dense_rows,
    flags,
    launch,
    split_time,
)

UNROLL = 8  # steps loaded ahead


def carries(
    start: Tensor, ends: Tensor, products: Tensor, cuts: Tensor | None, pairs: bool, adjoint: bool
) -> Tensor:
    """Return the state that every chunk finds, as `ends`.

    Args:
        start: (B, ...), before the first chunk (for the adjoint: after the last one).
        ends: (B, chunks, ...), the last state of each chunk run from zero.
        products: (B, chunks, ...), the products of their decays.
        cuts: (B, chunks) bytes, whether there is a reset in it.
        pairs: the last axis is a pair.
        adjoint: from the last chunk to the first.
    """
    B, chunks = ends.shape[:2]
    width = start[0].numel() // (1 + pairs)
    block = channel_block(width, B * width, pairs)
    blocks = ceil_div(width, block)
    found = torch.empty_like(ends)
    launch(
        kernels.carry_kernel, B * blocks, 1, start, ends, products, cuts, found, chunks, width,
        blocks, PAIRS=pairs, ADJOINT=adjoint, BLOCK=block,
    )  # fmt: skip
    return found


class _Plan(NamedTuple):
    """What all launches of one call share."""

    B: int
    split: Split
    block: int
    programs: int
    sizes: tuple[int, ...]  # T, D, blocks, chunks, length
    varying: bool
    pairs: bool

    def run(self, kernel: object, *arguments: object, **constants: Any) -> None:
        launch(
            kernel, self.programs, 1, *arguments,
            VARYING=self.varying, PAIRS=self.pairs, BLOCK=self.block, UNROLL=UNROLL, **constants,
        )  # fmt: skip


def _plan(a: Tensor, x: Tensor, pairs: bool) -> _Plan:
    B, T, D = x.shape[:3]
    split = split_time(B * D, T)
    block = channel_block(D, B * D, pairs)
    blocks = ceil_div(D, block)
    sizes = (T, D, blocks, *split)
    return _Plan(B, split, block, B * split.chunks * blocks, sizes, a.dim() == x.dim(), pairs)


def _strides(a: Tensor, x: Tensor) -> tuple[int, ...]:
    """Return the strides of rows and steps; none for an `a` that does not vary."""
    of_a = a.stride()[:2] if a.dim() == x.dim() else (0, 0)
    return (*of_a, *x.stride()[:2])


def _starts(
    plan: _Plan,
    a: Tensor,
    x: Tensor,
    start: Tensor,
    reset: Tensor | None,
    init: Tensor | None,
    adjoint: bool,
) -> Tensor:
    """Return the state (or message) each chunk finds; `start` itself where there is one chunk."""
    chunks = plan.split.chunks
    if chunks == 1:
        return start
    ends = start.new_empty((plan.B, chunks, *start.shape[1:]))
    products = torch.empty_like(ends)
    cuts = None if reset is None else reset.new_empty((plan.B, chunks))
    plan.run(
        kernels.ends_kernel, a, x, reset, init, ends, products, cuts, *plan.sizes,
        *_strides(a, x), ADJOINT=adjoint,
    )  # fmt: skip
    return carries(start, ends, products, cuts, plan.pairs, adjoint)


def forward(
    a: Tensor, b: Tensor, h0: Tensor, reset: Tensor | None, h_init: Tensor | None, pairs: bool
) -> Forward:
    """Run the scan; see `op.linear_scan_pairs` for the shapes."""
    a, b = dense_rows(a, 1 + pairs), dense_rows(b, 1 + pairs)
    h0, reset = h0.contiguous(), flags(reset)
    h_init = None if h_init is None else h_init.contiguous()
    plan = _plan(a, b, pairs)
    start = _starts(plan, a, b, h0, reset, h_init, adjoint=False)
    h = b.new_empty(b.shape)
    last = h0.new_empty(h0.shape)
    plan.run(kernels.scan_kernel, a, b, start, reset, h_init, h, last, *plan.sizes, *_strides(a, b))
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
    """Run the adjoint scan; sums over rows and chunks come last, in a fixed order."""
    a, g = dense_rows(a, 1 + pairs), dense_rows(grad_h, 1 + pairs)
    h, h0, reset = h.contiguous(), h0.contiguous(), flags(reset)
    h_init = None if h_init is None else h_init.contiguous()
    plan = _plan(a, g, pairs)
    start = _starts(plan, a, g, grad_last.contiguous(), reset, None, adjoint=True)
    partial = (plan.B, plan.split.chunks, *h0.shape[1:])
    da = h0.new_empty(a.shape if plan.varying else partial) if need_a else None
    dinit = None if h_init is None else h0.new_empty(partial)
    db, dh0 = h.new_empty(h.shape), h0.new_empty(h0.shape)
    plan.run(
        kernels.adjoint_kernel, g, start, a, h, h0, reset, h_init, da, db, dh0, dinit, *plan.sizes,
        *_strides(a, g),
    )  # fmt: skip
    if da is None:
        da = h0.new_empty(0)
    elif not plan.varying:
        da = da.sum((0, 1))
    return da, db, dh0, h0.new_empty(0) if dinit is None else dinit.sum((0, 1))


def _example(
    dtype: torch.dtype, pairs: bool, varying: bool, full: bool, B: int, T: int, D: int
) -> None:
    tail = (2,) if pairs else ()

    def tensor(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=kind, device="meta")

    a = tensor(*((B, T, D) if varying else (D,)), *tail)
    b, h0 = tensor(B, T, D, *tail, kind=dtype), tensor(B, D, *tail)
    reset = tensor(B, T, kind=torch.bool) if full else None
    h_init = tensor(D, *tail) if full else None
    h, last = forward(a, b, h0, reset, h_init, pairs)
    backward(h, last, a, h, h0, reset, h_init, pairs, True)


COMPILE_CASES: list[CompileCase] = [
    case
    for dtype, pairs, varying, full, shape in (
        (torch.float32, False, True, True, (16, 1024, 256)),
        (torch.float32, False, True, False, (512, 1024, 256)),
        (torch.float32, True, True, True, (16, 1024, 256)),
        (torch.float32, True, False, False, (512, 1024, 256)),
        (torch.bfloat16, False, True, False, (16, 1024, 256)),
        (torch.bfloat16, False, True, True, (512, 1024, 256)),
        (torch.bfloat16, True, False, True, (16, 1024, 256)),
        (torch.bfloat16, True, True, False, (512, 1024, 256)),
    )
    for case in compile_cases(
        f"{'complex' if pairs else 'real'}-{'varying' if varying else 'constant'}"
        f"-{str(dtype).removeprefix('torch.')}-{'reset' if full else 'plain'}",
        lambda: _example(dtype, pairs, varying, full, *shape),  # noqa: B023 - run at once
    )
]
