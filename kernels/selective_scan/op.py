"""The public selective scan (S6): checks, choice of backend, custom op with its autograd formula.

Paper: Gu & Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces".

    d = softplus(dt + dt_bias);   a = exp(d A), or 2 exp(d A) - 1 with decay "signed"
    h_t = a_t prev_t + d_t u_t B_t,   prev_t = 0 where reset_t, else h_{t-1},   h_{-1} = h0
    y_t = (sum_n C_t h_t + D u_t) silu(z_t);   complex A: 2 Re of the sum

Only every 32nd state is kept for the gradient, which is derived in README.md.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from statewise.kernels.dispatch import (
    Backend,
    accumulate_dtype,
    launcher,
    select_backend,
    steps_in_cpp,
)
from statewise.kernels.selective_scan import reference
from statewise.kernels.selective_scan.checks import check, check_complex
from statewise.kernels.selective_scan.step import advance, gated, steps
from statewise.kernels.selective_scan.torch import CHUNK, Operands

OP = "selective_scan"
Decay = Literal["exp", "signed"]


@torch.library.custom_op("statewise::selective_scan", mutates_args=())
def _selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    h0: Tensor,
    reset: Tensor | None,
    a_override: Tensor | None,
    softplus: bool,
    signed: bool,
    pairs: bool,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    operands = Operands(u, dt, A, Bm, Cm, D, z, dt_bias, h0, reset, a_override)
    return launcher(OP, backend).forward(operands, softplus, signed, pairs, keep)


@_selective_scan.register_fake
def _(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    h0: Tensor,
    reset: Tensor | None,
    a_override: Tensor | None,
    softplus: bool,
    signed: bool,
    pairs: bool,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    kept = (u.shape[1] + CHUNK - 1) // CHUNK * h0.numel() if keep else 0
    return u.new_empty(u.shape), h0.new_empty(h0.shape), h0.new_empty((kept,))


@torch.library.custom_op("statewise::selective_scan_backward", mutates_args=())
def _selective_scan_backward(
    grad: Tensor,
    grad_last: Tensor,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    h0: Tensor,
    reset: Tensor | None,
    a_override: Tensor | None,
    kept: Tensor,
    softplus: bool,
    signed: bool,
    pairs: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    operands = Operands(u, dt, A, Bm, Cm, D, z, dt_bias, h0, reset, a_override)
    run = launcher(OP, backend).backward
    return run(grad, grad_last, operands, kept, softplus, signed, pairs)


@_selective_scan_backward.register_fake
def _(
    grad: Tensor,
    grad_last: Tensor,
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    h0: Tensor,
    reset: Tensor | None,
    a_override: Tensor | None,
    kept: Tensor,
    softplus: bool,
    signed: bool,
    pairs: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    channels = (u.shape[2],)
    return (
        u.new_empty(u.shape),
        h0.new_empty(u.shape),
        h0.new_empty(A.shape),
        h0.new_empty(Bm.shape),
        h0.new_empty(Cm.shape),
        h0.new_empty(channels),
        u.new_empty((0,) if z is None else u.shape),
        h0.new_empty(channels),
        h0.new_empty(h0.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.softplus, ctx.signed, ctx.pairs, _, ctx.backend = inputs
    ctx.save_for_backward(*tensors, output[2])


def _backward(ctx: Any, grad: Tensor, grad_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, kept = ctx.saved_tensors
    o = Operands(*tensors)
    du, ddt, dA, dB, dC, dD, dz, dbias, dh0 = _selective_scan_backward(
        grad, grad_last, *tensors, kept, ctx.softplus, ctx.signed, ctx.pairs, ctx.backend
    )
    gradients = (
        du,
        ddt,
        dA.to(o.A.dtype),
        dB.to(o.Bm.dtype),
        dC.to(o.Cm.dtype),
        None if o.D is None else dD.to(o.D.dtype),
        None if o.z is None else dz,
        None if o.dt_bias is None else dbias.to(o.dt_bias.dtype),
        dh0,
    )
    return (*gradients, *(None,) * 7)


_selective_scan.register_autograd(_backward, setup_context=_setup_context)


def _start(u: Tensor, A: Tensor, h0: Tensor | None) -> Tensor:
    return u.new_zeros((*u.shape[:1], *A.shape), dtype=A.dtype) if h0 is None else h0


def _prepare(o: Operands, pairs: bool) -> Operands:
    """Bring everything to the dtypes of `Operands`, and give B and C their axis of groups."""
    dtype = accumulate_dtype(o.u.dtype)
    grouped = 4 + pairs
    Bm, Cm = (x if x.dim() == grouped else x.unsqueeze(2) for x in (o.Bm, o.Cm))
    # The two may be grouped differently; the finer grouping serves both.
    G = max(Bm.shape[2], Cm.shape[2])
    Bm, Cm = (
        (x if x.shape[2] == G else x.repeat_interleave(G // x.shape[2], 2)).to(o.u.dtype)
        for x in (Bm, Cm)
    )

    def cast(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(dtype)

    return Operands(
        o.u,
        o.dt.to(dtype),
        o.A.to(dtype),
        Bm,
        Cm,
        cast(o.D),
        None if o.z is None else o.z.to(o.u.dtype),
        cast(o.dt_bias),
        o.h0.to(dtype),
        o.reset,
        cast(o.a_override),
    )


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.contiguous())


def _run(
    o: Operands, softplus: bool, decay: Decay, pairs: bool, backend: Backend
) -> tuple[Tensor, Tensor]:
    check(o, decay, pairs)
    o = _prepare(o, pairs)
    chosen = select_backend(OP, o.u.device, o.u.dtype, backend)
    signed = decay == "signed"
    if o.u.numel() == 0:
        return o.u.clone(), o.h0.clone()
    if chosen == "reference":
        if not pairs:
            return reference.forward(*o, softplus, signed)
        wide = o._replace(Bm=o.Bm.to(o.h0.dtype), Cm=o.Cm.to(o.h0.dtype))
        names = ("A", "Bm", "Cm", "h0")
        wide = wide._replace(**{name: _complex(getattr(wide, name)) for name in names})
        y, last = reference.forward(*wide, softplus, signed)
        return y, torch.view_as_real(last)
    keep = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in o)
    y, last, _ = _selective_scan(*o, softplus, signed, pairs, keep, chosen)
    return y, last


def selective_scan_pairs(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    a_override: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Complex `selective_scan` on real pairs: A, Bm, Cm, h0 and the last state end in 2.

    The form for code that must compile or export. Results and errors as `selective_scan`.
    """
    start = _start(u, A, h0)
    o = Operands(u, dt, A, Bm, Cm, D, z, dt_bias, start, reset, a_override)
    return _run(o, dt_softplus, "exp", True, backend)


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
    decay: Decay = "exp",
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    a_override: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Scan a state of N numbers per channel, with input-dependent steps, inputs and outputs.

    Args:
        u: (B, T, E); float32, float64 or bfloat16.
        dt: (B, T, E), step sizes before bias and softplus.
        A: (E, N), real (negative, to forget) or complex (negative real part).
        Bm: (B, T, N) or (B, T, G, N), G dividing E: group g serves channels g E / G and
            following. Complex if A is.
        Cm: like Bm.
        D: (E,), skip; None is 0.
        z: (B, T, E), gate; None is no gate.
        dt_bias: (E,); None is 0.
        dt_softplus: apply softplus to dt + dt_bias.
        decay: "exp" for exp(d A), "signed" for 2 exp(d A) - 1 in (-1, 1): eigenvalues that may
            be negative, real A only.
        h0: (B, E, N), state before the first step; None is 0.
        reset: (B, T) bool; the state is cleared before step t.
        a_override: (N,); NaN where the decay is computed, else the decay itself (0 or 1).
        backend: "auto", "reference" (the loop; differentiable twice), "torch", "cpu", "triton".

    Returns:
        y (B, T, E) in the dtype of u, and the last state (B, E, N) in the accumulation dtype
        (float32 for bfloat16); differentiable in every float argument but `a_override`.

    Raises:
        ValueError: a shape or dtype does not fit.
        BackendError: the backend asked for by name cannot run.
    """
    o = Operands(u, dt, A, Bm, Cm, D, z, dt_bias, _start(u, A, h0), reset, a_override)
    if not A.is_complex():
        return _run(o, dt_softplus, decay, False, backend)
    check_complex(o)
    if decay != "exp":
        raise ValueError(f"{OP}: decay {decay!r} needs a real A, got {A.dtype}")
    parts = [torch.view_as_real(x.to(A.dtype)) for x in (A, Bm, Cm)]
    y, last = selective_scan_pairs(
        u,
        dt,
        *parts,
        D=D,
        z=z,
        dt_bias=dt_bias,
        dt_softplus=dt_softplus,
        h0=None if h0 is None else torch.view_as_real(h0),
        reset=reset,
        a_override=a_override,
        backend=backend,
    )
    return y, torch.view_as_complex(last)


def selective_step(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    h: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
    decay: Decay = "exp",
    reset: Tensor | None = None,
    a_override: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """One step of `selective_scan`, without its checks: u, dt, z (B, E), Bm, Cm (B, G, N).

    Acting without gradient on a CPU is one call into C++; everything else is torch operations.

    Returns:
        y (B, E) and the next state (B, E, N).
    """
    signed = decay == "signed"
    if not A.is_complex() and steps_in_cpp(OP, u, h, backend):
        y, h = torch.ops.statewise_cpu.selective_scan_step(
            u, dt, A, Bm, Cm, D, z, dt_bias, h, reset, a_override, dt_softplus, signed
        )
        return y, h
    if reset is not None:
        h = torch.where(reset[:, None, None], torch.zeros_like(h), h)
    real = h.real.dtype if h.is_complex() else h.dtype
    d, x = steps(dt.to(real), dt_bias, dt_softplus), u.to(real)
    y, h = advance(h, x, d, A, Bm.to(h.dtype), Cm.to(h.dtype), a_override, signed)
    return gated(y, x, D, None if z is None else z.to(real)).to(u.dtype), h
