"""Acting: step by step as in parallel, over a window as re-encoded, and nothing past a reset."""

from typing import Any

import pytest
import torch
from torch import Tensor

from statewise.agents.offline.acting import RecurrentActing, WindowActing
from statewise.agents.offline.sequence_agent import SequenceAgent
from statewise.agents.offline.tokens import PolicyRows
from statewise.data.dataset import EpisodeDataset
from statewise.ssm.protocol import State
from statewise.ssm.state import select
from tests.agents.offline.sequence_cases import (
    BOX,
    DISCRETE,
    MAKERS,
    batch_of,
    double,
    make_dataset,
    s4,
    transformer,
)
from tests.tolerance import assert_within

CLOSE = 1e-9
RECURRENT = [name for name in sorted(MAKERS) if name != "transformer"]


class Recorder:
    """Plays episodes of a data set through an agent and keeps every prediction.

    Line b plays the episodes `lines[b]` one after the other; what comes with each step is what
    an environment would have given.
    """

    def __init__(self, agent: SequenceAgent, dataset: EpisodeDataset, lines: list[list[int]]):
        self.agent, self.batches = agent, [batch_of(dataset, line, packed=True) for line in lines]
        self.predicted: list[Tensor] = []
        choose = agent.policy.code.choose

        def kept(predicted: Tensor, generator: Any) -> Tensor:
            self.predicted.append(predicted)
            return choose(predicted, generator)

        agent.policy.code.choose = kept  # type: ignore[method-assign]

    def arriving(self, t: int) -> tuple[dict[str, Tensor], Tensor]:
        steps = [batch.step for batch in self.batches]
        first = torch.stack([step.is_first[0, t] for step in steps])
        previous = torch.stack([step.action[0, t - 1] for step in steps])
        if self.agent.policy.code.nvec:
            previous = torch.nn.functional.one_hot(previous, 3)
        obs = {
            "obs": torch.stack([step.obs["obs"][0, t] for step in steps]),
            "previous_action": torch.where(first[:, None], 0, previous).float(),
            "return_to_go": torch.stack([batch.rtg[0, t] for batch in self.batches])[:, None],
        }
        return obs, first

    def play(self, num_steps: int) -> Tensor:
        """Return predictions (B, T, A)."""
        state = self.agent.initial_state(len(self.batches))
        for t in range(num_steps):
            obs, first = self.arriving(t)
            kept = {key: x.clone() for key, x in state.items()}
            _, _, after = self.agent.act(obs, state, first, first, explore=False)
            assert all(torch.equal(state[key], kept[key]) for key in kept)
            state = after
        return torch.stack(self.predicted, 1)


@pytest.mark.parametrize("space", [BOX, DISCRETE], ids=["box", "discrete"])
@pytest.mark.parametrize("name", RECURRENT)
def test_acting_step_by_step_equals_the_parallel_pass(name: str, space: object) -> None:
    agent = MAKERS[name](2, space)
    policy = double(agent)
    dataset = make_dataset((5, 2, 7, 4, 3), discrete=space is DISCRETE)
    recorder = Recorder(agent, dataset, [[0, 1, 3], [2, 3], [1, 4, 0, 1]])  # 11 or 12 steps
    found = recorder.play(11)
    for line, batch in enumerate(recorder.batches):
        with torch.no_grad():
            expected = policy(policy.rows(batch))[0, :11]
        assert_within(found[line], expected, CLOSE)


@pytest.mark.parametrize("space", [BOX, DISCRETE], ids=["box", "discrete"])
@pytest.mark.parametrize("name", ["transformer", "mamba"])
def test_acting_on_a_window_equals_encoding_the_last_steps_again(name: str, space: object) -> None:
    K = 4
    settings = {"context": K} | ({"inference": "window"} if name == "mamba" else {})
    agent = MAKERS[name](2, space, **settings)
    policy = double(agent)
    dataset = make_dataset((6, 2, 9, 3), discrete=space is DISCRETE)
    lines = [[0, 1, 3], [2, 1], [1, 2]]
    found = Recorder(agent, dataset, lines).play(11)
    for line, episodes in enumerate(lines):
        column = 0
        for episode in episodes:
            rows = policy.rows(batch_of(dataset, [episode]))
            for t in range(rows.rtg.shape[1]):
                begin = max(0, t + 1 - K)
                window = PolicyRows(*(x[:, begin : t + 1].clone() for x in rows))
                window.action[:, -1] = 0
                with torch.no_grad():
                    expected = policy(window._replace(reset=torch.zeros_like(window.reset)))
                assert_within(found[line, column], expected[0, -1], CLOSE)
                column += 1


def driven(agent: SequenceAgent, steps: int, seed: int) -> State:
    """Return a state after random steps of two environments."""
    draw, state = torch.Generator().manual_seed(seed), agent.initial_state(2)
    for t in range(steps):
        first = torch.tensor([t == 0, t == 0])
        state = agent.act(random_obs(draw), state, first, first, explore=False)[2]
    return state


def random_obs(draw: torch.Generator) -> dict[str, Tensor]:
    sizes = {"obs": 3, "previous_action": 2, "return_to_go": 1}
    return {key: torch.randn(2, n, generator=draw) for key, n in sizes.items()}


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_reset_forgets_everything_row_by_row(name: str) -> None:
    agent = MAKERS[name]()
    double(agent)
    obs, state = random_obs(torch.Generator().manual_seed(1)), driven(agent, 6, seed=2)
    state = {key: x.clone() for key, x in state.items()}
    reset = torch.tensor([True, False])
    both, none = torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)
    fresh = agent.act(obs, agent.initial_state(2), both, both, explore=False)
    old = agent.act(obs, state, none, none, explore=False)
    for x in state.values():
        x[0] = float("nan")  # what a reset clears may hold anything
    for is_first in (reset, none):  # a memory cleared within an episode starts as fresh
        mixed = agent.act(obs, state, is_first, reset, explore=False)
        assert_within(mixed[0][0], fresh[0][0], CLOSE)
        assert_within(mixed[0][1], old[0][1], CLOSE)
        for key, x in mixed[2].items():
            assert_within(x[0], fresh[2][key][0], CLOSE)
            assert_within(x[1], old[2][key][1], CLOSE)
    assert not torch.allclose(fresh[0], old[0], atol=1e-6)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_the_previous_action_counts_except_at_a_first_step(name: str) -> None:
    agent = MAKERS[name]()
    double(agent)
    obs, state = random_obs(torch.Generator().manual_seed(1)), driven(agent, 3, seed=2)
    other = obs | {"previous_action": obs["previous_action"] + 1}
    for is_first in (False, True):
        flags = torch.tensor([is_first] * 2)
        one, two = (agent.act(o, state, flags, flags, explore=False)[0] for o in (obs, other))
        assert torch.equal(one, two) == is_first


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_without_actions_as_input_none_counts_in_acting_or_in_learning(name: str) -> None:
    agent = MAKERS[name](action_input="none")
    policy = double(agent)
    obs, state = random_obs(torch.Generator().manual_seed(1)), driven(agent, 3, seed=2)
    other, no = obs | {"previous_action": obs["previous_action"] + 1}, torch.zeros(2).bool()
    after = [agent.act(o, state, no, no, explore=False)[2] for o in (obs, other)]
    one, two = (agent.act(obs, a, no, no, explore=False)[0] for a in after)
    assert torch.equal(one, two)
    batch = batch_of(make_dataset((4, 4)), [0, 1])
    rows = policy.rows(batch)
    moved = rows._replace(action=rows.action + 1, previous=rows.previous + 1)
    assert torch.equal(policy(rows), policy(moved))
    assert rows.action.abs().min() > 0  # still what is learned


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_first_step_without_a_reset_keeps_the_memory(name: str) -> None:
    agent = MAKERS[name]()
    double(agent)
    obs, state = random_obs(torch.Generator().manual_seed(1)), driven(agent, 3, seed=2)
    first, no = torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)
    kept, _, after = agent.act(obs, state, first, no, explore=False)
    fresh = agent.act(obs, state, first, first, explore=False)[0]
    assert not torch.allclose(kept, fresh, atol=1e-9)
    assert after["timestep"].tolist() == [0, 0]


def test_no_action_is_fed_where_none_is_known() -> None:
    agent = MAKERS["mamba"]()
    policy = double(agent)
    obs, state = random_obs(torch.Generator().manual_seed(1)), driven(agent, 3, seed=2)
    first, no = torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)
    after = agent.act(obs, state, first, no, explore=False)[2]
    rows = PolicyRows(
        obs=policy.inputs(obs),
        action=torch.zeros(2, 2),
        previous=torch.zeros(2, 2),
        rtg=obs["return_to_go"][:, 0].double(),
        timestep=torch.zeros(2, dtype=torch.long),
        reset=no,
    )
    with torch.no_grad():
        value, observation = policy.tokens.arriving(rows).unbind(1)
        memory = policy.core.step(value, select(state, "core."))[1]
        memory = policy.core.step(observation, memory)[1]
    for key, x in memory.items():
        assert_within(after[f"core.{key}"], x, CLOSE)


def test_the_step_in_the_episode_is_counted_from_each_first_one() -> None:
    for agent in (transformer(), s4()):
        state, draw = agent.initial_state(2), torch.Generator().manual_seed(0)
        counted = []
        for firsts in ([1, 1], [0, 0], [0, 1], [0, 0]):
            flags = torch.tensor(firsts, dtype=torch.bool)
            state = agent.act(random_obs(draw), state, flags, flags, explore=False)[2]
            counted.append(state["timestep"].tolist())
        assert counted == [[0, 0], [1, 1], [2, 0], [3, 1]]


def test_a_layout_or_a_core_that_cannot_act_that_way_is_refused() -> None:
    with pytest.raises(ValueError, match="step mode for 'recurrent', got GPTCore"):
        RecurrentActing(transformer().policy)
    with pytest.raises(ValueError, match="for 'window', got SingleTokens"):
        WindowActing(s4().policy, 4)
