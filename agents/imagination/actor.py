"""Policies over action vectors, as a world model reads them (`worldmodels.actions`).

Paper: Hafner et al. 2023, "Mastering Diverse Domains through World Models".

    Discrete, MultiDiscrete    one-hot per component, 1 % of it uniform
    Box                        normal: mean tanh(m), deviation 0.9 sigmoid(s + 2) + 0.1

Gaussian samples may leave [-1, 1]: the environment's adapter clips them.
"""

import math
from typing import Any, Protocol

import torch
from gymnasium import spaces
from torch import Tensor, nn

from statewise.nets.dreamer_layers import Norm, normed_mlp, output_linear
from statewise.nets.latents import gumbel, mixed_log_p, mode_one_hot, sample_one_hot
from statewise.worldmodels.actions import ActionVectors

MIN_STD, MAX_STD = 0.1, 1.0
_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class ActionDistribution(Protocol):
    """What an `Actor` returns."""

    def sample(self, noise: Tensor) -> Tensor:
        """Return vectors (..., A) from noise of `Actor.noise`; with the policy's gradient."""
        ...

    def mode(self) -> Tensor:
        """Return the most probable vectors (..., A), without gradient."""
        ...

    def log_prob(self, vector: Tensor) -> Tensor:
        """Return log p (...) of vectors (..., A)."""
        ...

    def entropy(self) -> Tensor:
        """Return the entropy (...) in nats."""
        ...


class OneHotActions:
    """Independent choices, one-hot vectors side by side.

    Args:
        log_ps: (..., n) per component.
    """

    def __init__(self, log_ps: list[Tensor]) -> None:
        self.log_ps = log_ps
        self._counts = [log_p.shape[-1] for log_p in log_ps]

    def sample(self, noise: Tensor) -> Tensor:
        """Return one-hot vectors; the gradient is that of the probabilities."""
        parts = zip(self.log_ps, noise.split(self._counts, -1), strict=True)
        return torch.cat([sample_one_hot(log_p, g) for log_p, g in parts], -1)

    def mode(self) -> Tensor:
        """Return the most probable vectors."""
        return torch.cat([mode_one_hot(log_p) for log_p in self.log_ps], -1)

    def log_prob(self, vector: Tensor) -> Tensor:
        """Return the sum over the components."""
        return (torch.cat(self.log_ps, -1) * vector).sum(-1)

    def entropy(self) -> Tensor:
        """Return the sum over the components."""
        log_p = torch.cat(self.log_ps, -1)
        return -(log_p.exp() * log_p).sum(-1)


class NormalActions:
    """Independent normal variables.

    Args:
        mean: (..., A).
        std: (..., A), > 0.
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = mean, std

    def sample(self, noise: Tensor) -> Tensor:
        """Return mean + std * noise, differentiable."""
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        """Return the mean."""
        return self.mean.detach()

    def log_prob(self, vector: Tensor) -> Tensor:
        """Return the log-density, summed over the variables."""
        z = (vector - self.mean) / self.std
        return (-0.5 * z.square() - self.std.log() - _HALF_LOG_2PI).sum(-1)

    def entropy(self) -> Tensor:
        """Return the entropy, summed over the variables."""
        return (self.std.log() + _HALF_LOG_2PI + 0.5).sum(-1)


class Actor(nn.Module):
    """A policy of features (..., d_in).

    Args:
        d_in: width of the features.
        actions: how vectors stand for actions.
        hidden: widths, each >= 1.
        norm: of the hidden layers.
        unimix: share of the uniform distribution in choices, in [0, 1).
        outscale: of the output layer, >= 0; 0 starts uniform.
    """

    def __init__(
        self,
        d_in: int,
        actions: ActionVectors,
        hidden: tuple[int, ...],
        *,
        norm: Norm = "layer",
        unimix: float = 0.01,
        outscale: float = 1.0,
    ) -> None:
        super().__init__()
        self.nvec, self.width, self.unimix = actions.nvec, actions.width, unimix
        self.layers = normed_mlp(d_in, hidden, norm=norm)
        d_out = self.width if self.nvec else 2 * self.width
        self.out = output_linear(self.layers.d_out, d_out, outscale)

    @property
    def is_discrete(self) -> bool:
        """Whether actions are choices."""
        return bool(self.nvec)

    def forward(self, features: Tensor) -> ActionDistribution:
        """Return the policy at features."""
        out = self.layers(features, self.out)
        if self.nvec:
            parts = out.split(self.nvec, -1)
            return OneHotActions([mixed_log_p(part, self.unimix) for part in parts])
        mean, spread = out.chunk(2, -1)
        std = (MAX_STD - MIN_STD) * torch.sigmoid(spread + 2) + MIN_STD
        return NormalActions(mean.tanh(), std)

    def noise(self, lead: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Draw what `sample` takes, (*lead, A): Gumbel noise of choices, else normal."""
        weight, shape = self.out.weight, (*lead, self.width)
        if self.nvec:
            return gumbel(shape, generator, device=weight.device, dtype=weight.dtype)
        return torch.empty(shape, device=weight.device, dtype=weight.dtype).normal_(
            generator=generator
        )

    def random(self, lead: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Draw vectors (*lead, A) uniformly: choices, or numbers in [-1, 1)."""
        noise = torch.zeros((*lead, self.width), device=self.out.weight.device)
        noise = noise.to(self.out.weight.dtype).uniform_(generator=generator)
        if not self.nvec:
            return 2 * noise - 1
        return torch.cat([mode_one_hot(part) for part in noise.split(self.nvec, -1)], -1)


def from_vector(space: spaces.Space[Any], actions: ActionVectors, vector: Tensor) -> Tensor:
    """Turn vectors (..., A) into actions of a space, counted from 0; boxes are not clipped."""
    if not actions.nvec:
        return actions.restore(vector)
    parts = [part.argmax(-1) for part in vector.split(actions.nvec, -1)]
    return parts[0] if isinstance(space, spaces.Discrete) else torch.stack(parts, -1)
