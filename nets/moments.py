"""Observations shifted and scaled by their moments so far.

    x -> clip((x - mean) / sqrt(variance + eps), -LIMIT, LIMIT)

as the VecNormalize of OpenAI's Baselines has it. The moments are those of all rows that were seen,
and stand still between two calls of `learn`: what is collected and what is learned from it see the
same numbers.

Deviations: the moments change once per rollout, not with every step. Only entries that say nothing
of their own scale are changed: boxes of floating-point numbers of which at least one has no bound.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

EPS = 1e-8  # added to the variance
LIMIT = 10.0  # of a scaled number
BOUND = 1e30  # numbers from here on are no bounds: float32's largest stands for infinity


def has_no_scale(space: spaces.Space[Any]) -> bool:
    """Return whether a space is a box of floating-point numbers, not all of them bounded."""
    if not isinstance(space, spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        return False
    return bool(np.any(np.maximum(np.abs(space.low), np.abs(space.high)) >= BOUND))


class NormalizedEncoder(nn.Module):
    """An encoder that reads scaled observations.

    The buffers are saved with the weights: `count` rows, and for all scaled numbers, entry after
    entry, the `mean` (W,), `squares` (W,), the sum of the squared distances from it, and `scale`
    (W,), their inverse deviation, which a step of acting need not derive.

    Args:
        obs_space: of one environment.
        encoder: reads the entries, the unscaled ones as well; has `d_out`.

    Raises:
        ValueError: no entry is without a scale.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor
    scale: Tensor

    def __init__(self, obs_space: spaces.Dict, encoder: nn.Module) -> None:
        super().__init__()
        self.shapes = {
            key: tuple(space.shape or ())
            for key, space in sorted(obs_space.spaces.items())
            if has_no_scale(space)
        }
        if not self.shapes:
            raise ValueError(
                f"normalize_obs: expected a Box of numbers without bounds, got {obs_space}: leave "
                "it at none"
            )
        self.encoder = encoder
        self.d_out = encoder.d_out
        self.widths = [math.prod(shape) for shape in self.shapes.values()]
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        for name, start in (("mean", 0.0), ("squares", 0.0), ("scale", 1.0)):
            numbers = torch.full((sum(self.widths),), start, dtype=torch.float64)
            self.register_buffer(name, numbers)

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        """Encode observations (..., *shape); before the first `learn` they are only cut."""
        encoded: Tensor = self.encoder(obs | self.scaled(obs))
        return encoded

    def scaled(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the scaled entries of observations (..., *shape)."""
        moments = zip(self.mean.split(self.widths), self.scale.split(self.widths), strict=True)
        result = {}
        for (key, shape), (mean, scale) in zip(self.shapes.items(), moments, strict=True):
            x = obs[key]
            shifted = (x - mean.to(x.dtype).view(shape)) * scale.to(x.dtype).view(shape)
            result[key] = shifted.clamp(-LIMIT, LIMIT)
        return result

    @torch.no_grad()
    def learn(
        self, obs: dict[str, Tensor], valid: Tensor, total: Callable[[Tensor], Tensor]
    ) -> None:
        """Take rows into the moments.

        Args:
            obs: (..., *shape) per entry.
            valid: (...), which rows count.
            total: adds a tensor up over all processes that learn together.
        """
        rows = torch.cat([obs[key][valid].flatten(1) for key in self.shapes], -1)
        away = rows.to(self.mean) - self.mean
        count = valid.sum().to(self.count).expand(1)
        sums = total(torch.cat((count, away.sum(0), away.square().sum(0))))
        added, moved, spread = sums.split([1, *(2 * [len(self.mean)])])
        if added == 0:
            return
        self.count += added[0]
        # The old rows' distances from the old mean add up to 0.
        self.squares += spread - moved.square() / self.count
        self.mean += moved / self.count
        self.scale.copy_((self.squares / self.count + EPS).rsqrt())
