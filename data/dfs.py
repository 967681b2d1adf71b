"""Dynamic frequency-based sampling: which starts of windows are drawn how often.

Drama (arXiv 2410.08893) counts for every start i of a window how often a world model was trained on
it, c_i, and how often imagination began with it, m_i. A batch has no start twice.

    world model   p = softmax(-c / tau)
    imagination   m' = m / imagine_ratio
                  p = softmax((c - alpha m' - beta max(0, c - m')) / imagine_tau)

With alpha = beta = 1 the second score is min(0, c - m'): windows that were imagined from more often
than they were learned from are held back, all others are equal.

Deviations: probabilities stay logarithms, so that large counts do not underflow to 0 / 0; starts
are drawn by the largest of log p + Gumbel noise, which is drawing one after the other without
replacement.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from statewise.data.errors import DataConfigError
from statewise.data.memory import Index

Purpose = Literal["world_model", "imagination"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DfsConfig:
    """Settings of frequency-based sampling.

    Raises:
        DataConfigError: a field is out of its range.
    """

    tau: float = 10.0  # > 0, temperature of world-model draws, in draws
    imagine_tau: float = 10.0  # > 0, temperature of imagination draws
    alpha: float = 1.0  # >= 0, weight of past imagination
    beta: float = 1.0  # >= 0, weight of training that imagination has not followed yet
    imagine_ratio: float = 64.0  # > 0, imagined windows per window of a world-model batch: 1024/16

    def __post_init__(self) -> None:
        for key in ("tau", "imagine_tau", "imagine_ratio"):
            if not 0 < getattr(self, key) < np.inf:
                problem = f"expected a finite number > 0, got {getattr(self, key)}"
                raise DataConfigError(problem, key=f"replay.dfs.{key}")
        for key in ("alpha", "beta"):
            if not 0 <= getattr(self, key) < np.inf:
                problem = f"expected a finite number >= 0, got {getattr(self, key)}"
                raise DataConfigError(problem, key=f"replay.dfs.{key}")


def world_model_logits(trained: Index, config: DfsConfig) -> Floats:
    """Return (n,) log p up to a constant.

    Args:
        trained: (n,) c, world-model draws so far.
        config: tau.
    """
    return -trained / config.tau


def imagination_logits(trained: Index, imagined: Index, config: DfsConfig) -> Floats:
    """Return (n,) log p up to a constant.

    Args:
        trained: (n,) c, world-model draws so far.
        imagined: (n,) m, imagination draws so far.
        config: alpha, beta, imagine_ratio and imagine_tau.
    """
    rescaled = imagined / config.imagine_ratio
    untouched = np.maximum(0, trained - rescaled)
    score: Floats = trained - config.alpha * rescaled - config.beta * untouched
    return score / config.imagine_tau


def draw_without_replacement(logits: Floats, size: int, generator: np.random.Generator) -> Index:
    """Return (size,) different numbers 0 .. n - 1, drawn one after the other.

    Args:
        logits: (n,) log p up to a constant, n >= size.
        size: at least 1.
        generator: is drawn from.
    """
    noisy = logits + generator.gumbel(size=len(logits))
    chosen = np.argpartition(-noisy, size - 1)[:size]
    return chosen[np.argsort(-noisy[chosen])]


class DfsCounts:
    """How often each start was drawn: c and m per worker and slot of a ring.

    Args:
        num_workers: W.
        slots: of the ring.
        config: of the probabilities.
    """

    def __init__(self, num_workers: int, slots: int, config: DfsConfig) -> None:
        self.config = config
        self._trained: Index = np.zeros((num_workers, slots), np.int64)
        self._imagined: Index = np.zeros((num_workers, slots), np.int64)

    def draw(
        self,
        worker: Index,
        slot: Index,
        size: int,
        purpose: Purpose,
        generator: np.random.Generator,
    ) -> Index:
        """Draw `size` of n starts, none twice, and count them.

        Args:
            worker: (n,) of the starts.
            slot: (n,).
            size: at most n.
            purpose: whose counter goes up, and which probabilities hold.
            generator: is drawn from.

        Returns:
            (size,) numbers 0 .. n - 1.
        """
        trained = self._trained[worker, slot]
        if purpose == "world_model":
            logits, counter = world_model_logits(trained, self.config), self._trained
        else:
            imagined = self._imagined[worker, slot]
            logits = imagination_logits(trained, imagined, self.config)
            counter = self._imagined
        chosen = draw_without_replacement(logits, size, generator)
        counter[worker[chosen], slot[chosen]] += 1
        return chosen

    def clear(self, worker: Index, slot: Index) -> None:
        """Forget the draws of rows that others take the place of; arrays that broadcast."""
        self._trained[worker, slot] = 0
        self._imagined[worker, slot] = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return {"trained": self._trained.copy(), "imagined": self._imagined.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with other counts (W, slots)."""
        self._trained[...] = state["trained"]
        self._imagined[...] = state["imagined"]
