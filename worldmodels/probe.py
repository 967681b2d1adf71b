"""Probes: what can be read from the frozen states of a world model.

Deng et al. 2023 ask what h and z of a trained model know of the world by training a small network
on them to predict labels: places of objects by their mean squared error, walls by their share of
right answers. No gradient reaches the model.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statewise.data.shift import to_arrival
from statewise.data.step import Step
from statewise.worldmodels.model import WorldModel
from statewise.worldmodels.state import flat_stoch


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """How a probe is trained."""

    hidden: tuple[int, ...] = (64,)  # widths, each >= 1; empty: a linear probe
    learning_rate: float = 1e-3  # > 0, Adam
    updates: int = 1000  # >= 1
    batch_size: int = 256  # >= 1, rows

    def __post_init__(self) -> None:
        if min((*self.hidden, self.updates, self.batch_size)) < 1:
            raise ValueError(f"expected hidden, updates and batch_size of at least 1, got {self}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: expected more than 0, got {self.learning_rate}")


@torch.no_grad()
def frozen_features(
    world: WorldModel, step: Step, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return [h, z] of the rows of episodes, and where they are.

    Args:
        world: the model.
        step: (B, T, ...), each line from the first row of an episode on.
        generator: of the samples z.

    Returns:
        (n, D + S K) of the rows that are observations, and (B, T) bool, True at those rows:
        `labels[rows]` of labels (B, T, ...) belongs to the features.
    """
    arrival = to_arrival(step)
    noise = world.noise(*arrival.counts.shape, generator=generator)
    seen = world.observe(step.obs, world.action_in(arrival), None, step.reset, noise)
    features = torch.cat((seen.deter, flat_stoch(seen.stoch)), -1)
    return features[arrival.counts], arrival.counts


class Probe(nn.Module):
    """A small network from features to labels.

    Args:
        d_in: width of the features.
        d_out: numbers, or classes.
        kind: what the labels are: int64 "classes" (n,), or "numbers" (n, d_out).
        config: sizes.
    """

    def __init__(self, d_in: int, d_out: int, kind: str, config: ProbeConfig):
        super().__init__()
        self.kind = kind
        widths = (d_in, *config.hidden)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], d_out))
        self.register_buffer("mean", torch.zeros(d_in))
        self.register_buffer("scale", torch.ones(d_in))
        self.mean: Tensor
        self.scale: Tensor

    def forward(self, features: Tensor) -> Tensor:
        """Map (n, d_in) to numbers or logits (n, d_out)."""
        out: Tensor = self.layers((features - self.mean) / self.scale)
        return out

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the mean squared error, or the cross-entropy of classes."""
        predicted = self(features)
        if self.kind == "classes":
            return F.cross_entropy(predicted, labels)
        return F.mse_loss(predicted, labels)

    @torch.no_grad()
    def score(self, features: Tensor, labels: Tensor) -> float:
        """Return the mean squared error, or the share of right classes."""
        if self.kind == "classes":
            return float((self(features).argmax(-1) == labels).double().mean())
        return float(self.loss(features, labels))


def train_probe(
    features: Tensor, labels: Tensor, config: ProbeConfig, generator: torch.Generator
) -> Probe:
    """Train a probe.

    Args:
        features: (n, d_in), without gradient.
        labels: (n,) int64 classes counted from 0, or (n, d_out) numbers.
        config: how.
        generator: on the CPU, of initial weights and batches.

    Raises:
        ValueError: features and labels do not belong together.
    """
    is_classes = not labels.is_floating_point()
    if len(labels) != len(features) or labels.dim() != (1 if is_classes else 2):
        wanted = "(n,) of integers or (n, d) of numbers"
        raise ValueError(
            f"labels: expected {wanted}, n = {len(features)}, got {tuple(labels.shape)} of"
            f" {labels.dtype}"
        )
    d_out = int(labels.max()) + 1 if is_classes else labels.shape[1]
    kind = "classes" if is_classes else "numbers"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        probe = Probe(features.shape[1], d_out, kind, config).to(features)
    probe.mean.copy_(features.mean(0))
    probe.scale.copy_(features.std(0, correction=0).clamp(min=1e-3))
    adam = torch.optim.Adam(probe.parameters(), lr=config.learning_rate)
    for _ in range(config.updates):
        rows = torch.randint(len(features), (config.batch_size,), generator=generator)
        rows = rows.to(features.device)
        adam.zero_grad(set_to_none=True)
        probe.loss(features[rows], labels[rows]).backward()
        adam.step()
    return probe
