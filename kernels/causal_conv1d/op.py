"""The public short causal convolution: checks, choice of backend, custom op, step.

    y_t = act(bias + sum_{j < W} w_{W-1-j} x_{t-j}),   tap j only if no reset lies in (t - j, t]

Inputs before the window come from the state, the last W - 1 raw inputs. Used by Mamba (Gu & Dao
2023), Griffin and the gated delta rule before their recurrences.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from statewise.kernels.causal_conv1d import reference
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

OP = "causal_conv1d"
Activation = Literal["silu"]


@torch.library.custom_op("statewise::causal_conv1d", mutates_args=())
def _causal_conv1d(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    state: Tensor,
    reset: Tensor | None,
    silu: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return launcher(OP, backend).forward(x, w, bias, state, reset, silu)


@_causal_conv1d.register_fake
def _(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    state: Tensor,
    reset: Tensor | None,
    silu: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), state.new_empty(state.shape)


@torch.library.custom_op("statewise::causal_conv1d_backward", mutates_args=())
def _causal_conv1d_backward(
    grad: Tensor,
    grad_state: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    state: Tensor,
    reset: Tensor | None,
    silu: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    run = launcher(OP, backend).backward
    return run(grad, grad_state, x, w, bias, state, reset, silu)


@_causal_conv1d_backward.register_fake
def _(
    grad: Tensor,
    grad_state: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    state: Tensor,
    reset: Tensor | None,
    silu: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        w.new_empty(w.shape),
        w.new_empty((w.shape[0],)),
        state.new_empty(state.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.silu, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
    x, w, bias, state, reset = ctx.saved_tensors
    dx, dw, dbias, dstate = _causal_conv1d_backward(
        grad, grad_state, x, w, bias, state, reset, ctx.silu, ctx.backend
    )
    return dx, dw, None if bias is None else dbias, dstate, None, None, None


_causal_conv1d.register_autograd(_backward, setup_context=_setup_context)


def _check(
    x: Tensor, w: Tensor, bias: Tensor | None, state: Tensor | None, reset: Tensor | None
) -> None:
    """Raise ValueError, in one line, unless all shapes, dtypes and devices fit."""
    if x.dim() != 3 or w.dim() != 2 or w.shape[0] != x.shape[2] or w.shape[1] < 1:
        raise ValueError(
            f"{OP}: x must be (B, T, E) and w (E, W), got {tuple(x.shape)} and {tuple(w.shape)}"
        )
    (B, T, E), W = x.shape, w.shape[1]
    require_shape(OP, "bias", bias, (E,))
    require_shape(OP, "state", state, (B, E, W - 1))
    require_flag(OP, "reset", reset, (B, T))
    require_dtype(OP, FLOATS, x=x, w=w, bias=bias, state=state)
    require_one_device(OP, x=x, w=w, bias=bias, state=state, reset=reset)


def causal_conv1d(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    *,
    state: Tensor | None = None,
    reset: Tensor | None = None,
    activation: Activation | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Convolve each channel with its own W taps, causally.

    Args:
        x: (B, T, E); float32, float64 or bfloat16.
        w: (E, W) in the order of torch.nn.Conv1d: the last tap multiplies the present input.
        bias: (E,); None is 0.
        state: (B, E, W - 1), the inputs before the window, the most recent last; None is 0.
        reset: (B, T) bool; inputs before step t do not count from step t on.
        activation: "silu" or None.
        backend: "auto", "reference" (the loop; differentiable twice), "torch", "cpu", "triton".

    Returns:
        y (B, T, E) in the dtype of x, and the next state in the accumulation dtype (float32 for
        bfloat16), 0 before the last reset; both differentiable in x, w, bias and state.

    Raises:
        ValueError: a shape, a dtype or the activation does not fit.
        BackendError: the backend asked for by name cannot run.
    """
    _check(x, w, bias, state, reset)
    if activation not in (None, "silu"):
        raise ValueError(f"{OP}: activation must be 'silu' or None, got {activation!r}")
    dtype = accumulate_dtype(x.dtype)
    w = w.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    shape = (x.shape[0], x.shape[2], w.shape[1] - 1)
    state = x.new_zeros(shape, dtype=dtype) if state is None else state.to(dtype)
    chosen = select_backend(OP, x.device, x.dtype, backend)
    if x.numel() == 0:
        return x.clone(), state.clone()
    if chosen == "reference":
        return reference.forward(x, w, bias, state, reset, activation == "silu")
    y, after = _causal_conv1d(x, w, bias, state, reset, activation == "silu", chosen)
    return y, after


def conv_step(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    state: Tensor,
    reset: Tensor | None = None,
    *,
    activation: Activation | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """One step of `causal_conv1d`, without its checks: x (B, E), reset (B,) bool.

    Acting without gradient on a CPU is one call into C++; everything else is torch operations.
    """
    silu = activation == "silu"
    if steps_in_cpp(OP, x, state, backend):
        y, after = torch.ops.statewise_cpu.causal_conv1d_step(x, w, bias, state, reset, silu)
        return y, after
    y, after = reference.step(x.to(state.dtype), w, bias, state, reset, silu)
    return y.to(x.dtype), after
