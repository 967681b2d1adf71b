"""The selective scan on GPUs (`triton_kernels.py`, `triton_adjoint.py`)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from statewise.kernels.linear_scan.triton import carries
from statewise.kernels.selective_scan import triton_adjoint, triton_kernels
from statewise.kernels.selective_scan.torch import CHUNK, Backward, Forward, Operands
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

UNROLL = 2  # steps that forward loads ahead; divides CHUNK
SUB = 8  # steps whose states the adjoint holds in registers; divides CHUNK
PER_LANE = 4  # numbers of a state in a lane; else registers spill
MOST_WARPS = 8


class Limits(NamedTuple):
    """What the programs of one direction may take."""

    numbers: int  # of a tile, unless that leaves fewer than `narrowest` channels
    narrowest: int
    registers: int  # of a lane; left alone, the assembler spills to fit more programs


# A tile of the forward pass is one warp, so that no sum over states crosses warps. That of the
# adjoint is wider, since partial sums of dB and dC are N / channels times u.
FORWARD = Limits(128, 8, 128)
ADJOINT = Limits(256, 16, 240)


class Tile(NamedTuple):
    """States of one program, both powers of two, and the warps that hold them."""

    channels: int
    states: int
    warps: int


def tile(N: int, per_group: int, pairs: bool, limits: Limits) -> Tile:
    """Return the tile for N states of each of `per_group` channels of a group.

    Args:
        N: states of a channel.
        per_group: channels.
        pairs: a state is a pair, which counts twice.
        limits: of the direction.
    """
    states, wide = power_of_two(N), 1 + pairs
    channels = max(limits.numbers // wide // states, limits.narrowest // wide)
    channels = min(channels, power_of_two(per_group))
    warps = channels * states * wide // (WARP * PER_LANE)
    return Tile(channels, states, min(max(warps, 1), MOST_WARPS))


class _Plan(NamedTuple):
    """The operands as the kernels read them, and the grid."""

    o: Operands  # dense rows, reset as bytes
    split: Split
    tile: Tile
    registers: int
    blocks: int
    programs: int
    sizes: tuple[int, ...]
    constants: dict[str, Any]

    def run(self, kernel: object, *arguments: object, **constants: Any) -> None:
        launch(
            kernel, self.programs, self.tile.warps, *arguments, max_registers=self.registers,
            **self.constants, **constants,
        )  # fmt: skip


def _plan(o: Operands, softplus: bool, signed: bool, pairs: bool, limits: Limits) -> _Plan:
    (B, T, E), (G, N) = o.u.shape, o.Bm.shape[2:4]
    split = split_time(B * E, T, CHUNK)
    shape = tile(N, E // G, pairs, limits)
    group_blocks = ceil_div(E // G, shape.channels)
    blocks = G * group_blocks
    dense = Operands(
        dense_rows(o.u),
        dense_rows(o.dt),
        o.A.contiguous(),
        dense_rows(o.Bm, 1 + pairs),
        dense_rows(o.Cm, 1 + pairs),
        None if o.D is None else o.D.contiguous(),
        None if o.z is None else dense_rows(o.z),
        None if o.dt_bias is None else o.dt_bias.contiguous(),
        o.h0.contiguous(),
        flags(o.reset),
        None if o.a_override is None else o.a_override.contiguous(),
    )
    constants = {
        "SOFTPLUS": softplus,
        "SIGNED": signed,
        "PAIRS": pairs,
        "BLOCK_E": shape.channels,
        "BLOCK_N": shape.states,
    }
    sizes = (T, E, N, blocks, *split, group_blocks, E // G)
    programs = B * split.chunks * blocks
    return _Plan(dense, split, shape, limits.registers, blocks, programs, sizes, constants)


def _strides(*tensors: Tensor | None, groups: tuple[Tensor, ...] = ()) -> tuple[int, ...]:
    """Return row and step strides of each tensor, then row, step and group strides of `groups`."""
    plain = [s for x in tensors for s in ((0, 0) if x is None else x.stride()[:2])]
    return (*plain, *(s for x in groups for s in x.stride()[:3]))


def _ends(plan: _Plan) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return room for what the chunks end with: states, products, flags."""
    h0, reset, chunks = plan.o.h0, plan.o.reset, plan.split.chunks
    ends = h0.new_empty((h0.shape[0], chunks, *h0.shape[1:]))
    cuts = None if reset is None else reset.new_empty((h0.shape[0], chunks))
    return ends, torch.empty_like(ends), cuts


def forward(o: Operands, softplus: bool, signed: bool, pairs: bool, keep: bool) -> Forward:
    """Run the scan; keeps states on the way where `keep`."""
    plan = _plan(o, softplus, signed, pairs, FORWARD)
    o = plan.o
    start = o.h0
    if plan.split.chunks > 1:
        room = _ends(plan)
        plan.run(
            triton_kernels.ends_kernel, o.u, o.dt, o.A, o.Bm, o.dt_bias, o.reset, o.a_override,
            *room, *plan.sizes, *_strides(o.u, o.dt, groups=(o.Bm,)),
        )  # fmt: skip
        start = carries(o.h0, *room, pairs, adjoint=False)
    y = o.u.new_empty(o.u.shape)
    last = torch.empty_like(o.h0)
    parts = ceil_div(o.u.shape[1], CHUNK)
    kept = o.h0.new_empty(parts * o.h0.numel() if keep else 0)
    plan.run(
        triton_kernels.forward_kernel, o.u, o.dt, o.z, o.A, o.Bm, o.Cm, o.D, o.dt_bias, start,
        o.reset, o.a_override, y, last, kept if keep else None, *plan.sizes,
        *_strides(o.u, o.dt, o.z, groups=(o.Bm, o.Cm)), UNROLL=UNROLL, EVERY=CHUNK,
    )  # fmt: skip
    return y, last, kept


def backward(
    grad: Tensor,
    grad_last: Tensor,
    o: Operands,
    kept: Tensor,
    softplus: bool,
    signed: bool,
    pairs: bool,
) -> Backward:
    """Run the adjoint; sums over programs come last, in a fixed order."""
    B, T, E = o.u.shape
    G, N = o.Bm.shape[2:4]
    plan = _plan(o, softplus, signed, pairs, ADJOINT)
    o, g = plan.o, dense_rows(grad)
    start = grad_last.contiguous()
    if plan.split.chunks > 1:
        room = _ends(plan)
        plan.run(
            triton_adjoint.message_ends_kernel, g, o.dt, o.z, o.A, o.Cm, o.dt_bias, o.reset,
            o.a_override, *room, *plan.sizes, *_strides(g, o.dt, o.z, groups=(o.Cm,)),
        )  # fmt: skip
        start = carries(start, *room, pairs, adjoint=True)
    new, tail, chunks = o.h0.new_empty, (2,) if pairs else (), plan.split.chunks
    du, ddt = o.u.new_empty(o.u.shape), new(o.u.shape)
    dz = o.u.new_empty(0 if o.z is None else o.u.shape)
    dA = new((B, chunks, *o.A.shape))
    dB, dC = (new((B, plan.blocks, T, N, *tail)) for _ in range(2))
    dD = None if o.D is None else new((B, chunks, E))
    dh0 = torch.empty_like(o.h0)
    plan.run(
        triton_adjoint.adjoint_kernel, g, o.u, o.dt, o.z, o.A, o.Bm, o.Cm, o.D, o.dt_bias, start,
        o.reset, o.a_override, kept, du, ddt, dz, dA, dB, dC, dD, dh0, *plan.sizes,
        *_strides(g, o.u, o.dt, o.z, groups=(o.Bm, o.Cm)), SUB=SUB, EVERY=CHUNK,
    )  # fmt: skip
    dB, dC = (x.unflatten(1, (G, -1)).sum(2).transpose(1, 2).contiguous() for x in (dB, dC))
    return (
        du,
        ddt,
        dA.sum((0, 1)),
        dB,
        dC,
        o.h0.new_zeros(E) if dD is None else dD.sum((0, 1)),
        dz,
        o.h0.new_zeros(E) if o.dt_bias is None else ddt.sum((0, 1)),
        dh0,
    )


def _example(dtype: torch.dtype, kind: str, full: bool, B: int, T: int, E: int, N: int) -> None:
    tail = (2,) if kind == "complex" else ()

    def tensor(*shape: int, of: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=of, device="meta")

    mixing = tensor(B, T, 1, N, *tail, of=dtype)
    u, h0 = tensor(B, T, E, of=dtype), tensor(B, E, N, *tail)
    o = Operands(
        u, tensor(B, T, E), tensor(E, N, *tail), mixing, mixing, None, None, None, h0, None, None
    )
    if full:
        own = tensor(E)
        o = o._replace(D=own, z=u, dt_bias=own, reset=tensor(B, T, of=torch.bool))
    flags = (full, kind == "signed", kind == "complex")
    y, last, kept = forward(o, *flags, True)
    backward(y, last, o, kept, *flags)


COMPILE_CASES: list[CompileCase] = [
    case
    for dtype, kind, full, shape in (
        (torch.float32, "real", True, (16, 1024, 512, 16)),
        (torch.float32, "real", False, (64, 1024, 512, 16)),
        (torch.float32, "signed", True, (64, 1024, 512, 16)),
        (torch.float32, "complex", True, (16, 1024, 512, 16)),
        (torch.float32, "real", True, (64, 1024, 512, 64)),
        (torch.bfloat16, "real", True, (16, 1024, 512, 16)),
        (torch.bfloat16, "signed", False, (64, 1024, 512, 16)),
        (torch.bfloat16, "complex", False, (64, 1024, 512, 16)),
    )
    for case in compile_cases(
        f"{kind}-{str(dtype).removeprefix('torch.')}-{'reset' if full else 'plain'}-{shape[3]}",
        lambda: _example(dtype, kind, full, *shape),  # noqa: B023 - run at once
    )
]
