"""A claim about data that is made, learned from and checked in a moment, without processes."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from statewise.bench import pool, worker
from statewise.bench.claims import Claim, load_claim
from statewise.bench.process import Answer, Job
from statewise.training.run import RunError

TINY: dict[str, Any] = {"total_updates": 2, "log_every": 1, "eval.every_updates": 1}
SMALL: dict[str, Any] = TINY | {
    "agent.batch_size": 2,
    "agent.d_embed": 4,
    "agent.sequence.num_layers": 1,
    "agent.sequence.d_model": 4,
    "eval.targets": [18.0, 10.0, 2.0],
}
BC: dict[str, Any] = TINY | {"env.id": "statewise/RtgDial-v0", "agent.hidden": [4]}


def plain_claim() -> dict[str, Any]:
    """Return a claim whose first two checks hold for any policy and whose third for none."""
    return {
        "title": "T",
        "statement": "S",
        "seeds": [1, 2],
        "episodes": 2,
        "actions": "greedy",
        "data": {"dial": {"make": "rtg-dial", "length": 5, "episodes": 3}},
        "reached": -1,
        "arms": [
            {
                "name": "s4",
                "preset": "decision_s4/rtg_dial",
                "data": "dial",
                "overrides": {**SMALL},
            },
            {"name": "bc", "preset": "bc/pendulum", "data": "dial", "overrides": {**BC}},
        ],
        "checks": [
            {"arm": "s4", "metric": "return", "statistic": "min", "at_least": 0},
            {"arm": "bc", "over": "s4", "metric": "return", "statistic": "max", "at_most": 5},
            {"arm": "s4", "metric": "spearman", "statistic": "max", "below": -1},
        ],
    }


def write(folder: Path, value: Any, name: str = "tiny.yaml") -> str:
    """Write a claim file and return its path."""
    path = folder / name
    path.write_text(yaml.safe_dump(value))
    return str(path)


def loaded(folder: Path, value: Any) -> Claim:
    """Return the claim of a file with this content."""
    return load_claim(write(folder, value))


def run_here(monkeypatch: pytest.MonkeyPatch, module: ModuleType = pool) -> list[Job]:
    """Let jobs of a module of `bench` run in this process, which is there; return those begun."""
    begun: list[Job] = []

    def start(job: Job) -> Any:
        begun.append(job)
        return Here(job)

    def finish(process: Any, name: str) -> Answer:
        answer: Answer = json.loads(json.dumps(worker.run_job(process.job)))
        if "error" in answer:
            raise RunError(f"{name}: {answer['error']}")
        return answer

    monkeypatch.setattr(module, "start", start)
    monkeypatch.setattr(module, "finish", finish)
    return begun


class Here:
    """Stands for the process of a job, which has none."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def poll(self) -> int:
        """Say that it has ended."""
        return 0
