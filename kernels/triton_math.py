"""Functions for Triton kernels: numbers that may be complex, and elementary functions.

A complex number is two tiles, real and imaginary; where PAIRS is off the second one is carried
along unread and compiled away.
"""
# Triton's functions are typed by their launch and its decorator is not typed.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def load(address, offsets, mask, PAIRS: tl.constexpr, dtype: tl.constexpr):
    """Load numbers at `offsets` in units of a number; 0 where masked."""
    if PAIRS:
        both = 2 * offsets[:, None] + tl.arange(0, 2)[None, :]
        values = tl.load(address + both, mask=mask[:, None], other=0).to(dtype)
        re, im = tl.split(values)
        return re, im
    else:
        value = tl.load(address + offsets, mask=mask, other=0).to(dtype)
        return value, value


@triton.jit
def store(address, offsets, re, im, mask, PAIRS: tl.constexpr):
    """Store numbers at `offsets` in units of a number."""
    if PAIRS:
        both = 2 * offsets[:, None] + tl.arange(0, 2)[None, :]
        value = tl.join(re, im).to(address.dtype.element_ty)
        tl.store(address + both, value, mask=mask[:, None])
    else:
        tl.store(address + offsets, re.to(address.dtype.element_ty), mask=mask)


@triton.jit
def times(ar, ai, br, bi, PAIRS: tl.constexpr):
    """Return a b."""
    if PAIRS:
        return ar * br - ai * bi, ar * bi + ai * br
    else:
        return ar * br, bi


@triton.jit
def times_conj(ar, ai, br, bi, PAIRS: tl.constexpr):
    """Return a conj(b)."""
    if PAIRS:
        return ar * br + ai * bi, ai * br - ar * bi
    else:
        return ar * br, bi


@triton.jit
def plus(ar, ai, br, bi, PAIRS: tl.constexpr):
    """Return a + b."""
    if PAIRS:
        return ar + br, ai + bi
    else:
        return ar + br, bi


@triton.jit
def pick(flag, ar, ai, br, bi, PAIRS: tl.constexpr):
    """Return a where the flag is set, else b."""
    if PAIRS:
        return tl.where(flag, ar, br), tl.where(flag, ai, bi)
    else:
        return tl.where(flag, ar, br), bi


@triton.jit
def exponential(x):
    """Return exp(x) by the base-2 instruction of the device."""
    return tl.exp2(x * LOG2E)


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + exp(-x)) without overflow."""
    e = exponential(-tl.abs(x))
    return tl.where(x < 0, e, 1.0) / (1.0 + e)


@triton.jit
def softplus(x):
    """Return log(1 + exp(x)), x itself above torch's threshold of 20.

    log(1 + e) = 2 atanh(e / (2 + e)) as a series, since 1 + e would lose the digits of a small e.
    """
    # Terms until (1/3)^(2k) is below the precision.
    TERMS: tl.constexpr = 18 if x.dtype == tl.float64 else 9
    e = exponential(-tl.abs(x))
    s = e / (2.0 + e)
    q = s * s
    p = q * 0.0 + 1.0 / (2 * TERMS + 1)
    for k in tl.static_range(TERMS):
        p = p * q + 1.0 / (2 * (TERMS - 1 - k) + 1)
    return tl.where(x > 20.0, x, tl.maximum(x, 0.0) + 2.0 * s * p)


@triton.jit
def cos_sin(x):
    """Return cos(x) and sin(x) for |x| up to about 1e4, without the stack that libdevice's need.

    Subtracts multiples of pi/2 in three (two) parts that are exact products, then sums the series.
    """
    k = tl.floor(x * 0.6366197723675814 + 0.5)
    if x.dtype == tl.float64:
        TERMS: tl.constexpr = 9
        r = x - k * 1.57079632673412561417
        r = r - k * 6.07710050650619224932e-11
    else:
        TERMS: tl.constexpr = 5
        r = x - k * 1.5703125
        r = r - k * 4.837512969970703125e-4
        r = r - k * 7.54978995489188216e-8
    q = r * r
    s = q * 0.0 + 1.0
    c = s
    for i in tl.static_range(TERMS):
        # A name would turn the factor into a float32 number.
        s = 1.0 - q * s * (1.0 / (2 * (TERMS - i) * (2 * (TERMS - i) + 1)))
        c = 1.0 - q * c * (1.0 / (2 * (TERMS - i) * (2 * (TERMS - i) - 1)))
    s = s * r
    quadrant = k.to(tl.int32) & 3
    swapped = (quadrant & 1) == 1
    cosine = tl.where(swapped, s, c)
    sine = tl.where(swapped, c, s)
    cosine = tl.where((quadrant == 1) | (quadrant == 2), -cosine, cosine)
    return cosine, tl.where(quadrant >= 2, -sine, sine)
