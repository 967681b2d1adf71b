"""DQN replay: frames are stacked within a game, and no more is unpacked than was asked for."""

import gzip
import pickle
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statewise.data import EpisodeDataset, errors
from statewise.data.dqn_replay import read_dqn_replay

Arrays = dict[str, np.ndarray[Any, Any]]


def write(folder: Path, number: int, arrays: Arrays) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for field, values in arrays.items():
        with gzip.open(path(folder, field, number), "wb", compresslevel=1) as stream:
            np.save(stream, values)


def path(folder: Path, field: str, number: int = 0) -> Path:
    return folder / f"$store$_{field}_ckpt.{number}.gz"


def arrays(terminal: list[int], *, side: int = 3, seed: int = 0) -> Arrays:
    """Return a log whose frames are all different from 0."""
    generator, n = np.random.default_rng(seed), len(terminal)
    return {
        "observation": generator.integers(1, 256, (n, side, side), np.uint8),
        "action": generator.integers(0, 4, n, np.int32),
        "reward": generator.integers(-1, 2, n).astype(np.float32),
        "terminal": np.array(terminal, np.uint8),
    }


def stacked_slowly(frames: np.ndarray[Any, Any], first: int, step: int, stack: int) -> Any:
    """Return the observation at a step by going back one frame at a time."""
    out = np.zeros((stack, *frames.shape[1:]), np.uint8)
    for back in range(stack):
        if step - back >= first:
            out[stack - 1 - back] = frames[step - back]
    return out


def read(folder: Path, **fields: Any) -> Any:
    return read_dqn_replay(folder, **{"max_steps": 1000, "num_actions": 4, **fields})


def test_games_are_cut_after_their_end_and_the_open_one_is_dropped(tmp_path: Path) -> None:
    log = arrays([0, 0, 1, 1, 0, 1, 0])
    write(tmp_path, 0, log)
    dataset = EpisodeDataset(read(tmp_path))
    assert dataset.lengths.tolist() == [3, 1, 2]
    assert dataset.terminated.all()
    assert not dataset.truncated.any()
    assert not dataset.has_final.any()
    episodes = list(dataset.episodes())
    np.testing.assert_array_equal(np.concatenate([e.actions for e in episodes]), log["action"][:6])
    np.testing.assert_array_equal(np.concatenate([e.rewards for e in episodes]), log["reward"][:6])
    assert episodes[0].actions.dtype == np.int64
    assert dataset.info.obs_specs["obs"].shape == episodes[0].observations["obs"].shape[1:]
    assert dataset.info.action_spec is not None
    assert dataset.info.action_spec.num_choices == (4,)


@settings(max_examples=30, deadline=None)
@given(
    terminal=st.lists(st.integers(0, 1), min_size=1, max_size=12),
    stack=st.integers(1, 5),
    window=st.tuples(st.integers(0, 12), st.integers(0, 12)),
)
def test_stacks_equal_those_of_a_loop_and_never_cross_the_end_of_a_game(
    tmp_path_factory: pytest.TempPathFactory, terminal: list[int], stack: int, window: Any
) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = arrays(terminal)
    write(folder, 0, log)
    source = read(folder, stack=stack, fragments="keep")
    assert source.lengths.sum() == len(terminal)
    first = 0
    for index, steps in enumerate(source.lengths.tolist()):
        begin, end = min(window), min(max(window), steps)
        found = source.read("observations/obs", index, min(begin, end), max(window))
        assert len(found) == max(0, end - min(begin, end))
        for row, step in enumerate(range(min(begin, end), end)):
            wanted = stacked_slowly(log["observation"], first, first + step, stack)
            np.testing.assert_array_equal(found[row], wanted)
        first += steps


def test_parts_of_games_at_the_edges_are_dropped_or_kept(tmp_path: Path) -> None:
    write(tmp_path, 0, arrays([0, 1, 0], seed=0))
    write(tmp_path, 7, arrays([0, 0, 1, 0, 1, 0], seed=1))
    assert read(tmp_path).lengths.tolist() == [2, 2]
    assert read(tmp_path, checkpoints=[7]).lengths.tolist() == [2]
    kept = read(tmp_path, fragments="keep")
    assert kept.lengths.tolist() == [2, 1, 3, 2, 1]
    assert kept.truncated.tolist() == [False, True, False, False, True]
    # The first game of checkpoint 7 starts with zeros, not with frames of checkpoint 0.
    assert (kept.read("observations/obs", 2, 0, 1)[0, :3] == 0).all()
    assert (kept.read("observations/obs", 2, 0, 1)[0, 3] != 0).all()


def test_checkpoints_come_in_the_order_asked_for_with_equal_shares(tmp_path: Path) -> None:
    logs = {number: arrays([1] * 6, seed=number) for number in (0, 3, 12)}
    for number, log in logs.items():
        write(tmp_path / "replay_logs", number, log)
    source = read(tmp_path, checkpoints=[12, 3], max_steps=5)
    actions = [int(source.read("actions", i, 0, 1)[0]) for i in range(len(source.lengths))]
    # All of a checkpoint but its first game, which may have begun before.
    wanted = [logs[12]["action"][1], logs[3]["action"][1]]
    assert actions == wanted
    assert source.info.generator == {"checkpoints": [12, 3], "steps": [2, 2]}
    assert read(tmp_path, max_steps=18).info.generator["checkpoints"] == [0, 3, 12]


def test_no_more_frames_are_unpacked_than_asked_for(tmp_path: Path) -> None:
    steps, side = 4000, 84
    log = arrays([1] * steps, side=1)
    log["observation"] = np.zeros((steps, side, side), np.uint8)
    write(tmp_path, 0, log)
    del log
    tracemalloc.start()
    source = read(tmp_path, max_steps=100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source.lengths) == 100
    asked = 100 * side * side
    assert peak < asked + 2**22  # the blocks of gzip and numpy; all frames are 28 MB


def test_more_memory_than_allowed_is_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    write(tmp_path, 0, arrays([1] * 10))
    path(tmp_path, "observation").write_bytes(path(tmp_path, "observation").read_bytes()[:-8])
    per_step = 9 + 8 + 4
    with pytest.raises(errors.MemoryBudget, match="ask for max_steps=3, or raise memory_limit"):
        read(tmp_path, memory_limit=per_step * 4 - 1)
    assert read(tmp_path, memory_limit=per_step * 4, max_steps=4).lengths.sum() == 4


def damaged(field: str, values: Any) -> Any:
    def damage(folder: Path) -> None:
        write(folder, 0, {field: np.asarray(values)})

    return damage


def cut(field: str, count: int) -> Any:
    def damage(folder: Path) -> None:
        file = path(folder, field)
        file.write_bytes(file.read_bytes()[:count])

    return damage


def raw(field: str, content: bytes) -> Any:
    return lambda folder: path(folder, field).write_bytes(gzip.compress(content))


def flipped(folder: Path) -> None:
    """Change the checksum at the end of the gzip."""
    file = path(folder, "observation")
    content = bytearray(file.read_bytes())
    content[-8] ^= 1
    file.write_bytes(bytes(content))


def with_more(folder: Path) -> None:
    file = path(folder, "reward")
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()) + b"more"))


def objects(folder: Path) -> None:
    with gzip.open(path(folder, "action"), "wb") as stream:
        np.save(stream, np.array([{}] * 6), allow_pickle=True)


CASES: dict[str, tuple[Any, type[errors.DatasetError], str]] = {
    "fewer rewards": (
        damaged("reward", np.zeros(5)),
        errors.LengthMismatch,
        "reward_ckpt.0.gz: reward: expected 6 rows as in observation, got 5",
    ),
    "more ends": (
        damaged("terminal", np.zeros(7, np.uint8)),
        errors.LengthMismatch,
        "terminal_ckpt.0.gz: terminal: expected 6 rows as in observation, got 7",
    ),
    "a truncated file of frames": (
        cut("observation", 90),
        errors.DatasetCorrupt,
        "observation_ckpt.0.gz: expected a whole gzip'ed array of numpy, got:",
    ),
    "a truncated file of actions": (
        cut("action", -10),
        errors.DatasetCorrupt,
        "action_ckpt.0.gz: expected a whole gzip'ed array of numpy, got:",
    ),
    "a wrong checksum": (
        flipped,
        errors.DatasetCorrupt,
        "observation_ckpt.0.gz: expected a whole gzip'ed array of numpy, got: CRC check failed",
    ),
    "bytes after the array": (
        with_more,
        errors.DatasetCorrupt,
        "reward_ckpt.0.gz: expected 6 rows, got more",
    ),
    "too few bytes": (
        lambda folder: path(folder, "reward").write_bytes(
            gzip.compress(gzip.decompress(path(folder, "reward").read_bytes())[:-4])
        ),
        errors.DatasetCorrupt,
        "reward_ckpt.0.gz: expected 24 bytes of numbers, got 20",
    ),
    "no gzip": (
        lambda folder: path(folder, "action").write_bytes(b"version https://git-lfs"),
        errors.DatasetCorrupt,
        "action_ckpt.0.gz: expected a whole gzip'ed array of numpy, got: Not a gzipped file",
    ),
    "no array": (
        raw("action", b"text"),
        errors.DatasetCorrupt,
        "action_ckpt.0.gz: expected a whole gzip'ed array of numpy, got:",
    ),
    "Python objects": (
        objects,
        errors.PickleRefused,
        "action_ckpt.0.gz: expected numbers, got Python objects: it could run any code",
    ),
    "a pickle": (
        raw("action", pickle.dumps([1, 2])),
        errors.PickleRefused,
        "action_ckpt.0.gz: expected an array of numpy, got a pickle",
    ),
    "frames of floats": (
        damaged("observation", np.zeros((6, 3, 3), np.float32)),
        errors.SpecMismatch,
        "observation_ckpt.0.gz: observation: expected (N, height, width) uint8, got (6, 3, 3)"
        " float32",
    ),
    "frames of 16 bits": (
        damaged("observation", np.zeros((6, 3, 3), np.uint16)),
        errors.SpecMismatch,
        "observation_ckpt.0.gz: observation: expected uint8, got uint16",
    ),
    "frames in Fortran order": (
        damaged("observation", np.asfortranarray(np.zeros((6, 3, 4), np.uint8))),
        errors.SpecMismatch,
        "observation_ckpt.0.gz: expected rows one after the other, got Fortran order",
    ),
    "stacked frames": (
        damaged("observation", np.zeros((6, 3, 3, 4), np.uint8)),
        errors.SpecMismatch,
        "observation_ckpt.0.gz: observation: expected (N, height, width) uint8",
    ),
    "actions that are no whole numbers": (
        damaged("action", np.full(6, 0.5)),
        errors.SpecMismatch,
        "action_ckpt.0.gz: action: expected (N,) of kind i or u, got (6,) float64",
    ),
    "an action that the game does not have": (
        damaged("action", np.array([0, 1, 4, 0, 0, 0])),
        errors.ActionRange,
        "action_ckpt.0.gz: actions[2]: expected whole numbers from 0 below 4, got 4",
    ),
    "a reward that is NaN": (
        damaged("reward", np.array([0, np.nan, 0, 0, 0, 0])),
        errors.NonFinite,
        "reward_ckpt.0.gz: reward[1]: expected finite numbers",
    ),
    "ends that are no flags": (
        damaged("terminal", np.array([0, 0, 0, 3, 0, 0])),
        errors.ShapeError,
        "terminal_ckpt.0.gz: terminal[3]: expected flags 0 or 1, got 3",
    ),
    "no file of rewards": (
        lambda folder: path(folder, "reward").unlink(),
        errors.DatasetNotFound,
        "reward_ckpt.0.gz",
    ),
    "no file of frames": (
        lambda folder: path(folder, "observation").unlink(),
        errors.DatasetNotFound,
        "expected $store$_observation_ckpt.K.gz, got none",
    ),
    "no end": (
        damaged("terminal", np.zeros(6)),
        errors.SpecMismatch,
        "terminal_ckpt.0.gz: terminal: expected (N,) of kind b or i or u, got (6,) float64",
    ),
    "no whole game": (
        damaged("terminal", np.zeros(6, np.bool_)),
        errors.EmptyDataset,
        "expected an episode in 6 steps: raise max_steps, or read with fragments='keep'",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_log_with_this_is_refused(tmp_path: Path, case: str) -> None:
    damage, kind, message = CASES[case]
    write(tmp_path, 0, arrays([0, 1, 0, 1, 0, 1]))
    damage(tmp_path)
    with pytest.raises(kind, match=re.escape(message)) as caught:
        read(tmp_path)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_frames_of_two_sizes_are_refused(tmp_path: Path) -> None:
    write(tmp_path, 0, arrays([1, 1]))
    write(tmp_path, 1, arrays([1, 1], side=4))
    with pytest.raises(errors.SpecMismatch, match=re.escape("ckpt.1.gz: observation: expected fr")):
        read(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_steps": 0}, "max_steps: expected at least 1, got 0"),
        ({"stack": 0}, "stack: expected at least 1, got 0"),
        ({"memory_limit": 0}, "memory_limit: expected at least 1, got 0"),
        ({"checkpoints": []}, "checkpoints: expected one or more different numbers"),
        ({"checkpoints": [0, 0]}, "checkpoints: expected one or more different numbers"),
        ({"checkpoints": [0, 1], "max_steps": 1}, "expected a step of each of 2 checkpoints"),
        ({"checkpoints": [5]}, "expected checkpoint 5, got 0, 1: choose one of these"),
        ({"fragments": "mend"}, "fragments: expected one of drop, keep, got 'mend'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    for number in (0, 1):
        write(tmp_path, number, arrays([1, 1]))
    with pytest.raises(errors.DatasetError, match=message):
        read(tmp_path, **fields)
