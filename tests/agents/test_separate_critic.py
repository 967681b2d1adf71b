"""A critic with an encoder and a memory of its own: nothing of it reaches the actor."""

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from statewise.agents.ppo_network import CRITIC
from statewise.agents.recurrent_ppo import RecurrentPPO
from statewise.nets.moments import NormalizedEncoder
from statewise.ssm.build import SEQUENCES
from tests.agents.ppo_cases import (
    DISCRETE,
    B,
    T,
    assert_same_tree,
    make_agent,
    make_batch,
    make_config,
    parameters,
)


def separate(kind: str = "s5", *, seed: int = 0, **changes: object) -> RecurrentPPO:
    return make_agent(make_config(kind, critic="separate", **changes), seed=seed)


def is_critics(name: str) -> bool:
    return name.startswith(("critic.", "value."))


@pytest.mark.parametrize("kind", sorted(SEQUENCES))
def test_steps_give_what_one_pass_gives_with_memories_of_both(kind: str) -> None:
    agent = separate(kind)
    batch = make_batch(agent)
    obs, reset, state = batch.step.obs["obs"], batch.step.reset, batch.state
    with torch.no_grad():
        policy, value, last = agent.network({"obs": obs}, state, reset)
        cache = agent.network.prepare_step()
        for t in range(T):
            one, v, state = agent.network.step({"obs": obs[:, t]}, state, reset[:, t], cache)
            assert torch.allclose(v, value[:, t], atol=1e-5)
            assert torch.allclose(one.entropy(), policy.entropy()[:, t], atol=1e-5)
    assert state.keys() == last.keys()
    assert any(key.startswith(CRITIC) for key in state)
    for key, x in last.items():
        assert torch.allclose(state[key], x, atol=1e-5), key


@pytest.mark.parametrize("term", ["policy", "value"])
def test_actor_and_critic_share_no_weight_and_no_memory(term: str) -> None:
    agent = separate()
    batch = make_batch(agent)
    states = {key: x.clone().requires_grad_() for key, x in batch.state.items()}
    policy, value, _ = agent.network(batch.step.obs, states, batch.step.reset)
    (policy.log_prob(batch.step.action) if term == "policy" else value).sum().backward()
    for name, p in agent.network.named_parameters():
        assert (p.grad is not None) == (is_critics(name) == (term == "value")), name
    for key, x in states.items():
        assert (x.grad is not None) == (key.startswith(CRITIC) == (term == "value")), key


def test_the_actor_and_its_first_actions_are_those_of_a_shared_memory() -> None:
    one, other = make_agent(seed=3), separate(seed=3)
    theirs = {name: p for name, p in parameters(other).items() if not name.startswith("critic.")}
    assert_same_tree(parameters(one), theirs)
    assert any(name.startswith("critic.sequence.") for name in parameters(other))
    obs, reset = {"obs": torch.randn(B, 3)}, torch.ones(B, dtype=torch.bool)
    chosen = [
        agent.act(obs, agent.initial_state(B), reset, reset, explore=True)[0]
        for agent in (one, other)
    ]
    assert torch.equal(*chosen)
    with torch.no_grad():
        policy, after = other.network.act(obs, other.network.sequence.initial_state(B), reset)
        whole = other.network.step(obs, other.initial_state(B), reset, None)
    assert torch.equal(policy.entropy(), whole[0].entropy())
    assert all(torch.equal(x, whole[2][key]) for key, x in after.items())


def test_a_restored_agent_goes_on_bit_for_bit_and_both_parts_learn() -> None:
    whole = separate()
    before = parameters(whole)
    batches = [make_batch(whole, seed=seed) for seed in (1, 2)]
    whole.update(batches[0])
    part = separate(seed=9)
    part.load_state_dict(copy.deepcopy(whole.state_dict()))
    assert part.update(batches[1]) == whole.update(batches[1])
    assert_same_tree(part.state_dict(), whole.state_dict())
    for name, p in parameters(whole).items():
        assert not torch.equal(p, before[name]), f"{name} has not moved"
    with pytest.raises(ValueError, match="weights do not fit: critic"):
        part.load_state_dict(make_agent().state_dict())


def test_observations_of_both_are_scaled_alike() -> None:
    space = spaces.Dict({"obs": spaces.Box(-np.inf, np.inf, (3,))})
    config = make_config(critic="separate", normalize_obs="running")
    agent = RecurrentPPO(config, space, DISCRETE, total_steps=99, seed=0)
    first, second = (one for one in agent.network.encoders() if isinstance(one, NormalizedEncoder))
    start = {name: x.clone() for name, x in first.named_buffers()}
    agent.update(make_batch(agent))
    moved: list[Tensor] = []
    for name, x in first.named_buffers():
        assert torch.equal(x, dict(second.named_buffers())[name]), name
        moved += [x] if not torch.equal(x, start[name]) else []
    assert moved
