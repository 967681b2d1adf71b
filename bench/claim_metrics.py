"""What is measured of a run: numbers of its last evaluation, and of what it logged on the way.

A name without a slash is a number of `eval.json`, one with a slash is logged.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from statewise.bench.plain_values import PlainReader
from statewise.training.config import OfflineTrainConfig, RunConfig, S4WMRun, TrainConfig
from statewise.training.evaluate_trials import NUMBERS
from statewise.training.offline_config import AlgorithmDistillationRun
from statewise.training.stepper import MAX_PLACES

SCORE = "score"
METRICS = ("return", SCORE, "spread", "spearman", "relative_error")
"""Of agents that learn from data; see `offline_arm.metrics_of`. Others that play have a score,
their mean return."""
OPEN_LOOP = (
    *("reconstruction.loss", "generation.loss"),
    *("reward.accuracy_inference", "reward.accuracy_imagination"),
    *("reward.sign_inference", "reward.sign_imagination", "reward.chance"),
)
"""Of world models that learn from data, by their place in `eval.json`."""
_ENTRY = re.compile(r"(reconstruction|generation)\.entries\.(\w+)\.(loss|mse)")
_TRAINING = ("rollout/ep_rew_mean", "rollout/ep_len_mean")
_REWARD = tuple(
    f"eval/reward_{kind}_{name}"
    for kind in ("accuracy", "sign")
    for name in ("inference", "imagination")
)
STEPS, MINUTES = "steps", "minutes"
UNITS = (STEPS, MINUTES)
FIELDS = ("metric", "last", "reaches", "unit")
"""Of a check, what makes its `Measure`."""


@dataclass(frozen=True)
class Measure:
    """One number of a run."""

    metric: str = SCORE
    last: int = 1
    """Of a logged metric: the mean of its last values, so many of them."""
    reaches: float | None = None
    """Of a logged metric: when its value is at least this for the first time."""
    unit: str = STEPS
    """Of `reaches`: environment steps, updates of agents on data; or minutes of training."""

    @property
    def is_logged(self) -> bool:
        """Whether it is read from the log."""
        return "/" in self.metric

    @property
    def column(self) -> str:
        """Its name in tables."""
        if not self.is_logged:
            return self.metric
        if self.reaches is None:
            return f"{self.metric}, last {self.last}"
        return f"{self.metric} >= {self.reaches:g}, {self.unit}"

    def read(
        self, evaluation: Mapping[str, Any], log: Sequence[Mapping[str, float]]
    ) -> float | None:
        """Return the number; None where there is none, or what is to be reached never was.

        Args:
            evaluation: `eval.json`.
            log: rows of `metrics.jsonl`.
        """
        if not self.is_logged:
            return _find(evaluation, self.metric)
        rows = [row for row in log if math.isfinite(row.get(self.metric, math.nan))]
        if self.reaches is None:
            values = [row[self.metric] for row in rows[-self.last :]]
            return fmean(values) if len(values) == self.last else None
        first = next((row for row in rows if row[self.metric] >= self.reaches), None)
        if first is None:
            return None
        return first["step"] if self.unit == STEPS else first["wall_s"] / 60


class Measurable(NamedTuple):
    """What the runs of an arm can be measured by."""

    evaluated: tuple[str, ...]
    """Names in `eval.json`."""
    obs_keys: tuple[str, ...]
    """Of a world model's observations: each has errors of its own there."""
    logged: tuple[str, ...]
    num_evaluations: int
    """While training."""

    def lacks(self, measure: Measure) -> str:
        """Return what it would need to have, in words; "" if it has this."""
        if not measure.is_logged:
            match = _ENTRY.fullmatch(measure.metric)
            if measure.metric in self.evaluated or (match and match[2] in self.obs_keys):
                return ""
            entries = [f"generation.entries.{key}.mse" for key in self.obs_keys]
            return f"one of {', '.join((*self.evaluated, *entries, *self.logged))}"
        if measure.metric not in self.logged:
            return f"one of {', '.join((*self.evaluated, *self.logged))}"
        if measure.metric.startswith("rollout/") or self.num_evaluations >= measure.last:
            return ""
        return f"at least {measure.last} evaluations while it trains"


def measurable(config: RunConfig, obs_keys: Sequence[str] = ()) -> Measurable:
    """Return what runs with these settings can be measured by.

    Args:
        config: of a run.
        obs_keys: names of the observations of a world model.
    """
    if isinstance(config, TrainConfig):
        count = _count(config.end, config.eval.every_steps)
        if not config.env.trial.is_on:
            return Measurable((SCORE,), (), (*_TRAINING, "eval/return_mean"), count)
        by_episode = (f"rollout/return_episode_{i + 1}" for i in range(_num_places(config)))
        evaluated = (f"eval/{name}" for name in ("return_mean", *NUMBERS))
        return Measurable((SCORE, *NUMBERS), (), (*_TRAINING, *by_episode, *evaluated), count)
    if isinstance(config, S4WMRun):
        logged = ("eval/reconstruction", "eval/generation", *_REWARD)
        count = _count(config.end, config.eval.every_updates)
        return Measurable(OPEN_LOOP, tuple(obs_keys), logged, count)
    if not isinstance(config, OfflineTrainConfig):
        count = _count(config.end, config.eval.every_steps)
        return Measurable((SCORE,), (), (*_TRAINING, "eval/return_mean"), count)
    if isinstance(config, AlgorithmDistillationRun):
        logged = tuple(f"eval/{name}" for name in ("return_mean", SCORE, *NUMBERS))
        count = _count(config.end, config.eval.every_updates)
        return Measurable(("return", SCORE, *NUMBERS), (), logged, count)
    targets = config.eval.returns_asked()
    of_several = ("spread", "spearman") if len(targets) > 1 else ()
    error = ("relative_error",) if targets and 0 not in targets else ()
    count = _count(config.end, config.eval.every_updates)
    names = ("return", SCORE, *of_several, *error)
    return Measurable(names, (), ("eval/return_mean", "eval/score"), count)


def read_measure(reader: PlainReader, fields: Mapping[str, Any], where: str) -> Measure:
    """Return the measure of a check.

    Args:
        reader: of the claim file.
        fields: of the check, `FIELDS` among them.
        where: its place.

    Raises:
        ConfigError: they do not belong together.
    """
    metric = reader.text(fields.get("metric", SCORE), f"{where}.metric")
    for name in ("last", "reaches"):
        if name in fields and "/" not in metric:
            reader.fail(f"{where}.{name}", "a metric of the log, such as eval/return_mean", metric)
    if "last" in fields and "reaches" in fields:
        reader.fail(where, "last or reaches", "both", plain=True)
    if "unit" in fields and "reaches" not in fields:
        reader.fail(f"{where}.unit", "reaches beside it", "none", plain=True)
    reaches = fields.get("reaches")
    return Measure(
        metric,
        reader.integer(fields.get("last", 1), f"{where}.last", 1),
        None if reaches is None else reader.number(reaches, f"{where}.reaches"),
        reader.choice(fields.get("unit", STEPS), f"{where}.unit", UNITS),
    )


def _find(evaluation: Mapping[str, Any], path: str) -> float | None:
    """Return the number at a dotted path."""
    node: Any = evaluation
    for part in path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return None if node is None else float(node)


def _num_places(config: TrainConfig) -> int:
    """Return how many episodes of a trial have returns of their own in the log."""
    return min(config.env.trial.episodes or MAX_PLACES, MAX_PLACES)


def _count(end: int, every: int) -> int:
    """Return the evaluations of a training: at every multiple, and at the end."""
    return math.ceil(end / every) if every else 0
