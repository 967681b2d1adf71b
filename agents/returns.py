"""Advantages and returns: pure functions of (B, T) tensors, without gradient.

Rules that hold in all of them: `terminated` cuts bootstrapping; `terminated` or `truncated` cuts
the trace; a truncated episode bootstraps from the value of its own final observation, which the
caller passes as `value_tp1`. The recursions run on `kernels.discounted_scan`.
"""

import torch
from torch import Tensor

from statewise.kernels import discounted_scan


@torch.no_grad()
def generalized_advantage(
    reward: Tensor,
    value: Tensor,
    value_tp1: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    discount: float,
    trace: float,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over unaligned windows.

        delta_t = r_t + discount * (1 - terminated_t) * V(s_{t+1}) - V(s_t)
        adv_t   = delta_t + discount * trace * (1 - ended_t) * adv_{t+1}
        ended_t = terminated_t or truncated_t

    Paper: Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized
    Advantage Estimation" (eq. 16).

    Args:
        reward: (B, T), caused by action t.
        value: (B, T), V(s_t).
        value_tp1: (B, T), V of the observation that followed action t. Where an episode ended
            this is the final observation, not the reset one.
        terminated: (B, T) bool.
        truncated: (B, T) bool.
        discount: in [0, 1].
        trace: lambda in [0, 1].
        valid: (B, T) bool, False on rows that are no steps; None where returns end before each
            of them. Inside a trial they do not: such a row then counts as no time at all.

    Returns:
        Advantages (B, T) and value targets (B, T). Rows with `valid` False get a meaningless
        value that reaches no other row; mask them.
    """
    following = torch.where(terminated, 0, value_tp1)
    delta = reward + discount * following - value
    # The scan treats a decay of 0 as a cut, so that not even a NaN passes the end of an episode.
    decay = torch.where(terminated | truncated, 0, torch.full_like(delta, discount * trace))
    if valid is not None:
        delta, decay = torch.where(valid, delta, 0), torch.where(valid, decay, 1)
    advantage = discounted_scan(delta, decay)
    return advantage, advantage + value


@torch.no_grad()
def lambda_return(
    reward: Tensor,
    value_tp1: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    *,
    discount: float,
    trace: float,
) -> Tensor:
    """TD(lambda) targets over unaligned windows.

        R_t = r_t + discount * c_t * ((1 - trace_t) * V(s_{t+1}) + trace_t * R_{t+1})

    with c_t = 1 - terminated_t, and trace_t = trace inside an episode, 0 where it is truncated
    and at the last step of the window, so that both bootstrap from V(s_{t+1}) alone.

    Paper: Sutton & Barto 2018, "Reinforcement Learning: An Introduction" (section 12.1).

    Args and shapes as in `generalized_advantage`; returns the targets (B, T).
    """
    inside = torch.full_like(reward, trace)
    inside[:, -1:] = 0
    inside = torch.where(truncated, 0, inside)
    kept = torch.where(terminated, 0, torch.full_like(reward, discount))
    bootstrap = torch.where(terminated, 0, value_tp1)
    return discounted_scan(reward + kept * (1 - inside) * bootstrap, kept * inside)
