"""What training on the CPU calls once instead of many small operations, with gradients.

Many intermediate results of an update are written and read once more, and that takes longer than
their arithmetic; small operations on parameters take longer to call than to do. Each function here
is a composition of torch operations, and one call into C++ with its own adjoint for CPU tensors
outside of a compiler and of autocast. There are no second derivatives in C++: asking for them is an
error there.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from statewise.kernels.dispatch import Backend, trains_in_cpp

OP = "fused"
_RULES = ("zoh", "bilinear")
_NORMS = ("none", "layer", "rms")


def gelu(x: Tensor) -> Tensor:
    """Return x (...) times the normal distribution function of x, in the tanh form."""
    if trains_in_cpp(OP, x):
        y: Tensor = torch.ops.statewise_cpu.gelu(x)
        return y
    return F.gelu(x, approximate="tanh")


def add_scaled(x: Tensor, u: Tensor, d: Tensor, backend: Backend = "auto") -> Tensor:
    """Return x + u d.

    Args:
        x: (..., H).
        u: (..., H).
        d: (H,), of the columns.
        backend: of the layer; all but "auto" and "cpu" mean the composition.

    Returns:
        (..., H), differentiable.
    """
    if trains_in_cpp(OP, u, x, d, backend=backend):
        y: Tensor = torch.ops.statewise_cpu.add_scaled(x, u, d)
        return y
    return torch.addcmul(x, u, d)


def gated_sum(
    x: Tensor,
    ab: Tensor,
    ab_bias: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return x + (a + ca) sigmoid(b + cb), or its layer norm.

    Args:
        x: (..., H).
        ab: (..., 2 H), a and b one after the other.
        ab_bias: (2 H,), ca and cb.
        weight: (H,) of the layer norm; None is no norm.
        bias: (H,), with `weight`.
        eps: of the norm, > 0.

    Returns:
        (..., H), differentiable.
    """
    if trains_in_cpp(OP, x, ab, ab_bias, weight, bias):
        y: Tensor = torch.ops.statewise_cpu.gated_sum(x, ab, ab_bias, weight, bias, eps)
        return y
    y = x + F.glu(ab + ab_bias)
    return y if weight is None else F.layer_norm(y, weight.shape, weight, bias, eps)


def norm_silu(
    x: Tensor,
    norm: Literal["none", "layer", "rms"],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return n sigmoid(n), n the norm of rows of x.

    Args:
        x: (..., H).
        norm: layer or rms; none leaves x as it is.
        weight: (H,), of a norm.
        bias: (H,), of a layer norm alone.
        eps: of the norm, > 0.

    Returns:
        (..., H), differentiable.
    """
    if trains_in_cpp(OP, x, weight, bias):
        y: Tensor = torch.ops.statewise_cpu.norm_silu(x, weight, bias, _NORMS.index(norm), eps)
        return y
    if weight is not None and norm == "layer":
        x = F.layer_norm(x, weight.shape, weight, bias, eps)
    elif weight is not None:
        x = F.rms_norm(x, weight.shape, weight, eps)
    return F.silu(x)


def two_hot_loss(logits: Tensor, below: Tensor, share: Tensor) -> Tensor:
    """Return the cross-entropy of targets that lie on two neighbouring classes.

        -(1 - share) log p_below - share log p_{below + 1},   p = softmax(logits)

    Args:
        logits: (..., K), float32 or float64; they get a gradient.
        below: (...) int64 in [0, K - 2].
        share: (...), in [0, 1] or NaN; it gets none.

    Returns:
        (...) in nats.
    """
    if trains_in_cpp(OP, logits, share):
        loss: Tensor = torch.ops.statewise_cpu.two_hot_loss(logits, below, share)
        return loss
    log_p = F.log_softmax(logits, -1)
    here, above = (log_p.gather(-1, i.unsqueeze(-1)).squeeze(-1) for i in (below, below + 1))
    return -((1.0 - share) * here + share * above)


def s5_system_runs(*parameters: Tensor, backend: Backend) -> bool:
    """Tell whether `s5_system` serves a layer of these parameters and this backend."""
    return trains_in_cpp(OP, *parameters, backend=backend)


def s5_system(
    re: Tensor,
    im: Tensor,
    log_step: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    dt_scale: float,
    c_scale: float,
    rule: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the discrete system of an S5 layer, where `s5_system_runs`; no checks.

    Args:
        re: (P,), real parts of the eigenvalues.
        im: (P,), imaginary parts.
        log_step: (P,), logarithms of the steps.
        B: (P, H, 2), complex pairs.
        C: (H, P, 2), complex pairs.
        dt_scale: factor of all steps, > 0.
        c_scale: 2 if only one of each pair of eigenvalues is kept, else 1.
        rule: zoh or bilinear.

    Returns:
        a (P, 2) and the real matrices w_in (2 P, H) and w_out (H, 2 P), see `ssm.diagonal`.
    """
    a, w_in, w_out = torch.ops.statewise_cpu.s5_system(
        re, im, log_step, B, C, dt_scale, c_scale, _RULES.index(rule)
    )
    return a, w_in, w_out
