"""Minari's episodes in HDF5: one file, a group per episode.

main_data.hdf5
  episode_0    attributes id, total_steps, ...
    observations (T + 1, ...), or a group of Dict keys and Tuple entries _index_0, _index_1, ...
    actions (T, ...)   rewards (T,)   terminations (T,)   truncations (T,)   infos/...
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from statewise.data.episode import Array
from statewise.data.errors import DatasetCorrupt, MinariCount, UnsafePath
from statewise.data.files import Hdf5Array, one_line, open_hdf5
from statewise.data.minari_layout import LEAF, Stored, decode_frames
from statewise.data.minari_spaces import Leaf, TreePath

FILE = "main_data.hdf5"
_FIELDS = ("actions", "rewards", "terminations", "truncations")
_DEEPEST = 32  # levels of groups
_EPISODE = re.compile(r"episode_(0|[1-9]\d*)")


class Hdf5Store:
    """A `Store` in HDF5; the file stays open until `close`.

    The arrays of one episode are open at a time: each keeps what it has unpacked.

    Args:
        folder: with main_data.hdf5.
        leaves: of the observation space.
        action: the action space.
        jpeg_encoding: "jpeg" or "raw": how images are stored.

    Raises:
        DatasetNotFound, DatasetCorrupt, PickleRefused: a file that is not read.
    """

    def __init__(
        self, folder: Path, leaves: Sequence[Leaf], action: Leaf, *, jpeg_encoding: str
    ) -> None:
        self.file = folder / FILE
        self._handle = open_hdf5(self.file)
        self._leaves = {f"observations/{leaf.name}": leaf for leaf in leaves} | {"actions": action}
        self._names = {
            "observations" + _key(leaf.path): f"observations/{leaf.name}" for leaf in leaves
        }
        self._names |= {name: name for name in _FIELDS}
        self._jpeg = jpeg_encoding == "jpeg"
        self._open: tuple[int, dict[str, h5py.Dataset]] | None = None

    def close(self) -> None:
        """Close the file; nothing can be read any more."""
        self._open = None
        self._handle.close()

    def numbers(self) -> list[int]:
        """As `Store`.

        Raises:
            MinariCount: a group that is no episode.
        """
        found = []
        for group in self._handle:
            match = _EPISODE.fullmatch(group)
            if match is None:
                problem = f"expected episodes episode_0, episode_1, ..., got {group}"
                raise MinariCount(problem, file=self.file, hint="leave it out")
            found.append(int(match[1]))
        return sorted(found)

    def attributes(self, index: int) -> Mapping[str, Any]:
        """As `Store`; only those that are checked."""
        attributes = self._handle[f"episode_{index}"].attrs
        return {key: attributes[key] for key in ("id", "total_steps") if key in attributes}

    def arrays(self, index: int) -> Mapping[str, Stored]:
        """As `Store`.

        Raises:
            UnsafePath: a link to, or an array stored in, another file.
            DatasetCorrupt: an entry that cannot be opened.
        """
        found = {}
        for name, stored in self._episode(index).items():
            shape, dtype = stored.shape, stored.dtype
            leaf = self._encoded_leaf(name, stored)
            if leaf is not None:
                shape, dtype = (shape[0], *leaf.stored.shape), np.dtype(np.uint8)
            found[name] = Stored(shape[0] if shape else 0, shape[1:], dtype)
        return found

    def read(self, name: str, index: int, begin: int, end: int) -> Array:
        """As `Store`."""
        stored = self._episode(index)[name]
        rows = Hdf5Array(stored, self.file)[begin:end]
        leaf = self._encoded_leaf(name, stored)
        if leaf is not None:
            return decode_frames(rows, leaf, self.file, f"episode[{index}]/{name}")
        return rows

    def _encoded_leaf(self, name: str, stored: h5py.Dataset) -> Leaf | None:
        """Return the leaf of images that are one row of bytes each.

        Sets of old versions hold images as they are.
        """
        leaf = self._leaves.get(name)
        if leaf is None or not (self._jpeg and leaf.is_image):
            return None
        return leaf if len(stored.shape) < 1 + len(leaf.stored.shape) else None

    def _episode(self, index: int) -> dict[str, h5py.Dataset]:
        """Return the arrays of an episode by name."""
        if self._open is None or self._open[0] != index:
            found: dict[str, h5py.Dataset] = {}
            self._open = None
            self._collect(f"episode_{index}", "", self._handle, found)
            self._open = index, found
        return self._open[1]

    def _collect(
        self, name: str, key: str, parent: h5py.Group, found: dict[str, h5py.Dataset]
    ) -> None:
        """Find the arrays at or below an entry of a group.

        Args:
            name: of the entry.
            key: of the entry below its episode; "" for the episode itself.
            parent: the group.
            found: what is found is added here.
        """
        path = f"{parent.name}/{name}".lstrip("/")
        if key.count("/") > _DEEPEST:
            problem = f"expected at most {_DEEPEST} levels, got a group inside itself or more"
            raise DatasetCorrupt(problem, file=self.file, key=path[:80])
        try:
            link = parent.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                problem = f"expected data, got a link to {link.filename}"
                raise UnsafePath(problem, file=self.file, key=path)
            if isinstance(link, h5py.SoftLink):
                return  # what it names inside this file has an entry of its own
            entry = parent[name]
        except (OSError, RuntimeError, KeyError) as error:
            text = one_line(error)
            problem = f"expected readable data, got: {text}"
            raise DatasetCorrupt(problem, file=self.file, key=path) from error
        if isinstance(entry, h5py.Group):
            for inner in entry:
                self._collect(inner, f"{key}/{inner}" if key else inner, entry, found)
            return
        if entry.is_virtual or entry.external:
            problem = "expected data, got an array kept in other files"
            raise UnsafePath(problem, file=self.file, key=path)
        label = key if key.startswith("infos/") else self._names.get(key)
        if label is not None:
            found[label] = entry


def _key(path: TreePath) -> str:
    return "".join(f"/{part}" if isinstance(part, str) else f"/_index_{part}" for part in path)


class Hdf5Writer:
    """Writes episodes one by one into a new file."""

    def __init__(self, folder: Path) -> None:
        self._handle = h5py.File(folder / FILE, "x", track_order=True)

    def add(self, index: int, arrays: Mapping[str, Array], attributes: Mapping[str, Any]) -> None:
        """Write an episode.

        Args:
            index: its number, one more than that of the one before.
            arrays: as `Store` names them.
            attributes: what is noted about it.
        """
        group = self._handle.create_group(f"episode_{index}")
        group.attrs.update(attributes)
        is_leaf = [name for name in arrays if name.startswith("observations/")] == [LEAF]
        for name, values in arrays.items():
            key = "observations" if is_leaf and name == LEAF else name
            # Resizable, so that minari can append to the set.
            group.create_dataset(key, data=values, chunks=True, maxshape=(None, *values.shape[1:]))

    def close(self) -> None:
        """Finish the file."""
        self._handle.close()
