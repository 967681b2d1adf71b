"""Files are whole or not there, and names stay where they are put."""

import hashlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from statewise.data import DatasetError, read_d4rl, read_npz, write_d4rl, write_npz
from statewise.data.errors import DatasetExists, DatasetNotFound, UnsafePath
from statewise.data.files import replacing, safe_join, safe_name, sha256_of
from tests.data.episodes import dataset_of

WRITERS = {"hdf5": (write_d4rl, read_d4rl), "npz": (write_npz, read_npz)}


def test_the_sha256_is_that_of_all_bytes(tmp_path: Path) -> None:
    content = os.urandom(3 * 2**20 + 17)
    (tmp_path / "b").write_bytes(content)
    assert sha256_of(tmp_path / "b") == hashlib.sha256(content).hexdigest()
    (tmp_path / "a").write_bytes(b"first")
    assert sha256_of(tmp_path) == hashlib.sha256(b"first" + content).hexdigest()


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_is_replaced_only_if_asked_for(tmp_path: Path, suffix: str) -> None:
    write, read = WRITERS[suffix]
    path = tmp_path / f"a.{suffix}"
    write(dataset_of(3), path)
    before = path.read_bytes()
    with pytest.raises(DatasetExists, match=rf"a\.{suffix}: expected no such file, got one"):
        write(dataset_of(4, 5), path)
    assert path.read_bytes() == before
    write(dataset_of(4, 5), path, overwrite=True)
    assert read(path).lengths.tolist() == [4, 5]
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(DatasetExists):
        write(dataset_of(3), tmp_path, overwrite=True)
    with pytest.raises(DatasetNotFound, match="none: expected a folder"):
        write(dataset_of(3), tmp_path / "none" / "a")


def test_a_failure_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def fail() -> None:
        with replacing(path, overwrite=True) as temporary:
            temporary.write_text("half")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, suffix: str) -> None:
    """The limit on the size of files stands for the full disk."""
    pytest.importorskip("resource")
    write, _ = WRITERS[suffix]
    path = tmp_path / f"a.{suffix}"
    write(dataset_of(3), path)
    before = path.read_bytes()
    code = textwrap.dedent(
        """
        import resource, signal, sys
        import numpy as np
        from statewise.data import DatasetError, Episode, EpisodeDataset, write_d4rl, write_npz
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**17, 2**17))
        values = np.random.default_rng(0).normal(size=(20_000, 10)).astype(np.float32)
        episode = Episode(observations={"obs": values}, actions=values, rewards=values[:, 0],
                          terminated=True, truncated=False)
        write = write_npz if sys.argv[1].endswith("npz") else write_d4rl
        try:
            write(EpisodeDataset.from_episodes([episode]), sys.argv[1], overwrite=True)
        except DatasetError as error:
            print(error)
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert "expected to write it, got" in result.stdout, result
    assert "free some space; what was there before is unchanged" in result.stdout
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "name", ["", "/etc/x", "../x", "a/../x", "a//b", "a\\b", "c:x", "a\0b", "."]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsafePath, match=r"expected a relative name without '\.\.'"):
        safe_name(name)
    with pytest.raises(UnsafePath):
        safe_join(tmp_path, name)


def test_plain_names_stay_below_and_links_out_are_refused(tmp_path: Path) -> None:
    assert safe_name("D4RL/door/human-v2") == "D4RL/door/human-v2"
    root = tmp_path / "root"
    root.mkdir()
    assert safe_join(root, "a/b") == root / "a" / "b"
    (root / "out").symlink_to(tmp_path)
    (root / "in").symlink_to(root)
    assert safe_join(root, "in/x") == root / "in" / "x"
    with pytest.raises(UnsafePath, match="expected a path below"):
        safe_join(root, "out/x")


def test_an_error_of_the_data_passes_the_writer_unchanged(tmp_path: Path) -> None:
    error = DatasetError("expected a, got b")

    def fail() -> None:
        with replacing(tmp_path / "a") as temporary:
            np.save(temporary.with_suffix(".npy"), np.zeros(1))
            temporary.with_suffix(".npy").unlink()
            raise error

    with pytest.raises(DatasetError) as caught:
        fail()
    assert caught.value is error
