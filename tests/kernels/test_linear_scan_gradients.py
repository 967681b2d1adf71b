"""Gradients of the linear scan: every input, both outputs, every backend."""

from typing import Any

import pytest
import torch
from torch import Tensor

from statewise.kernels import linear_scan, linear_scan_pairs
from tests.kernels.scan_cases import BACKENDS, FAST_BACKENDS, Case, leaves, loop, make
from tests.resets import KINDS
from tests.tolerance import assert_close

CASES = [
    Case(3, 1, 1, reset="first", h_init=True),
    Case(3, 2, 3, varying=False, reset="last", h_init=True),
    Case(2, 3, 16, is_complex=True, reset="all", h_init=True),
    Case(1, 7, 3, is_complex=True, varying=False, reset="adjacent"),
    Case(4, 9, 5, reset="staggered", h_init=True, hold=True),
    Case(3, 33, 65, varying=False, reset="random", h_init=True),
    Case(3, 64, 5, is_complex=True, varying=False, reset="random", h_init=True),
    Case(2, 65, 130, is_complex=True, reset="staggered", hold=True),
    Case(2, 127, 7, reset="none"),
    Case(2, 40, 600, reset="random", h_init=True),
    Case(2, 20, 600, is_complex=True, varying=False, reset="staggered", h_init=True),
]


def _gradients(
    run: Any, a: Tensor, b: Tensor, options: dict[str, Any], which: str = "both"
) -> dict[str, Tensor]:
    """Return the gradients for random cotangents on h, the last state, or both."""
    inputs = leaves(a, b, options)
    rest = {key: options[key] for key in ("reset", "hold") if key in options}
    h, h_last = run(inputs["a"], inputs["b"], **rest, **{k: inputs[k] for k in list(inputs)[2:]})
    generator = torch.Generator().manual_seed(3)

    def cotangent(x: Tensor) -> Tensor:
        draw = torch.randn(*x.shape, 2, generator=generator, dtype=torch.float64)
        return (torch.view_as_complex(draw) if x.is_complex() else draw[..., 0]).to(x.dtype)

    outputs = {"h": h, "last": h_last}
    cotangents = {name: cotangent(x) for name, x in outputs.items()}
    chosen = list(outputs) if which == "both" else [which]
    gradients = torch.autograd.grad(
        [outputs[name] for name in chosen],
        list(inputs.values()),
        [cotangents[name] for name in chosen],
        materialize_grads=True,
    )
    return dict(zip(inputs, gradients, strict=True))


def _backend(name: str) -> Any:
    return lambda a, b, **options: linear_scan(a, b, **options, backend=name)


@pytest.mark.parametrize("which", ["h", "last", "both"])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_equal_those_of_the_loop(backend, case, which):
    a, b, options = make(case)
    actual = _gradients(_backend(backend), a, b, options, which)
    expected = _gradients(loop, a, b, options, which)
    for name in expected:
        assert_close(actual[name], expected[name], torch.float64, case.T, gradient=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("varying", [True, False], ids=["varying", "constant"])
@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_gradients_are_right_under_every_reset_pattern(backend, varying, is_complex, kind):
    case = Case(4, 11, 3, is_complex=is_complex, varying=varying, reset=kind, h_init=True)
    a, b, options = make(case)
    actual = _gradients(_backend(backend), a, b, options)
    expected = _gradients(loop, a, b, options)
    for name in expected:
        assert_close(actual[name], expected[name], torch.float64, case.T, gradient=True)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_float32_gradients_are_as_close_as_float32_allows(backend, case):
    a, b, options = make(case, torch.float32)
    actual = _gradients(_backend(backend), a, b, options)
    double = {
        key: value.to(torch.complex128 if value.is_complex() else torch.float64)
        if key in ("h0", "h_init")
        else value
        for key, value in options.items()
    }
    to = torch.complex128 if case.is_complex else torch.float64
    expected = _gradients(_backend("reference"), a.to(to), b.to(to), double)
    for name in expected:
        assert actual[name].dtype == (torch.complex64 if case.is_complex else torch.float32)
        assert_close(actual[name], expected[name], torch.float32, case.T, gradient=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_keep_the_dtypes_of_bfloat16_inputs(backend):
    a, b, options = make(Case(2, 50, 7, reset="random", h_init=True), torch.bfloat16)
    options["h0"] = options["h0"].bfloat16()
    actual = _gradients(_backend(backend), a, b, options)
    assert actual["a"].dtype == torch.float32
    assert actual["b"].dtype == torch.bfloat16
    assert actual["h0"].dtype == torch.bfloat16
    double = {k: v.double() if k in ("h0", "h_init") else v for k, v in options.items()}
    expected = _gradients(_backend("reference"), a.double(), b.double(), double)
    for name in expected:
        assert_close(actual[name], expected[name], torch.bfloat16, 50, gradient=True)


def _checkable(case: Case, backend: str) -> tuple[Any, list[Tensor]]:
    a, b, options = make(case)
    inputs = leaves(a, b, options)
    names = list(inputs)
    reset, hold = options.get("reset"), options.get("hold")

    def function(*values: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(names, values, strict=True))
        return linear_scan(
            named.pop("a"), named.pop("b"), reset=reset, hold=hold, backend=backend, **named
        )

    return function, list(inputs.values())


@pytest.mark.parametrize(
    "case",
    [
        Case(2, 5, 3, reset="staggered", h_init=True),
        Case(2, 5, 3, varying=False, reset="random"),
        Case(2, 5, 3, is_complex=True, reset="staggered", h_init=True),
        Case(2, 5, 3, is_complex=True, varying=False, reset="first", h_init=True, hold=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_equal_finite_differences(backend, case):
    function, inputs = _checkable(case, backend)
    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-6, nondet_tol=0.0)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_the_reference_is_differentiable_twice(is_complex):
    function, inputs = _checkable(
        Case(2, 4, 2, is_complex=is_complex, reset="staggered", h_init=True), "reference"
    )
    assert torch.autograd.gradgradcheck(function, inputs, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_a_second_derivative_is_refused_where_there_is_none(backend):
    function, (a, *rest) = _checkable(Case(2, 4, 2), backend)

    def differentiate_twice():  # refused at the first, with the second in mind, or at the second
        (gradient,) = torch.autograd.grad(function(a, *rest)[0].sum(), a, create_graph=True)
        gradient.sum().backward()

    with pytest.raises(RuntimeError):
        differentiate_twice()


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_past_of_a_reset_gets_exactly_no_gradient(backend, is_complex):
    a, b, options = make(Case(2, 30, 3, is_complex=is_complex, reset="none"))
    reset = torch.zeros(2, 30, dtype=torch.bool)
    reset[0, 17] = True
    options["reset"] = reset
    inputs = leaves(a, b, options)
    h, h_last = linear_scan(inputs["a"], inputs["b"], h0=inputs["h0"], reset=reset, backend=backend)
    loss = (h[:, 17:].abs() ** 2).sum() + (h_last.abs() ** 2).sum()
    da, db, dh0 = torch.autograd.grad(loss, list(inputs.values()))
    assert (da[0, :18] == 0).all()  # a at the reset multiplies h_init, which is 0 here
    assert (db[0, :17] == 0).all()
    assert (dh0[0] == 0).all()
    assert (db[0, 17:] != 0).all()
    assert (db[1] != 0).all()
    assert (dh0[1] != 0).all()


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_a_broken_state_before_a_reset_does_not_reach_later_gradients(backend, is_complex):
    a, b, options = make(Case(1, 20, 3, is_complex=is_complex))
    options["reset"] = torch.zeros(1, 20, dtype=torch.bool)
    options["reset"][0, 12] = True
    clean = _gradients(_backend(backend), a, b, options)
    b[0, 4] = float("nan")
    broken = _gradients(_backend(backend), a, b, options)
    assert_close(broken["b"], clean["b"], torch.float64, 20, gradient=True)
    assert_close(broken["h0"], clean["h0"], torch.float64, 20, gradient=True)
    assert_close(broken["a"][:, 12:], clean["a"][:, 12:], torch.float64, 20, gradient=True)


@pytest.mark.parametrize("shared", ["a", "b", "h0"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_expanded_inputs_are_summed(backend, shared):
    a, b, options = make(Case(3, 9, 4, reset="staggered"))
    inputs = leaves(a, b, options)
    leaf = inputs[shared][:1].detach().clone().requires_grad_()
    inputs[shared] = leaf.expand_as(inputs[shared])
    rest = {"h0": inputs["h0"], "reset": options["reset"]}
    (actual,) = torch.autograd.grad(
        linear_scan(inputs["a"], inputs["b"], **rest, backend=backend)[0].square().sum(), leaf
    )
    (expected,) = torch.autograd.grad(
        loop(inputs["a"], inputs["b"], **rest)[0].square().sum(), leaf
    )
    assert_close(actual, expected, torch.float64, 9, gradient=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_pass_through_strided_inputs_and_cotangents(backend):
    a, b, options = make(Case(3, 9, 4, reset="staggered", h_init=True))

    def transposed(scan: Any) -> Any:
        def run(a: Tensor, b: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
            # What the scan sees is strided, and so is the cotangent it gets back.
            a = a.transpose(1, 2).contiguous().transpose(1, 2)
            b = b.transpose(0, 1).contiguous().transpose(0, 1)
            h, h_last = scan(a, b, **rest)
            return h.transpose(1, 2).contiguous().transpose(1, 2), h_last

        return run

    actual = _gradients(transposed(_backend(backend)), a, b, options)
    expected = _gradients(loop, a, b, options)
    for name in expected:
        assert_close(actual[name], expected[name], torch.float64, 9, gradient=True)


@pytest.mark.parametrize("frozen", ["a", "b", "h0", "h_init"])
@pytest.mark.parametrize("varying", [True, False], ids=["varying", "constant"])
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_input_without_gradient_does_not_disturb_the_others(
    backend, is_complex, varying, frozen
):
    a, b, options = make(
        Case(3, 9, 4, is_complex=is_complex, varying=varying, reset="staggered", h_init=True)
    )
    expected = _gradients(loop, a, b, options)
    inputs = leaves(a, b, options)
    inputs[frozen] = inputs[frozen].detach()

    def run(a: Tensor, b: Tensor, **rest: Any) -> tuple[Tensor, Tensor]:
        # _gradients asks for all four: the frozen one enters as 0 * leaf beside the scan.
        named = {"a": a, "b": b, **rest}
        reset = named.pop("reset")
        unused = named[frozen].abs().sum() * 0
        named[frozen] = inputs[frozen]
        h, h_last = linear_scan(
            named.pop("a"), named.pop("b"), reset=reset, **named, backend=backend
        )
        return h + unused, h_last

    actual = _gradients(run, a, b, options)
    for name in expected:
        if name != frozen:
            assert_close(actual[name], expected[name], torch.float64, 9, gradient=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_pairs_are_the_real_views_of_the_complex_gradients(backend):
    a, b, options = make(Case(3, 9, 4, is_complex=True, reset="staggered", h_init=True))
    inputs = {k: torch.view_as_real(v).detach().clone().requires_grad_()
              for k, v in leaves(a, b, options).items()}  # fmt: skip
    complex_inputs = leaves(a, b, options)

    def loss(h: Tensor, last: Tensor) -> Tensor:
        return (h * torch.linspace(-1, 2, h.numel()).view_as(h)).sum() + last.square().sum()

    h, last = linear_scan_pairs(
        inputs["a"], inputs["b"], h0=inputs["h0"], h_init=inputs["h_init"],
        reset=options["reset"], backend=backend,
    )  # fmt: skip
    actual = torch.autograd.grad(loss(h, last), list(inputs.values()))
    h, last = loop(
        complex_inputs["a"], complex_inputs["b"], h0=complex_inputs["h0"],
        h_init=complex_inputs["h_init"], reset=options["reset"],
    )  # fmt: skip
    expected = torch.autograd.grad(
        loss(torch.view_as_real(h), torch.view_as_real(last)), list(complex_inputs.values())
    )
    for left, right in zip(actual, expected, strict=True):
        assert_close(left, torch.view_as_real(right), torch.float64, 9, gradient=True)


@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_backward_passes_are_bitwise_equal(backend, is_complex):
    a, b, options = make(
        Case(4, 100, 70, is_complex=is_complex, varying=False, reset="random", h_init=True),
        torch.float32,
    )
    first = _gradients(_backend(backend), a, b, options)
    second = _gradients(_backend(backend), a, b, options)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_number_of_threads_does_not_change_a_bit_of_the_cpu_gradients():
    a, b, options = make(Case(2, 300, 700, varying=False, reset="random"), torch.float32)
    one = _gradients(_backend("cpu"), a, b, options)
    torch.set_num_threads(3)
    try:
        three = _gradients(_backend("cpu"), a, b, options)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(one[name], three[name]) for name in one)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_an_empty_scan_goes_to_the_initial_state(backend):
    h0 = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    empty = torch.zeros(2, 0, 3, dtype=torch.float64)
    _, h_last = linear_scan(empty, empty, h0=h0, backend=backend)
    (gradient,) = torch.autograd.grad((3 * h_last).sum(), h0)
    assert torch.equal(gradient, torch.full_like(h0, 3.0))
