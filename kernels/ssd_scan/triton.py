"""The scan of Mamba-2 on GPUs (`triton_kernels.py`): chunks of time as products of matrices.

The states at the chunks' starts are made again in the backward pass, never saved.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from statewise.kernels.ssd_scan import triton_kernels as kernels
from statewise.kernels.ssd_scan.torch import Backward, Forward
from statewise.kernels.triton_launch import (
    CompileCase,
    ceil_div,
    compile_cases,
    dense_rows,
    flags,
    launch,
    power_of_two,
)

LONGEST_CHUNK = 64  # steps
SMALLEST = 16  # side of a matrix that tensor cores multiply
LARGEST = 64
INNER = 16  # columns of a factor held at once: the tf32 parts of more would not fit registers
NUM_WARPS = 4
VECTOR = 256
# Three tf32 products make a float32 one to about 2^-21; "ieee" would do without tensor cores.
# bfloat16 inputs fit into one tf32 exactly, and what is made of them is rounded to 2^-11, well
# below the 2^-9 of the output. Doubles have products of their own and ignore it.
PRECISION = {torch.float32: "tf32x3", torch.bfloat16: "tf32", torch.float64: "ieee"}


class _Plan(NamedTuple):
    """What all launches of one call share; the tensors have dense rows."""

    x: Tensor
    dt: Tensor
    A: Tensor
    Bm: Tensor
    Cm: Tensor
    D: Tensor | None
    reset: Tensor | None
    sums: Tensor
    segments: Tensor
    chunks: int
    Q: int
    block_p: int
    block_n: int

    @property
    def cells(self) -> int:
        """Return the number of chunks of all rows and heads."""
        return self.x.shape[0] * self.chunks * self.x.shape[2]

    @property
    def p_blocks(self) -> int:
        return ceil_div(self.x.shape[3], self.block_p)

    @property
    def n_blocks(self) -> int:
        return ceil_div(self.Bm.shape[3], self.block_n)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return T, P, N, heads, heads of a group, chunks."""
        _, T, heads, P = self.x.shape
        G, N = self.Bm.shape[2:]
        return T, P, N, heads, heads // G, self.chunks

    def run(self, kernel: object, blocks: int, *arguments: object, **constants: Any) -> None:
        launch(
            kernel, self.cells * blocks, NUM_WARPS, *arguments, Q=self.Q, INNER=INNER,
            PRECISION=PRECISION[self.x.dtype], **constants,
        )  # fmt: skip


def _block(size: int) -> int:
    return min(max(power_of_two(size), SMALLEST), LARGEST)


def _strides(*tensors: Tensor) -> list[int]:
    """Return the strides of rows and of steps."""
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def _plan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    D: Tensor | None,
    reset: Tensor | None,
    chunk: int,
) -> _Plan:
    B, T, heads, P = x.shape
    Q = min(_block(min(T, chunk)), LONGEST_CHUNK)
    chunks = ceil_div(T, Q)
    dt, A, reset = dense_rows(dt), A.contiguous(), flags(reset)
    sums = x.new_empty((B, heads, chunks * Q), dtype=torch.float64)
    segments = x.new_empty((B, chunks * Q), dtype=torch.int32)
    launch(
        kernels.clock_kernel, B * chunks * heads, 1, dt, A, reset, sums, segments, T, heads,
        chunks, *_strides(dt), Q=Q,
    )  # fmt: skip
    return _Plan(
        dense_rows(x, 2), dt, A, dense_rows(Bm, 2), dense_rows(Cm, 2),
        None if D is None else D.contiguous(), reset, sums, segments, chunks, Q, _block(P),
        _block(Bm.shape[3]),
    )  # fmt: skip


def _carried(
    plan: _Plan, v: Tensor, m: Tensor, start: Tensor, adjoint: bool
) -> tuple[Tensor, Tensor]:
    """Return what every chunk finds (B, chunks, heads, P, N), and what the last one hands on."""
    start = start.contiguous()
    B, heads, P, N = start.shape
    states = start.new_empty((B, plan.chunks, heads, P, N))
    blocks = (plan.p_blocks, plan.n_blocks)
    plan.run(
        kernels.state_kernel, blocks[0] * blocks[1], v, m, plan.dt, plan.sums, plan.segments,
        states, *plan.sizes, *blocks, *_strides(v, m, plan.dt), ADJOINT=adjoint,
        BLOCK_P=plan.block_p, BLOCK_N=plan.block_n,
    )  # fmt: skip
    last = torch.empty_like(start)
    slices = ceil_div(P * N, VECTOR)
    launch(
        kernels.pass_kernel, B * heads * slices, 1, start, states, plan.sums, plan.segments, last,
        heads, plan.chunks, P * N, slices, ADJOINT=adjoint, Q=plan.Q, BLOCK=VECTOR,
    )  # fmt: skip
    return states, last


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
    """Run the scan; see `op.ssd_scan` for the shapes; D is (H, P). Chunks have at most 64 steps."""
    plan = _plan(x, dt, A, Bm, Cm, D, reset, chunk)
    states, last = _carried(plan, plan.x, plan.Bm, h0, adjoint=False)
    y = x.new_empty(x.shape)
    tensors = (plan.x, plan.Bm, plan.Cm, plan.dt)
    plan.run(
        kernels.output_kernel, plan.p_blocks, *tensors, plan.D, plan.sums, plan.segments, states,
        y, *plan.sizes, plan.p_blocks, *_strides(*tensors), BLOCK=plan.block_p,
    )  # fmt: skip
    return y, last


def _mixing(
    plan: _Plan, q: Tensor, k: Tensor, v: Tensor, m: Tensor, states: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of m, here B or C, for every group, and two sums of its products."""
    B, T, heads, _ = plan.x.shape
    G, N = m.shape[2:]
    dm = states.new_empty((B, T, heads, N))
    near, far = (states.new_empty((B, T, heads, plan.n_blocks)) for _ in range(2))
    tensors = (q, k, v, m, plan.dt)
    plan.run(
        kernels.mixing_kernel, plan.n_blocks, *tensors, plan.sums, plan.segments, states, dm, near,
        far, *plan.sizes, plan.n_blocks, *_strides(*tensors), REVERSED=reverse, BLOCK=plan.block_n,
    )  # fmt: skip
    return dm.unflatten(2, (G, -1)).sum(3), near, far


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
    """Run the adjoint; the sums over rows, chunks and heads come last, in a fixed order."""
    B, T, heads, P = x.shape
    plan = _plan(x, dt, A, Bm, Cm, D, reset, chunk)
    g, new = dense_rows(grad, 2), h0.new_empty
    states, _ = _carried(plan, plan.x, plan.Bm, h0, adjoint=False)
    messages, dh0 = _carried(plan, g, plan.Cm, grad_last, adjoint=True)
    dx, dots = x.new_empty(x.shape), new((B, T, heads, plan.p_blocks))
    dD = None if D is None else new((B, plan.chunks, heads, P))
    tensors = (g, plan.x, plan.Bm, plan.Cm, plan.dt)
    plan.run(
        kernels.input_kernel, plan.p_blocks, *tensors, plan.D, plan.sums, plan.segments, messages,
        dx, dD, dots, *plan.sizes, plan.p_blocks, *_strides(*tensors), BLOCK=plan.block_p,
    )  # fmt: skip
    dC, *of_C = _mixing(plan, g, plan.x, plan.Bm, plan.Cm, states, reverse=False)
    dB, *of_B = _mixing(plan, plan.x, g, plan.Cm, plan.Bm, messages, reverse=True)
    ddt, dA = new((B, T, heads)), new((B, plan.chunks, heads))
    launch(
        kernels.decay_kernel, plan.cells, NUM_WARPS, plan.dt, plan.A, plan.sums, plan.segments,
        states, messages, dots, *of_C, *of_B, ddt, dA, T, h0[0, 0].numel(), heads, plan.chunks,
        plan.p_blocks, plan.n_blocks, *_strides(plan.dt), Q=plan.Q, BLOCK=VECTOR,
    )  # fmt: skip
    return dx, ddt, dA.sum((0, 1)), dB, dC, new(0) if dD is None else dD.sum((0, 1)), dh0


def _example(
    dtype: torch.dtype, full: bool, B: int, T: int, heads: int, P: int, G: int, N: int
) -> None:
    def tensor(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=kind, device="meta")

    x, dt, A = tensor(B, T, heads, P, kind=dtype), tensor(B, T, heads), tensor(heads)
    Bm, Cm = tensor(B, T, G, N, kind=dtype), tensor(B, T, G, N, kind=dtype)
    D, reset = (tensor(heads, P), tensor(B, T, kind=torch.bool)) if full else (None, None)
    h0 = tensor(B, heads, P, N)
    y, last = forward(x, dt, A, Bm, Cm, D, h0, reset, 64)
    backward(y, last, x, dt, A, Bm, Cm, D, h0, reset, 64)


COMPILE_CASES: list[CompileCase] = [
    case
    for dtype in (torch.float32, torch.bfloat16)
    for name, full, shape in (
        ("reset", True, (16, 1024, 8, 64, 2, 128)),
        ("plain", False, (4, 1024, 16, 32, 1, 64)),
    )
    for case in compile_cases(
        f"{name}-{str(dtype).removeprefix('torch.')}",
        lambda: _example(dtype, full, *shape),  # noqa: B023 - run at once
    )
]
