"""The public linear scan: checks, choice of backend, custom op with its autograd formula.

    h_t = a_t * prev_t + b_t,    prev_t = h_init where reset_t, else h_{t-1},    h_{-1} = h0

Backward, with v the adjoint of h (Martin & Cundy 2018, "Parallelizing Linear Recurrent Neural
Nets Over Sequence Length"; conjugates by torch's convention for complex gradients):

    v_t = g_t + (0 where reset_{t+1} else conj(a_{t+1}) v_{t+1}),   v_{T-1} also takes g_last
    db_t = v_t,  da_t = v_t conj(prev_t),  dh0 = conj(a_0) v_0 unless reset_0
    dh_init = sum over resets of conj(a_t) v_t
"""

from typing import Any

import torch
from torch import Tensor

from statewise.kernels.checks import (
    COMPLEX,
    FLOATS,
    require_dtype,
    require_flag,
    require_one_device,
    require_shape,
)
from statewise.kernels.dispatch import Backend, accumulate_dtype, launcher, select_backend
from statewise.kernels.linear_scan import cpu, reference

OP = "linear_scan"


@torch.library.custom_op("statewise::linear_scan", mutates_args=())
def _linear_scan(
    a: Tensor,
    b: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    h_init: Tensor | None,
    pairs: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return launcher(OP, backend).forward(a, b, h0, reset, h_init, pairs)


@_linear_scan.register_fake
def _(
    a: Tensor,
    b: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    h_init: Tensor | None,
    pairs: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return b.new_empty(b.shape), h0.new_empty(h0.shape)


@torch.library.custom_op("statewise::linear_scan_backward", mutates_args=())
def _linear_scan_backward(
    grad_h: Tensor,
    grad_last: Tensor,
    a: Tensor,
    h: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    h_init: Tensor | None,
    pairs: bool,
    need_a: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return launcher(OP, backend).backward(grad_h, grad_last, a, h, h0, reset, h_init, pairs, need_a)


@_linear_scan_backward.register_fake
def _(
    grad_h: Tensor,
    grad_last: Tensor,
    a: Tensor,
    h: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    h_init: Tensor | None,
    pairs: bool,
    need_a: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        h0.new_empty(a.shape if need_a else (0,)),
        h.new_empty(h.shape),
        h0.new_empty(h0.shape),
        h0.new_empty((0,) if h_init is None else h_init.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    a, _, h0, reset, h_init, ctx.pairs, ctx.backend = inputs
    ctx.save_for_backward(a, output[0], h0, reset, h_init)


def _backward(ctx: Any, grad_h: Tensor, grad_last: Tensor) -> tuple[Tensor | None, ...]:
    a, h, h0, reset, h_init = ctx.saved_tensors
    need_a = ctx.needs_input_grad[0]
    da, db, dh0, dh_init = _linear_scan_backward(
        grad_h, grad_last, a, h, h0, reset, h_init, ctx.pairs, need_a, ctx.backend
    )
    return (
        da.to(a.dtype) if need_a else None,
        db,
        dh0,
        None,
        None if h_init is None else dh_init,
        None,
        None,
    )


_linear_scan.register_autograd(_backward, setup_context=_setup_context)


def _check(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None,
    reset: Tensor | None,
    h_init: Tensor | None,
    hold: Tensor | None,
    pairs: bool,
) -> None:
    """Raise ValueError, in one line, unless all shapes, dtypes and devices fit."""
    tail = (2,) if pairs else ()
    if b.dim() != 3 + pairs or tuple(b.shape[3:]) != tail:
        wanted = "(B, T, D) complex numbers, as pairs (B, T, D, 2)" if pairs else "(B, T, D)"
        raise ValueError(f"{OP}: b must be {wanted}, got {tuple(b.shape)}")
    B, T, D = b.shape[:3]
    require_shape(OP, "a", a, (B, T, D, *tail), (D, *tail))
    require_shape(OP, "h0", h0, (B, D, *tail))
    require_shape(OP, "h_init", h_init, (D, *tail))
    require_flag(OP, "reset", reset, (B, T))
    require_flag(OP, "hold", hold, (B, T))
    if a.is_complex() != b.is_complex():
        raise ValueError(
            f"{OP}: a and b must both be complex or both real, got {a.dtype} and {b.dtype}: "
            "convert one"
        )
    require_dtype(OP, COMPLEX if b.is_complex() else FLOATS, a=a, b=b, h0=h0, h_init=h_init)
    require_one_device(OP, a=a, b=b, h0=h0, reset=reset, h_init=h_init, hold=hold)


def linear_scan_pairs(
    a: Tensor,
    b: Tensor,
    *,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    h_init: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Complex `linear_scan` on real pairs: every array has a trailing axis of 2.

    The form for code that must compile or export: no complex tensor appears. Shapes, results
    and errors otherwise as `linear_scan`.
    """
    _check(a, b, h0, reset, h_init, None, True)
    require_dtype(OP, FLOATS, b=b)
    return _run(a, b, h0, reset, h_init, True, backend)


def _run(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None,
    reset: Tensor | None,
    h_init: Tensor | None,
    pairs: bool,
    backend: Backend,
) -> tuple[Tensor, Tensor]:
    dtype = accumulate_dtype(b.dtype)
    a = a.to(dtype)
    h0 = b.new_zeros((b.shape[0], *b.shape[2:]), dtype=dtype) if h0 is None else h0.to(dtype)
    h_init = None if h_init is None else h_init.to(dtype)
    chosen = select_backend(OP, b.device, b.dtype, backend)
    if b.numel() == 0:
        return b.clone(), h0.clone()
    if chosen == "reference":
        if not pairs:
            return reference.forward(a, b, h0, reset, h_init)
        a, b_, h0 = (torch.view_as_complex(x.contiguous()) for x in (a, b.to(dtype), h0))
        h_init = None if h_init is None else torch.view_as_complex(h_init.contiguous())
        h, last = reference.forward(a, b_, h0, reset, h_init)
        return torch.view_as_real(h).to(b.dtype), torch.view_as_real(last)
    if chosen == "cpu" and not torch.compiler.is_compiling():
        return cpu.differentiable(a, b, h0, reset, h_init, pairs)
    result: tuple[Tensor, Tensor] = _linear_scan(a, b, h0, reset, h_init, pairs, chosen)
    return result


def linear_scan(
    a: Tensor,
    b: Tensor,
    *,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    h_init: Tensor | None = None,
    hold: Tensor | None = None,
    reverse: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Scan h_t = a_t * prev_t + b_t along time, with resets, all at once.

    Args:
        a: (B, T, D), or (D,) if it does not vary; real or complex as b. Any strides, so an
            expanded tensor is never copied out.
        b: (B, T, D); float32, float64, bfloat16, complex64 or complex128.
        h0: (B, D), state before the first step; None means 0.
        reset: (B, T) bool; True replaces the state by `h_init` before step t reads b_t.
        h_init: (D,), what a reset restores; None means 0.
        hold: (B, T) bool; True keeps the state of the step before (after a reset of the same
            step): for padding.
        reverse: scan from T - 1 to 0; `h0` then enters at T - 1 and the last state is h_0.
        backend: "auto", "reference" (the loop; differentiable twice), "torch" or "cpu" (C++).

    Returns:
        h (B, T, D) in the dtype of b, and the last state (B, D) in the accumulation dtype
        (float32 for bfloat16). Both differentiable in a, b, h0 and h_init.

    Raises:
        ValueError: a shape or dtype does not fit.
        BackendError: the backend asked for by name cannot run; says why.
    """
    _check(a, b, h0, reset, h_init, hold, False)
    if hold is not None:
        kept = hold[..., None]
        a = torch.where(kept, torch.ones_like(a), a)
        b = torch.where(kept, torch.zeros_like(b), b)
    if reverse:
        a = a.flip(1) if a.dim() == 3 else a
        b = b.flip(1)
        reset = None if reset is None else reset.flip(1)
    if b.is_complex():
        arrays = (None if x is None else torch.view_as_real(x) for x in (h0, h_init))
        h0, h_init = arrays
        h, last = _run(
            torch.view_as_real(a), torch.view_as_real(b), h0, reset, h_init, True, backend
        )
        h, last = torch.view_as_complex(h), torch.view_as_complex(last)
    else:
        h, last = _run(a, b, h0, reset, h_init, False, backend)
    return (h.flip(1) if reverse else h), last
