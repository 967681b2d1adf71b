"""The Triton kernels of the scan of Mamba-2, products of matrices over chunks of time."""

import pytest
import torch

from statewise.kernels import ssd_scan
from statewise.kernels.ssd_scan import triton as backend
from tests.kernels.ssd_cases import Case, floats, make, results
from tests.tolerance import INTERPRETER_BFLOAT16, assert_close, assert_within

DOUBLE = torch.float64

# A chunk has at least 16 steps: lengths on both sides of one, and of two.
CASES = (
    Case(B=1, T=7, H=4, P=3, G=2, N=5, chunk=16, skip=1, reset="staggered"),
    Case(B=2, T=16, H=1, P=2, G=1, N=3, chunk=16, skip=0, reset="none"),
    Case(B=1, T=17, H=2, P=3, G=2, N=2, chunk=16, skip=2, reset="random"),
    Case(B=1, T=18, H=1, P=2, G=1, N=3, chunk=4, skip=1, reset="last"),
    Case(B=1, T=32, H=1, P=1, G=1, N=1, chunk=16, skip=2, h0=False, reset="adjacent"),
    Case(B=1, T=33, H=1, P=2, G=1, N=2, chunk=16, skip=0, reset="none"),
    Case(B=1, T=33, H=1, P=2, G=1, N=2, chunk=32, skip=1, reset="all_false"),
    Case(B=1, T=20, H=1, P=2, G=1, N=2, chunk=64, skip=1, reset="first"),
    Case(B=1, T=17, H=1, P=2, G=1, N=2, chunk=16, skip=0, h0=False, reset="all"),
)


def _compare(case: Case, dtype: torch.dtype = DOUBLE, bound: float | None = None) -> None:
    arguments = make(case, dtype)
    actual, weights = results(arguments, "triton")
    exact = arguments | {name: value.to(DOUBLE) for name, value in floats(arguments).items()}
    expected, _ = results(exact, "reference", (weights[0].to(DOUBLE), weights[1].to(DOUBLE)))
    for name, value in expected.items():
        source = arguments.get(name.removeprefix("grad "))
        assert source is None or actual[name].dtype == source.dtype, name
        if bound is None:
            gradient = name.startswith("grad")
            assert_close(actual[name], value, dtype, max(case.T, 8), gradient=gradient)
        else:
            assert_within(actual[name], value, bound)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_chunks_of_time_equal_the_reference(case):
    _compare(case)


def test_blocks_of_channels_and_states_equal_the_reference(monkeypatch):
    """Blocks of 16 where there are 17."""
    monkeypatch.setattr(backend, "LARGEST", 16)
    _compare(Case(B=1, T=17, H=1, P=17, G=1, N=17, chunk=16, skip=2, reset="last"))


def test_float32_stays_within_the_limit():
    _compare(Case(B=1, T=17, H=1, P=3, G=1, N=4, chunk=16, reset="last"), torch.float32)


@pytest.mark.parametrize("rate", [20.0, 200.0])
def test_large_decays_do_not_swallow_small_ones(rate):
    """The sum of log-decays of a chunk is large there; what matters are differences."""
    arguments = make(Case(B=1, T=32, H=1, G=1, chunk=32, reset="none"), torch.float32)
    arguments["dt"][:, :16] *= rate
    arguments["dt"][:, 16:] *= 1e-3
    exact = arguments | {name: value.to(DOUBLE) for name, value in floats(arguments).items()}
    expected, _ = ssd_scan(**exact, backend="reference")
    actual, _ = ssd_scan(**arguments, backend="triton")
    assert_close(actual, expected, torch.float32, 32)


def test_bfloat16_inputs_keep_a_float32_state():
    case = Case(B=1, T=17, H=1, P=3, G=1, N=4, chunk=16, reset="last")
    _compare(case, torch.bfloat16, INTERPRETER_BFLOAT16)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of inf and NaN
@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize(
    ("source", "at"), [("h0", 10), ("x", 10), ("x", 16), ("Bm", 16), ("h0", 17), ("x", 17)]
)
def test_what_is_not_finite_does_not_pass_a_reset(source, at):
    arguments = make(Case(B=1, T=20, H=1, P=2, G=1, N=2, chunk=16, reset="none"))
    arguments["reset"] = torch.zeros(1, 20, dtype=torch.bool)
    arguments["reset"][:, at] = True
    if source == "h0":
        arguments["h0"] = torch.full_like(arguments["h0"], float("nan"))
    else:
        arguments[source][:, at - 2] = float("inf")
    leaves = [arguments[name].requires_grad_() for name in ("x", "h0")]
    y, last = ssd_scan(**arguments, backend="triton")
    loss = y[:, at:].square().sum() + last.square().sum()
    dx, dh0 = torch.autograd.grad(loss, leaves)
    assert not y[:, at - 1].isfinite().any()
    assert source == "h0" or y[:, : at - 2].isfinite().all()
    assert loss.isfinite()
    assert dx[:, at:].isfinite().all()
    assert (dx[:, at:] != 0).all()
    if source != "Bm":  # else the loop, too, has 0 * inf before the reset
        assert (dh0 == 0).all()
        assert (dx[:, :at] == 0).all()


def test_slices_of_a_projection_are_read_as_they_are():
    T, H, P, N = 17, 2, 2, 3
    packed = torch.randn(T, 1, H * P + 2 * N + H, dtype=DOUBLE).transpose(0, 1)
    x, Bm, Cm, dt = packed.split([H * P, N, N, H], -1)
    leaf = x.unflatten(-1, (H, P)).detach().requires_grad_()  # keeps its strides
    others = [dt.abs(), -torch.rand(H, dtype=DOUBLE)]
    others += [m.unflatten(-1, (1, N)) for m in (Bm, Cm)]
    h0 = torch.randn(1, H, N, P, dtype=DOUBLE).mT
    y, last = ssd_scan(leaf, *others, h0=h0, chunk=16, backend="triton")
    (actual,) = torch.autograd.grad(y.sum() + last.sum(), leaf)  # an expanded cotangent
    dense = leaf.detach().contiguous().requires_grad_()
    expected_y, expected_last = ssd_scan(
        dense, *(v.contiguous() for v in others), h0=h0.contiguous(), backend="reference"
    )
    (expected,) = torch.autograd.grad(expected_y.sum() + expected_last.sum(), dense)
    assert_close(y, expected_y, DOUBLE, T)
    assert_close(last, expected_last, DOUBLE, T)
    assert_close(actual, expected, DOUBLE, T, gradient=True)
