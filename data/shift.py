"""From departures to arrivals: the only code that shifts time.

Stored row t holds what `action[t]` caused. World models, and agents that read their previous
action and reward, want what came *with* `obs[t]`, that is what `action[t - 1]` caused.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from statewise.data.step import Step


class Arrival(NamedTuple):
    """Rows seen on arriving at `obs[t]`; `obs`, `action` and `reset` stay those of the step."""

    action_in: Tensor
    """(B, T, ...) the action that led to obs[t]; 0 where nothing is known to have led there:
    first observations, padding, the edge of a window without `previous`. The integer 0 is
    also an action: a model that embeds actions must clear those rows after embedding."""
    reward_in: Tensor
    """(B, T) float, received with obs[t]; 0 in the same rows."""
    is_first: Tensor
    """(B, T) bool: obs[t] is the first of an episode, as stored."""
    is_terminal: Tensor
    """(B, T) bool: obs[t] is the final observation of an episode that ended by termination."""
    is_last: Tensor
    """(B, T) bool: obs[t] is the final observation of an episode, terminated or truncated."""
    counts: Tensor
    """(B, T) bool: obs[t] is an observation and everything above is known of it, so its row
    enters losses. True on final observations, although their `valid` is False; False on
    padding and at the edge of a window without `previous`."""


def _rows_before(rows: Tensor, first: Tensor | None) -> Tensor:
    """Move (B, T, ...) one row later; `first` (B, ...) enters at row 0, zeros if None."""
    head = torch.zeros_like(rows[:, :1]) if first is None else first.unsqueeze(1)
    return torch.cat([head, rows[:, :-1]], 1)


def _where(condition: Tensor, rows: Tensor) -> Tensor:
    """Keep rows (B, T, ...) where the condition (B, T) holds, 0 elsewhere, NaN included."""
    condition = condition.reshape(condition.shape + (1,) * (rows.ndim - condition.ndim))
    return torch.where(condition, rows, torch.zeros_like(rows))


def to_arrival(step: Step, *, previous: Step | None = None) -> Arrival:
    """Shift stored rows by one: what came with each observation.

        action_in[t]   = action[t-1]                           0 where is_first[t]
        reward_in[t]   = reward[t-1]                           0 where is_first[t]
        is_terminal[t] = terminated[t-1]                       False where is_first[t]
        is_last[t]     = terminated[t-1] or truncated[t-1]     False where is_first[t]
        counts[t]      = valid[t], or row t is a final observation

    A row that is not valid is a final observation if the row before it is valid and ended its
    episode, and padding otherwise. Padding that directly follows a row that ended an episode
    must therefore have `is_first` True, or the episode's final observation comes first.

    Rows collected from a backend that resets in the same step hold no final observations
    until the buffer has appended them; without them the ends show only as `is_first`.

    Args:
        step: rows (B, T, ...), T >= 1.
        previous: the row before the window, (B, ...). None means unknown: a row 0 that is not
            the first of an episode then gets zeros and does not count.

    Returns:
        The arrival rows, (B, T, ...).
    """
    valid_tm1, terminated_tm1, truncated_tm1, action_tm1, reward_tm1 = (
        _rows_before(getattr(step, name), None if previous is None else getattr(previous, name))
        for name in ("valid", "terminated", "truncated", "action", "reward")
    )
    ended_tm1 = terminated_tm1 | truncated_tm1
    follows = valid_tm1 & ~step.is_first & (step.valid | ended_tm1)
    return Arrival(
        action_in=_where(follows, action_tm1),
        reward_in=_where(follows, reward_tm1),
        is_first=step.is_first,
        is_terminal=follows & terminated_tm1,
        is_last=follows & ended_tm1,
        counts=follows | (step.is_first & step.valid),
    )
