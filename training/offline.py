"""The offline loop: draw a batch of the data, update, log, now and then evaluate.

Metrics of losses are means over the updates since the line before, under `offline/` unless their
names have a group. An evaluation on the way adds `eval/return_mean` and `eval/score` of the first
target, the same with `/target_<R>` behind them for the others, and `eval/best_return_mean` and
`eval/best_step`: the best that the first target has seen so far. What a run is reported with is
its LAST checkpoint; the best is a number beside it, chosen with the help of the evaluation itself,
and no checkpoint is kept of it.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from statewise.agents import parallel
from statewise.agents.offline.protocol import OfflineBatch
from statewise.agents.recurrent_ppo import NonFiniteLossError
from statewise.data.samplers import SampledBatch, Sampler
from statewise.training.config import dump_config
from statewise.training.evaluate import TargetResult
from statewise.training.loop import Loop
from statewise.training.offline_config import OfflineTrainConfig
from statewise.training.run import RunDirectory
from statewise.training.world_config import S4WMRun


def count_rows(batch: OfflineBatch) -> tuple[int, int]:
    """Return how many rows of a batch are steps, and how many there are in all."""
    if not isinstance(batch, SampledBatch):
        return len(batch.reward), len(batch.reward)
    return int(batch.step.valid.sum()), batch.step.valid.numel()


def _full(name: str) -> str:
    return name if "/" in name else f"offline/{name}"


@dataclass
class Means:
    """Sums of metrics since the last line of the log."""

    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    num_valid: int = 0
    num_rows: int = 0
    seconds: float = 0.0
    sample_seconds: float = 0.0

    def add(self, losses: dict[str, float], num_valid: int, num_rows: int) -> None:
        """Add what an update gave, and its rows without and with padding."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.count += 1
        self.num_valid += num_valid
        self.num_rows += num_rows

    def joined(self) -> "Means":
        """Return the same over all processes, with the times of this one."""
        rows = parallel.total(torch.tensor([self.num_valid, self.num_rows])).tolist()
        sums = parallel.mean_metrics(self.sums)
        return replace(self, sums=sums, num_valid=rows[0], num_rows=rows[1])

    def metrics(self) -> dict[str, float]:
        """Return means, speeds and the share of the rows that are padding."""
        means = {_full(name): total / self.count for name, total in self.sums.items()}
        return means | {
            "offline/padding_share": 1 - self.num_valid / self.num_rows,
            "time/updates_per_s": self.count / self.seconds,
            "time/tokens_per_s": self.num_valid / self.seconds,
            "time/sample_share": self.sample_seconds / self.seconds,
        }


class OfflineTraining(Loop):
    """One run on data, in a run directory or (`run` None) only in memory.

    Args:
        config: its `total_updates`, `log_every`, `checkpoint` and `eval.every_updates` are used.
        agent: learns; an `OfflineAgent`, or with a subclass a `WorldLearner`.
        sampler: gives batches as `agent.sampling` has them.
        run: where it is written down.
        evaluate: makes an evaluation; returns a list of `TargetResult`.
    """

    unit, quantity = "updates", "loss"

    def __init__(
        self,
        config: OfflineTrainConfig | S4WMRun,
        agent: Any,
        sampler: Sampler,
        run: RunDirectory | None,
        evaluate: Callable[[], Any],
    ):
        super().__init__(
            run,
            config_text="" if run is None else dump_config(config),
            end=config.end,
            every=config.checkpoint.every_updates,
            keep=config.checkpoint.keep,
        )
        self.config, self.agent, self.sampler = config, agent, sampler
        self._evaluate = evaluate
        self._means = Means()
        self._best: tuple[float, int] | None = None

    def begin(self) -> None:
        """Do nothing: agent and sampler are where they begin."""

    def state_dict(self) -> dict[str, Any]:
        """Return agent, sampler, the sums of the next line of the log, and the best evaluation."""
        return {
            "agent": self.agent.state_dict(),
            "sampler": self.sampler.state_dict(),
            "means": asdict(self._means),
            "best": None if self._best is None else list(self._best),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore everything but the agent."""
        self.sampler.load_state_dict(state["sampler"])
        self._means = Means(**state["means"])
        self._best = None if state["best"] is None else tuple(state["best"])

    def shown(self, metrics: dict[str, float]) -> float | None:
        """Return the first loss that the agent reports."""
        return next((value for name, value in metrics.items() if name.endswith("loss")), None)

    def count_rows(self, batch: OfflineBatch) -> tuple[int, int]:
        """Return how many rows of a batch the agent learns from, and how many there are in all."""
        return count_rows(batch)

    def iterate(self) -> dict[str, float]:
        """Update on one batch, log and evaluate where it is time; return what the update gave."""
        begin = time.perf_counter()
        batch = self.sampler.sample()
        drawn = time.perf_counter()
        try:
            losses = self.agent.update(batch)
        except NonFiniteLossError:
            self.keep_batch(batch)
            raise
        self._means.seconds += time.perf_counter() - begin
        self._means.sample_seconds += drawn - begin
        self._means.add(losses, *self.count_rows(batch))
        self.steps += 1
        every, last = self.config.eval.every_updates, self.steps == self.end
        is_evaluated = every > 0 and (self.steps % every == 0 or last)
        # The other processes wait for it at their next exchange.
        evaluation = self.evaluation() if is_evaluated and parallel.rank() == 0 else {}
        if self.steps % self.config.log_every == 0 or last or is_evaluated:
            metrics = self._means.joined().metrics()
            self._means = Means()
            if self.logger is not None:
                self.logger.write(self.steps, metrics | evaluation)
        return losses

    def evaluation(self) -> dict[str, float]:
        """Return the metrics of an evaluation."""
        results: list[TargetResult] = self._evaluate()
        metrics: dict[str, float] = {}
        for number, one in enumerate(results):
            behind = f"/target_{one.target:g}" if number else ""
            metrics[f"eval/return_mean{behind}"] = one.result.return_mean
            if one.score is not None:
                metrics[f"eval/score{behind}"] = one.score
        return metrics | self.noted(results[0].result.return_mean)

    def noted(self, headline: float) -> dict[str, float]:
        """Return the best return so far and its update, this one among them."""
        if self._best is None or headline > self._best[0]:
            self._best = headline, self.steps
        return {"eval/best_return_mean": self._best[0], "eval/best_step": self._best[1]}
