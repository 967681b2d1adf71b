"""What the critic learns from replayed rows, beside what it learns in imagination.

Paper: the code of 2024 of Hafner et al. 2023, "Mastering Diverse Domains through World Models".

    R_t = r_{t+1} + gamma c_{t+1} ((1 - lambda) b_{t+1} + lambda R_{t+1})
    b_t = the imagined return from row t where a rollout starts there, else the critic's value

with r and c of the replay, R_{t+1} replaced by b_{t+1} at the last observation of an episode, and
R_t = b_t where the window does not say what came next. Rewards that were seen reach the critic
so, whatever the model makes of them.

Deviations: no gradient into the world model.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from statewise.data.shift import Arrival
from statewise.kernels import discounted_scan


class Replayed(NamedTuple):
    """A replayed window (B, T) as the critic sees it."""

    features: Tensor
    """(B, T, F), without gradient."""
    arrival: Arrival
    starts: Tensor
    """(N,) the rows, flat over (B, T), where the rollouts start; (0,) where it is others."""


def bootstrap(replayed: Replayed, value: Tensor, imagined: Tensor) -> Tensor:
    """Return b (B, T).

    Args:
        replayed: the window.
        value: (B, T), of the critic.
        imagined: (N,), returns of the rollouts at their starts.
    """
    if not len(replayed.starts):
        return value
    return value.flatten().index_copy(0, replayed.starts, imagined).reshape(value.shape)


def replayed_returns(
    arrival: Arrival, bootstrap: Tensor, *, discount: float, trace: float, reward_scale: float
) -> tuple[Tensor, Tensor]:
    """Return R (B, T - 1), and bool (B, T - 1) where the next row is known.

    Args:
        arrival: (B, T).
        bootstrap: b (B, T).
        discount: gamma in [0, 1].
        trace: lambda in [0, 1].
        reward_scale: multiplies the rewards.
    """
    known = arrival.counts[:, 1:] & ~arrival.is_first[:, 1:]
    live = discount * (~arrival.is_terminal[:, 1:]).to(bootstrap.dtype)
    goes_on = trace * (~arrival.is_last[:, 1:]).to(bootstrap.dtype)
    reward = reward_scale * arrival.reward_in[:, 1:].to(bootstrap.dtype)
    now = reward + live * (1.0 - goes_on) * bootstrap[:, 1:]
    now = torch.where(known, now, bootstrap[:, :-1])
    share = torch.where(known, live * goes_on, 0.0)
    return discounted_scan(now, share, last=bootstrap[:, -1]), known
