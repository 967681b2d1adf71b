"""The causal convolution on GPUs (`triton_kernels.py`): chunks of time, read with a margin."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from statewise.kernels.causal_conv1d import triton_kernels as kernels
from statewise.kernels.causal_conv1d.torch import Backward, Forward
from statewise.kernels.triton_launch import (
    WARP,
    CompileCase,
    ceil_div,
    compile_cases,
    dense_rows,
    flags,
    launch,
    power_of_two,
)

UNROLL = 4  # steps loaded ahead
CHUNK = 64  # steps of a program; more would leave fewer programs, less more sums to add
REGISTERS = 128  # of a lane; left alone, the assembler spills to fit more programs
CHANNELS = 128  # of a program, at most; one a lane


class _Plan(NamedTuple):
    """What the launches of one call share."""

    programs: int
    num_warps: int
    sizes: tuple[int, ...]  # T, E, blocks, chunks, length
    constants: dict[str, Any]

    def run(self, kernel: object, *arguments: object) -> None:
        launch(
            kernel, self.programs, self.num_warps, *arguments, max_registers=REGISTERS,
            **self.constants,
        )  # fmt: skip


def _plan(x: Tensor, w: Tensor, silu: bool) -> _Plan:
    (B, T, E), block = x.shape, min(power_of_two(x.shape[2]), CHANNELS)
    blocks, chunks = ceil_div(E, block), ceil_div(T, CHUNK)
    constants = {"W": w.shape[1], "SILU": silu, "BLOCK": block, "UNROLL": UNROLL}
    sizes = (T, E, blocks, chunks, CHUNK)
    return _Plan(B * chunks * blocks, max(block // WARP, 1), sizes, constants)


def forward(
    x: Tensor, w: Tensor, bias: Tensor | None, state: Tensor, reset: Tensor | None, silu: bool
) -> Forward:
    """Run the convolution; see `op.causal_conv1d` for the shapes."""
    x, w, state, reset = dense_rows(x), w.contiguous(), state.contiguous(), flags(reset)
    bias = None if bias is None else bias.contiguous()
    plan = _plan(x, w, silu)
    y, after = x.new_empty(x.shape), state.new_empty(state.shape)
    plan.run(kernels.conv_kernel, x, w, bias, state, reset, y, after, *plan.sizes, *x.stride()[:2])
    return y, after


def backward(
    grad: Tensor,
    grad_state: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    state: Tensor,
    reset: Tensor | None,
    silu: bool,
) -> Backward:
    """Run the adjoint; the sums over rows and chunks come last, in a fixed order."""
    grad, x, w, reset = dense_rows(grad), dense_rows(x), w.contiguous(), flags(reset)
    grad_state, state = grad_state.contiguous(), state.contiguous()
    bias = None if bias is None else bias.contiguous()
    plan = _plan(x, w, silu)
    dx, dstate = x.new_empty(x.shape), state.new_empty(state.shape)
    sums = state.new_empty((x.shape[0], plan.sizes[3], w.shape[1] + 1, x.shape[2]))
    plan.run(
        kernels.adjoint_kernel, grad, grad_state, x, w, bias, state, reset, dx, dstate, sums,
        *plan.sizes, *grad.stride()[:2], *x.stride()[:2],
    )  # fmt: skip
    total = sums.sum((0, 1))
    # Tap j backwards in time is the column W - 1 - j of w.
    return dx, total[:-1].flip(0).t().contiguous(), total[-1].clone(), dstate


def _example(dtype: torch.dtype, full: bool, W: int, B: int, T: int, E: int) -> None:
    def tensor(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=kind, device="meta")

    x, w, state = tensor(B, T, E, kind=dtype), tensor(E, W), tensor(B, E, W - 1)
    bias = tensor(E) if full else None
    reset = tensor(B, T, kind=torch.bool) if full else None
    y, after = forward(x, w, bias, state, reset, full)
    backward(y, after, x, w, bias, state, reset, full)


COMPILE_CASES: list[CompileCase] = [
    case
    for dtype in (torch.float32, torch.bfloat16)
    for name, full, W in (("reset", True, 4), ("plain", False, 4), ("pair", True, 2))
    for case in compile_cases(
        f"{name}-{str(dtype).removeprefix('torch.')}",
        lambda: _example(dtype, full, W, 16, 1024, 512),  # noqa: B023 - run at once
    )
]
