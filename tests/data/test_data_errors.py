"""Everything that a loader must refuse: one broken file per row, its error and its words."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from statewise.data import (
    ArraySpec,
    DatasetInfo,
    EpisodeDataset,
    ReadConfig,
    WindowConfig,
    WindowSampler,
    errors,
    load_dataset,
    read_d4rl,
    read_npz,
    write_npz,
)
from statewise.data.checks import (
    check_actions,
    check_env,
    check_return_settings,
    check_spec,
    check_window,
)
from statewise.data.files import write_npz_arrays
from tests.data.episodes import Arrays, dataset_of, flat_arrays, random_episode, write_hdf5

BOX = ArraySpec(
    shape=(2,), dtype="float32", low=-np.ones(2, np.float32), high=np.ones(2, np.float32)
)
Change = Callable[[Arrays], None]


def put(key: str, row: int, value: float) -> Change:
    def change(arrays: Arrays) -> None:
        arrays[key][row] = value

    return change


def drop(key: str) -> Change:
    return lambda arrays: arrays.__delitem__(key)


def rename(old: str, new: str) -> Change:
    return lambda arrays: arrays.update({new: arrays.pop(old)})


def cast(key: str, dtype: Any) -> Change:
    return lambda arrays: arrays.update({key: arrays[key].astype(dtype)})


def cut(key: str, rows: int) -> Change:
    return lambda arrays: arrays.update({key: arrays[key][:rows]})


def unmark(arrays: Arrays) -> None:
    arrays["timeouts"][:] = False


def shuffle(arrays: Arrays) -> None:
    arrays["next_observations"] = arrays["next_observations"][::-1].copy()


def empty(arrays: Arrays) -> None:
    arrays.update({key: values[:0] for key, values in arrays.items()})


def no_end(arrays: Arrays) -> None:
    unmark(arrays)
    del arrays["next_observations"]


BROKEN: list[tuple[str, Change, dict[str, Any], type[errors.DatasetError], str]] = [
    (
        "a key under another name",
        rename("terminals", "terminations"),
        {},
        errors.MissingKey,
        "terminals: expected this key, got .*: rename 'terminations'",
    ),
    (
        "observations under another name",
        rename("observations", "obs"),
        {},
        errors.MissingKey,
        "observations: expected this key, got .*: rename 'obs'",
    ),
    ("a missing key", drop("rewards"), {}, errors.MissingKey, "rewards: .*: write it"),
    (
        "fewer actions",
        cut("actions", 19),
        {},
        errors.LengthMismatch,
        "actions: expected 20 rows as in observations, got 19",
    ),
    (
        "fewer timeouts",
        cut("timeouts", 3),
        {},
        errors.LengthMismatch,
        "timeouts: expected 20 rows as in observations, got 3",
    ),
    (
        "shuffled next observations",
        shuffle,
        {},
        errors.Misaligned,
        r"next_observations\[0\]: expected the observations of the next step, got 1[0-6] of 16",
    ),
    (
        "a NaN in observations",
        put("observations", 7, np.nan),
        {},
        errors.NonFinite,
        r"observations\[7\]: expected finite numbers, got NaN or infinity in 1 rows",
    ),
    (
        "infinite actions",
        put("actions", 4, np.inf),
        {},
        errors.NonFinite,
        r"actions\[4\]: .* in 1 rows",
    ),
    ("a NaN reward", put("rewards", 19, np.nan), {}, errors.NonFinite, r"rewards\[19\]: "),
    (
        "another environment's actions",
        drop("none"),
        {"action_spec": BOX._replace(shape=(3,))},
        errors.SpecMismatch,
        r"actions: expected rows of shape \(3,\) and dtype float32, got \(2,\) and float32",
    ),
    (
        "another task",
        drop("none"),
        {"task": "hopper-medium-v2"},
        errors.SpecMismatch,
        r"actions: expected rows of shape \(3,\)",
    ),
    (
        "complex observations",
        cast("observations", np.complex64),
        {},
        errors.SpecMismatch,
        "observations: expected booleans, integers or real numbers, got dtype complex64",
    ),
    (
        "observations of text",
        cast("observations", "S3"),
        {},
        errors.SpecMismatch,
        "observations: .* got dtype .S3",
    ),
    (
        "actions out of bounds",
        put("actions", 6, 1.5),
        {"action_spec": BOX},
        errors.ActionRange,
        r"actions\[6\]: expected actions within their bounds, got an excess of 0.5 \(1 rows\)",
    ),
    (
        "a choice too high",
        lambda a: a.update(actions=np.arange(20) % 4),
        {"action_spec": ArraySpec(shape=(), dtype="int64", num_choices=(3,))},
        errors.ActionRange,
        r"actions\[3\]: expected whole numbers from 0 below 3, got 3",
    ),
    (
        "a negative choice",
        lambda a: a.update(actions=np.arange(20) - 1),
        {},
        errors.ActionRange,
        r"actions\[0\]: expected whole numbers from 0, got -1",
    ),
    (
        "rewards of two columns",
        lambda a: a.update(rewards=np.ones((20, 2), np.float32)),
        {},
        errors.ShapeError,
        r"rewards: expected shape \(N,\) or \(N, 1\), got \(20, 2\)",
    ),
    (
        "a flag of 2",
        lambda a: a.update(terminals=np.arange(20) // 19 * 2),
        {},
        errors.ShapeError,
        r"terminals\[19\]: expected flags 0 or 1, got 2",
    ),
    (
        "no end anywhere",
        no_end,
        {},
        errors.NoEpisodeBoundary,
        "timeouts: expected terminals or timeouts somewhere, got none: give max_episode_steps",
    ),
    (
        "a long episode",
        drop("none"),
        {"max_episode_steps": 4},
        errors.EpisodeTooLong,
        r"episode\[0\]: expected at most 4 steps, got 5",
    ),
    ("no steps", empty, {}, errors.EmptyDataset, "rewards: expected at least one step, got none"),
    (
        "no episode that ends",
        no_end,
        {"max_episode_steps": 30},
        errors.EmptyDataset,
        "expected at least one episode, got none: no episode ends",
    ),
]


@pytest.mark.parametrize("suffix", ["hdf5", "npz"])
@pytest.mark.parametrize(
    ("change", "settings", "error", "message"),
    [row[1:] for row in BROKEN],
    ids=[row[0] for row in BROKEN],
)
def test_a_broken_file_is_refused_with_its_name_and_place(
    tmp_path: Path,
    suffix: str,
    change: Change,
    settings: dict[str, Any],
    error: type[errors.DatasetError],
    message: str,
) -> None:
    if suffix == "npz" and "task" in settings:
        error, message = errors.DataConfigError, "task: expected none for npz"
    arrays = flat_arrays() | {"none": np.zeros(20)}
    change(arrays)
    path = tmp_path / f"broken.{suffix}"
    if suffix == "npz":
        write_npz_arrays(path, arrays)
    else:
        write_hdf5(path, arrays)
    with pytest.raises(error) as caught:
        load_dataset(path, config=ReadConfig(**settings))
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert re.search(message, text), text
    assert "\n" not in text


def test_the_row_of_an_error_counts_from_the_start_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("statewise.data.flat_read._BLOCK", 30)
    arrays = flat_arrays()
    arrays["observations"][[11, 17]] = np.nan
    path = write_hdf5(tmp_path / "a.hdf5", arrays)
    with pytest.raises(errors.NonFinite, match=r"observations\[11\]: .* in 2 rows"):
        read_d4rl(path)


def test_a_lazy_source_refuses_broken_rows_when_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("statewise.data.flat_read._LOOK", 5)
    arrays = flat_arrays()
    arrays["observations"][12] = np.nan
    arrays["actions"][17] = 3
    path = write_hdf5(tmp_path / "a.hdf5", arrays)
    dataset = read_d4rl(path, mode="lazy", config=ReadConfig(action_spec=BOX))
    assert len(dataset.episode(0)) == 5
    with pytest.raises(errors.NonFinite, match=r"a\.hdf5: observations\[12\]"):
        dataset.episode(2)
    with pytest.raises(errors.ActionRange, match=r"a\.hdf5: actions\[17\]"):
        dataset.episode(3)


def test_a_few_misaligned_steps_are_allowed(tmp_path: Path) -> None:
    arrays = flat_arrays(2000, end_every=20)
    arrays["next_observations"][5] += 1
    assert len(read_d4rl(write_hdf5(tmp_path / "a.hdf5", arrays))) == 100
    arrays["next_observations"][6] += 1
    with pytest.raises(errors.Misaligned, match=r"next_observations\[5\].* 2 of 1900"):
        read_d4rl(write_hdf5(tmp_path / "b.hdf5", arrays))


def test_an_action_off_by_rounding_warns_and_can_be_clipped(tmp_path: Path) -> None:
    arrays = flat_arrays()
    arrays["actions"][3] = 1 + 5e-4
    path = write_hdf5(tmp_path / "a.hdf5", arrays)
    with pytest.warns(errors.DatasetWarning, match="actions: 1 rows exceed their bounds"):
        kept = read_d4rl(path, config=ReadConfig(action_spec=BOX))
    assert kept.episode(0).actions[3].max() > 1
    arrays["actions"][3] = 2
    path = write_hdf5(tmp_path / "b.hdf5", arrays)
    for mode in ("memory", "lazy"):
        config = ReadConfig(action_spec=BOX, repair="clip_actions")
        clipped = read_d4rl(path, mode=mode, config=config)  # type: ignore[arg-type]
        assert clipped.episode(0).actions[3].tolist() == [1.0, 1.0]


def test_constant_entries_are_listed(tmp_path: Path) -> None:
    arrays = flat_arrays()
    for key in ("observations", "next_observations"):
        arrays[key][:, 1] = 4
    with pytest.warns(errors.DatasetWarning, match=r"observations/obs: 1 constant entries \(1\)"):
        read_d4rl(write_hdf5(tmp_path / "a.hdf5", arrays))


def test_steps_that_were_written_twice_are_told(tmp_path: Path) -> None:
    arrays = {key: np.concatenate([values, values]) for key, values in flat_arrays(10).items()}
    with pytest.warns(errors.DatasetWarning, match=r"episode\[2\]: 2 of 4 episodes repeat"):
        read_d4rl(write_hdf5(tmp_path / "a.hdf5", arrays))


@pytest.mark.parametrize("suffix", ["hdf5", "npz"])
def test_what_does_not_fit_suggests_to_read_lazily(tmp_path: Path, suffix: str) -> None:
    arrays = flat_arrays(1000)
    path = tmp_path / f"a.{suffix}"
    if suffix == "npz":
        write_npz_arrays(path, arrays)
    else:
        write_hdf5(path, arrays)
    with pytest.raises(errors.MemoryBudget, match=r"MiB: .*read with mode='lazy', or raise"):
        load_dataset(path, config=ReadConfig(memory_budget=10_000))
    assert len(load_dataset(path, config=ReadConfig(memory_budget=10**6))) == 200
    if suffix == "hdf5":
        lazy = load_dataset(path, mode="lazy", config=ReadConfig(memory_budget=10_000))
        assert len(lazy) == 200


# files that are not what they should be


def test_a_description_that_was_changed_is_corrupt(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.hdf5", flat_arrays(), statewise='{"env_id": 1}')
    with pytest.raises(errors.DatasetCorrupt, match=r"a\.hdf5: statewise: expected the descr"):
        read_d4rl(path)


# settings and single checks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_episode_steps": 0}, "max_episode_steps: expected at least 1, got 0"),
        ({"memory_budget": 0}, "memory_budget: expected at least 1, got 0"),
        ({"incomplete": "ignore"}, "incomplete: expected one of drop, keep, got 'ignore'"),
        ({"ends": "never"}, "ends: expected one of auto, flags, "),
        ({"infos": "some"}, "infos: expected one of keep, drop"),
        ({"repair": "all"}, "repair: expected one of none, clip_actions"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.DataConfigError, match=message):
        ReadConfig(**settings)


def test_an_unknown_task_suggests_near_ones(tmp_path: Path) -> None:
    path = write_hdf5(tmp_path / "a.hdf5", flat_arrays())
    with pytest.raises(errors.DataConfigError, match="did you mean hopper-medium-v2"):
        read_d4rl(path, config=ReadConfig(task="hoper-medium-v2"))


def test_npz_is_read_whole(tmp_path: Path) -> None:
    write_npz(dataset_of(3), tmp_path / "a.npz")
    with pytest.raises(errors.DataConfigError, match="mode: expected 'memory' for npz"):
        read_npz(tmp_path / "a.npz", mode="lazy")


def test_a_window_longer_than_every_episode_needs_padding() -> None:
    dataset, generator = dataset_of(3, 5), np.random.default_rng(0)
    with pytest.raises(errors.EmptyDataset, match="at least 6 steps, got at most 5"):
        WindowSampler(dataset, WindowConfig(length=6, padding="none"), generator)
    check_window(5, 5)


def test_data_of_another_environment_need_leave() -> None:
    check_env("Hopper-v2", "Hopper-v2")
    check_env(None, "Hopper-v2")
    with pytest.raises(errors.EnvMismatch, match="env_id: expected data of Hopper-v4, got Hopper"):
        check_env("Hopper-v2", "Hopper-v4")
    with pytest.warns(errors.DatasetWarning, match="the data are of Hopper-v2"):
        check_env("Hopper-v2", "Hopper-v4", mismatch="warn")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 0.0}, "scale: expected a finite number > 0, got 0.0"),
        ({"scale": -1.0}, "scale: "),
        ({"targets": []}, "targets: expected one or more finite returns"),
        ({"targets": [1.0, float("nan")]}, "targets: "),
        ({"discount": 0.0}, r"discount: expected a number in \(0, 1\], got 0.0"),
        ({"discount": 1.1}, "discount: "),
    ],
)
def test_return_conditioning_needs_usable_settings(settings: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"scale": 10.0, "targets": [1.0], "discount": 1.0}
    check_return_settings(**good)
    with pytest.raises(errors.DataConfigError, match=message):
        check_return_settings(**(good | settings))


def test_pictures_must_be_bytes_where_they_are_declared_so() -> None:
    spec = ArraySpec(shape=(4, 4, 3), dtype="uint8")
    check_spec("observations", (4, 4, 3), np.dtype(np.uint8), spec)
    for dtype in (np.float32, np.int64):
        with pytest.raises(errors.SpecMismatch, match="dtype uint8"):
            check_spec("observations", (4, 4, 3), np.dtype(dtype), spec)


def test_choices_must_be_whole_numbers() -> None:
    spec = ArraySpec(shape=(2,), dtype="int64", num_choices=(2, 3))
    assert check_actions(np.array([[1, 2], [0, 0]]), spec) == 0
    assert check_actions(np.array([[1.0, 2.0]]), spec) == 0
    with pytest.raises(errors.ActionRange, match=r"actions\[11\]: .* below 2, 3, got \[2 0\]"):
        check_actions(np.array([[1, 2], [2, 0]]), spec, offset=10)
    with pytest.raises(errors.ActionRange, match=r"actions\[0\]"):
        check_actions(np.array([[0.5, 0]]), spec)


# episodes made by a program


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rewards": np.zeros(0, np.float32)}, errors.EmptyDataset, r"episode\[1\] has no step"),
        (
            {"actions": np.zeros((3, 2), np.float32)},
            errors.LengthMismatch,
            r"episode\[1\]: expected 4 rows of actions, got 3",
        ),
        (
            {"observations": {"obs": np.zeros((6, 3), np.float32)}},
            errors.LengthMismatch,
            r"episode\[1\]: expected 4 or 5 rows of observations/obs, got 6",
        ),
        (
            {"observations": {"other": np.zeros((5, 3), np.float32)}},
            errors.SpecMismatch,
            r"episode\[1\]: expected the observations \['obs'\], got \['other'\]",
        ),
        (
            {"observations": {"obs": np.zeros((5, 2), np.float32)}},
            errors.SpecMismatch,
            r"observations/obs: expected rows of shape \(3,\)",
        ),
        (
            {"actions": np.zeros((4, 2), np.int64)},
            errors.SpecMismatch,
            "actions: expected rows .* dtype float32",
        ),
        (
            {"rewards": np.array([0, 1, np.nan, 1], np.float32)},
            errors.NonFinite,
            "rewards.*in 1 rows",
        ),
        (
            {"rewards": np.zeros((4, 2), np.float32)},
            errors.ShapeError,
            r"rewards: expected shape \(N,\) or \(N, 1\), got \(4, 2\)",
        ),
        ({"infos": {"x": np.zeros(9)}}, errors.LengthMismatch, "4 or 5 rows of infos/x, got 9"),
        ({"actions": np.full((4, 2), 2.0)}, errors.ActionRange, "excess of 1 "),
    ],
)
def test_episodes_that_contradict_each_other_are_refused(
    changes: dict[str, Any], error: type[errors.DatasetError], message: str
) -> None:
    good = random_episode(4)
    broken = type(good)(**{**vars(good), **changes})
    with pytest.raises(error, match=message):
        EpisodeDataset.from_episodes([good, broken], DatasetInfo(action_spec=BOX))


def test_a_final_observation_of_some_keys_only_is_refused() -> None:
    good = random_episode(4, keys=("a", "b"))
    observations = {"a": good.observations["a"], "b": good.observations["b"][:-1]}
    broken = type(good)(**{**vars(good), "observations": observations})
    with pytest.raises(errors.LengthMismatch, match="of every key or of none"):
        EpisodeDataset.from_episodes([broken])
    with pytest.raises(errors.EmptyDataset, match="at least one episode"):
        EpisodeDataset.from_episodes([])


def test_every_error_is_one_line_with_file_key_and_index() -> None:
    error = errors.DatasetError("expected a, got b", file="f", key="k", index=3, hint="do c")
    assert str(error) == "f: k[3]: expected a, got b: do c"
    assert isinstance(error, ValueError)
