"""What the C++ scans hold at once, forward and backward: a few copies of their input, no states.

The kernels are called without their custom ops, which would hide from a dispatch mode what is
allocated below them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from statewise.kernels.dispatch import launcher
from statewise.kernels.selective_scan.torch import Operands
from tests.kernels import lti_cases, selective_cases, ssd_cases
from tests.kernels.largest import LargestTensor, PeakMemory


class Measured(NamedTuple):
    """In sizes of the input of the scan."""

    largest: float
    forward: float
    peak: float


def _measure(
    x: Tensor, tensors: list[Tensor], forward: Callable[[], Any], backward: Callable[..., Any]
) -> Measured:
    """Run forward, then backward from its results, and note what was made."""
    with LargestTensor() as largest, PeakMemory(*tensors) as memory:
        results = forward()
        first = memory.peak
        gradients = backward(*results)
    measured = Measured(largest.largest / x.numel(), first / x.nbytes, memory.peak / x.nbytes)
    del results, gradients
    assert memory.live == 0, "the count of live memory is wrong"
    return measured


def _tensors(arguments: dict[str, Any]) -> list[Tensor]:
    return [value for value in arguments.values() if isinstance(value, Tensor)]


def _selective(kind: str, backend: str) -> Measured:
    """Every option, 16 real or 8 complex states per channel."""
    case = selective_cases.Case(B=2, T=512, E=64, N=16, kind=kind)
    pairs = kind == "complex"
    arguments = selective_cases.make(case._replace(N=8) if pairs else case, torch.float32)
    arguments = {name: torch.view_as_real(value) if isinstance(value, Tensor) and
                 value.is_complex() else value for name, value in arguments.items()}  # fmt: skip
    operands = Operands(*(arguments.get(name) for name in Operands._fields))
    grad, grad_last = torch.randn_like(operands.u), torch.randn_like(operands.h0)
    flags = (arguments["dt_softplus"], kind == "signed", pairs)
    run = launcher("selective_scan", backend)
    return _measure(
        operands.u,
        [*_tensors(arguments), grad, grad_last],
        lambda: run.forward(operands, *flags, True),
        lambda y, last, kept: run.backward(grad, grad_last, operands, kept, *flags),
    )


def _lti(backend: str) -> Measured:
    arguments = lti_cases.make(lti_cases.Case(B=2, T=512, H=32, N=32), torch.float32)
    given = [arguments["x"]]
    given += [torch.view_as_real(arguments[name]) for name in lti_cases.INPUTS[1:]]
    given += [arguments["reset"]]
    grad, grad_last = torch.randn_like(given[0]), torch.randn_like(given[4])
    run = launcher("ssm_scan_lti", backend)
    return _measure(
        given[0],
        [*given, grad, grad_last],
        lambda: run.forward(*given, True),
        lambda y, last, kept: run.backward(grad, grad_last, *given, kept, True, True),
    )


def _ssd(backend: str) -> Measured:
    case = ssd_cases.Case(B=2, T=512, H=4, P=32, G=1, N=64, skip=2)
    arguments = ssd_cases.make(case, torch.float32)
    given = [arguments[name] for name in ("x", "dt", "A", "Bm", "Cm", "D", "h0", "reset")]
    grad, grad_last = torch.randn_like(given[0]), torch.randn_like(arguments["h0"])
    run = launcher("ssd_scan", backend)
    return _measure(
        given[0],
        [*given, grad, grad_last],
        lambda: run.forward(*given, 64),
        lambda y, last: run.backward(grad, grad_last, *given, 64),
    )


@pytest.mark.parametrize("kind", ["real", "signed", "complex"])
def test_the_selective_scan_holds_at_most_six_times_its_input(kind):
    measured = _selective(kind, "cpu")
    assert measured.largest <= 1, measured  # all states: 16
    assert measured.forward <= 2, measured
    assert 3 < measured.peak <= 6, measured


def test_the_time_invariant_scan_holds_at_most_six_times_its_input():
    measured = _lti("cpu")
    assert measured.largest <= 1, measured  # all states: 64
    assert measured.forward <= 2.5, measured
    assert 2 < measured.peak <= 6, measured


def test_the_scan_of_mamba2_holds_at_most_six_times_its_input():
    measured = _ssd("cpu")
    assert measured.largest <= 1, measured  # all states: 64
    assert measured.forward <= 2, measured
    assert 2 < measured.peak <= 6, measured


def test_the_measurement_sees_what_is_made_below_an_op():
    # The torch backends hold all states of one chunk of 32 or 64 steps, several times.
    assert _selective("real", "torch").peak > 10
    assert _lti("torch").peak > 10
