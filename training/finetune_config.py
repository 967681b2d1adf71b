"""Configuration of fine-tuning a trained Decision S4 in its environment.

`training.config` lays presets and overrides over it, as it does with the settings of a run.
"""

from dataclasses import dataclass, field
from typing import Literal

from statewise.agents.offline.finetune_s4 import ActorCriticConfig
from statewise.agents.offline.weighted_bc import WeightedBCConfig
from statewise.training.schema import check_at_least

# Each with the default it must keep where the other method is chosen.
METHODS = {"actor_critic": ActorCriticConfig, "weighted_bc": WeightedBCConfig}


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Everything that determines the on-policy stage, beside the run that it goes on from."""

    method: Literal["actor_critic", "weighted_bc"] = "actor_critic"
    actor_critic: ActorCriticConfig = field(default_factory=ActorCriticConfig)
    weighted_bc: WeightedBCConfig = field(default_factory=WeightedBCConfig)
    total_steps: int = 100_000  # environment steps of the whole stage, >= 1
    num_envs: int = 1  # stepped together, >= 1
    train_every: int = 10  # steps between two trainings, a multiple of num_envs
    updates_per_train: int = 4  # >= 1
    learning_starts: int = 5_000  # >= 0 steps before the first training
    noise: tuple[float, ...] = (0.2, 0.05, 0.01)  # deviations of the action code, >= 0, over time
    target: float | None = None  # return asked for at first; None: the first of the run's targets
    target_spread: float = 0.15  # [0, 1), by how much the return asked for varies, relative
    target_margin: float = 0.1  # >= 0, how far it lies above what is got, of the reference range
    recalibrate_every: int = 200  # >= 1 episodes between two choices of that return
    log_every_steps: int = 500  # >= 1
    eval_every_steps: int = 0  # steps between two evaluations; 0: none
    checkpoint_every_steps: int = 50_000  # >= 1; a checkpoint holds the replay
    checkpoints_kept: int = 1  # >= 1

    def __post_init__(self) -> None:
        check_at_least(
            1,
            total_steps=self.total_steps,
            num_envs=self.num_envs,
            train_every=self.train_every,
            updates_per_train=self.updates_per_train,
            recalibrate_every=self.recalibrate_every,
            log_every_steps=self.log_every_steps,
            checkpoint_every_steps=self.checkpoint_every_steps,
            checkpoints_kept=self.checkpoints_kept,
        )
        check_at_least(
            0, learning_starts=self.learning_starts, eval_every_steps=self.eval_every_steps
        )
        if self.train_every % self.num_envs:
            raise ValueError(
                f"train_every: expected a multiple of num_envs ({self.num_envs}), got "
                f"{self.train_every}"
            )
        if not self.noise or min(self.noise) < 0:
            raise ValueError(f"noise: expected numbers of 0 or more, got {list(self.noise)}")
        if not 0 <= self.target_spread < 1:
            raise ValueError(f"target_spread: expected [0, 1), got {self.target_spread}")
        if not self.target_margin >= 0:
            raise ValueError(f"target_margin: expected 0 or more, got {self.target_margin}")
        for name, settings in METHODS.items():
            if name != self.method and getattr(self, name) != settings():
                raise ValueError(f"{name}: would be ignored with method {self.method}")


def noise_at(steps: int, quiet_steps: int, config: FinetuneConfig) -> float:
    """Return the deviation of the exploration noise.

    0 for `quiet_steps`, then straight lines from value to value of `noise`, at equal distances up
    to the last step.
    """
    if steps < quiet_steps:
        return 0.0
    share = (steps - quiet_steps) / max(1, config.total_steps - quiet_steps)
    place = min(1.0, share) * (len(config.noise) - 1)
    left = min(int(place), max(0, len(config.noise) - 2))
    right = min(left + 1, len(config.noise) - 1)
    return config.noise[left] + (place - left) * (config.noise[right] - config.noise[left])
