"""The time-invariant scan: every backend against the loop, closed forms, and its laws."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from statewise.kernels.ssm_scan_lti.op import (
    ssm_scan_lti,
    ssm_scan_lti_pairs,
    ssm_scan_lti_step,
)
from tests.kernels.lti_cases import INPUTS, MATRIX, Case, double, make, results
from tests.kernels.scan_cases import BACKENDS, FAST_BACKENDS
from tests.resets import KINDS
from tests.tolerance import assert_close, assert_within, limit

DOUBLE = torch.float64
NAN = float("nan")
every_case = pytest.mark.parametrize("case", MATRIX, ids=str)
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_fast_backend = pytest.mark.parametrize("backend", FAST_BACKENDS)


def _compare(actual: dict[str, Tensor], expected: dict[str, Tensor], case: Case) -> None:
    for name, value in expected.items():
        assert_close(actual[name], value, DOUBLE, case.T, gradient=name.startswith("grad"))


@every_backend
def test_three_steps_worked_by_hand(backend):
    # a = i/2, b = 1, c = 1 - i, h0 = 4: h = 2i + 1, then i/2 (1 + 2i) + 2 = 1 + i/2, then, after
    # a reset, 3. y = 2 Re (1 - i) h = 2 (Re h + Im h) = 6, 3, 6.
    a, b, c = (torch.tensor([[z]], dtype=torch.complex128) for z in (0.5j, 1, 1 - 1j))
    y, last = ssm_scan_lti(
        torch.tensor([[[1.0], [2.0], [3.0]]], dtype=DOUBLE),
        a,
        b,
        c,
        h0=torch.tensor([[[4]]], dtype=torch.complex128),
        reset=torch.tensor([[False, False, True]]),
        backend=backend,
    )
    assert_close(y.flatten(), torch.tensor([6.0, 3.0, 6.0], dtype=DOUBLE), DOUBLE, 3)
    assert_close(last.flatten(), torch.tensor([3], dtype=torch.complex128), DOUBLE, 3)


@every_fast_backend
@every_case
def test_values_and_gradients_equal_those_of_the_loop(backend, case):
    arguments = make(case)
    expected, weights = results(arguments, "reference")
    actual, _ = results(arguments, backend, weights)
    _compare(actual, expected, case)


@every_fast_backend
@every_case
def test_float32_stays_within_the_limit(backend, case):
    arguments = make(case, torch.float32)
    actual, (y, last) = results(arguments, backend)
    expected, _ = results(double(arguments), "reference", (y.double(), last.to(torch.complex128)))
    assert (actual["y"].dtype, actual["last"].dtype) == (torch.float32, torch.complex64)
    for name, value in expected.items():
        gradient = name.startswith("grad")
        assert_close(actual[name], value, torch.float32, max(case.T, 8), gradient=gradient)


@every_backend
@pytest.mark.parametrize("case", [MATRIX[6], MATRIX[9], MATRIX[10]], ids=str)
def test_bfloat16_inputs_keep_a_float32_state(backend, case):
    arguments = make(case, torch.bfloat16)
    actual, (y, last) = results(arguments, backend)
    expected, _ = results(double(arguments), "reference", (y.double(), last.to(torch.complex128)))
    assert (actual["y"].dtype, actual["last"].dtype) == (torch.bfloat16, torch.complex64)
    # The state itself was never rounded: it agrees as float32 does.
    assert_close(actual["last"], expected["last"], torch.float32, case.T)
    for name, value in expected.items():
        assert_within(actual[name], value, limit(torch.bfloat16, case.T))
        source = arguments.get(name.removeprefix("grad "))
        assert source is None or actual[name].dtype == source.dtype


@every_fast_backend
def test_slow_modes_keep_their_digits_over_many_steps_in_float32(backend):
    T = 4096
    arguments = make(Case(B=1, T=T, H=2, N=4, reset="none"), torch.float32)
    arguments["abar"] = arguments["abar"] / arguments["abar"].abs() * (1 - 1e-4)
    expected, last = ssm_scan_lti(**double(arguments), backend="reference")
    y, actual_last = ssm_scan_lti(**arguments, backend=backend)
    assert_close(y, expected, torch.float32, T)
    assert_close(actual_last, last, torch.float32, T)


@every_fast_backend
@pytest.mark.parametrize("T", [3, 70])
@pytest.mark.parametrize("reset", KINDS)
def test_every_reset_pattern_equals_the_loop(backend, T, reset):
    case = Case(B=4, T=T, reset=reset)
    arguments = make(case)
    expected, weights = results(arguments, "reference")
    _compare(results(arguments, backend, weights)[0], expected, case)


@every_fast_backend
@pytest.mark.parametrize("position", [0, 1, 30, 31, 32, 33, 62, 63, 64, 65, 69])
def test_a_single_reset_at_any_position_equals_the_loop(backend, position):
    case = Case(B=3, T=70)
    arguments = make(case)
    arguments["reset"] = torch.zeros(3, 70, dtype=torch.bool)
    arguments["reset"][1, position] = True
    expected, weights = results(arguments, "reference")
    _compare(results(arguments, backend, weights)[0], expected, case)


def _checkable(backend: str) -> tuple[Any, tuple[Tensor, ...]]:
    arguments = make(Case(T=5, H=2, N=3))
    leaves = {name: arguments[name].requires_grad_() for name in INPUTS}

    def run(*values: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(leaves, values, strict=True))
        return ssm_scan_lti(**(arguments | named), backend=backend)

    return run, tuple(leaves.values())


@every_backend
def test_gradients_equal_finite_differences(backend):
    run, leaves = _checkable(backend)
    assert torch.autograd.gradcheck(run, leaves, eps=1e-6, atol=1e-6, nondet_tol=0.0)


def test_only_the_reference_is_differentiable_twice():
    run, leaves = _checkable("reference")
    assert torch.autograd.gradgradcheck(run, leaves, eps=1e-6, atol=1e-6)
    run, leaves = _checkable("cpu")
    (grad,) = torch.autograd.grad(run(*leaves)[0].sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


@every_fast_backend
@pytest.mark.parametrize("only", [("x",), ("h0",), ("c",), ("abar", "h0"), ("x", "bbar")], ids=str)
def test_a_gradient_does_not_depend_on_which_others_are_asked_for(backend, only):
    case = Case(T=100, reset="adjacent")
    arguments = make(case)
    expected, weights = results(arguments, "reference")
    actual, _ = results(arguments, backend, weights, only)
    assert len(actual) == 2 + len(only)
    _compare(actual, {name: expected[name] for name in actual}, case)


@every_backend
def test_a_state_that_is_not_finite_does_not_pass_a_reset(backend):
    arguments = make(Case(T=80))
    arguments["reset"] = torch.zeros(2, 80, dtype=torch.bool)
    arguments["reset"][:, 45] = True
    expected, _ = ssm_scan_lti(**arguments, backend="reference")
    x, h0 = arguments["x"].clone(), torch.full_like(arguments["h0"], NAN)
    x[:, 10] = float("inf")
    leaves = {"x": x.requires_grad_(), "h0": h0.requires_grad_()}
    y, last = ssm_scan_lti(**(arguments | leaves), backend=backend)
    assert not y[:, :45].isfinite().any()
    assert_close(y[:, 45:], expected[:, 45:], DOUBLE, 80)
    loss = y[:, 45:].square().sum() + last.abs().square().sum()
    dx, dh0 = torch.autograd.grad(loss, list(leaves.values()))
    assert (dh0 == 0).all()
    assert (dx[:, :45] == 0).all()
    assert dx[:, 45:].isfinite().all()
    assert (dx[:, 45:] != 0).all()


@every_backend
@pytest.mark.parametrize("at", [5, 37])
def test_a_broken_input_does_not_reach_the_steps_before_it(backend, at):
    arguments = make(Case(T=50, reset="none"))
    expected, _ = ssm_scan_lti(**arguments, backend="reference")
    arguments["x"][:, at] = NAN
    y, _ = ssm_scan_lti(**arguments, backend=backend)
    assert_close(y[:, :at], expected[:, :at], DOUBLE, 50)
    assert y[:, at:].isnan().all()


@every_backend
def test_the_past_of_a_broken_cotangent_alone_is_broken(backend):
    arguments = make(Case(T=50, reset="none"))
    x = arguments["x"].requires_grad_()
    y, _ = ssm_scan_lti(**arguments, backend=backend)
    weights = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, weights, retain_graph=True)
    weights[:, 20] = NAN
    (actual,) = torch.autograd.grad(y, x, weights)
    assert_close(actual[:, 21:], expected[:, 21:], DOUBLE, 50, gradient=True)
    assert actual[:, :21].isnan().all()


@every_backend
def test_windows_compose_at_every_cut(backend):
    arguments = make(Case(T=36))
    whole, whole_last = ssm_scan_lti(**arguments, backend=backend)
    for cut in (0, 1, 2, 17, 31, 32, 33, 35, 36):
        first = {k: v[:, :cut] if k in ("x", "reset") else v for k, v in arguments.items()}
        y, between = ssm_scan_lti(**first, backend=backend)
        second = {k: v[:, cut:] if k in ("x", "reset") else v for k, v in arguments.items()}
        y_, last = ssm_scan_lti(**(second | {"h0": between}), backend=backend)
        assert_close(torch.cat([y, y_], 1), whole, DOUBLE, 36)
        assert_close(last, whole_last, DOUBLE, 36)


@every_backend
def test_an_impulse_is_answered_by_the_sum_of_powers(backend):
    T = 75
    arguments = make(Case(B=1, T=T, reset="none", h0=False))
    arguments["x"] = torch.zeros(1, T, 3, dtype=DOUBLE)
    arguments["x"][:, 2] = 1
    y, last = ssm_scan_lti(**arguments, backend=backend)
    powers = arguments["abar"][..., None] ** torch.arange(T - 2)
    weight = arguments["bbar"] * arguments["c"]
    assert (y[:, :2] == 0).all()
    assert_close(y[0, 2:].T, 2 * (weight[..., None] * powers).sum(1).real, DOUBLE, T)
    assert_close(last[0], arguments["bbar"] * powers[..., -1], DOUBLE, T)


@every_backend
def test_a_decay_of_one_adds_up_and_of_zero_forgets(backend):
    T = 70
    arguments = make(Case(T=T, H=2, N=2, reset="none", h0=False))
    arguments["abar"] = torch.tensor([[1, 0], [0, 1]], dtype=torch.complex128)
    y, last = ssm_scan_lti(**arguments, backend=backend)
    x = arguments["x"]
    gains = 2 * (arguments["bbar"] * arguments["c"]).real
    sums = x.cumsum(1)
    expected = torch.stack(
        [
            gains[0, 0] * sums[..., 0] + gains[0, 1] * x[..., 0],
            gains[1, 0] * x[..., 1] + gains[1, 1] * sums[..., 1],
        ],
        -1,
    )
    assert_close(y, expected, DOUBLE, T)
    assert_close(last[:, 0, 0], arguments["bbar"][0, 0] * sums[:, -1, 0], DOUBLE, T)


@pytest.mark.parametrize("case", [Case(B=1, T=200, H=50, N=32), Case(B=7, T=70, H=20, N=9)])
def test_the_number_of_threads_does_not_change_a_bit(case):
    arguments = make(case, torch.float32)
    first, weights = results(arguments, "cpu")
    torch.set_num_threads(3)
    try:
        second, _ = results(arguments, "cpu", weights)
    finally:
        torch.set_num_threads(1)
    for name, value in first.items():
        assert torch.equal(second[name], value), name


@every_fast_backend
def test_two_runs_are_bitwise_equal(backend):
    arguments = make(Case(B=3, T=130, H=18, N=5, reset="random"), torch.float32)
    first, weights = results(arguments, backend)
    second, _ = results(arguments, backend, weights)
    assert all(torch.equal(first[name], second[name]) for name in first)


def _layouts(x: Tensor) -> dict[str, Tensor]:
    """Return tensors equal to x (B, T, H) that lie differently in memory."""
    B, T, H = x.shape
    wide = x.new_zeros(B, 2 * T, 3 * H)
    wide[:, ::2, 1::3] = x
    rows = x.new_zeros(B, 2 * T, H + 5)
    rows[:, ::2, 5:] = x
    offset = x.new_zeros(x.numel() + 1)
    offset[1:] = x.flatten()
    return {
        "time-first": x.transpose(0, 1).contiguous().transpose(0, 1),
        "width-first": x.transpose(1, 2).contiguous().transpose(1, 2),
        "sliced": wide[:, ::2, 1::3],
        "slice-of-a-projection": rows[:, ::2, 5:],
        "odd-offset": offset[1:].view(B, T, H),
    }


@every_backend
@pytest.mark.parametrize("layout", list(_layouts(torch.zeros(1, 1, 1))))
def test_the_layout_of_inputs_and_cotangents_does_not_change_the_result(backend, layout):
    arguments = make(Case(B=3, T=35, H=5, reset="random"))
    weights = torch.randn(3, 35, 5, dtype=DOUBLE)

    def run(x: Tensor, reset: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        y, _ = ssm_scan_lti(**(arguments | {"x": x, "reset": reset}), backend=backend)
        return y.detach(), torch.autograd.grad(y, x, weights)[0]

    expected = run(arguments["x"], arguments["reset"], weights)
    actual = run(
        _layouts(arguments["x"])[layout],
        _layouts(arguments["reset"][..., None])[layout][..., 0],
        _layouts(weights)[layout],
    )
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


@every_backend
def test_expanded_inputs_and_transposed_parameters_equal_their_copies(backend):
    arguments = make(Case(B=3, T=35, H=5))
    shared = {
        "x": arguments["x"][:, :1].expand(-1, 35, -1),
        "h0": arguments["h0"][:1].expand(3, -1, -1),
        "abar": arguments["abar"].T.contiguous().T,
        "c": arguments["c"].T.contiguous().T,
    }
    actual = ssm_scan_lti(**(arguments | shared), backend=backend)
    copies = {name: value.contiguous() for name, value in shared.items()}
    expected = ssm_scan_lti(**(arguments | copies), backend=backend)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


def _pairs(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: torch.view_as_real(value) if name in INPUTS[1:] else value
        for name, value in arguments.items()
    }


@every_backend
def test_pairs_give_what_complex_numbers_give(backend):
    arguments = make(Case(T=33))
    expected, expected_last = ssm_scan_lti(**arguments, backend=backend)
    y, last = ssm_scan_lti_pairs(**_pairs(arguments), backend=backend)
    assert torch.equal(y, expected)
    assert torch.equal(torch.view_as_complex(last), expected_last)


@every_backend
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("dtype", [DOUBLE, torch.float32, torch.bfloat16])
def test_steps_equal_the_scan(backend, grad, dtype):
    arguments = _pairs(make(Case(T=7, H=5, reset="staggered"), dtype))
    expected, expected_last = ssm_scan_lti_pairs(**arguments, backend=backend)
    x, h, reset = (arguments.pop(name) for name in ("x", "h0", "reset"))
    before = h.clone()
    first = h
    with torch.set_grad_enabled(grad):
        for t in range(7):
            y, h = ssm_scan_lti_step(x[:, t], **arguments, h=h, reset=reset[:, t], backend=backend)
            assert y.dtype == dtype
            assert_close(y, expected[:, t], dtype, 7)
    assert_close(h, expected_last, h.dtype, 7)
    assert torch.equal(first, before)


@pytest.mark.parametrize("grad", [True, False])
def test_a_step_clears_a_broken_state_where_it_resets(grad):
    arguments = _pairs(make(Case(T=1)))
    x, h, reset = arguments["x"][:, 0], arguments["h0"], torch.tensor([True, False])
    parameters = {name: arguments[name] for name in ("abar", "bbar", "c")}
    with torch.set_grad_enabled(grad):
        expected, _ = ssm_scan_lti_step(x, **parameters, h=h, reset=reset)
        h = torch.cat([torch.full_like(h[:1], NAN), h[1:]])
        y, after = ssm_scan_lti_step(x, **parameters, h=h, reset=reset)
    assert torch.equal(y, expected)
    assert after.isfinite().all()


@every_backend
@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0, 0)], ids=str)
def test_an_empty_window_returns_the_state_it_was_given(backend, shape):
    arguments = make(Case(*shape, reset="all_false"))
    arguments["h0"].requires_grad_()
    y, last = ssm_scan_lti(**arguments, backend=backend)
    assert y.shape == (*shape, 3)
    assert torch.equal(last, arguments["h0"])
    (grad,) = torch.autograd.grad(last.real.sum(), arguments["h0"])
    assert (grad == 1).all()


@every_backend
def test_the_inputs_are_left_as_they_were_and_the_outputs_own_their_memory(backend):
    arguments = make(Case(T=70, reset="none"))
    before = {name: v.clone() for name, v in arguments.items() if isinstance(v, Tensor)}
    y, last = ssm_scan_lti(**arguments, backend=backend)
    y.fill_(7)
    last.fill_(7)
    assert all(torch.equal(arguments[name], value) for name, value in before.items())


def test_without_gradients_of_parameters_no_state_is_kept():
    arguments = _pairs(make(Case(T=200), torch.float32))
    arguments["x"].requires_grad_()
    names = (*INPUTS, "reset")
    for backend in FAST_BACKENDS:
        op = torch.ops.statewise.ssm_scan_lti.default
        *_, kept = op(*(arguments[name] for name in names), False, backend)
        assert kept.numel() == 0
        *_, kept = op(*(arguments[name] for name in names), True, backend)
        assert kept.numel() == 3 * arguments["h0"].numel()


@every_fast_backend
@pytest.mark.parametrize("reset", ["none", "random"])
def test_the_ops_obey_the_rules_of_custom_ops(backend, reset):
    arguments = _pairs(make(Case(T=66, reset=reset), torch.float32))
    given = [arguments[name] for name in (*INPUTS, "reset")]
    leaves = [x.detach().requires_grad_() for x in given[:-1]]
    forward = torch.ops.statewise.ssm_scan_lti.default
    torch.library.opcheck(forward, (*leaves, given[-1], True, backend))
    y, last, kept = forward(*given, True, backend)
    for needs in ((True, True), (False, True), (True, False)):
        torch.library.opcheck(
            torch.ops.statewise.ssm_scan_lti_backward.default,
            (torch.randn_like(y), torch.randn_like(last), *given, kept, *needs, backend),
        )


@pytest.mark.parametrize("backend", ["auto", *FAST_BACKENDS])
def test_a_compiled_scan_has_one_graph_up_to_a_chunk_and_one_for_all_beyond(backend):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    names = ("x", "abar", "bbar", "c", "reset")

    def run(*values: Tensor) -> Tensor:
        named = dict(zip(names, values, strict=True))
        y, last = ssm_scan_lti_pairs(**named, backend=backend)
        return y.square().sum() + last.square().sum()

    compiled = torch.compile(run, backend=counter, fullgraph=True)
    # Up to 64 steps no state is kept, and a compiler tells empty arrays from others.
    for T, graphs in ((5, 1), (40, 1), (64, 1), (65, 2), (129, 2), (200, 2)):
        arguments = _pairs(make(Case(T=T)))
        values = [arguments[name] for name in names]
        leaves = [value.requires_grad_() for value in values[:4]]
        torch._dynamo.mark_dynamic(values[0], 1)
        torch._dynamo.mark_dynamic(values[4], 1)
        expected, actual = run(*values), compiled(*values)
        assert_close(actual, expected, DOUBLE, T)
        gradients = [torch.autograd.grad(z, leaves) for z in (actual, expected)]
        for left, right in zip(*gradients, strict=True):
            assert_close(left, right, DOUBLE, T, gradient=True)
        assert counter.frame_count == graphs
    torch._dynamo.reset()


class _Acting(nn.Module):
    def forward(self, x, a, b, c, h, reset):
        y, h = ssm_scan_lti_step(x[:, 0], a, b, c, h, reset=reset[:, 0])
        return y, ssm_scan_lti_pairs(x, a, b, c, h0=h, reset=reset)


def test_scan_and_step_export():
    arguments = _pairs(make(Case(T=6), torch.float32))
    given = tuple(arguments[name] for name in (*INPUTS, "reset"))
    program = torch.export.export(_Acting(), given)
    y, (scanned, last) = program.module()(*given)
    expected, (expected_scanned, expected_last) = _Acting()(*given)
    assert_close(y, expected, torch.float32, 1)
    assert_close(scanned, expected_scanned, torch.float32, 6)
    assert_close(last, expected_last, torch.float32, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 9)}, r"x must be \(B, T, H\)"),
        ({"x": torch.zeros(2, 9, 4)}, r"got \(2, 9, 4\) and \(3, 4, 2\)"),
        ({"bbar": torch.zeros(3, 5, dtype=torch.complex64)}, r"bbar must be \(3, 4, 2\)"),
        ({"c": torch.zeros(2, 3, 4, dtype=torch.complex64)}, r"c must be \(3, 4, 2\)"),
        (
            {"abar": torch.zeros(3, 4)},
            "abar must be one of complex64, complex128, got torch.float32",
        ),
        ({"h0": torch.zeros(2, 3, 5, dtype=torch.complex64)}, r"h0 must be \(2, 3, 4, 2\)"),
        ({"reset": torch.zeros(2, 9)}, "reset must be bool, got torch.float32"),
        ({"reset": torch.zeros(9, 2, dtype=torch.bool)}, r"reset must be \(2, 9\)"),
        ({"x": torch.zeros(2, 9, 3, dtype=torch.float16)}, "float32, float64, bfloat16, got"),
        ({"c": torch.zeros(3, 4, dtype=torch.complex64, device="meta")}, "one device"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        ssm_scan_lti(**(make(Case(), torch.float32) | changes))
    assert "\n" not in str(caught.value)
