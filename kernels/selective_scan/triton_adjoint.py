"""Triton kernels of the adjoint of the selective scan.

The message m_t = dL/dh_{t-1} goes backwards through the steps. The states come from the ones that
forward kept: a part of SUB steps is run again from the kept state before it, its states stay in
registers, and the adjoint then goes through them backwards; decays are computed once more.
Nothing of the size of all states is written. Sums over channels, rows and chunks leave a partial
sum per program.
"""
# Triton's functions are typed by their launch and its decorator is not typed.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

from statewise.kernels.linear_scan.triton_kernels import flag, place
from statewise.kernels.selective_scan.triton_kernels import (
    advance,
    channels,
    decays,
    load_fixed,
    load_state,
    load_steps,
    read_out,
    store_state,
)
from statewise.kernels.triton_math import load, pick, plus, sigmoid, store, times_conj


@triton.jit
def _outer(scaled, Cr, Ci, PAIRS: tl.constexpr):
    """Return what y_t passes to h_t: scaled conj(C), (N, channels)."""
    if PAIRS:
        return scaled[None, :] * Cr[:, None], -scaled[None, :] * Ci[:, None]
    else:
        return scaled[None, :] * Cr[:, None], Ci[:, None] + scaled[None, :]


@triton.jit
def _gated(g, gate, PAIRS: tl.constexpr, GATED: tl.constexpr):
    """Return the gradient before the gate, and its factor on the sum over N."""
    if GATED:
        g = g * gate * sigmoid(gate)
    if PAIRS:
        return g, 2.0 * g
    else:
        return g, g


@triton.jit
def message_ends_kernel(
    grad, dt, z, A, Cm, bias, reset, override, ends, products, cuts,
    T, E, N, blocks, chunks, length, group_blocks, per_group,
    g_row, g_step, dt_row, dt_step, z_row, z_step, C_row, C_step, C_group,
    SOFTPLUS: tl.constexpr, SIGNED: tl.constexpr, PAIRS: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Run the adjoint of each chunk from the message 0: as `ends_kernel`, backwards."""
    block, chunk, row, first, end = place(blocks, chunks, length, T)
    group, e, e_end = channels(block, group_blocks, per_group, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    dtype: tl.constexpr = ends.dtype.element_ty
    GIVEN: tl.constexpr = override is not None
    Ar, Ai = load_state(A, 0, n, e, N, E, e_end, PAIRS)
    fixed = load_fixed(override, n, N, dtype)
    zero = tl.zeros((BLOCK_N, BLOCK_E), dtype)
    mr, mi, qr, qi = zero, zero, zero + 1, zero
    any_cut = first < 0
    for i in range(0, end - first):
        t = end - 1 - i
        _, d = load_steps(dt + row * dt_row + t * dt_step, bias, e, e < e_end, SOFTPLUS)
        g = tl.load(grad + row * g_row + t * g_step + e, mask=e < e_end, other=0).to(dtype)
        gate = g
        if z is not None:
            gate = tl.load(z + row * z_row + t * z_step + e, mask=e < e_end, other=0).to(dtype)
        at = Cm + row * C_row + group * C_group + t * C_step
        Cr, Ci = load(at, n, n < N, PAIRS, dtype)
        cut = flag(reset, row * T + t, t < end)
        ar, ai = decays(d, Ar, Ai, fixed, GIVEN, SIGNED, PAIRS)
        _, scaled = _gated(g, gate, PAIRS, z is not None)
        vr, vi = _outer(scaled, Cr, Ci, PAIRS)
        vr, vi = plus(vr, vi, mr, mi, PAIRS)
        mr, mi = times_conj(vr, vi, ar, ai, PAIRS)
        if reset is not None:
            mr, mi = pick(cut, zero, zero, mr, mi, PAIRS)
        qr, qi = times_conj(qr, qi, ar, ai, PAIRS)
        any_cut = any_cut | cut
    part = row * chunks + chunk
    store_state(ends, part, n, e, N, E, e_end, mr, mi, PAIRS)
    store_state(products, part, n, e, N, E, e_end, qr, qi, PAIRS)
    if reset is not None:
        tl.store(cuts + part, any_cut.to(tl.uint8), mask=block == 0)


@triton.jit
def _replay(
    u, dt, Bm, bias, reset, A, fixed, hr, hi, t, at, n, e, N, e_end, u_step, dt_step, B_step,
    GIVEN: tl.constexpr, SOFTPLUS: tl.constexpr, SIGNED: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Run one step again; `at` is its place in `reset`. Return the state found and the next."""
    dtype: tl.constexpr = hr.dtype
    _, d = load_steps(dt + t * dt_step, bias, e, e < e_end, SOFTPLUS)
    x = tl.load(u + t * u_step + e, mask=e < e_end, other=0).to(dtype)
    Br, Bi = load(Bm + t * B_step, n, n < N, PAIRS, dtype)
    ar, ai = decays(d, A[0], A[1], fixed, GIVEN, SIGNED, PAIRS)
    cut = flag(reset, at, t >= 0)
    return advance(hr, hi, ar, ai, d * x, Br, Bi, cut, reset is not None, PAIRS)


@triton.jit
def _states(
    u, dt, Bm, bias, reset, A, fixed, hr, hi, begin, stop, row, T, n, e, N, e_end,
    u_step, dt_step, B_step, EVERY: tl.constexpr, SUB: tl.constexpr,
    GIVEN: tl.constexpr, SOFTPLUS: tl.constexpr, SIGNED: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """Run from a kept state to `stop`; return the states that the steps from `begin` on found."""
    for t in range(begin // EVERY * EVERY, begin):
        _, _, hr, hi = _replay(
            u, dt, Bm, bias, reset, A, fixed, hr, hi, t, row * T + t, n, e, N, e_end,
            u_step, dt_step, B_step, GIVEN, SOFTPLUS, SIGNED, PAIRS,
        )  # fmt: skip
    found = ()
    for k in tl.static_range(SUB):  # noqa: B007
        found = found + (hr, hi)  # noqa: RUF005
    for t in range(begin, stop):
        pr, pi, hr, hi = _replay(
            u, dt, Bm, bias, reset, A, fixed, hr, hi, t, row * T + t, n, e, N, e_end,
            u_step, dt_step, B_step, GIVEN, SOFTPLUS, SIGNED, PAIRS,
        )  # fmt: skip
        updated = ()
        for j in tl.static_range(SUB):
            kr, ki = pick(t == begin + j, pr, pi, found[2 * j], found[2 * j + 1], PAIRS)
            updated = updated + (kr, ki)  # noqa: RUF005
        found = updated
    return found


@triton.jit
def _dlog(vr, vi, pr, pi, ar, ai, fixed, GIVEN: tl.constexpr, SIGNED: tl.constexpr,
          PAIRS: tl.constexpr):  # fmt: skip
    """Return the gradient of d A: v conj(prev) conj(da / d(d A)); none where a is given."""
    lr, li = times_conj(vr, vi, pr, pi, PAIRS)
    if SIGNED:
        lr = lr * (ar + 1.0)
    else:
        lr, li = times_conj(lr, li, ar, ai, PAIRS)
    if GIVEN:
        zero = tl.zeros_like(lr)
        lr, li = pick((fixed == fixed)[:, None], zero, zero, lr, li, PAIRS)
    return lr, li


@triton.jit
def _real_sum(ar, ai, br, bi, PAIRS: tl.constexpr):
    """Return Re sum over N of a conj(b)."""
    if PAIRS:
        return tl.sum(ar * br + ai * bi, 0)
    else:
        return tl.sum(ar * br, 0)


@triton.jit
def _add_channels(vr, vi, driven, PAIRS: tl.constexpr):
    """Return sums over channels of v * driven, (N,)."""
    re = tl.sum(vr * driven[None, :], 1)
    if PAIRS:
        return re, tl.sum(vi * driven[None, :], 1)
    else:
        return re, re


@triton.jit
def adjoint_kernel(
    grad, u, dt, z, A, Bm, Cm, D, bias, start, reset, override, kept,
    du, ddt, dz, dA, dB, dC, dD, dh0,
    T, E, N, blocks, chunks, length, group_blocks, per_group,
    g_row, g_step, u_row, u_step, dt_row, dt_step, z_row, z_step,
    B_row, B_step, B_group, C_row, C_step, C_group,
    SOFTPLUS: tl.constexpr, SIGNED: tl.constexpr, PAIRS: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr, SUB: tl.constexpr, EVERY: tl.constexpr,
):  # fmt: skip
    """Run each chunk backwards from the message start (B, chunks, E, N)."""
    block, chunk, row, first, end = place(blocks, chunks, length, T)
    group, e, e_end = channels(block, group_blocks, per_group, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    dtype: tl.constexpr = start.dtype.element_ty
    GIVEN: tl.constexpr = override is not None
    Ar, Ai = load_state(A, 0, n, e, N, E, e_end, PAIRS)
    fixed = load_fixed(override, n, N, dtype)
    part = row * chunks + chunk
    mr, mi = load_state(start, part, n, e, N, E, e_end, PAIRS)
    zero = tl.zeros((BLOCK_N, BLOCK_E), dtype)
    sum_Ar, sum_Ai = zero, zero
    skip = tl.zeros((BLOCK_E,), dtype)
    sum_D = skip
    if D is not None:
        skip = tl.load(D + e, mask=e < e_end, other=0)
    grad += row * g_row
    u += row * u_row
    dt += row * dt_row
    Bm += row * B_row + group * B_group
    Cm += row * C_row + group * C_group
    if z is not None:
        z += row * z_row
    parts = (T + EVERY - 1) // EVERY
    for s in range(0, end - first, SUB):
        begin = first + (end - first - 1) // SUB * SUB - s
        stop = tl.minimum(begin + SUB, end)
        hr, hi = load_state(kept, row * parts + begin // EVERY, n, e, N, E, e_end, PAIRS)
        # Its loops and this one are not unrolled, and selections stand for an index: else the
        # compiler would hold the numbers of all steps at once, and spill.
        found = _states(
            u, dt, Bm, bias, reset, (Ar, Ai), fixed, hr, hi, begin, stop, row, T, n, e, N, e_end,
            u_step, dt_step, B_step, EVERY, SUB, GIVEN, SOFTPLUS, SIGNED, PAIRS,
        )  # fmt: skip
        for i in range(0, stop - begin):
            t = stop - 1 - i
            pr, pi = found[0], found[1]
            for j in tl.static_range(1, SUB):
                pr, pi = pick(t == begin + j, found[2 * j], found[2 * j + 1], pr, pi, PAIRS)
            here, at = e < e_end, n < N
            x = tl.load(u + t * u_step + e, mask=here, other=0).to(dtype)
            raw, d = load_steps(dt + t * dt_step, bias, e, here, SOFTPLUS)
            cut = flag(reset, row * T + t, t >= 0)
            ar, ai = decays(d, Ar, Ai, fixed, GIVEN, SIGNED, PAIRS)
            cell = (row * T + t) * E
            Br, Bi = load(Bm + t * B_step, n, at, PAIRS, dtype)
            Cr, Ci = load(Cm + t * C_step, n, at, PAIRS, dtype)
            _, _, hr, hi = advance(pr, pi, ar, ai, d * x, Br, Bi, cut, False, PAIRS)
            g = tl.load(grad + t * g_step + e, mask=here, other=0).to(dtype)
            gate = g
            if z is not None:
                gate = tl.load(z + t * z_step + e, mask=here, other=0).to(dtype)
                out = read_out(hr, hi, Cr, Ci, PAIRS) + skip * x
                s_z = sigmoid(gate)
                slope = g * out * s_z * (1.0 + gate * (1.0 - s_z))
                tl.store(dz + cell + e, slope.to(dz.dtype.element_ty), mask=here)
            g, scaled = _gated(g, gate, PAIRS, z is not None)
            vr, vi = _outer(scaled, Cr, Ci, PAIRS)
            vr, vi = plus(vr, vi, mr, mi, PAIRS)
            cr, ci = _add_channels(hr, -hi, scaled, PAIRS)
            br, bi = _add_channels(vr, vi, d * x, PAIRS)
            of_n = ((row * blocks + block) * T + t) * N * (2 if PAIRS else 1)
            store(dC + of_n, n, cr, ci, at, PAIRS)
            store(dB + of_n, n, br, bi, at, PAIRS)
            lr, li = _dlog(vr, vi, pr, pi, ar, ai, fixed, GIVEN, SIGNED, PAIRS)
            driven = _real_sum(vr, vi, Br[:, None], Bi[:, None], PAIRS)
            slope = _real_sum(lr, li, Ar, Ai, PAIRS) + driven * x
            if SOFTPLUS:
                slope = tl.where(raw > 20.0, slope, slope * sigmoid(raw))
            tl.store(ddt + cell + e, slope, mask=here)
            through = driven * d + skip * g
            tl.store(du + cell + e, through.to(du.dtype.element_ty), mask=here)
            sum_D += g * x
            sum_Ar, sum_Ai = plus(lr * d[None, :], li * d[None, :], sum_Ar, sum_Ai, PAIRS)
            mr, mi = times_conj(vr, vi, ar, ai, PAIRS)
            if reset is not None:
                mr, mi = pick(cut, zero, zero, mr, mi, PAIRS)
    store_state(dA, part, n, e, N, E, e_end, sum_Ar, sum_Ai, PAIRS)
    if D is not None:
        tl.store(dD + part * E + e, sum_D, mask=e < e_end)
    store_state(dh0, row, n, e, N, E, tl.where(chunk == 0, e_end, 0), mr, mi, PAIRS)
