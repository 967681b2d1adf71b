"""Behaviour cloning: regression on the actions of a data set, one observation at a time.

    loss = mean_t l(pi(s_t), a_t)

with l the mean squared error of actions scaled to [-1, 1], or the cross-entropy of discrete ones.
On the best share of the episodes (`data.keep_best: 0.1`) it is the 10%-BC of Chen et al. 2021,
"Decision Transformer", which there takes a share of the steps.
"""

from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from statewise.agents.offline.inputs import ObsNormalizer
from statewise.agents.offline.protocol import ObsStatistics
from statewise.agents.offline.sequence_agent import seeded
from statewise.agents.offline.transitions import (
    Actor,
    TransitionAgent,
    TransitionAgentConfig,
    adam,
)
from statewise.agents.optimizer import Schedule
from statewise.agents.protocol import Metrics
from statewise.data.samplers import TransitionBatch


@dataclass(frozen=True, kw_only=True)
class BehaviorCloningConfig(TransitionAgentConfig):
    """Settings."""

    batch_size: int = 64  # >= 1, steps
    schedule: Schedule = "constant"  # of the learning rate; see `rate_factor`
    weight_decay: float = 0.0  # >= 0, decoupled; never of biases

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay: expected 0 or more, got {self.weight_decay}")


class BehaviorCloning(TransitionAgent):
    """Imitates what the data did; an `OfflineAgent`.

    Args:
        config: settings.
        obs_space: flat Dict of one environment.
        action_space: Discrete, MultiDiscrete or a float Box, of one environment.
        statistics: of the data set's observations; None where weights will be loaded.
        total_updates: >= 1, of the run: where the schedule of the learning rate ends.
        seed: of the initial weights and of sampled actions.
        device: where the network lives.
    """

    def __init__(
        self,
        config: BehaviorCloningConfig,
        obs_space: spaces.Dict,
        action_space: spaces.Space[Any],
        *,
        statistics: ObsStatistics | None,
        total_updates: int,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        with seeded(seed):
            inputs = ObsNormalizer(obs_space, statistics, config.encoder)
            self.actor = Actor(inputs, action_space, config.hidden).to(device)
        optimizer = adam(
            self.actor,
            config.learning_rate,
            total_updates,
            schedule=config.schedule,
            weight_decay=config.weight_decay,
        )
        super().__init__(
            {"actor": self.actor},
            {"actor": optimizer},
            code=self.actor.code,
            batch_size=config.batch_size,
            seed=seed,
            device=device,
        )

    def predict(self, obs: dict[str, Tensor]) -> Tensor:
        """Return pi(s), (B, A)."""
        predicted: Tensor = self.actor(obs)
        return predicted

    def learn(self, batch: TransitionBatch) -> Metrics:
        """Take one step of the regression."""
        loss = self.code.loss(self.actor(batch.obs), batch.action).mean()
        report = self.optimizers["actor"].step({"action": loss}, loss, self.updates_made)
        return {"action_loss": float(loss.detach())} | report
