"""What the tests of the tasks for world models share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Policy = Callable[[NDArray[Any], int], NDArray[Any]]
"""Observations (N, ...) and the number of the row to actions (N,)."""


class Played(NamedTuple):
    """N episodes, each up to its own end; rows behind it are those of new episodes."""

    obs: NDArray[Any]
    """(T + 1, N, ...)."""
    reward: NDArray[np.float32]
    """(T, N), 0 behind the end."""
    ends: NDArray[np.int64]
    """(N,) steps of each episode."""
    success: NDArray[np.bool_]
    """(N,) what the info of the last step said."""


def play(env: Any, first: NDArray[Any], policy: Policy) -> Played:
    """Play a vector environment from its first observations until every episode is over."""
    count = env.num_envs
    obs, rewards = [first], []
    ends, success = np.zeros(count, np.int64), np.zeros(count, bool)
    while not ends.all():
        now, reward, terminated, truncated, info = env.step(policy(obs[-1], len(rewards)))
        obs.append(now)
        rewards.append(np.where(ends > 0, 0, reward))
        over = (terminated | truncated) & (ends == 0)
        if over.any():
            assert (info["_success"] >= over).all()
            success[over] = info["success"][over]
        ends[over] = len(rewards)
    return Played(np.stack(obs), np.stack(rewards), ends, success)


def information(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Return the mutual information of two samples (N,) of categories, in bits."""
    joint = np.stack([one.astype(np.int64), other.astype(np.int64)], 1)
    parts = [np.unique(part, axis=0, return_counts=True)[1] for part in (one, other, joint)]
    entropies = [-(c / c.sum() * np.log2(c / c.sum())).sum() for c in parts]
    return float(entropies[0] + entropies[1] - entropies[2])


def most_information(hidden: NDArray[Any], rows: NDArray[Any]) -> float:
    """Return the most that one number of (T, N, O) two-valued rows tells about (N,) hidden bits."""
    flat = rows.reshape(len(rows), len(hidden), -1)
    flat = flat > flat.min((0, 1))
    return max(
        information(hidden, flat[t, :, o])
        for t in range(len(flat))
        for o in range(flat.shape[2])
        if flat[t, :, o].any() and not flat[t, :, o].all()
    )


def chance_information(count: int, numbers: int) -> float:
    """Return what none of `numbers` independent bits tells, but with a chance of about 1e-6.

    2 n ln(2) times the information of two independent bits is chi-squared with one degree of
    freedom, P(chi^2 > x) < exp(-x / 2).
    """
    return float((np.log(numbers) + np.log(1e6)) / (count * np.log(2)))
