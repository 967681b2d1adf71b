"""Triton kernels of the discounted scan, forward and adjoint.

One program owns a row and goes over it in tiles of time, so that loads are of neighbours. A tile
is one associative scan of triples (a, x, c): the maps y -> a y + x, where c says that a cut lies
in it and y is not to be looked at. A product a of 0 would not say so: it may have underflowed.
"""
# Triton's functions are typed by their launch and its decorator is not typed.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def join(a1, x1, c1, a2, x2, c2):
    """Return the map 1 followed by the map 2."""
    return a1 * a2, tl.where(c2 != 0, x2, a2 * x1 + x2), c1 | c2


@triton.jit
def scan_tile(a, x, carry, REVERSE: tl.constexpr):
    """Return y_i = x_i + a_i y_{i-1} over a tile (i + 1 if REVERSE), which begins with carry."""
    cut = (a == 0).to(tl.int32)
    product, y, cut = tl.associative_scan((a, x, cut), 0, join, reverse=REVERSE)
    return tl.where(cut != 0, y, product * carry + y)


@triton.jit
def scan_kernel(x, discount, last, y, T, x_row, discount_row, TILE: tl.constexpr):
    """Run a row from its end: y (B, T), dense, from last (B,)."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, TILE)
    carry = tl.load(last + row)
    x += row * x_row
    discount += row * discount_row
    # Tiles end where the row does, so only the last one looked at is not full.
    for behind in range(0, T, TILE):
        t = T - behind - TILE + i
        here = t >= 0
        d_t = tl.load(discount + t, mask=here, other=0)
        x_t = tl.load(x + t, mask=here, other=0)
        y_t = scan_tile(d_t, x_t, carry, True)
        tl.store(y + row * T + t, y_t, mask=here)
        carry = tl.sum(tl.where(i == 0, y_t, 0), 0)


@triton.jit
def adjoint_kernel(
    grad, discount, y, last, dx, ddiscount, dlast, T, grad_row, discount_row, TILE: tl.constexpr
):
    """Run a row forwards: the adjoint v of y, which is dx, and the other two gradients."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, TILE)
    end = tl.load(last + row)
    carry = tl.zeros_like(end)
    grad += row * grad_row
    discount += row * discount_row
    for t0 in range(0, T, TILE):
        t = t0 + i
        here = t < T
        d_t = tl.load(discount + t, mask=here, other=0)
        d_tm1 = tl.load(discount + t - 1, mask=here & (t > 0), other=0)
        g_t = tl.load(grad + t, mask=here, other=0)
        y_tp1 = tl.load(y + row * T + t + 1, mask=t + 1 < T, other=0)
        y_tp1 = tl.where(t == T - 1, end, y_tp1)
        v_t = scan_tile(d_tm1, g_t, carry, False)
        # As in the loop: what a cut kept out has no part in the gradient either.
        finite = y_tp1 - y_tp1 == 0
        dd_t = tl.where((d_t == 0) & (finite == 0), 0, v_t * y_tp1)
        tl.store(dx + row * T + t, v_t, mask=here)
        tl.store(ddiscount + row * T + t, dd_t, mask=here)
        tl.store(dlast + row + tl.zeros_like(t), tl.where(d_t == 0, 0, d_t * v_t), mask=t == T - 1)
        carry = tl.sum(tl.where(i == TILE - 1, v_t, 0), 0)
