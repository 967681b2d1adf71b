"""Sequence agents with pictures, and on a device that is not the CPU."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from statewise.agents.offline.decision_s4 import DecisionS4, DecisionS4Config
from statewise.agents.offline.decision_transformer import (
    DecisionTransformer,
    DecisionTransformerConfig,
)
from statewise.agents.offline.protocol import ObsStatistics
from statewise.agents.offline.sequence_agent import SequenceAgent
from statewise.data.dataset import EpisodeDataset
from statewise.data.episode import Episode
from statewise.nets.encoder import EncoderConfig
from tests.agents.offline.sequence_cases import MAKERS, SMALL, batch_of, make_dataset
from tests.agents.offline.test_acting import random_obs
from tests.agents.ppo_cases import copied
from tests.pretend_device import DEVICE, PretendDevice

EYE = spaces.Box(0, 255, (8, 8, 1), np.uint8)
SPACE = spaces.Dict({"eye": EYE, "x": spaces.Box(-1, 1, (1,))})


def pictures() -> EpisodeDataset:
    rng = np.random.default_rng(0)
    return EpisodeDataset.from_episodes(
        [
            Episode(
                observations={
                    "eye": rng.integers(256, size=(n, 8, 8, 1), dtype=np.uint8),
                    "x": rng.normal(size=(n, 1)).astype(np.float32),
                },
                actions=rng.integers(3, size=n),
                rewards=np.ones(n, np.float32),
                terminated=True,
                truncated=False,
            )
            for n in (3, 2)
        ]
    )


@pytest.mark.parametrize("make", ["window", "recurrent"])
def test_pictures_are_read_in_learning_and_in_acting(make: str) -> None:
    dataset = pictures()
    settings: dict[str, Any] = SMALL | {"encoder": EncoderConfig(hidden=(4,), channels=(2,))}
    numbers = dataset.statistics()
    common: dict[str, Any] = {
        "statistics": ObsStatistics(numbers.obs_mean, numbers.obs_std),
        "total_updates": 10,
        "seed": 0,
    }
    agent: SequenceAgent
    if make == "window":
        config = DecisionTransformerConfig(**settings, d_model=8, num_layers=1, context=3)
        agent = DecisionTransformer(config, SPACE, spaces.Discrete(3), **common)
    else:
        agent = DecisionS4(DecisionS4Config(**settings), SPACE, spaces.Discrete(3), **common)
    before = copied({key: p.detach() for key, p in agent.policy.inputs.named_parameters()})
    agent.update(batch_of(dataset, [0, 1]))
    changed = [
        key
        for key, p in agent.policy.inputs.named_parameters()
        if not torch.equal(p.detach(), before[key])
    ]
    assert any("convolutions" in key for key in changed), changed
    agent.policy.double()
    state, yes = agent.initial_state(2), torch.ones(2, dtype=torch.bool)
    eyes = torch.stack((torch.zeros(8, 8, 1), torch.full((8, 8, 1), 255.0))).to(torch.uint8)
    obs = {
        "eye": eyes,
        "x": torch.zeros(2, 1),
        "previous_action": torch.zeros(2, 3),
        "return_to_go": torch.ones(2, 1),
    }
    assert agent.policy.inputs(obs)[0].ne(agent.policy.inputs(obs)[1]).any()
    action, _, _ = agent.act(obs, state, yes, yes, explore=False)
    assert action.shape == (2,)


@pytest.mark.parametrize("name", ["transformer", "mamba", "s4d"])
def test_acting_and_learning_stay_on_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = MAKERS[name](1, dropout=0.1)
    agent.policy.to(DEVICE)
    agent.device = DEVICE
    # What the pretended device has not: a generator and the fused AdamW.
    monkeypatch.setattr(agent, "generator", None)
    for group in agent.optimizer._made().param_groups:
        group["fused"] = False
    obs = {key: x.to(DEVICE) for key, x in random_obs(torch.Generator().manual_seed(0)).items()}
    flags = torch.zeros(2, dtype=torch.bool, device=DEVICE)
    with PretendDevice():
        report = agent.update(batch_of(make_dataset(), [0, 1]))
        state = agent.initial_state(2)
        action, _, after = agent.act(obs, state, flags, flags, explore=True)
    assert all(isinstance(value, float) for value in report.values())
    assert {x.device.type for x in (action, *state.values(), *after.values())} == {"meta"}
