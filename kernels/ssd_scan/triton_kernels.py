"""Triton kernels of the scan of Mamba-2 (SSD), forward and adjoint, as products of matrices.

A chunk has Q steps. With cs the sums of the log-decays dt A inside it, u = dt x, and pairs (i, j)
of steps without a reset in (j, i], a chunk reads its start H (P, N) and hands on the next one:

    y_i = sum_{j <= i} (C_i . B_j) exp(cs_i - cs_j) u_j + exp(cs_i) H C_i [no reset up to i]
    H'  = sum_j exp(cs_Q - cs_j) u_j B_j^T [no reset behind j] + exp(cs_Q) H [no reset]

`clock_kernel` makes cs, `state_kernel` the sums of H' for every chunk at once, `pass_kernel` scans
over the chunks. Then y is one of four results of the same form, those of step r over steps c:

    out_r = sum_c (q_r . k_c) exp(-|cs_r - cs_c|) v_c + weight_r q_r S

    y:  q = C, k = B, v = u, S = H^T, c <= r       dC: q = g, k = u, v = B, S = H, c <= r
    du: q = B, k = C, v = g, S = M^T, c >= r       dB: q = u, k = g, v = C, S = M, c >= r

where g is the gradient of y, M that of H', which the same kernels carry from chunk to chunk
backwards. `decay_kernel` collects the gradient of dt A from sums that the others leave.

Resets are masks between pairs and never enter cs. A broken step (not finite) is taken out of a
product before it, where its weight of 0 would be a NaN, and the rows that it reaches are made NaN.
The sums cs are doubles: so the decay between two near steps is exact, however far both have come
since the start of the chunk.
"""
# Triton's functions are typed by their launch and its decorator is not typed.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

from statewise.kernels.triton_math import exponential


@triton.jit
def place(chunks, heads, blocks):
    """Return block, head, chunk and row of this program.

    All but the block in 64 bits, since offsets are made of them. Offsets within a chunk have 32:
    they are held for every number of a tile, and registers are scarce.
    """
    program = tl.program_id(0).to(tl.int64)
    rest = program // blocks
    block = (program % blocks).to(tl.int32)
    return block, rest % heads, rest // heads % chunks, rest // heads // chunks


@triton.jit
def product(a, b, sum, PRECISION: tl.constexpr):
    """Return a b + sum."""
    if a.dtype == tl.float64:
        return tl.dot(a, b, sum, out_dtype=tl.float64)
    else:
        return tl.dot(a, b, sum, input_precision=PRECISION)


@triton.jit
def rows(address, t, T, p, P, step, dtype: tl.constexpr):
    """Load [steps, entries] of steps t and entries p; 0 outside."""
    mask = (t < T)[:, None] & (p < P)[None, :]
    return tl.load(address + t[:, None] * step + p[None, :], mask=mask, other=0).to(dtype)


@triton.jit
def store_rows(address, t, T, p, P, step, value):
    """Store [steps, entries] of steps t and entries p."""
    mask = (t < T)[:, None] & (p < P)[None, :]
    value = value.to(address.dtype.element_ty)
    tl.store(address + t[:, None] * step + p[None, :], value, mask=mask)


@triton.jit
def driven(address, dt, t, T, p, P, step, dt_step, SCALED: tl.constexpr, dtype: tl.constexpr):
    """Load rows, times dt where SCALED."""
    value = rows(address, t, T, p, P, step, dtype)
    if SCALED:
        value = value * tl.load(dt + t * dt_step, mask=t < T, other=0).to(dtype)[:, None]
    return value


@triton.jit
def finite(x):
    """Return whether each number is neither NaN nor infinite."""
    return tl.abs(x) < float("inf")


@triton.jit
def any_of(x, axis: tl.constexpr):
    """Return whether any flag along an axis is set."""
    return tl.max(x.to(tl.int32), axis) != 0


@triton.jit
def two_parts(sums, t, dtype: tl.constexpr):
    """Load doubles as the sum of two numbers of the dtype."""
    value = tl.load(sums + t)
    high = value.to(dtype)
    return high, (value - high.to(tl.float64)).to(dtype)


@triton.jit
def clock_kernel(
    dt, A, reset, sums, segments, T, heads, chunks, dt_row, dt_step, Q: tl.constexpr
):  # fmt: skip
    """Write cs (B, heads, chunks Q), double, and the resets so far in each chunk (B, chunks Q).

    A broken dt counts as 0: it reaches later steps through dt x.
    """
    _, head, chunk, row = place(chunks, heads, 1)
    t = chunk * Q + tl.arange(0, Q)
    a = tl.load(A + head)
    d = tl.load(dt + row * dt_row + t * dt_step + head, mask=t < T, other=0).to(a.dtype)
    log = tl.where(finite(d), d, 0) * a
    tl.store(sums + (row * heads + head) * chunks * Q + t, tl.cumsum(log.to(tl.float64), 0))
    cuts = tl.zeros((Q,), tl.int32)
    if reset is not None:
        cuts = tl.load(reset + row * T + t, mask=t < T, other=0).to(tl.int32)
    tl.store(
        segments + row * chunks * Q + t, tl.cumsum(cuts, 0), mask=t < tl.where(head == 0, t + 1, 0)
    )


@triton.jit
def state_kernel(
    v, m, dt, sums, segments, states, T, P, N, heads, group, chunks, p_blocks, n_blocks,
    v_row, v_step, m_row, m_step, dt_row, dt_step,
    ADJOINT: tl.constexpr, Q: tl.constexpr, INNER: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the states (B, chunks, heads, P, N) that chunks make from 0; v is x and m is B.

    The adjoint writes sum_i exp(cs_i) g_i C_i^T; v is then g and m is C.
    """
    block, head, chunk, row = place(chunks, heads, p_blocks * n_blocks)
    dtype: tl.constexpr = states.dtype.element_ty
    p = block // n_blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    n = block % n_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    v += row * v_row + chunk * Q * v_step + head * P
    m += row * m_row + chunk * Q * m_step + head // group * N
    dt += row * dt_row + chunk * Q * dt_step + head
    sums += ((row * heads + head) * chunks + chunk) * Q
    segments += (row * chunks + chunk) * Q
    left = (T - chunk * Q).to(tl.int32)
    made = tl.zeros((BLOCK_P, BLOCK_N), dtype)
    for first in range(0, Q, INNER):
        t = first + tl.arange(0, INNER)
        segment = tl.load(segments + t)
        cs = tl.load(sums + t)
        if ADJOINT:
            seen = segment == 0
            weight = exponential(cs.to(dtype))
        else:
            seen = segment == tl.load(segments + Q - 1)
            weight = exponential((tl.load(sums + Q - 1) - cs).to(dtype))
        v_tile = driven(v, dt, t, left, p, P, v_step, dt_step, not ADJOINT, dtype)
        v_tile = tl.where(seen[:, None], v_tile * weight[:, None], 0)
        m_tile = tl.where(seen[:, None], rows(m, t, left, n, N, m_step, dtype), 0)
        made = product(tl.trans(v_tile), m_tile, made, PRECISION)
    states += ((row * chunks + chunk) * heads + head) * P * N
    mask = (p < P)[:, None] & (n < N)[None, :]
    tl.store(states + p[:, None] * N + n[None, :], made, mask=mask)


@triton.jit
def pass_kernel(
    start, states, sums, segments, last, heads, chunks, W, blocks,
    ADJOINT: tl.constexpr, Q: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Replace what each chunk makes by what it finds, from start (B, heads, W) on; write last.

    The adjoint goes from the last chunk to the first.
    """
    block, head, _, row = place(1, heads, blocks)
    w = block * BLOCK + tl.arange(0, BLOCK)
    h = tl.load(start + (row * heads + head) * W + w, mask=w < W, other=0)
    for k in range(chunks):
        chunk = chunks - 1 - k if ADJOINT else k
        at = ((row * chunks + chunk) * heads + head) * W
        made = tl.load(states + at + w, mask=w < W, other=0)
        tl.store(states + at + w, h, mask=w < W)
        end = chunk * Q + Q - 1
        factor = exponential(tl.load(sums + (row * heads + head) * chunks * Q + end).to(h.dtype))
        cut = tl.load(segments + row * chunks * Q + end) > 0
        h = tl.where(cut, 0, factor * h) + made
    tl.store(last + (row * heads + head) * W + w, h, mask=w < W)


@triton.jit
def attend(
    q, k, v, dt, s, sums, segments, T, K, m, M,
    q_step, k_step, v_step, dt_step, s_k, s_m,
    REVERSED: tl.constexpr, SCALED: tl.constexpr, Q: tl.constexpr, INNER: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """Return the parts of out_r (see above): of c other than r, of the start S, and of c = r.

    Args:
        q: rows of K numbers, as k; v has rows of M numbers. All point at the chunk's first step.
        k: see q.
        v: see q.
        dt: multiplies the one of q, k, v that SCALED names, or none.
        s: the state of this chunk and head, entry (k, m) at k s_k + m s_m.
        sums: cs of this chunk.
        segments: resets so far in this chunk.
        T: steps there are from its first one on.
        K: see q.
        m: entries [BLOCK] of M wanted.
        M: see q.
        q_step: strides of the steps; so are k_step, v_step, dt_step.
        k_step: see q_step.
        v_step: see q_step.
        dt_step: see q_step.
        s_k: see s.
        s_m: see s.
        REVERSED: c >= r instead of c <= r.
        SCALED: "q", "k", "v" or "".
        Q: steps of a chunk.
        INNER: size of the blocks of c and of K, over which is summed.
        BLOCK: size of m.
        PRECISION: of the products.
        dtype: of the sums.
    """
    r = tl.arange(0, Q)
    high, low = two_parts(sums, r, dtype)
    segment = tl.load(segments + r)
    state = tl.zeros((Q, BLOCK), dtype)
    same = tl.zeros((Q,), dtype)
    for first in range(0, K, INNER):
        n = first + tl.arange(0, INNER)
        q_tile = driven(q, dt, r, T, n, K, q_step, dt_step, SCALED == "q", dtype)
        k_tile = driven(k, dt, r, T, n, K, k_step, dt_step, SCALED == "k", dtype)
        same += tl.sum(q_tile * k_tile, 1)
        inside = (n < K)[:, None] & (m < M)[None, :]
        s_tile = tl.load(s + n[:, None] * s_k + m[None, :] * s_m, mask=inside, other=0)
        state = product(q_tile, s_tile, state, PRECISION)
    if REVERSED:
        weight = exponential((tl.load(sums + Q - 1) - tl.load(sums + r)).to(dtype))
        reads = segment == tl.load(segments + Q - 1)
    else:
        weight = exponential(high)
        reads = segment == 0
    state = tl.where(reads[:, None], weight[:, None] * state, 0)
    out = tl.zeros((Q, BLOCK), dtype)
    reached = tl.zeros((Q,), tl.int32)
    for first_c in range(0, Q, INNER):
        c = first_c + tl.arange(0, INNER)
        scores = tl.zeros((Q, INNER), dtype)
        for first in range(0, K, INNER):
            n = first + tl.arange(0, INNER)
            q_tile = driven(q, dt, r, T, n, K, q_step, dt_step, SCALED == "q", dtype)
            k_tile = driven(k, dt, c, T, n, K, k_step, dt_step, SCALED == "k", dtype)
            scores = product(q_tile, tl.trans(k_tile), scores, PRECISION)
        high_c, low_c = two_parts(sums, c, dtype)
        log = (high[:, None] - high_c[None, :]) + (low[:, None] - low_c[None, :])
        seen = segment[:, None] == tl.load(segments + c)[None, :]
        if REVERSED:
            seen = seen & (c[None, :] > r[:, None])
            log = -log
        else:
            seen = seen & (c[None, :] < r[:, None])
        # Masked before exp: behind the mask it could overflow.
        decay = exponential(tl.where(seen, log, float("-inf")))
        v_tile = driven(v, dt, c, T, m, M, v_step, dt_step, SCALED == "v", dtype)
        whole = finite(v_tile)
        scores = tl.where(seen, scores * decay, 0)
        out = product(scores, tl.where(whole, v_tile, 0), out, PRECISION)
        broken = any_of(~whole, 1)
        reached = reached | any_of(seen & broken[None, :], 1).to(tl.int32)
    return tl.where((reached != 0)[:, None], float("nan"), out), state, same


@triton.jit
def output_kernel(
    x, B, C, dt, D, sums, segments, states, y, T, P, N, heads, group, chunks, p_blocks,
    x_row, x_step, B_row, B_step, C_row, C_step, dt_row, dt_step,
    Q: tl.constexpr, INNER: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write y (B, T, heads, P) from the state that every chunk finds; D is (heads, P) or None."""
    block, head, chunk, row = place(chunks, heads, p_blocks)
    dtype: tl.constexpr = states.dtype.element_ty
    p = block * BLOCK + tl.arange(0, BLOCK)
    r = tl.arange(0, Q)
    first = chunk * Q
    left = (T - first).to(tl.int32)
    x += row * x_row + first * x_step + head * P
    B += row * B_row + first * B_step + head // group * N
    C += row * C_row + first * C_step + head // group * N
    dt += row * dt_row + first * dt_step + head
    near, far, same = attend(
        C, B, x, dt, states + ((row * chunks + chunk) * heads + head) * P * N,
        sums + ((row * heads + head) * chunks + chunk) * Q, segments + (row * chunks + chunk) * Q,
        left, N, p, P, C_step, B_step, x_step, dt_step, 1, N, False, "v", Q, INNER, BLOCK,
        PRECISION, dtype,
    )  # fmt: skip
    out = near + far + same[:, None] * driven(x, dt, r, left, p, P, x_step, dt_step, True, dtype)
    if D is not None:
        skip = tl.load(D + head * P + p, mask=p < P, other=0)
        out += skip[None, :] * rows(x, r, left, p, P, x_step, dtype)
    store_rows(y + ((row * T + first) * heads + head) * P, r, left, p, P, heads * P, out)


@triton.jit
def input_kernel(
    grad, x, B, C, dt, D, sums, segments, messages, dx, dD, dots,
    T, P, N, heads, group, chunks, p_blocks,
    grad_row, grad_step, x_row, x_step, B_row, B_step, C_row, C_step, dt_row, dt_step,
    Q: tl.constexpr, INNER: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write dx from the gradient of the state that every chunk hands on.

    dD: (B, chunks, heads, P), sums over the steps of a chunk, or None.
    dots: (B, T, heads, p_blocks), x . du of each block.
    """
    block, head, chunk, row = place(chunks, heads, p_blocks)
    dtype: tl.constexpr = messages.dtype.element_ty
    p = block * BLOCK + tl.arange(0, BLOCK)
    r = tl.arange(0, Q)
    first = chunk * Q
    left = (T - first).to(tl.int32)
    at = (row * chunks + chunk) * heads + head
    grad += row * grad_row + first * grad_step + head * P
    x += row * x_row + first * x_step + head * P
    B += row * B_row + first * B_step + head // group * N
    C += row * C_row + first * C_step + head // group * N
    dt += row * dt_row + first * dt_step + head
    near, far, same = attend(
        B, C, grad, dt, messages + at * P * N, sums + ((row * heads + head) * chunks + chunk) * Q,
        segments + (row * chunks + chunk) * Q, left, N, p, P, B_step, C_step, grad_step, dt_step,
        1, N, True, "", Q, INNER, BLOCK, PRECISION, dtype,
    )  # fmt: skip
    g = rows(grad, r, left, p, P, grad_step, dtype)
    du = near + far + same[:, None] * g
    value = rows(x, r, left, p, P, x_step, dtype)
    part = ((row * T + first + r) * heads + head) * p_blocks + block
    tl.store(dots + part, tl.sum(value * du, 1), mask=r < left)
    out = tl.load(dt + r * dt_step, mask=r < left, other=0).to(dtype)[:, None] * du
    if D is not None:
        out += tl.load(D + head * P + p, mask=p < P, other=0)[None, :] * g
        tl.store(dD + at * P + p, tl.sum(g * value, 0), mask=p < P)
    store_rows(dx + ((row * T + first) * heads + head) * P, r, left, p, P, heads * P, out)


@triton.jit
def mixing_kernel(
    q, k, v, m, dt, sums, segments, states, dm, near_dots, far_dots,
    T, P, N, heads, group, chunks, n_blocks,
    q_row, q_step, k_row, k_step, v_row, v_step, m_row, m_step, dt_row, dt_step,
    REVERSED: tl.constexpr, Q: tl.constexpr, INNER: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the gradient dm (B, T, heads, N) of m, which is C or, REVERSED, B.

    For C: q = g, k = x, v = B, with the states that chunks find; for B: q = x, k = g, v = C, with
    the gradients of those states.

    near_dots, far_dots: (B, T, heads, n_blocks), m . dm of what comes from other steps of the
    chunk, and of what comes from its border.
    """
    block, head, chunk, row = place(chunks, heads, n_blocks)
    dtype: tl.constexpr = states.dtype.element_ty
    n = block * BLOCK + tl.arange(0, BLOCK)
    r = tl.arange(0, Q)
    first = chunk * Q
    left = (T - first).to(tl.int32)
    q += row * q_row + first * q_step + head * P
    k += row * k_row + first * k_step + head * P
    v += row * v_row + first * v_step + head // group * N
    m += row * m_row + first * m_step + head // group * N
    dt += row * dt_row + first * dt_step + head
    near, far, same = attend(
        q, k, v, dt, states + ((row * chunks + chunk) * heads + head) * P * N,
        sums + ((row * heads + head) * chunks + chunk) * Q, segments + (row * chunks + chunk) * Q,
        left, P, n, N, q_step, k_step, v_step, dt_step, N, 1, REVERSED, "q" if REVERSED else "k",
        Q, INNER, BLOCK, PRECISION, dtype,
    )  # fmt: skip
    value = rows(m, r, left, n, N, m_step, dtype)
    part = ((row * T + first + r) * heads + head) * n_blocks + block
    tl.store(near_dots + part, tl.sum(value * near, 1), mask=r < left)
    tl.store(far_dots + part, tl.sum(value * far, 1), mask=r < left)
    out = near + far + same[:, None] * rows(v, r, left, n, N, v_step, dtype)
    store_rows(dm + ((row * T + first) * heads + head) * N, r, left, n, N, heads * N, out)


@triton.jit
def total(dots, part, blocks, mask):
    """Return the sum over the blocks."""
    value = tl.load(dots + part * blocks, mask=mask, other=0)
    for block in range(1, blocks):
        value += tl.load(dots + part * blocks + block, mask=mask, other=0)
    return value


@triton.jit
def decay_kernel(
    dt, A, sums, segments, states, messages, dots, near_C, far_C, near_B, far_B, ddt, dA,
    T, W, heads, chunks, p_blocks, n_blocks, dt_row, dt_step,
    Q: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write ddt (B, T, heads) and the sum dA (B, chunks, heads) over the steps of a chunk.

    The log-decay of step k is part of every exp(cs_i - cs_j) with j < k <= i, of exp(cs_i), k <= i,
    of exp(cs_Q - cs_j), j < k, and of exp(cs_Q).
    """
    _, head, chunk, row = place(chunks, heads, 1)
    dtype: tl.constexpr = states.dtype.element_ty
    t = chunk * Q + tl.arange(0, Q)
    at = (row * chunks + chunk) * heads + head
    part = (row * T + t) * heads + head
    on = t < T
    read = total(near_C, part, n_blocks, on) + total(far_C, part, n_blocks, on)
    read -= total(near_B, part, n_blocks, on)
    sent = total(far_B, part, n_blocks, on)
    # Summed per segment by masks, so that a broken one leaves the others alone.
    segment = tl.load(segments + row * chunks * Q + t)
    same = segment[:, None] == segment[None, :]
    log = tl.sum(tl.where(same & (t[:, None] <= t[None, :]), read[None, :], 0), 1)
    log += tl.sum(tl.where(same & (t[:, None] > t[None, :]), sent[None, :], 0), 1)
    both = tl.zeros((BLOCK,), dtype)
    for first in range(0, W, BLOCK):
        w = first + tl.arange(0, BLOCK)
        h = tl.load(states + at * W + w, mask=w < W, other=0)
        both += h * tl.load(messages + at * W + w, mask=w < W, other=0)
    end = chunk * Q + Q - 1
    whole = exponential(tl.load(sums + (row * heads + head) * chunks * Q + end).to(dtype))
    cut = tl.load(segments + row * chunks * Q + end) > 0
    log += tl.where(cut, 0, whole * tl.sum(both, 0))
    tl.store(ddt + part, tl.load(A + head) * log + total(dots, part, p_blocks, on), mask=on)
    d = tl.load(dt + row * dt_row + t * dt_step + head, mask=on, other=0).to(dtype)
    tl.store(dA + at, tl.sum(tl.where(on, d * log, 0), 0))
