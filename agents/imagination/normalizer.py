"""The scale of returns, from slowly moving percentiles.

Paper: Hafner, Pasukonis, Ba and Lillicrap 2023, "Mastering Diverse Domains through World
Models" (section on the actor), with the constants of its code:

    ema    <- decay ema + (1 - decay) percentiles(R),  ema = 0 at the start, no bias correction
    offset  = ema_low,  scale = max(floor, ema_high - ema_low)
"""

import torch
from torch import Tensor, nn


class ReturnNormalizer(nn.Module):
    """Offset and scale that bring returns to about unit range; small ones are not blown up.

    The state is the buffer `ema` (2,), saved with the module.

    Args:
        decay: of the moving averages, in [0, 1].
        low: lower percentile as a share, in [0, 1].
        high: upper percentile, > low.
        floor: smallest scale, > 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    ema: Tensor

    def __init__(
        self, decay: float = 0.99, low: float = 0.05, high: float = 0.95, floor: float = 1.0
    ) -> None:
        super().__init__()
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"decay: expected a share in [0, 1], got {decay}")
        if not 0.0 <= low < high <= 1.0:
            raise ValueError(f"low, high: expected shares 0 <= low < high <= 1, got {low}, {high}")
        if not floor > 0.0:
            raise ValueError(f"floor: expected a scale > 0, got {floor}")
        self.decay = decay
        self.shares = (low, high)
        self.floor = floor
        self.register_buffer("ema", torch.zeros(2))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Move the averages towards the percentiles of all entries of x (...), at least one."""
        entries = x.to(self.ema.dtype).flatten()
        now = torch.quantile(entries, self.ema.new_tensor(self.shares))
        self.ema.mul_(self.decay).add_(now, alpha=1.0 - self.decay)

    @property
    def offset(self) -> Tensor:
        """The lower average, a scalar without gradient."""
        return self.ema[0].clone()

    @property
    def scale(self) -> Tensor:
        """The distance of the averages, at least `floor`; a scalar without gradient."""
        return (self.ema[1] - self.ema[0]).clamp(min=self.floor)
