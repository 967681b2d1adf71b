"""Where a replay keeps its rows: arrays in memory, or files below a folder.

Row number n of a worker, counted from its very first, lies in slot n % slots of arrays
(W, slots, ...), one per field. Of the files:

    replay.json     the layout, and which rows begin .. end - 1 of every worker are whole
    0.bin, 1.bin    one array each, as numpy has it in memory
    appended.bin    (W,) int64: rows appended, also those that no flush has promised

Files have spare slots for the rows after the last flush. Until the next one they overwrite nothing
that replay.json promises, whenever the process dies. A row that has left the ring stays readable
until a later one takes its slot, so that a checkpoint finds its rows again. All space is taken when
the files are made: a disk that fills up later cannot hit a row.
"""

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from statewise.data import checks
from statewise.data.episode import Array
from statewise.data.errors import DatasetCorrupt, DatasetError, SpecMismatch
from statewise.data.files import one_line, replacing
from statewise.data.memory import Index
from statewise.data.replay_spec import RowSpec

FORMAT = 1
_HEADER, _APPENDED = "replay.json", "appended.bin"
_SPARE = 1024  # rows per worker
_RESTORE = "restore it: without its rows the run cannot go on, only its agent be loaded"


def check_files_are_there(folder: Path) -> None:
    """Check that a folder holds a replay, where opening it must not make a new one.

    Raises:
        DatasetCorrupt: it holds none.
    """
    path = Path(folder) / _HEADER
    if not path.is_file():
        raise DatasetCorrupt("expected the replay of a run, got no file", file=path, hint=_RESTORE)


def rows_still_held(begin: Index, end: Index, oldest: Index, own_end: Index) -> Index:
    """Return (W,) the oldest of the rows begin .. end - 1 of a checkpoint that are still there.

    Warns if some have been overwritten.

    Args:
        begin: (W,) oldest row when the checkpoint was saved.
        end: (W,) one more than the newest then.
        oldest: (W,) no row from here on has been overwritten.
        own_end: (W,) one more than the newest now.

    Raises:
        DatasetCorrupt: rows of the checkpoint were not yet there.
    """
    if (end > own_end).any():
        raise DatasetCorrupt(
            f"expected {int(end.sum())} rows that were ever appended, got {int(own_end.sum())}",
            key="replay",
            hint="resume from an older checkpoint, or restore the files",
        )
    held = np.minimum(np.maximum(begin, oldest), end)
    gone, total = int((held - begin).sum()), int((end - begin).sum())
    if gone:
        checks.warn(
            f"replay: {gone} of {total} rows were overwritten after the checkpoint: sampling goes"
            " on without them"
        )
    return held


class RowStorage(Protocol):
    """Arrays of rows, and what of them survives."""

    id: str
    """Of the files; the same whenever they are opened. "" in memory."""
    arrays: dict[str, Array]
    """(W, slots, ...) by name of the field; written to in place."""
    slots: int
    spare: int
    """Rows per worker that may be appended between two flushes, at least 1."""
    begin: Index
    """(W,) with `end`: rows that the last flush promised."""
    end: Index

    def note(self, end: Index) -> None:
        """Say that rows below `end` (W,) are there or written next."""
        ...

    def flush(self, begin: Index, end: Index) -> None:
        """Promise the rows begin .. end - 1 of every worker."""
        ...


class MemoryStorage:
    """A `RowStorage` of arrays in memory, which promises nothing.

    Args:
        spec: of the rows.
        num_workers: W.
        num_rows: that each worker keeps.
    """

    def __init__(self, spec: RowSpec, num_workers: int, num_rows: int) -> None:
        self.id = ""
        self.slots = self.spare = num_rows
        self.arrays: dict[str, Array] = {
            name: np.zeros((num_workers, num_rows, *field.shape), field.dtype)
            for name, field in spec.fields.items()
        }
        self.begin: Index = np.zeros(num_workers, np.int64)
        self.end: Index = np.zeros(num_workers, np.int64)

    def note(self, end: Index) -> None:
        """Take the rows as promised: they can be lost only with everything else."""
        self.end[:] = end

    def flush(self, begin: Index, end: Index) -> None:
        """Take the rows as promised."""
        self.begin[:], self.end[:] = begin, end


class FileStorage:
    """A `RowStorage` of files below a folder, made if it holds no replay, else opened.

    One process at a time may use a folder.

    Args:
        folder: of the files; its parents are made, too.
        spec: of the rows.
        num_workers: W.
        num_rows: that each worker keeps.
        spare: rows of a worker that new files have room for between two flushes, at least 1;
            None is as many as it keeps, at most 1024. Files that are there have the room they
            were made with.

    Raises:
        SpecMismatch: the folder holds a replay of other rows, workers or sizes.
        DatasetCorrupt: a file is missing, truncated or damaged.
        DatasetError: the disk is full or refuses; no file is left.
    """

    def __init__(
        self,
        folder: Path,
        spec: RowSpec,
        num_workers: int,
        num_rows: int,
        spare: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.spare = min(num_rows, _SPARE) if spare is None else spare
        self.begin: Index = np.zeros(num_workers, np.int64)
        self.end: Index = np.zeros(num_workers, np.int64)
        self._overwritten: Index = np.zeros(num_workers, np.int64)
        self._layout = {
            "format": FORMAT,
            "num_workers": num_workers,
            "rows_per_worker": num_rows,
            "slots": num_rows + self.spare,
            **{name: [list(field.shape), field.dtype] for name, field in spec.fields.items()},
        }
        is_new = not (self.folder / _HEADER).exists()
        self.id = secrets.token_hex(8) if is_new else self._read_header(num_rows)
        self.slots = num_rows + self.spare
        files = {name: f"{number}.bin" for number, name in enumerate(spec.fields)}
        self._maps = self._map_files(spec, files, is_new)
        self.arrays: dict[str, Array] = {
            name: np.asarray(self._maps[file]) for name, file in files.items()
        }
        self._appended: Index = np.asarray(self._maps[_APPENDED])
        lost = int(np.maximum(self._appended - self.end, 0).sum())
        if is_new or lost:
            self.flush(self.begin, self.end)  # before the count of what was lost is forgotten
        self._appended[:] = self.end
        if lost:
            checks.warn(f"{lost} rows appended after the last flush were lost", self.folder)

    @property
    def oldest(self) -> Index:
        """(W,) no row from here on has been overwritten, by one that was lost neither."""
        newest = np.maximum(self._appended, self.end)
        return np.maximum(self._overwritten, newest - self.slots)

    def note(self, end: Index) -> None:
        """Say that rows below `end` (W,) are there or written next."""
        self._appended[:] = end

    def flush(self, begin: Index, end: Index) -> None:
        """Promise the rows begin .. end - 1 of every worker: the rows first, then the promise.

        Raises:
            DatasetError: the disk is full or refuses; the last promise holds.
        """
        with self._writing():
            for array in self._maps.values():
                array.flush()
        oldest = np.minimum(self.oldest, end)  # rows from `end` on are written anew
        counts = {"begin": begin, "end": end, "overwritten": oldest}
        counts = {name: count.tolist() for name, count in counts.items()}
        header = {"id": self.id, "layout": self._layout, **counts}
        with replacing(self.folder / _HEADER, overwrite=True) as path:
            path.write_text(json.dumps(header, indent=1) + "\n")
        self.begin[:], self.end[:], self._overwritten[:] = begin, end, oldest

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = "free some space; rows up to the last flush are whole"
            raise DatasetError(
                f"expected to write it, got: {one_line(error)}", file=self.folder, hint=hint
            ) from error

    def _map_files(
        self, spec: RowSpec, files: Mapping[str, str], is_new: bool
    ) -> dict[str, np.memmap[Any, Any]]:
        """Return the arrays by file, of files that are made now, or whose sizes fit."""
        workers = len(self.begin)
        shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
            files[name]: ((workers, self.slots, *field.shape), np.dtype(field.dtype))
            for name, field in spec.fields.items()
        }
        shapes[_APPENDED] = ((workers,), np.dtype(np.int64))
        sizes = {
            file: int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            for file, (shape, dtype) in shapes.items()
        }
        if is_new:
            self._make(sizes)
        for file, size in sizes.items():
            self._check_size(self.folder / file, size)
        return {
            file: np.memmap(self.folder / file, dtype, "r+", shape=shape)
            for file, (shape, dtype) in shapes.items()
        }

    def _make(self, sizes: Mapping[str, int]) -> None:
        """Make the files; what an earlier try left without a header is replaced."""
        made = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for file, size in sizes.items():
                made.append(self.folder / file)
                with made[-1].open("wb") as stream:
                    os.posix_fallocate(stream.fileno(), 0, size)
        except OSError as error:
            for path in made:
                path.unlink(missing_ok=True)
            raise DatasetError(
                f"expected {sum(sizes.values()) / 2**30:.3g} GiB on the disk,"
                f" got: {one_line(error)}",
                file=self.folder,
                hint="lower replay.capacity or checkpoint.every_steps, or free some space",
            ) from error

    def _check_size(self, path: Path, size: int) -> None:
        found = path.stat().st_size if path.is_file() else 0
        if found != size:
            raise DatasetCorrupt(
                f"expected {size} bytes, got {found}",
                file=path,
                hint=_RESTORE,
            )

    def _read_header(self, num_rows: int) -> str:
        """Read the promise of the header, compare its layout, take its slots, return its id."""
        path = self.folder / _HEADER
        try:
            header = json.loads(path.read_bytes())
            layout, name = dict(header["layout"]), str(header["id"])
            begin, end = (np.array(header[key], np.int64) for key in ("begin", "end"))
            # An earlier version overwrote rows before `begin` and did not say which.
            overwritten = np.array(header.get("overwritten", begin), np.int64)
            if not begin.shape == end.shape == overwritten.shape == (layout["num_workers"],):
                raise ValueError("shape")
            if not layout["rows_per_worker"] < layout["slots"]:
                raise ValueError("slots")
            held = end - begin
            if (begin < 0).any() or (held < 0).any() or (held > layout["rows_per_worker"]).any():
                raise ValueError("range")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatasetCorrupt(
                "expected the header of a replay, got a damaged one",
                file=path,
                hint=_RESTORE,
            ) from error
        self._layout["slots"] = layout["slots"]
        self.spare = layout["slots"] - num_rows
        for key in {**layout, **self._layout}:
            if layout.get(key) != self._layout.get(key):
                raise SpecMismatch(
                    f"expected {self._layout.get(key)} as configured, got {layout.get(key)}",
                    file=path,
                    key=key,
                    hint="use the settings that it was made with, or another folder",
                )
        self.begin[:], self.end[:], self._overwritten[:] = begin, end, overwritten
        return name
