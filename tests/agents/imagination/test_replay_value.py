"""The critic's loss on replayed rows against a loop over the rows."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from statewise.agents.imagination.behavior import BehaviorConfig
from statewise.agents.imagination.replay_value import Replayed, bootstrap, replayed_returns
from statewise.data.shift import Arrival, to_arrival
from tests.agents.imagination import world_cases as cases

GAMMA, TRACE, SCALE = 0.9, 0.8, 3.0


def loop(arrival: Arrival, boot: Tensor) -> tuple[Tensor, Tensor]:
    """Return R and whether the next row is known, row by row from the end."""
    B, T = boot.shape
    target, known = torch.zeros(B, T - 1), torch.zeros(B, T - 1, dtype=torch.bool)
    for b in range(B):
        after = boot[b, -1]
        for t in reversed(range(T - 1)):
            known[b, t] = arrival.counts[b, t + 1] and not arrival.is_first[b, t + 1]
            if not known[b, t]:
                after = boot[b, t]
            else:
                reward = SCALE * arrival.reward_in[b, t + 1]
                if arrival.is_terminal[b, t + 1]:
                    after = reward
                elif arrival.is_last[b, t + 1]:
                    after = reward + GAMMA * boot[b, t + 1]
                else:
                    after = reward + GAMMA * ((1 - TRACE) * boot[b, t + 1] + TRACE * after)
            target[b, t] = after
    return target, known


def test_returns_of_replayed_rows_are_those_of_a_loop() -> None:
    arrival = to_arrival(cases.step(6, 13))
    padded = arrival._replace(counts=arrival.counts & (torch.arange(13) < 11))
    assert arrival.is_terminal.any()
    assert (arrival.is_last & ~arrival.is_terminal).any()
    for one in (arrival, padded):
        boot = torch.randn(6, 13, generator=torch.Generator().manual_seed(2))
        target, known = replayed_returns(one, boot, discount=GAMMA, trace=TRACE, reward_scale=SCALE)
        expected, wanted = loop(one, boot)
        assert torch.equal(known, wanted)
        assert 0 < known.sum() < known.numel()
        torch.testing.assert_close(target, expected)


def test_imagined_returns_stand_where_rollouts_start() -> None:
    value = torch.arange(6.0).reshape(2, 3)
    arrival = to_arrival(cases.step(2, 3))
    seen = Replayed(torch.zeros(2, 3, 1), arrival, torch.tensor([1, 5]))
    boot = bootstrap(seen, value, torch.tensor([10.0, 20.0]))
    assert boot.tolist() == [[0.0, 10.0, 2.0], [3.0, 4.0, 20.0]]
    nowhere = seen._replace(starts=torch.zeros(0, dtype=torch.long))
    assert bootstrap(nowhere, value, torch.tensor([10.0])) is value


@pytest.mark.parametrize(
    ("core", "features"),
    [("rssm", "output"), ("rssm", "full"), ("s5", "output"), ("s5", "full"), ("mamba", "output")],
)
def test_what_the_critic_sees_are_the_rows_that_rollouts_start_at(
    core: str, features: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(cases.SMALL, features=features, replay_value=0.3, num_starts=4)
    agent = cases.agent(core, behavior=config)
    update, given = agent.behavior.update, dict[str, Any]()

    def spy(world: Any, start: Any, is_terminal: Tensor, *rest: Any) -> dict[str, float]:
        given.update(start=start, replayed=rest[-1], is_terminal=is_terminal)
        return update(world, start, is_terminal, *rest)

    monkeypatch.setattr(agent.behavior, "update", spy)
    metrics = agent.update(cases.batch(T=33 if core == "mamba" else 11))
    replayed = given["replayed"]
    assert len(replayed.starts) == len(given["is_terminal"])
    at = replayed.features.flatten(0, 1)[replayed.starts]
    assert torch.equal(at, agent.behavior.features(given["start"]))
    ends = replayed.arrival.is_terminal.flatten()[replayed.starts]
    assert torch.equal(ends, given["is_terminal"])
    assert metrics["imagine/replay_value_loss"] > 0


def test_the_loss_moves_the_critic_alone_and_is_off_by_default() -> None:
    assert BehaviorConfig().replay_value == 0
    plain, more = (
        cases.agent("s5", behavior=dataclasses.replace(cases.SMALL, replay_value=weight))
        for weight in (0.0, 0.3)
    )
    assert "imagine/replay_value_loss" not in plain.update(cases.batch())
    more.update(cases.batch())
    parts = [dict(agent.behavior.named_parameters()) for agent in (plain, more)]
    for name, parameter in parts[0].items():
        is_same = torch.equal(parameter, parts[1][name])
        # Its output layer begins with zeros, through which nothing reaches the others at first.
        assert is_same is not name.startswith(("critic.out.", "slow.out.")), name
    for a, b in zip(plain.world.parameters(), more.world.parameters(), strict=True):
        assert torch.equal(a, b)


def test_without_imagination_the_critic_learns_the_return_of_the_data() -> None:
    config = dataclasses.replace(
        cases.SMALL, replay_value=1.0, slow_scale=0.0, discount_horizon=10.0, trace=1.0
    )
    agent = cases.agent("s5", behavior=config)
    behavior, critic = agent.behavior, agent.behavior.critic
    arrival = to_arrival(cases.step(2, 6)._replace(reward=torch.ones(2, 6)))
    features = torch.randn(2, 6, critic.layers.linears[0].in_features)
    seen = Replayed(features, arrival, torch.zeros(0, dtype=torch.long))
    optimizer = torch.optim.Adam(critic.parameters(), 0.01)
    for _ in range(400):
        terms = behavior.replay_terms(seen, torch.zeros(0), 1.0)
        optimizer.zero_grad()
        terms["replay_value"].backward()
        optimizer.step()
    value = critic.value(features)
    target, known = replayed_returns(arrival, value, discount=0.9, trace=1.0, reward_scale=1.0)
    assert (value[:, :-1] - target)[known].abs().max() < 0.1
