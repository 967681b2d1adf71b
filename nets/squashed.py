"""A normal variable bent into (-1, 1) by tanh, with its density.

Paper: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications" (appendix C).

    u = mean + std * e,  e ~ N(0, 1)        a = tanh(u)
    log p(a) = sum over the axes of  log N(u; mean, std) - log(1 - tanh(u)^2)
    log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2 u)),  which does not overflow
"""

import math

import torch.nn.functional as F
from torch import Tensor

from statewise.nets.distributions import HALF_LOG_2PI

MIN_LOG_STD, MAX_LOG_STD = -5.0, 2.0


def bounded_log_std(output: Tensor) -> Tensor:
    """Bend any number into [MIN_LOG_STD, MAX_LOG_STD], with a gradient everywhere."""
    return MIN_LOG_STD + 0.5 * (MAX_LOG_STD - MIN_LOG_STD) * (output.tanh() + 1.0)


class SquashedGaussian:
    """A independent squashed normal variables; actions are (..., A) in (-1, 1).

    Args:
        mean: (..., A), before tanh.
        log_std: (..., A), before tanh.
    """

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean, self.log_std = mean, log_std

    def sample(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions (..., A) and their log-density (...), both differentiable.

        Args:
            noise: (..., A), standard normal.
        """
        u = self.mean + self.log_std.exp() * noise
        log_slope = 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))
        log_normal = -0.5 * noise.square() - self.log_std - HALF_LOG_2PI
        return u.tanh(), (log_normal - log_slope).sum(-1)

    def mode(self) -> Tensor:
        """Return the squashed mean (..., A), which is the median of every axis."""
        return self.mean.tanh()
