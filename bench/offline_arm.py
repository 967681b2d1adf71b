"""What is measured of a run that learned from data: its metrics, its size, its speed."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import nn

from statewise.bench.claim_metrics import OPEN_LOOP, Measure
from statewise.bench.process import Answer
from statewise.training.api import load
from statewise.training.config import OfflineTrainConfig, RunConfig, S4WMRun, WorldTrainConfig
from statewise.training.log import read_metrics
from statewise.training.playing import PlayingAgent
from statewise.training.run import RunDirectory, read_json, write_json
from statewise.training.statistics import spearman
from statewise.training.stepper import to_tensors

ACTING = "acting.json"
CORES = {
    "dt": "attention",
    "decision_mamba": "mamba",
    "decision_mamba_mg": "mamba",
    "bc": "mlp",
    "td3bc": "mlp",
    "iql": "mlp",
}
"""What is inside the policy of a system that has no choice of it."""
SPEEDS = ("updates_per_s", "tokens_per_s")


def core_of(config: RunConfig) -> str:
    """Return what is inside a policy: a layer of `ssm.build`, or the one of its system."""
    if isinstance(config, WorldTrainConfig | S4WMRun):
        world = config.agent.world
        return str(world.parallel.sequence.kind) if world.core == "parallel" else "gru"
    return CORES.get(config.system) or str(config.agent.sequence.kind)


def metrics_of(targets: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return what an evaluation says; None for what it cannot say.

    return, score      of the first target
    spread             score of the first target minus that of the last
    spearman           rank correlation of the returns got with those asked for
    relative_error     mean |got - asked| / |asked|

    Args:
        targets: `targets` of eval.json; one, whose target is None, of an agent that is not told.
    """
    first, last, several = targets[0], targets[-1], len(targets) > 1
    asked, got = [one["target"] for one in targets], [one["return_mean"] for one in targets]
    is_scored = None not in (first["score"], last["score"])
    has_error = None not in asked and 0 not in asked
    errors = [abs(g - a) / abs(a) for a, g in zip(asked, got, strict=True)] if has_error else []
    return {
        "return": first["return_mean"],
        "score": first["score"],
        "spread": first["score"] - last["score"] if several and is_scored else None,
        "spearman": spearman(asked, got) if several else None,
        "relative_error": fmean(errors) if errors else None,
    }


def acting_network(agent: Any) -> nn.Module:
    """Return what an agent acts with; critics are not a part of it."""
    network: nn.Module = agent.policy if hasattr(agent, "policy") else agent.actor
    return network


def time_actions(trained: PlayingAgent) -> list[float]:
    """Return the seconds that each greedy action of an episode of one environment takes."""
    agent, env = trained.agent, trained.make_env()
    place = torch.device(trained.config.device)
    obs, _ = env.reset(seed=trained.eval_seed)
    state, is_over = agent.initial_state(1), False
    is_first = torch.ones(1, dtype=torch.bool, device=place)
    seconds = []
    while not is_over:
        rows = to_tensors({key: value[None] for key, value in obs.items()}, place)
        begin = time.perf_counter()
        action, _, state = agent.act(rows, state, is_first, is_first, explore=False)
        seconds.append(time.perf_counter() - begin)
        obs, _, terminated, truncated, _ = env.step(action[0].cpu().numpy())
        is_first, is_over = torch.zeros_like(is_first), terminated or truncated
    env.close()
    return seconds


def measure_acting(path: Path, step: int) -> None:
    """Write what acting with the newest checkpoint takes, unless it is there.

    Milliseconds are the median over the second half of an episode, on the threads of this
    process.
    """
    if found_acting(path, step) is not None:
        return
    trained = load(path, device="cpu")
    seconds = time_actions(trained)
    answer = {
        "step": step,
        "ms_per_action": 1000 * median(seconds[len(seconds) // 2 :]),
        "parameters": sum(p.numel() for p in acting_network(trained.agent).parameters()),
    }
    write_json(path / ACTING, answer)


def found_acting(path: Path, step: int) -> Mapping[str, Any] | None:
    """Return what `measure_acting` wrote of this step, None if nothing."""
    file = path / ACTING
    found = read_json(file) if file.is_file() else {}
    return found if found.get("step") == step else None


def offline_row(
    config: OfflineTrainConfig, path: Path, evaluation: Mapping[str, Any], reached: float | None
) -> Answer | None:
    """Return what a finished run adds to a row of the table, None before it was timed.

    Args:
        config: of the run.
        path: the run directory.
        evaluation: of its last checkpoint, `eval.json`.
        reached: the return whose first update is looked for.
    """
    acting = found_acting(path, config.end)
    if acting is None:
        return None
    rows = read_metrics(RunDirectory.open(path))
    low, high = evaluation["return_ci95"]
    return {
        **metrics_of(evaluation["targets"]),
        "ci_low": low,
        "ci_high": high,
        "reached": first_reaching(rows, reached),
        "parameters": acting["parameters"],
        **_speeds(rows),
        "ms_per_action": acting["ms_per_action"],
    }


def world_row(evaluation: Mapping[str, Any], log: Sequence[Mapping[str, float]]) -> Answer:
    """Return what a finished run of a world model on data adds to a row of the table.

    Args:
        evaluation: of its last checkpoint, `eval.json`.
        log: rows of `metrics.jsonl`.
    """
    return {
        **{name: Measure(name).read(evaluation, log) for name in OPEN_LOOP},
        **_speeds(log),
    }


def _speeds(log: Sequence[Mapping[str, float]]) -> Answer:
    return {name: median([row[f"time/{name}"] for row in log]) for name in SPEEDS}


def first_reaching(rows: Sequence[Mapping[str, float]], limit: float | None) -> int | None:
    """Return the update of the first evaluation on the way that is at least `limit`, or None."""
    if limit is None:
        return None
    returns = ((row["step"], row.get("eval/return_mean", -math.inf)) for row in rows)
    return next((int(step) for step, value in returns if value >= limit), None)
