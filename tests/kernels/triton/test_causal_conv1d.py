"""The Triton kernels of the causal convolution: one chunk of time, and several, and its laws."""

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from statewise.kernels import causal_conv1d
from statewise.kernels.causal_conv1d import triton as backend
from tests.kernels.scan_cases import wide
from tests.resets import KINDS, pattern
from tests.tolerance import INTERPRETER_BFLOAT16, assert_close, assert_within

DOUBLE = torch.float64
# Numpy, which the interpreter computes with, tells what these tests are about.
not_finite = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


class Case(NamedTuple):
    """One point of the test matrix; `full` is with bias and state."""

    B: int = 2
    T: int = 5
    E: int = 3
    W: int = 4
    silu: bool = True
    full: bool = True
    reset: str = "staggered"

    def __str__(self) -> str:
        options = [name for name in ("silu", "full") if getattr(self, name)]
        return "-".join(["x".join(map(str, self[:4])), *options, self.reset])


ONE_CHUNK = (
    Case(T=9),
    Case(B=1, T=1, E=1, silu=False, reset="none"),
    Case(B=3, T=2, reset="last"),
    Case(T=1, reset="first"),
    Case(T=3, E=130, full=False, reset="first"),
    Case(T=7, W=2, silu=False, full=False, reset="all"),
    Case(B=1, T=6, W=1, reset="random"),
    Case(B=1, T=9, W=6, silu=False, reset="adjacent"),
)
# On both sides of the borders of chunks of four steps; widths over one and two neighbours.
CHUNKED = (
    Case(T=4, reset="none"),
    Case(B=1, T=5),
    Case(B=1, T=8, silu=False, reset="random"),
    Case(B=1, T=6, E=1, W=7, reset="adjacent"),
    Case(B=1, T=13, E=1, W=3, reset="random"),
)


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every program four steps, in two turns of its loop, and two channels."""
    monkeypatch.setattr(backend, "CHUNK", 4)
    monkeypatch.setattr(backend, "UNROLL", 2)
    monkeypatch.setattr(backend, "CHANNELS", 2)


def _make(case: Case, dtype: torch.dtype = DOUBLE) -> dict[str, Any]:
    B, T, E, W = case[:4]
    own = wide(dtype)
    arguments: dict[str, Any] = {
        "x": torch.randn(B, T, E, dtype=DOUBLE).to(dtype),
        "w": torch.randn(E, W, dtype=own),
        "activation": "silu" if case.silu else None,
        "reset": pattern(case.reset, B, T),
    }
    if case.full:
        arguments["bias"] = torch.randn(E, dtype=own)
        arguments["state"] = torch.randn(B, E, W - 1, dtype=own)
    return arguments


def _floats(arguments: dict[str, Any]) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in arguments.items()
        if isinstance(value, Tensor) and value.dtype != torch.bool
    }


def _results(arguments: dict[str, Any], backend: str) -> dict[str, Tensor]:
    """Return both outputs and the gradients of a loss that weighs both."""
    leaves = {k: v.detach().clone().requires_grad_() for k, v in _floats(arguments).items()}
    outputs = causal_conv1d(**(arguments | leaves), backend=backend)
    draw = torch.Generator().manual_seed(3)
    weights = [torch.randn(x.shape, generator=draw, dtype=DOUBLE).to(x.dtype) for x in outputs]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), weights)
    named = {f"grad {name}": g for name, g in zip(leaves, gradients, strict=True)}
    return {"y": outputs[0], "after": outputs[1]} | named


def _compare(case: Case, dtype: torch.dtype = DOUBLE, bound: float | None = None) -> None:
    arguments = _make(case, dtype)
    actual = _results(arguments, "triton")
    exact = {name: value.double() for name, value in _floats(arguments).items()}
    for name, value in _results(arguments | exact, "reference").items():
        own = dtype if name in ("y", "grad x") else wide(dtype)
        assert actual[name].dtype == own, name
        if bound is None:
            assert_close(actual[name], value, dtype, case.T, gradient=name.startswith("grad"))
        else:
            assert_within(actual[name], value, bound)


@pytest.mark.parametrize("case", ONE_CHUNK, ids=str)
def test_one_chunk_equals_the_reference(case):
    _compare(case)


@pytest.mark.parametrize("case", CHUNKED, ids=str)
@pytest.mark.usefixtures("chunked")
def test_chunks_of_time_equal_the_reference(case):
    _compare(case)


@pytest.mark.parametrize("reset", KINDS)
@pytest.mark.usefixtures("chunked")
def test_every_reset_pattern_equals_the_reference(reset):
    _compare(Case(T=5, E=1, W=3, silu=False, reset=reset))


@pytest.mark.usefixtures("chunked")
def test_float32_stays_within_the_limit():
    _compare(Case(B=1, T=5, E=1), torch.float32)


@pytest.mark.usefixtures("chunked")
def test_bfloat16_inputs_keep_a_float32_state():
    _compare(Case(B=1, T=5, E=1), torch.bfloat16, INTERPRETER_BFLOAT16)


@not_finite
@pytest.mark.parametrize("at", [0, 2, 4])
@pytest.mark.usefixtures("chunked")
def test_what_is_not_finite_does_not_pass_a_reset(at):
    arguments = _make(Case(B=1, T=6, E=1, silu=False))
    arguments["reset"] = torch.zeros(1, 6, dtype=torch.bool)
    arguments["reset"][:, at] = True
    arguments["state"] = torch.full_like(arguments["state"], float("inf"))
    arguments["x"][:, :at] = float("nan")
    leaves = {k: v.requires_grad_() for k, v in _floats(arguments).items()}
    y, after = causal_conv1d(**arguments, backend="triton")
    assert not y[:, :at].isfinite().any()
    loss = y[:, at:].sum() + after.sum()
    assert loss.isfinite()
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    assert (gradients["state"] == 0).all()
    assert (gradients["x"][:, :at] == 0).all()
    assert (gradients["x"][:, at:] != 0).all()
    if at == 0:  # else the broken steps are in the sums, as zeros times infinity
        assert gradients["w"].isfinite().all()


@pytest.mark.usefixtures("chunked")
def test_inputs_of_any_strides_are_read_as_they_are():
    packed = torch.randn(3, 2, 9, dtype=DOUBLE).transpose(0, 1)
    w = torch.randn(3, 2, dtype=DOUBLE).t()
    state = torch.randn(2, 2, 2, dtype=DOUBLE).transpose(1, 2)
    for x in (packed[:1, :, ::8].expand(2, 3, 2), packed[..., 3:5]):
        leaf = x.detach().requires_grad_()  # keeps its strides
        y, after = causal_conv1d(leaf, w, state=state, backend="triton")
        (actual,) = torch.autograd.grad(y.sum() + after.sum(), leaf)  # an expanded cotangent
        dense = x.contiguous().requires_grad_()
        expected_y, expected_after = causal_conv1d(dense, w, state=state, backend="reference")
        (expected,) = torch.autograd.grad(expected_y.sum() + expected_after.sum(), dense)
        assert_close(y, expected_y, DOUBLE, 3)
        assert_close(after, expected_after, DOUBLE, 3)
        assert_close(actual, expected, DOUBLE, 3, gradient=True)
