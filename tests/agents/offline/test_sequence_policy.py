"""What a return-conditioned policy may see: no future, no padding, no other episode."""

import pytest
import torch

from statewise.agents.offline.sequence_agent import SequenceAgent
from statewise.data.samplers import SampledBatch
from tests.agents.offline.leaks import assert_no_leak, influence, leaked
from tests.agents.offline.sequence_cases import (
    BOX,
    DISCRETE,
    MAKERS,
    batch_of,
    double,
    gradients,
    make_dataset,
    rows_of,
)
from tests.tolerance import ORACLE_FLOAT64, assert_within


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_no_prediction_sees_its_action_or_what_comes_later(name: str, depth: int) -> None:
    policy = double(MAKERS[name](depth))
    assert_no_leak(policy, rows_of(policy, batch_of(make_dataset((5, 5)), [0, 1])))


def test_a_leak_would_be_seen() -> None:
    policy = double(MAKERS["transformer"](1))
    policy.tokens.read_at = 2  # the action's own token
    rows = rows_of(policy, batch_of(make_dataset((5, 5)), [0, 1]))
    assert leaked(policy, rows)["action"] > 0
    with pytest.raises(AssertionError):
        assert_no_leak(policy, rows)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_nothing_passes_the_border_of_two_episodes_in_a_line(name: str) -> None:
    policy = double(MAKERS[name]())
    rows = rows_of(policy, batch_of(make_dataset((3, 4)), [0, 1], packed=True))
    for key, found in influence(policy, rows).items():
        assert float(found[3:, :3].max()) == 0, key


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_packed_episodes_are_predicted_as_alone(name: str) -> None:
    policy, dataset = double(MAKERS[name]()), make_dataset((3, 1, 4))
    with torch.no_grad():
        packed = policy(policy.rows(batch_of(dataset, [0, 1, 2], packed=True)))
        begin = 0
        for episode, steps in enumerate((3, 1, 4)):
            alone = policy(policy.rows(batch_of(dataset, [episode])))
            assert_within(packed[0, begin : begin + steps], alone[0], ORACLE_FLOAT64)
            begin += steps


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_predictions_are_the_head_of_the_outputs_at_their_tokens(name: str) -> None:
    policy = double(MAKERS[name]())
    rows = rows_of(policy, batch_of(make_dataset((3, 1, 4)), [0, 1, 2], packed=True))
    predicted = policy(rows)
    whole = policy.head(policy.at(policy.outputs(rows), policy.tokens.read_at))
    assert_within(predicted.detach(), whole.detach(), ORACLE_FLOAT64)
    weight = torch.randn_like(whole)
    expected = gradients(policy, (whole * weight).sum())
    for key, value in gradients(policy, (predicted * weight).sum()).items():
        assert_within(value, expected[key], ORACLE_FLOAT64)


def loss_and_gradients(agent: SequenceAgent, batch: SampledBatch) -> dict[str, torch.Tensor]:
    loss = agent.losses(agent.policy.rows(batch), batch)["action"]
    return {"loss": loss} | gradients(agent.policy, loss)


@pytest.mark.parametrize("space", [BOX, DISCRETE], ids=["box", "discrete"])
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_padding_changes_neither_loss_nor_gradients(name: str, space: object) -> None:
    agent = MAKERS[name](1, space)
    double(agent)
    dataset = make_dataset((5, 2, 4), discrete=space is DISCRETE)
    expected = loss_and_gradients(agent, batch_of(dataset, [0, 1, 2]))
    wide = batch_of(dataset, [0, 1, 2], width=5 + 37)
    padding = ~wide.step.valid
    garbage = wide._replace(step=wide.step._replace(obs={"obs": wide.step.obs["obs"].clone()}))
    garbage.step.obs["obs"][padding] = float("nan")
    garbage.step.action[padding] = 7 if space is DISCRETE else float("inf")
    garbage.rtg[padding] = float("nan")
    for batch in (wide, garbage):
        found = loss_and_gradients(agent, batch)
        assert found.keys() == expected.keys()
        for key, value in found.items():
            assert_within(value, expected[key], ORACLE_FLOAT64)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_the_loss_is_that_of_a_loop_over_episodes(name: str) -> None:
    agent, dataset = MAKERS[name](1), make_dataset((5, 2, 4))
    policy = double(agent)
    errors = []
    for index in range(3):
        batch = batch_of(dataset, [index])
        with torch.no_grad():
            predicted = policy(policy.rows(batch))[0]
        for t, action in enumerate(dataset.episode(index).actions):
            middle, reach = torch.tensor([0.0, 1.5]), torch.tensor([2.0, 1.5])
            target = (torch.from_numpy(action).double() - middle) / reach
            errors += ((predicted[t] - target) ** 2).tolist()
    batch = batch_of(dataset, [0, 1, 2])
    loss = agent.losses(policy.rows(batch), batch)["action"]
    assert_within(loss, torch.tensor(errors).double().mean(), 1e-6)  # data are float32


def test_the_previous_action_is_that_of_the_row_before() -> None:
    dataset = make_dataset((4, 3))
    policy = MAKERS["s4d"]().policy
    rows = rows_of(policy, batch_of(dataset, [0, 1], width=8, packed=True))
    assert torch.equal(rows.previous[0, [0, 4]], torch.zeros(2, 2))  # first steps have none
    for t in (1, 2, 3, 5, 6):
        assert torch.equal(rows.previous[0, t], rows.action[0, t - 1])
        assert rows.action[0, t - 1].abs().min() > 0
    assert torch.equal(rows.previous[0, 7], torch.zeros(2))


def test_triple_tokens_stand_in_the_order_return_observation_action() -> None:
    policy = double(MAKERS["transformer"]())
    rows = rows_of(policy, batch_of(make_dataset((3, 2)), [0, 1], packed=True))
    with torch.no_grad():
        tokens, reset = policy.tokens(rows)
        for place, changed in enumerate(("rtg", "obs", "action")):
            other = rows._replace(**{changed: getattr(rows, changed) + 1})
            differ = (policy.tokens(other)[0] != tokens).any(-1)[0]
            assert differ.nonzero().flatten().tolist() == list(range(place, 15, 3))
    assert reset[0].nonzero().flatten().tolist() == [0, 9]


def test_steps_beyond_the_time_table_share_its_last_row() -> None:
    policy = double(MAKERS["transformer"](num_timesteps=4))
    rows = rows_of(policy, batch_of(make_dataset((6,)), [0]))
    with torch.no_grad():
        late = policy.tokens(rows._replace(timestep=rows.timestep.clamp(max=3)))[0]
        assert torch.equal(policy.tokens(rows)[0], late)
        early = policy.tokens(rows._replace(timestep=rows.timestep.clamp(max=2)))[0]
        assert not torch.equal(policy.tokens(rows)[0][:, 9:], early[:, 9:])


def test_returns_to_go_are_divided_by_their_scale() -> None:
    for name in ("transformer", "s4d"):
        one, ten = (double(MAKERS[name](return_scale=scale)) for scale in (1.0, 10.0))
        rows = rows_of(one, batch_of(make_dataset((4,)), [0]))
        with torch.no_grad():
            assert_within(ten(rows._replace(rtg=rows.rtg * 10)), one(rows), ORACLE_FLOAT64)
            assert not torch.allclose(ten(rows), one(rows))
