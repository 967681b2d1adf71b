"""Losses of actor and critic against loops written out, distributions in closed form."""

import copy
import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from gymnasium import spaces

from statewise.agents.imagination.actor import Actor, NormalActions, OneHotActions, from_vector
from statewise.agents.imagination.behavior import BehaviorConfig, Rollout
from statewise.agents.imagination.returns import imagined_lambda_return
from statewise.worldmodels.actions import ActionVectors
from statewise.worldmodels.model import Imagined
from statewise.worldmodels.state import CORE, FeatureSpec
from tests.agents.imagination import world_cases as cases

MULTI = spaces.MultiDiscrete([2, 3])
BOX = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 1], np.float32))


def rollout(agent, N=4, H=3):  # type: ignore[no-untyped-def]
    torch.manual_seed(1)
    width = agent.behavior.actor.layers.linears[0].in_features
    index = torch.randint(3, (N, H))
    discount = torch.rand(N, H)
    return Rollout(
        features=torch.randn(N, H + 1, width),
        action=torch.nn.functional.one_hot(index, 3).float(),
        reward=torch.randn(N, H),
        discount=discount,
        weight=torch.cat((torch.ones(N, 1), discount[:, :-1]), 1).cumprod(1),
    )


def test_the_actor_is_moved_by_weighted_scores_times_scaled_advantages() -> None:
    agent = cases.agent("s5")
    behavior, one = agent.behavior, rollout(agent)
    behavior.normalizer.ema.copy_(torch.tensor([-3.0, 5.0]))
    value, target = torch.randn(4, 4), torch.randn(4, 3)
    terms, _ = behavior.actor_terms(one, value, target)
    policy, entropy = 0.0, 0.0
    for n in range(4):
        for i in range(3):
            out = behavior.actor.out(behavior.actor.layers(one.features[n, i]))
            p = 0.99 * out.softmax(-1) + 0.01 / 3
            chosen = p[one.action[n, i].argmax()]
            advantage = float((target[n, i] - value[n, i]) / 8.0)
            policy = policy - one.weight[n, i] * chosen.log() * advantage / 12
            entropy = entropy + one.weight[n, i] * (p * p.log()).sum() / 12
    torch.testing.assert_close(terms["policy"], policy)
    torch.testing.assert_close(terms["entropy"], entropy)
    parameters = list(behavior.actor.parameters())
    got = torch.autograd.grad(terms["policy"], parameters)
    wanted = torch.autograd.grad(policy, parameters)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_small_returns_are_not_blown_up() -> None:
    agent = cases.agent("s5")
    one = rollout(agent)
    value, target = torch.zeros(4, 4), torch.full((4, 3), 0.01)
    agent.behavior.normalizer.ema.copy_(torch.tensor([0.0, 0.02]))
    _, metrics = agent.behavior.actor_terms(one, value, target)
    assert metrics["return_scale"] == 1.0


def test_the_critic_is_moved_to_the_returns_and_held_by_its_slow_copy() -> None:
    agent = cases.agent("s5")
    behavior, one = agent.behavior, rollout(agent)
    torch.nn.init.normal_(behavior.critic.out.weight)
    target = torch.randn(4, 3)
    losses = behavior.critic_terms(one, target)
    logits = behavior.critic(one.features[:, :-1]).log_softmax(-1)
    encode = behavior.critic.two_hot.encode
    by_hand = -(encode(target) * logits).sum(-1)
    torch.testing.assert_close(losses["value"], (one.weight * by_hand).mean())
    slow = behavior.slow.value(one.features[:, :-1])
    held = -(encode(slow) * logits).sum(-1)
    torch.testing.assert_close(losses["slow"], (one.weight * held).mean())
    assert not any(p.requires_grad for p in behavior.slow.parameters())


def test_the_slow_critic_follows_at_its_rate() -> None:
    agent = cases.agent("s5")
    behavior = agent.behavior
    with torch.no_grad():
        for p in behavior.critic.parameters():
            p.fill_(1.0)
        for p in behavior.slow.parameters():
            p.zero_()
    behavior._move_slow()
    for p in behavior.slow.parameters():
        torch.testing.assert_close(p, torch.full_like(p, 0.02))


@pytest.mark.parametrize(
    ("continues", "features"), [("mode", "output"), ("probability", "hidden"), ("mode", "full")]
)
def test_rewards_and_discounts_are_those_of_the_states_arrived_at(
    continues: Literal["mode", "probability"], features: FeatureSpec
) -> None:
    config = BehaviorConfig(
        actor_hidden=(8,),
        critic_hidden=(8,),
        horizon=3,
        continues=continues,
        discount_horizon=10.0,
        features=features,
    )
    agent = cases.agent("s5", behavior=config)
    start = agent.world.initial_state(5)
    is_terminal = torch.tensor([False, True, False, False, True])
    with torch.no_grad():
        agent.generator.manual_seed(0)
        one = agent.behavior.imagine(agent.world, start, is_terminal, agent.generator)
        agent.generator.manual_seed(0)
        noise = agent.world.noise(3, 5, generator=agent.generator)
        own = agent.behavior.actor.noise((3, 5), agent.generator)
        state, weight = start, (~is_terminal).float()
        for i in range(3):
            read = agent.behavior.features(state)
            torch.testing.assert_close(one.features[:, i], read)
            torch.testing.assert_close(one.weight[:, i], weight)
            action = agent.behavior.actor(read).sample(own[i])
            torch.testing.assert_close(one.action[:, i], action)
            state, _ = agent.world.dynamics.imagine_step(action, state, noise[i])
            reward = agent.world.predict_reward(state["stoch"], state["deter"])
            torch.testing.assert_close(one.reward[:, i], reward)
            logit = agent.world.continue_logit(state["stoch"], state["deter"])
            c = (logit > 0).float() if continues == "mode" else logit.sigmoid()
            torch.testing.assert_close(one.discount[:, i], 0.9 * c)
            weight = weight * 0.9 * c


@pytest.mark.parametrize(("features", "is_kept"), [("output", False), ("full", True)])
def test_imagined_memories_are_kept_only_for_a_policy_that_reads_them(
    monkeypatch: pytest.MonkeyPatch, features: FeatureSpec, is_kept: bool
) -> None:
    config = BehaviorConfig(actor_hidden=(8,), critic_hidden=(8,), horizon=2, features=features)
    agent = cases.agent("s5", behavior=config)
    imagine, seen = agent.world.imagine, []

    def imagined(*args: Any, **options: Any) -> Imagined:
        seen.append(imagine(*args, **options))
        return seen[-1]

    monkeypatch.setattr(agent.world, "imagine", imagined)
    start = agent.world.initial_state(2)
    agent.behavior.imagine(agent.world, start, torch.zeros(2).bool(), agent.generator)
    assert any(key.startswith(CORE) for key in seen[0].states) == is_kept


@pytest.mark.parametrize("space", [cases.cases.ACTIONS, BOX])
def test_an_update_has_the_gradient_of_its_terms_and_moves_nothing_else(
    space: spaces.Space[object],
) -> None:
    agent = cases.agent("s5", space=space)
    behavior, world = agent.behavior, agent.world
    draw = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(behavior.critic.out.weight, std=0.1, generator=draw)  # unclipped
    start = {key: x.detach() for key, x in world.initial_state(6).items()}
    flags = torch.tensor([False, True, False, False, False, False])
    other = copy.deepcopy(behavior)
    generator = torch.Generator().manual_seed(3)
    one = other.imagine(world, start, flags, generator)  # nothing frozen
    value = other.critic.value(one.features)
    target = imagined_lambda_return(one.reward, one.discount, value, other.config.trace)
    other.normalizer.update(target)
    terms, _ = other.actor_terms(one, value, target)
    total = terms["policy"] + other.config.entropy * terms["entropy"]
    wanted = torch.autograd.grad(total, list(other.actor.parameters()))
    behavior.update(world, start, flags, generator.manual_seed(3), 0)
    for p, gradient in zip(behavior.actor.parameters(), wanted, strict=True):
        assert p.grad is not None
        assert gradient.any()
        torch.testing.assert_close(p.grad, gradient)
    assert all(p.grad is None and p.requires_grad for p in world.parameters())
    losses = other.critic_terms(one, target.detach())
    critic = losses["value"] + other.config.slow_scale * losses["slow"]
    alone = torch.autograd.grad(critic, list(other.critic.parameters()))
    for p, gradient in zip(behavior.critic.parameters(), alone, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_numbers_learn_through_the_model_by_the_gradient_of_the_return() -> None:
    agent = cases.agent("s5", space=BOX)
    assert agent.behavior.gradient == "dynamics"
    torch.nn.init.normal_(agent.behavior.critic.out.weight)
    start, flags = agent.world.initial_state(6), torch.zeros(6, dtype=torch.bool)
    start = {key: x.detach() for key, x in start.items()}
    before = [p.detach().clone() for p in agent.behavior.actor.parameters()]
    agent.behavior.update(agent.world, start, flags, agent.generator, 0)
    moved = zip(before, agent.behavior.actor.parameters(), strict=True)
    assert all(not torch.equal(a, b) for a, b in moved)


def test_choices_are_drawn_as_their_probabilities_say_with_a_uniform_share() -> None:
    torch.manual_seed(0)
    actor = Actor(4, ActionVectors(MULTI), (8,), unimix=0.1)
    policy = actor(torch.zeros(4))
    assert isinstance(policy, OneHotActions)
    noise = actor.noise((20_000,), torch.Generator().manual_seed(0))
    draws = OneHotActions([x.expand(20_000, -1) for x in policy.log_ps]).sample(noise)
    assert torch.equal(draws.sum(-1), torch.full((20_000,), 2.0))
    torch.testing.assert_close(draws.mean(0), torch.cat(policy.log_ps).exp(), atol=0.012, rtol=0.0)
    assert policy.log_ps[0].exp().min() >= 0.1 / 2
    assert policy.log_ps[1].exp().min() >= 0.1 / 3
    both = torch.tensor([1.0, 0, 0, 1, 0])
    expected = policy.log_ps[0][0] + policy.log_ps[1][1]
    torch.testing.assert_close(policy.log_prob(both), expected)
    entropy = sum(-(p.exp() * p).sum() for p in policy.log_ps)
    torch.testing.assert_close(policy.entropy(), entropy)


def test_a_normal_policy_has_the_density_and_entropy_of_the_normal() -> None:
    mean, std = torch.tensor([0.3, -0.5]), torch.tensor([0.2, 0.9])
    policy = NormalActions(mean, std)
    reference = torch.distributions.Normal(mean, std)
    x = torch.tensor([0.1, 0.4])
    torch.testing.assert_close(policy.log_prob(x), reference.log_prob(x).sum())
    torch.testing.assert_close(policy.entropy(), reference.entropy().sum())
    torch.testing.assert_close(policy.sample(torch.ones(2)), mean + std)


def test_vectors_and_actions_are_one_another() -> None:
    draw = torch.Generator().manual_seed(0)
    multi = torch.stack(
        (torch.randint(2, (9,), generator=draw), torch.randint(3, (9,), generator=draw)), -1
    )
    for space, action in (
        (spaces.Discrete(4, start=2), torch.arange(4)),
        (MULTI, multi),
        (BOX, torch.tensor([[-2.0, 0.0], [2.0, 1.0], [1.0, 0.25]])),
    ):
        actions = ActionVectors(space)
        vector = actions(action)
        assert vector.shape == (*action.shape[:1], actions.width)
        assert vector.abs().max() <= 1
        torch.testing.assert_close(from_vector(space, actions, vector), action)
    wide = ActionVectors(spaces.Box(-np.inf, np.inf, (2,), np.float32))
    x = torch.tensor([3.0, -0.5], requires_grad=True)
    cut = wide(x)
    assert cut.tolist() == [1.0, -0.5]
    cut.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx([1 / 3, 1.0])


@pytest.mark.parametrize("space", [spaces.Dict({}), spaces.Box(0, 255, (8, 8), np.uint8)])
def test_other_spaces_are_refused(space: spaces.Space[object]) -> None:
    with pytest.raises(ValueError, match="action_space: expected Discrete"):
        ActionVectors(space)


def test_the_start_of_a_normal_policy_is_in_the_middle_and_almost_as_wide_as_allowed() -> None:
    torch.manual_seed(0)
    actor = Actor(4, ActionVectors(BOX), (8,), outscale=0.0)
    policy = actor(torch.randn(4))
    assert isinstance(policy, NormalActions)
    assert policy.mean.tolist() == [0.0, 0.0]
    assert policy.std.tolist() == pytest.approx([0.9 / (1 + math.exp(-2)) + 0.1] * 2)


def test_the_model_reads_actions_cut_as_in_the_data_and_the_actor_keeps_its_own() -> None:
    box = spaces.Box(-2.0, 2.0, (1,), np.float32)
    world = cases.agent("rssm", space=box).world
    noise = world.noise(3, 2, generator=torch.Generator().manual_seed(0))
    large = torch.tensor([[3.0], [-0.5]])
    start = world.initial_state(2)
    with torch.no_grad():
        seen = world.imagine(start, lambda state, i: large, noise)
        cut = world.imagine(start, lambda state, i: large.clamp(-1.0, 1.0), noise)
    assert torch.equal(seen.states["deter"], cut.states["deter"])
    assert torch.equal(seen.action, large[:, None].expand(2, 3, 1))


@pytest.mark.parametrize("unimix", [1.0, -0.5])
def test_a_share_of_the_uniform_distribution_is_one(unimix: float) -> None:
    with pytest.raises(ValueError, match=r"unimix: expected a share in \[0, 1\)"):
        BehaviorConfig(unimix=unimix)


def test_a_share_of_the_uniform_distribution_is_for_choices() -> None:
    box = spaces.Box(-2.0, 2.0, (1,), np.float32)
    with pytest.raises(ValueError, match="unimix: would be ignored with continuous actions"):
        cases.agent("s5", space=box, behavior=BehaviorConfig(unimix=0.5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"discount_horizon": 20.0}, "continues: expected probability with world.cont_horizon"),
        ({"continues": "probability"}, "discount_horizon: expected that of world.cont_horizon"),
    ],
)
def test_a_horizon_in_the_continue_head_is_the_only_one(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cases.agent("s5", cont_horizon=20.0, behavior=BehaviorConfig(**changes))
    both = BehaviorConfig(continues="probability", discount_horizon=20.0)
    agent = cases.agent("s5", cont_horizon=20.0, behavior=both)
    start = agent.world.initial_state(2)
    with torch.no_grad():
        rollout = agent.behavior.imagine(
            agent.world, start, torch.zeros(2, dtype=torch.bool), agent.generator
        )
        assert rollout.discount.max() < 1.0
