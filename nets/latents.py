"""Stochastic latents of S categorical variables with K classes each.

Paper: Hafner, Lillicrap, Norouzi and Ba 2021, "Mastering Atari with Discrete World Models", and the
uniform mixture and the free nats of Hafner et al. 2023 (DreamerV3).

    p         = (1 - unimix) softmax(logits) + unimix / K
    sample    = one_hot(argmax(log p + g)),  g standard Gumbel noise: distributed as p
    gradient  of the sample: that of p (straight-through)
    KL(q, p)  = sum over S and K of q (log q - log p)
    dyn       = max(free, KL(sg(q), p)),     rep = max(free, KL(q, sg(p)))

sg stops gradients. The maximum is hard: below `free` nats the gradient is 0. `free` counts for the
sum over S, once per latent.

Deviations: the noise is an argument, so that two ways to compute the same latent can be compared
sample by sample.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from statewise import kernels
from statewise.nets.dreamer_layers import widened


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Sizes of a latent.

    Raises:
        ValueError: a field is out of its range.
    """

    num: int = 32  # S >= 1, categorical variables
    classes: int = 32  # K >= 2, classes of each
    unimix: float = 0.01  # share of the uniform distribution, in [0, 1)

    def __post_init__(self) -> None:
        for name, least in (("num", 1), ("classes", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if not 0.0 <= self.unimix < 1.0:
            raise ValueError(f"unimix: expected a share in [0, 1), got {self.unimix}")


def mixed_log_p(logits: Tensor, unimix: float) -> Tensor:
    """Return log((1 - unimix) softmax(logits) + unimix / K).

    Args:
        logits: (..., S, K).
        unimix: in [0, 1).

    Returns:
        (..., S, K), float32 or float64; no probability is under unimix / K.
    """
    return kernels.mixed_log_softmax(widened(logits), unimix)


def gumbel(
    shape: tuple[int, ...],
    generator: torch.Generator | None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw standard Gumbel noise, -log(-log u) with u even in (0, 1).

    Args:
        shape: of the noise, (..., S, K) for latents.
        generator: of the device; None means torch's default one.
        device: of the noise.
        dtype: of the noise.

    Returns:
        Noise of that shape, finite.
    """
    if torch.device(device).type == "cpu" and dtype in (torch.float32, torch.float64):
        # Torch draws its numbers on one thread, one after the other.
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        return kernels.gumbel_(torch.empty(shape, dtype=dtype), seed)
    even = torch.rand(shape, generator=generator, device=device, dtype=dtype)
    return even.clamp_(min=torch.finfo(dtype).tiny).log_().neg_().log_().neg_()


def mode_one_hot(log_p: Tensor) -> Tensor:
    """Return the most probable classes of log_p (..., S, K) one-hot, without gradient."""
    index = log_p.detach().argmax(-1, keepdim=True)
    return torch.zeros_like(log_p).scatter_(-1, index, 1.0)


def sample_one_hot(log_p: Tensor, noise: Tensor) -> Tensor:
    """Draw classes with the given noise; straight-through.

    Args:
        log_p: (..., S, K).
        noise: (..., S, K) from `gumbel`.

    Returns:
        Samples (..., S, K), exactly one-hot, with the gradient of exp(log_p). A NaN in log_p makes
        NaN samples.

    Raises:
        ValueError: the shapes differ; one noise for several latents would tie their samples.
    """
    if noise.shape != log_p.shape:
        raise ValueError(
            f"sample_one_hot: expected noise {tuple(log_p.shape)} as log_p, got "
            f"{tuple(noise.shape)}: draw one number per class"
        )
    return kernels.draw_one_hot(log_p, noise)


def kl_divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return KL(q, p) in nats.

    Args:
        log_q: (..., S, K), finite.
        log_p: (..., S, K), finite.

    Returns:
        (...), the sum over the S variables, differentiable in both.
    """
    return (log_q.exp() * (log_q - log_p)).sum((-2, -1))


def free_kl(log_q: Tensor, log_p: Tensor, free: float) -> tuple[Tensor, Tensor]:
    """Return the two halves of the divergence between posterior q and prior p.

    Args:
        log_q: (..., S, K).
        log_p: (..., S, K).
        free: nats below which nothing is asked, >= 0.

    Returns:
        dyn (...), with a gradient for p only, and rep (...), with a gradient for q only. Both have
        the same values.
    """
    return kernels.free_kl(log_q.flatten(-2), log_p.flatten(-2), free)
