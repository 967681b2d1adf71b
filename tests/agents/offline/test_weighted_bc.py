"""Weighted imitation of one's own episodes: weights, draws, the loss, resuming."""

import copy
import math
from typing import Any

import pytest
import torch

from statewise.agents.offline.decision_s4 import DecisionS4
from statewise.agents.offline.hidden_replay import PlayedEpisode
from statewise.agents.offline.weighted_bc import WeightedBC, WeightedBCConfig, episode_weights
from tests.agents.offline.finetune_cases import agent_of, played
from tests.agents.offline.sequence_cases import DISCRETE

REFERENCE = (-4.0, 6.0)


def learner_of(agent: DecisionS4 | None = None, **changes: Any) -> WeightedBC:
    settings: dict[str, Any] = {"batch_size": 4, "learning_rate": 0.01} | changes
    agent = agent_of() if agent is None else agent
    return WeightedBC(agent, WeightedBCConfig(**settings), reference=REFERENCE, seed=1)


def of_return(agent: DecisionS4, total: float, T: int = 4, seed: int = 0) -> PlayedEpisode:
    return played(agent, T, seed=seed, reward=torch.full((T,), total / T))


def test_a_weight_is_one_at_the_goal_and_stays_between_its_bounds() -> None:
    found = episode_weights(torch.tensor([-9.0, 0.0, 0.5, 0.75, 1.0, 9.0]), 0.5).tolist()
    expected = [0.01, math.exp(-1), 1.0, math.exp(0.5), math.e, 10.0]
    assert found == pytest.approx(expected, rel=1e-6)


def test_higher_returns_weigh_more_also_where_all_are_negative() -> None:
    learner = learner_of()
    learner.low, learner.high = -1800.0, -150.0
    agent = learner.agent
    for total in (-1500.0, -900.0, -300.0):
        learner.add(of_return(agent, total))
    scores = learner.scores(list(learner._kept))
    assert scores.tolist() == pytest.approx([300 / 1650, 900 / 1650, 1500 / 1650])
    weights = episode_weights(scores, learner.goal)
    assert weights[0] < weights[1] < weights[2]


def test_the_goal_is_the_highest_so_far_of_mean_and_share_of_the_deviation() -> None:
    learner = learner_of(kept_episodes=2)
    agent = learner.agent
    learner.add(of_return(agent, -4.0))
    assert learner.goal == 0.05
    learner.add(of_return(agent, 6.0))  # normalised 0 and 1
    assert learner.goal == pytest.approx(0.5 + 0.4 * 0.5)
    learner.add(of_return(agent, -4.0))
    learner.add(of_return(agent, -4.0))  # the good one is forgotten, the goal is not
    assert learner.goal == pytest.approx(0.7)
    assert len(learner._kept) == 2


def test_episodes_are_drawn_by_the_square_of_their_length() -> None:
    learner = learner_of(batch_size=4000)
    for T in (2, 4):
        learner.add(of_return(learner.agent, 1.0, T))
    long = sum(len(one.action) == 4 for one in learner._draw()) / 4000
    assert abs(long - 0.8) < 6 * (0.8 * 0.2 / 4000) ** 0.5


@pytest.mark.parametrize("space", [None, DISCRETE])
def test_the_loss_is_the_weighted_mean_over_the_steps_of_an_episode_by_episode_loop(
    space: Any,
) -> None:
    agent = agent_of() if space is None else agent_of(space=space)
    learner = learner_of(agent, batch_size=6)
    for number, (total, T) in enumerate([(-3.0, 3), (1.0, 7), (5.0, 5)]):
        learner.add(of_return(agent, total, T, seed=number))
    generator = learner.generator.get_state()
    drawn = learner._draw()
    assert len({len(one.action) for one in drawn}) > 1
    learner.generator.set_state(generator)
    policy, error, steps = agent.policy, 0.0, 0
    for one in drawn:
        state: Any = agent.initial_state(1)
        previous = torch.zeros(1, policy.code.width)
        weight = math.exp(((one.total + 4) / 10) / learner.goal - 1)
        for t in range(len(one.action)):
            first = torch.tensor([t == 0])
            given = {
                "obs": one.obs["obs"][t : t + 1],
                "previous_action": previous if space else policy.code.choose(previous, None),
                "return_to_go": one.reward[t:].sum().view(1, 1),
            }
            arrived, state = _predicted(agent, given, state, first)
            loss = policy.code.loss(arrived, one.action[t : t + 1])
            error += min(max(weight, 0.01), 10.0) * float(loss)
            steps += 1
            previous = one.action[t : t + 1]
    metrics = learner.update()
    assert metrics["action_loss"] == pytest.approx(error / steps, rel=1e-4)
    assert agent.updates_made == 1


def _predicted(agent: DecisionS4, given: Any, state: Any, first: torch.Tensor) -> Any:
    """Return what the head says and the next state, as acting does."""
    kept: list[torch.Tensor] = []
    handle = agent.policy.head.register_forward_hook(lambda *call: kept.append(call[2]))
    try:
        _, _, state = agent.act(given, state, first, first, explore=False)
    finally:
        handle.remove()
    return kept[0], state


def test_nothing_is_learned_before_the_first_episode_and_the_best_is_imitated_after_it() -> None:
    learner = learner_of()
    assert learner.train(0, 3) == {}
    learner.add(of_return(learner.agent, 5.0))
    first = learner.train(10, 1)["action_loss"]
    assert learner.train(10, 30)["action_loss"] < first
    assert learner.quiet_steps == 0
    assert learner.staleness() == {}


def test_acting_follows_the_weights_as_they_are_updated() -> None:
    learner = learner_of(learning_rate=0.1)
    learner.add(of_return(learner.agent, 1.0))
    learner.update()
    fresh = agent_of()
    fresh.load_state_dict(learner.agent.state_dict())
    found = [played(agent, 4).action for agent in (learner.agent, fresh)]
    assert torch.equal(found[0], found[1])


def test_a_restored_learner_goes_on_bit_by_bit() -> None:
    one = learner_of()
    for number in range(3):
        one.add(of_return(one.agent, float(number), 3 + number, seed=number))
    one.train(0, 2)
    agent = agent_of()
    agent.load_state_dict(copy.deepcopy(one.agent.state_dict()))
    state = copy.deepcopy(one.state_dict())
    other = learner_of(agent)
    other.load_state_dict(state)
    assert one.train(0, 3) == other.train(0, 3)
    for a, b in zip(one.agent.policy.parameters(), agent.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    state.pop("goal")
    with pytest.raises(ValueError, match="expected the keys"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate: expected a positive number"),
        ({"weight_decay": -1.0}, "weight_decay: expected 0 or more"),
        ({"kept_episodes": 0}, "kept_episodes: expected at least 1"),
    ],
)
def test_settings_out_of_range_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightedBCConfig(**changes)
