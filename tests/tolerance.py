"""The one table of limits, and the one way to compare with them.

Errors are relative to the largest entry of what is expected. Raising a limit needs a reason in
the changelog.
"""

import math

import torch
from torch import Tensor

GOLDEN_VALUE = 1e-9  # float64, against the authors' arrays
GOLDEN_GRADIENT = 1e-7
ORACLE_FLOAT64 = 1e-10  # against the step-by-step loop
ORACLE_FLOAT32_PER_SQRT_STEP = 2e-6
ORACLE_FLOAT32_MAX = 1e-4
ORACLE_BFLOAT16 = 2e-2  # bfloat16 inputs, float32 state
# Triton's interpreter cuts bfloat16 off, where a GPU rounds to nearest: a whole last bit of 8.
INTERPRETER_BFLOAT16 = 2.0**-7
GRADIENT_FACTOR = 3.0

_WIDTH = {torch.complex128: torch.float64, torch.complex64: torch.float32}


def limit(dtype: torch.dtype, T: int, *, gradient: bool = False) -> float:
    """Return the largest relative error allowed after T steps in `dtype`."""
    match _WIDTH.get(dtype, dtype):
        case torch.float64:
            value = ORACLE_FLOAT64
        case torch.float32:
            value = min(ORACLE_FLOAT32_PER_SQRT_STEP * math.sqrt(max(T, 1)), ORACLE_FLOAT32_MAX)
        case torch.bfloat16:
            value = ORACLE_BFLOAT16
        case other:
            raise ValueError(f"dtype: expected a floating dtype with a limit, got {other}")
    return value * GRADIENT_FACTOR if gradient else value


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return max |actual - expected| / max |expected|, NaN where either holds one.

    The error is absolute where `expected` is all zeros.
    """
    assert actual.shape == expected.shape, (tuple(actual.shape), tuple(expected.shape))
    if actual.numel() == 0:
        return 0.0
    wide = torch.complex128 if actual.is_complex() or expected.is_complex() else torch.float64
    actual, expected = actual.detach().to(wide), expected.detach().to(wide)
    scale = expected.abs().max().item()
    return (actual - expected).abs().max().item() / (scale if scale > 0 else 1.0)


def assert_within(actual: Tensor, expected: Tensor, bound: float) -> None:
    """Fail unless the relative error is at most `bound`; NaN fails."""
    error = relative_error(actual, expected)
    assert error <= bound, f"relative error {error:.3g} is over {bound:.3g}"


def assert_close(
    actual: Tensor, expected: Tensor, dtype: torch.dtype, T: int, *, gradient: bool = False
) -> None:
    """Compare with the limit of the table for a computation of T steps done in `dtype`."""
    assert_within(actual, expected, limit(dtype, T, gradient=gradient))
