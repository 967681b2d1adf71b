"""What a replay refuses, in one line: rows, settings, sizes, and batches it is too small for."""

import re
from typing import Any

import numpy as np
import pytest
import torch

from statewise.data import ArraySpec, Step
from statewise.data.errors import DataConfigError, MemoryBudget, NonFinite, SpecMismatch
from statewise.data.replay import Replay
from statewise.data.replay_config import ReplayConfig
from statewise.data.replay_sampler import ReplayTooSmall
from statewise.data.replay_spec import RowSpec
from tests.data.replay_streams import (
    SPEC,
    WITH_STATE,
    Streams,
    fresh,
    make,
    rng,
    state_at,
    stream,
    together,
)


def broken(key: str) -> Step:
    step = together([stream(w, torch.arange(4, 8)) for w in (1, 0)])
    if key == "reward":
        step.reward[1, 2] = float("nan")
    else:
        step.obs[key][1, 2, 1] = float("inf")
    return step


@pytest.mark.parametrize(("field", "key"), [("reward", "reward"), ("obs/place", "place")])
def test_a_number_that_is_not_finite_names_worker_key_and_row(field: str, key: str) -> None:
    streams = make(20, 2)
    streams.append(4)
    before = streams.replay.state_dict()
    with pytest.raises(NonFinite, match=re.escape(f"worker 0: {field}[6]: expected finite")) as e:
        streams.replay.append(broken(key), workers=[1, 0])
    assert "\n" not in str(e.value)
    after = streams.replay.state_dict()
    assert (before["end"], before["begin"]) == (after["end"], after["begin"])
    for name, values in before["rows"].items():
        np.testing.assert_array_equal(values, after["rows"][name])


def test_memory_that_is_not_finite_is_refused() -> None:
    streams = make(20, 1, WITH_STATE)
    streams.append(4)
    refs = streams.replay.sample(1, 4, rng()).refs
    state = fresh(1)
    state["h"][0, 1] = float("nan")
    with pytest.raises(NonFinite, match=re.escape("worker 0: state/h[0]")):
        streams.replay.write_state(refs, state)
    bad = state_at(0, torch.arange(4, 6))
    bad["h"][1] = float("nan")
    step = together([stream(0, torch.arange(4, 6))])
    with pytest.raises(NonFinite, match=re.escape("worker 0: state/h[5]")):
        streams.replay.append(step, {key: values[None] for key, values in bad.items()})


def changed(**fields: Any) -> Step:
    return together([stream(w, torch.arange(3)) for w in range(2)])._replace(**fields)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (changed(action=torch.zeros(2, 3)), "action: expected shape .2, 3. and dtype int64, got"),
        (changed(reward=torch.zeros(2, 3, 1)), "reward: expected rows of shape .2,. or .2, T."),
        (changed(reward=torch.zeros(1, 3)), "reward: expected rows of shape"),
        (changed(valid=torch.ones(2, 4, dtype=torch.bool)), "valid: expected shape .2, 3. and"),
        (changed(obs={}), "missing .'obs/image', 'obs/place'., unknown"),
        (
            changed(obs={"place": torch.zeros(2, 3, 2), "image": torch.zeros(2, 3, 2, 3)}),
            "obs/image: expected shape .2, 3, 2, 3. and dtype uint8, got .* and float32",
        ),
    ],
)
def test_rows_of_another_kind_are_refused(step: Step, words: str) -> None:
    streams = make(20, 2)
    with pytest.raises(SpecMismatch, match=words) as error:
        streams.replay.append(step)
    assert "\n" not in str(error.value)
    assert len(streams.replay) == 0


def test_memory_that_was_not_announced_is_refused() -> None:
    streams = make(20, 2)
    with pytest.raises(SpecMismatch, match=r"unknown .'state/h', 'state/half'"):
        streams.replay.append(changed(), fresh(2, 3))
    with pytest.raises(SpecMismatch, match=r"missing .'state/h', 'state/half'."):
        make(20, 2, WITH_STATE).replay.append(changed())


@pytest.mark.parametrize("workers", [[0, 0], [0, 2], [-1, 0]])
def test_workers_that_there_are_not_are_refused(workers: list[int]) -> None:
    with pytest.raises(DataConfigError, match="workers: expected different numbers below 2, got"):
        make(20, 2).replay.append(changed(), workers=workers)


@pytest.mark.parametrize(
    ("rows", "settings", "batch", "length", "words"),
    [
        (5, {}, 1, 8, "expected 8 rows of one worker for a window of 8, got at most 5 .10 rows he"),
        (25, {}, 1, 20, r"expected 21 rows of one worker .* got at most 20 .*: raise replay\.cap"),
        (5, {}, 1, 50, r"raise replay\.capacity, a worker keeps only 20 rows"),
        (5, {"replay_state": "burn_in", "burn_in": 3}, 1, 4, "expected 7 rows of one worker"),
        (3, {"weights": "dfs"}, 9, 2, "expected 9 different windows of 2 rows, got 4: at least 11"),
        (30, {"weights": "dfs"}, 90, 2, r"got 36.*raise replay\.capacity"),
        (0, {}, 1, 1, "expected 1 rows of one worker for a window of 1, got at most 0 .0 rows"),
    ],
)
def test_a_replay_that_is_too_small_says_what_it_holds_and_needs(
    rows: int, settings: Any, batch: int, length: int, words: str
) -> None:
    streams = make(20, 2, **settings)
    streams.append(rows)
    with pytest.raises(ReplayTooSmall, match=words) as error:
        streams.replay.sample(batch, length, rng())
    assert "\n" not in str(error.value)


def test_episodes_that_are_too_young_are_too_few() -> None:
    streams = Streams(make(20, 1, starts="episode").replay, [30])
    streams.append(21)
    with pytest.raises(ReplayTooSmall, match="expected an episode that began at least 4 rows ago"):
        streams.replay.sample(1, 4, rng())


@pytest.mark.parametrize(("batch", "length"), [(0, 3), (2, 0)])
def test_an_empty_batch_is_refused(batch: int, length: int) -> None:
    streams = make()
    streams.append(9)
    with pytest.raises(DataConfigError, match="expected at least 1, got batch"):
        streams.replay.sample(batch, length, rng())
    with pytest.raises(DataConfigError, match="purpose: expected one of"):
        streams.replay.sample(1, 1, rng(), purpose="other")  # type: ignore[arg-type]


def test_bytes_are_counted() -> None:
    # place 2 * 4, image 6, action 8, reward 4, five flags
    assert SPEC.bytes_per_row == 8 + 6 + 8 + 4 + 5
    assert WITH_STATE.bytes_per_row == SPEC.bytes_per_row + 8 + 2
    replay = make(20, 2).replay
    assert replay.bytes_per_row == 31
    assert replay.nbytes == 20 * 2 * 31
    assert replay.nbytes == sum(values.nbytes for values in replay._storage.arrays.values())


def test_a_replay_that_does_not_fit_is_refused_before_it_is_made() -> None:
    spec = RowSpec(obs={"image": ArraySpec((64, 64, 3), "uint8")}, action=ArraySpec((), "int64"))
    config = ReplayConfig(capacity=10**9, max_bytes=2**30)
    words = r"expected at most 1 GiB, capacity 1000000000 rows need 1.15e\+04 GiB: lower"
    with pytest.raises(MemoryBudget, match=words) as error:
        Replay(spec, config, num_workers=4)
    assert "set replay.storage memmap" in str(error.value)
    exact = ReplayConfig(capacity=100, max_bytes=100 * spec.bytes_per_row)
    assert len(Replay(spec, exact, num_workers=1)) == 0


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"capacity": 0}, "capacity"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"storage": "disk"}, "storage"),
        ({"replay_state": "none"}, "replay_state"),
        ({"starts": "all"}, "starts"),
        ({"weights": "per"}, "weights"),
        ({"burn_in": 3}, "burn_in"),
        ({"replay_state": "burn_in"}, "burn_in"),
        ({"replay_state": "burn_in", "burn_in": -1}, "burn_in"),
        ({"replay_state": "stored", "burn_in": -1}, "burn_in"),
    ],
)
def test_settings_out_of_their_range_are_refused(settings: Any, key: str) -> None:
    with pytest.raises(DataConfigError, match=rf"replay\.{key}: expected"):
        ReplayConfig(**settings)


def test_settings_that_do_not_fit_the_rows_are_refused() -> None:
    def attempt(spec: RowSpec = SPEC, workers: int = 2, **settings: Any) -> Any:
        files = {key: settings.pop(key) for key in ("folder", "spare") if key in settings}
        config = ReplayConfig(**{"capacity": 20, **settings})
        return Replay(spec, config, num_workers=workers, **files)

    for wrong, words in (
        ({"workers": 11}, "at least 2 rows for each of 11 workers, got 20"),
        ({"workers": 0}, "at least 2 rows for each of 0"),
        ({"storage": "memmap"}, "expected a folder with storage 'memmap'"),
        ({"folder": "somewhere"}, "expected a folder with storage 'memmap' and none without"),
        ({"spare": 5}, "spare: expected at least 1 with storage 'memmap' and none without, got 5"),
        ({"storage": "memmap", "folder": "x", "spare": 0}, "spare: expected at least 1 .* got 0"),
        ({"replay_state": "stored"}, "got none with 'stored'"),
        ({"spec": WITH_STATE}, "'h', 'half'.* with 'zero'"),
    ):
        with pytest.raises(DataConfigError, match=words):
            attempt(**wrong)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"obs": {"x": ArraySpec((0,), "float32")}}, "obs/x: expected at least one number per row"),
        ({"obs": {"x": ArraySpec((1,), "complex64")}}, "obs/x: expected booleans, integers or"),
        ({"obs": {}, "state": {"h": ArraySpec((1,), "int64")}}, "state/h: expected a floating"),
    ],
)
def test_rows_that_cannot_be_kept_are_refused(spec: Any, words: str) -> None:
    with pytest.raises(SpecMismatch, match=words):
        RowSpec(action=ArraySpec((), "int64"), **spec)
