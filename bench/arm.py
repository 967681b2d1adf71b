"""One run of a claim: trained, or resumed, or found finished, then evaluated."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statewise.bench.claim_metrics import SCORE
from statewise.bench.claims import Arm, Claim, load_claim
from statewise.bench.offline_arm import core_of, measure_acting, offline_row, world_row
from statewise.bench.process import Answer, Job
from statewise.bench.resumable import finished_steps, minutes_of, train_to_end
from statewise.training.config import (
    OfflineTrainConfig,
    RunConfig,
    S4WMRun,
    apply_overrides,
    load_config,
)
from statewise.training.evaluate import evaluate_run
from statewise.training.log import read_metrics
from statewise.training.offline_config import DataRunConfig
from statewise.training.run import RunDirectory, read_json


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
    device: str = "cpu"
    """Where it is trained and evaluated, if it is not finished."""

    @property
    def path(self) -> Path:
        """The run directory."""
        return run_path(self.root, self.claim, self.arm.name, self.seed)

    @property
    def config(self) -> RunConfig:
        """Its settings."""
        config = self.arm.config(self.seed, self.data_root)
        return apply_overrides(config, {"device": self.device})


def run_path(root: Path, claim: Claim, arm: str, seed: int) -> Path:
    """Return the run directory of an arm and a seed."""
    return root / claim.name / f"{arm}-seed{seed}"


def run_job(job: Job) -> Answer:
    """Bring one run to its end and evaluate its last checkpoint.

    Args:
        job: claim (name or path), arm, seed, root (folder of all claims' runs), data_root, device.

    Returns:
        One row of the result table.

    Raises:
        ConfigError: the claim is not what it should be.
        RunError: the folder holds another run, or one that another process trains.
    """
    claim = load_claim(job["claim"])
    arm, root = claim.arm(job["arm"]), Path(job["root"])
    data_root, device = Path(job["data_root"]), job.get("device", "cpu")
    run = ClaimRun(claim, arm, int(job["seed"]), root, data_root, device)
    config = run.config
    steps = _train(run, config)
    _evaluate(run, config, steps)
    if isinstance(config, OfflineTrainConfig):
        measure_acting(run.path, steps)
    row = find_row(run)
    assert row is not None, run.path
    return row


def find_row(run: ClaimRun) -> Answer | None:
    """Return the row of a run that is finished, None of any other."""
    config, path = run.config, run.path
    steps = finished_steps(path, config)
    evaluation = None if steps is None else _found_evaluation(run.claim, config, path, steps)
    if evaluation is None:
        return None
    directory = RunDirectory.open(path)
    found = load_config(directory.config_path)
    log = read_metrics(directory)
    row = _common_row(run, directory, evaluation) | {"device": found.device}
    if isinstance(config, OfflineTrainConfig):
        more = offline_row(config, path, evaluation, run.claim.reached)
    elif isinstance(config, S4WMRun):
        more = world_row(evaluation, log)
    else:
        more = _played(evaluation) | {SCORE: evaluation["return_mean"]}
    if more is None:
        return None
    measured = {
        one.column: one.read(evaluation, log)
        for one in run.claim.measures()
        if one.column not in more
    }
    return row | more | measured


def _played(evaluation: Mapping[str, Any]) -> Answer:
    low, high = evaluation["return_ci95"]
    return {"ci_low": low, "ci_high": high}


def _common_row(
    run: ClaimRun, directory: RunDirectory, evaluation: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "preset": run.arm.preset,
        "arm": run.arm.name,
        "core": core_of(run.config),
        "task": evaluation["env"],
        "seed": run.seed,
        "steps": evaluation["step"],
        "minutes": minutes_of(directory),
    }


def _train(run: ClaimRun, config: RunConfig) -> int:
    """Train what is left to train; return the steps of the last checkpoint."""
    arm, path = run.arm, run.path
    words = [word for override in arm.overrides.items() for word in _words(*override)]
    if isinstance(config, DataRunConfig):
        words += ["--data", *config.data.paths]
    if isinstance(config, S4WMRun) and arm.held_out is not None:
        words += ["--eval.data", config.eval.data]
    command = ["statewise", "train", arm.preset, *words, "--seed", str(config.seed)]
    return train_to_end(path, config, command)


def _words(path: str, value: Any) -> list[str]:
    """Return an override as a command line has it."""
    return [f"--{path}", *map(str, value if isinstance(value, list) else [value])]


def _evaluate(run: ClaimRun, config: RunConfig, steps: int) -> None:
    """Write `eval.json` anew unless it is this evaluation of this checkpoint."""
    claim, path = run.claim, run.path
    if _found_evaluation(claim, config, path, steps) is None:
        actions = claim.actions or None
        evaluate_run(path, episodes=claim.episodes, actions=actions, device=run.device)


def _found_evaluation(
    claim: Claim, config: RunConfig, path: Path, steps: int
) -> Mapping[str, Any] | None:
    directory = RunDirectory.open(path)
    file = directory.eval_path
    found = read_json(file) if file.is_file() else {}
    if isinstance(config, S4WMRun):
        held_out = directory.read_manifest()["held_out"]["num_episodes"]
        known = (steps, min(claim.episodes, held_out), config.eval.context or "half")
        got = (found.get("step"), found.get("episodes"), found.get("context"))
        return found if got == known and found.get("samples") == config.eval.samples else None
    targets = [entry["target"] for entry in found.get("targets", ())]
    wanted: list[float | None] = []
    if isinstance(config, OfflineTrainConfig):
        wanted = [*config.eval.returns_asked()] or [None]
    played = (found.get("step"), found.get("actions"), len(found.get("episodes", ())), targets)
    return found if played == (steps, claim.actions, claim.episodes, wanted) else None
