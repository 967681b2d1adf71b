"""The data sets of a claim: made where they are missing, each folder by a process of its own."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from statewise.bench.claim_data import SKIP
from statewise.bench.claims import Claim, load_claim
from statewise.bench.process import Answer, Job
from statewise.training.make_data import make_data
from statewise.training.schema import ConfigError


def data_jobs(source: str, claim: Claim, arms: Sequence[str], data_root: Path) -> list[Job]:
    """Return a job per folder that lacks a level which one of these arms reads.

    Args:
        source: name or path that `claim` was loaded from.
        claim: what is claimed.
        arms: names.
        data_root: folder of all data sets.
    """
    sets = [one for arm in claim.arms if arm.name in arms for one in arm.sets]
    levels: dict[str, list[str]] = {}
    for one in dict.fromkeys(sets):
        if one.if_missing != SKIP and not one.is_there(data_root):
            wanted = levels.setdefault(one.folder, [])
            wanted += [level for level in one.levels if level not in wanted]
    return [
        {
            "kind": "data",
            "system": f"{claim.name}, data in {data_root / folder}",
            "claim": source,
            "folder": folder,
            "levels": wanted,
            "data_root": str(data_root),
            "threads": 1,
        }
        for folder, wanted in levels.items()
    ]


def lacking(claim: Claim, data_root: Path) -> dict[str, str]:
    """Return the arms that are not run for want of data, with a folder that is not there."""
    sets = {one: one.is_there(data_root) for arm in claim.arms for one in arm.sets
            if one.if_missing == SKIP}  # fmt: skip
    return {
        arm.name: str(data_root / one.folder)
        for arm in claim.arms
        for one in arm.sets
        if not sets.get(one, True)
    }


def run_job(job: Job) -> Answer:
    """Make what is missing of a folder; one that was stopped goes on.

    Args:
        job: claim (name or path), folder, levels, data_root.

    Returns:
        {"folder": path, "made": [level, ...]}.

    Raises:
        ConfigError: the folder holds something else, or a package is missing.
    """
    sets = [one for arm in load_claim(job["claim"]).arms for one in arm.sets]
    config = next(one.config for one in sets if one.folder == job["folder"])
    path = Path(job["data_root"]) / job["folder"]
    try:
        made = make_data(config, path, job["levels"], console=Console(stderr=True))
    except ConfigError as error:
        raise ConfigError(str(error).replace("another --out", "another --data-root")) from error
    return {"folder": str(path), "made": made}
