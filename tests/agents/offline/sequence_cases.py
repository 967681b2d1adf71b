"""Small data sets and agents for the tests of the return-conditioned sequence policies."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from statewise.agents.offline.decision_mamba import DecisionMamba, DecisionMambaConfig
from statewise.agents.offline.decision_s4 import DecisionS4, DecisionS4Config, DecisionS4Sequence
from statewise.agents.offline.decision_transformer import (
    DecisionTransformer,
    DecisionTransformerConfig,
)
from statewise.agents.offline.protocol import ObsStatistics
from statewise.agents.offline.sequence_agent import SequenceAgent
from statewise.agents.offline.sequence_policy import SequencePolicy
from statewise.agents.offline.tokens import PolicyRows
from statewise.data.dataset import EpisodeDataset
from statewise.data.episode import Episode
from statewise.data.rows import Stretches, lay_out
from statewise.data.samplers import SampledBatch
from statewise.ssm.build import Kind
from statewise.ssm.mamba import MambaConfig
from statewise.ssm.s4 import S4Config
from statewise.ssm.s4d import S4DConfig

OBS_SPACE = spaces.Dict({"obs": spaces.Box(-np.inf, np.inf, (3,))})
BOX = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 3], np.float32))
DISCRETE = spaces.Discrete(3)
SMALL: dict[str, Any] = {"warmup_updates": 2, "batch_size": 3, "return_scale": 5.0, "dropout": 0.0}


def make_dataset(
    lengths: Sequence[int] = (5, 2, 7, 4), *, discrete: bool = False, seed: int = 0
) -> EpisodeDataset:
    """Return random episodes; the odd ones terminate, the others are cut off."""
    rng = np.random.default_rng(seed)

    def actions(n: int) -> Any:
        if discrete:
            return rng.integers(3, size=n)
        return rng.uniform(BOX.low, BOX.high, (n, 2)).astype(np.float32)

    return EpisodeDataset.from_episodes(
        [
            Episode(
                observations={"obs": rng.normal(1, 2, (n + 1, 3)).astype(np.float32)},
                actions=actions(n),
                rewards=rng.normal(size=n).astype(np.float32),
                terminated=i % 2 == 1,
                truncated=i % 2 == 0,
            )
            for i, n in enumerate(lengths)
        ]
    )


def statistics_of(dataset: EpisodeDataset) -> ObsStatistics:
    numbers = dataset.statistics()
    return ObsStatistics(numbers.obs_mean, numbers.obs_std)


def batch_of(
    dataset: EpisodeDataset, episodes: Sequence[int], *, width: int = 0, packed: bool = False
) -> SampledBatch:
    """Return whole episodes, a line each, or all in one line, padded to `width`."""
    index = np.array(episodes, np.int64)
    rows = dataset.lengths[index]
    zeros = np.zeros_like(index)
    column = np.cumsum(rows) - rows if packed else zeros
    line = zeros if packed else np.arange(len(index))
    shape = (int(line.max()) + 1, max(width, int((column + rows).max())))
    laid_out = lay_out(dataset.source, Stretches(index, zeros, rows, line, column), shape)
    return SampledBatch(laid_out.step, laid_out.rtg, laid_out.timestep, torch.from_numpy(index))


def transformer(depth: int = 2, space: spaces.Space[Any] = BOX, **changes: Any) -> SequenceAgent:
    settings = {**SMALL, "d_model": 8, "num_heads": 2, "num_layers": depth, "context": 4} | changes
    return finished(DecisionTransformer, DecisionTransformerConfig(**settings), space)


def mamba(depth: int = 2, space: spaces.Space[Any] = BOX, **changes: Any) -> SequenceAgent:
    settings = {
        **SMALL,
        "d_model": 8,
        "num_layers": depth,
        "mamba": MambaConfig(state_size=4),
        "train_on": "trajectories",
        "inference": "recurrent",
    } | changes
    return finished(DecisionMamba, DecisionMambaConfig(**settings), space)


def s4(
    depth: int = 2, space: spaces.Space[Any] = BOX, kind: Kind = "s4d", **changes: Any
) -> SequenceAgent:
    sizes = {"s4d": {"s4d": S4DConfig(state_size=8)}, "s4": {"s4": S4Config(state_size=8)}}
    sequence = DecisionS4Sequence(
        kind=kind,
        num_layers=depth,
        d_model=8,
        **sizes.get(kind, {}),  # type: ignore[arg-type]
    )
    settings = {**SMALL, "d_embed": 8, "sequence": sequence} | changes
    return finished(DecisionS4, DecisionS4Config(**settings), space)


def finished(make: Callable[..., SequenceAgent], config: Any, space: Any) -> SequenceAgent:
    dataset = make_dataset(discrete=space is DISCRETE)
    return make(
        config, OBS_SPACE, space, statistics=statistics_of(dataset), total_updates=50, seed=0
    )


MAKERS: dict[str, Callable[..., SequenceAgent]] = {
    "transformer": transformer,
    "mamba": mamba,
    "s4d": s4,
    "gru": lambda *args, **changes: s4(*args, kind="gru", **changes),
    "s5": lambda *args, **changes: s4(*args, kind="s5", **changes),
}


def double(agent: SequenceAgent) -> SequencePolicy:
    """Return the agent's policy in float64, for acting."""
    return agent.policy.double().eval()


def rows_of(policy: SequencePolicy, batch: SampledBatch) -> PolicyRows:
    with torch.no_grad():
        return policy.rows(batch)


def gradients(policy: SequencePolicy, total: Tensor) -> dict[str, Tensor]:
    names = [name for name, p in policy.named_parameters() if p.requires_grad]
    parameters = [p for p in policy.parameters() if p.requires_grad]
    found = torch.autograd.grad(total, parameters, allow_unused=True, retain_graph=True)
    return {n: g for n, g in zip(names, found, strict=True) if g is not None}
