"""Triton kernels of the selective scan: forward, and the last states of chunks of time.

One program owns a tile of states (N, channels of one group) of one batch row and one chunk of
time; a warp holds all states of a channel where N is at most 16.
"""
# Triton's functions are typed by their launch and its decorator is not typed.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

from statewise.kernels.linear_scan.triton_kernels import flag, place
from statewise.kernels.triton_math import (
    cos_sin,
    exponential,
    load,
    pick,
    plus,
    sigmoid,
    softplus,
    times,
)


@triton.jit
def channels(block, group_blocks, per_group, BLOCK_E: tl.constexpr):
    """Return the group, the channels of this block, and the end of its group."""
    group = block // group_blocks
    e = group * per_group + block % group_blocks * BLOCK_E + tl.arange(0, BLOCK_E)
    return group, e, (group + 1) * per_group


@triton.jit
def load_state(address, part, n, e, N, E, e_end, PAIRS: tl.constexpr):
    """Load a tile of states (part, E, N), 0 outside."""
    inside = (n < N)[:, None] & (e < e_end)[None, :]
    address += part * (2 if PAIRS else 1) * N * E
    at = e[None, :] * N + n[:, None]
    if PAIRS:
        re = tl.load(address + 2 * at, mask=inside, other=0)
        return re, tl.load(address + 2 * at + 1, mask=inside, other=0)
    else:
        re = tl.load(address + at, mask=inside, other=0)
        return re, re


@triton.jit
def store_state(address, part, n, e, N, E, e_end, re, im, PAIRS: tl.constexpr):
    """Store a tile of states; nothing where `e_end` is 0."""
    inside = (n < N)[:, None] & (e < e_end)[None, :]
    address += part * (2 if PAIRS else 1) * N * E
    at = e[None, :] * N + n[:, None]
    if PAIRS:
        tl.store(address + 2 * at, re, mask=inside)
        tl.store(address + 2 * at + 1, im, mask=inside)
    else:
        tl.store(address + at, re, mask=inside)


@triton.jit
def load_steps(dt, bias, e, here, SOFTPLUS: tl.constexpr):
    """Return dt + bias and the step size d of one step."""
    raw = tl.load(dt + e, mask=here, other=0)
    if bias is not None:
        raw += tl.load(bias + e, mask=here, other=0)
    if SOFTPLUS:
        return raw, softplus(raw)
    else:
        return raw, raw


@triton.jit
def decays(d, Ar, Ai, fixed, GIVEN: tl.constexpr, SIGNED: tl.constexpr, PAIRS: tl.constexpr):
    """Return the tile a = exp(d A) or 2 exp(d A) - 1, or what is given instead."""
    re = exponential(d[None, :] * Ar)
    im = re
    if PAIRS:
        cosine, sine = cos_sin(d[None, :] * Ai)
        re, im = re * cosine, re * sine
    if SIGNED:
        re = 2.0 * re - 1.0
    if GIVEN:
        re = tl.where((fixed == fixed)[:, None], fixed[:, None], re)
        if PAIRS:
            im = tl.where((fixed == fixed)[:, None], 0.0, im)
    return re, im


@triton.jit
def load_fixed(override, n, N, dtype: tl.constexpr):
    """Load the decays that are given, NaN where they are not."""
    if override is None:
        return tl.zeros_like(n).to(dtype)
    else:
        return tl.load(override + n, mask=n < N, other=float("nan"))


@triton.jit
def advance(hr, hi, ar, ai, driven, Br, Bi, cut, RESET: tl.constexpr, PAIRS: tl.constexpr):
    """Return the state the step found, and the one after it."""
    pr, pi = hr, hi
    if RESET:
        zero = tl.zeros_like(hr)
        pr, pi = pick(cut, zero, zero, hr, hi, PAIRS)
    xr, xi = times(ar, ai, pr, pi, PAIRS)
    xr, xi = plus(xr, xi, driven[None, :] * Br[:, None], driven[None, :] * Bi[:, None], PAIRS)
    return pr, pi, xr, xi


@triton.jit
def read_out(hr, hi, Cr, Ci, PAIRS: tl.constexpr):
    """Return sum over N of C h, twice its real part for complex numbers."""
    if PAIRS:
        return 2.0 * tl.sum(Cr[:, None] * hr - Ci[:, None] * hi, 0)
    else:
        return tl.sum(Cr[:, None] * hr, 0)


@triton.jit
def forward_kernel(
    u, dt, z, A, Bm, Cm, D, bias, start, reset, override, y, last, kept,
    T, E, N, blocks, chunks, length, group_blocks, per_group,
    u_row, u_step, dt_row, dt_step, z_row, z_step, B_row, B_step, B_group, C_row, C_step, C_group,
    SOFTPLUS: tl.constexpr, SIGNED: tl.constexpr, PAIRS: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr, UNROLL: tl.constexpr, EVERY: tl.constexpr,
):  # fmt: skip
    """Run each chunk from start (B, chunks, E, N); write y, the last state and every 32nd state."""
    block, chunk, row, first, end = place(blocks, chunks, length, T)
    group, e, e_end = channels(block, group_blocks, per_group, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    dtype: tl.constexpr = start.dtype.element_ty
    GIVEN: tl.constexpr = override is not None
    Ar, Ai = load_state(A, 0, n, e, N, E, e_end, PAIRS)
    fixed = load_fixed(override, n, N, dtype)
    hr, hi = load_state(start, row * chunks + chunk, n, e, N, E, e_end, PAIRS)
    skip = tl.zeros((BLOCK_E,), dtype)
    if D is not None:
        skip = tl.load(D + e, mask=e < e_end, other=0)
    u += row * u_row
    dt += row * dt_row
    Bm += row * B_row + group * B_group
    Cm += row * C_row + group * C_group
    if z is not None:
        z += row * z_row
    parts = (T + EVERY - 1) // EVERY
    for t0 in range(first, end, UNROLL):
        if kept is not None:
            whole = tl.where(t0 % EVERY == 0, e_end, 0)
            part = row * parts + t0 // EVERY
            store_state(kept, part, n, e, N, E, whole, hr, hi, PAIRS)
        loaded = ()
        for i in tl.static_range(UNROLL):
            t = t0 + i
            here = e < tl.where(t < end, e_end, 0)
            at = n < tl.where(t < end, N, 0)
            _, d = load_steps(dt + t * dt_step, bias, e, here, SOFTPLUS)
            x = tl.load(u + t * u_step + e, mask=here, other=0).to(dtype)
            gate = x
            if z is not None:
                gate = tl.load(z + t * z_step + e, mask=here, other=0).to(dtype)
            Br, Bi = load(Bm + t * B_step, n, at, PAIRS, dtype)
            Cr, Ci = load(Cm + t * C_step, n, at, PAIRS, dtype)
            cut = flag(reset, row * T + t, t < end)
            loaded = loaded + (d, x, gate, Br, Bi, Cr, Ci, cut)  # noqa: RUF005
        for i in tl.static_range(UNROLL):
            t = t0 + i
            d, x, gate, Br, Bi, Cr, Ci, cut = loaded[8 * i : 8 * i + 8]
            ar, ai = decays(d, Ar, Ai, fixed, GIVEN, SIGNED, PAIRS)
            _, _, xr, xi = advance(hr, hi, ar, ai, d * x, Br, Bi, cut, reset is not None, PAIRS)
            hr, hi = pick(t < end, xr, xi, hr, hi, PAIRS)
            out = read_out(hr, hi, Cr, Ci, PAIRS) + skip * x
            if z is not None:
                out *= gate * sigmoid(gate)
            here = e < tl.where(t < end, e_end, 0)
            tl.store(y + (row * T + t) * E + e, out.to(y.dtype.element_ty), mask=here)
    final = tl.where(chunk == chunks - 1, e_end, 0)
    store_state(last, row, n, e, N, E, final, hr, hi, PAIRS)


@triton.jit
def ends_kernel(
    u, dt, A, Bm, bias, reset, override, ends, products, cuts,
    T, E, N, blocks, chunks, length, group_blocks, per_group,
    u_row, u_step, dt_row, dt_step, B_row, B_step, B_group,
    SOFTPLUS: tl.constexpr, SIGNED: tl.constexpr, PAIRS: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Run each chunk from 0: its last state, the product of its decays, any reset."""
    block, chunk, row, first, end = place(blocks, chunks, length, T)
    group, e, e_end = channels(block, group_blocks, per_group, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    dtype: tl.constexpr = ends.dtype.element_ty
    GIVEN: tl.constexpr = override is not None
    Ar, Ai = load_state(A, 0, n, e, N, E, e_end, PAIRS)
    fixed = load_fixed(override, n, N, dtype)
    zero = tl.zeros((BLOCK_N, BLOCK_E), dtype)
    hr, hi, qr, qi = zero, zero, zero + 1, zero
    any_cut = first < 0
    for t in range(first, end):
        _, d = load_steps(dt + row * dt_row + t * dt_step, bias, e, e < e_end, SOFTPLUS)
        x = tl.load(u + row * u_row + t * u_step + e, mask=e < e_end, other=0).to(dtype)
        at = Bm + row * B_row + group * B_group + t * B_step
        Br, Bi = load(at, n, n < N, PAIRS, dtype)
        cut = flag(reset, row * T + t, t < end)
        ar, ai = decays(d, Ar, Ai, fixed, GIVEN, SIGNED, PAIRS)
        _, _, hr, hi = advance(hr, hi, ar, ai, d * x, Br, Bi, cut, reset is not None, PAIRS)
        qr, qi = times(ar, ai, qr, qi, PAIRS)
        any_cut = any_cut | cut
    part = row * chunks + chunk
    store_state(ends, part, n, e, N, E, e_end, hr, hi, PAIRS)
    store_state(products, part, n, e, N, E, e_end, qr, qi, PAIRS)
    if reset is not None:
        tl.store(cuts + part, any_cut.to(tl.uint8), mask=block == 0)
