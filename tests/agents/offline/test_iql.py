"""IQL: expectiles and weights by hand, one update by a second derivation, and its fixed point."""

import math
from typing import Any

import pytest
import torch
from gymnasium import spaces

from statewise.agents.offline.iql import advantage_weights, expectile_loss
from statewise.agents.offline.transitions import frozen_copy
from tests.agents.offline.sequence_cases import BOX, DISCRETE
from tests.agents.offline.transition_cases import TWO, UNIT, acted, bandit, made, random_batch

NETWORKS = ("policy", "critics", "value", "target_critics")


def test_the_loss_is_smallest_at_the_expectile() -> None:
    q = torch.tensor([0.0, 1.0, 4.0])
    # At m in [1, 4]: k (4 - m) = (1 - k) (m + m - 1), so that m = (1 + 3 k) / (2 - k) = 31 / 13.
    m = torch.tensor(31 / 13, requires_grad=True)
    loss = expectile_loss(q - m, 0.7)
    loss.backward()
    assert m.grad is not None
    assert m.grad.item() == pytest.approx(0.0, abs=1e-6)
    x = m.item()
    assert loss.item() == pytest.approx((0.3 * x**2 + 0.3 * (x - 1) ** 2 + 0.7 * (4 - x) ** 2) / 3)
    assert expectile_loss(q - 2.0, 0.5).item() == pytest.approx((4 + 1 + 4) / 6)


def test_weights_grow_with_the_advantage_up_to_a_limit() -> None:
    advantage = torch.tensor([-1.0, 0.0, 1.0, 2.0, 1e4], requires_grad=True)
    weight = advantage_weights(advantage, 3.0)
    assert weight.tolist() == pytest.approx([math.exp(-3), 1, math.exp(3), 100, 100])
    assert not weight.requires_grad


@pytest.mark.parametrize("space", [BOX, DISCRETE], ids=["box", "discrete"])
def test_an_update_is_that_of_the_paper(space: spaces.Space[Any]) -> None:
    agent = made("iql", space, target_rate=0.25, reward_shift=-1.0, reward_scale=0.5)
    for seed in (1, 2):
        agent.update(random_batch(space, seed=seed))
    if space is BOX:
        with torch.no_grad():
            agent.policy.log_std.copy_(torch.tensor([0.3, -9.0]))  # the second is below the limit
    batch = random_batch(space)
    old = {name: frozen_copy(agent.networks[name]) for name in NETWORKS}
    report = agent.update(batch)
    code = agent.code.encode(batch.action)
    slow, q = old["target_critics"](batch.obs, code), old["critics"](batch.obs, code)
    v_old, v, v_tp1 = old["value"](batch.obs), agent.value(batch.obs), agent.value(batch.next_obs)
    predicted = old["policy"].actor(batch.obs)
    value_loss = actor_loss = critic_loss = 0.0
    for row in range(6):
        lower = min(slow[0, row].item(), slow[1, row].item())
        u = lower - v_old[row].item()
        value_loss += (0.7 if u > 0 else 0.3) * u**2 / 6
        weight = min(math.exp(3.0 * (lower - v[row].item())), 100.0)
        if space is BOX:
            pi = torch.distributions.Normal(predicted[row], torch.tensor([0.3, -5.0]).exp())
            log_p = pi.log_prob(code[row]).sum().item()
        else:
            log_p = predicted[row].log_softmax(-1)[batch.action[row]].item()
        actor_loss -= weight * log_p / 6
        later = 0.0 if batch.terminated[row] else 0.99 * v_tp1[row].item()
        target = 0.5 * (batch.reward[row].item() - 1.0) + later
        critic_loss += sum((q[k, row].item() - target) ** 2 for k in (0, 1)) / 6
    expected = {"value_loss": value_loss, "actor_loss": actor_loss, "critic_loss": critic_loss}
    assert {name: report[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    for before, after, new in zip(
        *(x.parameters() for x in (old["target_critics"], agent.target_critics, agent.critics)),
        strict=True,
    ):
        assert torch.allclose(after, 0.75 * before + 0.25 * new, atol=1e-7)


# A task of one step. Q is 1 with probability 1/4, else 0; V solves k (1 - V) / 4 = (1 - k) 3 V / 4,
# which is 0.4375 for k = 0.7. The policy is the data's, weighted with exp(3 (Q - V)).
V_BANDIT = 0.4375
GOOD, BAD = 0.25 * math.exp(3 * (1 - V_BANDIT)), 0.75 * math.exp(-3 * V_BANDIT)
P_GOOD = GOOD / (GOOD + BAD)
LEARNING: dict[str, Any] = {
    "learning_rate": 3e-2,
    "hidden": (16,),
    "target_rate": 0.5,
    "total_updates": 120,
}


def test_a_categorical_policy_arrives_at_the_weighted_shares() -> None:
    agent = made("iql", TWO, **LEARNING)
    batch = bandit(torch.tensor(1), torch.tensor(0))
    for _ in range(120):
        report = agent.update(batch)
    assert report["value_mean"] == pytest.approx(V_BANDIT, abs=0.01)
    p = agent.predict({"obs": torch.zeros(1, 3)}).softmax(-1)[0]
    assert p[1].item() == pytest.approx(P_GOOD, abs=0.01)
    assert acted(agent, torch.zeros(1, 3)).item() == 1  # most rows of the data have 0
    assert report["learning_rate"] < 1e-5


def test_a_gaussian_policy_arrives_at_the_weighted_moments() -> None:
    agent = made("iql", UNIT, **LEARNING)
    batch = bandit(torch.tensor([0.5]), torch.tensor([-0.5]))
    for _ in range(120):
        agent.update(batch)
    mean = acted(agent, torch.zeros(1, 3)).item()
    assert mean == pytest.approx(P_GOOD - 0.5, abs=0.02)
    std = math.sqrt(P_GOOD * (1 - P_GOOD))
    assert agent.policy.log_std.exp().item() == pytest.approx(std, abs=0.03)
    drawn = acted(agent, torch.zeros(500, 3), explore=True)
    assert drawn.std().item() == pytest.approx(std, abs=0.05)


def test_without_temperature_it_imitates() -> None:
    agent = made("iql", TWO, temperature=0.0)
    report = agent.update(bandit(torch.tensor(1), torch.tensor(0)))
    assert report["weight_mean"] == 1.0
