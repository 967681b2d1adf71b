"""Action distributions over any leading axes, without argument checks.

`torch.distributions` validates and broadcasts at every call, which costs more than the
networks of a small policy. These classes hold tensors and do the arithmetic only.

Categories are drawn by an exponential race: with E_i ~ Exp(1) independent, argmax_i p_i / E_i
is distributed as p, so one draw is one argmax and takes its noise from the given generator.
"""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def _race(log_p: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw one index of the last axis, with probability exp(log_p)."""
    p = log_p.detach().exp()
    return (p / torch.empty_like(p).exponential_(generator=generator)).argmax(-1)


def _entropies(log_p: Tensor) -> Tensor:
    """Return the entropy over the last axis; impossible categories add 0, not 0 * inf."""
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(-1)


def _pad_components(logits: Tensor, nvec: tuple[int, ...]) -> Tensor:
    """Turn (..., sum(nvec)) into (..., K, max(nvec)), padded with impossible categories."""
    widest = max(nvec)
    if min(nvec) == widest:
        return logits.reshape(*logits.shape[:-1], len(nvec), widest)
    parts = torch.split(logits, list(nvec), -1)
    return torch.stack(
        [
            F.pad(part, (0, widest - n), value=-math.inf)
            for part, n in zip(parts, nvec, strict=True)
        ],
        -2,
    )


class Distribution(Protocol):
    """What a policy head returns."""

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """Draw an action without gradient; None uses torch's default generator."""
        ...

    def mode(self) -> Tensor:
        """Return the most probable action."""
        ...

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-probability or log-density (...) of an action, differentiable."""
        ...

    def entropy(self) -> Tensor:
        """Return the entropy (...) in nats, differentiable."""
        ...


class Categorical:
    """One choice out of n; actions are int64 (...) in 0..n-1.

    Args:
        logits: (..., n); an entry may be -inf (impossible) as long as one is not.
    """

    def __init__(self, logits: Tensor) -> None:
        self.log_p = F.log_softmax(logits, -1)

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """Draw an action (...) without gradient."""
        return _race(self.log_p, generator)

    def mode(self) -> Tensor:
        """Return the most probable action (...)."""
        return self.log_p.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return log p (...) of an action (...)."""
        return self.log_p.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Return the entropy (...) in nats."""
        return _entropies(self.log_p)


class MultiCategorical:
    """K independent choices; actions are int64 (..., K), component k in 0..nvec[k]-1.

    Args:
        logits: (..., sum(nvec)), the components one after the other.
        nvec: number of categories of each component, each at least 1.
    """

    def __init__(self, logits: Tensor, nvec: tuple[int, ...]) -> None:
        self.log_p = F.log_softmax(_pad_components(logits, nvec), -1)

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """Draw an action (..., K) without gradient."""
        return _race(self.log_p, generator)

    def mode(self) -> Tensor:
        """Return the most probable action (..., K)."""
        return self.log_p.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return log p (...) of an action (..., K): the sum over its components."""
        return self.log_p.gather(-1, action.unsqueeze(-1)).squeeze(-1).sum(-1)

    def entropy(self) -> Tensor:
        """Return the entropy (...) in nats: the sum over the components."""
        return _entropies(self.log_p).sum(-1)


class DiagonalGaussian:
    """A independent normal variables; actions are float (..., A), not squashed or clipped.

    Args:
        mean: (..., A).
        log_std: (A,), the same for every state.
    """

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean = mean
        self.log_std = log_std

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """Draw an action (..., A) without gradient."""
        mean = self.mean.detach()
        noise = torch.empty_like(mean).normal_(generator=generator)
        return torch.addcmul(mean, noise, self.log_std.detach().exp())

    def mode(self) -> Tensor:
        """Return the mean (..., A), differentiable."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log-density (...) of an action (..., A)."""
        z = (action - self.mean) * torch.exp(-self.log_std)
        return -0.5 * z.square().sum(-1) - (self.log_std + HALF_LOG_2PI).sum()

    def entropy(self) -> Tensor:
        """Return the entropy (...) in nats; it does not depend on the state."""
        return (self.log_std + HALF_LOG_2PI + 0.5).sum().expand(self.mean.shape[:-1])
