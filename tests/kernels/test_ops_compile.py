"""The custom ops under torch.compile and torch.export: whole graphs, no recompilation."""

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from statewise.kernels import discounted_scan, linear_scan, linear_scan_pairs
from statewise.kernels.dispatch import available
from tests.kernels.scan_cases import FAST_BACKENDS
from tests.resets import pattern
from tests.tolerance import assert_close


@pytest.fixture(autouse=True)
def _loaded_kernels_and_no_graphs_of_other_tests():
    assert available()["cpu"] == ""  # the ops below are called without the choice of a backend
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _arguments(pairs: bool, varying: bool, full: bool) -> tuple[Tensor, ...]:
    """Return a, b, h0, reset, h_init as the op takes them."""
    tail = (2,) if pairs else ()
    a = 0.5 * torch.rand(*((2, 6, 3) if varying else (3,)), *tail)
    b, h0 = torch.randn(2, 6, 3, *tail), torch.randn(2, 3, *tail)
    for tensor in (a, b, h0):
        tensor.requires_grad_()
    if not full:
        return a, b, h0, None, None
    return a, b, h0, pattern("staggered", 2, 6), torch.randn(3, *tail, requires_grad=True)


@pytest.mark.parametrize("full", [True, False], ids=["resets", "plain"])
@pytest.mark.parametrize("varying", [True, False], ids=["varying", "constant"])
@pytest.mark.parametrize("pairs", [False, True], ids=["real", "pairs"])
@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_the_linear_scan_op_obeys_the_rules_of_custom_ops(backend, pairs, varying, full):
    arguments = _arguments(pairs, varying, full)
    torch.library.opcheck(torch.ops.statewise.linear_scan.default, (*arguments, pairs, backend))


@pytest.mark.parametrize("need_a", [True, False], ids=["with-da", "without-da"])
@pytest.mark.parametrize("varying", [True, False], ids=["varying", "constant"])
@pytest.mark.parametrize("pairs", [False, True], ids=["real", "pairs"])
@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_the_backward_op_obeys_the_rules_of_custom_ops(backend, pairs, varying, need_a):
    a, h, h0, reset, h_init = (x.detach() for x in _arguments(pairs, varying, full=True))
    torch.library.opcheck(
        torch.ops.statewise.linear_scan_backward.default,
        (torch.randn_like(h), torch.randn_like(h0), a, h, h0, reset, h_init, pairs, need_a,
         backend),
    )  # fmt: skip


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_the_discounted_scan_op_obeys_the_rules_of_custom_ops(backend):
    arguments = [torch.rand(*shape, requires_grad=True) for shape in ((3, 7), (3, 7), (3,))]
    torch.library.opcheck(torch.ops.statewise.discounted_scan.default, (*arguments, backend))


@pytest.mark.parametrize("kind", ["real", "pairs", "complex"])
@pytest.mark.parametrize("backend", ["auto", *FAST_BACKENDS])
def test_a_compiled_linear_scan_gives_the_values_and_gradients_of_the_eager_one(backend, kind):
    a, b, h0, reset, h_init = _arguments(kind != "real", varying=True, full=True)
    inputs = [a, b, h0, h_init]
    scan = linear_scan_pairs if kind == "pairs" else linear_scan

    def loss(a: Tensor, b: Tensor, h0: Tensor, h_init: Tensor) -> Tensor:
        if kind == "complex":
            a, b, h0, h_init = (torch.view_as_complex(x) for x in (a, b, h0, h_init))
        h, h_last = scan(a, b, h0=h0, reset=reset, h_init=h_init, backend=backend)
        return h.abs().square().sum() + 3 * h_last.abs().sum()

    expected = loss(*inputs)
    actual = torch.compile(loss, backend="aot_eager", fullgraph=True)(*inputs)
    assert torch.equal(actual, expected)
    for left, right in zip(
        torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        assert_close(left, right, torch.float32, 6, gradient=True)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_a_compiled_discounted_scan_gives_the_values_and_gradients_of_the_eager_one(backend):
    inputs = [torch.rand(*shape, requires_grad=True) for shape in ((3, 7), (3, 7), (3,))]

    def loss(x: Tensor, discount: Tensor, last: Tensor) -> Tensor:
        return discounted_scan(x, discount, last=last, backend=backend).square().sum()

    expected = loss(*inputs)
    actual = torch.compile(loss, backend="aot_eager", fullgraph=True)(*inputs)
    assert torch.equal(actual, expected)
    for left, right in zip(
        torch.autograd.grad(actual, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        assert_close(left, right, torch.float32, 7, gradient=True)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_another_number_of_steps_does_not_compile_again(backend):
    counter = CompileCounterWithBackend("aot_eager")

    def loss(a: Tensor, b: Tensor, reset: Tensor) -> Tensor:
        h, h_last = linear_scan(a, b, reset=reset, backend=backend)
        return h.square().sum() + h_last.sum()

    compiled = torch.compile(loss, backend=counter, fullgraph=True)
    for T in (5, 8, 13, 64, 100):
        a = torch.rand(2, T, 3).requires_grad_()
        b = torch.randn(2, T, 3)
        reset = pattern("random", 2, T)
        for tensor in (a, b, reset):
            torch._dynamo.mark_dynamic(tensor, 1)
        actual = compiled(a, b, reset)
        (gradient,) = torch.autograd.grad(actual, a)
        expected = loss(a, b, reset)
        assert torch.equal(actual, expected)
        assert_close(gradient, torch.autograd.grad(expected, a)[0], torch.float32, T)
    assert counter.frame_count == 1


class _Scan(nn.Module):
    def forward(self, a: Tensor, b: Tensor, reset: Tensor) -> tuple[Tensor, Tensor]:
        return linear_scan_pairs(a, b, reset=reset)


def test_a_scan_exports_and_the_export_runs():
    a, b, _, reset, _ = (
        x.detach() if x is not None and x.is_floating_point() else x
        for x in _arguments(pairs=True, varying=True, full=True)
    )
    program = torch.export.export(_Scan(), (a, b, reset))
    actual = program.module()(a, b, reset)
    expected = _Scan()(a, b, reset)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])
