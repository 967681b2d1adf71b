"""The public gated delta rule: checks and choice of backend.

    S_t = exp(g_t) S_{t-1};   S_t += beta_t k_t (v_t - S_t^T k_t)^T;   o_t = S_t^T q_t

The memory of a head is a matrix that maps keys to values. Each step corrects what it holds for
the key k_t towards v_t; beta_t in (0, 1) is the part of the error that is removed. With beta_t in
(0, 2) and unit keys the eigenvalue 1 - beta_t along k_t can be negative (Grazzi et al. 2024).

Papers: Yang, Wang, Zhang, Shen & Kim 2024, "Parallelizing Linear Transformers with the Delta Rule";
Yang, Kautz & Hatamizadeh 2024, "Gated Delta Networks".
"""

from contextlib import nullcontext

import torch
from torch import Tensor

from statewise.kernels.checks import (
    FLOATS,
    require_dtype,
    require_flag,
    require_one_device,
    require_shape,
)
from statewise.kernels.delta_rule import reference
from statewise.kernels.delta_rule import torch as chunked
from statewise.kernels.dispatch import Backend, BackendError, accumulate_dtype

OP = "delta_rule"


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    h0: Tensor | None,
    reset: Tensor | None,
) -> None:
    """Raise ValueError, in one line, unless all shapes, dtypes and devices fit."""
    if q.dim() != 4 or k.shape != q.shape or v.dim() != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError(
            f"{OP}: q and k must be (B, T, H, K) and v (B, T, H, V), got "
            f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
        )
    B, T, H, K = q.shape
    require_shape(OP, "g", g, (B, T, H))
    require_shape(OP, "beta", beta, (B, T, H))
    require_shape(OP, "h0", h0, (B, H, K, v.shape[3]))
    require_flag(OP, "reset", reset, (B, T))
    require_dtype(OP, FLOATS, q=q, k=k, v=v, g=g, beta=beta, h0=h0)
    require_one_device(OP, q=q, k=k, v=v, g=g, beta=beta, h0=h0, reset=reset)


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    h0: Tensor | None = None,
    reset: Tensor | None = None,
    chunk: int = 64,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Run the gated delta rule over a window.

    Args:
        q: (B, T, H, K); float32, float64 or bfloat16.
        k: (B, T, H, K); with |k_t| <= 1 and beta_t <= 2 nothing stored grows.
        v: (B, T, H, V).
        g: (B, T, H), logarithm of the decay, <= 0; minus infinity forgets everything.
        beta: (B, T, H).
        h0: (B, H, K, V), state before the window; None is 0.
        reset: (B, T) bool; True clears the state before step t.
        chunk: >= 1, steps that are solved together.
        backend: "auto" and "torch" (by chunks), or "reference" (the loop).

    Returns:
        o (B, T, H, V) in the dtype of v, and the state after the window in the accumulation dtype
        (float32 for bfloat16); both differentiable in all but `reset`.

    Raises:
        ValueError: a shape, a dtype or `chunk` does not fit.
        BackendError: there is no such backend of this op.
    """
    _check(q, k, v, g, beta, h0, reset)
    if chunk < 1:
        raise ValueError(f"{OP}: chunk must be at least 1, got {chunk}")
    if backend not in ("auto", "torch", "reference"):
        raise BackendError(f"{OP}: expected a backend of auto, torch, reference, got {backend!r}")
    dtype, result = accumulate_dtype(q.dtype), v.dtype
    state = (q.shape[0], *q.shape[2:], v.shape[3])
    h0 = q.new_zeros(state, dtype=dtype) if h0 is None else h0.to(dtype)
    if v.numel() == 0:
        return v.clone(), h0.clone()
    q, k, v, g, beta = (x.to(dtype) for x in (q, k, v, g, beta))
    device = q.device.type
    # Products of a state are never rounded to bfloat16. The meta device has no autocast.
    with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
        if backend == "reference":
            o, last = reference.forward(q, k, v, g, beta, h0, reset)
        else:
            o, last = chunked.forward(q, k, v, g, beta, h0, reset, chunk)
    return o.to(result), last


def delta_rule_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    h: Tensor,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of `delta_rule` without its checks, all in the dtype of h (B, H, K, V)."""
    return reference.step(q, k, v, g, beta, h, reset)
