"""Where the episodes of flat arrays of steps begin and end.

D4RL's own splitter cuts one step early from the second episode on where `timeouts` are missing;
this one does not.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from statewise.data import checks
from statewise.data.errors import NoEpisodeBoundary
from statewise.data.memory import Index

Flags = NDArray[np.bool_]
Ends = Literal["flags", "timeouts", "first_reward"]
Incomplete = Literal["drop", "keep"]


@dataclass(frozen=True, kw_only=True)
class Split:
    """Episodes of N flat steps."""

    starts: Index
    """(E,) first step."""
    ends: Index
    """(E,) one past the last step."""
    terminated: Flags
    """(E,)."""
    truncated: Flags
    """(E,)."""
    borders: Flags
    """(N,) whether the environment was reset after the step, as far as is known."""
    dropped_steps: int
    """Of an unfinished last episode, and of steps after a first reward."""

    @property
    def lengths(self) -> Index:
        """(E,) steps per episode."""
        return self.ends - self.starts


def split_steps(
    terminals: Flags,
    timeouts: Flags | None,
    *,
    max_episode_steps: int | None = None,
    ends: Ends = "flags",
    incomplete: Incomplete = "drop",
    rewards: NDArray[np.float32] | None = None,
    file: checks.File = None,
) -> Split:
    """Split flat steps into episodes.

    Where a step is both terminal and timeout it counts as terminal, with a warning. Without
    timeouts, episodes are also cut every `max_episode_steps`.

    Args:
        terminals: (N,).
        timeouts: (N,), or None if the file has none.
        max_episode_steps: of the environment, >= 1; None is not known.
        ends: "flags" cuts at both, "timeouts" at timeouts only, "first_reward" at timeouts and
            then ends each episode, as terminated, at its first reward >= 1.
        incomplete: what becomes of steps after the last end: "keep" makes them an episode that
            was truncated.
        rewards: (N,), read by "first_reward".
        file: for messages.

    Raises:
        EmptyDataset: no complete episode.
        NoEpisodeBoundary: no flag is set and `max_episode_steps` is not known.
        EpisodeTooLong: an episode has more steps than `max_episode_steps`.
    """
    if ends != "flags":
        terminals = np.zeros_like(terminals)
    borders = _borders(terminals, timeouts, max_episode_steps, file)
    stops: Index = np.flatnonzero(borders) + 1
    tail = len(terminals) - (int(stops[-1]) if len(stops) else 0)
    if tail and incomplete == "keep":
        stops = np.append(stops, len(terminals))
    kept_tail = tail if incomplete == "keep" else 0
    checks.check_some_episodes(
        len(stops), file, hint="no episode ends: read with incomplete='keep'"
    )
    starts = np.concatenate([np.zeros(1, np.int64), stops[:-1]])
    terminated = terminals[stops - 1]
    split = Split(
        starts=starts,
        ends=stops,
        terminated=terminated,
        truncated=~terminated,
        borders=borders,
        dropped_steps=tail - kept_tail,
    )
    checks.check_episode_lengths(split.lengths, max_episode_steps, file)
    if ends == "first_reward" and rewards is not None:
        return _until_first_reward(split, rewards)
    return split


def _borders(
    terminals: Flags, timeouts: Flags | None, max_episode_steps: int | None, file: checks.File
) -> Flags:
    if timeouts is not None and timeouts.any():
        both = int((terminals & timeouts).sum())
        if both:
            checks.warn(f"timeouts: {both} steps are also terminal and count as terminal", file)
        return terminals | timeouts
    if max_episode_steps is not None:
        return terminals | _counted(terminals, max_episode_steps)
    if not terminals.any():
        raise NoEpisodeBoundary(
            "expected terminals or timeouts somewhere, got none",
            file=file,
            key="timeouts" if timeouts is not None else "terminals",
            hint="give max_episode_steps",
        )
    if timeouts is None:
        checks.warn(
            "timeouts: not there, so that episodes end at terminals only: give"
            " max_episode_steps if some were cut off",
            file,
        )
    return terminals


def _counted(terminals: Flags, max_episode_steps: int) -> Flags:
    """Return (N,) every `max_episode_steps`-th step, counted anew after each terminal."""
    steps = np.arange(len(terminals))
    restarts = np.zeros(len(terminals), np.int64)
    restarts[1:] = np.where(terminals[:-1], steps[1:], 0)
    since = steps - np.maximum.accumulate(restarts)
    ends: Flags = since % max_episode_steps == max_episode_steps - 1
    return ends


def _until_first_reward(split: Split, rewards: NDArray[np.float32]) -> Split:
    """End episodes as terminated at their first reward >= 1, where they have one."""
    paid = np.flatnonzero(rewards >= 1)
    place = np.searchsorted(paid, split.starts)
    first = np.append(paid, len(rewards))[place]
    reached = first < split.ends
    ends = np.where(reached, first + 1, split.ends)
    return Split(
        starts=split.starts,
        ends=ends,
        terminated=split.terminated | reached,
        truncated=split.truncated & ~reached,
        borders=split.borders,
        dropped_steps=split.dropped_steps + int((split.ends - ends).sum()),
    )
