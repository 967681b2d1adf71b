"""Triton kernels of the causal convolution, forward and adjoint.

One program owns a block of channels of one batch row and one chunk of time; nothing is carried
from chunk to chunk. What UNROLL steps need is loaded before the first of them is used, the W - 1
inputs before them and, for the adjoint, the W - 1 steps behind them included: those come from
the cache.

Inputs are counted in time: x_s for s >= 0, and s = -1 is the most recent entry of the state. With
g the gradient of what is under the activation, and tap j only if no reset lies in between,

    dx_s = sum_j w_{W-1-j} g_{s+j} + the gradient of the next state's entry of s
    dw_{W-1-j} = sum_t g_t x_{t-j},    dbias = sum_t g_t

where dx_s of s < 0 is the gradient of the state.
"""
# Triton's functions are typed by their launch and its decorator is not typed.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

from statewise.kernels.linear_scan.triton_kernels import flag, place
from statewise.kernels.triton_math import sigmoid


@triton.jit
def taps(w, e, E, W: tl.constexpr):
    """Return the W taps of the channels e as a tuple of [BLOCK]."""
    loaded = ()
    for j in tl.static_range(W):
        loaded = loaded + (tl.load(w + e * W + j, mask=e < E, other=0),)  # noqa: RUF005
    return loaded


@triton.jit
def read(
    x, state, reset, row, s, e, T, E, x_step,
    W: tl.constexpr, EARLY: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Return the input of time s and whether s is a reset; s may be before 0 if EARLY.

    x and state begin at the row. Outside of both it is 0 and no reset.
    """
    inside = (s >= 0) & (s < T)
    value = tl.load(x + s * x_step + e, mask=e < tl.where(inside, E, 0), other=0).to(dtype)
    if EARLY:
        before = e < tl.where((s < 0) & (s > -W), E, 0)
        value += tl.load(state + e * (W - 1) + W - 1 + s, mask=before, other=0)
    return value, flag(reset, tl.maximum(row * T + s, 0), inside)


@triton.jit
def under(xs, cuts, ws, bias, at: tl.constexpr, W: tl.constexpr):
    """Return the convolution at position `at` of the inputs xs, no further back than a reset."""
    total = bias + xs[at] * ws[W - 1]
    cut = cuts[at]
    for j in tl.static_range(1, W):
        total += tl.where(cut, 0, xs[at - j]) * ws[W - 1 - j]
        cut = cut | cuts[at - j]
    return total


@triton.jit
def conv_kernel(
    x, w, bias, state, reset, y, after, T, E, blocks, chunks, length, x_row, x_step,
    W: tl.constexpr, SILU: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Write y (B, T, E) and, by the last chunk, the next state (B, E, W - 1)."""
    block, chunk, row, first, end = place(blocks, chunks, length, T)
    dtype: tl.constexpr = state.dtype.element_ty
    e = block * BLOCK + tl.arange(0, BLOCK)
    ws = taps(w, e, E, W)
    b = tl.zeros((BLOCK,), dtype)
    if bias is not None:
        b = tl.load(bias + e, mask=e < E, other=0)
    x += row * x_row
    state += row * E * (W - 1)
    for t0 in range(first, end, UNROLL):
        xs, cuts = (), ()
        for k in tl.static_range(UNROLL + W - 1):
            s = t0 - (W - 1) + k
            value, cut = read(x, state, reset, row, s, e, T, E, x_step, W, k < W - 1, dtype)
            xs, cuts = xs + (value,), cuts + (cut,)  # noqa: RUF005
        for i in tl.static_range(UNROLL):
            out = under(xs, cuts, ws, b, i + W - 1, W)
            if SILU:
                out = out * sigmoid(out)
            here = e < tl.where(t0 + i < end, E, 0)
            tl.store(y + (row * T + t0 + i) * E + e, out.to(y.dtype.element_ty), mask=here)
    lost = row < 0
    for i in tl.static_range(W - 1):
        value, cut = read(x, state, reset, row, T - 1 - i, e, T, E, x_step, W, True, dtype)
        here = e < tl.where(chunk == chunks - 1, E, 0)
        tl.store(after + (row * E + e) * (W - 1) + W - 2 - i, tl.where(lost, 0, value), mask=here)
        lost = lost | cut


@triton.jit
def adjoint_kernel(
    grad, grad_after, x, w, bias, state, reset, dx, dstate, sums,
    T, E, blocks, chunks, length, grad_row, grad_step, x_row, x_step,
    W: tl.constexpr, SILU: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Write dx, dstate and the sums (B, chunks, W + 1, E) of each chunk: of dw's taps, of dbias."""
    block, chunk, row, first, end = place(blocks, chunks, length, T)
    dtype: tl.constexpr = state.dtype.element_ty
    e = block * BLOCK + tl.arange(0, BLOCK)
    ws = taps(w, e, E, W)
    zero = tl.zeros((BLOCK,), dtype)
    b = zero
    if bias is not None:
        b = tl.load(bias + e, mask=e < E, other=0)
    totals = ()
    for _ in tl.static_range(W + 1):
        totals = totals + (zero,)  # noqa: RUF005
    x += row * x_row
    grad += row * grad_row
    state += row * E * (W - 1)
    # The first chunk begins with the entries of the state.
    for t0 in range(tl.where(chunk == 0, 1 - W, first), end, UNROLL):
        xs, cuts, gs = (), (), ()
        for k in tl.static_range(UNROLL + 2 * W - 2):
            s = t0 - (W - 1) + k
            value, cut = read(x, state, reset, row, s, e, T, E, x_step, W, k < 2 * W - 2, dtype)
            xs, cuts = xs + (value,), cuts + (cut,)  # noqa: RUF005
        for k in tl.static_range(UNROLL + W - 1):
            inside = (t0 + k >= 0) & (t0 + k < T)
            here = e < tl.where(inside, E, 0)
            g = tl.load(grad + (t0 + k) * grad_step + e, mask=here, other=0).to(dtype)
            if SILU:
                pre = under(xs, cuts, ws, b, k + W - 1, W)
                share = sigmoid(pre)
                g = tl.where(inside, g * share * (1 + pre * (1 - share)), 0)
            gs = gs + (g,)  # noqa: RUF005
        for i in tl.static_range(UNROLL):
            s = t0 + i
            out = gs[i] * ws[W - 1]
            cut = row < 0
            for j in tl.static_range(1, W):
                cut = cut | cuts[W - 1 + i + j]
                out += tl.where(cut, 0, gs[i + j]) * ws[W - 1 - j]
            if W > 1:
                entry = W - 1 + s - T
                kept = e < tl.where((entry >= 0) & (s < T), E, 0)
                at = (row * E + e) * (W - 1)
                out += tl.where(cut, 0, tl.load(grad_after + at + entry, mask=kept, other=0))
                if i < W - 1:
                    tl.store(dstate + at + W - 1 + s, out, mask=e < tl.where(s < 0, E, 0))
            here = e < tl.where((s >= 0) & (s < end), E, 0)
            tl.store(dx + (row * T + s) * E + e, out.to(dx.dtype.element_ty), mask=here)
            other = (s < first) | (s >= end)  # belongs to another chunk, or to none
            added = ()
            for j in tl.static_range(W):
                added = added + (tl.where(other, 0, gs[i] * xs[W - 1 + i - j]),)  # noqa: RUF005
                other = other | cuts[W - 1 + i - j]
            added = added + (tl.where((s < first) | (s >= end), 0, gs[i]),)  # noqa: RUF005
            summed = ()
            for j in tl.static_range(W + 1):
                summed = summed + (totals[j] + added[j],)  # noqa: RUF005
            totals = summed
    for j in tl.static_range(W + 1):
        at = ((row * chunks + chunk) * (W + 1) + j) * E + e
        tl.store(sums + at, totals[j], mask=e < E)
