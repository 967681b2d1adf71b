"""Minari in Arrow: what is damaged is refused, and without pyarrow the error says what to do."""

import re
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pytest

from statewise.data import DatasetError, errors
from statewise.data.minari import read_minari
from tests.data.minari_sets import ID, Damage, make, space


def arrow_column(data: Path, name: str, values: list[Any]) -> None:
    """Exchange a column of episode 0."""
    file = data / "0/part-0.arrow"
    table = pyarrow.ipc.open_file(file.read_bytes()).read_all()
    table = table.set_column(table.column_names.index(name), name, pyarrow.array(values))
    with pyarrow.ipc.new_file(str(file), table.schema) as writer:
        writer.write_table(table)


ARROW_CASES: dict[str, tuple[Damage, type[DatasetError], str]] = {
    "a truncated file": (
        lambda data: (data / "0/part-0.arrow").write_bytes(
            (data / "0/part-0.arrow").read_bytes()[:200]
        ),
        errors.DatasetCorrupt,
        "part-0.arrow: expected a whole arrow file, got:",
    ),
    "no file": (
        lambda data: (data / "1/part-0.arrow").unlink(),
        errors.DatasetNotFound,
        "1: expected a file *.arrow, got none",
    ),
    "a gap in the numbers": (
        lambda data: (data / "1").rename(data / "4"),
        errors.MinariCount,
        "episode[1]: expected the episodes 0 .. 2, got 3",
    ),
    "a folder that is no episode": (
        lambda data: (data / "extra").mkdir(),
        errors.MinariCount,
        "expected folders 0, 1, ..., got extra",
    ),
    "a value that is missing": (
        lambda data: arrow_column(data, "terminations", [False, None, False, True, False]),
        errors.MinariEpisode,
        "0: episode[0]/terminations: expected a value in every row, got nulls",
    ),
    "text": (
        lambda data: arrow_column(data, "rewards", ["a"] * 5),
        errors.SpecMismatch,
        "episode[0]/rewards: expected booleans, integers or real numbers, got dtype object",
    ),
    "observations that are no list": (
        lambda data: arrow_column(data, "observations", [1.0] * 5),
        errors.SpecMismatch,
        "episode[0]/observations/obs: expected rows of shape (2,) and dtype float32, got ()",
    ),
    "an entry of the space that is missing": (
        space("observation_space", type="Dict", subspaces={"x": {"type": "MultiBinary", "n": 2}}),
        errors.MissingKey,
        "0: observations/x: expected this column, got none",
    ),
    "a wrong number of steps noted": (
        lambda data: (data / "0/metadata.json").write_text('{"id": 0, "total_steps": 5}'),
        errors.MinariCount,
        "episode[0]: expected total_steps 4, got 5",
    ),
}


@pytest.mark.parametrize("case", ARROW_CASES)
def test_an_arrow_set_with_this_is_refused(tmp_path: Path, case: str) -> None:
    damage, kind, message = ARROW_CASES[case]
    damage(make(tmp_path, "arrow"))
    with pytest.raises(kind, match=re.escape(message)) as caught:
        read_minari(ID, root=tmp_path)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_without_pyarrow_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "arrow")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DatasetError, match="pip install 'pyarrow>=15'"):
        read_minari(ID, root=tmp_path)
    with pytest.raises(DatasetError, match="pip install 'pyarrow>=15'"):
        make(tmp_path / "more", "arrow")
