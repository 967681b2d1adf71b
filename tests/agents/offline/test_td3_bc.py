"""TD3+BC: its losses by hand, one update by a second derivation, and what it prefers."""

from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from statewise.agents.offline.td3_bc import policy_loss, smoothed
from statewise.agents.offline.transitions import frozen_copy
from tests.agents.offline.sequence_cases import DISCRETE
from tests.agents.offline.transition_cases import UNIT, acted, bandit, made, random_batch
from tests.agents.ppo_cases import copied

NETWORKS = ("actor", "critics", "target_actor", "target_critics")


def values(before: dict[str, Any], after: dict[str, Any], name: str) -> list[list[Tensor]]:
    return [list(state[name].values()) for state in (before, after)]


def test_noise_and_actions_are_clipped_where_there_are_bounds() -> None:
    action = torch.tensor([[0.9, 0.9], [0.2, -0.9], [-0.8, 0.1]])
    noise = torch.tensor([[0.3, 0.3], [2.0, -2.0], [-0.1, 0.1]])
    found = smoothed(action, noise, 0.5, torch.tensor([True, False]))
    expected = torch.tensor([[1.0, 1.2], [0.7, -1.4], [-0.9, 0.2]])
    assert torch.allclose(found, expected)


def test_the_value_counts_in_units_of_its_own_size() -> None:
    q = torch.tensor([2.0, -4.0], requires_grad=True)
    error = torch.tensor([0.5, 1.5], requires_grad=True)
    loss = policy_loss(q, error, 2.5)
    scale = 2.5 / 3  # alpha / mean |Q|
    assert loss.item() == pytest.approx(1.0 - scale * -1.0)
    loss.backward()
    assert q.grad is not None
    assert error.grad is not None
    assert q.grad.tolist() == pytest.approx([-scale / 2] * 2)  # the scale is a constant
    assert error.grad.tolist() == [0.5, 0.5]
    larger = policy_loss(1000 * q.detach(), error.detach(), 2.5)
    assert larger.item() == pytest.approx(loss.item())


def test_an_update_is_that_of_the_paper() -> None:
    agent, batch = made("td3bc", target_rate=0.25), random_batch()
    agent.update(random_batch(seed=1))  # from here on targets and networks differ
    agent.update(random_batch(seed=2))
    old = {name: frozen_copy(agent.networks[name]) for name in NETWORKS}
    draw = torch.Generator()
    draw.set_state(agent.generator.get_state())
    report = agent.update(batch)
    code = agent.code.encode(batch.action)
    noise = (0.2 * torch.randn((6, 2), generator=draw)).clamp(-0.5, 0.5)
    following = (old["target_actor"](batch.next_obs) + noise).clamp(-1, 1)
    twins = old["target_critics"](batch.next_obs, following)
    q = old["critics"](batch.obs, code)
    critic_loss = 0.0
    for row in range(6):
        later = 0.0 if batch.terminated[row] else 0.99 * min(twins[0, row], twins[1, row])
        critic_loss += sum((q[k, row] - batch.reward[row] - later) ** 2 for k in (0, 1)) / 6
    assert report["critic_loss"] == pytest.approx(float(critic_loss), rel=1e-5)
    assert report["q_mean"] == pytest.approx(q.mean().item(), rel=1e-5)
    action = old["actor"](batch.obs)
    new_q = agent.critics(batch.obs, action)[0]  # of the critic that has just moved
    error = (action - code).square().mean()
    expected = error - 2.5 * new_q.mean() / new_q.abs().mean()
    assert report["actor_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert report["action_loss"] == pytest.approx(error.item(), rel=1e-5)
    for name in ("actor", "critics"):
        slow = old[f"target_{name}"].parameters()
        parts = zip(slow, agent.networks[f"target_{name}"].parameters(), strict=True)
        for (before, after), new in zip(parts, agent.networks[name].parameters(), strict=True):
            assert torch.allclose(after, 0.75 * before + 0.25 * new, atol=1e-7)


def test_actor_and_targets_move_at_every_dth_update() -> None:
    agent = made("td3bc", policy_delay=3)
    moved, losses = [], []
    for seed in range(5):
        before = copied(agent.state_dict()["networks"])
        losses.append(agent.update(random_batch(seed=seed))["actor_loss"])
        after = agent.state_dict()["networks"]
        moved.append({n for n in NETWORKS if not all(map(torch.equal, *values(before, after, n)))})
    assert moved == [set(NETWORKS) if update in (0, 3) else {"critics"} for update in range(5)]
    assert losses[0] == losses[1] == losses[2] != losses[3] == losses[4]


def test_without_value_the_actor_step_is_a_regression() -> None:
    agent, clone = made("td3bc", alpha=0.0), made("bc")
    clone.actor.load_state_dict(agent.actor.state_dict())
    batch = random_batch()
    agent.update(batch)
    clone.update(batch)
    for a, b in zip(agent.actor.parameters(), clone.actor.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_better_action_wins_against_the_one_done_most() -> None:
    agent = made("td3bc", UNIT, learning_rate=2e-2, hidden=(16,))
    batch = bandit(torch.tensor([0.5]), torch.tensor([-0.5]))
    for _ in range(100):
        report = agent.update(batch)
    q = agent.critics(batch.obs, batch.action)
    assert torch.allclose(q, batch.reward.expand(2, -1), atol=0.1)
    # The actor is at a minimum of its own loss; the mean of the data is -0.25.
    assert acted(agent, torch.zeros(1, 3)).item() > 0.3
    assert report["action_loss"] > 0.3


@pytest.mark.parametrize("space", [DISCRETE, spaces.MultiDiscrete([2, 2])])
def test_discrete_actions_are_refused(space: spaces.Space[object]) -> None:
    with pytest.raises(ValueError, match=r"action_space: expected a float Box .*: use iql or bc"):
        made("td3bc", space)
