"""The short causal convolution: every backend against the loop, torch's own, and its laws."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from statewise.kernels import causal_conv1d, conv_step
from tests.kernels.scan_cases import BACKENDS, FAST_BACKENDS, wide
from tests.resets import KINDS, pattern
from tests.tolerance import assert_close, assert_within, limit

DOUBLE = torch.float64
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_fast_backend = pytest.mark.parametrize("backend", FAST_BACKENDS)
# B, T, E, W, silu, with bias and state, reset
MATRIX = (
    (2, 9, 5, 4, True, True, "staggered"),
    (1, 1, 1, 4, False, True, "none"),
    (3, 2, 3, 4, True, True, "last"),
    (2, 3, 300, 4, True, False, "first"),
    (2, 7, 3, 2, False, False, "all"),
    (1, 64, 65, 3, True, True, "random"),
    (2, 130, 2, 1, True, True, "random"),
    (3, 33, 4, 6, False, True, "adjacent"),
)
every_case = pytest.mark.parametrize("case", MATRIX, ids=str)


def _make(case: tuple[Any, ...], dtype: torch.dtype = DOUBLE) -> dict[str, Any]:
    B, T, E, W, silu, full, reset = case
    own = wide(dtype)
    arguments: dict[str, Any] = {
        "x": torch.randn(B, T, E).to(dtype),
        "w": torch.randn(E, W, dtype=own),
        "activation": "silu" if silu else None,
        "reset": pattern(reset, B, T),
    }
    if full:
        arguments |= {
            "bias": torch.randn(E, dtype=own),
            "state": torch.randn(B, E, W - 1, dtype=own),
        }
    return arguments


def _results(
    arguments: dict[str, Any], backend: str, weights: tuple[Tensor, Tensor] | None = None
) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
    leaves = {
        k: v.detach().clone().requires_grad_()
        for k, v in arguments.items()
        if isinstance(v, Tensor) and v.dtype != torch.bool
    }
    y, after = causal_conv1d(**(arguments | leaves), backend=backend)
    if weights is None:
        weights = torch.randn_like(y), torch.randn_like(after)
    loss = (y * weights[0].to(y.dtype)).sum() + (after * weights[1].to(after.dtype)).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    named = {f"grad {name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {"y": y, "after": after} | named, weights


@every_backend
def test_without_resets_it_is_the_convolution_of_torch(backend):
    arguments = _make((2, 9, 5, 4, False, True, "none"))
    y, after = causal_conv1d(**arguments, backend=backend)
    extended = torch.cat([arguments["state"], arguments["x"].transpose(1, 2)], 2)
    expected = F.conv1d(extended, arguments["w"][:, None], arguments["bias"], groups=5)
    assert_close(y, expected.transpose(1, 2), DOUBLE, 9)
    assert torch.equal(after, extended[..., -3:])


@every_backend
def test_a_reset_starts_a_new_sequence(backend):
    arguments = _make((2, 9, 5, 4, True, True, "none"))
    arguments["reset"] = torch.zeros(2, 9, dtype=torch.bool)
    arguments["reset"][:, 5] = True
    y, after = causal_conv1d(**arguments, backend=backend)
    fresh = arguments | {"x": arguments["x"][:, 5:], "state": None, "reset": None}
    expected, expected_after = causal_conv1d(**fresh, backend=backend)
    assert_close(y[:, 5:], expected, DOUBLE, 9)
    assert_close(after, expected_after, DOUBLE, 9)


@every_fast_backend
@every_case
def test_a_backend_equals_the_reference_in_double(backend, case):
    arguments = _make(case)
    expected, weights = _results(arguments, "reference")
    actual, _ = _results(arguments, backend, weights)
    for name, value in expected.items():
        assert_close(actual[name], value, DOUBLE, case[1], gradient=name.startswith("grad"))


@every_fast_backend
@pytest.mark.parametrize("reset", KINDS)
def test_every_reset_pattern_equals_the_reference(backend, reset):
    for T in (3, 11):
        arguments = _make((3, T, 4, 4, True, True, reset))
        expected, weights = _results(arguments, "reference")
        actual, _ = _results(arguments, backend, weights)
        for name, value in expected.items():
            assert_close(actual[name], value, DOUBLE, T, gradient=name.startswith("grad"))


@every_fast_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_narrow_inputs_stay_within_the_limit(backend, dtype):
    case = (2, 64, 9, 4, True, True, "random")
    arguments = _make(case, dtype)
    actual, weights = _results(arguments, backend)
    exact = {
        k: v.to(DOUBLE) if isinstance(v, Tensor) and v.dtype != torch.bool else v
        for k, v in arguments.items()
    }
    expected, _ = _results(exact, "reference", (weights[0].to(DOUBLE), weights[1].to(DOUBLE)))
    assert (actual["y"].dtype, actual["after"].dtype) == (dtype, torch.float32)
    for name, value in expected.items():
        bound = limit(dtype, 64, gradient=dtype != torch.bfloat16)
        assert_within(actual[name], value, bound)


def test_the_gradients_of_the_loop_are_those_of_finite_differences():
    arguments = _make((2, 5, 2, 3, True, True, "staggered"))
    leaves = {
        k: v.requires_grad_()
        for k, v in arguments.items()
        if isinstance(v, Tensor) and v.dtype != torch.bool
    }

    def run(*values: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(leaves, values, strict=True))
        return causal_conv1d(**(arguments | named), backend="reference")

    assert torch.autograd.gradcheck(run, tuple(leaves.values()))


@every_backend
def test_windows_compose_at_every_cut(backend):
    arguments = _make((3, 7, 2, 4, True, True, "staggered"))
    whole, whole_after = causal_conv1d(**arguments, backend=backend)
    for cut in range(8):
        parts = [
            arguments | {"x": arguments["x"][:, at], "reset": arguments["reset"][:, at]}
            for at in (slice(0, cut), slice(cut, None))
        ]
        y, between = causal_conv1d(**parts[0], backend=backend)
        y_, after = causal_conv1d(**(parts[1] | {"state": between}), backend=backend)
        assert_close(torch.cat([y, y_], 1), whole, DOUBLE, 7)
        assert_close(after, whole_after, DOUBLE, 7)


@every_backend
def test_what_is_not_finite_does_not_pass_a_reset(backend):
    arguments = _make((2, 9, 3, 4, False, True, "none"))
    arguments["reset"] = torch.zeros(2, 9, dtype=torch.bool)
    arguments["reset"][:, 2] = True
    arguments["state"] = torch.full_like(arguments["state"], float("inf")).requires_grad_()
    arguments["x"][:, 1] = float("nan")
    y, after = causal_conv1d(**arguments, backend=backend)
    (dstate,) = torch.autograd.grad(y[:, 2:].sum() + after.sum(), arguments["state"])
    assert y[:, 2:].isfinite().all()
    assert after.isfinite().all()
    assert (dstate == 0).all()


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no-grad"])
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_steps_equal_the_window(backend, grad, width):
    silu = width > 1
    arguments = _make((3, 7, 2, width, silu, True, "staggered"))
    expected, expected_after = causal_conv1d(**arguments)
    state = arguments["state"]
    with torch.set_grad_enabled(grad):
        for t in range(7):
            y, state = conv_step(
                arguments["x"][:, t],
                arguments["w"],
                arguments["bias"],
                state,
                arguments["reset"][:, t],
                activation=arguments["activation"],
                backend=backend,
            )
            assert_close(y, expected[:, t], DOUBLE, 7)
    assert_close(state, expected_after, DOUBLE, 7)


def test_the_number_of_threads_does_not_change_a_bit():
    arguments = _make((3, 40, 600, 4, True, True, "random"), torch.float32)
    first, weights = _results(arguments, "cpu")
    torch.set_num_threads(2)
    second, _ = _results(arguments, "cpu", weights)
    for name, value in first.items():
        assert torch.equal(second[name], value), name


@every_fast_backend
def test_a_slice_of_a_projection_is_read_as_it_is(backend):
    packed = torch.randn(2, 9, 8, dtype=DOUBLE)
    w = torch.randn(3, 4, dtype=DOUBLE)
    y, _ = causal_conv1d(packed[..., 2:5], w, backend=backend)
    expected, _ = causal_conv1d(packed[..., 2:5].contiguous(), w, backend="reference")
    assert_close(y, expected, DOUBLE, 9)


@every_backend
@pytest.mark.parametrize(("B", "T"), [(0, 3), (2, 0)])
def test_empty_windows_return_the_state(backend, B, T):
    arguments = _make((B, T, 3, 4, True, True, "none"))
    y, after = causal_conv1d(**arguments, backend=backend)
    assert y.shape == (B, T, 3)
    assert torch.equal(after, arguments["state"])


@every_fast_backend
def test_it_compiles_into_one_graph_for_any_length(backend):
    torch._dynamo.reset()

    def run(x: Tensor, w: Tensor, reset: Tensor) -> Tensor:
        y, after = causal_conv1d(x, w, reset=reset, activation="silu", backend=backend)
        return y.square().sum() + after.square().sum()

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for T in (5, 9, 20):
        a = _make((2, T, 3, 4, True, False, "random"))
        w = a["w"].requires_grad_()
        for x in (a["x"], a["reset"]):
            torch._dynamo.mark_dynamic(x, 1)
        got, want = compiled(a["x"], w, a["reset"]), run(a["x"], w, a["reset"])
        assert_close(got, want, DOUBLE, T)
        (grad,), (expected,) = torch.autograd.grad(got, w), torch.autograd.grad(want, w)
        assert_close(grad, expected, DOUBLE, T, gradient=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w": torch.zeros(4, 4)}, r"w \(E, W\), got \(2, 9, 5\) and \(4, 4\)"),
        ({"state": torch.zeros(2, 5, 4)}, r"state must be \(2, 5, 3\), got \(2, 5, 4\)"),
        ({"reset": torch.zeros(2, 9)}, "reset must be bool"),
        ({"activation": "gelu"}, "'silu' or None, got 'gelu'"),
        ({"x": torch.zeros(2, 9, 5, dtype=torch.float16)}, "float32, float64, bfloat16"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        causal_conv1d(**(_make(MATRIX[0], torch.float32) | changes))
    assert "\n" not in str(caught.value)
