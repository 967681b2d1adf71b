"""The Cauchy sums of S4's kernel, in a form that is regular at every node.

With theta_k = 2 pi k / L, sigma_k = sin(theta_k / 2) and kappa_k = cos(theta_k / 2),

    f_k = sum_n v_n / (4i sigma_k - 2 kappa_k s_n) + conj(v_n) / (4i sigma_k - 2 kappa_k conj(s_n))

Up to the phase exp(i theta_k / 2) this is v^T (2 (1 - omega) - (1 + omega) S)^{-1} 1 at the root
of unity omega = exp(-i theta_k), over the eigenvalues S = diag(s, conj(s)) (Gu, Goel & Re 2022,
"Efficiently Modeling Long Sequences with Structured State Spaces", appendix C.3; there with the
factor 2 / (1 + omega), which is infinite at omega = -1). The gradient is derived in README.md.
"""

from typing import Any

import torch
from torch import Tensor

from statewise.kernels.checks import require_one_device
from statewise.kernels.convolution import reference
from statewise.kernels.dispatch import Backend, launcher, select_backend

OP = "convolution"
NAME = "cauchy"


@torch.library.custom_op("statewise::cauchy", mutates_args=())
def _cauchy(v: Tensor, s: Tensor, L: int, backend: str) -> Tensor:
    return launcher(OP, backend).cauchy(v, s, L)


@_cauchy.register_fake
def _(v: Tensor, s: Tensor, L: int, backend: str) -> Tensor:
    return v.new_empty((*v.shape[:2], L // 2 + 1, 2))


@torch.library.custom_op("statewise::cauchy_backward", mutates_args=())
def _cauchy_backward(
    grad: Tensor, v: Tensor, s: Tensor, L: int, backend: str
) -> tuple[Tensor, Tensor]:
    return launcher(OP, backend).cauchy_backward(grad, v, s, L)


@_cauchy_backward.register_fake
def _(grad: Tensor, v: Tensor, s: Tensor, L: int, backend: str) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), s.new_empty(s.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    v, s, ctx.L, ctx.backend = inputs
    ctx.save_for_backward(v, s)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    dv, ds = _cauchy_backward(grad, *ctx.saved_tensors, ctx.L, ctx.backend)
    return dv, ds, None, None


_cauchy.register_autograd(_backward, setup_context=_setup_context)


def cauchy(v: Tensor, s: Tensor, L: int, backend: Backend = "auto") -> Tensor:
    """Sum v_n / (4i sigma_k - 2 kappa_k s_n) and its conjugate partner over n, for all nodes k.

    Args:
        v: (R, H, N), complex128, numerators of R sums per channel.
        s: (H, N), complex128, eigenvalues times the step; Re s < 0, or s on no node.
        L: length of the kernel, >= 1; its nodes are k = 0 ... L // 2.
        backend: "auto", "reference" (differentiable twice), "torch" or "cpu".

    Returns:
        f (R, H, L // 2 + 1), complex128; differentiable in v and s. Double precision only: what
        S4 subtracts from one another here agrees in many digits.

    Raises:
        ValueError: a shape or dtype does not fit.
        BackendError: the backend asked for by name cannot run.
    """
    if v.dim() != 3 or s.dim() != 2 or v.shape[1:] != s.shape:
        raise ValueError(
            f"{NAME}: v must be (R, H, N) and s (H, N), got {tuple(v.shape)} and {tuple(s.shape)}"
        )
    if v.dtype != torch.complex128 or s.dtype != torch.complex128:
        raise ValueError(
            f"{NAME}: v and s must be complex128, got {v.dtype} and {s.dtype}: convert"
        )
    require_one_device(NAME, v=v, s=s)
    if L < 1:
        raise ValueError(f"{NAME}: L must be at least 1, got {L}")
    chosen = select_backend(OP, v.device, torch.float64, backend)
    if v.numel() == 0:
        return v.new_zeros((*v.shape[:2], L // 2 + 1))
    if chosen == "reference":
        return reference.cauchy(v, s, L)
    pairs = _cauchy(torch.view_as_real(v), torch.view_as_real(s), L, chosen)
    return torch.view_as_complex(pairs)
