"""Learning from sequences: overfitting, saved states, schedules, which rows count, errors."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from statewise.agents.offline.sequence_agent import (
    SequenceAgent,
    SequenceAgentConfig,
    loss_rows,
)
from statewise.agents.optimizer import OptimizerSettings, rate_factor
from statewise.agents.recurrent_ppo import NonFiniteLossError
from statewise.data.samplers import (
    SampledBatch,
    TrajectoryConfig,
    TrajectorySampler,
    WindowConfig,
    WindowSampler,
)
from tests.agents.offline.sequence_cases import (
    BOX,
    DISCRETE,
    MAKERS,
    batch_of,
    make_dataset,
    mamba,
    s4,
    transformer,
)
from tests.agents.offline.test_acting import driven, random_obs
from tests.agents.ppo_cases import assert_same_tree, copied

FAST: dict[str, Any] = {"learning_rate": 2e-2, "schedule": "cosine", "max_grad_norm": 10.0}


@pytest.mark.parametrize(
    ("name", "updates", "changes"),
    [
        ("transformer", 80, {"d_model": 16, "num_heads": 1, "context": 6, "return_scale": 1.0}),
        ("mamba", 80, {"d_model": 16, "return_scale": 1.0}),
        ("s4d", 200, {"d_embed": 16, "return_scale": 1.0}),
    ],
)
def test_four_short_episodes_are_learnt_by_heart(
    name: str, updates: int, changes: dict[str, Any]
) -> None:
    dataset = make_dataset((5, 2, 6, 4))
    agent = MAKERS[name](1, BOX, **FAST, **changes)
    agent.optimizer.settings = OptimizerSettings(
        **vars(agent.optimizer.settings) | {"total_updates": updates}
    )
    batch = batch_of(dataset, [0, 1, 2, 3])
    losses = [agent.update(batch)["action_loss"] for _ in range(updates)]
    assert losses[0] > 0.1
    assert losses[-1] < 1e-3, losses[-1]


@pytest.mark.parametrize("space", [BOX, DISCRETE], ids=["box", "discrete"])
@pytest.mark.parametrize("name", ["transformer", "mamba", "s4d"])
def test_a_saved_agent_goes_on_bit_by_bit(name: str, space: object) -> None:
    dataset = make_dataset(discrete=space is DISCRETE)
    agent = MAKERS[name](2, space, dropout=0.2)
    for episodes in ([0, 1], [2, 3]):
        agent.update(batch_of(dataset, episodes))
    draw = torch.Generator().manual_seed(3)
    obs = random_obs(draw)
    if space is DISCRETE:
        obs["previous_action"] = torch.eye(3)[:2]
    state, no = agent.initial_state(2), torch.zeros(2, dtype=torch.bool)
    agent.act(obs, state, no, no, explore=True)
    saved = copied(agent.state_dict())

    def go_on(one: SequenceAgent) -> list[Any]:
        torch.rand(())  # the global generator is elsewhere by now, and does not matter
        act = one.act(obs, state, no, no, explore=True)
        report = one.update(batch_of(dataset, [0, 2]))
        return [act, report, one.act(obs, state, no, no, explore=True), one.state_dict()]

    expected = copied_all(go_on(agent))
    other = MAKERS[name](2, space, dropout=0.2)
    other.update(batch_of(dataset, [1]))  # what it has seen before does not matter
    other.act(obs, state, no, no, explore=False)
    other.load_state_dict(saved)
    for a, b in zip(expected, go_on(other), strict=True):
        for one, two in zip(*((x if isinstance(x, tuple) else (x,)) for x in (a, b)), strict=True):
            assert_same_tree(one, two)


def copied_all(values: list[Any]) -> list[Any]:
    return [
        tuple(copied(x) for x in value) if isinstance(value, tuple) else copied(value)
        for value in values
    ]


def test_dropout_is_on_in_updates_and_off_in_acting() -> None:
    agent = transformer(dropout=0.5)
    batch = batch_of(make_dataset(), [0])
    agent.policy.train()
    drawn = [agent.losses(agent.policy.rows(batch), batch)["action"].item() for _ in range(2)]
    assert drawn[0] != drawn[1]
    obs, state = random_obs(torch.Generator().manual_seed(0)), driven(agent, 2, seed=1)
    no = torch.zeros(2, dtype=torch.bool)
    first, second = (agent.act(obs, state, no, no, explore=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not agent.policy.training
    agent.update(batch)
    assert agent.policy.training


def test_updates_leave_the_generators_of_torch_alone() -> None:
    agent = transformer(dropout=0.5)
    before = torch.get_rng_state()
    agent.update(batch_of(make_dataset(), [0]))
    transformer(dropout=0.5)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["mamba", "s4d", "transformer"])
def test_acting_follows_the_weights_after_an_update(name: str) -> None:
    agent = MAKERS[name](learning_rate=0.05, warmup_updates=0)
    obs, no = random_obs(torch.Generator().manual_seed(0)), torch.zeros(2, dtype=torch.bool)
    state = agent.initial_state(2)
    saved = copied(agent.state_dict())
    first = agent.act(obs, state, ~no, ~no, explore=False)[0]
    agent.update(batch_of(make_dataset(), [0]))
    moved = agent.act(obs, state, ~no, ~no, explore=False)[0]
    fresh = MAKERS[name]()
    fresh.load_state_dict(agent.state_dict())
    assert torch.equal(fresh.act(obs, state, ~no, ~no, explore=False)[0], moved)
    assert not torch.allclose(first, moved, atol=1e-4)
    agent.load_state_dict(saved)
    assert torch.equal(agent.act(obs, state, ~no, ~no, explore=False)[0], first)


def test_actions_are_those_of_the_space() -> None:
    for space in (BOX, DISCRETE):
        agent = s4(2, space)
        width = agent.policy.code.width
        obs = random_obs(torch.Generator().manual_seed(0)) | {
            "previous_action": torch.zeros(2, width)
        }
        yes = torch.ones(2, dtype=torch.bool)
        action, extras, _ = agent.act(obs, agent.initial_state(2), yes, yes, explore=True)
        assert extras == {}
        for row in action.numpy():
            assert space.contains(row), row
        assert action.dtype == (torch.int64 if space is DISCRETE else torch.float32)


def test_the_samplers_of_the_data_make_the_batches() -> None:
    dataset = make_dataset()
    window, whole = transformer(), s4()
    assert window.sampling == WindowConfig(length=4, batch_size=3)
    assert whole.sampling == TrajectoryConfig(batch_size=3)
    assert isinstance(window.sampling, WindowConfig)
    assert isinstance(whole.sampling, TrajectoryConfig)
    rng = np.random.default_rng(0)
    reports = [
        window.update(WindowSampler(dataset, window.sampling, rng).sample()),
        whole.update(TrajectorySampler(dataset, whole.sampling, rng).sample()),
    ]
    for report in reports:
        assert report.keys() == {"action_loss", "grad_norm", "learning_rate"}
    assert window.updates_made == whole.updates_made == 1


def test_the_last_step_alone_counts_where_that_is_asked_for() -> None:
    batch = batch_of(make_dataset((3, 2, 4)), [0, 1, 2], packed=True, width=11)
    counted = loss_rows(batch.step, "last")
    assert counted[0].nonzero().flatten().tolist() == [2, 4, 8]
    assert torch.equal(loss_rows(batch.step, "all"), batch.step.valid)
    agent = s4(loss_on="last")
    agent.policy.double()
    loss = agent.losses(agent.policy.rows(batch), batch)["action"]
    with torch.no_grad():
        rows = agent.policy.rows(batch)
        error = (agent.policy(rows) - rows.action).square().mean(-1)[0]
    assert loss.item() == pytest.approx(error[[2, 4, 8]].mean().item())


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    settings = OptimizerSettings(
        learning_rate=1.0, max_grad_norm=1.0, warmup_updates=4, total_updates=10
    )
    assert [rate_factor(u, settings) for u in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1, 1, 1]
    cosine = OptimizerSettings(**vars(settings) | {"schedule": "cosine", "warmup_updates": 0})
    expected = [(1 + math.cos(math.pi * u / 10)) / 2 for u in (0, 5, 9)] + [0, 0]
    assert [rate_factor(u, cosine) for u in (0, 5, 9, 10, 12)] == pytest.approx(expected)
    cooldown = OptimizerSettings(**vars(settings) | {"schedule": "cooldown"})
    expected = [0.25, 1, 1, 1, 0.5, 0, 0]
    assert [rate_factor(u, cooldown) for u in (0, 3, 7, 8, 9, 10, 12)] == pytest.approx(expected)
    agent = s4(learning_rate=0.5, warmup_updates=2, schedule="constant")
    batch = batch_of(make_dataset(), [0])
    assert [agent.update(batch)["learning_rate"] for _ in range(3)] == [0.25, 0.5, 0.5]


def test_state_space_parameters_have_a_rate_of_their_own_and_no_decay() -> None:
    agent = s4(ssm_lr_factor=0.1, weight_decay=0.3)
    agent.update(batch_of(make_dataset(), [0]))
    adam = agent.optimizer._made()
    groups = {group["name"]: group for group in adam.param_groups}
    assert groups["ssm"]["lr"] == pytest.approx(0.1 * groups["regular"]["lr"])
    assert [groups[n]["weight_decay"] for n in ("regular", "vectors", "ssm")] == [0.3, 0, 0]


def test_a_broken_batch_is_named_and_changes_nothing() -> None:
    agent = transformer()
    batch: SampledBatch = batch_of(make_dataset(), [0])
    batch.step.obs["obs"][0, 0] = float("nan")
    before = copied(agent.policy.state_dict())
    with pytest.raises(NonFiniteLossError, match="action = NaN or infinity after 0 updates"):
        agent.update(batch)
    assert_same_tree(agent.policy.state_dict(), before)


def test_states_that_do_not_fit_are_named() -> None:
    agent = mamba()
    agent.update(batch_of(make_dataset(), [0]))
    saved = copied(agent.state_dict())
    with pytest.raises(ValueError, match=r"expected the keys .*'noise'"):
        agent.load_state_dict({key: x for key, x in saved.items() if key != "noise"})
    with pytest.raises(ValueError, match=r"weights do not fit: core\.layer\.blocks\.1.*nothing"):
        mamba(1).load_state_dict(saved)
    saved["optimizer"]["unknown"] = {}
    with pytest.raises(ValueError, match=r"moments do not fit.*'unknown'"):
        agent.load_state_dict(saved)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("return_scale", 0.0),
        ("learning_rate", -1.0),
        ("max_grad_norm", 0.0),
        ("batch_size", 0),
        ("warmup_updates", -1),
        ("weight_decay", -0.1),
        ("dropout", 1.0),
    ],
)
def test_settings_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field}: expected .*got {value}"):
        SequenceAgentConfig(**{field: value})  # type: ignore[arg-type]
