"""A run directory brought to its end by whoever is called last: begun, gone on with, or found."""

import shutil
from functools import lru_cache
from pathlib import Path

from statewise.data.files import sha256_of
from statewise.training.api import resume_training, run_training
from statewise.training.checkpoint import CheckpointError, load_checkpoint, newest_checkpoint
from statewise.training.config import RunConfig, S4WMRun, apply_overrides, load_config
from statewise.training.log import read_metrics
from statewise.training.offline_config import DataRunConfig
from statewise.training.run import RunDirectory, RunError


def is_same_run(found: RunConfig, config: RunConfig) -> bool:
    """Return whether a run with the settings `found` is that of `config`, on whatever device."""
    return found == apply_overrides(config, {"device": found.device})


def finished_steps(path: Path, config: RunConfig) -> int | None:
    """Return the steps of a run that is complete, None of any other folder.

    Args:
        path: the run directory, which may not be there.
        config: the settings it has to have.
    """
    if not (path / "manifest.json").is_file() or not (path / "config.yaml").is_file():
        return None
    directory = RunDirectory.open(path)
    newest = newest_checkpoint(directory.checkpoints_dir)
    if newest is None or not is_same_run(load_config(directory.config_path), config):
        return None
    steps = int(load_checkpoint(newest)["steps"])
    return None if steps < config.end or _other_data(directory, config) else steps


def train_to_end(path: Path, config: RunConfig, command: list[str]) -> int:
    """Train what is left to train; return the steps of the last checkpoint.

    Args:
        path: the run directory. What was killed before its first checkpoint is begun anew.
        config: the settings of the run.
        command: words that do the same, for the manifest.

    Raises:
        RunError: the folder holds another run, or one that another process trains.
    """
    _clear_unstarted(path)
    if not path.exists():
        run_training(config, path, command, quiet=True)
    else:
        directory = RunDirectory.open(path)
        if not is_same_run(load_config(directory.config_path), config):
            raise RunError(f"{path} was trained with other settings: move it away to train again")
        if file := _other_data(directory, config):
            raise RunError(
                f"{path} was trained with another {file}: put that back, or move the run away "
                "to train again"
            )
        if _steps(directory) < config.end:
            resume_training(path, command, quiet=True)
    return _steps(RunDirectory.open(path))


def minutes_of(run: RunDirectory) -> float:
    """Return minutes of training, those before a restart included."""
    rows = read_metrics(run)
    return round(rows[-1]["wall_s"] / 60, 2) if rows else 0.0


def _other_data(directory: RunDirectory, config: RunConfig) -> str:
    """Return a file that is not what the run read, "" if there is none.

    A file that is not there is not another one.
    """
    if not isinstance(config, DataRunConfig):
        return ""
    manifest = directory.read_manifest()
    held_out = [config.eval.data] if isinstance(config, S4WMRun) and config.eval.data else []
    noted = [
        *zip(config.data.paths, manifest.get("data", {}).get("sha256", ()), strict=False),
        *zip(held_out, manifest.get("held_out", {}).get("sha256", ()), strict=False),
    ]
    for path, sha256 in noted:
        file = Path(path)
        if file.exists() and _sha256(file, file.stat().st_mtime_ns) != sha256:
            return path
    return ""


@lru_cache
def _sha256(path: Path, _: int) -> str:
    """Return the sha256 of a file, which many runs learn from, as it was at a time."""
    return sha256_of(path)


def _clear_unstarted(path: Path) -> None:
    """Remove what is left of a run that was killed before its first checkpoint."""
    checkpoints = path / "checkpoints"
    if not path.is_dir() or (checkpoints.is_dir() and any(checkpoints.glob("[0-9]*"))):
        return
    if not (path / "manifest.json").is_file():
        leftover = {entry.name for entry in path.iterdir()} - {".lock", "config.yaml"}
        if any(not name.endswith(".tmp") for name in leftover):
            raise RunError(f"{path}: expected a run or nothing, it holds {min(leftover)}: move it")
        shutil.rmtree(path)
        return
    with RunDirectory.open(path).lock():
        shutil.rmtree(path)


def _steps(run: RunDirectory) -> int:
    newest = newest_checkpoint(run.checkpoints_dir)
    if newest is None:
        raise CheckpointError(f"{run.checkpoints_dir} holds no valid checkpoint: move it away")
    return int(load_checkpoint(newest)["steps"])
