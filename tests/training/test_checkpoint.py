import contextlib
import errno
import json
import math
import os
import resource
import shutil
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor

from statewise.training import checkpoint as checkpoint_module
from statewise.training import run as run_module
from statewise.training.checkpoint import (
    DTYPES,
    FORMAT,
    CheckpointError,
    CheckpointWarning,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)


def bits(tensor: Tensor) -> list[int]:
    return tensor.clone(memory_format=torch.contiguous_format).untyped_storage().tolist()


def same(a: Any, b: Any) -> bool:
    """Equality of nested states in type, dtype, shape and bits."""
    if isinstance(a, Tensor):
        if not isinstance(b, Tensor) or (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        return bits(a) == bits(b)
    if isinstance(a, np.ndarray):
        if not isinstance(b, np.ndarray) or (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        return a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return type(b) is float and struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, (list, tuple)):
        return type(b) is list and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and bool(a == b)


def small(step: int = 0) -> dict[str, Any]:
    return {"weight": torch.arange(4.0) + step, "step": step}


def save(folder: Path, step: int, keep: int = 10) -> Path:
    return save_checkpoint(folder, step, small(step), "seed: 0\n", keep)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


arrays = npst.arrays(
    dtype=st.one_of(
        npst.boolean_dtypes(),
        npst.integer_dtypes(endianness="="),
        npst.unsigned_integer_dtypes(endianness="="),
        npst.floating_dtypes(endianness="=", sizes=(16, 32, 64)),
    ),
    shape=npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**200), max_value=2**200),
    st.floats(allow_nan=False),
    st.just(math.nan),
    st.text(max_size=8),
    arrays,
    arrays.map(torch.from_numpy),
)
keys = st.one_of(
    st.text(max_size=5),
    st.sampled_from(["$tensor", "$float", "$items", "a/b", "a", "b", "__metadata__"]),
    st.integers(),
)
states = st.dictionaries(
    keys,
    st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.tuples(inner, inner),
            st.dictionaries(keys, inner, max_size=4),
        ),
        max_leaves=12,
    ),
    max_size=5,
)


@settings(max_examples=100, deadline=None)
@given(state=states)
def test_what_is_loaded_equals_what_was_saved(
    state: dict[Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    assert same(state, load_checkpoint(save_checkpoint(folder, 1, state, "", 1)))
    shutil.rmtree(folder)


@pytest.mark.parametrize("dtype", sorted(DTYPES, key=str), ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)], ids=str)
def test_every_dtype_and_shape_survives(
    dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path
) -> None:
    tensor = (torch.arange(6)[: math.prod(shape)].reshape(shape) % 2).to(dtype)
    assert same({"x": tensor}, load_checkpoint(save_checkpoint(tmp_path, 0, {"x": tensor}, "", 1)))


def test_views_and_shared_storage_are_saved_as_the_values_they_show(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {"base": base, "again": base, "column": base[:, 1], "turned": base.T}
    loaded = load_checkpoint(save_checkpoint(tmp_path, 0, state, "", 1))
    assert same(state, loaded)
    loaded["base"].zero_()
    assert loaded["again"].sum() == 66


def test_parameters_come_back_without_gradient_and_arrays_writable(tmp_path: Path) -> None:
    state = {"p": torch.nn.Parameter(torch.ones(2)), "a": np.ones(2), "n": np.float32(0.1)}
    loaded = load_checkpoint(save_checkpoint(tmp_path, 0, state, "", 1))
    assert not loaded["p"].requires_grad
    loaded["a"] += 1
    assert loaded["a"].tolist() == [2, 2]
    assert loaded["n"] == np.float32(0.1)


def test_an_optimiser_continues_bit_for_bit(tmp_path: Path) -> None:
    def train(steps: int, parameter: Tensor, optimiser: torch.optim.Optimizer) -> None:
        for _ in range(steps):
            optimiser.zero_grad()
            (parameter - 3).square().sum().backward()
            optimiser.step()

    a = torch.nn.Parameter(torch.arange(3.0))
    adam = torch.optim.Adam([a], lr=0.1)
    train(5, a, adam)
    path = save_checkpoint(tmp_path, 5, {"a": a, "adam": adam.state_dict()}, "", 1)
    train(5, a, adam)

    loaded = load_checkpoint(path)
    b = torch.nn.Parameter(loaded["a"])
    resumed = torch.optim.Adam([b], lr=0.1)
    resumed.load_state_dict(loaded["adam"])
    train(5, b, resumed)
    assert torch.equal(a, b)


def test_a_numpy_generator_continues_where_it_was(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    rng.random(3)
    path = save_checkpoint(tmp_path, 0, {"rng": dict(rng.bit_generator.state)}, "", 1)
    other = np.random.default_rng(0)
    other.bit_generator.state = load_checkpoint(path)["rng"]
    assert other.random(5).tolist() == rng.random(5).tolist()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": torch.zeros(1, dtype=torch.complex64)}}, "^/a/b: .*complex64"),
        ({"a": np.zeros(1, dtype=complex)}, "^/a: .*complex128"),
        ({"a": np.array(["x"])}, "^/a: .* got <U1$"),
        ({"a": np.zeros(1, dtype=">f4")}, "^/a: .* got >f4$"),
        ({"a": [1, {2}]}, "^/a/1: .* got set$"),
        ({"a": {1.5: 0}}, "^/a: expected keys of text or int, got 1.5$"),
        ({"a": torch.eye(2).to_sparse()}, "sparse"),
    ],
    ids=[
        "complex tensor",
        "complex array",
        "text array",
        "foreign byte order",
        "set",
        "float key",
        "sparse",
    ],
)
def test_what_cannot_be_saved_is_named_with_its_path(
    state: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(tmp_path, 0, state, "", 1)
    assert names(tmp_path) == []


def test_a_checkpoint_holds_three_files_with_format_and_step(tmp_path: Path) -> None:
    path = save(tmp_path, 12)
    assert names(path) == ["config.yaml", "state.json", "tensors.safetensors"]
    content = json.loads((path / "state.json").read_text())["content"]
    assert (content["format"], content["step"]) == (FORMAT, 12)
    assert (path / "config.yaml").read_text() == "seed: 0\n"


def test_the_oldest_beyond_keep_are_removed(tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["10", "11"]


def test_steps_given_up_by_going_back_are_removed_first(tmp_path: Path) -> None:
    for step in (10, 20, 90):
        save(tmp_path, step)
    save(tmp_path, 30, keep=3)
    assert names(tmp_path) == ["10", "20", "30"]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5)
    save_checkpoint(tmp_path, 5, {"new": 1}, "", 3)
    assert load_checkpoint(tmp_path / "5") == {"new": 1}
    assert names(tmp_path) == ["5"]


def test_a_full_disk_leaves_the_older_checkpoints_and_says_so_in_one_line(tmp_path: Path) -> None:
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # the system then refuses to write
    try:
        with pytest.raises(CheckpointError, match="older checkpoints are intact") as caught:
            save_checkpoint(tmp_path, 2, {"big": torch.zeros(100_000)}, "", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = str(caught.value)
    assert "\n" not in message
    assert f"{tmp_path / '2'} was not written" in message
    assert "on the file system mounted at /" in message
    assert names(tmp_path) == ["1"]
    assert newest_checkpoint(tmp_path) == tmp_path / "1"


@pytest.mark.parametrize("fails_at", range(1, 6))
def test_a_failure_at_any_sync_leaves_the_old_save_of_the_step(
    fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 5)
    fsync, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(run_module.os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_checkpoint(tmp_path, 5, {"new": 1}, "", 1)
    monkeypatch.undo()
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    # The last sync comes after the rename: the new save is then in place.
    assert load_checkpoint(newest).get("new") == (1 if fails_at == 5 else None)


def test_a_failed_rename_puts_the_old_save_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 5)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(CheckpointError, match="Input/output error"):
        save_checkpoint(tmp_path, 5, {"new": 1}, "", 1)
    assert names(tmp_path) == ["5"]
    assert load_checkpoint(tmp_path / "5")["step"] == 5


def test_a_process_killed_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    save(tmp_path, 4)
    save(tmp_path, 5).rename(tmp_path / ".5.old")
    newest = newest_checkpoint(tmp_path)
    assert newest == tmp_path / ".5.old"
    assert load_checkpoint(newest)["step"] == 5
    save(tmp_path, 6)
    assert names(tmp_path) == ["4", "5", "6"]


def test_leftovers_of_dead_processes_are_removed_and_those_of_living_ones_stay(
    tmp_path: Path,
) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    alive = os.getppid()
    (tmp_path / f".7.{dead}.tmp").mkdir()
    (tmp_path / f".7.{alive}.tmp").mkdir()
    (tmp_path / ".6.old").mkdir()
    save(tmp_path, 6)
    save(tmp_path, 8)
    assert names(tmp_path) == [f".7.{alive}.tmp", "6", "8"]


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "config.yaml"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_damaged_newest_checkpoint_is_skipped_with_one_warning(
    file: str, damage: str, tmp_path: Path
) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / file
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-3])
    elif damage == "flip":
        content[-3] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    with pytest.warns(CheckpointWarning, match=f"skipped: .*{file}") as caught:
        assert newest_checkpoint(tmp_path) == tmp_path / "1"
    assert len(caught) == 1
    with pytest.raises(CheckpointError, match=file):
        load_checkpoint(tmp_path / "2")


@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_no_flipped_bit_changes_what_is_loaded(
    position: int, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("checkpoints")
    path = save(folder, 3)
    files = sorted(path.iterdir())
    file = files[position % len(files)]
    content = bytearray(file.read_bytes())
    content[position % len(content)] ^= 1 << bit
    file.write_bytes(content)
    # A blank of the JSON layout that became another blank is the only harmless change.
    with contextlib.suppress(CheckpointError):
        assert same(small(3), load_checkpoint(path))
    shutil.rmtree(folder)


def test_another_format_is_refused_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_module, "FORMAT", FORMAT - 1)
    path = save(tmp_path, 1)
    monkeypatch.undo()
    found = f"has checkpoint format {FORMAT - 1}, expected {FORMAT}"
    with pytest.raises(CheckpointError, match=found):
        load_checkpoint(path)


def test_there_is_no_newest_checkpoint_in_an_empty_or_missing_folder(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert newest_checkpoint(tmp_path) is None
        assert newest_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize(("step", "keep"), [(-1, 1), (0, 0)])
def test_a_negative_step_and_keeping_none_are_refused(step: int, keep: int, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected step >= 0 and keep >= 1"):
        save(tmp_path, step, keep)
