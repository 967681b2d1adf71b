"""The kernel of a diagonal state: sums of powers, k_l = 2 Re sum_n w_n a_n^l.

With w = c b and a the discretised decay this is the impulse response of S4D and DSS (Gu, Gupta,
Goel & Re 2022, "On the Parameterization and Initialization of Diagonal State Space Models",
section 3.3): a product with a Vandermonde matrix, which is never built.

    d w_n = 2 sum_l g_l conj(a_n^l),   d a_n = 2 sum_l l g_l conj(w_n a_n^(l-1))
"""

from typing import Any

import torch
from torch import Tensor

from statewise.kernels.checks import COMPLEX, require_dtype, require_one_device
from statewise.kernels.convolution import reference
from statewise.kernels.dispatch import Backend, launcher, select_backend

OP = "convolution"
NAME = "vandermonde"


@torch.library.custom_op("statewise::vandermonde", mutates_args=())
def _vandermonde(w: Tensor, a: Tensor, L: int, backend: str) -> Tensor:
    return launcher(OP, backend).vandermonde(w, a, L)


@_vandermonde.register_fake
def _(w: Tensor, a: Tensor, L: int, backend: str) -> Tensor:
    return w.new_empty((w.shape[0], L))


@torch.library.custom_op("statewise::vandermonde_backward", mutates_args=())
def _vandermonde_backward(
    grad: Tensor, w: Tensor, a: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    return launcher(OP, backend).vandermonde_backward(grad, w, a)


@_vandermonde_backward.register_fake
def _(grad: Tensor, w: Tensor, a: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return w.new_empty(w.shape), a.new_empty(a.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    w, a, _, ctx.backend = inputs
    ctx.save_for_backward(w, a)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dw, da = _vandermonde_backward(grad, *ctx.saved_tensors, ctx.backend)
    return dw, da, None, None


_vandermonde.register_autograd(_backward, setup_context=_setup_context)


def vandermonde_pairs(w: Tensor, a: Tensor, L: int, backend: Backend = "auto") -> Tensor:
    """`vandermonde` on real pairs: w and a are (H, N, 2).

    The form for code that must compile or export. Results and errors as `vandermonde`.
    """
    if w.dim() != 3 or w.shape != a.shape or w.shape[2] != 2:
        raise ValueError(
            f"{NAME}: w and a must be (H, N) complex numbers, as pairs (H, N, 2), got "
            f"{tuple(w.shape)} and {tuple(a.shape)}"
        )
    if w.dtype not in (torch.float32, torch.float64) or w.dtype != a.dtype:
        raise ValueError(
            f"{NAME}: w and a must both be float32 or both float64, got {w.dtype} and {a.dtype}: "
            "convert them"
        )
    require_one_device(NAME, w=w, a=a)
    if L < 0:
        raise ValueError(f"{NAME}: L must be at least 0, got {L}")
    chosen = select_backend(OP, w.device, w.dtype, backend)
    if L == 0 or w.numel() == 0:
        return w.new_zeros((len(w), L))
    if chosen == "reference":
        return reference.vandermonde(torch.view_as_complex(w.contiguous()),
                                     torch.view_as_complex(a.contiguous()), L)  # fmt: skip
    k: Tensor = _vandermonde(w, a, L, chosen)
    return k


def vandermonde(w: Tensor, a: Tensor, L: int, backend: Backend = "auto") -> Tensor:
    """Sum powers of a, weighted by w: k_l = 2 Re sum_n w_n a_n^l for l < L.

    Args:
        w: (H, N), complex64 or complex128, weights; c b for an impulse response.
        a: (H, N), complex as w, modulus at most 1 for a kernel that does not grow.
        L: number of powers, >= 0.
        backend: "auto", "reference" (the loop; differentiable twice), "torch" or "cpu".

    Returns:
        k (H, L), real; differentiable in w and a. The powers are taken in double precision also
        for complex64, so the error does not grow with L.

    Raises:
        ValueError: a shape or dtype does not fit.
        BackendError: the backend asked for by name cannot run.
    """
    require_dtype(NAME, COMPLEX, w=w, a=a)
    return vandermonde_pairs(torch.view_as_real(w), torch.view_as_real(a), L, backend)
