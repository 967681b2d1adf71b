"""Numbers of any size: the symmetric logarithm, and numbers as two neighbours of many bins.

Paper: Hafner, Pasukonis, Ba and Lillicrap 2023, "Mastering Diverse Domains through World
Models".

    symlog(x) = sign(x) ln(1 + |x|),    symexp(x) = sign(x) (exp(|x|) - 1)

A number x between the bins b_k <= y <= b_{k+1} becomes a distribution with the mean y on these two.
There are two generations, with y = symlog(x) or y = x:

    spacing   bins b_k                       mean of a distribution p
    symlog    evenly spaced                  symexp(sum_k p_k b_k)      (code of 2023)
    symexp    symexp of evenly spaced ones   sum_k p_k b_k              (code of 2024)

Deviations: sums run over pairs b_k, b_{n-1-k} first, in both spacings, so that a uniform p has the
mean 0 exactly. symlog and symexp have their slope 1 at 0, where sign(x) has none: a critic whose
output starts at 0 passes gradients. A NaN becomes a NaN target, not the last bin.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statewise.kernels import two_hot_loss
from statewise.nets.dreamer_layers import widened

Spacing = Literal["symlog", "symexp"]


def _mirrored(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return sign(x) function(|x|), with the slope of the function at 0."""
    is_negative = x < 0
    y = function(torch.where(is_negative, -x, x))
    return torch.where(is_negative, -y, y)


def symlog(x: Tensor) -> Tensor:
    """Return sign(x) ln(1 + |x|) of x (...), differentiable."""
    return _mirrored(torch.log1p, x)


def symexp(x: Tensor) -> Tensor:
    """Return sign(x) (exp(|x|) - 1) of x (...), the inverse of `symlog`, differentiable."""
    return _mirrored(torch.expm1, x)


def _check(num_bins: int, low: float, high: float, spacing: Spacing) -> None:
    if num_bins < 2:
        raise ValueError(f"num_bins: expected at least 2, got {num_bins}")
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"low, high: expected finite low < high, got {low} and {high}")
    if spacing not in get_args(Spacing):
        raise ValueError(f"spacing: expected one of {', '.join(get_args(Spacing))}, got {spacing}")


class TwoHot(nn.Module):
    """Numbers as distributions over bins: target, loss and mean.

    No parameters. The buffer `bins` (n,) is rebuilt where the module changes its dtype, so that a
    float64 module has float64 bins; it is never narrower than float32.

    Args:
        num_bins: n >= 2.
        low: first bin, in symlog units for both spacings; what is smaller belongs to it.
        high: last bin, > low.
        spacing: "symlog" or "symexp", see the module's table.

    Raises:
        ValueError: an argument is out of its range.
    """

    bins: Tensor

    def __init__(
        self,
        num_bins: int = 255,
        low: float = -20.0,
        high: float = 20.0,
        spacing: Spacing = "symlog",
    ) -> None:
        super().__init__()
        _check(num_bins, low, high, spacing)
        self.num_bins = num_bins
        self.low = low
        self.high = high
        self.spacing = spacing
        self.register_buffer("bins", self._bins().float(), persistent=False)

    def _bins(self) -> Tensor:
        """Return the bins (n,) in float64; with low = -high they are exactly symmetric."""
        even = torch.linspace(self.low, self.high, self.num_bins, dtype=torch.float64)
        if self.low == -self.high:
            even = 0.5 * (even - even.flip(0))
        return even if self.spacing == "symlog" else symexp(even)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move or convert the module, with bins of the new dtype's precision."""
        dtype = self.bins.dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.bins.dtype != dtype:
            dtype = torch.promote_types(self.bins.dtype, torch.float32)
            self.bins = self._bins().to(dtype).to(self.bins.device)
        return self

    @torch.no_grad()
    def _neighbours(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the lower of the two bins (..., 1) and the weight (..., 1) of the upper one."""
        y = x.to(self.bins.dtype).unsqueeze(-1)
        y = symlog(y) if self.spacing == "symlog" else y
        y = y.clamp(self.bins[0], self.bins[-1]).contiguous()  # keeps NaN
        above = torch.searchsorted(self.bins, y, right=True)  # the number of bins <= y
        below = (above - 1).clamp(0, self.num_bins - 2)
        start = self.bins[below]
        return below, (y - start) / (self.bins[below + 1] - start)

    def encode(self, x: Tensor) -> Tensor:
        """Return the distributions (..., n) of numbers (...), without gradient."""
        below, share = self._neighbours(x)
        target = share.new_zeros(*x.shape, self.num_bins)
        return target.scatter(-1, below, 1.0 - share).scatter(-1, below + 1, share)

    def loss(self, logits: Tensor, x: Tensor) -> Tensor:
        """Return -sum_k encode(x)_k log softmax(logits)_k.

        Args:
            logits: (..., n), which get a gradient.
            x: (...), which gets none.

        Returns:
            (...) in nats, float32 or float64.

        Raises:
            ValueError: the shapes do not fit.
        """
        if logits.shape != (*x.shape, self.num_bins):
            raise ValueError(
                f"two-hot loss: expected logits (..., {self.num_bins}) of numbers (...), got "
                f"{tuple(logits.shape)} and {tuple(x.shape)}: drop or add the last axis"
            )
        below, share = self._neighbours(x)
        return two_hot_loss(widened(logits), below.squeeze(-1), share.squeeze(-1))

    def mean(self, logits: Tensor) -> Tensor:
        """Return the numbers (...) that logits (..., n) stand for, differentiable."""
        weighted = F.softmax(widened(logits), -1) * self.bins
        half = self.num_bins // 2
        pairs = weighted[..., :half] + weighted[..., self.num_bins - half :].flip(-1)
        total = pairs.sum(-1)
        if self.num_bins % 2:
            total = total + weighted[..., half]
        return symexp(total) if self.spacing == "symlog" else total
