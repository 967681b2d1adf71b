"""Behaviour cloning: its loss by hand, and that it learns what the data do."""

import math

import pytest
import torch

from tests.agents.offline.sequence_cases import BOX, DISCRETE
from tests.agents.offline.transition_cases import TWO, acted, bandit, made, random_batch


def test_the_loss_of_a_box_is_the_squared_error_of_scaled_actions() -> None:
    agent, batch = made("bc"), random_batch()
    with torch.no_grad():
        output = agent.actor.layers((batch.obs["obs"] - agent.actor.inputs.mean)
                                    / agent.actor.inputs.scale)  # fmt: skip
    expected, low, high = 0.0, BOX.low, BOX.high
    for row in range(6):
        for axis in range(2):
            at = (float(batch.action[row, axis]) - low[axis]) / (high[axis] - low[axis])
            expected += (math.tanh(output[row, axis].item()) - (2 * at - 1)) ** 2
    assert agent.update(batch)["action_loss"] == pytest.approx(expected / 12, rel=1e-5)


def test_the_loss_of_discrete_actions_is_the_cross_entropy() -> None:
    agent, batch = made("bc", DISCRETE), random_batch(DISCRETE)
    with torch.no_grad():
        p = agent.actor(batch.obs).softmax(-1)
    expected = -sum(math.log(p[row, batch.action[row]].item()) for row in range(6)) / 6
    assert agent.update(batch)["action_loss"] == pytest.approx(expected, rel=1e-5)


def test_it_imitates_a_rule() -> None:
    agent = made("bc", learning_rate=1e-2, schedule="cosine", total_updates=200, hidden=(32,))
    batch = random_batch(size=64)
    pull = batch.obs["obs"][:, :2].tanh()
    action = torch.as_tensor((BOX.low + BOX.high) / 2) + pull * 0.5
    reports = [agent.update(batch._replace(action=action)) for _ in range(200)]
    assert reports[0]["action_loss"] > 0.05
    assert reports[-1]["action_loss"] < 1e-3, reports[-1]
    assert reports[100]["learning_rate"] == pytest.approx(5e-3)
    assert (acted(agent, batch.obs["obs"]) - action).abs().mean() < 0.05


def test_it_does_what_is_done_most_whatever_it_brings() -> None:
    agent = made("bc", TWO, learning_rate=1e-2)
    batch = bandit(torch.tensor(1), torch.tensor(0))
    for _ in range(100):
        agent.update(batch)
    p = agent.predict({"obs": torch.zeros(1, 3)}).softmax(-1)[0]
    assert p.tolist() == pytest.approx([0.75, 0.25], abs=0.01)
    drawn = acted(agent, torch.zeros(400, 3), explore=True).float().mean()
    assert 0.15 < drawn < 0.35
    assert acted(agent, torch.zeros(1, 3)).item() == 0


def test_weight_decay_reaches_the_matrices() -> None:
    plain, decayed = made("bc"), made("bc", weight_decay=0.5, learning_rate=3e-4)
    batch = random_batch()
    before = plain.actor.layers[0].weight.detach().clone()
    for agent in (plain, decayed):
        agent.update(batch)
    moved = plain.actor.layers[0].weight - decayed.actor.layers[0].weight
    assert torch.allclose(moved, 3e-4 * 0.5 * before, atol=1e-7)
    assert torch.equal(plain.actor.layers[0].bias, decayed.actor.layers[0].bias)
