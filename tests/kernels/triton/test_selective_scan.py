"""The Triton kernels of the selective scan: one loop, and chunks of time, against the reference."""

from typing import Any

import pytest
import torch
from torch import Tensor

from statewise.kernels import selective_scan, triton_launch
from statewise.kernels.selective_scan import triton as backend
from tests.kernels.selective_cases import Case, floats, make, results
from tests.tolerance import INTERPRETER_BFLOAT16, assert_close, assert_within

DOUBLE = torch.float64
KEPT = 4  # every so many steps a state is kept in these tests, and no chunk is shorter

# Letters of options: D skip, z gate, b bias, s softplus, h initial state, o override.
SERIAL = (
    Case(B=2, T=5, E=3, N=2, reset="staggered"),
    Case(B=1, T=4, E=2, N=1, options="", reset="none"),
    Case(B=2, T=3, E=4, N=3, G=2, kind="signed", options="zs", reset="random"),
    Case(B=1, T=4, E=3, N=2, kind="complex", options="Dzbsho", reset="adjacent"),
    Case(B=1, T=6, E=2, N=3, options="bho", reset="all_false"),
)
# Time is split behind every fourth step.
CHUNKED = (
    Case(B=1, T=5, E=4, N=2, G=2, reset="staggered"),
    Case(B=1, T=8, E=2, N=2, kind="complex", options="Dzsh", reset="last"),
    Case(B=1, T=9, E=2, N=2, kind="signed", options="bsho", reset="none"),
    Case(B=1, T=9, E=2, N=1, kind="complex", options="bh", reset="adjacent"),
    Case(B=2, T=5, E=2, N=2, options="zh", reset="random"),
    Case(B=1, T=5, E=2, N=2, options="s", reset="all"),
    Case(B=1, T=5, E=1, N=1, kind="signed", options="Dh", reset="first"),
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every fourth state and go through two steps at a time, to save time here."""
    monkeypatch.setattr(backend, "CHUNK", KEPT)
    monkeypatch.setattr(backend, "SUB", 2)


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Split time into the shortest chunks."""
    monkeypatch.setattr(triton_launch, "SERIAL_STEPS", 1)
    monkeypatch.setattr(triton_launch, "SHORTEST_CHUNK", 1)


def _exact(arguments: dict[str, Any]) -> dict[str, Any]:
    changed = floats(arguments) | {
        name: arguments[name] for name in ("a_override",) if name in arguments
    }
    return arguments | {
        name: value.to(torch.complex128 if value.is_complex() else DOUBLE)
        for name, value in changed.items()
    }


def _compare(case: Case, dtype: torch.dtype = DOUBLE, bound: float | None = None) -> None:
    arguments = make(case, dtype)
    actual, (y, last) = results(arguments, "triton")
    weights = y.double(), last.to(torch.complex128 if last.is_complex() else DOUBLE)
    expected, _ = results(_exact(arguments), "reference", weights)
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
    assert triton_launch.split_time(case.B * case.E, case.T, KEPT).chunks == -(-case.T // KEPT)
    _compare(case)


@pytest.mark.usefixtures("split")
def test_the_sizes_of_a_gpu_equal_the_reference():
    """Nothing but the shortest chunk is changed: a state is kept every 32 steps."""
    assert triton_launch.split_time(1, 34, backend.CHUNK) == (2, 32)
    _compare(Case(B=1, T=34, E=1, N=1, options="Dsh", reset="random"))


@pytest.mark.usefixtures("small", "split")
def test_blocks_of_channels_equal_the_reference(monkeypatch):
    """Tiles of two channels, where groups have three: blocks end inside a group."""
    for name in ("FORWARD", "ADJOINT"):
        monkeypatch.setattr(backend, name, backend.Limits(4, 2, 128))
    assert backend.tile(2, 3, False, backend.FORWARD).channels == 2
    _compare(Case(B=1, T=5, E=6, N=2, G=2, options="Dzsh", reset="last"))


@pytest.mark.usefixtures("small", "split")
@pytest.mark.parametrize("kind", ["real", "signed", "complex"])
def test_float32_stays_within_the_limit(kind):
    _compare(Case(B=1, T=5, E=3, N=2, kind=kind, reset="last"), torch.float32)


@pytest.mark.usefixtures("small", "split")
@pytest.mark.parametrize("T", [3, 5], ids=["serial", "chunked"])
def test_bfloat16_inputs_keep_a_float32_state(T):
    case = Case(B=1, T=T, E=3, N=2, reset="last")
    _compare(case, torch.bfloat16, INTERPRETER_BFLOAT16)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of inf and NaN
@pytest.mark.usefixtures("small", "split")
@pytest.mark.parametrize("kind", ["real", "complex"])
@pytest.mark.parametrize("T", [4, 7], ids=["serial", "chunked"])
def test_what_is_not_finite_does_not_pass_a_reset(T, kind):
    arguments = make(Case(B=1, T=T, E=2, N=2, kind=kind, reset="none"))
    at = T - 2
    arguments["reset"] = torch.zeros(1, T, dtype=torch.bool)
    arguments["reset"][:, at] = True
    arguments["h0"] = torch.full_like(arguments["h0"], float("nan"))
    arguments["u"][:, at - 1] = float("inf")
    leaves = {name: value.requires_grad_() for name, value in floats(arguments).items()}
    y, last = selective_scan(**arguments, backend="triton")
    assert not y[:, :at].isfinite().any()
    loss = y[:, at:].square().sum() + last.abs().square().sum()
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    assert loss.isfinite()
    assert (gradients["h0"] == 0).all()
    assert (gradients["u"][:, :at] == 0).all()
    for name in ("u", "dt", "z", "Bm", "Cm"):
        later = gradients[name][:, at:]
        assert later.isfinite().all(), name
        assert (later != 0).any(), name


@pytest.mark.usefixtures("small", "split")
def test_slices_of_a_projection_are_read_as_they_are():
    T, E, N = 5, 2, 3
    packed = torch.randn(T, 1, 3 * E + 4 * N, dtype=DOUBLE).transpose(0, 1)
    u, dt, z, Bm, Cm = packed.split([E, E, E, 2 * N, 2 * N], -1)
    views: list[Tensor] = [u, dt, -torch.rand(N, E, dtype=DOUBLE).T]
    views += [x.unflatten(-1, (2, N)) for x in (Bm, Cm)]
    h0 = torch.randn(1, N, E, dtype=DOUBLE).mT
    leaf = z.detach().requires_grad_()  # keeps its strides
    y, last = selective_scan(*views, z=leaf, h0=h0, backend="triton")
    (actual,) = torch.autograd.grad(y.sum() + last.sum(), leaf)  # an expanded cotangent
    dense = leaf.detach().contiguous().requires_grad_()
    expected_y, expected_last = selective_scan(
        *(x.contiguous() for x in views), z=dense, h0=h0.contiguous(), backend="reference"
    )
    (expected,) = torch.autograd.grad(expected_y.sum() + expected_last.sum(), dense)
    assert_close(y, expected_y, DOUBLE, T)
    assert_close(last, expected_last, DOUBLE, T)
    assert_close(actual, expected, DOUBLE, T, gradient=True)


def test_without_a_gradient_no_state_is_kept(monkeypatch):
    sizes = []
    forward = backend.forward

    def spy(*arguments: Any) -> Any:
        out = forward(*arguments)
        sizes.append(out[2].numel())
        return out

    monkeypatch.setattr(backend, "forward", spy)
    arguments = make(Case(B=1, T=3, E=2, N=2))
    y, last = selective_scan(**arguments, backend="triton")
    expected, expected_last = selective_scan(**arguments, backend="reference")
    assert sizes == [0]
    assert_close(y, expected, DOUBLE, 3)
    assert_close(last, expected_last, DOUBLE, 3)
