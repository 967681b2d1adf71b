"""Replay in files: what a flush has promised is there, whenever the process dies or the disk ends.

A process that is killed leaves its pages with the system. Opening the folder a second time, without
a flush, sees just what is then there.
"""

import errno
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statewise.data.errors import (
    DataConfigError,
    DatasetCorrupt,
    DatasetError,
    DatasetWarning,
    SpecMismatch,
)
from statewise.data.replay import Replay
from statewise.data.replay_spec import RowSpec
from tests.data.replay_streams import (
    SPEC,
    WITH_STATE,
    Streams,
    assert_same_batch,
    make,
    rng,
    state_at,
    stream,
)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def reopen(streams: Streams, folder: Path, **settings: Any) -> tuple[Streams, int]:
    """Open the files as they are, cut the lists of rows to what was kept, return what was lost."""
    old = streams.replay
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = make(old.rows_per_worker, old.num_workers, old.spec, folder, **settings)
    again = Streams(made.replay, streams.lengths)
    again.rows = [
        rows[:end] for rows, end in zip(streams.rows, made.replay._end.tolist(), strict=True)
    ]
    lost = sum(map(len, streams.rows)) - sum(map(len, again.rows))
    words = [f"{folder}: {lost} rows appended after the last flush were lost"] if lost else []
    assert [str(one.message) for one in caught] == words
    assert all(one.category is DatasetWarning for one in caught)
    return again, lost


def check_all(streams: Streams, kept: int) -> None:
    """Compare every window of one row, and the rows before them, with the lists."""
    expected = streams.starts(1, kept)
    if not expected:
        return
    batch = streams.replay.sample(4 * len(expected), 1, rng())
    assert streams.check_windows(batch, kept) <= expected
    assert streams.replay.num_starts(1) == len(expected)


actions = st.lists(
    st.one_of(st.tuples(st.integers(1, 7), st.sampled_from([None, [0], [1]])), st.just("flush")),
    max_size=10,
)


@settings(max_examples=25)
@given(done=actions, kept=st.integers(2, 6))
def test_what_was_flushed_is_there_whenever_the_process_dies(
    tmp_path_factory: pytest.TempPathFactory, done: Any, kept: int
) -> None:
    folder = tmp_path_factory.mktemp("replay")
    streams = make(kept, 2, folder=folder)
    flushed = [0, 0]
    for one in done:
        if one == "flush":
            streams.replay.flush()
            flushed = [len(rows) for rows in streams.rows]
        else:
            streams.append(*one)
    again, _ = reopen(streams, folder)
    assert all(len(rows) >= n for rows, n in zip(again.rows, flushed, strict=True))
    assert len(again.replay) == sum(min(kept, len(rows)) for rows in again.rows)
    check_all(again, kept)
    again.append(3)
    check_all(again, kept)


def test_rows_of_files_are_those_of_memory(tmp_path: Path) -> None:
    streams, other = make(9, 2, WITH_STATE, tmp_path), make(9, 2, WITH_STATE)
    for rows, workers in ((5, None), (30, [1]), (2, [0]), (4, None)):
        streams.append(rows, workers)
        other.append(rows, workers)
    assert_same_batch(streams.replay.sample(20, 3, rng()), other.replay.sample(20, 3, rng()))
    assert streams.replay.nbytes == 2 * (9 + 9) * WITH_STATE.bytes_per_row
    sizes = [path.stat().st_size for path in tmp_path.glob("*.bin")]
    assert sum(sizes) == streams.replay.nbytes + 2 * 8


def test_files_may_be_larger_than_memory(tmp_path: Path) -> None:
    assert make(8, 1, folder=tmp_path, max_bytes=1).replay.nbytes > 1


def test_no_more_than_the_tail_is_lost_and_it_is_counted(tmp_path: Path) -> None:
    streams = make(8, 2, folder=tmp_path)
    streams.append(13)
    streams.replay.flush()
    streams.append(2, [1])
    streams.append(1)
    again, lost = reopen(streams, tmp_path)
    assert lost == 4
    assert [len(rows) for rows in again.rows] == [13, 13]
    check_all(again, 8)
    assert reopen(again, tmp_path)[1] == 0  # said once


def test_rows_that_were_not_flushed_yet_are_sampled(tmp_path: Path) -> None:
    streams = make(8, 1, folder=tmp_path)
    for _ in range(30):
        streams.append(1)
        check_all(streams, 8)


def test_more_rows_than_the_files_hold_leave_the_newest(tmp_path: Path) -> None:
    streams = make(8, 2, folder=tmp_path)
    streams.append(50)
    check_all(streams, 8)


def test_refreshed_memory_is_found_after_a_flush(tmp_path: Path) -> None:
    streams = make(8, 1, WITH_STATE, tmp_path)
    streams.append(8)
    refs = streams.replay.sample(6, 2, rng()).refs
    streams.replay.write_state(refs, state_at(7, refs.start))
    streams.replay.flush()
    again, _ = reopen(streams, tmp_path)
    batch = again.replay.sample(6, 2, rng())
    assert batch.refs.start.tolist() == refs.start.tolist()
    assert batch.state["h"][:, 0].tolist() == [7] * 6


def test_a_resumed_replay_in_files_goes_on_exactly(tmp_path: Path) -> None:
    """Rows after the checkpoint come again; as long as none is overwritten all is as it was."""
    kinds: dict[str, Any] = {"starts": "episode", "weights": "dfs"}
    streams = make(30, 2, WITH_STATE, tmp_path, **kinds)
    streams.append(17)
    streams.replay.sample(2, 3, rng(7))
    state, number = streams.replay.state_dict(), [list(rows) for rows in streams.rows]
    assert "rows" not in state
    streams.append(6)
    expected = streams.replay.sample(4, 3, rng(1))
    streams.append(5)
    streams.replay.flush()
    again, _ = reopen(streams, tmp_path, **kinds)
    again.replay.load_state_dict(state)
    again.rows = number
    assert len(again.replay) == 34
    again.append(6)
    assert_same_batch(again.replay.sample(4, 3, rng(1)), expected)
    again.replay.flush()
    assert reopen(again, tmp_path, **kinds)[1] == 0


def overwritten_rows(caught: list[warnings.WarningMessage]) -> int:
    """Return how many rows a warning said that a checkpoint lacks."""
    words = [str(one.message) for one in caught]
    counts = [re.match(r"replay: (\d+) of \d+ rows were overwritten", text) for text in words]
    return sum(int(count[1]) for count in counts if count)


lives = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 9), st.sampled_from([None, [0], [1]])),
        st.sampled_from(["checkpoint", "kill", "flush"]),
    ),
    max_size=14,
)


def content(replay: Replay) -> dict[tuple[int, int], list[Any]]:
    """Return all that is held, by worker and row."""
    rows: dict[tuple[int, int], list[Any]] = {}
    for worker, (begin, end) in enumerate(zip(replay._begin, replay._end, strict=True)):
        for number in range(begin, end):
            arrays = replay._storage.arrays.values()
            slot = number % replay._storage.slots
            rows[worker, number] = [array[worker, slot].tolist() for array in arrays]
    return rows


@settings(max_examples=60)
@given(done=lives, kept=st.integers(2, 6), spare=st.integers(1, 12))
def test_a_killed_run_finds_the_rows_of_its_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, done: Any, kept: int, spare: int
) -> None:
    """All of them if no more came since than there is room for, else those that remain."""
    folder = tmp_path_factory.mktemp("replay")
    streams = make(kept, 2, folder=folder, spare=spare)
    numbers, state, rows = [[], []], streams.replay.state_dict(), content(streams.replay)
    most = np.zeros(2, np.int64)  # rows after the checkpoint, in the longest life since
    for life, one in enumerate([*done, "kill"]):
        if one == "flush":
            streams.replay.flush()
        elif one == "checkpoint":
            numbers, state = [list(n) for n in streams.rows], streams.replay.state_dict()
            rows, most = content(streams.replay), 0 * most
        elif one != "kill":
            streams.append(*one)
            more = [len(now) - end for now, end in zip(streams.rows, state["end"], strict=True)]
            most = np.maximum(most, more)
        else:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                streams = make(kept, 2, folder=folder, spare=spare)
                streams.replay.load_state_dict(state)
            oldest = np.array(state["end"]) + most - (kept + spare)
            left = {(w, n): row for (w, n), row in rows.items() if n >= oldest[w]}
            assert content(streams.replay) == left
            assert overwritten_rows(caught) == len(rows) - len(left)
            # Another life gets other rows.
            streams.rows, streams.lengths = [list(n) for n in numbers], (2, 1, life + 2)
            state, rows = streams.replay.state_dict(), left


def test_files_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    streams = make(8, 2, folder=tmp_path)
    streams.append(21)
    streams.replay.flush()
    header = json.loads((tmp_path / "replay.json").read_text())
    del header["overwritten"]
    (tmp_path / "replay.json").write_text(json.dumps(header))
    again = make(8, 2, folder=tmp_path, spare=50)  # more room than they were made with
    again.rows = streams.rows
    check_all(again, 8)
    again.append(30)
    check_all(again, 8)
    assert again.replay.nbytes == 2 * (8 + 8) * SPEC.bytes_per_row


def test_rows_that_an_earlier_version_gave_up_stay_given_up(tmp_path: Path) -> None:
    """It noted so by its oldest row alone, before other rows took their slots."""
    streams = make(4, 1, folder=tmp_path)  # 8 slots
    streams.append(10)
    state = streams.replay.state_dict()
    streams.append(10)  # over all rows of the state
    streams.replay.flush()
    again, _ = reopen(streams, tmp_path)
    with pytest.warns(DatasetWarning, match="replay: 4 of 4 rows were overwritten"):
        again.replay.load_state_dict(state)
    header = json.loads((tmp_path / "replay.json").read_text())
    del header["overwritten"]
    (tmp_path / "replay.json").write_text(json.dumps(header))
    last = make(4, 1, folder=tmp_path)
    with pytest.warns(DatasetWarning, match="replay: 4 of 4 rows were overwritten"):
        last.replay.load_state_dict(state)
    assert len(last.replay) == 0


@pytest.mark.parametrize(("rows", "left"), [(1, 5), (11, 5), (14, 2)])
def test_rows_after_a_resume_never_mix_with_those_before(
    tmp_path: Path, rows: int, left: int
) -> None:
    """The process dies again, before the first flush of the resumed run."""
    streams = make(8, 1, folder=tmp_path)  # 16 slots
    streams.append(5)
    state = streams.replay.state_dict()
    streams.append(rows)
    streams.replay.flush()
    again, _ = reopen(streams, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DatasetWarning)
        again.replay.load_state_dict(state)
    again.rows, again.lengths = [list(range(5))], [2, 2]  # other rows than the first time
    again.append(1)
    last, lost = reopen(again, tmp_path)
    assert (lost, last.rows) == (1, [list(range(5))])
    last.lengths = streams.lengths
    assert len(last.replay) == left
    check_all(last, left)


def test_a_state_whose_rows_the_files_lack_is_refused(tmp_path: Path) -> None:
    streams = make(8, 1, folder=tmp_path)
    streams.append(5)
    state = streams.replay.state_dict()
    streams.replay.load_state_dict({**state, "end": [3]})
    with pytest.raises(DatasetCorrupt, match="expected 5 rows that were ever appended, got 3"):
        streams.replay.load_state_dict(state)


def test_a_state_of_other_files_is_refused(tmp_path: Path) -> None:
    first, second = (make(8, 1, folder=tmp_path / name) for name in "ab")
    with pytest.raises(DataConfigError, match=r"replay\.files: expected the state of"):
        second.replay.load_state_dict(first.replay.state_dict())
    with pytest.raises(DataConfigError, match=r"replay\.storage: expected the state of"):
        make(8, 1).replay.load_state_dict(first.replay.state_dict())


def settings_of(folder: Path) -> dict[str, Any]:
    return {"rows": 8, "workers": 2, "folder": folder}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"rows": 9}, "rows_per_worker: expected 9 as configured, got 8"),
        ({"workers": 3}, "num_workers: expected 3"),
        ({"spec": WITH_STATE}, r"state/h: expected \[\[2\], 'float32'\] as configured, got None"),
        ({"spec": RowSpec(obs={}, action=SPEC.action)}, "obs/place: expected None as"),
    ],
)
def test_a_folder_with_a_replay_of_other_sizes_is_refused(
    tmp_path: Path, change: Any, key: str
) -> None:
    make(**settings_of(tmp_path))
    with pytest.raises(SpecMismatch, match=f"replay.json: {key}.*another folder") as error:
        make(**settings_of(tmp_path) | change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("left", [0, 1, 40])
@pytest.mark.parametrize("file", ["0.bin", "3.bin", "appended.bin"])
def test_a_file_that_was_cut_is_refused(tmp_path: Path, file: str, left: int) -> None:
    streams = make(**settings_of(tmp_path))
    streams.append(8)
    streams.replay.flush()
    size = (tmp_path / file).stat().st_size
    left = min(left, size - 1)
    os.truncate(tmp_path / file, left)
    words = f"{file}: expected {size} bytes, got {left}: restore it: without its rows"
    with pytest.raises(DatasetCorrupt, match=words) as error:
        make(**settings_of(tmp_path))
    assert "\n" not in str(error.value)


def cut(text: str) -> str:
    return text[: len(text) // 2]


def edited(**changes: Any) -> Any:
    return lambda text: json.dumps({**json.loads(text), **changes})


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        lambda text: "",
        lambda text: "[]",
        edited(begin=[0]),
        edited(end=[99, 0]),
        edited(end=[-1, 0]),
        edited(begin=[-1, 0], end=[5, 0]),
        edited(begin=[2, 0], end=[1, 0]),
        edited(end=None),
        edited(layout=None),
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, damage: Any) -> None:
    streams = make(**settings_of(tmp_path))
    streams.append(8)
    streams.replay.flush()
    path = tmp_path / "replay.json"
    path.write_text(damage(path.read_text()))
    words = "replay.json: expected the header of a replay, got a damaged one"
    with pytest.raises(DatasetCorrupt, match=words) as error:
        make(**settings_of(tmp_path))
    assert "\n" not in str(error.value)


def test_a_header_that_was_not_finished_does_not_count(tmp_path: Path) -> None:
    """The process died between the new header's first byte and its renaming."""
    streams = make(**settings_of(tmp_path))
    streams.append(8)
    streams.replay.flush()
    (tmp_path / ".replay.json.0123abcd.tmp").write_text('{"id": "')
    again, lost = reopen(streams, tmp_path)
    assert lost == 0
    check_all(again, 8)


def test_files_without_a_header_are_made_anew(tmp_path: Path) -> None:
    """The process died while it made them."""
    (tmp_path / "0.bin").write_bytes(b"\xff" * 7)
    streams = make(**settings_of(tmp_path))
    assert len(streams.replay) == 0
    streams.append(9)
    check_all(streams, 8)


def full(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_too_small_is_found_before_the_first_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = os.posix_fallocate, []

    def allocate(descriptor: int, offset: int, size: int) -> None:
        sizes.append(size)
        full() if len(sizes) == 3 else real(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", allocate)
    words = "expected .* GiB on the disk, got: .*No space left on device: lower replay.capacity"
    with pytest.raises(DatasetError, match=words) as error:
        make(**settings_of(tmp_path))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


REFUSED: dict[str, tuple[Any, str]] = {
    "rows": (np.memmap, "flush"),
    "header": (Path, "write_text"),
    "rename": (os, "replace"),
}


@pytest.mark.parametrize("refused", REFUSED)
def test_a_full_disk_leaves_what_was_flushed(tmp_path: Path, refused: str) -> None:
    streams = make(**settings_of(tmp_path))
    streams.append(11)
    streams.replay.flush()
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.json")}
    streams.append(4)
    number = 15 + np.tile(np.arange(5), (2, 1))
    step = stream(np.arange(2)[:, None], number)  # 4 + 5 rows: more than may wait for a flush
    replay = streams.replay
    words = "expected to write it, got: .*No space left on device: free some space"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*REFUSED[refused], full)
        for attempt in (replay.flush, replay.state_dict, lambda: replay.append(step)):
            with pytest.raises(DatasetError, match=words) as error:
                attempt()
            assert "\n" not in str(error.value)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.json")} == before
    check_all(streams, 8)  # the process goes on
    again, lost = reopen(streams, tmp_path)
    assert lost == 8
    check_all(again, 8)
