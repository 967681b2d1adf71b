"""The Triton kernels of the time-invariant scan: one loop, and chunks of time."""

import pytest
import torch

from statewise.kernels import triton_launch
from statewise.kernels.ssm_scan_lti import triton as backend
from statewise.kernels.ssm_scan_lti.op import ssm_scan_lti
from tests.kernels.lti_cases import INPUTS, Case, double, make, results
from tests.tolerance import INTERPRETER_BFLOAT16, assert_close, assert_within

DOUBLE = torch.float64
KEPT = 4  # every so many steps a state is kept in these tests, and no chunk is shorter

# Lengths on both sides of UNROLL, 4, and of a kept state.
SERIAL = (
    Case(B=2, T=7, H=3, N=2, reset="staggered"),
    Case(B=1, T=9, H=2, N=3, reset="adjacent", h0=False),
    Case(B=3, T=1, H=1, N=1, reset="first"),
    Case(B=1, T=4, H=5, N=4, reset="all"),
    Case(B=1, T=5, H=2, N=1, reset="none"),
)
# On both sides of the borders of chunks.
CHUNKED = (
    Case(B=2, T=5, H=3, N=2, reset="random"),
    Case(B=1, T=8, H=2, N=3, reset="none"),
    Case(B=1, T=9, H=1, N=2, reset="last"),
    Case(B=1, T=11, H=2, N=1, reset="adjacent", h0=False),
    Case(B=2, T=5, H=1, N=1, reset="first"),
    Case(B=1, T=12, H=1, N=2, reset="all_false"),
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every fourth state, to save time here."""
    monkeypatch.setattr(backend, "CHUNK", KEPT)


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split time into the shortest chunks."""
    monkeypatch.setattr(triton_launch, "SERIAL_STEPS", 1)
    monkeypatch.setattr(triton_launch, "SHORTEST_CHUNK", 1)


def _compare(case: Case, dtype: torch.dtype = DOUBLE, bound: float | None = None) -> None:
    arguments = make(case, dtype)
    actual, (y, last) = results(arguments, "triton")
    weights = y.double(), last.to(torch.complex128)
    expected, _ = results(double(arguments), "reference", weights)
    for name, value in expected.items():
        source = arguments.get(name.removeprefix("grad "))
        assert source is None or actual[name].dtype == source.dtype, name
        if bound is None:
            gradient = name.startswith("grad")
            assert_close(actual[name], value, dtype, max(case.T, 8), gradient=gradient)
        else:
            assert_within(actual[name], value, bound)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("case", SERIAL, ids=str)
def test_one_loop_over_time_equals_the_reference(case):
    _compare(case)


@pytest.mark.usefixtures("small", "split")
@pytest.mark.parametrize("case", CHUNKED, ids=str)
def test_chunks_of_time_equal_the_reference(case):
    assert triton_launch.split_time(case.B * case.H, case.T, KEPT).chunks == -(-case.T // KEPT)
    _compare(case)


@pytest.mark.usefixtures("split")
def test_the_sizes_of_a_gpu_equal_the_reference():
    """Nothing but the shortest chunk is changed: a state is kept every 64 steps."""
    assert triton_launch.split_time(1, 66, backend.CHUNK) == (2, 64)
    _compare(Case(B=1, T=66, H=1, N=1, reset="random"))


@pytest.mark.usefixtures("small", "split")
def test_blocks_of_channels_equal_the_reference(monkeypatch):
    """One channel a block, where its states fill one."""
    monkeypatch.setattr(backend, "TILE", backend.WARP)
    _compare(Case(B=1, T=5, H=2, N=17, reset="last"))


@pytest.mark.usefixtures("small", "split")
@pytest.mark.parametrize("T", [4, 9], ids=["serial", "chunked"])
def test_float32_stays_within_the_limit(T):
    _compare(Case(B=1, T=T, H=2, N=3, reset="last"), torch.float32)


@pytest.mark.usefixtures("small", "split")
@pytest.mark.parametrize("T", [4, 9], ids=["serial", "chunked"])
def test_bfloat16_inputs_keep_a_float32_state(T):
    _compare(Case(B=1, T=T, H=2, N=3, reset="last"), torch.bfloat16, INTERPRETER_BFLOAT16)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of inf and NaN
@pytest.mark.usefixtures("small", "split")
@pytest.mark.parametrize("T", [4, 10], ids=["serial", "chunked"])
def test_what_is_not_finite_does_not_pass_a_reset(T):
    arguments = make(Case(B=1, T=T, H=2, N=2, reset="none"))
    at = T - 2
    arguments["reset"] = torch.zeros(1, T, dtype=torch.bool)
    arguments["reset"][:, at] = True
    arguments["h0"] = torch.full_like(arguments["h0"], float("nan"))
    arguments["x"][:, at - 1] = float("inf")
    leaves = [arguments[name].requires_grad_() for name in ("x", "h0")]
    y, last = ssm_scan_lti(**arguments, backend="triton")
    assert not y[:, :at].isfinite().any()
    loss = y[:, at:].square().sum() + last.abs().square().sum()
    dx, dh0 = torch.autograd.grad(loss, leaves)
    assert loss.isfinite()
    assert (dh0 == 0).all()
    assert (dx[:, :at] == 0).all()
    assert dx[:, at:].isfinite().all()
    assert (dx[:, at:] != 0).all()


@pytest.mark.usefixtures("small", "split")
def test_slices_of_a_projection_are_read_as_they_are():
    T, H = 5, 1
    arguments = make(Case(B=2, T=T, H=H, N=3))
    packed = torch.randn(T, 2, 3 * H, dtype=DOUBLE).transpose(0, 1)
    for name in ("abar", "bbar", "c"):
        arguments[name] = arguments[name].T.contiguous().T
    for x in (packed[..., H : 2 * H], packed[:1, ..., ::3].expand(2, T, H)):
        leaf = x.detach().requires_grad_()  # keeps its strides
        y, last = ssm_scan_lti(**(arguments | {"x": leaf}), backend="triton")
        (actual,) = torch.autograd.grad(y.sum() + last.abs().sum(), leaf)  # an expanded cotangent
        dense = x.contiguous().requires_grad_()
        expected_y, expected_last = ssm_scan_lti(**(arguments | {"x": dense}), backend="reference")
        (expected,) = torch.autograd.grad(expected_y.sum() + expected_last.abs().sum(), dense)
        assert_close(y, expected_y, DOUBLE, T)
        assert_close(last, expected_last, DOUBLE, T)
        assert_close(actual, expected, DOUBLE, T, gradient=True)


@pytest.mark.usefixtures("small", "split")
@pytest.mark.parametrize("only", [("x",), ("h0",), ("c",)], ids=str)
def test_a_gradient_does_not_depend_on_which_others_are_asked_for(only):
    arguments = make(Case(B=1, T=5, H=2, N=2))
    expected, weights = results(arguments, "reference")
    actual, _ = results(arguments, "triton", weights, only)
    assert {f"grad {name}" for name in INPUTS} & set(actual) == {f"grad {name}" for name in only}
    for name, value in actual.items():
        assert_close(value, expected[name], DOUBLE, 8, gradient=name.startswith("grad"))
