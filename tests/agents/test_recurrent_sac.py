"""Recurrent SAC: losses against closed forms, memories in both modes, what may learn from what."""

import math

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from statewise.agents import sac_losses
from statewise.agents.recurrent_sac import ACTOR, CRITIC, RecurrentSAC, RecurrentSACConfig
from statewise.data.replay_config import ReplayBatch
from statewise.nets.encoder import EncoderConfig
from statewise.ssm.build import SequenceConfig
from statewise.ssm.state import select
from tests.agents.sac_cases import (
    BOX,
    DOUBLE,
    OBS_SPACE,
    B,
    T,
    flags,
    make_agent,
    make_batch,
    make_config,
)
from tests.tolerance import assert_close

# --- losses


def test_the_losses_are_their_formulas_over_the_rows_that_count() -> None:
    q = torch.tensor([[[1.0, 5.0, 9.0]], [[3.0, 2.0, 9.0]]], dtype=DOUBLE)
    log_prob = torch.tensor([[0.5, -1.0, 7.0]], dtype=DOUBLE)
    rows = torch.tensor([[True, True, False]])
    alpha = torch.tensor(0.1, dtype=DOUBLE)
    value = sac_losses.soft_value(q, log_prob, alpha)
    assert_close(value[:, :2], torch.tensor([[1 - 0.05, 2 + 0.1]], dtype=DOUBLE), DOUBLE, 1)
    target = torch.tensor([[2.0, 2.0, 0.0]], dtype=DOUBLE)
    critic = sac_losses.critic_loss(q, target, rows)
    assert float(critic) == pytest.approx(0.5 * ((1 + 9) / 2 + (1 + 0) / 2))
    actor = sac_losses.actor_loss(log_prob, q, alpha, rows)
    assert float(actor) == pytest.approx(-(0.95 + 2.1) / 2)
    log_alpha = torch.tensor(math.log(0.1), requires_grad=True)
    sac_losses.temperature_loss(log_alpha, log_prob, -2.0, rows).backward()
    # the entropy, 0.25, is over its target, -2: descent lowers the temperature
    assert float(log_alpha.grad) == pytest.approx(0.25 + 2.0)  # type: ignore[arg-type]


def test_what_does_not_count_may_be_nan() -> None:
    q = torch.tensor([[[1.0, math.nan]], [[2.0, math.nan]]], requires_grad=True)
    rows, target = torch.tensor([[True, False]]), torch.tensor([[0.0, math.nan]])
    log_prob = torch.tensor([[0.3, math.nan]], requires_grad=True)
    critic = sac_losses.critic_loss(q, target, rows)
    actor = sac_losses.actor_loss(log_prob, q, torch.tensor(0.1), rows)
    (critic + actor).backward()
    assert q.grad is not None
    assert log_prob.grad is not None
    assert q.grad.isfinite().all()
    assert log_prob.grad.tolist() == [[pytest.approx(0.1), 0.0]]
    ended = torch.tensor([[False, True]])
    y = sac_losses.soft_target(torch.ones(1, 2), ended, torch.tensor([[3.0, math.nan]]), 0.5)
    assert y.tolist() == [[2.5, 1.0]]


def test_what_follows_a_row_is_the_next_one_that_an_action_was_taken_at() -> None:
    batch = make_batch(make_agent())
    # row 2: an episode of a trial ends after t = 1 and again after t = 5 without a word
    step = batch.step._replace(valid=batch.step.valid & ~flags((2, 2), (2, 6)))
    value = torch.arange(B * T, dtype=DOUBLE).view(B, T)
    after, rows = sac_losses.following(value, step)
    expected = value[:, 1:].clone()
    expected[2, 1] = value[2, 3]
    assert torch.equal(after[rows], expected[rows])
    assert torch.equal(rows, step.valid[:, :-1] & ~flags((2, 5), length=T - 1))


# --- memories


def stepped(
    agent: RecurrentSAC, batch: ReplayBatch
) -> tuple[Tensor, Tensor, list[dict[str, Tensor]]]:
    """Return features (B, T, D) of actor and critics, step by step, and the states before them."""
    state, step = batch.state, batch.step
    own, theirs, states = [], [], []
    caches = [m.memory.sequence.prepare_step() for m in (agent.actor, agent.critics)]
    for t in range(step.reward.shape[1]):
        states.append(state)
        obs, reset = {"obs": step.obs["obs"][:, t]}, step.reset[:, t]
        y, actor = agent.actor.memory.step(obs, select(state, ACTOR), reset, caches[0])
        z, critic = agent.critics.memory.step(obs, select(state, CRITIC), reset, caches[1])
        state = {f"{ACTOR}{k}": x for k, x in actor.items()}
        state |= {f"{CRITIC}{k}": x for k, x in critic.items()}
        own.append(y)
        theirs.append(z)
    return torch.stack(own, 1), torch.stack(theirs, 1), states


@pytest.mark.parametrize("kind", ["s5", "mamba", "gru", "attention"])
@pytest.mark.parametrize(("first", "burn_in"), [(0, 0), (0, 3), (2, 2)])
def test_windows_with_a_stored_memory_see_what_acting_saw(
    kind: str, first: int, burn_in: int
) -> None:
    agent = make_agent(make_config(kind))
    batch = make_batch(agent)
    own, theirs, states = stepped(agent, batch)
    obs, reset = {"obs": batch.step.obs["obs"][:, first:]}, batch.step.reset[:, first:]
    for module, prefix, expected in ((agent.actor, ACTOR, own), (agent.critics, CRITIC, theirs)):
        state = select(states[first], prefix)
        seen = module.memory(obs, state, reset, burn_in)
        assert_close(seen, expected[:, first + burn_in :], DOUBLE, T)
        other = module.memory(obs, None, reset, burn_in)
        assert not torch.allclose(other[2], seen[2])  # no reset there: the memory matters


def test_acting_is_the_policy_after_the_memory_and_stores_both() -> None:
    agent = make_agent()
    batch = make_batch(agent)
    own, _, states = stepped(agent, batch)
    state = batch.state
    for t in range(T):
        assert state.keys() == states[t].keys()
        for key, x in state.items():
            assert_close(x, states[t][key], DOUBLE, T)
        obs, reset = {"obs": batch.step.obs["obs"][:, t]}, batch.step.reset[:, t]
        action, extras, state = agent.act(obs, state, reset, reset, explore=False)
        mean, _ = agent.actor.head(own[:, t]).chunk(2, -1)
        assert_close(action, torch.tensor([2.0, 3.0]) * mean.tanh() + torch.tensor([0.0, 3.0]),
                     DOUBLE, T)  # fmt: skip
        assert extras == {}


def test_a_burn_in_takes_no_gradient_and_enters_no_loss() -> None:
    agent = make_agent()
    batch = make_batch(agent, burn_in=2)
    obs = batch.step.obs["obs"].requires_grad_()
    drawn = agent._draw(batch)
    assert drawn.value.shape == (B, T - 2)
    (drawn.features.sum() + drawn.log_prob.sum()).backward()
    assert obs.grad is not None
    assert (obs.grad[:, :2] == 0).all()
    assert (obs.grad[:, 2] != 0).any()
    reports = []
    for reward in (0.0, 100.0):
        torch.manual_seed(1)
        agent = make_agent()
        batch = make_batch(agent, burn_in=2)
        batch.step.reward[:, :2] = reward
        reports.append(agent.update(batch))
    assert reports[0] == reports[1]


# --- targets


def test_targets_bootstrap_at_a_truncation_from_the_final_row_and_not_at_a_termination() -> None:
    agent = make_agent(make_config(discount=0.9, reward_scale=0.5))
    batch = make_batch(agent)
    seen: dict[str, Tensor] = {}
    learn = agent._learn
    agent._learn = lambda drawn, taken, target, rows: (
        seen.update(  # type: ignore[method-assign]
            target=target, rows=rows, taken=taken
        )
        or learn(drawn, taken, target, rows)
    )
    begin = agent.generator.get_state()
    with torch.no_grad():  # the loop: memories step by step, over the final observations
        own, _, _ = stepped(agent, batch)
        slow, state = [], select(batch.state, CRITIC)
        memory = agent.target_critics.memory
        for t in range(T):
            obs, reset = {"obs": batch.step.obs["obs"][:, t]}, batch.step.reset[:, t]
            y, state = memory.step(obs, state, reset, memory.sequence.prepare_step())
            slow.append(y)
        policy = agent.actor.policy(own)
        action, log_prob = policy.sample(agent._noise(policy.mean))
        x = torch.cat((torch.stack(slow, 1), action), -1)
        heads = agent.target_critics.heads
        q = torch.minimum(heads.one(x), heads.two(x)).squeeze(-1)
        value = q - agent.temperature.log.exp() * log_prob
    agent.generator.set_state(begin)
    agent.update(batch)
    for b in range(B):
        for t in range(T - 1):
            valid = (b, t) not in [(0, 3), (1, 4)]
            assert bool(seen["rows"][b, t]) == valid
            v = 0.0 if (b, t) == (1, 3) else 0.9 * float(value[b, t + 1])
            expected = 0.5 * float(batch.step.reward[b, t]) + v
            assert not valid or float(seen["target"][b, t]) == pytest.approx(expected, rel=1e-9)
    low, high = torch.tensor(BOX.low), torch.tensor(BOX.high)
    code = 2 * (batch.step.action - low) / (high - low) - 1
    assert_close(seen["taken"], code[:, :-1], DOUBLE, 1)


def test_the_actor_learns_from_its_loss_alone_and_the_critics_from_theirs() -> None:
    agent = make_agent()
    batch = make_batch(agent)
    drawn = agent._draw(batch)
    rows = batch.step.valid
    actor, critics = list(agent.actor.parameters()), list(agent.critics.parameters())
    judged = agent.critics.judged(drawn.features, drawn.action)
    assert torch.equal(judged, agent.critics.heads(drawn.features, drawn.action))
    loss = sac_losses.actor_loss(drawn.log_prob, judged, agent.temperature.value, rows)

    def grads(loss: Tensor, of: list[torch.nn.Parameter]) -> list[Tensor | None]:
        return list(torch.autograd.grad(loss, of, retain_graph=True, allow_unused=True))

    assert grads(loss, critics) == [None] * len(critics)
    q = agent.critics.heads(drawn.features.detach(), drawn.action)
    alpha = agent.temperature.log.detach().exp()
    expected = (alpha * drawn.log_prob - torch.minimum(*q))[rows].mean()
    for ours, theirs in zip(grads(loss, actor), grads(expected, actor), strict=True):
        assert ours is not None
        assert theirs is not None
        assert_close(ours, theirs, DOUBLE, T, gradient=True)
    taken = agent.scale.encode(batch.step.action)
    own = agent.critics.heads(drawn.features, taken)
    error = sac_losses.critic_loss(own, drawn.value, rows)
    assert grads(error, actor) == [None] * len(actor)
    assert all(g is not None for g in grads(error, critics))


def test_an_update_moves_everything_and_the_targets_by_their_rate() -> None:
    agent = make_agent(make_config(target_rate=0.25))
    before = {
        name: [p.detach().clone() for p in network.parameters()]
        for name, network in agent.networks.items()
    }
    report = agent.update(make_batch(agent))
    assert all(map(math.isfinite, report.values()))
    after = {name: list(network.parameters()) for name, network in agent.networks.items()}
    for name in ("actor", "critics", "temperature"):
        assert all((a != b).any() for a, b in zip(before[name], after[name], strict=True)), name
    slow = zip(before["target_critics"], after["critics"], after["target_critics"], strict=True)
    for old, fast, new in slow:
        assert_close(new, 0.75 * old + 0.25 * fast, DOUBLE, 1)


# --- settings


@pytest.mark.parametrize(
    "space", [spaces.Discrete(3), spaces.Box(-math.inf, math.inf, (2,)), spaces.Box(0, 1, (2, 2))]
)
def test_other_actions_than_a_bounded_box_are_refused_in_one_line(space: spaces.Space) -> None:
    with pytest.raises(ValueError, match="expected a float Box with one axis and finite") as caught:
        RecurrentSAC(make_config(), OBS_SPACE, space, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [{"learning_rate": 0.0}, {"temperature": 0.0}, {"discount": 1.1}, {"target_rate": 0.0}],
)
def test_settings_out_of_their_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(changes))}: expected"):
        RecurrentSACConfig(**changes)  # type: ignore[arg-type]


def test_actions_are_uniform_before_the_first_update_and_stay_in_the_box() -> None:
    agent = make_agent(dtype=torch.float32)
    state, no = agent.initial_state(500), torch.zeros(500, dtype=torch.bool)
    obs = {"obs": torch.zeros(500, 2)}
    action, _, _ = agent.act(obs, state, no, no, explore=True)
    low, high = torch.tensor(BOX.low), torch.tensor(BOX.high)
    share = (action - low) / (high - low)
    assert (share >= 0).all()
    assert (share <= 1).all()
    assert torch.allclose(share.quantile(0.25, 0), torch.tensor(0.25), atol=0.08)
    agent.updates_done = 1
    chosen, _, _ = agent.act(obs, state, no, no, explore=True)
    spread = ((chosen - low) / (high - low)).std(0)
    assert not torch.allclose(spread, share.std(0), rtol=0.02)


# --- learning


def cue_batch(agent: RecurrentSAC) -> ReplayBatch:
    """Return episodes of 3 steps: +-1 is shown at the first, and -(code - cue)^2 paid at each."""
    rows, length = 64, 3
    cue = torch.sign(torch.randn(rows))
    obs = torch.zeros(rows, length, 2)
    obs[:, 0, 0] = cue
    code = 2 * torch.rand(rows, length, 1) - 1
    reset = torch.zeros(rows, length, dtype=torch.bool)
    reset[:, 0] = True
    made = make_batch(agent)
    step = made.step._replace(
        obs={"obs": obs},
        is_first=reset,
        reset=reset,
        action=agent.scale.decode(code),
        reward=-(code[..., 0] - cue[:, None]).square(),
        **dict.fromkeys(("terminated", "truncated"), torch.zeros_like(reset)),
        valid=torch.ones_like(reset),
    )
    return made._replace(step=step, state={})


@pytest.mark.parametrize(("memory", "updates"), [("kept", 60), ("none", 5)])
def test_a_cue_is_remembered_by_a_memory_alone(memory: str, updates: int) -> None:
    config = RecurrentSACConfig(
        sequence=SequenceConfig(num_layers=1, d_model=16, memory=memory),  # type: ignore[arg-type]
        encoder=EncoderConfig(hidden=(16,)),
        head_hidden=(32,),
        learning_rate=0.01,
        discount=0.0,
        temperature=0.02,
    )
    space = spaces.Box(-3.0, 3.0, (1,))
    agent = RecurrentSAC(config, OBS_SPACE, space, seed=0)
    for _ in range(updates):
        agent.update(cue_batch(agent))
    state, no = agent.initial_state(2), torch.zeros(2, dtype=torch.bool)
    for t in range(3):
        obs = {"obs": torch.tensor([[1.0, 0.0], [-1.0, 0.0]]) * (t == 0)}
        action, _, state = agent.act(obs, state, ~no if t == 0 else no, no, explore=False)
    gap = float(action[0] - action[1]) / 6  # 1 where both cues are remembered
    assert gap > 0.7 if memory == "kept" else abs(gap) < 1e-5, f"gap {gap:.3f}"
