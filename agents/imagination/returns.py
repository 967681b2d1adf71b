"""Returns and weights of imagined rows: pure, differentiable functions.

K rows start anywhere and run for H steps. Entry i of reward and discount belongs to the step
from feature i to feature i + 1: what came on arriving at i + 1, and gamma times the probability
that the episode goes on there.

Paper: Hafner, Lillicrap, Ba and Norouzi 2020, "Dream to Control", in the recursive form of Hafner
et al. 2021, "Mastering Atari with Discrete World Models".
"""

import torch
from torch import Tensor

from statewise.kernels import discounted_scan


def imagined_lambda_return(reward: Tensor, discount: Tensor, value: Tensor, trace: float) -> Tensor:
    """TD(lambda) targets of imagined rows.

        R_i = reward_i + discount_i * ((1 - trace) * value_{i+1} + trace * R_{i+1}),  R_H = value_H

    Args:
        reward: (K, H).
        discount: (K, H), in [0, 1].
        value: (K, H + 1), of the features 0..H; that of feature 0 is not used.
        trace: lambda in [0, 1].

    Returns:
        R (K, H), differentiable in reward, discount and value.

    Raises:
        ValueError: a shape does not fit, or `trace` is out of its range.
    """
    K, H = reward.shape
    if discount.shape != (K, H) or value.shape != (K, H + 1):
        raise ValueError(
            "imagined_lambda_return: expected reward (K, H), discount (K, H) and value (K, H + 1), "
            f"got {tuple(reward.shape)}, {tuple(discount.shape)} and {tuple(value.shape)}"
        )
    if not 0.0 <= trace <= 1.0:
        raise ValueError(f"trace: expected lambda in [0, 1], got {trace}")
    value_tp1 = value[:, 1:]
    now = reward + (1.0 - trace) * discount * value_tp1
    return discounted_scan(now, trace * discount, last=value_tp1[:, -1])


def weights(discount: Tensor, *, start: Tensor | None = None) -> Tensor:
    """Return how much each imagined step counts: the probability that it is reached.

    Args:
        discount: (K, H), entry i of the step from feature i to i + 1.
        start: (K,), 0 for rows that start at a terminal observation; None means 1.

    Returns:
        (K, H), the cumulative product of start, discount_0, ..., discount_{H-2}.
    """
    first = torch.ones_like(discount[:, :1]) if start is None else start[:, None].to(discount.dtype)
    return torch.cat([first, discount[:, :-1]], 1).cumprod(1)
