"""The discounted scan as a loop: the meaning of the op."""

import torch
from torch import Tensor


def forward(x: Tensor, discount: Tensor, last: Tensor) -> Tensor:
    """Run y_t = x_t + discount_t y_{t+1} backwards from y_T = last; arrays (B, T), (B,).

    A discount of 0 keeps a non-finite y_{t+1} from y_t.
    """
    following, ys = last, []
    for x_t, discount_t in zip(x.unbind(1)[::-1], discount.unbind(1)[::-1], strict=True):
        stopped = (discount_t == 0) & ~following.isfinite()
        following = x_t + discount_t * torch.where(stopped, 0, following)
        ys.append(following)
    return torch.stack(ys[::-1], 1)
