"""Experience replay for sequence models: windows of one stream of rows per worker.

A worker is an environment. Its stream goes on across the ends of episodes and holds the rows of
`Step` as they are, those of final observations too. Each worker keeps its newest rows in a ring.
A window is a piece of one stream: it never mixes workers and never crosses the place where new
rows overwrite old ones. Every start of a window is equally likely, or as `data.dfs` says.

`is_first` is data and stays as stored. `reset` is True at row 0 of a window where the memory that
the model had there is not known: with `replay_state` "zero" and "burn_in", not with "stored".
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from torch import Tensor

from statewise.data import checks
from statewise.data.dfs import DfsCounts, Purpose
from statewise.data.episode import Array
from statewise.data.errors import DataConfigError
from statewise.data.memory import Index
from statewise.data.replay_config import ReplayBatch, ReplayConfig, WindowRefs, check_settings
from statewise.data.replay_rows import (
    check_workers,
    named_rows,
    named_states,
    state_of,
    step_of,
)
from statewise.data.replay_sampler import EpisodeStarts, Starts
from statewise.data.replay_spec import RowSpec
from statewise.data.replay_storage import (
    FileStorage,
    MemoryStorage,
    RowStorage,
    rows_still_held,
)
from statewise.data.step import Step


class Replay:
    """Streams of rows that windows are drawn from.

    Args:
        spec: what a row holds; its `state` belongs to `replay_state` "stored".
        config: sizes and variants. Each worker keeps capacity // num_workers rows.
        num_workers: streams, at least 1.
        folder: of the files with storage "memmap". A replay that is there is gone on with; rows
            after its last flush are lost, and a warning says how many.
        spare: rows of a worker that new files have room for beside those it keeps, at least 1;
            None is as many as it keeps, at most 1024. So many come after a `state_dict` before
            one that it needs is overwritten.

    Raises:
        DataConfigError: settings that do not fit each other.
        MemoryBudget: the rows would need more than `max_bytes`.
        SpecMismatch, DatasetCorrupt, DatasetError: as of `FileStorage`.
    """

    def __init__(
        self,
        spec: RowSpec,
        config: ReplayConfig,
        *,
        num_workers: int,
        folder: Path | None = None,
        spare: int | None = None,
    ) -> None:
        self.spec, self.config, self.num_workers = spec, config, num_workers
        check_settings(spec, config, num_workers, folder, spare)
        self.rows_per_worker = config.capacity // num_workers
        if folder is None:
            self._storage: RowStorage = MemoryStorage(spec, num_workers, self.rows_per_worker)
        else:
            self._storage = FileStorage(folder, spec, num_workers, self.rows_per_worker, spare)
        self._begin, self._end = self._storage.begin.copy(), self._storage.end.copy()
        self._episodes = self._find_episodes()
        self._counts = None
        if config.weights == "dfs":
            self._counts = DfsCounts(num_workers, self._storage.slots, config.dfs)

    def __len__(self) -> int:
        """Rows held by all workers."""
        return int((self._end - self._begin).sum())

    @property
    def bytes_per_row(self) -> int:
        """Bytes that a row takes."""
        return self.spec.bytes_per_row

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take, in memory or on the disk, however few rows they hold."""
        return self.num_workers * self._storage.slots * self.bytes_per_row

    def num_starts(self, length: int) -> int:
        """Return how many windows of `length` rows, burn-in not counted, can be drawn."""
        return self._starts(length).total

    def append(
        self,
        step: Step,
        state: Mapping[str, Tensor] | None = None,
        *,
        workers: Sequence[int] | None = None,
    ) -> None:
        """Add rows to the ends of streams.

        A backend that resets in the same step hands final observations aside: they are added by
        a second call for the workers whose episodes ended, with `valid` False.

        Args:
            step: leading axes (n, T), or (n,) for one row each.
            state: memory before each row, as `spec.state` says.
            workers: n different ones; None is all in order.

        Raises:
            SpecMismatch: other fields, shapes or dtypes than those of `spec`; nothing is added.
            NonFinite: NaN or infinity, with worker, key and row; nothing is added.
            DataConfigError: workers that there are not, or one twice.
            DatasetError: the disk refuses; what was flushed before is whole.
        """
        worker = np.arange(self.num_workers) if workers is None else np.array(workers, np.int64)
        check_workers(worker, self.num_workers)
        rows = named_rows(step, state or {}, self.spec, worker, self._end[worker])
        for first in range(0, rows["reward"].shape[1], self._storage.spare):
            last = first + self._storage.spare
            self._write(worker, {name: values[:, first:last] for name, values in rows.items()})

    def sample(
        self,
        batch: int,
        length: int,
        generator: np.random.Generator,
        *,
        purpose: Purpose = "world_model",
    ) -> ReplayBatch:
        """Draw windows.

        Args:
            batch: B, at least 1.
            length: T, at least 1, rows that count; burn-in comes on top.
            generator: is drawn from.
            purpose: with weights "dfs", which counter and which probabilities; else no matter.

        Raises:
            ReplayTooSmall: too few rows for a window, or with weights "dfs" for a batch.
            DataConfigError: `batch`, `length` or `purpose` is out of its range.
        """
        checks.check_choice("purpose", purpose, get_args(Purpose))
        if batch < 1 or length < 1:
            problem = f"expected at least 1, got batch {batch} and length {length}"
            raise DataConfigError(problem, key="replay")
        starts = self._starts(length)
        starts.check(1 if self._counts is None else batch, self.rows_per_worker)
        if self._counts is None:
            worker, start = starts.locate(generator.integers(starts.total, size=batch))
        else:
            worker, start = starts.locate(np.arange(starts.total))
            slot = start % self._storage.slots
            chosen = self._counts.draw(worker, slot, batch, purpose, generator)
            worker, start = worker[chosen], start[chosen]
        return self._read(WindowRefs(worker, start), length + self.config.burn_in)

    def write_state(
        self, refs: WindowRefs, state: Mapping[str, Tensor], rows: Sequence[int] | None = None
    ) -> int:
        """Replace stored memory by newer one; rows that are held no more are left out.

        Args:
            refs: of the batch, B windows.
            state: by key, (B, ...) before row 0 of the windows, or with `rows` (B, R, ...).
            rows: R rows of the window, each >= 0, that the states come before. Rows may lie
                behind the window: the state after its last row is the one before row T.

        Returns:
            How many states were written.

        Raises:
            SpecMismatch: other fields, shapes or dtypes than those of `spec.state`.
            NonFinite: NaN or infinity; nothing is written.
        """
        number = refs.start[:, None] + np.array([0] if rows is None else rows, np.int64)
        lead = number.shape[:1] if rows is None else number.shape
        arrays = named_states(state, lead, self.spec, refs.worker, number)
        worker = np.broadcast_to(refs.worker[:, None], number.shape)
        held = (number >= self._begin[worker]) & (number < self._end[worker])
        slot = number[held] % self._storage.slots
        for name, values in arrays.items():
            self._storage.arrays[name][worker[held], slot] = values[held]
        return int(held.sum())

    def break_off(self) -> None:
        """Let no row lead to the next one that is appended: every stream goes on elsewhere.

        The newest row of a worker, if it leads on, becomes a final observation, whose action is
        forgotten; the row before it, if it leads there, is truncated.
        """
        rows, worker = self._storage.arrays, np.arange(self.num_workers)
        slot, before = ((self._end - back) % self._storage.slots for back in (1, 2))
        held = self._end > self._begin
        open_ended = held & rows["valid"][worker, slot] & ~rows["terminated"][worker, slot]
        led = open_ended & (self._end - 1 > self._begin) & rows["valid"][worker, before]
        led &= ~rows["terminated"][worker, before] & ~rows["truncated"][worker, before]
        rows["truncated"][worker[led], before[led]] = True
        for name in ("valid", "truncated", "reward"):
            rows[name][worker[open_ended], slot[open_ended]] = 0

    def flush(self) -> None:
        """Make the rows of files durable: a process that dies later loses none of them.

        States that `write_state` replaces afterwards may be found old or new.

        Raises:
            DatasetError: the disk is full or refuses; the rows of the flush before are whole.
        """
        self._storage.flush(self._begin, self._end)

    def state_dict(self) -> dict[str, Any]:
        """Return what sampling needs to go on exactly: with files, that they hold the rows.

        Files are flushed. Rows in memory are copied: a large replay belongs into files.

        Raises:
            DatasetError: as of `flush`.
        """
        self.flush()
        state = {**self._identity(), "begin": self._begin.tolist(), "end": self._end.tolist()}
        if self.config.storage == "memory":
            used = min(int(self._end.max()), self._storage.slots)
            arrays = self._storage.arrays
            state["rows"] = {name: values[:, :used].copy() for name, values in arrays.items()}
        if self._counts is not None:
            state["dfs"] = self._counts.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`.

        Files may hold later rows: those are dropped. If they were more than the files have room
        for (`spare`), the rows that they have overwritten are missing, and a warning says how many.

        Raises:
            DataConfigError: the state is of a replay with other settings or other files.
            DatasetCorrupt: the files hold fewer rows than when the state was saved.
        """
        for key, own in self._identity().items():
            if state.get(key) != own:
                problem = f"expected the state of a replay with {own}, got {state.get(key)}"
                hint = "use its own settings"
                if key == "files":
                    hint = "its files are gone or others: restore them, or load its agent alone"
                raise DataConfigError(problem, key=f"replay.{key}", hint=hint)
        begin, end = (np.array(state[key], np.int64) for key in ("begin", "end"))
        if isinstance(self._storage, FileStorage):
            begin = rows_still_held(begin, end, self._storage.oldest, self._end)
        else:
            for name, values in state["rows"].items():
                self._storage.arrays[name][:, : values.shape[1]] = values
        self._begin[:], self._end[:] = begin, end
        if self._counts is not None:
            self._counts.load_state_dict(state["dfs"])
        self._episodes = self._find_episodes()
        self.flush()
        self._storage.note(self._end)

    def _identity(self) -> dict[str, Any]:
        """Return what a state and the replay that it is loaded into have in common."""
        fields = {name: [list(s.shape), s.dtype] for name, s in self.spec.fields.items()}
        sizes = {"num_workers": self.num_workers, "rows_per_worker": self.rows_per_worker}
        kinds = {"storage": self.config.storage, "weights": self.config.weights}
        return {**kinds, **sizes, "files": self._storage.id, "fields": fields}

    def _starts(self, length: int) -> Starts:
        return Starts(self._begin, self._end, length + self.config.burn_in, self._episodes)

    def _find_episodes(self) -> EpisodeStarts | None:
        if self.config.starts == "any":
            return None
        return EpisodeStarts(self._storage.arrays["is_first"], self._begin, self._end)

    def _write(self, worker: Index, rows: Mapping[str, Array]) -> None:
        """Add checked rows (n, T, ...), T at most the spare ones."""
        count = rows["reward"].shape[1]
        old, new = self._end[worker], self._end[worker] + count
        if (new - self._storage.end[worker] > self._storage.spare).any():
            self.flush()
        # Old rows are given up before any is overwritten: an interrupt leaves no mixture.
        self._begin[worker] = np.maximum(self._begin[worker], new - self.rows_per_worker)
        coming = self._end.copy()
        coming[worker] = new
        self._storage.note(coming)
        number = old[:, None] + np.arange(count)
        place = (worker[:, None], number % self._storage.slots)
        for name, values in rows.items():
            self._storage.arrays[name][place] = values
        if self._counts is not None:
            self._counts.clear(*place)
        if self._episodes is not None:
            for line, w in enumerate(worker.tolist()):
                self._episodes.add(w, number[line, rows["is_first"][line]].tolist())
                self._episodes.drop_before(w, int(self._begin[w]))
        self._end[worker] = new

    def _gather(self, names: Iterable[str], worker: Index, number: Index) -> dict[str, Array]:
        slot = number % self._storage.slots
        return {name: self._storage.arrays[name][worker, slot] for name in names}

    def _read(self, refs: WindowRefs, length: int) -> ReplayBatch:
        states = [name for name in self.spec.fields if name.startswith("state/")]
        names = [name for name in self.spec.fields if name not in states]
        before = self._gather(names, refs.worker, refs.start - 1)
        for values in before.values():
            values[refs.start == 0] = 0
        number = refs.start[:, None] + np.arange(length)
        rows = self._gather(names, refs.worker[:, None], number)
        if self.config.replay_state != "stored":
            rows["reset"][:, 0] = True
        return ReplayBatch(
            step=step_of(rows),
            previous=step_of(before),
            state=state_of(self._gather(states, refs.worker, refs.start)),
            refs=refs,
            burn_in=self.config.burn_in,
        )
