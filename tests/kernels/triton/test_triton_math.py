"""The elementary functions of the Triton kernels, against torch in double precision."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import pytest
import torch
import triton
import triton.language as tl

from statewise.kernels import triton_math
from tests.tolerance import assert_close

SIZE = 1024


@triton.jit
def _apply(x, first, second, SIZE: tl.constexpr, NAME: tl.constexpr):
    at = tl.arange(0, SIZE)
    value = tl.load(x + at)
    if NAME == "cos_sin":
        a, b = triton_math.cos_sin(value)
        tl.store(second + at, b)
    elif NAME == "softplus":
        a = triton_math.softplus(value)
    elif NAME == "sigmoid":
        a = triton_math.sigmoid(value)
    else:
        a = triton_math.exponential(value)
    tl.store(first + at, a)


def _run(name: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = torch.empty_like(x), torch.empty_like(x)
    _apply[(1,)](x, first, second, SIZE=SIZE, NAME=name)
    return first, second


every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@every_dtype
@pytest.mark.parametrize("reach", [1.0, 30.0, 1e4])
def test_cosine_and_sine(dtype, reach):
    x = (reach * torch.linspace(-1, 1, SIZE, dtype=torch.float64)).to(dtype)
    cosine, sine = _run("cos_sin", x)
    assert_close(cosine, x.double().cos(), dtype, 1)
    assert_close(sine, x.double().sin(), dtype, 1)


@every_dtype
@pytest.mark.parametrize("name", ["softplus", "sigmoid"])
def test_smooth_steps_keep_the_digits_of_small_results(dtype, name):
    """Relative to each result, not to the largest, from far below zero to far above."""
    x = torch.linspace(-60, 40, SIZE, dtype=torch.float64).to(dtype)
    actual, _ = _run(name, x)
    wide = x.double()
    exact = torch.log1p(wide.exp()) if name == "softplus" else 1 / (1 + (-wide).exp())
    # exp(x) by a power of two loses digits in proportion to |x|.
    assert_close(actual.double() / exact, torch.ones_like(wide), dtype, 4)


@every_dtype
def test_they_do_not_overflow(dtype):
    ends = torch.full((SIZE,), 1e4, dtype=dtype)
    ends[::2] = -1e4
    softplus, _ = _run("softplus", ends)
    sigmoid, _ = _run("sigmoid", ends)
    assert torch.equal(softplus, ends.clamp_min(0))
    assert torch.equal(sigmoid, (ends > 0).to(dtype))


@every_dtype
def test_the_exponential_of_minus_infinity_is_zero(dtype):
    value, _ = _run("exponential", torch.full((SIZE,), -torch.inf, dtype=dtype))
    assert (value == 0).all()
