"""Small agents that learn from single steps, and batches for them."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from statewise.agents.offline.behavior_cloning import BehaviorCloning, BehaviorCloningConfig
from statewise.agents.offline.iql import IQL, IQLConfig
from statewise.agents.offline.protocol import ObsStatistics
from statewise.agents.offline.td3_bc import TD3BC, TD3BCConfig
from statewise.data.samplers import TransitionBatch
from tests.agents.offline.sequence_cases import BOX, DISCRETE, OBS_SPACE

STATISTICS = ObsStatistics({"obs": np.array([1.0, 0.0, -1.0])}, {"obs": np.array([2.0, 1.0, 0.5])})
UNIT = spaces.Box(-1.0, 1.0, (1,))
TWO = spaces.Discrete(2)
SYSTEMS: dict[str, tuple[Any, Any]] = {
    "bc": (BehaviorCloning, BehaviorCloningConfig),
    "td3bc": (TD3BC, TD3BCConfig),
    "iql": (IQL, IQLConfig),
}


def made(
    name: str,
    space: spaces.Space[Any] = BOX,
    *,
    seed: int = 0,
    total_updates: int = 50,
    statistics: ObsStatistics | None = STATISTICS,
    **changes: Any,
) -> Any:
    """Return an agent of a system."""
    make, config = SYSTEMS[name]
    return make(
        config(**{"hidden": (8, 8), "batch_size": 4} | changes),
        OBS_SPACE,
        space,
        statistics=statistics,
        total_updates=total_updates,
        seed=seed,
    )


def random_batch(space: spaces.Space[Any] = BOX, size: int = 6, seed: int = 0) -> TransitionBatch:
    """Return random steps; of three, one terminated and one was cut off."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.arange(size)
    if space is DISCRETE:
        action = torch.randint(3, (size,), generator=draw)
    else:
        low, high = (torch.as_tensor(bound) for bound in (BOX.low, BOX.high))
        action = low + (high - low) * torch.rand((size, 2), generator=draw)
    return TransitionBatch(
        obs={"obs": torch.randn((size, 3), generator=draw)},
        action=action,
        reward=torch.randn(size, generator=draw),
        next_obs={"obs": torch.randn((size, 3), generator=draw)},
        terminated=rows % 3 == 0,
        truncated=rows % 3 == 1,
        episode=rows,
        timestep=rows,
    )


def bandit(good: Tensor, bad: Tensor) -> TransitionBatch:
    """Return a task of one step: 4 rows with the action `good` and reward 1, 12 with `bad`, 0."""
    action = torch.stack([good] * 4 + [bad] * 12)
    obs = {"obs": torch.zeros(16, 3)}
    yes, rows = torch.ones(16, dtype=torch.bool), torch.arange(16)
    return TransitionBatch(obs, action, (rows < 4).float(), obs, yes, ~yes, rows, rows)


def acted(agent: Any, obs: Tensor, *, explore: bool = False) -> Tensor:
    """Return actions at observations (B, 3)."""
    no = torch.zeros(len(obs), dtype=torch.bool)
    action: Tensor = agent.act({"obs": obs}, {}, no, no, explore=explore)[0]
    return action
