"""Checkpoints: one folder per step that is either whole or not there.

    checkpoints/<step>/tensors.safetensors   every tensor and array, named by its path
    checkpoints/<step>/state.json            the rest, with references to the tensors
    checkpoints/<step>/config.yaml           the settings the state belongs to

Nothing is pickled. `state.json` is `{"checksum": ..., "content": {"format", "step",
"tensors_sha256", "config_sha256", "state"}}`. In "state", an object with one key that starts
with "$" stands for something JSON cannot say: `{"$tensor": name}`, `{"$array": name}`,
`{"$float": "nan"}`, and `{"$items": [[key, value], ...]}` for a dictionary whose keys are not
all text, or look like one of these.
"""

import hashlib
import json
import math
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from statewise.training.run import sync_folder, write_synced

FORMAT = 2
DTYPES = frozenset(
    {
        torch.bool,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    }
)
_LENGTH_BYTES = 8
_TENSORS, _STATE, _CONFIG = "tensors.safetensors", "state.json", "config.yaml"


class CheckpointError(ValueError):
    """A checkpoint cannot be written, or what was found is not a whole one."""


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was skipped, or an old one could not be removed."""


def _add_tensor(tensor: Tensor, path: str, tensors: dict[str, Tensor]) -> str:
    if tensor.layout != torch.strided or tensor.dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: expected a dense tensor of bool, integers or real numbers,"
            f" got {tensor.dtype}, {tensor.layout}"
        )
    name = path
    while name in tensors:  # the keys "a/b" and "a", "b" lead to the same path
        name += "'"
    # A copy: tensors that share storage would be refused, and views written with holes.
    tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return name


def _add_array(array: np.ndarray[Any, Any], path: str, tensors: dict[str, Tensor]) -> str:
    try:
        tensor = torch.from_numpy(array.copy())
    except (TypeError, ValueError):
        raise CheckpointError(
            f"{path}: expected a native array of bool, integers or real numbers, got {array.dtype}"
        ) from None
    return _add_tensor(tensor, path, tensors)


def _encode_dict(entries: dict[Any, Any], path: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    for key in entries:
        if not isinstance(key, (str, int)):
            raise CheckpointError(f"{path}: expected keys of text or int, got {key!r}")
    encoded = {key: _encode(entry, f"{path}/{key}", tensors) for key, entry in entries.items()}
    if all(isinstance(key, str) and not key.startswith("$") for key in entries):
        return encoded
    return {"$items": [[key, entry] for key, entry in encoded.items()]}


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Return `value` as JSON can hold it; tensors and arrays are added to `tensors`."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, Tensor):
        return {"$tensor": _add_tensor(value, path, tensors)}
    if isinstance(value, np.ndarray):
        return {"$array": _add_array(value, path, tensors)}
    if isinstance(value, (list, tuple)):
        return [_encode(entry, f"{path}/{i}", tensors) for i, entry in enumerate(value)]
    if isinstance(value, dict):
        return _encode_dict(value, path, tensors)
    raise CheckpointError(
        f"{path}: expected tensors, arrays, numbers, text, None, lists and dictionaries,"
        f" got {type(value).__name__}"
    )


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Invert `_encode`."""
    if isinstance(value, list):
        return [_decode(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$float": text}:
            return float(text)
        case {"$tensor": name}:
            return tensors[name]
        case {"$array": name}:
            return tensors[name].numpy()
        case {"$items": items}:
            return {key: _decode(entry, tensors) for key, entry in items}
    return {key: _decode(entry, tensors) for key, entry in value.items()}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _checksum(content: dict[str, Any]) -> str:
    return _sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode())


def _build_files(step: int, state: dict[str, Any], config_text: str) -> dict[str, bytes]:
    """Return the content of each file of a checkpoint."""
    tensors: dict[str, Tensor] = {}
    encoded = _encode(state, "", tensors)
    files = {_TENSORS: safetensors.torch.save(tensors), _CONFIG: config_text.encode()}
    content = {
        "format": FORMAT,
        "step": step,
        "tensors_sha256": _sha256(files[_TENSORS]),
        "config_sha256": _sha256(files[_CONFIG]),
        "state": encoded,
    }
    outer = {"checksum": _checksum(content), "content": content}
    files[_STATE] = json.dumps(outer, indent=1, allow_nan=False).encode()
    return files


def to_bytes(state: dict[str, Any]) -> bytes:
    """Return a state as bytes, for another process; see `save_checkpoint`.

    They are the length of a JSON text in 8 bytes, that text, and the tensors.

    Raises:
        CheckpointError: the state holds something that checkpoints cannot.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encode(state, "", tensors), allow_nan=False).encode()
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + safetensors.torch.save(tensors)


def from_bytes(content: bytes) -> dict[str, Any]:
    """Return the state that `to_bytes` got, tensors on the CPU."""
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    state = json.loads(content[_LENGTH_BYTES:end])
    decoded: dict[str, Any] = _decode(state, safetensors.torch.load(content[end:]))
    return decoded


def _mount_point(path: Path) -> Path:
    path = path.resolve()
    while not path.is_mount():
        path = path.parent
    return path


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _set_aside(folder: Path) -> dict[int, Path]:
    """Return what `_put_in_place` moved aside and did not remove, by step."""
    found = {entry.name[1:-4]: entry for entry in folder.glob(".*.old")}
    return {int(step): entry for step, entry in found.items() if step.isdecimal()}


def _tidy(folder: Path) -> None:
    """Clear what processes that died in the middle of a save left behind."""
    for entry in folder.glob(".*.tmp"):
        pid = entry.name.split(".")[-2]
        if pid.isdecimal() and (int(pid) == os.getpid() or not _is_alive(int(pid))):
            shutil.rmtree(entry)
    for step, entry in _set_aside(folder).items():
        final = folder / str(step)
        if final.exists():
            shutil.rmtree(entry)
        else:
            entry.rename(final)


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename a finished folder, in place of an older save of the same step if there is one.

    A folder cannot be renamed onto another, so the older one steps aside first. At every
    moment one of the two is whole under a name that `newest_checkpoint` reads.
    """
    aside = final.with_name(f".{final.name}.old")
    if final.exists():
        final.rename(aside)
    try:
        temporary.rename(final)
    except OSError:
        if aside.exists():
            aside.rename(final)
        raise
    sync_folder(final.parent)
    if aside.exists():
        shutil.rmtree(aside)


def _remove_oldest(folder: Path, newest: Path, keep: int) -> None:
    """Remove checkpoints beyond `keep`, the one just written being the first that stays."""
    step = int(newest.name)
    others = [entry for entry in folder.iterdir() if entry.name.isdecimal() and entry != newest]
    # Steps after this one were given up when the run went back: they go before any other.
    others.sort(key=lambda entry: (int(entry.name) <= step, int(entry.name)))
    for entry in others[: max(0, len(others) - (keep - 1))]:
        # Renamed first, so that a half-removed folder is not taken for a damaged checkpoint.
        doomed = folder / f".{entry.name}.{os.getpid()}.tmp"
        try:
            entry.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            warnings.warn(
                f"the old checkpoint {entry} could not be removed: {error.strerror}",
                CheckpointWarning,
                stacklevel=3,
            )


def save_checkpoint(
    folder: Path, step: int, state: dict[str, Any], config_text: str, keep: int
) -> Path:
    """Write the checkpoint of a step, then remove the oldest ones.

    Args:
        folder: the run's `checkpoints` folder, made if missing. One process at a time writes
            into it (`RunDirectory.lock`); others may read meanwhile.
        step: at least 0; a checkpoint of the same step is replaced.
        state: nested dictionaries and lists of tensors, numpy arrays, numbers, text and None;
            keys are text or int. Tuples come back as lists.
        config_text: the run's settings, YAML.
        keep: how many checkpoints stay, at least 1.

    Returns:
        The folder of the new checkpoint.

    Raises:
        CheckpointError: the state holds something else, or the disk refused. Older
            checkpoints are then as they were.
    """
    if step < 0 or keep < 1:
        raise CheckpointError(f"expected step >= 0 and keep >= 1, got {step} and {keep}")
    files = _build_files(step, state, config_text)
    final = folder / str(step)
    temporary = folder / f".{step}.{os.getpid()}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _tidy(folder)
        temporary.mkdir()
        for name, content in files.items():
            write_synced(temporary / name, content)
        sync_folder(temporary)
        _put_in_place(temporary, final)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {final} was not written: {error.strerror} on the file system mounted"
            f" at {_mount_point(folder)}; older checkpoints are intact: free"
            f" {sum(map(len, files.values())) / 2**20:.1f} MiB there and resume"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _remove_oldest(folder, final, keep)
    return final


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _read_content(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the checked content of state.json and the checked bytes of the tensors."""
    try:
        outer = json.loads(_read_file(path / _STATE))
        checksum, content = outer["checksum"], outer["content"]
        found = content["format"]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path / _STATE} is damaged: it is not the JSON expected") from error
    if found != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {found}, expected {FORMAT}:"
            " use the version of statewise named in the run's manifest.json"
        )
    if checksum != _checksum(content):
        raise CheckpointError(f"{path / _STATE} is damaged: its checksum does not hold")
    tensors = _read_file(path / _TENSORS)
    config = _read_file(path / _CONFIG)
    for name, data in (("tensors", tensors), ("config", config)):
        if content[f"{name}_sha256"] != _sha256(data):
            file = _TENSORS if name == "tensors" else _CONFIG
            raise CheckpointError(f"{path / file} is damaged: its checksum does not hold")
    return content, tensors


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state saved in a checkpoint folder, tensors on the CPU.

    Raises:
        CheckpointError: the folder is not a whole checkpoint of this format.
    """
    content, data = _read_content(path)
    try:
        tensors = safetensors.torch.load(data)
        state: dict[str, Any] = _decode(content["state"], tensors)
    except (safetensors.SafetensorError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged: tensors and state do not fit") from error
    return state


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the whole checkpoint with the highest step, None if there is none.

    Damaged ones are skipped with a `CheckpointWarning` each.
    """
    if not folder.is_dir():
        return None
    steps = {int(entry.name): entry for entry in folder.iterdir() if entry.name.isdecimal()}
    # Set aside and alone: a process died while it replaced this step.
    steps = _set_aside(folder) | steps
    for step in sorted(steps, reverse=True):
        try:
            _read_content(steps[step])
        except CheckpointError as error:
            warnings.warn(f"checkpoint skipped: {error}", CheckpointWarning, stacklevel=2)
        else:
            return steps[step]
    return None
