"""Targets and losses of soft actor-critic over windows (B, T): pure functions of tensors.

Paper: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications". Q_1, Q_2 are the
critics, a dash is a target network, alpha the temperature, h_t what the memory makes of
everything up to o_t.

    v_t = min_i Q_i'(h_t', a) - alpha log pi(a | h_t),   a ~ pi(. | h_t)            (eq. 3)
    y_t = r_t + gamma (1 - terminated_t) v_{t+1}
    critics:      sum_i  mean 1/2 (Q_i(h_t, a_t) - y_t)^2                             (eq. 5)
    actor:        mean  alpha log pi(a | h_t) - min_i Q_i(h_t, a)                      (eq. 7)
    temperature:  mean  -log(alpha) (log pi(a | h_t) + H),   H the target entropy     (eq. 18)

Where an episode was truncated, v_{t+1} is that of its own final observation, which is the next
row, with the memory that the episode had.

Deviations: the temperature's loss has log(alpha) for alpha, as the authors' code has.
"""

import torch
from torch import Tensor

from statewise.data.step import Step


def mean_of_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Average `x` (..., B, T) over the rows (B, T) that are True, and over what is before."""
    # Selected, never multiplied: NaN in a row that does not count reaches neither value nor
    # gradient.
    lead = x[..., 0, 0].numel()
    return torch.where(rows, x, 0).sum() / (lead * rows.sum()).clamp(min=1)


def soft_value(q: Tensor, log_prob: Tensor, temperature: Tensor) -> Tensor:
    """Return v (B, T) of critics q (2, B, T) at actions drawn with `log_prob` (B, T)."""
    return torch.minimum(q[0], q[1]) - temperature * log_prob


def following(value: Tensor, step: Step) -> tuple[Tensor, Tensor]:
    """Return the value (B, T - 1) of what followed each row but the last, and which rows count.

    That is the next row. Where an episode ended inside a trial and nothing said so, because
    values go on over it, the next row is the final observation, at which no action was taken;
    the row behind it is what followed.

    Args:
        value: (B, T).
        step: the rows.

    Returns:
        Values, and bool: the action was taken, and the row that followed is in the window.
    """
    goes_on = step.valid & ~step.terminated & ~step.truncated
    skips = goes_on[:, :-1] & ~step.valid[:, 1:]
    second = torch.cat((value[:, 2:], value[:, -1:]), 1)
    is_there = torch.ones_like(skips)
    is_there[:, -1] = ~skips[:, -1]
    return torch.where(skips, second, value[:, 1:]), step.valid[:, :-1] & is_there


@torch.no_grad()
def soft_target(reward: Tensor, terminated: Tensor, value_tp1: Tensor, discount: float) -> Tensor:
    """Return y (B, T).

    Args:
        reward: (B, T), caused by action t.
        terminated: (B, T) bool; the value there is not read and may be NaN.
        value_tp1: (B, T), v of the observation that followed.
        discount: gamma in [0, 1].
    """
    return torch.where(terminated, reward, reward + discount * value_tp1)


def critic_loss(q: Tensor, target: Tensor, rows: Tensor) -> Tensor:
    """Return the loss of twin critics: half the squared errors, a mean over rows, a sum over both.

    Args:
        q: (2, B, T).
        target: (B, T).
        rows: (B, T) bool, which count.
    """
    error = torch.where(rows, q - target, 0)  # before the square: 0 * NaN would be NaN
    return 0.5 * q.shape[0] * mean_of_rows(error.square(), rows)


def actor_loss(log_prob: Tensor, q: Tensor, temperature: Tensor, rows: Tensor) -> Tensor:
    """Return the loss of the policy.

    Args:
        log_prob: (B, T) of the actions that it drew, with gradient.
        q: (2, B, T) of these actions, with gradient to them.
        temperature: alpha > 0, without gradient.
        rows: (B, T) bool, which count.
    """
    return -mean_of_rows(soft_value(q, log_prob, temperature), rows)


def temperature_loss(
    log_temperature: Tensor, log_prob: Tensor, target_entropy: float, rows: Tensor
) -> Tensor:
    """Return the loss of log(alpha), which rises while the entropy is below its target.

    Args:
        log_temperature: scalar, with gradient.
        log_prob: (B, T) of drawn actions; counts as a constant.
        target_entropy: in nats, of actions scaled to [-1, 1].
        rows: (B, T) bool, which count.
    """
    return -log_temperature * (mean_of_rows(log_prob.detach(), rows) + target_entropy)
