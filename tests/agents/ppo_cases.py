"""A small agent and a hand-made batch for the tests of recurrent PPO."""

from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from statewise.agents.recurrent_ppo import (
    LossScale,
    RecurrentPPO,
    RecurrentPPOConfig,
)
from statewise.data.step import Batch, Step
from statewise.nets.encoder import EncoderConfig
from statewise.ssm.build import SequenceConfig

OBS_SPACE = spaces.Dict({"obs": spaces.Box(-1, 1, (3,))})
DISCRETE = spaces.Discrete(3)
B, T = 4, 9


def make_config(kind: str = "s5", **changes: Any) -> RecurrentPPOConfig:
    values: dict[str, Any] = {
        "learning_rate": 1e-3,
        "num_epochs": 2,
        "num_minibatches": 2,
        "loss_scale": LossScale(value=0.5, entropy=0.01),
        "encoder": EncoderConfig(hidden=(8,)),
        "sequence": SequenceConfig(kind=kind, num_layers=2, d_model=8),
        "head_hidden": (8,),
    }
    return RecurrentPPOConfig(**values | changes)


def make_agent(
    config: RecurrentPPOConfig | None = None,
    action_space: spaces.Space[Any] = DISCRETE,
    *,
    total_steps: int = 10_000,
    seed: int = 0,
) -> RecurrentPPO:
    config = make_config() if config is None else config
    return RecurrentPPO(config, OBS_SPACE, action_space, total_steps=total_steps, seed=seed)


def make_batch(agent: RecurrentPPO, num_envs: int = B, num_rows: int = T, seed: int = 1) -> Batch:
    """Return a batch with staggered ends of both kinds in the NEXT_STEP layout."""
    draw = torch.Generator().manual_seed(seed)
    shape = (num_envs, num_rows)
    obs = torch.randn(*shape, 3, generator=draw)
    ended = torch.zeros(shape, dtype=torch.bool)
    for row in range(num_envs):
        ended[row, (2 * row + 2) % num_rows :: 5] = True
    follows = torch.cat([torch.zeros(num_envs, 1, dtype=torch.bool), ended[:, :-1]], 1)
    ended &= ~follows
    follows = torch.cat([torch.zeros(num_envs, 1, dtype=torch.bool), ended[:, :-1]], 1)
    is_first = torch.cat([follows[:, :1], follows[:, :-1]], 1)
    kind = torch.rand(shape, generator=draw) < 0.5
    reward = torch.where(follows, 0, torch.randn(shape, generator=draw))
    state = {
        key: torch.randn(x.shape, generator=draw)
        for key, x in agent.initial_state(num_envs).items()
    }
    with torch.no_grad():
        policy, value, _ = agent.network({"obs": obs}, state, is_first)
        action = policy.sample(draw)
        # an older policy's numbers, so that ratios and values differ from 1 and from the old
        log_prob = policy.log_prob(action) + 0.3 * torch.randn(shape, generator=draw)
        value = value + 0.3 * torch.randn(shape, generator=draw)
    value_tp1 = torch.cat([value[:, 1:], torch.randn(num_envs, 1, generator=draw)], 1)
    step = Step(
        {"obs": obs}, is_first, is_first, action, reward, ended & kind, ended & ~kind, ~follows
    )
    return Batch(step, state, {"value": value, "log_prob": log_prob}, value_tp1)


def parameters(agent: RecurrentPPO) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in agent.network.named_parameters()}


def copied(tree: Any) -> Any:
    """Copy nested dictionaries of tensors, as a checkpoint does."""
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    return tree.clone() if isinstance(tree, Tensor) else tree


def assert_same_tree(a: Any, b: Any, path: str = "") -> None:
    """Compare nested dictionaries bit for bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same_tree(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path
