"""The workloads of the GPU benchmark: the inputs of every op, and the bytes it has to move.

Bytes are those of arrays read once and written once, resets and states left out: for a scan of
time-varying real decays 12 per element forwards (a, b, h) and 20 backwards (a, h, g; da, db).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from statewise.kernels import (
    Backend,
    causal_conv1d,
    discounted_scan,
    linear_scan,
    selective_scan,
    ssd_scan,
)
from statewise.kernels.ssm_scan_lti.op import ssm_scan_lti

Shape = tuple[int, int, int]
SHAPES: tuple[Shape, ...] = ((16, 64, 256), (16, 1024, 256), (64, 256, 1024), (1, 16384, 512))
RESET_RATE = 0.02
EXPANSION = 2  # channels inside Mamba's layers, per channel of the model
S6_STATES = 16
LTI_STATES = 32
SSD_HEAD = 64  # channels and states of a head
TAPS = 4
FLOAT = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One op at one shape (B, T, D) of the model around it."""

    op: str  # a key of OPS
    shape: Shape
    dtype: torch.dtype  # float32 or bfloat16, of the streamed arrays


class Op(NamedTuple):
    """How an op is fed, called, and counted."""

    make: Callable[[Workload], dict[str, Tensor]]
    """Its arguments, on the CPU; drawn from torch's generator."""
    call: Callable[..., Any]
    """Takes them and `backend`; returns a tensor or a tuple of tensors."""
    traffic: Callable[[Workload], tuple[int, int]]
    """Bytes forwards and backwards."""
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)


def _reset(B: int, T: int) -> Tensor:
    return torch.rand(B, T) < RESET_RATE


def _disc(*shape: int) -> Tensor:
    """Draw complex decays of modulus 0.9 to 0.9999."""
    return torch.polar(0.9 + 0.0999 * torch.rand(shape), 6.28 * torch.rand(shape))


def _linear(w: Workload) -> dict[str, Tensor]:
    a = 0.9 + 0.0999 * torch.rand(w.shape)
    return {"a": a, "b": torch.randn(w.shape).to(w.dtype), "reset": _reset(*w.shape[:2])}


def _linear_bytes(w: Workload) -> tuple[int, int]:
    n, s = _size(w), w.dtype.itemsize
    return n * (FLOAT + 2 * s), n * (2 * FLOAT + 3 * s)


def _complex(w: Workload) -> dict[str, Tensor]:
    (B, T, D), kind = w.shape, torch.complex64
    return {"a": _disc(D), "b": torch.randn(w.shape, dtype=kind), "reset": _reset(B, T)}


def _complex_bytes(w: Workload) -> tuple[int, int]:
    return 4 * FLOAT * _size(w), 6 * FLOAT * _size(w)


def _discounted(w: Workload) -> dict[str, Tensor]:
    B, T, _ = w.shape
    discount = torch.where(_reset(B, T), 0.0, 0.95)
    return {"x": torch.randn(B, T), "discount": discount}


def _discounted_bytes(w: Workload) -> tuple[int, int]:
    n = w.shape[0] * w.shape[1] * FLOAT
    return 3 * n, 5 * n


def _selective(w: Workload) -> dict[str, Tensor]:
    B, T, E = *w.shape[:2], EXPANSION * w.shape[2]
    arguments = {name: torch.randn(B, T, E).to(w.dtype) for name in ("u", "dt", "z")}
    mixing = {name: torch.randn(B, T, S6_STATES).to(w.dtype) for name in ("Bm", "Cm")}
    A = -torch.arange(1.0, S6_STATES + 1).repeat(E, 1)
    fixed = {"A": A, "D": torch.ones(E), "dt_bias": torch.full((E,), -4.0)}
    return arguments | mixing | fixed | {"reset": _reset(B, T)}


def _selective_bytes(w: Workload) -> tuple[int, int]:
    n, m = EXPANSION * _size(w), w.shape[0] * w.shape[1] * S6_STATES
    return w.dtype.itemsize * (4 * n + 2 * m), w.dtype.itemsize * (7 * n + 4 * m)


def _lti(w: Workload) -> dict[str, Tensor]:
    B, T, D = w.shape
    pair = [torch.randn(D, LTI_STATES, dtype=torch.complex64) for _ in range(2)]
    x = torch.randn(w.shape).to(w.dtype)
    a = _disc(D, LTI_STATES)
    return {"x": x, "abar": a, "bbar": pair[0], "c": pair[1], "reset": _reset(B, T)}


def _conv(w: Workload) -> dict[str, Tensor]:
    B, T, E = *w.shape[:2], EXPANSION * w.shape[2]
    taps = {"w": torch.randn(E, TAPS), "bias": torch.randn(E), "state": torch.randn(B, E, TAPS - 1)}
    return {"x": torch.randn(B, T, E).to(w.dtype), "reset": _reset(B, T)} | taps


def _ssd(w: Workload) -> dict[str, Tensor]:
    B, T, H = *w.shape[:2], EXPANSION * w.shape[2] // SSD_HEAD
    mixing = {name: torch.randn(B, T, 1, SSD_HEAD).to(w.dtype) for name in ("Bm", "Cm")}
    x, dt = torch.randn(B, T, H, SSD_HEAD).to(w.dtype), 0.1 * torch.rand(B, T, H)
    fixed = {"A": -1 - torch.rand(H), "D": torch.ones(H), "reset": _reset(B, T)}
    return {"x": x, "dt": dt.to(w.dtype)} | mixing | fixed


def _ssd_bytes(w: Workload) -> tuple[int, int]:
    rows = w.shape[0] * w.shape[1]
    n, m, heads = EXPANSION * _size(w), rows * SSD_HEAD, EXPANSION * _size(w) // SSD_HEAD
    return (
        w.dtype.itemsize * (2 * n + 2 * m + heads),
        w.dtype.itemsize * (3 * n + 4 * m + 2 * heads),
    )


def _size(w: Workload) -> int:
    return w.shape[0] * w.shape[1] * w.shape[2]


def _in_and_out(factor: int) -> Callable[[Workload], tuple[int, int]]:
    """Count x and y forwards; x, g and dx backwards."""
    return lambda w: (
        2 * factor * _size(w) * w.dtype.itemsize,
        3 * factor * _size(w) * w.dtype.itemsize,
    )


OPS: dict[str, Op] = {
    "linear_scan": Op(_linear, linear_scan, _linear_bytes),
    "linear_scan complex constant": Op(_complex, linear_scan, _complex_bytes, (torch.float32,)),
    "discounted_scan": Op(_discounted, discounted_scan, _discounted_bytes, (torch.float32,)),
    "causal_conv1d": Op(_conv, causal_conv1d, _in_and_out(EXPANSION)),
    "ssm_scan_lti": Op(_lti, ssm_scan_lti, _in_and_out(1)),
    "selective_scan": Op(_selective, selective_scan, _selective_bytes),
    "ssd_scan": Op(_ssd, ssd_scan, _ssd_bytes),
}


def workloads(ops: tuple[str, ...] = tuple(OPS)) -> list[Workload]:
    """Return every op at every shape in every dtype it takes."""
    return [
        Workload(op=op, shape=shape, dtype=dtype)
        for op in ops
        for shape in SHAPES
        for dtype in OPS[op].dtypes
    ]


def differentiable(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the arguments that an op is differentiable in, as fresh leaves."""
    return {
        name: value.detach().requires_grad_()
        for name, value in arguments.items()
        if value.dtype != torch.bool
    }


def run(w: Workload, arguments: dict[str, Tensor], backend: Backend) -> tuple[Tensor, ...]:
    """Call the op; return its outputs as a tuple."""
    outputs = OPS[w.op].call(**arguments, backend=backend)
    return outputs if isinstance(outputs, tuple) else (outputs,)
