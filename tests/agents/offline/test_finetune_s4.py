"""Actor-critic on stored states: targets by hand, what is frozen when, staleness, resuming."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from statewise.agents.offline.finetune_s4 import (
    ActorCritic,
    ActorCriticConfig,
    Critic,
    chosen_code,
    move_towards,
)
from statewise.agents.offline.hidden_replay import Transitions, staleness
from tests.agents.offline.finetune_cases import actor_critic, agent_of, played
from tests.agents.offline.sequence_cases import BOX, DISCRETE, OBS_SPACE
from tests.tolerance import assert_within

DYNAMICS = {"log_neg_re", "A_im", "B", "log_dt"}


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def changed(module: torch.nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {n for n, p in module.named_parameters() if not torch.equal(p.detach(), before[n])}


def sampled(learner: ActorCritic, number: int = 8) -> Transitions:
    return learner.replay.sample(number, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num_critics", [1, 3])
def test_the_target_is_the_reward_and_the_discounted_value_of_what_the_slow_actor_would_do(
    num_critics: int,
) -> None:
    learner = actor_critic(discount=0.9, num_critics=num_critics)
    with torch.no_grad():
        learner.slow_policy.head.linear.weight.mul_(-2)
    batch = sampled(learner)
    terminated = torch.arange(8) % 2 == 0
    found = learner.targets(batch._replace(terminated=terminated))
    slow = learner.slow_policy
    for i in range(8):
        state = {key: value[i : i + 1] for key, value in batch.next_state.items()}
        parts = (
            slow.tokens.embed_obs(slow.inputs({"obs": batch.next_obs["obs"][i]})),
            slow.tokens.embed_action(batch.action[i]),
            slow.tokens.embed_return(batch.next_rtg[i].view(1) / 5.0),
        )
        token = slow.tokens.project(torch.cat(parts).tanh())
        y, _ = slow.core.step(token[None], state)
        code = slow.head.linear(y).tanh()
        vector = slow.inputs({"obs": batch.next_obs["obs"][i : i + 1]})
        rtg = batch.next_rtg[i : i + 1] / 5.0
        value = min(float(each(vector, code, rtg)) for each in learner.slow_critic.each)
        expected = batch.reward[i] / 5.0 + 0.9 * value * (0.0 if terminated[i] else 1.0)
        assert_within(found[i], expected, 1e-5)


def test_a_time_limit_does_not_cut_the_value_and_an_end_does() -> None:
    agent = agent_of()
    learner = actor_critic(agent, episodes=0)
    learner.add(played(agent, 1, seed=0))
    learner.add(played(agent, 1, seed=0, terminated=True))
    batch = sampled(learner, 30)
    assert batch.terminated.any()
    assert not batch.terminated.all()
    with torch.no_grad():
        (slow,) = learner.slow_critic.each
        slow.last.weight.zero_()  # type: ignore[union-attr,operator]
        slow.last.bias.fill_(10.0)  # type: ignore[union-attr,operator]
    left = learner.targets(batch) - batch.reward / learner.scale
    expected = torch.where(batch.terminated, 0.0, 9.9)
    torch.testing.assert_close(left, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["cat_exp_rtg", "cat_exp"])
def test_the_critic_is_the_network_of_its_equations(kind: Any) -> None:
    critic = Critic(3, 2, kind, 4).double()
    s, a, R = torch.randn(5, 3).double(), torch.randn(5, 2).double(), torch.randn(5).double()
    x = torch.cat((s, a, R[:, None]) if kind == "cat_exp_rtg" else (s, a), 1)
    z = F.gelu(x @ critic.first.weight.T + critic.first.bias)
    if kind == "cat_exp_rtg":
        z = z + torch.cat((x, x, x, x), 1)
    up, down = critic.expand[0], critic.expand[2]
    assert up.out_features == 2 * 4 * x.shape[1]
    inner = F.gelu(z @ up.weight.T + up.bias) @ down.weight.T + down.bias
    expected = (F.gelu(z + inner) @ critic.last.weight.T + critic.last.bias)[:, 0]
    assert_within(critic(s, a, R), expected, 1e-12)
    sees_return = not torch.equal(critic(s, a, R), critic(s, a, R + 1))
    assert sees_return == (kind == "cat_exp_rtg")


def test_a_normed_critic_cannot_run_away_with_actions_that_were_never_tried() -> None:
    s, R = torch.randn(1, 3), torch.zeros(1)
    rise = []
    for norm in ("none", "layer"):
        torch.manual_seed(0)
        critic = Critic(3, 2, "cat_exp", 16, norm=norm)  # type: ignore[arg-type]
        far, farther = (critic(s, a * torch.ones(1, 2), R).item() for a in (1e3, 1e4))
        rise.append(abs(farther - far))
    assert rise[0] > 100
    assert rise[1] < 0.1


def test_the_dynamics_stay_bit_by_bit_through_many_updates_and_the_rest_learns() -> None:
    learner = actor_critic()
    before = weights(learner.agent.policy)
    for _ in range(40):
        learner.update(critic_only=False)
    found = changed(learner.agent.policy, before)
    layers = {name for name in before if name.rpartition(".")[2] in DYNAMICS}
    assert len(layers) == 2 * len(DYNAMICS)
    assert found == before.keys() - layers
    thawed = actor_critic(freeze="none")
    before = weights(thawed.agent.policy)
    thawed.update(critic_only=False)
    assert changed(thawed.agent.policy, before) == before.keys()


def test_the_critics_own_phase_leaves_actor_and_slow_actor_bit_by_bit() -> None:
    learner = actor_critic(critic_only_steps=100, critic_only_factor=3)
    policy, slow = weights(learner.agent.policy), weights(learner.slow_policy)
    critic, slow_critic = weights(learner.critic), weights(learner.slow_critic)
    learner.train(99, 2)
    assert learner.critic_updates == 6
    assert learner.actor_updates == 0
    assert changed(learner.agent.policy, policy) == set() == changed(learner.slow_policy, slow)
    assert (
        changed(learner.critic, critic)
        == critic.keys()
        == changed(learner.slow_critic, slow_critic)
    )
    learner.train(100, 2)
    assert (learner.critic_updates, learner.actor_updates) == (8, 2)
    assert changed(learner.agent.policy, policy)
    assert changed(learner.slow_policy, slow)
    assert learner.quiet_steps == 100


def test_every_critic_learns_towards_the_same_target() -> None:
    learner = actor_critic(num_critics=2)
    batch = sampled(learner)
    before = weights(learner.critic)
    y = learner.targets(batch)
    values = learner.critic(learner.agent.policy.inputs(batch.obs), batch.action, batch.rtg / 5.0)
    assert not torch.equal(values[0], values[1])
    expected = ((values - y) ** 2).mean(1).sum()
    assert learner._update_critic(batch)["critic_loss"] == pytest.approx(float(expected.detach()))
    assert changed(learner.critic, before) == before.keys()


def test_the_actor_climbs_the_critic_and_does_not_move_it() -> None:
    learner = actor_critic(actor_lr=1e-3, num_critics=2)
    critic = weights(learner.critic)
    batch = sampled(learner, 32)

    def value() -> float:
        policy = learner.agent.policy
        vector = policy.inputs(batch.obs)
        with torch.no_grad():
            code = chosen_code(policy, vector, batch.previous, batch.rtg, batch.state)
            return float(learner.critic(vector, code, batch.rtg / learner.scale)[0].mean())

    before = value()
    for _ in range(20):
        learner._update_actor(batch)
    assert value() > before + 0.01
    assert changed(learner.critic, critic) == set()
    assert all(p.requires_grad for p in learner.critic.parameters())


def test_the_actor_has_the_gradient_of_one_step_with_the_memory_as_a_constant() -> None:
    learner = actor_critic(freeze="none")
    policy = learner.agent.policy
    batch = sampled(learner, 4)
    vector = policy.inputs(batch.obs)
    code = chosen_code(policy, vector, batch.previous, batch.rtg, batch.state)
    acted = []
    for i in range(4):
        state = {f"core.{key}": value[i : i + 1] for key, value in batch.state.items()}
        given = {
            "obs": batch.obs["obs"][i : i + 1],
            "previous_action": policy.code.choose(batch.previous[i : i + 1], None),
            "return_to_go": batch.rtg[i : i + 1, None],
        }
        # Not a first step: a previous action of 0 is then read as it is.
        no = torch.tensor([False])
        state["timestep"] = torch.ones(1)
        action, _, _ = learner.agent.act(given, state, no, no, explore=False)
        acted.append(policy.code.encode(action)[0])
    assert_within(code.detach(), torch.stack(acted), 1e-5)
    code.sum().backward()
    assert all(p.grad is not None for p in policy.core.blocks.parameters())  # type: ignore[union-attr]


def test_slow_copies_move_by_their_share_of_the_way() -> None:
    learner = actor_critic(target_rate=0.25, target_every=2)
    start = weights(learner.slow_critic)
    learner.update(critic_only=False)
    assert changed(learner.slow_critic, start) == set()
    learner.update(critic_only=False)
    for name, slow in learner.slow_critic.named_parameters():
        fast = learner.critic.get_parameter(name)
        torch.testing.assert_close(slow, start[name] * 0.75 + 0.25 * fast.detach())
    move_towards(learner.slow_policy, learner.agent.policy, 1.0)
    assert changed(learner.slow_policy, weights(learner.agent.policy)) == set()


def test_acting_follows_the_weights_as_they_are_updated() -> None:
    learner = actor_critic(actor_lr=0.1)
    agent = learner.agent
    first = torch.tensor([True])
    given = {
        "obs": torch.ones(1, 3),
        "previous_action": torch.zeros(1, 2),
        "return_to_go": torch.ones(1, 1),
    }

    def act(agent: Any) -> Tensor:
        return agent.act(given, agent.initial_state(1), first, first, explore=False)[0]

    before = act(agent)
    learner.update(critic_only=False)
    fresh = agent_of()
    fresh.load_state_dict(agent.state_dict())
    assert torch.equal(act(agent), act(fresh))
    assert not torch.equal(act(agent), before)


def test_the_actor_takes_its_turn_every_so_many_updates() -> None:
    learner = actor_critic(actor_every=3)
    for _ in range(7):
        learner.update(critic_only=False)
    assert (learner.critic_updates, learner.actor_updates) == (7, 2)
    assert learner.agent.updates_made == 2


def test_with_frozen_inputs_the_first_block_stays_exact_and_deeper_ones_drift() -> None:
    learner = actor_critic(agent_of(depth=3), freeze="dynamics_and_inputs", target_every=50)
    assert max(learner.staleness().values()) < 1e-5
    for _ in range(30):
        learner.update(critic_only=False)
    gaps = learner.staleness()
    assert gaps["staleness_0"] < 1e-5
    assert gaps["staleness_1"] > 1e-3
    assert gaps["staleness_2"] > 1e-3


def test_with_learning_inputs_the_first_block_drifts_too() -> None:
    learner = actor_critic(agent_of(depth=1))
    for _ in range(30):
        learner.update(critic_only=False)
    assert learner.staleness()["staleness_0"] > 1e-3


def stale_episodes(learner: ActorCritic) -> list[bool]:
    """Return which episodes, from the oldest, hold states of other weights."""
    replay = learner.replay
    rows = [replay.rows_of(k) for k in range(replay.num_episodes)]
    fresh = replay.recomputed(learner.agent.policy, rows)
    gaps = [staleness(replay.states(index), one) for index, one in zip(rows, fresh, strict=True)]
    return [max(gap.values()) > 1e-4 for gap in gaps]


def test_refreshing_makes_the_states_those_of_the_present_weights_in_turn() -> None:
    learner = actor_critic(episodes=5, refreshed_episodes=2)
    for _ in range(5):
        learner.update(critic_only=False)
    assert stale_episodes(learner) == [True] * 5
    learner.refresh(0)
    assert stale_episodes(learner) == [False, False, True, True, True]
    learner.refresh(1)
    assert stale_episodes(learner) == [False, False, False, False, True]
    with torch.no_grad():
        learner.agent.policy.tokens.embed_obs.weight.mul_(1.5)  # type: ignore[attr-defined]
    learner.refresh(2)
    assert stale_episodes(learner) == [False, True, True, True, False]


def test_states_are_refreshed_every_so_many_updates_of_the_actor() -> None:
    learner = actor_critic(refresh_hidden_every=3, refreshed_episodes=9)
    stale = []
    for _ in range(6):
        learner.update(critic_only=False)
        stale.append(any(stale_episodes(learner)))
    assert stale == [True, True, False, True, True, False]


def test_too_few_rows_are_waited_for() -> None:
    learner = actor_critic(episodes=1, batch_size=6)
    assert learner.train(0, 1) == {}
    learner.add(played(learner.agent, 1))
    assert learner.train(0, 1)["critic_loss"] > 0


@pytest.mark.parametrize("refresh", [0, 2])
def test_a_restored_learner_goes_on_bit_by_bit(refresh: int) -> None:
    one = actor_critic(refresh_hidden_every=refresh)
    one.train(0, 5)
    agent_state = copy.deepcopy(one.agent.state_dict())
    state = copy.deepcopy(one.state_dict())
    agent = agent_of()
    agent.load_state_dict(agent_state)
    other = actor_critic(agent, episodes=0, refresh_hidden_every=refresh)
    other.load_state_dict(state)
    found = [learner.train(0, 3) for learner in (one, other)]
    assert found[0] == found[1]
    for a, b in ((one.agent.policy, other.agent.policy), (one.slow_critic, other.slow_critic)):
        assert changed(a, weights(b)) == set()
    state.pop("critic")
    with pytest.raises(ValueError, match="expected the keys"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actor_lr": 0.0}, "actor_lr: expected a positive number"),
        ({"critic_decay": -1.0}, "critic_decay: expected 0 or more"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"replay_size": 1}, "replay_size: expected at least 2"),
        ({"discount": 1.1}, "discount: expected"),
        ({"target_rate": 0.0}, "target_rate: expected"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActorCriticConfig(**changes)


def test_discrete_actions_are_sent_to_the_other_method() -> None:
    with pytest.raises(ValueError, match="method: expected weighted_bc for discrete actions"):
        ActorCritic(agent_of(space=DISCRETE), ActorCriticConfig(), OBS_SPACE, seed=0)


def test_codes_stay_within_the_bounds_of_the_box() -> None:
    agent = agent_of(squash="clip")
    with torch.no_grad():
        agent.policy.head.linear.weight.mul_(1e3)
    learner = actor_critic(agent)
    batch = sampled(learner)
    vector = agent.policy.inputs(batch.obs)
    code = chosen_code(agent.policy, vector, batch.previous, batch.rtg, batch.state)
    assert code.abs().max() == 1.0
    assert BOX.shape == code.shape[1:]
