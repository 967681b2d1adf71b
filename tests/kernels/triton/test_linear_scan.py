"""The Triton kernels of the linear scan: one loop, and chunks of time, against the reference."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from statewise.kernels import linear_scan, triton_launch
from statewise.kernels.linear_scan import triton as backend
from tests.kernels.scan_cases import Case, complex_of, leaves, make
from tests.tolerance import INTERPRETER_BFLOAT16, assert_close, assert_within

DOUBLE = torch.float64
CHUNK = 3
SHORT_UNROLL = 2

# Lengths on both sides of UNROLL, 8.
SERIAL = (
    Case(2, 7, 5, reset="staggered", h_init=True),
    Case(1, 9, 33, reset="adjacent", h0=False),
    Case(2, 8, 3, is_complex=True, reset="random", h_init=True, hold=True),
    Case(3, 1, 2, varying=False, reset="first", h_init=True),
    Case(1, 9, 3, is_complex=True, varying=False, reset="last", h_init=True),
    Case(2, 3, 1, is_complex=True, reset="all", h0=False, h_init=True),
)
# On both sides of the border of the first and of the second chunk.
CHUNKED = (
    Case(2, 4, 5, reset="staggered", h_init=True),
    Case(1, 3, 2, reset="none"),
    Case(2, 6, 2, is_complex=True, reset="adjacent", h_init=True),
    Case(1, 7, 33, varying=False, reset="last", h_init=True),
    Case(2, 7, 2, is_complex=True, varying=False, reset="random", h0=False, h_init=True),
    Case(1, 6, 3, is_complex=True, reset="none", hold=True),
    Case(2, 7, 2, reset="all", h0=False, h_init=True),
    Case(1, 7, 3, varying=False, reset="all_false"),
    Case(2, 4, 1, is_complex=True, reset="first", h_init=True),
)


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split time into chunks of three steps; loops then unroll two steps, to save time here."""
    monkeypatch.setattr(triton_launch, "SERIAL_STEPS", 1)
    monkeypatch.setattr(triton_launch, "SHORTEST_CHUNK", CHUNK)
    monkeypatch.setattr(backend, "UNROLL", SHORT_UNROLL)


def _double(x: Tensor) -> Tensor:
    return x.to(torch.complex128 if x.is_complex() else DOUBLE)


def _results(
    run: Callable[..., tuple[Tensor, Tensor]], inputs: dict[str, Tensor], fixed: dict[str, Any]
) -> dict[str, Tensor]:
    """Return both outputs and the gradients of a loss that weighs both."""
    named = {name: x.detach().clone().requires_grad_() for name, x in inputs.items()}
    h, last = run(**named, **fixed)
    generator = torch.Generator().manual_seed(3)

    def cotangent(x: Tensor) -> Tensor:
        draw = torch.randn(*x.shape, 2, generator=generator, dtype=DOUBLE)
        return (torch.view_as_complex(draw) if x.is_complex() else draw[..., 0]).to(x.dtype)

    outputs = (h, last)
    gradients = torch.autograd.grad(outputs, list(named.values()), list(map(cotangent, outputs)))
    return {"h": h, "last": last} | {
        f"grad {name}": gradient for name, gradient in zip(named, gradients, strict=True)
    }


def _run(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda **arguments: linear_scan(**arguments, backend=backend)


def _compare(case: Case, dtype: torch.dtype = DOUBLE, bound: float | None = None) -> None:
    a, b, options = make(case, dtype)
    inputs = leaves(a, b, options)
    fixed = {name: options[name] for name in ("reset", "hold") if name in options}
    actual = _results(_run("triton"), inputs, fixed)
    expected = _results(_run("reference"), {k: _double(x) for k, x in inputs.items()}, fixed)
    for name, value in expected.items():
        source = inputs.get(name.removeprefix("grad "), b if name == "h" else a)
        assert actual[name].dtype == source.dtype, name
        if bound is None:
            gradient = name.startswith("grad")
            assert_close(actual[name], value, dtype, max(case.T, 8), gradient=gradient)
        else:
            assert_within(actual[name], value, bound)


@pytest.mark.parametrize("case", SERIAL, ids=str)
def test_one_loop_over_time_equals_the_reference(case):
    _compare(case)


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("case", CHUNKED, ids=str)
def test_chunks_of_time_equal_the_reference(case):
    assert triton_launch.split_time(case.B * case.D, case.T).chunks == -(-case.T // CHUNK)
    _compare(case)


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_many_lanes_take_several_channels_each(monkeypatch, is_complex):
    monkeypatch.setattr(triton_launch, "SERIAL_LANES", 8)
    _compare(Case(1, 2, 70, is_complex=is_complex, reset="last"))


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_float32_stays_within_the_limit(is_complex):
    case = Case(1, 7, 3, is_complex=is_complex, reset="staggered", h_init=True)
    _compare(case, torch.float32)


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("T", [3, 7], ids=["serial", "chunked"])
def test_bfloat16_inputs_keep_a_float32_state(T):
    _compare(Case(1, T, 3, reset="staggered", h_init=True), torch.bfloat16, INTERPRETER_BFLOAT16)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of inf and NaN
@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("T", [3, 8], ids=["serial", "chunked"])
def test_what_is_not_finite_does_not_pass_a_reset(T, is_complex):
    a, b, options = make(Case(2, T, 2, is_complex=is_complex, h_init=True))
    options["reset"] = torch.zeros(2, T, dtype=torch.bool)
    at = T - 2
    options["reset"][:, at] = True
    options["h0"] = torch.full_like(options["h0"], float("nan"))
    b[1, at - 1] = float("inf")
    inputs = leaves(a, b, options)
    h, last = linear_scan(**inputs, reset=options["reset"], backend="triton")
    assert not h[:, :at].isfinite().any()
    loss = h[:, at:].abs().square().sum() + last.abs().square().sum()
    da, db, dh0, dinit = torch.autograd.grad(loss, list(inputs.values()))
    assert loss.isfinite()
    assert (db[:, :at] == 0).all()
    assert (dh0 == 0).all()
    for gradient in (da[:, at:], db, dinit):
        assert gradient.isfinite().all()
        assert (gradient != 0).any()


@pytest.mark.usefixtures("chunked")
def test_inputs_of_any_strides_are_read_as_they_are():
    T = 4
    packed = torch.randn(T, 2, 9, dtype=DOUBLE).transpose(0, 1)
    b, a, h0 = (
        packed[..., 1:5],
        torch.rand(1, T, 4, dtype=DOUBLE).expand(2, T, 4),
        packed[:, 0, ::2],
    )
    a_of_steps = torch.rand(1, 1, 4, dtype=DOUBLE).expand(2, T, 4)
    every_other = packed[..., ::2][..., :4]
    for views in ((a, b), (a_of_steps, every_other)):
        leaf = views[0].detach().requires_grad_()  # keeps its strides
        h, last = linear_scan(leaf, views[1], h0=h0[:, :4], backend="triton")
        (actual,) = torch.autograd.grad(h.sum() + last.sum(), leaf)  # an expanded cotangent
        dense = views[0].contiguous().requires_grad_()
        expected_h, expected_last = linear_scan(
            dense, views[1].contiguous(), h0=h0[:, :4].contiguous(), backend="reference"
        )
        (expected,) = torch.autograd.grad(expected_h.sum() + expected_last.sum(), dense)
        assert_close(h, expected_h, DOUBLE, T)
        assert_close(last, expected_last, DOUBLE, T)
        assert_close(actual, expected, DOUBLE, T, gradient=True)


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("varying", [True, False], ids=["varying", "constant"])
def test_other_gradients_do_not_need_that_of_a(varying):
    a, b, options = make(Case(1, 4, 3, varying=varying, reset="staggered", h_init=True))
    inputs = leaves(a, b, options)
    whole = _results(_run("triton"), inputs, {"reset": options["reset"]})
    del inputs["a"]
    rest = _results(_run("triton"), inputs, {"a": a, "reset": options["reset"]})
    assert "grad a" not in rest
    for name, value in rest.items():
        assert torch.equal(value, whole[name]), name


def test_complex_numbers_keep_their_dtype():
    a, b, options = make(Case(1, 2, 2, is_complex=True), torch.float32)
    h, last = linear_scan(a, b, **options, backend="triton")
    assert h.dtype == last.dtype == complex_of(torch.float32)
