"""What training and imagination do with categorical latents, with gradients.

Each function is a composition of torch operations, and one call into C++ with its own adjoint for
CPU tensors outside of a compiler and of autocast. There are no second derivatives in C++: asking
for them is an error there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from statewise.kernels.dispatch import trains_in_cpp

OP = "categorical"


def mixed_log_softmax(logits: Tensor, unimix: float) -> Tensor:
    """Return log((1 - unimix) softmax(logits) + unimix / K).

    Args:
        logits: (..., K), float32 or float64.
        unimix: share of the uniform distribution, in [0, 1).

    Returns:
        (..., K), differentiable.
    """
    if trains_in_cpp(OP, logits):
        y: Tensor = torch.ops.statewise_cpu.mixed_log_softmax(logits, unimix)
        return y
    if unimix == 0.0:
        return F.log_softmax(logits, -1)
    return ((1.0 - unimix) * F.softmax(logits, -1) + unimix / logits.shape[-1]).log()


def free_kl(log_q: Tensor, log_p: Tensor, free: float) -> tuple[Tensor, Tensor]:
    """Return max(free, sum of q (log q - log p)) twice: for p, and for q.

    Args:
        log_q: (..., W), finite.
        log_p: (..., W), finite.
        free: nats below which there is no gradient, >= 0.

    Returns:
        dyn (...), with a gradient for log_p only, and rep (...), with one for log_q only. Both have
        the same values.
    """
    if log_q.shape == log_p.shape and trains_in_cpp(OP, log_q, log_p):
        dyn, rep = torch.ops.statewise_cpu.free_kl(log_q, log_p, free)
        return dyn, rep
    fixed_q, fixed_p = log_q.detach(), log_p.detach()
    dyn = (fixed_q.exp() * (fixed_q - log_p)).sum(-1).clamp(min=free)
    rep = (log_q.exp() * (log_q - fixed_p)).sum(-1).clamp(min=free)
    return dyn, rep


def draw_one_hot(log_p: Tensor, noise: Tensor) -> Tensor:
    """Return 1 at the first largest log p + noise of each row, else 0; straight-through.

    Args:
        log_p: (..., K); NaN stays NaN.
        noise: (..., K), standard Gumbel noise for a sample, 0 for the mode; it gets no gradient.

    Returns:
        (..., K), with the gradient of exp(log_p).
    """
    if trains_in_cpp(OP, log_p, noise):
        y: Tensor = torch.ops.statewise_cpu.draw_one_hot(log_p, noise)
        return y
    p = log_p.exp()
    index = (log_p.detach() + noise).argmax(-1, keepdim=True)
    one_hot = torch.zeros_like(log_p).scatter_(-1, index, 1.0)
    return one_hot + (p - p.detach())  # the bracket is exactly 0


def gumbel_(even: Tensor) -> Tensor:
    """Turn numbers that are even in (0, 1) into standard Gumbel noise -log(-log u), in place."""
    if even.is_contiguous() and trains_in_cpp(OP, even):
        torch.ops.statewise_cpu.gumbel_(even)
        return even
    return even.log_().neg_().log_().neg_()
