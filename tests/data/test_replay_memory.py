"""Memory stored in a replay is what a window begins with; a resumed replay goes on exactly."""

from typing import Any

import numpy as np
import pytest
import torch

from statewise.data import ArraySpec
from statewise.data.errors import DataConfigError
from statewise.data.replay_spec import RowSpec
from tests.data.replay_streams import (
    SPEC,
    WITH_STATE,
    Streams,
    assert_same_batch,
    fresh,
    make,
    rng,
    state_at,
)


def test_stored_memory_comes_with_its_row() -> None:
    streams = make(10, 2, WITH_STATE)
    streams.append(17)
    batch = streams.replay.sample(20, 3, rng())
    for b, (worker, start) in enumerate(zip(*batch.refs, strict=True)):
        expected = state_at(int(worker), [int(start)])
        assert torch.equal(batch.state["h"][b], expected["h"][0])
        assert batch.state["half"][b] == expected["half"][0]
    assert batch.state["half"].dtype == torch.float32
    assert make(10, 2).replay.config.replay_state == "zero"


def test_without_stored_memory_there_is_none() -> None:
    streams = make()
    streams.append(9)
    assert streams.replay.sample(2, 4, rng()).state == {}


def test_refreshed_memory_is_what_the_next_batch_begins_with() -> None:
    streams = make(12, 2, WITH_STATE, weights="dfs")
    streams.append(20)
    batch = streams.replay.sample(3, 4, rng())
    assert streams.replay.write_state(batch.refs, fresh(3)) == 3
    written = {pair: i for i, pair in enumerate(zip(*map(list, batch.refs), strict=True))}
    again = streams.replay.sample(streams.replay.num_starts(1), 1, rng())
    for b, (worker, start) in enumerate(zip(*map(list, again.refs), strict=True)):
        old = state_at(int(worker), [int(start)])["h"][0]
        i = written.get((worker, start))
        new = old if i is None else fresh(3)["h"][i]
        assert torch.equal(again.state["h"][b], new)


def test_memory_is_refreshed_at_several_rows_of_a_window() -> None:
    streams = make(12, 1, WITH_STATE, starts="episode")
    streams.append(9)  # episodes begin in rows 0, 4, 6
    batch = streams.replay.sample(1, 3, rng(0))
    start = int(batch.refs.start[0])
    # Row 12 - start is not there yet.
    rows = [0, 2, 12 - start]
    assert streams.replay.write_state(batch.refs, fresh(1, 3), rows) == 2
    arrays = streams.replay.state_dict()["rows"]["state/h"][0]
    assert arrays[[start, start + 2], 0].tolist() == [500, 501]
    assert arrays[start + 1].tolist() == [0, -(start + 1)]


def test_memory_of_rows_that_are_gone_is_not_written() -> None:
    streams = make(12, 1, WITH_STATE)
    streams.append(12)
    refs = streams.replay.sample(8, 3, rng()).refs
    streams.append(int(refs.start.min()) + 1)
    kept = int((refs.start > refs.start.min()).sum())
    before = streams.replay.state_dict()["rows"]
    assert 0 < kept < 8
    assert streams.replay.write_state(refs, fresh(8)) == kept
    after = streams.replay.state_dict()["rows"]
    changed = (before["state/h"] != after["state/h"]).any(-1)[0].nonzero()[0]
    assert set(changed) == {n % 12 for n in refs.start if n > refs.start.min()}


@pytest.mark.parametrize("spec", [SPEC, WITH_STATE], ids=["zero", "stored"])
@pytest.mark.parametrize("starts", ["any", "episode"])
@pytest.mark.parametrize("weights", ["uniform", "dfs"])
@pytest.mark.parametrize("rows", [8, 31])
def test_a_resumed_replay_goes_on_exactly(
    spec: RowSpec, starts: Any, weights: Any, rows: int
) -> None:
    settings: dict[str, Any] = {"starts": starts, "weights": weights}
    streams, other = (make(20, 2, spec, **settings) for _ in range(2))
    streams.append(rows)
    streams.append(5, [1])
    streams.replay.sample(2, 3, rng(7))
    state = streams.replay.state_dict()
    other.replay.load_state_dict(state)
    other.rows = [list(rows) for rows in streams.rows]
    for one in (streams, other):
        one.append(6)
    pairs = [[one.replay.sample(2, 3, g) for _ in range(4)] for one, g in both(streams, other)]
    for left, right in zip(*pairs, strict=True):
        assert_same_batch(left, right)


def both(first: Streams, second: Streams) -> list[tuple[Streams, np.random.Generator]]:
    return [(first, rng(4)), (second, rng(4))]


def test_a_state_is_a_copy() -> None:
    streams, other = make(6, 1), make(6, 1)
    streams.append(6)
    state = streams.replay.state_dict()
    streams.append(3)
    other.replay.load_state_dict(state)
    assert other.replay.sample(1, 6, rng()).step.action.tolist() == [[0, 10, 20, 30, 40, 50]]


@pytest.mark.parametrize(
    ("other", "key"),
    [
        (lambda: make(21), "rows_per_worker"),
        (lambda: make(20, 3), "num_workers"),
        (lambda: make(20, weights="dfs"), "weights"),
        (lambda: make(20, spec=RowSpec(obs=SPEC.obs, action=ArraySpec((2,), "int64"))), "fields"),
    ],
)
def test_the_state_of_another_replay_is_refused(other: Any, key: str) -> None:
    streams = make(20)
    with pytest.raises(DataConfigError, match=rf"replay\.{key}: expected the state of") as error:
        other().replay.load_state_dict(streams.replay.state_dict())
    assert "\n" not in str(error.value)
