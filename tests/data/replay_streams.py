"""Streams of rows for tests of the replay: row n of a worker is a function of (worker, n)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from statewise.data import ArraySpec, Step
from statewise.data.replay import Replay
from statewise.data.replay_config import ReplayBatch, ReplayConfig, StorageKind
from statewise.data.replay_spec import RowSpec

OBS = {"place": ArraySpec((2,), "float32"), "image": ArraySpec((2, 3), "uint8")}
SPEC = RowSpec(obs=OBS, action=ArraySpec((), "int64"))
WITH_STATE = RowSpec(
    obs=OBS,
    action=ArraySpec((), "int64"),
    state={"h": ArraySpec((2,), "float32"), "half": ArraySpec((), "float16")},
)
LENGTHS = (3, 1, 5)  # steps of the episodes, again and again; every second one terminates


def stream(worker: Any, number: Any, lengths: Sequence[int] = LENGTHS) -> Step:
    """Return rows (...) of one worker or one each: episodes with their final rows."""
    number = np.asarray(number)
    cycle = [
        (t, steps, i) for i, steps in enumerate((*lengths, *lengths)) for t in range(steps + 1)
    ]
    t, steps, episode = np.moveaxis(np.array(cycle)[number % len(cycle)], -1, 0)
    valid, last, terminates = t < steps, t == steps - 1, episode % 2 == 0
    image = (number[..., None, None] * 6 + np.arange(6).reshape(2, 3)) % 256
    rows = {
        "is_first": t == 0,
        "reset": t == 0,
        "action": number * 10 + worker,
        "reward": np.where(valid, number + 0.5, 0).astype(np.float32),
        "terminated": last & terminates,
        "truncated": last & ~terminates,
        "valid": valid,
    }
    obs = {
        "place": np.stack([np.broadcast_to(worker, number.shape), number], -1).astype(np.float32),
        "image": image.astype(np.uint8),
    }
    return Step(
        obs={key: torch.from_numpy(values) for key, values in obs.items()},
        **{key: torch.from_numpy(values) for key, values in rows.items()},
    )


def state_at(worker: Any, number: Any) -> dict[str, torch.Tensor]:
    """Return the memory before rows (...) of one worker or one each."""
    number = np.asarray(number)
    h = np.stack([np.broadcast_to(worker, number.shape), -number], -1)
    return {"h": torch.from_numpy(h).float(), "half": torch.from_numpy(number % 100).half()}


def rng(seed: int = 0) -> np.random.Generator:
    """Return a generator."""
    return np.random.default_rng(seed)


def fresh(*shape: int) -> dict[str, torch.Tensor]:
    """Return states of these leading axes whose first h is 500, 501, ..."""
    numbers = torch.arange(int(np.prod(shape)), dtype=torch.float32).view(shape) + 500
    return {"h": torch.stack([numbers, -numbers], -1), "half": numbers.half()}


def line(step: Step, b: int) -> Step:
    """Return one line of a batch."""
    return Step({key: values[b] for key, values in step.obs.items()}, *(v[b] for v in step[1:]))


def together(steps: Sequence[Step]) -> Step:
    """Stack lines into a batch."""
    obs = {key: torch.stack([step.obs[key] for step in steps]) for key in steps[0].obs}
    return Step(obs, *map(torch.stack, zip(*(step[1:] for step in steps), strict=True)))


def assert_same(found: Step, expected: Step) -> None:
    """Compare rows bit for bit, dtypes included."""
    assert found.obs.keys() == expected.obs.keys()
    pairs = [(f"obs/{key}", found.obs[key], expected.obs[key]) for key in expected.obs]
    pairs += list(zip(Step._fields[1:], found[1:], expected[1:], strict=True))
    for name, left, right in pairs:
        assert left.dtype == right.dtype, name
        assert torch.equal(left, right), name


def assert_same_batch(found: ReplayBatch, expected: ReplayBatch) -> None:
    assert_same(found.step, expected.step)
    assert_same(found.previous, expected.previous)
    assert found.state.keys() == expected.state.keys()
    assert all(torch.equal(found.state[key], expected.state[key]) for key in found.state)
    assert found.refs.worker.tolist() == expected.refs.worker.tolist()
    assert found.refs.start.tolist() == expected.refs.start.tolist()


class Streams:
    """A replay and, beside it, a plain list of all rows that each worker was given."""

    def __init__(self, replay: Replay, lengths: Sequence[int] = LENGTHS) -> None:
        self.replay, self.lengths = replay, lengths
        self.rows: list[list[int]] = [[] for _ in range(replay.num_workers)]

    def append(self, rows: int, workers: Sequence[int] | None = None) -> None:
        """Add `rows` further rows to workers, all if None."""
        chosen = range(self.replay.num_workers) if workers is None else workers
        number = np.array([len(self.rows[worker]) + np.arange(rows) for worker in chosen])
        for worker, numbers in zip(chosen, number.tolist(), strict=True):
            self.rows[worker] += numbers
        column = np.array(chosen)[:, None]
        state = state_at(column, number) if self.replay.spec.state else None
        self.replay.append(stream(column, number, self.lengths), state, workers=workers)

    def starts(self, length: int, kept: int) -> set[tuple[int, int]]:
        """Return (worker, row) of every window of `length` rows whose row before is known."""
        found = set()
        for worker, rows in enumerate(self.rows):
            held = rows[-kept:]
            for place in range(len(held) - length + 1):
                if place > 0 or held[0] == 0:
                    found.add((worker, held[place]))
        return found

    def check_windows(self, batch: ReplayBatch, kept: int) -> set[tuple[int, int]]:
        """Compare all windows with the lists of their workers; return workers and starts."""
        worker, start = (batch.step.obs["place"][:, 0, i].long().tolist() for i in range(2))
        assert (worker, start) == (batch.refs.worker.tolist(), batch.refs.start.tolist())
        held = [rows[-kept:] for rows in self.rows]
        at = [held[w].index(n) for w, n in zip(worker, start, strict=True)]
        length = batch.step.valid.shape[1]
        number = [held[w][i : i + length] for w, i in zip(worker, at, strict=True)]
        expected = stream(np.array(worker)[:, None], number, self.lengths)
        if self.replay.config.replay_state != "stored":
            expected.reset[:, 0] = True
        assert_same(batch.step, expected)
        before = stream(worker, np.maximum(np.array(start) - 1, 0), self.lengths)
        for values in (*before.obs.values(), *before[1:]):
            values[np.array(start) == 0] = 0
        assert_same(batch.previous, before)
        assert all(i > 0 or n == 0 for i, n in zip(at, start, strict=True))
        return set(zip(worker, start, strict=True))


def make(
    rows: int = 20,
    workers: int = 2,
    spec: RowSpec = SPEC,
    folder: Any = None,
    *,
    spare: int | None = None,
    **settings: Any,
) -> Streams:
    """Return a replay of `rows` rows per worker, empty or what the folder holds."""
    storage: StorageKind = "memory" if folder is None else "memmap"
    if spec.state:
        settings = {"replay_state": "stored"} | settings
    config = ReplayConfig(capacity=rows * workers, storage=storage, **settings)
    return Streams(Replay(spec, config, num_workers=workers, folder=folder, spare=spare))
