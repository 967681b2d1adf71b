"""One run of a claim: trained, or resumed, or found finished, then evaluated."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from statewise.bench.claims import Arm, Claim, load_claim
from statewise.bench.offline_arm import core_of, measure_acting, offline_row
from statewise.bench.process import Answer, Job
from statewise.data.files import sha256_of
from statewise.training.api import resume_training, run_training
from statewise.training.checkpoint import CheckpointError, load_checkpoint, newest_checkpoint
from statewise.training.config import OfflineTrainConfig, RunConfig, load_config
from statewise.training.evaluate import evaluate_run
from statewise.training.log import read_metrics
from statewise.training.run import RunDirectory, RunError, read_json

SHOWN = 12  # digits of a sha256 in a message


@dataclass(frozen=True)
class ClaimRun:
    """A run of a claim, which may be made or not."""

    claim: Claim
    arm: Arm
    seed: int
    root: Path
    """Folder of all claims' runs."""
    data_root: Path
    """Folder of all data sets."""

    @property
    def path(self) -> Path:
        """The run directory."""
        return run_path(self.root, self.claim, self.arm.name, self.seed)

    @property
    def config(self) -> RunConfig:
        """Its settings."""
        return self.arm.config(self.seed, self.data_root)


def run_path(root: Path, claim: Claim, arm: str, seed: int) -> Path:
    """Return the run directory of an arm and a seed."""
    return root / claim.name / f"{arm}-seed{seed}"


def run_job(job: Job) -> Answer:
    """Bring one run to its end and evaluate its last checkpoint.

    Args:
        job: claim (name or path), arm, seed, root (folder of all claims' runs), data_root.

    Returns:
        One row of the result table.

    Raises:
        ConfigError: the claim is not what it should be.
        RunError: the folder holds another run, or one that another process trains.
    """
    claim = load_claim(job["claim"])
    arm, root = claim.arm(job["arm"]), Path(job["root"])
    run = ClaimRun(claim, arm, int(job["seed"]), root, Path(job["data_root"]))
    config = run.config
    steps = _train(run, config)
    _evaluate(claim, config, run.path, steps)
    if isinstance(config, OfflineTrainConfig):
        measure_acting(run.path, steps)
    row = find_row(run)
    assert row is not None, run.path
    return row


def find_row(run: ClaimRun) -> Answer | None:
    """Return the row of a run that is finished, None of any other."""
    config, path = run.config, run.path
    if not (path / "manifest.json").is_file() or not (path / "config.yaml").is_file():
        return None
    directory = RunDirectory.open(path)
    newest = newest_checkpoint(directory.checkpoints_dir)
    if newest is None or load_config(directory.config_path) != config:
        return None
    steps = int(load_checkpoint(newest)["steps"])
    evaluation = _found_evaluation(run.claim, config, path, steps)
    if steps < config.end or evaluation is None:
        return None
    row = _common_row(run, directory, evaluation)
    if not isinstance(config, OfflineTrainConfig):
        return row | {"score": evaluation["return_mean"]}
    more = None
    if not _other_data(directory, config):
        more = offline_row(config, path, evaluation, run.claim.reached)
    return None if more is None else row | more


def _common_row(
    run: ClaimRun, directory: RunDirectory, evaluation: Mapping[str, Any]
) -> dict[str, Any]:
    low, high = evaluation["return_ci95"]
    return {
        "preset": run.arm.preset,
        "arm": run.arm.name,
        "core": core_of(run.config),
        "task": evaluation["env"],
        "seed": run.seed,
        "steps": evaluation["step"],
        "ci_low": low,
        "ci_high": high,
        "minutes": _minutes(directory),
    }


def _train(run: ClaimRun, config: RunConfig) -> int:
    """Train what is left to train; return the steps of the last checkpoint."""
    arm, path = run.arm, run.path
    words = [word for override in arm.overrides.items() for word in _words(*override)]
    if isinstance(config, OfflineTrainConfig):
        words += ["--data", *config.data.paths]
    command = ["statewise", "train", arm.preset, *words, "--seed", str(config.seed)]
    _clear_unstarted(path)
    if not path.exists():
        run_training(config, path, command, quiet=True)
    else:
        directory = RunDirectory.open(path)
        if load_config(directory.config_path) != config:
            raise RunError(f"{path} was trained with other settings: move it away to train again")
        if isinstance(config, OfflineTrainConfig) and (file := _other_data(directory, config)):
            raise RunError(
                f"{path} was trained with another {file}: put that back, or move the run away "
                "to train again"
            )
        if _steps(directory) < config.end:
            resume_training(path, command, quiet=True)
    return _steps(RunDirectory.open(path))


def _words(path: str, value: Any) -> list[str]:
    """Return an override as a command line has it."""
    return [f"--{path}", *map(str, value if isinstance(value, list) else [value])]


def _other_data(directory: RunDirectory, config: OfflineTrainConfig) -> str:
    """Return a file that is not what the run learned from, "" if there is none.

    A file that is not there is not another one.
    """
    noted = directory.read_manifest().get("data", {}).get("sha256", ())
    for path, sha256 in zip(config.data.paths, noted, strict=False):
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
            raise RunError(f"{path}: expected a run of this claim, it holds {min(leftover)}")
        shutil.rmtree(path)
        return
    with RunDirectory.open(path).lock():
        shutil.rmtree(path)


def _steps(run: RunDirectory) -> int:
    newest = newest_checkpoint(run.checkpoints_dir)
    if newest is None:
        raise CheckpointError(f"{run.checkpoints_dir} holds no valid checkpoint: move it away")
    return int(load_checkpoint(newest)["steps"])


def _evaluate(claim: Claim, config: RunConfig, path: Path, steps: int) -> None:
    """Write `eval.json` anew unless it is this evaluation of this checkpoint."""
    if _found_evaluation(claim, config, path, steps) is None:
        evaluate_run(path, episodes=claim.episodes, actions=claim.actions)


def _found_evaluation(
    claim: Claim, config: RunConfig, path: Path, steps: int
) -> Mapping[str, Any] | None:
    file = RunDirectory.open(path).eval_path
    found = read_json(file) if file.is_file() else {}
    targets = [entry["target"] for entry in found.get("targets", ())]
    wanted: list[float | None] = []
    if isinstance(config, OfflineTrainConfig):
        wanted = [*config.eval.returns_asked()] or [None]
    got = (found.get("step"), found.get("actions"), len(found.get("episodes", ())), targets)
    return found if got == (steps, claim.actions, claim.episodes, wanted) else None


def _minutes(run: RunDirectory) -> float:
    """Return minutes of training, those before a restart included."""
    rows = read_metrics(run)
    return round(rows[-1]["wall_s"] / 60, 2) if rows else 0.0
