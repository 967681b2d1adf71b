"""What agents on single steps share: targets, saved states, acting, errors, settings."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from statewise.agents.offline.transitions import follow, frozen_copy, td_target, twin_loss
from statewise.agents.recurrent_ppo import NonFiniteLossError
from statewise.data.samplers import TransitionConfig, TransitionSampler
from tests.agents.offline.sequence_cases import BOX, DISCRETE, make_dataset
from tests.agents.offline.transition_cases import SYSTEMS, acted, made, random_batch
from tests.agents.ppo_cases import assert_same_tree, copied

CASES = [("bc", BOX), ("bc", DISCRETE), ("td3bc", BOX), ("iql", BOX), ("iql", DISCRETE)]
each_case = pytest.mark.parametrize(("name", "space"), CASES, ids=lambda x: str(x)[:8])


def test_only_termination_cuts_the_target() -> None:
    terminated = torch.tensor([False, True, False])
    value = torch.tensor([10.0, math.nan, 30.0], requires_grad=True)
    target = td_target(torch.tensor([1.0, 2.0, 3.0]), terminated, value, 0.5)
    assert target.tolist() == [6.0, 2.0, 18.0]
    assert not target.requires_grad


def test_both_critics_count() -> None:
    q, target = torch.tensor([[1.0, 2.0], [0.0, 5.0]]), torch.tensor([0.0, 4.0])
    assert twin_loss(q, target).item() == pytest.approx((1 + 4) / 2 + (0 + 1) / 2)


def test_the_critics_are_two_networks() -> None:
    critics, batch = made("td3bc").critics, random_batch()
    with torch.no_grad():
        q = critics(batch.obs, batch.action)
        assert torch.equal(critics.first(batch.obs, batch.action), q[0])
        critics.one[-1].bias += 1.0
        moved = critics(batch.obs, batch.action) - q
    assert torch.allclose(moved, torch.tensor([[1.0], [0.0]]).expand(2, 6), atol=1e-5)


def test_targets_go_a_share_of_the_way() -> None:
    source = nn.Linear(1, 1)
    target = frozen_copy(source)
    for network, value in ((source, 1.0), (target, 0.0)):
        for parameter in network.parameters():
            nn.init.constant_(parameter, value)
    found = []
    for _ in range(2):
        follow(target, source, 0.1)
        found += [p.item() for p in target.parameters()]
    assert found == pytest.approx([0.1, 0.1, 0.19, 0.19])
    assert all(p.item() == 1.0 for p in source.parameters())
    assert not any(p.requires_grad for p in target.parameters())


@each_case
def test_a_saved_agent_goes_on_bit_by_bit(name: str, space: spaces.Space[Any]) -> None:
    agent = made(name, space)
    batches = [random_batch(space, seed=seed) for seed in range(4)]
    for batch in batches[:3]:
        agent.update(batch)
    acted(agent, batches[0].obs["obs"], explore=True)
    saved = copied(agent.state_dict())
    other = made(name, space, seed=5, statistics=None)
    other.update(batches[1])  # what it has seen before does not matter
    other.load_state_dict(saved)
    results = []
    for one in (agent, other):
        torch.rand(())
        report = one.update(batches[3])
        action = acted(one, batches[0].obs["obs"], explore=True)
        results.append({"action": action, "report": report} | copied(one.state_dict()))
    assert_same_tree(*results)
    assert other.updates_made == 4


@each_case
def test_actions_are_those_of_the_space_and_need_no_memory(
    name: str, space: spaces.Space[Any]
) -> None:
    agent = made(name, space)
    obs = {"obs": 10 * random_batch().obs["obs"]}
    state, yes = agent.initial_state(6), torch.ones(6, dtype=torch.bool)
    assert state == {}
    assert agent.inputs == ()
    greedy = acted(agent, obs["obs"])
    for explore in (False, True):
        action, extras, after = agent.act(obs, state, yes, yes, explore=explore)
        assert (extras, after) == ({}, {})
        for row in action.numpy():
            assert space.contains(row), row
        assert torch.equal(action, greedy) or explore
    alone = torch.cat([acted(agent, row[None]) for row in obs["obs"]])
    assert torch.allclose(alone, greedy, atol=1e-5)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_time_limit_is_nothing_to_learn(name: str) -> None:
    agent, other = made(name), made(name)
    batch = random_batch()
    reports = [
        agent.update(batch),
        other.update(batch._replace(truncated=torch.zeros_like(batch.truncated))),
    ]
    assert reports[0] == reports[1]


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_sampler_of_the_data_makes_the_batches(name: str) -> None:
    agent = made(name)
    assert agent.sampling == TransitionConfig(batch_size=4)
    sampler = TransitionSampler(make_dataset(), agent.sampling, np.random.default_rng(0))
    state = torch.get_rng_state()
    report = agent.update(sampler.sample())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(isinstance(x, float) and math.isfinite(x) for x in report.values()), report
    assert next(iter(report)).endswith("_loss")
    assert {"grad_norm", "learning_rate"} <= report.keys()


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_broken_batch_is_named_and_changes_nothing(name: str) -> None:
    agent = made(name)
    batch = random_batch()
    batch.obs["obs"][0, 0] = math.nan
    before = copied(agent.state_dict()["networks"])
    with pytest.raises(NonFiniteLossError, match=" = NaN or infinity after 0 updates"):
        agent.update(batch)
    assert_same_tree(agent.state_dict()["networks"], before)


def test_states_that_do_not_fit_are_named() -> None:
    agent = made("iql")
    saved = copied(agent.state_dict())
    with pytest.raises(ValueError, match=r"expected the keys .*'updates_made'.*, got "):
        agent.load_state_dict({k: x for k, x in saved.items() if k != "updates_made"})
    with pytest.raises(ValueError, match=r"expected the keys .*'value'\], got \['actor'\]"):
        agent.load_state_dict(saved | {"networks": {"actor": {}}})
    with pytest.raises(ValueError, match=r"weights do not fit: actor\.layers\.2"):
        made("iql", hidden=(8, 9)).load_state_dict(saved)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("bc", "learning_rate", 0.0),
        ("bc", "batch_size", 0),
        ("bc", "hidden", (8, 0)),
        ("bc", "weight_decay", -0.1),
        ("td3bc", "discount", 1.1),
        ("td3bc", "target_rate", 0.0),
        ("td3bc", "alpha", -1.0),
        ("td3bc", "target_noise", -1.0),
        ("td3bc", "target_clip", -1.0),
        ("td3bc", "policy_delay", 0),
        ("iql", "discount", -0.1),
        ("iql", "expectile", 1.0),
        ("iql", "temperature", -1.0),
        ("iql", "reward_scale", 0.0),
    ],
)
def test_settings_out_of_range_are_named(name: str, field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field}: expected .*got"):
        SYSTEMS[name][1](**{field: value})
