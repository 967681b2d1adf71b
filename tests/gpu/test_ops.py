"""The Triton kernels on a GPU: values and gradients against the loop in double precision."""

from typing import Any

import pytest
import torch
from torch import Tensor

from statewise.bench.gpu_cases import OPS, Workload, differentiable, run
from tests.gpu.gpu_only import CUDA, marks
from tests.tolerance import assert_close, assert_within, limit

pytestmark = marks
FLOAT, DOUBLE, BFLOAT = torch.float32, torch.float64, torch.bfloat16

# Lengths in one piece and in chunks, sizes that no block divides, and that of the targets. The
# loop keeps all states for its gradient, so scans with large ones meet plain torch there.
TARGET = (16, 1024, 256)
SMALL = ((3, 37, 64), (2, 130, 192), (1, 1000, 64))
REALISTIC = {
    "linear_scan": TARGET,
    "linear_scan complex constant": TARGET,
    "discounted_scan": TARGET,
    "causal_conv1d": TARGET,
    "ssm_scan_lti": (4, 1024, 128),
    "selective_scan": (4, 1024, 128),
    "ssd_scan": (2, 1024, 128),
}
SERIAL = (160, 150, 256)  # as many lanes as are run in one loop over time
CASES = [
    Workload(op=op, shape=shape, dtype=dtype)
    for op in OPS
    for dtype in OPS[op].dtypes
    for shape in (*SMALL, REALISTIC[op])
] + [Workload(op=op, shape=SERIAL, dtype=FLOAT) for op in ("linear_scan", "causal_conv1d")]
INITIAL = {
    "linear_scan": "h0",
    "linear_scan complex constant": "h0",
    "discounted_scan": "last",
    "causal_conv1d": "state",
    "ssm_scan_lti": "h0",
    "selective_scan": "h0",
    "ssd_scan": "h0",
}


def _wide(x: Tensor) -> Tensor:
    if x.dtype == torch.bool:
        return x
    return x.to(torch.complex128 if x.is_complex() else DOUBLE)


def _arguments(workload: Workload) -> dict[str, Tensor]:
    """Draw inputs, with a state before the window where the last one shows its shape."""
    arguments = OPS[workload.op].make(workload)
    name = INITIAL[workload.op]
    if name == "last":
        arguments[name] = torch.randn(workload.shape[0])
    elif name not in arguments:
        # A window of one step shows the shape and the dtype of the state.
        first = {
            key: x[:, :1] if x.dim() > 1 and x.shape[:2] == workload.shape[:2] else x
            for key, x in arguments.items()
        }
        arguments[name] = torch.randn_like(run(workload, first, "torch")[1])
    return arguments


def _results(
    workload: Workload, arguments: dict[str, Tensor], backend: Any, device: torch.device
) -> dict[str, Tensor]:
    """Return outputs and gradients of a loss that weighs both outputs, on the CPU."""
    placed = {name: x.to(device) for name, x in arguments.items()}
    leaves = differentiable(placed)
    outputs = run(workload, placed | leaves, backend)
    draw = torch.Generator().manual_seed(3)
    weights = [
        torch.randn(y.shape, generator=draw, dtype=torch.complex128 if y.is_complex() else DOUBLE)
        for y in outputs
    ]
    cotangents = [g.to(device, y.dtype) for g, y in zip(weights, outputs, strict=True)]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
    named = {f"grad {name}": g.cpu() for name, g in zip(leaves, gradients, strict=True)}
    return {f"output {i}": y.detach().cpu() for i, y in enumerate(outputs)} | named


@pytest.mark.parametrize("workload", CASES, ids=str)
def test_a_kernel_equals_the_loop_in_double(workload):
    arguments = _arguments(workload)
    actual = _results(workload, arguments, "triton", CUDA)
    exact = {name: _wide(x) for name, x in arguments.items()}
    expected = _results(workload, exact, "reference", torch.device("cpu"))
    T = workload.shape[1]
    for name, value in expected.items():
        gradient = name.startswith("grad")
        if workload.dtype == BFLOAT:
            assert_within(actual[name], value, limit(BFLOAT, T))
        else:
            assert_close(actual[name], value, FLOAT, T, gradient=gradient)


@pytest.mark.parametrize("op", [op for op, shape in REALISTIC.items() if shape != TARGET])
def test_at_the_size_of_the_targets_a_kernel_equals_plain_torch_in_double(op):
    workload = Workload(op=op, shape=TARGET, dtype=FLOAT)
    arguments = _arguments(workload)
    actual = _results(workload, arguments, "triton", CUDA)
    exact = {name: _wide(x) for name, x in arguments.items()}
    for name, value in _results(workload, exact, "torch", CUDA).items():
        assert_close(actual[name], value, FLOAT, TARGET[1], gradient=name.startswith("grad"))


@pytest.mark.parametrize("op", list(OPS))
def test_two_runs_are_bitwise_equal(op):
    workload = Workload(op=op, shape=(4, 300, 128), dtype=FLOAT)
    arguments = _arguments(workload)
    first, second = (_results(workload, arguments, "triton", CUDA) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(second[name], value), name


@pytest.mark.parametrize("op", list(OPS))
def test_auto_is_the_triton_backend(op):
    workload = Workload(op=op, shape=(2, 40, 64), dtype=FLOAT)
    arguments = _arguments(workload)
    by_name = _results(workload, arguments, "triton", CUDA)
    for name, value in _results(workload, arguments, "auto", CUDA).items():
        assert torch.equal(by_name[name], value), name
