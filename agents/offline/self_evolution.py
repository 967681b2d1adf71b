"""Progressive self-evolution: labels of a data set, refined by the policy as it was before.

Paper: Lv et al. 2024, "Decision Mamba: A Multi-Grained State Space Model with Self-Evolution
Regularization for Offline RL". With a_hat the prediction, a the label, a' that of a past policy:

    target = (1 - beta_k) a + beta_k a',   beta_k = min(beta_max, beta_T k / K)

where k of K equal parts of the run are over. For the squared error this is

    (1 - beta) |a_hat - a|^2 + beta |a_hat - a'|^2 - const,

a term that holds the policy near its past and damps the fitting of noisy labels late in a run.
The past policy is in evaluation mode and no gradient reaches it. With the present policy in its
place only the gradient's scale would change, by 1 - beta.

Deviations: beta is 0 in the first part, which has no part before it. Of discrete actions a is a
one-hot vector and a' holds probabilities.
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from statewise.agents.offline.sequence_policy import SequencePolicy
from statewise.agents.state_dicts import load_weights
from statewise.data.samplers import SampledBatch

EMA_DECAY = 0.999


@dataclass(frozen=True, kw_only=True)
class SelfEvolutionConfig:
    """How much of a label comes from which past policy."""

    teacher: Literal["prev_iteration", "ema", "prev_step"] = "prev_iteration"  # the past policy
    iterations: int = 40  # K >= 1, equal parts of a run
    beta_final: float = 0.85  # beta_T >= 0, slope of the share: its value where the run ends
    beta_max: float = 0.5  # [0, 1), largest share; 0 leaves the labels as they are
    ema_decay: float = EMA_DECAY  # [0, 1), per update, of teacher ema

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations: expected at least 1, got {self.iterations}")
        if not self.beta_final >= 0:
            raise ValueError(f"beta_final: expected 0 or more, got {self.beta_final}")
        for name in ("beta_max", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected [0, 1), got {getattr(self, name)}")
        if self.teacher != "ema" and self.ema_decay != EMA_DECAY:
            raise ValueError(
                f"ema_decay: would be ignored with teacher {self.teacher!r}, got "
                f"{self.ema_decay}: remove the setting or change teacher"
            )


def iteration(update: int, total_updates: int, iterations: int) -> int:
    """Return how many of a run's equal parts are over before an update, counted from 0."""
    return update * iterations // total_updates


def share(k: int, config: SelfEvolutionConfig) -> float:
    """Return beta_k after k parts of the run."""
    return min(config.beta_max, config.beta_final * k / config.iterations)


def as_code(predicted: Tensor, nvec: tuple[int, ...]) -> Tensor:
    """Return predictions (..., width) as labels: of a Box as they are, of logits probabilities.

    Args:
        predicted: codes, or logits of all components side by side.
        nvec: categories of each component; empty for a Box.
    """
    if not nvec:
        return predicted
    return torch.cat([part.softmax(-1) for part in predicted.split(nvec, -1)], -1)


def refined(label: Tensor, past: Tensor, beta: float) -> Tensor:
    """Return (1 - beta) label + beta past, (..., A) each; no gradient reaches `past`."""
    return (1 - beta) * label + beta * past.detach()


class Teacher:
    """The past of a policy: a copy of it that follows at a distance.

    Args:
        policy: what it starts as.
        config: which past.
        total_updates: >= 1, of the run.
    """

    def __init__(
        self, policy: SequencePolicy, config: SelfEvolutionConfig, total_updates: int
    ) -> None:
        self.network = copy.deepcopy(policy).requires_grad_(False).eval()
        self.config = config
        self.total_updates = total_updates

    def _iteration(self, update: int) -> int:
        return iteration(update, self.total_updates, self.config.iterations)

    def share(self, update: int) -> float:
        """Return beta at an update, counted from 0."""
        return share(min(self._iteration(update), self.config.iterations), self.config)

    @torch.no_grad()
    def labels(self, batch: SampledBatch) -> Tensor:
        """Return what the past policy would do, codes (B, T, A)."""
        network = self.network
        return as_code(network(network.rows(batch)), network.code.nvec)

    def kept(self, policy: nn.Module) -> dict[str, Tensor] | None:
        """Return the weights to hand to `follow` after the update that now begins, if any."""
        if self.config.teacher != "prev_step":
            return None
        return {name: value.clone() for name, value in policy.state_dict().items()}

    @torch.no_grad()
    def follow(self, policy: nn.Module, kept: dict[str, Tensor] | None, updates_made: int) -> None:
        """Move on after an update.

        Args:
            policy: with its new weights.
            kept: from `kept` before the update.
            updates_made: >= 1, with this one.
        """
        match self.config.teacher:
            case "ema":
                step = 1 - self.config.ema_decay
                for own, new in zip(self.network.parameters(), policy.parameters(), strict=True):
                    own.lerp_(new, step)
            case "prev_step":
                assert kept is not None
                load_weights(self.network, kept)
            case "prev_iteration":
                if self._iteration(updates_made) > self._iteration(updates_made - 1):
                    load_weights(self.network, policy.state_dict())
