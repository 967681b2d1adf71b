"""Opening files of others with care, and writing ours so that they are whole or not there.

Nothing is unpickled, no link out of a file is followed, and sources are opened read-only.
"""

import hashlib
import os
import secrets
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from types import EllipsisType
from typing import Any

import h5py
import numpy as np

from statewise.data.episode import Array
from statewise.data.errors import (
    DatasetCorrupt,
    DatasetError,
    DatasetExists,
    DatasetNotFound,
    PickleRefused,
    UnsafePath,
)

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"
_LFS = b"version https://git-lfs"
_PICKLE_SUFFIXES = frozenset({".pkl", ".pickle", ".pt", ".pth", ".joblib"})
_BLOCK = 2**20
_CHUNK_CACHE = 2**24  # bytes per array that HDF5 keeps of what it has unpacked


def sha256_of(path: Path | str) -> str:
    """Return the hexadecimal sha256 of a file; of a folder, of its files by order of names."""
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = sorted(inner for inner in path.rglob("*") if inner.is_file())
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def file_kind(path: Path | str) -> str:
    """Return "hdf5" or "npz" by the first bytes of a file.

    Raises:
        DatasetNotFound: no file, a folder, or no bytes.
        DatasetCorrupt: a pointer of git-lfs, or neither of the two.
        PickleRefused: a pickle.
    """
    path = Path(path)
    if path.is_dir():
        raise DatasetNotFound("expected a file, got a folder", file=path)
    if not path.is_file():
        raise DatasetNotFound("expected a file, got nothing", file=path, hint="check the path")
    with path.open("rb") as stream:
        head = stream.read(64)
    if not head:
        raise DatasetNotFound("expected data, got 0 bytes", file=path, hint="get it again")
    if path.suffix.lower() in _PICKLE_SUFFIXES or (head[0] == 0x80 and head[1] in range(2, 6)):
        _refuse_pickle("expected HDF5 or npz, got a pickle", path)
    if head.startswith(_LFS):
        hint = "run git lfs pull where it came from"
        raise DatasetCorrupt("expected data, got a pointer of git-lfs", file=path, hint=hint)
    for magic, kind in ((_HDF5, "hdf5"), (_ZIP, "npz")):
        if head.startswith(magic):
            return kind
    raise DatasetCorrupt(
        f"expected HDF5 or npz, got a file that begins with {head[:8]!r}", file=path
    )


def _refuse_pickle(problem: str, path: Path, key: str | None = None) -> None:
    hint = "it could run any code: convert it to HDF5 or npz with the tool that wrote it"
    raise PickleRefused(problem, file=path, key=key, hint=hint)


def open_hdf5(path: Path | str) -> h5py.File:
    """Open an HDF5 file read-only; the caller closes it.

    Raises:
        DatasetNotFound: no file, a folder, or no bytes.
        DatasetCorrupt: not HDF5, truncated, or locked by a writer.
        PickleRefused: a pickle.
    """
    path = Path(path)
    if file_kind(path) != "hdf5":
        raise DatasetCorrupt("expected HDF5, got a zip archive", file=path)
    try:
        return h5py.File(path, "r", rdcc_nbytes=_CHUNK_CACHE)
    except BlockingIOError as error:
        hint = "close the program that writes it"
        raise DatasetCorrupt("expected to read it, got a lock", file=path, hint=hint) from error
    except OSError as error:
        raise DatasetCorrupt(
            f"expected a whole HDF5 file, got: {one_line(error)}", file=path, hint="get it again"
        ) from error


class Hdf5Array:
    """An HDF5 array whose read errors name the file and the key."""

    def __init__(self, stored: h5py.Dataset, file: Path) -> None:
        self.shape: tuple[int, ...] = stored.shape
        self.dtype: np.dtype[Any] = stored.dtype
        self.file = file
        self._stored, self._handle = stored, stored.file  # the handle keeps the file open

    def __getitem__(self, rows: slice | EllipsisType) -> Array:
        """Return a copy of the rows.

        Raises:
            DatasetCorrupt: what is stored cannot be unpacked.
        """
        with _reading(self.file, self._stored.name.lstrip("/")):
            values: Array = self._stored[rows]
        return values


@contextmanager
def _reading(path: Path, key: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, KeyError) as error:
        problem = f"expected readable data, got: {one_line(error)}"
        raise DatasetCorrupt(problem, file=path, key=key, hint="get the file again") from error


def hdf5_arrays(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Return every array of a file by its path, "infos/qpos", without following links.

    Raises:
        UnsafePath: a link to, or an array stored in, another file.
        DatasetCorrupt: an entry that cannot be opened.
    """
    found: dict[str, h5py.Dataset] = {}
    _collect(file, "", Path(file.filename), found)
    return found


def _collect(group: h5py.Group, prefix: str, path: Path, found: dict[str, h5py.Dataset]) -> None:
    with _reading(path, prefix or "/"):
        names = list(group)
    for name in names:
        key = prefix + name
        with _reading(path, key):
            link = group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise UnsafePath(f"expected data, got a link to {link.filename}", file=path, key=key)
        if isinstance(link, h5py.SoftLink):
            continue  # what it names inside this file has an entry of its own
        with _reading(path, key):
            entry = group[name]
        if isinstance(entry, h5py.Group):
            _collect(entry, f"{key}/", path, found)
        elif isinstance(entry, h5py.Dataset):
            if entry.is_virtual or entry.external:
                raise UnsafePath(
                    "expected data, got an array kept in other files", file=path, key=key
                )
            found[key] = entry


def npz_headers(path: Path | str) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shape and dtype of every array of an npz, without reading their values.

    Raises:
        DatasetNotFound: no file, a folder, or no bytes.
        DatasetCorrupt: no npz, or a damaged one.
        PickleRefused: a pickle, or an array of Python objects.
    """
    path = Path(path)
    if file_kind(path) != "npz":
        raise DatasetCorrupt("expected npz, got HDF5", file=path)
    headers = {}
    with _reading_npz(path), zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as stream:
                version = np.lib.format.read_magic(stream)
                read = np.lib.format.read_array_header_1_0
                if version != (1, 0):
                    read = np.lib.format.read_array_header_2_0
                shape, _, dtype = read(stream)
            key = name.removesuffix(".npy")
            if dtype.hasobject:
                _refuse_pickle("expected numbers, got Python objects", path, key)
            headers[key] = (shape, dtype)
    return headers


def npz_arrays(path: Path | str) -> dict[str, Array]:
    """Return all arrays of an npz.

    Raises:
        As `npz_headers`.
    """
    path = Path(path)
    npz_headers(path)
    with _reading_npz(path), np.load(path, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


def write_npz_arrays(path: Path | str, arrays: Mapping[str, Array]) -> None:
    """Write arrays of numbers or text into a new compressed npz; use with `replacing`."""
    with zipfile.ZipFile(path, "x", zipfile.ZIP_DEFLATED) as archive:
        for key, values in arrays.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asanyarray(values), allow_pickle=False)


@contextmanager
def _reading_npz(path: Path) -> Iterator[None]:
    try:
        yield
    except DatasetError:
        raise
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError) as error:
        raise DatasetCorrupt(
            f"expected a whole npz, got: {one_line(error)}", file=path, hint="get it again"
        ) from error


def safe_name(name: str) -> str:
    """Return a relative name with forward slashes if it stays below where it is put.

    Raises:
        UnsafePath: an absolute one, one with "..", an empty part, a backslash, or a colon.
    """
    parts = name.split("/")
    if not name or any(part in ("", ".", "..") for part in parts) or set(name) & set("\\:\0"):
        raise UnsafePath(
            f"expected a relative name without '..', got {name!r}", hint="choose a plain name"
        )
    return name


def safe_join(root: Path | str, name: str) -> Path:
    """Return `root / name` if it is below `root`, links resolved.

    Raises:
        UnsafePath: it is not.
    """
    root = Path(root)
    path = root / PurePosixPath(safe_name(name))
    if not path.resolve().is_relative_to(root.resolve()):
        raise UnsafePath(f"expected a path below {root}, got {path.resolve()}", file=path)
    return path


@contextmanager
def replacing(path: Path | str, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary name beside `path`, and move it there when the block has succeeded.

    The new content is on the disk before the name changes. If the block fails, what was at
    `path` is as before and the temporary file is gone.

    Args:
        path: where the file shall be.
        overwrite: replace what is there.

    Raises:
        DatasetExists: something is there and `overwrite` is False.
        DatasetNotFound: the folder does not exist.
        DatasetError: the disk is full or refuses.
    """
    path = Path(path)
    if path.is_dir() or (path.exists() and not overwrite):
        hint = "choose another name" if path.is_dir() else "choose another name, or overwrite"
        raise DatasetExists("expected no such file, got one", file=path, hint=hint)
    if not path.parent.is_dir():
        raise DatasetNotFound("expected a folder, got nothing", file=path.parent, hint="make it")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        sync_path(temporary)
        os.replace(temporary, path)
        sync_path(path.parent)
    except (OSError, RuntimeError) as error:
        hint = "free some space; what was there before is unchanged"
        raise DatasetError(
            f"expected to write it, got: {one_line(error)}", file=path, hint=hint
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def sync_path(path: Path) -> None:
    """Wait until a file or the names of a folder are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def one_line(error: BaseException) -> str:
    """Return the text of an error without line breaks; its type if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
