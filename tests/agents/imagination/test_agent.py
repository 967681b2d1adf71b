"""An agent that imagines: what it learns from, and that it can be saved."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from statewise.agents.imagination.agent import burned_in, choose_starts, observe_batch
from statewise.agents.imagination.behavior import BehaviorConfig, frozen
from statewise.agents.recurrent_ppo import NonFiniteLossError
from statewise.data.shift import to_arrival
from tests.agents.imagination import world_cases as cases

BOX = spaces.Box(-2.0, 2.0, (2,), np.float32)


def test_rollouts_start_at_all_rows_that_count() -> None:
    batch = cases.batch()
    arrival = to_arrival(batch.step, previous=batch.previous)
    chosen = choose_starts(batch.step, arrival, 1, cases.SMALL, torch.Generator())
    assert torch.equal(chosen, arrival.counts.flatten().nonzero().squeeze(1))


@pytest.mark.parametrize("near_end", [1, 3, 40])
def test_rows_before_an_end_always_start_a_rollout_and_no_other_episode_does(near_end: int) -> None:
    batch = cases.batch(B=4, T=13)
    arrival = to_arrival(batch.step, previous=batch.previous)
    config = BehaviorConfig(num_starts=5, near_end=near_end)
    chosen = choose_starts(batch.step, arrival, 1, config, torch.Generator().manual_seed(0))
    expected = set()
    for b in range(4):
        for t in range(13):
            for n in range(1, near_end + 1):
                other = batch.step.is_first[b, t + 1 : t + n + 1].any()
                if t + n < 13 and not other and arrival.is_last[b, t + n]:
                    expected.add(b * 13 + t)
    picked = chosen.tolist()
    assert len(set(picked)) == len(picked) == len(expected) + 5
    assert set(picked[: len(expected)]) == expected


@pytest.mark.parametrize("core", ["rssm", "s5", "mamba"])
@pytest.mark.parametrize("space", [spaces.Discrete(3), BOX], ids=["choices", "numbers"])
def test_an_update_moves_every_part_and_is_repeated_exactly_from_its_state(
    core: str, space: spaces.Space[object]
) -> None:
    T = 17 if core == "mamba" else 11  # a layer with large states gives one every 16 steps
    batch = cases.batch(T=T, space=space)
    agent = cases.agent(core, space=space)
    before = {name: p.detach().clone() for name, p in agent.world.named_parameters()}
    before |= {f"b.{n}": p.detach().clone() for n, p in agent.behavior.named_parameters()}
    agent.update(batch)
    agent.update(batch)
    after = dict(agent.world.named_parameters())
    after |= {f"b.{n}": p for n, p in agent.behavior.named_parameters()}
    still = [name for name, p in before.items() if torch.equal(p, after[name])]
    assert not still
    again = cases.agent(core, space=space, seed=5)
    again.load_state_dict(agent.state_dict())
    assert again.update(batch) == agent.update(batch)


def test_imagination_leaves_no_gradient_in_the_world_model() -> None:
    agent = cases.agent("s5", space=BOX)
    batch = cases.batch(space=BOX)
    agent.update(batch)
    agent.optimizer.module.zero_grad(set_to_none=True)
    start = {key: x[:, 0] for key, x in _seen(agent, batch).states().items()}
    start = {key: x.detach() for key, x in start.items()}
    flags = torch.zeros(len(start["stoch"]), dtype=torch.bool)
    agent.behavior.update(agent.world, start, flags, agent.generator, 1)
    assert all(p.grad is None for p in agent.world.parameters())
    assert all(p.requires_grad for p in agent.world.parameters())


def _seen(agent, batch):  # type: ignore[no-untyped-def]
    return observe_batch(agent.world, batch, agent.generator, 1)[2]


def test_frozen_modules_pass_gradients_and_take_none() -> None:
    layer = torch.nn.Linear(2, 1)
    x = torch.ones(1, 2, requires_grad=True)
    with frozen(layer):
        layer(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, layer.weight)
    assert layer.weight.grad is None


def test_rows_of_burn_in_fill_the_memory_and_enter_no_loss() -> None:
    agent = cases.agent("s5")
    batch = cases.batch(T=9)._replace(burn_in=4)
    agent.generator.manual_seed(3)
    step, arrival, seen = observe_batch(agent.world, batch, agent.generator, 0)
    assert step.reward.shape[1] == arrival.counts.shape[1] == seen.deter.shape[1] == 5
    whole = to_arrival(batch.step, previous=batch.previous)
    noise = agent.world.noise(3, 9, generator=torch.Generator().manual_seed(3))
    full = agent.world.observe(
        batch.step.obs, agent.world.action_in(whole), None, batch.step.reset, noise
    )
    torch.testing.assert_close(seen.deter, full.deter[:, 4:])
    first = burned_in(agent.world, batch, whole, noise)
    assert not any(x.requires_grad for x in first.values())


def test_a_loss_that_is_not_finite_is_named_and_changes_nothing() -> None:
    agent = cases.agent("s5")
    batch = cases.batch()
    batch.step.obs["obs"][0, 2] = torch.nan
    before = {name: p.detach().clone() for name, p in agent.world.named_parameters()}
    with pytest.raises(NonFiniteLossError, match="decoder"):
        agent.update(batch)
    assert all(torch.equal(p, before[name]) for name, p in agent.world.named_parameters())


def test_the_memory_of_large_layers_cannot_be_read_by_a_policy() -> None:
    with pytest.raises(ValueError, match=r"behavior\.features: expected output with mamba"):
        cases.agent("mamba", behavior=BehaviorConfig(features="hidden"))
