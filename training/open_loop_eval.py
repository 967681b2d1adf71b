"""Open-loop evaluations of a world model on held-out episodes, and what they say."""

from typing import Any, NamedTuple

import torch

from statewise.data.dataset import EpisodeDataset
from statewise.data.step import moved
from statewise.training.schema import ConfigError
from statewise.training.world_config import OpenLoopEvalConfig
from statewise.worldmodels.model import WorldModel
from statewise.worldmodels.open_loop import OpenLoop, check_context, summarize


class OpenLoopResult(NamedTuple):
    """What an evaluation of a world model gave."""

    found: dict[str, Any]
    """What `worldmodels.open_loop.summarize` returned."""
    context: int
    """Observations that were seen; 0 is half of each episode's."""
    samples: int

    def as_json(self) -> dict[str, Any]:
        """Return everything for eval.json."""
        return {"context": self.context or "half", "samples": self.samples, **self.found}

    def metrics(self) -> dict[str, float]:
        """Return the numbers for the log; without those that these data do not have."""
        found = self.found
        numbers = {
            "reconstruction": found["reconstruction"]["loss"],
            "generation": found["generation"]["loss"],
        } | {
            f"reward_{kind}_{name}": found["reward"][f"{kind}_{name}"]
            for kind in ("accuracy", "sign")
            for name in ("inference", "imagination")
        }
        return {f"eval/{name}": value for name, value in numbers.items() if value is not None}

    def lines(self) -> list[str]:
        """Return what a person wants to read first."""
        lines = []
        for name in ("reconstruction", "generation"):
            errors = self.found[name]
            mse = ", ".join(f"{key} {one['mse']:.4g}" for key, one in errors["entries"].items())
            lines.append(f"{name} {errors['loss']:.4g} per observation, mean square {mse}")
        reward = self.found["reward"]
        if reward["chance"] is not None:
            lines.append(
                f"reward accuracy: inference {reward['accuracy_inference']:.3f}, imagination"
                f" {reward['accuracy_imagination']:.3f}, chance {reward['chance']:.3f}"
            )
        context = f"context {self.context}" if self.context else "context half of each"
        lines.append(f"{self.found['episodes']} episodes, {context}, {self.samples} rollouts")
        return lines


def check_episodes(dataset: EpisodeDataset, config: OpenLoopEvalConfig) -> None:
    """Raise ConfigError unless every episode that is evaluated is longer than the context."""
    ends = dataset.terminated | dataset.truncated
    rows = torch.from_numpy(dataset.lengths + (dataset.has_final & ends))[: config.episodes]
    context = rows.new_full(rows.shape, config.context) if config.context else rows // 2
    try:
        check_context(context.clamp(min=1), rows)
    except ValueError as error:
        raise ConfigError(f"eval.{error}, counted among those that are held out") from error


def evaluate_open_loop(
    world: WorldModel, dataset: EpisodeDataset, config: OpenLoopEvalConfig, *, seed: int
) -> OpenLoopResult:
    """Evaluate a world model on the first `config.episodes` of held-out episodes.

    Args:
        world: the model.
        dataset: held out.
        config: how.
        seed: of the samples.

    Raises:
        ConfigError: an episode is no longer than the context.
    """
    check_episodes(dataset, config)
    device = next(world.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    count = min(config.episodes, len(dataset))
    parts = []
    for begin in range(0, count, config.batch_size):
        end = min(count, begin + config.batch_size)
        step = moved(dataset.whole(range(begin, end)), device)
        context = None
        if config.context:
            context = torch.full((end - begin,), config.context, device=device)
        parts.append(OpenLoop(world, step, context, generator).measure(config.samples))
    return OpenLoopResult(summarize(parts), config.context, config.samples)
