"""Triton kernels of the time-invariant scan, forward and adjoint, whole or in chunks of time.

One program owns a tile (N, BLOCK_H) of states, all those of a few channels of one batch row,
and one chunk of time. The states of a channel lie in one warp, so y is a sum over registers and
a few lanes, and no state is ever stored but the last of a chunk.

The gradients store none either. `adjoint_kernel` runs backwards with the message m_t = dL/dh_{t-1}:

    v_t = 2 conj(c) g_t + m_{t+1};  dx_t = Re sum_n conj(b) v_t;  db += v_t x_t;  m_t = conj(a) v_t

`sensitivity_kernel` runs forwards and carries s_t = dh_t/da beside h_t, from 0. So the gradient of
a, a sum of products of states and messages, becomes a sum of products with g:

    s_t = a s_{t-1} + h_{t-1};  dc += 2 g_t conj(h_t)
    da = 2 conj(c) sum_t g_t conj(s_t) + m conj(s)

where the last term takes the message that enters the chunk from behind and its last s. A reset
selects 0 for h_{t-1}, s_{t-1} and m_t.
"""
# Triton's functions are typed by their launch and its decorator is not typed.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

from statewise.kernels.linear_scan.triton_kernels import flag, place
from statewise.kernels.triton_math import times, times_conj


@triton.jit
def tile(block, H, N, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return the channels [BLOCK_H] of a block and offsets and mask [BLOCK_N, BLOCK_H].

    In 32 bits, which save registers: H * N numbers are the size of a parameter.
    """
    h = block.to(tl.int32) * BLOCK_H + tl.arange(0, BLOCK_H)
    n = tl.arange(0, BLOCK_N)
    return h, h[None, :] * N + n[:, None], (h < H)[None, :] & (n < N)[:, None]


@triton.jit
def load_pairs(address, offsets, mask):
    """Load complex numbers, 0 where masked.

    Two loads of a stride of 2: one of pairs would lay the states of a channel across all lanes.
    """
    re = tl.load(address + 2 * offsets, mask=mask, other=0)
    return re, tl.load(address + 2 * offsets + 1, mask=mask, other=0)


@triton.jit
def store_pairs(address, offsets, re, im, mask):
    """Store complex numbers."""
    tl.store(address + 2 * offsets, re, mask=mask)
    tl.store(address + 2 * offsets + 1, im, mask=mask)


@triton.jit
def scan_kernel(
    x, a, b, c, start, reset, y, last, kept, T, H, N, blocks, chunks, length, x_row, x_step,
    EVERY: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Run each chunk from start (B, chunks, H, N); write y and, by the last chunk, last.

    Keeps the states before steps EVERY, 2 EVERY, ... unless kept is None. EVERY divides `length`
    and UNROLL divides EVERY.
    """
    block, chunk, row, first, end = place(blocks, chunks, length, T)
    h, at, on = tile(block, H, N, BLOCK_H, BLOCK_N)
    dtype: tl.constexpr = start.dtype.element_ty
    ar, ai = load_pairs(a, at, on)
    br, bi = load_pairs(b, at, on)
    cr, ci = load_pairs(c, at, on)
    cr, ci = 2 * cr, 2 * ci
    hr, hi = load_pairs(start + (row * chunks + chunk) * H * N * 2, at, on)
    x += row * x_row
    for t0 in range(first, end, UNROLL):
        if kept is not None:
            if (t0 % EVERY == 0) & (t0 > 0):
                number = row * ((T - 1) // EVERY) + t0 // EVERY - 1
                store_pairs(kept + number * H * N * 2, at, hr, hi, on)
        loaded = ()
        for i in tl.static_range(UNROLL):
            t = t0 + i
            here = h < tl.where(t < end, H, 0)
            loaded = loaded + (  # noqa: RUF005
                tl.load(x + t * x_step + h, mask=here, other=0).to(dtype),
                flag(reset, row * T + t, t < end),
            )
        for i in tl.static_range(UNROLL):
            t = t0 + i
            u = loaded[2 * i][None, :]
            pr, pi = hr, hi
            if reset is not None:
                pr, pi = tl.where(loaded[2 * i + 1], 0, pr), tl.where(loaded[2 * i + 1], 0, pi)
            pr, pi = times(ar, ai, pr, pi, True)
            hr = tl.where(t < end, pr + br * u, hr)
            hi = tl.where(t < end, pi + bi * u, hi)
            out = tl.sum(cr * hr - ci * hi, 0).to(y.dtype.element_ty)
            tl.store(y + (row * T + t) * H + h, out, mask=h < tl.where(t < end, H, 0))
    if chunk == chunks - 1:
        store_pairs(last + row * H * N * 2, at, hr, hi, on)


@triton.jit
def ends_kernel(
    x, a, b, reset, ends, cuts, T, H, N, blocks, chunks, length, x_row, x_step,
    ADJOINT: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Run each chunk from 0: its last state (B, chunks, H, N), and whether it has a reset.

    The adjoint runs backwards to the message before the chunk; x is then the gradient of y and
    b is c.
    """
    block, chunk, row, first, end = place(blocks, chunks, length, T)
    h, at, on = tile(block, H, N, BLOCK_H, BLOCK_N)
    dtype: tl.constexpr = ends.dtype.element_ty
    ar, ai = load_pairs(a, at, on)
    br, bi = load_pairs(b, at, on)
    if ADJOINT:
        ai, br, bi = -ai, 2 * br, -2 * bi
    hr = tl.zeros((BLOCK_N, BLOCK_H), dtype)
    hi = hr
    any_cut = first < 0
    x += row * x_row
    for t0 in range(0, end - first, UNROLL):
        loaded = ()
        for i in tl.static_range(UNROLL):
            t = end - 1 - t0 - i if ADJOINT else first + t0 + i
            inside = (t >= first) & (t < end)
            here = h < tl.where(inside, H, 0)
            loaded = loaded + (  # noqa: RUF005
                tl.load(x + t * x_step + h, mask=here, other=0).to(dtype),
                flag(reset, row * T + t, inside),
                inside,
            )
        for i in tl.static_range(UNROLL):
            u = loaded[3 * i][None, :]
            cut = loaded[3 * i + 1]
            inside = loaded[3 * i + 2]
            pr, pi = hr, hi
            if ADJOINT:
                pr, pi = times(ar, ai, pr + br * u, pi + bi * u, True)
            if reset is not None:
                pr, pi = tl.where(cut, 0, pr), tl.where(cut, 0, pi)
                any_cut = any_cut | cut
            if not ADJOINT:
                pr, pi = times(ar, ai, pr, pi, True)
                pr, pi = pr + br * u, pi + bi * u
            hr, hi = tl.where(inside, pr, hr), tl.where(inside, pi, hi)
    store_pairs(ends + (row * chunks + chunk) * H * N * 2, at, hr, hi, on)
    if reset is not None:
        tl.store(cuts + row * chunks + chunk, any_cut.to(tl.uint8), mask=block == 0)


@triton.jit
def adjoint_kernel(
    grad, x, messages, a, b, c, reset, dx, db, dh0,
    T, H, N, blocks, chunks, length, grad_row, grad_step, x_row, x_step,
    BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Run each chunk backwards from its message (B, chunks, H, N): dx, db of the chunk, dh0.

    dx and db may be None.
    """
    block, chunk, row, first, end = place(blocks, chunks, length, T)
    h, at, on = tile(block, H, N, BLOCK_H, BLOCK_N)
    dtype: tl.constexpr = messages.dtype.element_ty
    part = (row * chunks + chunk) * H * N * 2
    ar, ai = load_pairs(a, at, on)
    br, bi = load_pairs(b, at, on)
    cr, ci = load_pairs(c, at, on)
    cr, ci = 2 * cr, 2 * ci
    mr, mi = load_pairs(messages + part, at, on)
    sum_r = tl.zeros((BLOCK_N, BLOCK_H), dtype)
    sum_i = sum_r
    grad += row * grad_row
    x += row * x_row
    for t0 in range(0, end - first, UNROLL):
        loaded = ()
        for i in tl.static_range(UNROLL):
            t = end - 1 - t0 - i
            here = h < tl.where(t >= first, H, 0)
            u = tl.zeros((BLOCK_H,), dtype)
            if db is not None:
                u = tl.load(x + t * x_step + h, mask=here, other=0).to(dtype)
            loaded = loaded + (  # noqa: RUF005
                tl.load(grad + t * grad_step + h, mask=here, other=0).to(dtype),
                u,
                flag(reset, row * T + t, t >= first),
            )
        for i in tl.static_range(UNROLL):
            t = end - 1 - t0 - i
            g, u = loaded[3 * i][None, :], loaded[3 * i + 1][None, :]
            vr, vi = mr + cr * g, mi - ci * g
            if dx is not None:
                out = tl.sum(br * vr + bi * vi, 0).to(dx.dtype.element_ty)
                tl.store(dx + (row * T + t) * H + h, out, mask=h < tl.where(t >= first, H, 0))
            if db is not None:
                sum_r, sum_i = sum_r + vr * u, sum_i + vi * u
            pr, pi = times_conj(vr, vi, ar, ai, True)
            if reset is not None:
                pr, pi = tl.where(loaded[3 * i + 2], 0, pr), tl.where(loaded[3 * i + 2], 0, pi)
            mr, mi = tl.where(t >= first, pr, mr), tl.where(t >= first, pi, mi)
    if db is not None:
        store_pairs(db + part, at, sum_r, sum_i, on)
    if chunk == 0:
        store_pairs(dh0 + row * H * N * 2, at, mr, mi, on)


@triton.jit
def sensitivity_kernel(
    grad, x, h0, kept, messages, a, b, c, reset, da, dc,
    T, H, N, blocks, chunks, length, grad_row, grad_step, x_row, x_step,
    EVERY: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Run each chunk forwards from its start, with dh/da beside it: da and dc of the chunk."""
    block, chunk, row, first, end = place(blocks, chunks, length, T)
    h, at, on = tile(block, H, N, BLOCK_H, BLOCK_N)
    dtype: tl.constexpr = h0.dtype.element_ty
    part = (row * chunks + chunk) * H * N * 2
    ar, ai = load_pairs(a, at, on)
    br, bi = load_pairs(b, at, on)
    if chunk == 0:
        hr, hi = load_pairs(h0 + row * H * N * 2, at, on)
    else:
        number = row * ((T - 1) // EVERY) + first // EVERY - 1
        hr, hi = load_pairs(kept + number * H * N * 2, at, on)
    sr = tl.zeros((BLOCK_N, BLOCK_H), dtype)
    si, sum_r, sum_i, sum_sr, sum_si = sr, sr, sr, sr, sr
    grad += row * grad_row
    x += row * x_row
    for t0 in range(first, end, UNROLL):
        loaded = ()
        for i in tl.static_range(UNROLL):
            t = t0 + i
            here = h < tl.where(t < end, H, 0)
            loaded = loaded + (  # noqa: RUF005
                tl.load(grad + t * grad_step + h, mask=here, other=0).to(dtype),
                tl.load(x + t * x_step + h, mask=here, other=0).to(dtype),
                flag(reset, row * T + t, t < end),
            )
        for i in tl.static_range(UNROLL):
            t = t0 + i
            g, u = loaded[3 * i][None, :], loaded[3 * i + 1][None, :]
            if reset is not None:
                cut = loaded[3 * i + 2]
                hr, hi = tl.where(cut, 0, hr), tl.where(cut, 0, hi)
                sr, si = tl.where(cut, 0, sr), tl.where(cut, 0, si)
            pr, pi = times(ar, ai, sr, si, True)
            sr, si = tl.where(t < end, pr + hr, sr), tl.where(t < end, pi + hi, si)
            pr, pi = times(ar, ai, hr, hi, True)
            hr, hi = pr + br * u, pi + bi * u
            sum_r, sum_i = sum_r + hr * g, sum_i + hi * g
            sum_sr, sum_si = sum_sr + sr * g, sum_si + si * g
    store_pairs(dc + part, at, 2 * sum_r, -2 * sum_i, on)
    mr, mi = load_pairs(messages + part, at, on)
    mr, mi = times_conj(mr, mi, sr, si, True)
    cr, ci = load_pairs(c, at, on)
    pr, pi = times(cr, ci, sum_sr, sum_si, True)
    store_pairs(da + part, at, mr + 2 * pr, mi - 2 * pi, on)


@triton.jit
def carry_kernel(
    start, ends, a, cuts, found, chunks, W, blocks, length, tail,
    ADJOINT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Scan over chunks from start (B, W): write the state each chunk finds, (B, chunks, W).

    A chunk decays by a to the power of its length; the last one has `tail` steps. A reset inside
    a chunk cuts by selection what came before it.
    """
    program = tl.program_id(0).to(tl.int64)
    row = program // blocks
    w = program % blocks * BLOCK + tl.arange(0, BLOCK)
    dtype: tl.constexpr = start.dtype.element_ty
    ar, ai = load_pairs(a, w, w < W)
    if ADJOINT:
        ai = -ai
    tr = tl.full((BLOCK,), 1, dtype)
    ti = tl.zeros((BLOCK,), dtype)
    for _ in range(tail):
        tr, ti = times(ar, ai, tr, ti, True)
    qr, qi = tr, ti
    for _ in range(length - tail):
        qr, qi = times(ar, ai, qr, qi, True)
    sr, si = load_pairs(start, row * W + w, w < W)
    for k in range(chunks):
        number = chunks - 1 - k if ADJOINT else k
        chunk = row * chunks + number
        store_pairs(found, chunk * W + w, sr, si, w < W)
        er, ei = load_pairs(ends, chunk * W + w, w < W)
        last = number == chunks - 1
        sr, si = times(tl.where(last, tr, qr), tl.where(last, ti, qi), sr, si, True)
        if cuts is not None:
            cut = tl.load(cuts + chunk) != 0
            sr, si = tl.where(cut, 0, sr), tl.where(cut, 0, si)
        sr, si = sr + er, si + ei
