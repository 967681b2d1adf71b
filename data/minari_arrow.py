"""Minari's episodes in Arrow or Parquet: a folder per episode.

    0/part-0.arrow    T + 1 rows of the columns observations, actions, rewards, terminations,
                      truncations, infos; of all but observations and infos the last one is
                      padding
    0/metadata.json   {"id", "total_steps", ...}

A row of a Box is a list of fixed size; Dict and Tuple spaces are structs.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from statewise.data.episode import Array
from statewise.data.errors import (
    DatasetCorrupt,
    DatasetError,
    DatasetNotFound,
    MinariCount,
    MinariEpisode,
    MissingKey,
)
from statewise.data.files import one_line
from statewise.data.minari_layout import LEAF, METADATA, Stored, decode_frames
from statewise.data.minari_spaces import Leaf

_STEP_COLUMNS = ("rewards", "terminations", "truncations")
_NUMBER = re.compile(r"0|[1-9]\d*")


def _pyarrow() -> ModuleType:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        problem = "expected pyarrow for the formats arrow and parquet, got none"
        raise DatasetError(problem, hint="pip install 'pyarrow>=15', or use hdf5") from error
    return pyarrow


class ArrowStore:
    """A `Store` in Arrow or Parquet; one episode's table is kept at a time.

    Args:
        folder: with a folder per episode.
        leaves: of the observation space.
        action: the action space.
        data_format: "arrow" or "parquet".

    Raises:
        DatasetError: pyarrow is not installed.
        MinariCount: a folder that is no episode.
    """

    def __init__(
        self, folder: Path, leaves: Sequence[Leaf], action: Leaf, *, data_format: str
    ) -> None:
        self._pa = _pyarrow()
        self.file, self._format = folder, data_format
        self._leaves = {f"observations/{leaf.name}": leaf for leaf in leaves} | {"actions": action}
        self._table: tuple[int, dict[str, Any]] | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}  # of infos with several axes
        self._numbers = []
        for inner in folder.iterdir():
            if not inner.is_dir() or inner.name.startswith((".", "_")):
                continue
            if not _NUMBER.fullmatch(inner.name):
                problem = f"expected folders 0, 1, ..., got {inner.name}"
                raise MinariCount(problem, file=folder, hint="leave it out")
            self._numbers.append(int(inner.name))

    def close(self) -> None:
        """Forget the table."""
        self._table = None

    def numbers(self) -> list[int]:
        """As `Store`."""
        return sorted(self._numbers)

    def attributes(self, index: int) -> Mapping[str, Any]:
        """As `Store`; nothing if the episode has no metadata."""
        file = self.file / str(index) / METADATA
        if not file.is_file():
            return {}
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DatasetCorrupt(f"expected JSON, got: {error}", file=file) from error
        return found if isinstance(found, dict) else {}

    def arrays(self, index: int) -> Mapping[str, Stored]:
        """As `Store`."""
        found = {}
        for name, column in self._columns(index).items():
            is_padded = name == "actions" or name in _STEP_COLUMNS
            leaf = self._leaves.get(name)
            shape, dtype = self._row(column, leaf)
            found[name] = Stored(
                max(0, len(column) - is_padded), self._shapes.get(name, shape), dtype
            )
        return found

    def read(self, name: str, index: int, begin: int, end: int) -> Array:
        """As `Store`."""
        column = self._columns(index)[name]
        is_padded = name == "actions" or name in _STEP_COLUMNS
        end = min(end, len(column) - is_padded)
        rows = column.slice(begin, max(0, end - begin))
        key = f"episode[{index}]/{name}"
        is_list = self._pa.types.is_fixed_size_list(column.type)
        if rows.null_count or (is_list and rows.flatten().null_count):
            raise MinariEpisode(
                "expected a value in every row, got nulls",
                file=self.file / str(index),
                key=key,
            )
        leaf = self._leaves.get(name)
        if leaf is not None and leaf.is_image and self._is_binary(column.type):
            return decode_frames((row.as_py() for row in rows), leaf, self.file, key)
        shape = self.arrays(index)[name].shape
        values: Array = (rows.flatten() if is_list else rows).to_numpy(zero_copy_only=False)
        return values.reshape(-1, *shape)

    def _is_binary(self, kind: Any) -> bool:
        types = self._pa.types
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    def _row(self, column: Any, leaf: Leaf | None) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Return shape and dtype of a row of a column; object if it is not of numbers."""
        kind = column.type
        if leaf is not None and leaf.is_image and self._is_binary(kind):
            return leaf.stored.shape, np.dtype(np.uint8)
        shape: tuple[int, ...] = ()
        if self._pa.types.is_fixed_size_list(kind):
            shape, kind = (kind.list_size,), kind.value_type
            if leaf is not None and math.prod(leaf.stored.shape) == shape[0]:
                shape = leaf.stored.shape
        types = self._pa.types
        if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
            return shape, np.dtype(object)
        return shape, np.dtype(kind.to_pandas_dtype())

    def _columns(self, index: int) -> dict[str, Any]:
        """Return the columns of an episode by the name of their array."""
        if self._table is None or self._table[0] != index:
            self._table = index, self._load(index)
        return self._table[1]

    def _load(self, index: int) -> dict[str, Any]:
        folder = self.file / str(index)
        files = sorted(folder.glob(f"*.{self._format}"), key=lambda f: (len(f.name), f.name))
        if not files:
            problem = f"expected a file *.{self._format}, got none"
            raise DatasetNotFound(problem, file=folder)
        try:
            table = self._pa.concat_tables([self._open(file) for file in files]).combine_chunks()
            columns = {name: _single(self._pa, table.column(name)) for name in table.column_names}
        except (self._pa.ArrowInvalid, OSError) as error:
            text = one_line(error)
            raise DatasetCorrupt(
                f"expected a whole {self._format} file, got: {text}", file=files[0]
            ) from error
        found = {name: columns[name] for name in _STEP_COLUMNS if name in columns}
        for name, leaf in self._leaves.items():
            first, *rest = ("observations", *leaf.path) if name != "actions" else ("actions",)
            found[name] = self._field(columns, str(first), [str(part) for part in rest], folder)
        self._shapes = {}
        if "infos" in columns:
            found |= self._infos("infos", columns["infos"])
        return found

    def _open(self, file: Path) -> Any:
        if self._format == "parquet":
            return self._pa.parquet.ParquetFile(file).read()
        with self._pa.memory_map(str(file)) as source:
            return self._pa.ipc.open_file(source).read_all()

    def _field(self, columns: dict[str, Any], name: str, rest: list[str], folder: Path) -> Any:
        """Follow the names of structs."""
        column: Any = columns.get(name)
        path = "/".join([name, *rest])
        for part in rest:
            is_struct = column is not None and self._pa.types.is_struct(column.type)
            has_part = is_struct and column.type.get_field_index(part) >= 0
            column = column.field(part) if has_part else None
        if column is None:
            hint = "the space in the metadata has it"
            raise MissingKey("expected this column, got none", file=folder, key=path, hint=hint)
        return column

    def _infos(self, path: str, column: Any) -> dict[str, Any]:
        if not self._pa.types.is_struct(column.type):
            return {path: column}
        found: dict[str, Any] = {}
        for number in range(column.type.num_fields):
            field = column.type.field(number)
            name = f"{path}/{field.name}"
            note = (field.metadata or {}).get(b"shape")
            if note is not None:
                self._shapes[name] = tuple(int(n) for n in note.decode().split(",") if n)
            found |= self._infos(name, column.field(number))
        return found


def _single(pa: ModuleType, column: Any) -> Any:
    """Return a chunked column as one array."""
    chunks = column.chunks
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks) if chunks else pa.array([])


class ArrowWriter:
    """Writes episodes one by one into folders of their own."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._pa = folder, _pyarrow()

    def add(self, index: int, arrays: Mapping[str, Array], attributes: Mapping[str, Any]) -> None:
        """Write an episode.

        Args:
            index: its number.
            arrays: as `Store` names them, infos with T + 1 rows.
            attributes: what is noted about it.
        """
        rows = len(arrays["rewards"]) + 1
        columns: dict[str, Any] = {}
        observations = {name: v for name, v in arrays.items() if name.startswith("observations/")}
        if list(observations) == [LEAF]:
            columns["observations"] = self._encoded(observations[LEAF], rows)[0]
        else:
            columns["observations"] = self._struct(observations, "observations/", rows)
        for name in ("actions", *_STEP_COLUMNS):
            columns[name] = self._encoded(arrays[name], rows)[0]
        infos = {name: values for name, values in arrays.items() if name.startswith("infos/")}
        if infos:
            columns["infos"] = self._struct(infos, "infos/", rows)
        folder = self._folder / str(index)
        folder.mkdir()
        batch = self._pa.RecordBatch.from_pydict(columns)
        with self._pa.ipc.new_file(str(folder / "part-0.arrow"), batch.schema) as writer:
            writer.write_batch(batch)
        (folder / METADATA).write_text(json.dumps(dict(attributes)), encoding="utf-8")

    def _struct(self, arrays: Mapping[str, Array], prefix: str, rows: int) -> Any:
        encoded = {name.removeprefix(prefix): self._encoded(v, rows) for name, v in arrays.items()}
        fields = [
            self._pa.field(name, column.type, metadata=note)
            for name, (column, note) in encoded.items()
        ]
        columns = [column for column, _ in encoded.values()]
        return self._pa.StructArray.from_arrays(columns, fields=fields)

    def _encoded(self, values: Array, rows: int) -> tuple[Any, dict[str, str] | None]:
        """Return values padded to `rows` as a column, and its shape as minari notes it."""
        padding = [(0, rows - len(values))] + [(0, 0)] * (values.ndim - 1)
        values = np.pad(values, padding)
        dtype = self._pa.from_numpy_dtype(values.dtype)
        if values.ndim == 1:
            return self._pa.array(values, type=dtype), None
        flat = self._pa.array(values.reshape(-1), type=dtype)
        kind = self._pa.list_(dtype, math.prod(values.shape[1:]))
        note = {"shape": ",".join(map(str, values.shape[1:]))}
        return self._pa.FixedSizeListArray.from_arrays(flat, type=kind), note

    def close(self) -> None:
        """Nothing is open."""
