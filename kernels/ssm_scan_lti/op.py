"""The public time-invariant scan: checks, choice of backend, custom op with its autograd formula.

    h_t = abar * prev_t + bbar x_t,   prev_t = 0 where reset_t, else h_{t-1},   h_{-1} = h0
    y_t = 2 Re sum_n c_n h_t,n

One diagonal state of N complex numbers per channel: the recurrent form of S4 (Gu, Goel & Re 2021),
DSS (Gupta, Gu & Berant 2022) and S4D (Gu, Gupta, Goel & Re 2022, "On the Parameterization and
Initialization of Diagonal State Space Models"). Only every 64th state is kept for the gradient,
which is derived in README.md.
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
)
from statewise.kernels.dispatch import (
    Backend,
    accumulate_dtype,
    launcher,
    select_backend,
    steps_in_cpp,
)
from statewise.kernels.ssm_scan_lti import reference
from statewise.kernels.ssm_scan_lti.torch import CHUNK

OP = "ssm_scan_lti"


@torch.library.custom_op("statewise::ssm_scan_lti", mutates_args=())
def _ssm_scan_lti(
    x: Tensor,
    abar: Tensor,
    bbar: Tensor,
    c: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    y, last, kept = launcher(OP, backend).forward(x, abar, bbar, c, h0, reset, keep)
    return y, last, kept.flatten()


@_ssm_scan_lti.register_fake
def _(
    x: Tensor,
    abar: Tensor,
    bbar: Tensor,
    c: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    keep: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    # One axis: a compiler asks of each axis of several whether it is 1, and compiles again.
    kept = (x.shape[1] - 1) // CHUNK * h0.numel() if keep else 0
    return x.new_empty(x.shape), h0.new_empty(h0.shape), h0.new_empty((kept,))


@torch.library.custom_op("statewise::ssm_scan_lti_backward", mutates_args=())
def _ssm_scan_lti_backward(
    grad: Tensor,
    grad_last: Tensor,
    x: Tensor,
    abar: Tensor,
    bbar: Tensor,
    c: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    kept: Tensor,
    need_x: bool,
    need_parameters: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    kept = kept.view(len(h0), kept.numel() // max(h0.numel(), 1), *h0.shape[1:])
    run = launcher(OP, backend).backward
    return run(grad, grad_last, x, abar, bbar, c, h0, reset, kept, need_x, need_parameters)


@_ssm_scan_lti_backward.register_fake
def _(
    grad: Tensor,
    grad_last: Tensor,
    x: Tensor,
    abar: Tensor,
    bbar: Tensor,
    c: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    kept: Tensor,
    need_x: bool,
    need_parameters: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    shape = abar.shape if need_parameters else (0,)
    return (
        x.new_empty(x.shape if need_x else (0,)),
        h0.new_empty(shape),
        h0.new_empty(shape),
        h0.new_empty(shape),
        h0.new_empty(h0.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, _, ctx.backend = inputs
    ctx.save_for_backward(*tensors, output[2])


def _backward(ctx: Any, grad: Tensor, grad_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    need_x, need_parameters = ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:4])
    dx, *parameters, dh0 = _ssm_scan_lti_backward(
        grad, grad_last, *ctx.saved_tensors, need_x, need_parameters, ctx.backend
    )
    given = parameters if need_parameters else (None, None, None)
    return (dx if need_x else None, *given, dh0, None, None, None)


_ssm_scan_lti.register_autograd(_backward, setup_context=_setup_context)


def _check(
    x: Tensor, abar: Tensor, bbar: Tensor, c: Tensor, h0: Tensor | None, reset: Tensor | None
) -> None:
    """Raise ValueError, in one line, unless everything fits; complex arrays are pairs."""
    if x.dim() != 3 or abar.dim() != 3 or abar.shape[2] != 2 or abar.shape[0] != x.shape[2]:
        raise ValueError(
            f"{OP}: x must be (B, T, H) and abar (H, N) complex numbers, as pairs (H, N, 2), got "
            f"{tuple(x.shape)} and {tuple(abar.shape)}"
        )
    state = tuple(abar.shape)
    shapes = {
        "bbar": (bbar, state),
        "c": (c, state),
        "h0": (h0, (x.shape[0], *state)),
    }
    for name, (value, shape) in shapes.items():
        if value is not None and tuple(value.shape) != shape:
            raise ValueError(
                f"{OP}: {name} must be {shape}, a trailing 2 being Re and Im, got "
                f"{tuple(value.shape)}"
            )
    require_flag(OP, "reset", reset, (x.shape[0], x.shape[1]))
    require_dtype(OP, FLOATS, x=x, abar=abar, bbar=bbar, c=c, h0=h0)
    require_one_device(OP, x=x, abar=abar, bbar=bbar, c=c, h0=h0, reset=reset)


def ssm_scan_lti_pairs(
    x: Tensor,
    abar: Tensor,
    bbar: Tensor,
    c: Tensor,
    *,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """`ssm_scan_lti` on real pairs: abar, bbar, c, h0 and the last state have a trailing 2.

    The form for code that must compile or export: no complex tensor appears. Results and errors
    otherwise as `ssm_scan_lti`.
    """
    _check(x, abar, bbar, c, h0, reset)
    dtype = accumulate_dtype(x.dtype)
    abar, bbar, c = (z.to(dtype) for z in (abar, bbar, c))
    shape = (x.shape[0], *abar.shape)
    h0 = x.new_zeros(shape, dtype=dtype) if h0 is None else h0.to(dtype)
    chosen = select_backend(OP, x.device, x.dtype, backend)
    if x.numel() == 0:
        return x.clone(), h0.clone()
    if chosen == "reference":
        a, b, c, h = (torch.view_as_complex(z.contiguous()) for z in (abar, bbar, c, h0))
        y, last = reference.forward(x, a, b, c, h, reset)
        return y, torch.view_as_real(last)
    # States are kept for the gradients of the parameters only.
    keep = torch.is_grad_enabled() and any(z.requires_grad for z in (abar, bbar, c))
    y, last, _ = _ssm_scan_lti(x, abar, bbar, c, h0, reset, keep, chosen)
    return y, last


def ssm_scan_lti(
    x: Tensor,
    abar: Tensor,
    bbar: Tensor,
    c: Tensor,
    *,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Scan a diagonal complex state per channel and return what it emits, never the states.

    Args:
        x: (B, T, H), real; float32, float64 or bfloat16.
        abar: (H, N), complex, discretised decay, modulus at most 1 to be stable.
        bbar: (H, N), complex, discretised input weights.
        c: (H, N), complex, output weights. N counts one of each conjugate pair.
        h0: (B, H, N), complex, state before the first step; None is 0.
        reset: (B, T) bool; the state is cleared before step t.
        backend: "auto", "reference" (the loop; differentiable twice), "torch", "cpu", "triton".

    Returns:
        y (B, T, H) in the dtype of x, y_t = 2 Re sum_n c h_t, and the last state (B, H, N),
        complex64 (complex128 for float64). Both differentiable in x, abar, bbar, c and h0.

    Raises:
        ValueError: a shape or dtype does not fit.
        BackendError: the backend asked for by name cannot run.
    """
    require_dtype(OP, COMPLEX, abar=abar, bbar=bbar, c=c, h0=h0)
    pairs = [torch.view_as_real(z) for z in (abar, bbar, c)]
    start = None if h0 is None else torch.view_as_real(h0)
    y, last = ssm_scan_lti_pairs(x, *pairs, h0=start, reset=reset, backend=backend)
    return y, torch.view_as_complex(last)


def ssm_scan_lti_step(
    x: Tensor,
    abar: Tensor,
    bbar: Tensor,
    c: Tensor,
    h: Tensor,
    *,
    reset: Tensor | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """One step of `ssm_scan_lti_pairs`, without its checks.

    Acting without gradient on a CPU is one call into C++; everything else is torch operations.

    Args:
        x: (B, H).
        abar: (H, N, 2), in the dtype of h; so are bbar and c.
        bbar: (H, N, 2).
        c: (H, N, 2).
        h: (B, H, N, 2), not changed.
        reset: (B,) bool; the state is cleared first.
        backend: as for `ssm_scan_lti`.

    Returns:
        y (B, H) in the dtype of x and the next state (B, H, N, 2).
    """
    if steps_in_cpp(OP, x, h, backend):
        y, h = torch.ops.statewise_cpu.ssm_scan_lti_step(x, abar, bbar, c, h, reset)
        return y, h
    if reset is not None:
        h = torch.where(reset[:, None, None, None], torch.zeros_like(h), h)
    (ar, ai), (cr, ci), (hr, hi) = (z.unbind(-1) for z in (abar, c, h))
    driven = bbar * x[..., None, None].to(h.dtype)
    re = ar * hr - ai * hi + driven[..., 0]
    im = ar * hi + ai * hr + driven[..., 1]
    y = 2 * (cr * re - ci * im).sum(-1)
    return y.to(x.dtype), torch.stack((re, im), -1)
