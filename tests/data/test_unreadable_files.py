"""Files that are missing, damaged, dangerous or of another kind are refused in one line."""

import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from statewise.data import (
    ReadConfig,
    errors,
    load_dataset,
    read_d4rl,
    write_npz,
)
from tests.data.episodes import dataset_of, flat_arrays, write_hdf5


def test_a_missing_file_a_folder_and_an_empty_file_are_not_found(tmp_path: Path) -> None:
    (tmp_path / "empty.hdf5").touch()
    (tmp_path / "folder.hdf5").mkdir()
    for name, words in (
        ("none.hdf5", "got nothing: check the path"),
        ("empty.hdf5", "got 0 bytes"),
        ("folder.hdf5", "got a folder"),
    ):
        with pytest.raises(errors.DatasetNotFound, match=rf"{name}: expected .*{words}"):
            read_d4rl(tmp_path / name)


def test_a_file_that_is_no_data_is_corrupt(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    for name, content, words in (
        ("text.hdf5", b"hello, this is text", "begins with b'hello, t'"),
        ("pointer.hdf5", pointer, "pointer of git-lfs: run git lfs pull"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(errors.DatasetCorrupt, match=re.escape(words)):
            load_dataset(tmp_path / name)


@pytest.mark.parametrize("suffix", ["hdf5", "npz"])
def test_a_truncated_file_is_corrupt(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "npz":
        write_npz(dataset_of(50, 50), path)
    else:
        write_hdf5(path, flat_arrays(200))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(errors.DatasetCorrupt, match=rf"a\.{suffix}: expected a whole"):
        load_dataset(path)


@pytest.mark.parametrize("mode", ["memory", "lazy"])
def test_a_damaged_block_is_corrupt(tmp_path: Path, mode: Any) -> None:
    path = tmp_path / "a.hdf5"
    arrays = flat_arrays(2000)
    with h5py.File(path, "w") as file:
        for key, values in arrays.items():
            file.create_dataset(key, data=values, compression="gzip")
        place = file["observations"].id.get_chunk_info(0)
    with path.open("r+b") as stream:
        stream.seek(place.byte_offset + place.size // 2)
        stream.write(b"\xff" * 64)
    with pytest.raises(errors.DatasetCorrupt, match=r"a\.hdf5: observations: expected readable"):
        read_d4rl(path, mode=mode)


def test_a_file_that_is_being_written_is_refused(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    path = write_hdf5(tmp_path / "a.hdf5", flat_arrays())
    with path.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(errors.DatasetCorrupt, match="got a lock: close the program"):
            read_d4rl(path)
    assert len(read_d4rl(path)) == 4


class Bomb:
    """Would make a folder if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.mkdir, (self.path,))


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    trap = np.array([Bomb(tmp_path / "boom")], object)
    np.save(tmp_path / "trap.npy", trap, allow_pickle=True)
    np.savez(tmp_path / "objects.npz", observations=trap)
    (tmp_path / "data.pkl").write_bytes(b"anything")
    (tmp_path / "hidden.hdf5").write_bytes(b"\x80\x04\x95\x00")
    with pytest.raises(errors.PickleRefused, match=r"objects\.npz: observations: .*objects"):
        load_dataset(tmp_path / "objects.npz")
    for name in ("data.pkl", "hidden.hdf5"):
        with pytest.raises(errors.PickleRefused, match=f"{name}: .*could run any code: convert"):
            load_dataset(tmp_path / name)
    assert not (tmp_path / "boom").exists()


def test_links_out_of_a_file_are_not_followed(tmp_path: Path) -> None:
    arrays = flat_arrays()
    write_hdf5(tmp_path / "other.hdf5", arrays)
    observations = arrays.pop("observations")
    linked = write_hdf5(tmp_path / "linked.hdf5", arrays)
    with h5py.File(linked, "a") as file:
        file["observations"] = h5py.ExternalLink("other.hdf5", "observations")
    virtual = write_hdf5(tmp_path / "virtual.hdf5", arrays)
    layout = h5py.VirtualLayout(observations.shape, observations.dtype)
    layout[:] = h5py.VirtualSource("other.hdf5", "observations", observations.shape)
    with h5py.File(virtual, "a") as file:
        file.create_virtual_dataset("observations", layout)
    for path, words in ((linked, "got a link to other.hdf5"), (virtual, "kept in other files")):
        with pytest.raises(errors.UnsafePath, match=f"observations: .*{words}"):
            read_d4rl(path)


def test_a_folder_without_data_is_told_apart_from_one_with_other_things(tmp_path: Path) -> None:
    with pytest.raises(errors.DatasetNotFound, match="got an empty folder"):
        load_dataset(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(errors.DatasetCorrupt, match=r"got another folder: give the file itself"):
        load_dataset(tmp_path)
    with pytest.raises(errors.DataConfigError, match="config: expected none for a folder"):
        load_dataset(tmp_path, config=ReadConfig())
