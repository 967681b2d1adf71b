"""The Triton kernels of the discounted scan: one tile of time, and several, against the loop."""

import pytest
import torch
from torch import Tensor

from statewise.kernels import discounted_scan
from statewise.kernels.discounted_scan import triton as backend
from tests.tolerance import assert_close

DOUBLE = torch.float64
INPUTS = ("x", "discount", "last")
# Numpy, which the interpreter computes with, tells what these tests are about.
not_finite = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


@pytest.fixture
def tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Go over time in tiles of four steps."""
    monkeypatch.setattr(backend, "TILE", 4)


def _inputs(B: int, T: int, dtype: torch.dtype = DOUBLE) -> list[Tensor]:
    """Draw x, discount with one in four exactly 0 or negative, and last."""
    discount = 1.2 * torch.rand(B, T, dtype=DOUBLE) - 0.1
    discount[torch.rand(B, T) < 0.25] = 0.0
    x, last = torch.randn(B, T, dtype=DOUBLE), torch.randn(B, dtype=DOUBLE)
    return [x.to(dtype), discount.to(dtype), last.to(dtype)]


def _results(values: list[Tensor], backend: str) -> dict[str, Tensor]:
    """Return y and the gradients of a loss that weighs its steps."""
    leaves = [value.detach().clone().requires_grad_() for value in values]
    y = discounted_scan(leaves[0], leaves[1], last=leaves[2], backend=backend)
    draw = torch.Generator().manual_seed(3)
    weights = torch.randn(y.shape, generator=draw, dtype=DOUBLE).to(y.dtype)
    gradients = torch.autograd.grad((y * weights).sum(), leaves)
    return {"y": y} | dict(zip(INPUTS, gradients, strict=True))


def _compare(values: list[Tensor], dtype: torch.dtype = DOUBLE) -> None:
    actual = _results(values, "triton")
    expected = _results([value.double() for value in values], "reference")
    for name, value in expected.items():
        assert actual[name].dtype == dtype
        assert_close(actual[name], value, dtype, values[0].shape[1], gradient=name != "y")


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 9), (1, 16)], ids=str)
def test_one_tile_equals_the_loop(shape):
    _compare(_inputs(*shape))


@pytest.mark.parametrize("shape", [(2, 3), (1, 4), (3, 5), (2, 8), (2, 13)], ids=str)
@pytest.mark.usefixtures("tiled")
def test_tiles_of_time_equal_the_loop(shape):
    _compare(_inputs(*shape))


@pytest.mark.usefixtures("tiled")
def test_float32_stays_within_the_limit():
    _compare(_inputs(2, 11, torch.float32), torch.float32)


@not_finite
@pytest.mark.parametrize("at", [0, 2, 3, 5])
@pytest.mark.usefixtures("tiled")
def test_what_is_not_finite_does_not_pass_a_cut(at):
    x, discount, last = _inputs(2, 7)
    discount[:, at] = 0.0
    x[0, at + 1], x[1, at + 1 :], last[1] = float("inf"), float("nan"), float("nan")
    actual = _results([x, discount, last], "triton")
    assert not actual["y"][:, at + 1].isfinite().any()
    expected = _results([x, discount, last], "reference")
    for name in ("y", "x", "discount"):
        kept = expected[name][:, : at + 1]
        assert kept.isfinite().all()
        assert_close(actual[name][:, : at + 1], kept, DOUBLE, 7, gradient=name != "y")
    y = discounted_scan(x.requires_grad_(), discount, last=last, backend="triton")
    (gradient,) = torch.autograd.grad(y[:, : at + 1].sum(), x)
    assert (gradient[:, at + 1 :] == 0).all()
    assert gradient.isfinite().all()


@not_finite
@pytest.mark.usefixtures("tiled")
def test_a_cotangent_that_is_not_finite_does_not_pass_a_cut():
    # The adjoint runs forwards: what lies before the cut must not reach what lies behind it.
    x, discount, last = _inputs(1, 7)
    discount[:, 2] = 0.0
    leaves = [value.requires_grad_() for value in (x, discount, last)]
    y = discounted_scan(x, discount, last=last, backend="triton")
    cotangent = torch.ones_like(y)
    cotangent[:, 1] = float("inf")
    dx, ddiscount, dlast = torch.autograd.grad(y, leaves, cotangent)
    assert not dx[:, 1].isfinite().any()
    for gradient in (dx[:, 3:], ddiscount[:, 3:], dlast):
        assert gradient.isfinite().all()


@not_finite
def test_an_underflow_of_the_discounts_is_no_cut():
    # 2^-60 to the power of 18 is 0 in double precision, but no discount is: infinity passes.
    x, discount = torch.zeros(1, 32, dtype=DOUBLE), torch.full((1, 32), 2.0**-60, dtype=DOUBLE)
    x[:, -1] = float("inf")
    expected = discounted_scan(x, discount, backend="reference")
    assert expected.isinf().all()
    assert not discounted_scan(x, discount, backend="triton").isfinite().any()


def test_rows_of_any_stride_are_read_as_they_are():
    x, discount, last = _inputs(6, 5)
    _, other, _ = _inputs(5, 6)
    views = [x[::2], discount[:1].expand(3, -1), last[::2]]
    assert_close(discounted_scan(views[0], views[1], last=views[2], backend="triton"),
                 discounted_scan(views[0], views[1], last=views[2], backend="reference"),
                 DOUBLE, 5)  # fmt: skip
    flipped = other.t()
    assert_close(discounted_scan(x, flipped, last=last, backend="triton"),
                 discounted_scan(x, flipped, last=last, backend="reference"),
                 DOUBLE, 5)  # fmt: skip


def test_an_expanded_cotangent_is_a_cotangent():
    leaves = [value.requires_grad_() for value in _inputs(2, 3)]
    y = discounted_scan(leaves[0], leaves[1], last=leaves[2], backend="triton")
    expected = discounted_scan(leaves[0], leaves[1], last=leaves[2], backend="reference")
    for actual, value in zip(
        torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(expected.sum(), leaves),
        strict=True,
    ):  # fmt: skip
        assert_close(actual, value, DOUBLE, 3, gradient=True)
