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
# SplitMix64: step of the counter, and shift and factor of its two rounds, as int64.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_ROUNDS = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


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


def gumbel_(x: Tensor, seed: int) -> Tensor:
    """Fill x with standard Gumbel noise -log(-log u), u even in (0, 1).

    u comes from a counter: word i is that of SplitMix64 (Steele, Lea and Flood 2014, "Fast
    splittable pseudorandom number generators") that starts at the seed. The upper 23 bits of its
    lower and of its upper half make two numbers of float32, its upper 52 one of float64. The noise
    depends on the seed alone, not on threads.

    Args:
        x: dense, on the CPU, float32 or float64.
        seed: int64.

    Returns:
        x. Noise is in [-3, 17] for float32, in [-4, 37] for float64.
    """
    if trains_in_cpp(OP, x):
        torch.ops.statewise_cpu.gumbel_(x, seed)
        return x
    return x.copy_(_even(x.numel(), seed, x.dtype).log_().neg_().log_().neg_().view_as(x))


def _even(count: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Return the numbers (count,) in (0, 1) of which `gumbel_` makes noise."""
    words = count if dtype == torch.float64 else (count + 1) // 2
    z = torch.arange(1, words + 1) * _GAMMA + seed  # int64 wraps around
    for shift, factor in _ROUNDS:
        z = (z ^ _shifted(z, shift)) * factor
    z = z ^ _shifted(z, 31)
    if dtype == torch.float64:
        return (_shifted(z, 12).double() + 0.5) * 2.0**-52
    halves = torch.stack((_shifted(z, 9) & (2**23 - 1), _shifted(z, 41)), -1)
    return (halves.flatten()[:count].float() + 0.5) * 2.0**-23


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Return z (...) int64 as words of 64 bits, shifted to the right."""
    return (z >> bits) & (2 ** (64 - bits) - 1)
