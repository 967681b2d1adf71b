"""Small supervised tasks that tell what a memory can do and what it cannot.

A row holds two episodes with a reset between them, so what a core carries across a reset costs it
accuracy. Every task has a scale: 1 in training, 2 to see whether what was learned holds at twice
the length.

    parity            is the number of ones so far odd?                    a two-state machine
    permutations      where does ball 0 lie after these swaps of 5 cups?   tracks a permutation
    copy              repeat the symbols of the first half in the second
    selective copy    the same, the symbols scattered among blanks
    recall            pairs of key and value, then keys: say their values
    echo              repeat the symbol of 8 steps ago, all the time

Parity and permutations are the state-tracking tasks of Merrill et al. 2024 and Grazzi et al. 2024,
selective copy is Gu & Dao 2023, recall Arora et al. 2023.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

EPISODES = 2
CUPS = 5
COPIED = 8  # kinds of symbols to copy
SELECTED = 4  # kinds of symbols among blanks
KEYS, VALUES = 8, 4
DELAY = 8


class Sequences(NamedTuple):
    """A batch of rows."""

    x: Tensor  # (B, T, features)
    target: Tensor  # (B, T) int64
    asked: Tensor  # (B, T) bool, where the target counts
    reset: Tensor  # (B, T) bool, the first step of each episode


class Task(NamedTuple):
    """A family of sequences."""

    make: Callable[[Generator, int, int], Sequences]  # generator, rows, scale
    features: int
    classes: int
    chance: float
    """Accuracy of the best guess that knows the episode's start but none of its inputs."""
    updates: int
    """That a run gets: enough for the cores that learn the task."""


def _ints(generator: Generator, high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape, generator=generator)


def _choose(generator: Generator, rows: int, out_of: int, count: int) -> Tensor:
    """Return `count` different numbers below `out_of` per row, in random order."""
    return torch.rand(rows, out_of, generator=generator).argsort(1)[:, :count]


def _episodes(lengths: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """Return (B, T) the step within its episode, and resets, for two episodes per row."""
    time = torch.arange(total).expand(len(lengths), total)
    second = time >= lengths[:, None]
    step = torch.where(second, time - lengths[:, None], time)
    return step, step == 0


def _stream(generator: Generator, rows: int, scale: int) -> tuple[int, Tensor, Tensor]:
    """Return T, steps and resets of two episodes of about 32 `scale` steps, cut at random."""
    length = 32 * scale
    first = length // 2 + _ints(generator, length, rows)
    return 2 * length, *_episodes(first, 2 * length)


def _parity(generator: Generator, rows: int, scale: int) -> Sequences:
    T, step, reset = _stream(generator, rows, scale)
    bits = _ints(generator, 2, rows, T)
    total = bits.cumsum(1)
    begin = torch.arange(T) - step  # of the episode
    before = (total - bits).gather(1, begin)
    target = (total - before) % 2
    return Sequences(F.one_hot(bits, 2).float(), target, torch.ones_like(reset), reset)


def _permutations(generator: Generator, rows: int, scale: int) -> Sequences:
    T, _, reset = _stream(generator, rows, scale)
    swaps = _ints(generator, CUPS - 1, rows, T)  # cup i with cup i + 1
    place, target = torch.zeros(rows, dtype=torch.int64), torch.empty(rows, T, dtype=torch.int64)
    for t in range(T):
        place = torch.where(reset[:, t], 0, place)
        swap = swaps[:, t]
        place = torch.where(place == swap, swap + 1, torch.where(place == swap + 1, swap, place))
        target[:, t] = place
    return Sequences(F.one_hot(swaps, CUPS - 1).float(), target, torch.ones_like(reset), reset)


def _recited(generator: Generator, rows: int, *, kinds: int, blanks: int, count: int) -> Sequences:
    """Show `count` symbols, scattered among `blanks`, then ask for them in order."""
    shown = count + blanks
    parts = []
    for _ in range(EPISODES):
        symbols = _ints(generator, kinds, rows, count)
        places = _choose(generator, rows, shown, count).sort(1).values
        x = torch.zeros(rows, shown + count, kinds + 1)
        one_hot = F.one_hot(symbols, kinds + 1).float()
        x[:, :shown].scatter_(1, places[..., None].expand_as(one_hot), one_hot)
        x[:, shown:, kinds] = 1  # "now"
        target = torch.zeros(rows, shown + count, dtype=torch.int64)
        target[:, shown:] = symbols
        steps = torch.arange(shown + count).expand(rows, -1)
        parts.append((x, target, steps >= shown, steps == 0))
    return Sequences(*(torch.cat(part, 1) for part in zip(*parts, strict=True)))


def _copy(generator: Generator, rows: int, scale: int) -> Sequences:
    return _recited(generator, rows, kinds=COPIED, blanks=0, count=8 * scale)


def _selective_copy(generator: Generator, rows: int, scale: int) -> Sequences:
    return _recited(generator, rows, kinds=SELECTED, blanks=16 * scale - 4, count=4)


def _recall(generator: Generator, rows: int, scale: int) -> Sequences:
    count = 4 * scale
    parts = []
    for _ in range(EPISODES):
        keys = _choose(generator, rows, KEYS, count)
        values = _ints(generator, VALUES, rows, count)
        asked_for = _choose(generator, rows, count, count)
        pairs = torch.cat([F.one_hot(keys, KEYS), F.one_hot(values, VALUES)], -1)
        queries = F.pad(F.one_hot(keys.gather(1, asked_for), KEYS), (0, VALUES))
        x = torch.cat([pairs, queries], 1).float()
        target = torch.cat([torch.zeros_like(values), values.gather(1, asked_for)], 1)
        steps = torch.arange(2 * count).expand(rows, -1)
        parts.append((x, target, steps >= count, steps == 0))
    return Sequences(*(torch.cat(part, 1) for part in zip(*parts, strict=True)))


def _echo(generator: Generator, rows: int, scale: int) -> Sequences:
    T, step, reset = _stream(generator, rows, scale)
    symbols = _ints(generator, 4, rows, T)
    target = symbols.roll(DELAY, 1)
    return Sequences(F.one_hot(symbols, 4).float(), target, step >= DELAY, reset)


def cup_chances(steps: int) -> Tensor:
    """Return the distribution of ball 0 over the cups after 1 .. `steps` random swaps."""
    move = torch.zeros(CUPS, CUPS, dtype=torch.float64)
    for place in range(CUPS):
        for swap in range(CUPS - 1):
            to = swap + 1 if place == swap else swap if place == swap + 1 else place
            move[place, to] += 1 / (CUPS - 1)
    rows = [torch.eye(CUPS, dtype=torch.float64)[0]]
    for _ in range(steps):
        rows.append(rows[-1] @ move)
    return torch.stack(rows[1:])


def _cups_guessed() -> float:
    """Return the accuracy of the likeliest cup at each step, over both episodes of a row.

    Lengths are uniform in 16 .. 47, and the other episode takes the rest of 64 steps.
    """
    best = cup_chances(48).max(1).values.cumsum(0)
    first = torch.arange(16, 48)
    return float(((best[first - 1] + best[64 - first - 1]) / 64).mean())


TASKS: dict[str, Task] = {
    "parity": Task(_parity, 2, 2, 1 / 2, 400),
    "permutations": Task(_permutations, CUPS - 1, CUPS, _cups_guessed(), 1200),
    "copy": Task(_copy, COPIED + 1, COPIED, 1 / COPIED, 600),
    "selective copy": Task(_selective_copy, SELECTED + 1, SELECTED, 1 / SELECTED, 700),
    "recall": Task(_recall, KEYS + VALUES, VALUES, 1 / VALUES, 600),
    "echo": Task(_echo, 4, 4, 1 / 4, 700),
}
