"""Triton kernels of the linear scan, forward and adjoint, whole or in chunks of time.

One program owns a block of channels of one batch row and one chunk of time. The inputs of UNROLL
steps are loaded before the first of them is used, since they do not depend on the state.

In chunks: `ends_kernel` runs every chunk from a zero state and keeps its last state and the
product of its decays; `carry_kernel` scans those; `scan_kernel` or `adjoint_kernel` then runs
from the states found. The adjoint carries the message m_t = dL/dh_{t-1} through step t.
"""
# Triton's functions are typed by their launch and its decorator is not typed.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

from statewise.kernels.triton_math import load, pick, plus, store, times, times_conj


@triton.jit
def place(blocks, chunks, length, T):
    """Return block, chunk, row, first and last step of this program, in 64 bits."""
    program = tl.program_id(0).to(tl.int64)
    chunk = program // blocks % chunks
    first = chunk * length
    return (
        program % blocks,
        chunk,
        program // blocks // chunks,
        first,
        tl.minimum(first + length, T),
    )


@triton.jit
def flag(reset, at, on):
    """Return whether step `at` is a reset; never where it is not `on`, or without resets."""
    if reset is None:
        return at < 0
    else:
        return tl.load(reset + at, mask=on, other=0) != 0


@triton.jit
def scan_kernel(
    a, b, start, reset, init, h, last, T, D, blocks, chunks, length,
    a_row, a_step, b_row, b_step,
    VARYING: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Run each chunk from start (B, chunks, D); write h and, by the last chunk, last (B, D)."""
    block, chunk, row, first, end = place(blocks, chunks, length, T)
    dtype: tl.constexpr = start.dtype.element_ty
    d = block * BLOCK + tl.arange(0, BLOCK)
    hr, hi = load(start, (row * chunks + chunk) * D + d, d < D, PAIRS, dtype)
    zero = tl.zeros((BLOCK,), dtype)
    ar, ai, ir, ii = zero, zero, zero, zero
    if not VARYING:
        ar, ai = load(a, d, d < D, PAIRS, dtype)
    if init is not None:
        ir, ii = load(init, d, d < D, PAIRS, dtype)
    a += row * a_row
    b += row * b_row
    for t0 in range(first, end, UNROLL):
        loaded = ()
        for i in tl.static_range(UNROLL):
            t = t0 + i
            here = d < tl.where(t < end, D, 0)
            if VARYING:
                ar, ai = load(a + t * a_step, d, here, PAIRS, dtype)
            br, bi = load(b + t * b_step, d, here, PAIRS, dtype)
            loaded = loaded + (ar, ai, br, bi, flag(reset, row * T + t, t < end))  # noqa: RUF005
        for i in tl.static_range(UNROLL):
            t = t0 + i
            pr, pi = hr, hi
            if reset is not None:
                pr, pi = pick(loaded[5 * i + 4], ir, ii, hr, hi, PAIRS)
            pr, pi = times(loaded[5 * i], loaded[5 * i + 1], pr, pi, PAIRS)
            pr, pi = plus(pr, pi, loaded[5 * i + 2], loaded[5 * i + 3], PAIRS)
            hr, hi = pick(t < end, pr, pi, hr, hi, PAIRS)
            here = d < tl.where(t < end, D, 0)
            store(h, (row * T + t) * D + d, hr, hi, here, PAIRS)
    store(last, row * D + d, hr, hi, d < tl.where(chunk == chunks - 1, D, 0), PAIRS)


@triton.jit
def adjoint_kernel(
    grad, start, a, h, h0, reset, init, da, db, dh0, dinit, T, D, blocks, chunks, length,
    a_row, a_step, grad_row, grad_step,
    VARYING: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Run each chunk backwards from the message start (B, chunks, D); h is dense.

    da is (B, T, D), or (B, chunks, D) sums where a does not vary, or None; so is dinit.
    """
    block, chunk, row, first, end = place(blocks, chunks, length, T)
    dtype: tl.constexpr = start.dtype.element_ty
    d = block * BLOCK + tl.arange(0, BLOCK)
    part = (row * chunks + chunk) * D + d
    mr, mi = load(start, part, d < D, PAIRS, dtype)
    zero = tl.zeros((BLOCK,), dtype)
    ar, ai, ir, ii = zero, zero, zero, zero
    sum_ar, sum_ai, sum_ir, sum_ii = zero, zero, zero, zero
    if not VARYING:
        ar, ai = load(a, d, d < D, PAIRS, dtype)
    if init is not None:
        ir, ii = load(init, d, d < D, PAIRS, dtype)
    fr, fi = load(h0, row * D + d, d < D, PAIRS, dtype)
    a += row * a_row
    grad += row * grad_row
    for t0 in range(0, end - first, UNROLL):
        loaded = ()
        for i in tl.static_range(UNROLL):
            t = end - 1 - t0 - i
            here = d < tl.where(t >= first, D, 0)
            if VARYING:
                ar, ai = load(a + t * a_step, d, here, PAIRS, dtype)
            gr, gi = load(grad + t * grad_step, d, here, PAIRS, dtype)
            pr, pi = gr, gi
            if da is not None:
                before = d < tl.where((t >= first) & (t > 0), D, 0)
                pr, pi = load(h, (row * T + t - 1) * D + d, before, PAIRS, dtype)
            cut = flag(reset, row * T + t, t >= first)
            loaded = loaded + (ar, ai, gr, gi, pr, pi, cut)  # noqa: RUF005
        for i in tl.static_range(UNROLL):
            t = end - 1 - t0 - i
            cut = loaded[7 * i + 6]
            here = d < tl.where(t >= first, D, 0)
            vr, vi = plus(loaded[7 * i + 2], loaded[7 * i + 3], mr, mi, PAIRS)
            store(db, (row * T + t) * D + d, vr, vi, here, PAIRS)
            br, bi = times_conj(vr, vi, loaded[7 * i], loaded[7 * i + 1], PAIRS)
            if da is not None:
                pr, pi = pick(t > 0, loaded[7 * i + 4], loaded[7 * i + 5], fr, fi, PAIRS)
                if reset is not None:
                    pr, pi = pick(cut, ir, ii, pr, pi, PAIRS)
                pr, pi = times_conj(vr, vi, pr, pi, PAIRS)
                if VARYING:
                    store(da, (row * T + t) * D + d, pr, pi, here, PAIRS)
                else:
                    pr, pi = plus(sum_ar, sum_ai, pr, pi, PAIRS)
                    sum_ar, sum_ai = pick(t >= first, pr, pi, sum_ar, sum_ai, PAIRS)
            if reset is not None:
                if dinit is not None:
                    pr, pi = plus(sum_ir, sum_ii, br, bi, PAIRS)
                    sum_ir, sum_ii = pick(cut, pr, pi, sum_ir, sum_ii, PAIRS)
                br, bi = pick(cut, zero, zero, br, bi, PAIRS)
            mr, mi = pick(t >= first, br, bi, mr, mi, PAIRS)
    store(dh0, row * D + d, mr, mi, d < tl.where(chunk == 0, D, 0), PAIRS)
    if dinit is not None:
        store(dinit, part, sum_ir, sum_ii, d < D, PAIRS)
    if da is not None:
        if not VARYING:
            store(da, part, sum_ar, sum_ai, d < D, PAIRS)


@triton.jit
def ends_kernel(
    a, x, reset, init, ends, products, cuts, T, D, blocks, chunks, length,
    a_row, a_step, x_row, x_step,
    VARYING: tl.constexpr, PAIRS: tl.constexpr, ADJOINT: tl.constexpr, BLOCK: tl.constexpr,
    UNROLL: tl.constexpr,
):  # fmt: skip
    """Run each chunk from 0: its last state or message, the product of its decays, any reset."""
    block, chunk, row, first, end = place(blocks, chunks, length, T)
    dtype: tl.constexpr = ends.dtype.element_ty
    d = block * BLOCK + tl.arange(0, BLOCK)
    zero = tl.zeros((BLOCK,), dtype)
    hr, hi, qr, qi, ar, ai, ir, ii = zero, zero, zero + 1, zero, zero, zero, zero, zero
    any_cut = first < 0
    if not VARYING:
        ar, ai = load(a, d, d < D, PAIRS, dtype)
    if init is not None:
        ir, ii = load(init, d, d < D, PAIRS, dtype)
    a += row * a_row
    x += row * x_row
    for t0 in range(0, end - first, UNROLL):
        loaded = ()
        for i in tl.static_range(UNROLL):
            t = end - 1 - t0 - i if ADJOINT else first + t0 + i
            on = (t >= first) & (t < end)
            here = d < tl.where(on, D, 0)
            if VARYING:
                ar, ai = load(a + t * a_step, d, here, PAIRS, dtype)
            xr, xi = load(x + t * x_step, d, here, PAIRS, dtype)
            loaded = loaded + (ar, ai, xr, xi, flag(reset, row * T + t, on), on)  # noqa: RUF005
        for i in tl.static_range(UNROLL):
            ar, ai, xr, xi, cut, on = loaded[6 * i : 6 * i + 6]
            if ADJOINT:
                pr, pi = plus(hr, hi, xr, xi, PAIRS)
                pr, pi = times_conj(pr, pi, ar, ai, PAIRS)
                if reset is not None:
                    pr, pi = pick(cut, ir, ii, pr, pi, PAIRS)
            else:
                pr, pi = hr, hi
                if reset is not None:
                    pr, pi = pick(cut, ir, ii, hr, hi, PAIRS)
                pr, pi = times(ar, ai, pr, pi, PAIRS)
                pr, pi = plus(pr, pi, xr, xi, PAIRS)
            hr, hi = pick(on, pr, pi, hr, hi, PAIRS)
            if ADJOINT:
                pr, pi = times_conj(qr, qi, ar, ai, PAIRS)
            else:
                pr, pi = times(ar, ai, qr, qi, PAIRS)
            qr, qi = pick(on, pr, pi, qr, qi, PAIRS)
            any_cut = any_cut | cut
    part = (row * chunks + chunk) * D + d
    store(ends, part, hr, hi, d < D, PAIRS)
    store(products, part, qr, qi, d < D, PAIRS)
    if reset is not None:
        tl.store(cuts + row * chunks + chunk, any_cut.to(tl.uint8), mask=block == 0)


@triton.jit
def carry_kernel(
    start, ends, products, cuts, found, chunks, W, blocks,
    PAIRS: tl.constexpr, ADJOINT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Scan over chunks from start (B, W): write the state each chunk finds, (B, chunks, W).

    A reset inside a chunk cuts by selection what came before it.
    """
    program = tl.program_id(0).to(tl.int64)
    row = program // blocks
    w = program % blocks * BLOCK + tl.arange(0, BLOCK)
    dtype: tl.constexpr = start.dtype.element_ty
    zero = tl.zeros((BLOCK,), dtype)
    sr, si = load(start, row * W + w, w < W, PAIRS, dtype)
    for k in range(0, chunks):
        chunk = row * chunks + (chunks - 1 - k if ADJOINT else k)
        store(found, chunk * W + w, sr, si, w < W, PAIRS)
        er, ei = load(ends, chunk * W + w, w < W, PAIRS, dtype)
        qr, qi = load(products, chunk * W + w, w < W, PAIRS, dtype)
        sr, si = times(qr, qi, sr, si, PAIRS)
        if cuts is not None:
            sr, si = pick(tl.load(cuts + chunk) != 0, zero, zero, sr, si, PAIRS)
        sr, si = plus(sr, si, er, ei, PAIRS)
