"""The public scan of Mamba-2 (SSD): checks, choice of backend, custom op, step.

Paper: Dao & Gu 2024, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through
Structured State Space Duality".

    h_t = exp(dt_t A) prev_t + dt_t x_t B_t^T,   prev_t = 0 where reset_t, else h_{t-1}
    y_t = h_t C_t + D x_t
"""

from typing import Any

import torch
from torch import Tensor

from statewise.kernels.checks import (
    FLOATS,
    require_dtype,
    require_flag,
    require_one_device,
    require_shape,
)
from statewise.kernels.dispatch import (
    Backend,
    accumulate_dtype,
    launcher,
    select_backend,
    steps_in_cpp,
)
from statewise.kernels.ssd_scan import reference
from statewise.kernels.ssd_scan import torch as chunked

OP = "ssd_scan"
CHUNK = 64  # products of 64 x 64 matrices: measured best on CPUs


@torch.library.custom_op("statewise::ssd_scan", mutates_args=())
def _ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    D: Tensor | None,
    h0: Tensor,
    reset: Tensor | None,
    chunk: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return launcher(OP, backend).forward(x, dt, A, Bm, Cm, D, h0, reset, chunk)


@_ssd_scan.register_fake
def _(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    D: Tensor | None,
    h0: Tensor,
    reset: Tensor | None,
    chunk: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), h0.new_empty(h0.shape)


@torch.library.custom_op("statewise::ssd_scan_backward", mutates_args=())
def _ssd_scan_backward(
    grad: Tensor,
    grad_last: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    D: Tensor | None,
    h0: Tensor,
    reset: Tensor | None,
    chunk: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    run = launcher(OP, backend).backward
    return run(grad, grad_last, x, dt, A, Bm, Cm, D, h0, reset, chunk)


@_ssd_scan_backward.register_fake
def _(
    grad: Tensor,
    grad_last: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    D: Tensor | None,
    h0: Tensor,
    reset: Tensor | None,
    chunk: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    skip = h0.new_empty((0,) if D is None else D.shape)
    return (
        x.new_empty(x.shape),
        h0.new_empty(dt.shape),
        h0.new_empty(A.shape),
        h0.new_empty(Bm.shape),
        h0.new_empty(Cm.shape),
        skip,
        h0.new_empty(h0.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.chunk, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
    x, dt, A, Bm, Cm, D, h0, reset = ctx.saved_tensors
    dx, ddt, dA, dB, dC, dD, dh0 = _ssd_scan_backward(
        grad, grad_last, x, dt, A, Bm, Cm, D, h0, reset, ctx.chunk, ctx.backend
    )
    skip = None if D is None else dD
    return dx, ddt, dA, dB.to(Bm.dtype), dC.to(Cm.dtype), skip, dh0, None, None, None


_ssd_scan.register_autograd(_backward, setup_context=_setup_context)


def _check(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    D: Tensor | None,
    h0: Tensor | None,
    reset: Tensor | None,
) -> None:
    """Raise ValueError, in one line, unless all shapes, dtypes and devices fit."""
    if x.dim() != 4 or Bm.dim() != 4:
        raise ValueError(
            f"{OP}: x must be (B, T, H, P) and Bm (B, T, G, N), got {tuple(x.shape)} and "
            f"{tuple(Bm.shape)}"
        )
    B, T, H, P = x.shape
    G, N = Bm.shape[2:]
    if G < 1 or H % G:
        raise ValueError(f"{OP}: the groups of Bm must divide the {H} heads of x, got {G}")
    require_shape(OP, "dt", dt, (B, T, H))
    require_shape(OP, "A", A, (H,))
    require_shape(OP, "Bm", Bm, (B, T, G, N))
    require_shape(OP, "Cm", Cm, (B, T, G, N))
    require_shape(OP, "D", D, (H,), (H, P))
    require_shape(OP, "h0", h0, (B, H, P, N))
    require_flag(OP, "reset", reset, (B, T))
    require_dtype(OP, FLOATS, x=x, dt=dt, A=A, Bm=Bm, Cm=Cm, D=D, h0=h0)
    require_one_device(OP, x=x, dt=dt, A=A, Bm=Bm, Cm=Cm, D=D, h0=h0, reset=reset)


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    *,
    chunk: int = CHUNK,
    D: Tensor | None = None,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Run a scan whose decay is one number per head, as products of matrices.

    Args:
        x: (B, T, H, P), input of H heads; float32, float64 or bfloat16.
        dt: (B, T, H), positive steps.
        A: (H,), negative.
        Bm: (B, T, G, N), G dividing H: group g serves heads g H / G and following.
        Cm: (B, T, G, N).
        chunk: steps per chunk, >= 1; the result does not depend on it.
        D: (H,) or (H, P), skip; None is 0.
        h0: (B, H, P, N), state before x[:, 0]; None is 0.
        reset: (B, T) bool; True clears the state before x[:, t] is read.
        backend: "auto", "reference" (the loop; differentiable twice), "torch", "cpu", "triton".

    Returns:
        y (B, T, H, P) in the dtype of x, and the last state (B, H, P, N) in the accumulation
        dtype (float32 for bfloat16); differentiable in every float argument.

    Raises:
        ValueError: a shape or dtype does not fit.
        BackendError: the backend asked for by name cannot run.
    """
    _check(x, dt, A, Bm, Cm, D, h0, reset)
    if chunk < 1:
        raise ValueError(f"{OP}: chunk must be at least 1, got {chunk}")
    B, _, H, P = x.shape
    dtype = accumulate_dtype(x.dtype)
    h0 = x.new_zeros((B, H, P, Bm.shape[3]), dtype=dtype) if h0 is None else h0.to(dtype)
    if D is not None:
        D = (D if D.dim() == 2 else D[:, None].expand(H, P)).to(dtype)
    chosen = select_backend(OP, x.device, x.dtype, backend)
    if x.numel() == 0 or h0.numel() == 0:
        return (x.clone() if x.numel() == 0 else _skip(x, D)), h0.clone()
    dt, A, Bm, Cm = dt.to(dtype), A.to(dtype), Bm.to(x.dtype), Cm.to(x.dtype)
    if chosen == "reference":
        return reference.forward(x, dt, A, Bm, Cm, D, h0, reset)
    if chosen == "torch":
        return chunked.forward(x, dt, A, Bm, Cm, D, h0, reset, chunk)
    y, last = _ssd_scan(x, dt, A, Bm, Cm, D, h0, reset, chunk, chosen)
    return y, last


def _skip(x: Tensor, D: Tensor | None) -> Tensor:
    return torch.zeros_like(x) if D is None else (D * x).to(x.dtype)


def ssd_step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    h: Tensor,
    *,
    D: Tensor | None = None,
    reset: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """One step of `ssd_scan`, without its checks: x (B, H, P), dt (B, H), Bm, Cm (B, G, N).

    D is (H, P) or (H, 1). Acting without gradient on a CPU is one call into C++; everything else
    is torch operations.

    Returns:
        y (B, H, P) and the next state (B, H, P, N).
    """
    if steps_in_cpp(OP, x, h, backend):
        y, h = torch.ops.statewise_cpu.ssd_scan_step(x, dt, A, Bm, Cm, D, h, reset)
        return y, h
    dtype = x.dtype
    x, dt, A, Bm, Cm = (v.to(h.dtype) for v in (x, dt, A, Bm, Cm))
    y, h = reference.step(x, dt, A, Bm, Cm, D, h, reset)
    return y.to(dtype), h
