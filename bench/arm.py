"""One run of a claim: trained, or resumed, or found finished, then evaluated."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from statewise.bench.claims import Arm, Claim, load_claim
from statewise.bench.process import Answer, Job
from statewise.training.api import resume_training, run_training
from statewise.training.checkpoint import CheckpointError, load_checkpoint, newest_checkpoint
from statewise.training.config import TrainConfig, load_config
from statewise.training.evaluate import evaluate_run
from statewise.training.log import read_metrics
from statewise.training.run import RunDirectory, RunError, read_json


def run_path(root: Path, claim: Claim, arm: str, seed: int) -> Path:
    """Return the run directory of an arm and a seed."""
    return root / claim.name / f"{arm}-seed{seed}"


def run_job(job: Job) -> Answer:
    """Bring one run to its end and evaluate its last checkpoint.

    Args:
        job: claim (name or path), arm, seed, root (folder of all claims' runs).

    Returns:
        One row of the result table.

    Raises:
        ConfigError: the claim is not what it should be.
        RunError: the folder holds another run, or one that another process trains.
    """
    claim = load_claim(job["claim"])
    arm, seed = claim.arm(job["arm"]), int(job["seed"])
    config = arm.config(seed)
    path = run_path(Path(job["root"]), claim, arm.name, seed)
    steps = _train(arm, config, path)
    evaluation = _evaluation(claim, path, steps)
    low, high = evaluation["return_ci95"]
    return {
        "preset": arm.preset,
        "arm": arm.name,
        "core": config.agent.sequence.kind,
        "task": config.env.id,
        "seed": seed,
        "steps": steps,
        "score": evaluation["return_mean"],
        "ci_low": low,
        "ci_high": high,
        "minutes": _minutes(RunDirectory.open(path)),
    }


def _train(arm: Arm, config: TrainConfig, path: Path) -> int:
    """Train what is left to train; return the steps of the last checkpoint."""
    words = [word for key, value in arm.overrides.items() for word in (f"--{key}", str(value))]
    command = ["statewise", "train", arm.preset, *words, "--seed", str(config.seed)]
    _clear_unstarted(path)
    if not path.exists():
        run_training(config, path, command, quiet=True)
    else:
        run = RunDirectory.open(path)
        if load_config(run.config_path) != config:
            raise RunError(f"{path} was trained with other settings: move it away to train again")
        if _steps(run) < config.total_steps:
            resume_training(path, command, quiet=True)
    return _steps(RunDirectory.open(path))


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


def _evaluation(claim: Claim, path: Path, steps: int) -> Mapping[str, Any]:
    """Return `eval.json`, made anew unless it is this evaluation of this checkpoint."""
    file = RunDirectory.open(path).eval_path
    if file.is_file():
        found = read_json(file)
        asked = (steps, claim.actions, claim.episodes)
        if (found.get("step"), found.get("actions"), len(found.get("episodes", ()))) == asked:
            return found
    evaluate_run(path, episodes=claim.episodes, actions=claim.actions)
    return read_json(file)


def _minutes(run: RunDirectory) -> float:
    """Return minutes of training, those before a restart included."""
    rows = read_metrics(run)
    return round(rows[-1]["wall_s"] / 60, 2) if rows else 0.0
