"""The discounted scan: hand-worked numbers, every backend against the loop, gradients."""

import pytest
import torch
from torch import Tensor

from statewise.kernels import discounted_scan, linear_scan
from tests.kernels.scan_cases import BACKENDS, FAST_BACKENDS
from tests.tolerance import assert_close

SHAPES = [(1, 1), (3, 2), (2, 3), (1, 7), (3, 64), (2, 65), (5, 127), (2, 1000)]


def _inputs(B: int, T: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Draw x, discount with one in five exactly 0 (an end of an episode), and last."""
    discount = 0.9 + 0.1 * torch.rand(B, T, dtype=torch.float64)
    discount[torch.rand(B, T) < 0.2] = 0.0
    x, last = torch.randn(B, T, dtype=torch.float64), torch.randn(B, dtype=torch.float64)
    return x.to(dtype), discount.to(dtype), last.to(dtype)


def _loop(x: Tensor, discount: Tensor, last: Tensor | None = None) -> Tensor:
    rows = []
    for i in range(x.shape[0]):
        y = x.new_zeros(()) if last is None else last[i]
        row = []
        for t in reversed(range(x.shape[1])):
            y = x[i, t] + discount[i, t] * y
            row.append(y)
        rows.append(torch.stack(row[::-1]))
    return torch.stack(rows)


@pytest.mark.parametrize("backend", BACKENDS)
def test_three_steps_worked_by_hand(backend):
    # y2 = 3 + 0.5 * 8 = 7; y1 = 2 + 0 * 7 = 2; y0 = 1 + 0.5 * 2 = 2.
    x = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    discount = torch.tensor([[0.5, 0.0, 0.5]], dtype=torch.float64)
    y = discounted_scan(x, discount, last=torch.tensor([8.0]).double(), backend=backend)
    assert y.tolist() == [[2.0, 2.0, 7.0]]
    # Without `last`: y2 = 3.
    assert discounted_scan(x, discount, backend=backend).tolist() == [[2.0, 2.0, 3.0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_equals_the_loop(backend, shape, dtype):
    x, discount, last = _inputs(*shape, dtype)
    for end in (last, None):
        y = discounted_scan(x, discount, last=end, backend=backend)
        assert y.dtype == dtype
        expected = _loop(x.double(), discount.double(), None if end is None else end.double())
        assert_close(y, expected, dtype, shape[1])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_equal_those_of_the_loop(backend, shape):
    inputs = [v.requires_grad_() for v in _inputs(*shape)]
    x, discount, last = inputs
    y = discounted_scan(x, discount, last=last, backend=backend)
    cotangent = torch.randn_like(y)
    actual = torch.autograd.grad(y, inputs, cotangent)
    expected = torch.autograd.grad(_loop(*inputs), inputs, cotangent)
    for left, right in zip(actual, expected, strict=True):
        assert_close(left, right, torch.float64, shape[1], gradient=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_equal_finite_differences(backend):
    inputs = [v.requires_grad_() for v in _inputs(2, 5)]

    def function(x: Tensor, discount: Tensor, last: Tensor) -> Tensor:
        return discounted_scan(x, discount, last=last, backend=backend)

    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-6, nondet_tol=0.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_linear_scan_run_backwards(backend):
    x, discount, last = _inputs(3, 40)
    h, h_last = linear_scan(
        discount[..., None], x[..., None], h0=last[:, None], reverse=True, backend=backend
    )
    y = discounted_scan(x, discount, last=last, backend=backend)
    assert_close(y, h[..., 0], torch.float64, 40)
    assert_close(y[:, 0], h_last[:, 0], torch.float64, 40)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_zero_discount_keeps_the_future_out_of_values_and_gradients(backend):
    x, discount, last = _inputs(2, 12)
    discount[:, 5] = 0.0
    x.requires_grad_()
    y = discounted_scan(x, discount, last=last, backend=backend)
    changed = x.detach().clone()
    changed[:, 6:] += 100.0
    assert torch.equal(discounted_scan(changed, discount, last=-last, backend=backend)[:, :6],
                       y[:, :6])  # fmt: skip
    (gradient,) = torch.autograd.grad(y[:, :6].sum(), x)
    assert (gradient[:, 6:] == 0).all()
    assert (gradient[:, :6] > 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_equal_their_copies(backend):
    x, discount, last = _inputs(6, 8)
    views = (x.t().contiguous().t()[::2], discount.t().contiguous().t()[::2], last[::2])
    y = discounted_scan(views[0], views[1], last=views[2], backend=backend)
    expected = discounted_scan(
        x[::2].clone(), discount[::2].clone(), last=last[::2].clone(), backend=backend
    )
    assert torch.equal(y, expected)
    shared = discount[:1].expand(6, -1)
    assert torch.equal(
        discounted_scan(x, shared, last=last, backend=backend),
        discounted_scan(x, shared.contiguous(), last=last, backend=backend),
    )


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_scan_returns_an_empty_tensor(backend, shape):
    x = torch.zeros(shape)
    y = discounted_scan(x, x.clone(), last=torch.zeros(shape[0]), backend=backend)
    assert y.shape == shape


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_two_runs_are_bitwise_equal_forwards_and_backwards(backend):
    inputs = [v.requires_grad_() for v in _inputs(7, 500, torch.float32)]
    runs = []
    for _ in range(2):
        y = discounted_scan(inputs[0], inputs[1], last=inputs[2], backend=backend)
        runs.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    assert all(torch.equal(left, right) for left, right in zip(*runs, strict=True))


def _bad_calls() -> dict[str, dict]:
    x = torch.ones(2, 4)
    return {
        "x has no time": {"x": torch.ones(4), "discount": torch.ones(4)},
        "discount is a number's shape": {"x": x, "discount": torch.ones(1, 1)},
        "discount has another dtype": {"x": x, "discount": x.double()},
        "last has another batch": {"x": x, "discount": x, "last": torch.ones(4)},
        "x holds integers": {"x": x.long(), "discount": x.long()},
    }


@pytest.mark.parametrize("call", _bad_calls().values(), ids=list(_bad_calls()))
def test_a_wrong_argument_is_refused_in_one_line(call):
    with pytest.raises(ValueError, match="discounted_scan") as raised:
        discounted_scan(**call)
    assert "\n" not in str(raised.value)
