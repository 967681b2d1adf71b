"""Learning histories of a tabular learner in the dark room: what Algorithm Distillation reads.

Paper: Laskin et al. 2023, "In-context Reinforcement Learning with Algorithm Distillation"
(sections 3 and 4). For each goal several learners begin with nothing and learn to go there, by
Q-learning with a bonus for what was seldom tried:

    a_t = argmax_a Q(s_t, a) + BONUS / sqrt(1 + n(s_t, a)),   ties drawn
    after an episode, for t = T - 1, ..., 0:
        Q(s_t, a_t) += LEARNING_RATE (r_t + DISCOUNT max_a Q(s_t+1, a) - Q(s_t, a_t))

(Backwards, so that a whole way is learned from one visit: Lin 1992, "Self-Improving Reactive
Agents Based on Reinforcement Learning, Planning and Teaching".)

Everything that a learner has lived through, in order, is one history. An episode of the data is
one of its episodes; `infos/history_episode` is its number within the history, and memory is
cleared where that is 0. The data belong to `statewise/DarkRoom-v0`.

Deviations: the paper's sources are A3C and DQN, with a network each; this one needs no training.
"""

from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from statewise.data.dataset import EpisodeDataset
from statewise.data.episode import Array, ArraySpec, DatasetInfo, Episode
from statewise.data.errors import DataConfigError
from statewise.data.toys import box, check_counts

Goals = Literal["all", "train", "held_out"]
Cells = NDArray[np.int64]

EPISODES = 32  # of a history
LEARNING_RATE, DISCOUNT, BONUS = 0.5, 0.9, 1.0
MOVE_X = np.array([0, 1, -1, 0, 0])  # stay, right, left, up, down
MOVE_Y = np.array([0, 0, 0, 1, -1])
_TIE = 1e-6  # of the values, so that equal ones are drawn
_SPLIT_SEED, _HELD_OUT = 0, 0.2  # those of the environment


class Lived(NamedTuple):
    """What H learners have lived through in E episodes of T steps."""

    cell: Cells
    """(H, E, T + 1): where they were, x * size + y."""
    action: Cells
    """(H, E, T)."""
    reward: NDArray[np.float32]
    """(H, E, T)."""


def split_cells(count: int, goals: Goals) -> Cells:
    """Return the cells of 0 .. count - 1 that the environment draws its goals from.

    Raises:
        DataConfigError: none of `Goals`.
    """
    if goals not in get_args(Goals):
        raise DataConfigError(f"expected one of {get_args(Goals)}, got {goals!r}", key="goals")
    if goals == "all":
        return np.arange(count)
    mixed = np.random.default_rng(_SPLIT_SEED).permutation(count)
    held_out = max(1, round(_HELD_OUT * count))
    return np.sort(mixed[:held_out] if goals == "held_out" else mixed[held_out:])


def dark_room_histories(
    num_episodes: int = 16_000,
    *,
    goals: Goals = "train",
    size: int = 5,
    length: int = 10,
    seed: int = 0,
) -> EpisodeDataset:
    """Return the histories of learners, goal by goal in turn, `EPISODES` episodes each.

    Args:
        num_episodes: of all histories, >= 1; the last one may be shorter.
        goals: cells that are learned to be found.
        size: of the room, >= 2.
        length: steps of an episode, >= 1.
        seed: of numpy's generator, >= 0.

    Raises:
        DataConfigError: a number is out of its range, or no such goals.
    """
    check_counts(num_episodes=num_episodes, length=length)
    if size < 2:
        raise DataConfigError(f"expected at least 2, got {size}", key="size")
    cells = split_cells(size**2, goals)
    goal = np.resize(cells, -(-num_episodes // EPISODES))
    lived = learn(goal, size=size, length=length, generator=np.random.default_rng(seed))
    info = DatasetInfo(
        env_id="statewise/DarkRoom-v0",
        obs_specs={"obs": box([0.0] * 2 * size, [1.0] * 2 * size)},
        action_spec=ArraySpec(shape=(), dtype="int64", num_choices=(5,)),
        max_episode_steps=length,
        ref_min=length / size**2,
        ref_max=best_return(size, length),
        generator={
            "made_by": "dark_room_histories",
            "goals": goals,
            "size": size,
            "length": length,
            "seed": seed,
        },
    )
    episodes = [_episode(lived, size, index) for index in range(num_episodes)]
    return EpisodeDataset.from_episodes(episodes, info)


def best_return(size: int, length: int) -> float:
    """Return the mean over all cells of the return of who knows that the goal is there.

    Who has d > 0 cells to walk is at the goal in length + 1 - d steps, who is there in all. The
    mean of any actions that do not depend on the goal is length / size^2, as each step ends in
    one cell.
    """
    away = np.abs(np.arange(size) - size // 2)
    distance = away[:, None] + away
    return float(np.where(distance == 0, length, np.clip(length + 1 - distance, 0, None)).mean())


def learn(goal: Cells, *, size: int, length: int, generator: np.random.Generator) -> Lived:
    """Return the histories of learners that step together.

    Args:
        goal: (H,) cell of each.
        size: of the room.
        length: T, steps of an episode.
        generator: draws between equal values.
    """
    count, each = len(goal), np.arange(len(goal))
    values, tries = np.zeros((2, count, size**2, 5))
    cell = np.empty((count, EPISODES, length + 1), np.int64)
    action = np.empty((count, EPISODES, length), np.int64)
    reward = np.empty((count, EPISODES, length), np.float32)
    for episode in range(EPISODES):
        s, a, r = cell[:, episode], action[:, episode], reward[:, episode]
        s[:, 0] = (size // 2) * (size + 1)
        for t in range(length):
            now = each, s[:, t]
            hoped = values[now] + BONUS / np.sqrt(1 + tries[now])
            a[:, t] = (hoped + _TIE * generator.uniform(size=hoped.shape)).argmax(1)
            tries[*now, a[:, t]] += 1
            s[:, t + 1] = _moved(s[:, t], a[:, t], size)
            r[:, t] = s[:, t + 1] == goal
        for t in reversed(range(length)):
            aim = r[:, t] + DISCOUNT * values[each, s[:, t + 1]].max(1)
            taken = each, s[:, t], a[:, t]
            values[taken] += LEARNING_RATE * (aim - values[taken])
    return Lived(cell, action, reward)


def _moved(cell: Cells, action: Cells, size: int) -> Cells:
    """Return where actions lead; walls stop a move."""
    x, y = np.divmod(cell, size)
    x, y = (np.clip(place + move[action], 0, size - 1) for place, move in
            ((x, MOVE_X), (y, MOVE_Y)))  # fmt: skip
    return np.asarray(x * size + y, np.int64)


def _episode(lived: Lived, size: int, index: int) -> Episode:
    """Return episode number `index` of all."""
    history, number = divmod(index, EPISODES)
    cell = lived.cell[history, number]
    one_hot: Array = np.eye(size, dtype=np.float32)
    return Episode(
        observations={"obs": np.concatenate([one_hot[cell // size], one_hot[cell % size]], 1)},
        actions=lived.action[history, number],
        rewards=lived.reward[history, number],
        terminated=True,
        truncated=False,
        infos={"history_episode": np.full(lived.reward.shape[2], number)},
        index=index,
    )
