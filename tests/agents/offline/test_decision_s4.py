"""Decision S4: its block in closed form, what the paper has otherwise, and frozen parameters."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces

from statewise.agents.offline.decision_s4 import (
    DecisionS4,
    DecisionS4Config,
    DecisionS4Sequence,
    build_core,
    build_policy,
)
from statewise.agents.offline.tokens import PolicyRows
from statewise.data.samplers import TrajectoryConfig
from statewise.kernels import join_step_runs, lti_blocks_step_runs
from statewise.ssm.block import BlockConfig
from statewise.ssm.build import SEQUENCES
from statewise.ssm.s4d import S4DConfig
from tests.agents.offline.sequence_cases import (
    BOX,
    DISCRETE,
    OBS_SPACE,
    batch_of,
    double,
    make_dataset,
    rows_of,
    s4,
)
from tests.agents.ppo_cases import copied
from tests.tolerance import ORACLE_FLOAT64, assert_close, assert_within

SMALL_S4D = DecisionS4Sequence(d_model=4, num_layers=1, s4d=S4DConfig(state_size=4))


@pytest.mark.parametrize("parity", ["ours", "paper"])
def test_a_block_is_its_equation(parity: Any) -> None:
    core = build_core(DecisionS4Config(parity=parity, sequence=SMALL_S4D)).double()
    layer = core.blocks[0].layer.layer
    linear = core.blocks[0].layer.after.linear
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    with torch.no_grad():
        v = F.layer_norm(x, (4,)) if parity == "ours" else x
        v = F.gelu(linear(F.gelu(layer(v)[0])))
        expected = x + v if parity == "ours" else v
        assert_within(core(x)[0], expected, ORACLE_FLOAT64)


def test_a_token_is_its_equation() -> None:
    policy = double(s4(return_scale=4.0))
    rows = rows_of(policy, batch_of(make_dataset((5,)), [0]))
    tokens: Any = policy.tokens
    with torch.no_grad():
        parts = [
            tokens.embed_obs(rows.obs),
            tokens.embed_action(rows.previous),
            tokens.embed_return(rows.rtg[..., None] / 4),
        ]
        first, last = tokens.project[0], tokens.project[2]
        expected = last(F.gelu(first(torch.cat([part.tanh() for part in parts], -1))))
        assert_within(tokens(rows)[0], expected, ORACLE_FLOAT64)


@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize("parity", ["ours", "paper"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_acting_in_one_call_equals_the_blocks_over_steps_with_resets(
    parity: Any, batch: int, dtype: torch.dtype
) -> None:
    sequence = DecisionS4Sequence(d_model=6, num_layers=3, s4d=S4DConfig(state_size=4))
    core = build_core(DecisionS4Config(parity=parity, sequence=sequence)).to(dtype).eval()
    x = torch.randn(batch, 5, 6, dtype=dtype)
    reset = torch.rand(batch, 5) < 0.3
    with torch.no_grad():
        expected, last = core(x, None, reset)
        state, cache = core.initial_state(batch), core.prepare_step()
        assert lti_blocks_step_runs(x[:, 0], state["0.h"], "auto")
        for t in range(5):
            y, state = core.step(x[:, t], state, reset[:, t], cache=cache)
            assert_close(y, expected[:, t], dtype, 5)
        for key, value in last.items():
            assert_close(state[key], value, dtype, 5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_token_in_one_call_equals_its_layers(dtype: torch.dtype) -> None:
    policy = s4().policy.to(dtype).eval()
    rows = rows_of(policy, batch_of(make_dataset((5,)), [0]))
    one = PolicyRows(*(part[:, 2] for part in rows))
    with torch.no_grad():
        assert join_step_runs(one.obs, policy.tokens.embed_obs.weight)
        together = policy.tokens.arriving(one)
    assert_close(together.detach(), policy.tokens.arriving(one).detach(), dtype, 1)
    large = PolicyRows(*(part.expand(700, *part.shape[1:]) for part in one))
    with torch.no_grad():  # by the products of torch
        assert_close(policy.tokens.arriving(large)[-1:], together, dtype, 1)


def test_acting_sees_weights_that_changed() -> None:
    core = build_core(DecisionS4Config(sequence=SMALL_S4D)).double().eval()
    x, state = torch.randn(2, 4).double(), core.initial_state(2)
    with torch.no_grad():
        before, _ = core.step(x, state, cache=core.prepare_step())
        core.blocks[0].layer.layer.A_im.add_(1.0)
        core.blocks[0].layer.layer.B.mul_(2.0)
        after, _ = core.step(x, state, cache=core.prepare_step())
        assert not torch.equal(before, after)
        assert_within(after, core(x[:, None])[0][:, 0], ORACLE_FLOAT64)


def test_the_paper_has_no_first_step_in_its_loss() -> None:
    step = batch_of(make_dataset((3, 2)), [0, 1], packed=True, width=7).step
    assert s4().counted(step)[0].tolist() == [True] * 5 + [False] * 2
    paper = s4(parity="paper").counted(step)
    assert paper[0].tolist() == [False, True, True, False, True, False, False]


def learnt(agent: DecisionS4, updates: int = 3) -> set[str]:
    """Return the parameters of the first layer that updates changed."""
    names = dict(agent.policy.named_parameters())
    before = copied({key: p.detach() for key, p in names.items()})
    for _ in range(updates):
        agent.update(batch_of(make_dataset(), [0, 1, 2]))
    prefix = "core.blocks.0.layer.layer."
    changed = {key for key, p in names.items() if not torch.equal(p.detach(), before[key])}
    assert any(not key.startswith("core.blocks") for key in changed)
    return {key.removeprefix(prefix) for key in changed if key.startswith(prefix)}


DYNAMICS = {"log_neg_re", "A_im", "B", "log_dt"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, DYNAMICS | {"C", "D"}),
        ({"freeze": "none", "parity": "paper"}, DYNAMICS | {"C", "D"}),
        ({"freeze": "dynamics"}, {"C", "D"}),
        ({"parity": "paper"}, {"C", "D"}),
        ({"freeze": "all"}, set()),
    ],
)
def test_frozen_parameters_stay_bit_by_bit_and_the_others_learn(
    changes: dict[str, Any], expected: set[str]
) -> None:
    # With decay, which would also move what has a gradient of 0.
    agent = s4(weight_decay=0.5, learning_rate=0.01, **changes)
    assert isinstance(agent, DecisionS4)
    assert learnt(agent) == expected


@pytest.mark.parametrize("kind", sorted(SEQUENCES))
def test_every_layer_of_the_suite_can_be_the_core(kind: Any) -> None:
    sequence = DecisionS4Sequence(kind=kind, num_layers=1, d_model=8)
    config = DecisionS4Config(sequence=sequence, d_embed=4)
    policy = build_policy(config, OBS_SPACE, DISCRETE, None).double()
    rows = rows_of(policy, batch_of(make_dataset((4,), discrete=True), [0]))
    with torch.no_grad():
        expected = policy(rows)
        state, found = policy.core.initial_state(1), []
        tokens, reset = policy.tokens(rows)
        for t in range(4):
            y, state = policy.core.step(tokens[:, t], state, reset[:, t])
            found.append(policy.head(y))
    assert_within(torch.stack(found, 1), expected, 1e-9)


def test_the_clipped_head_is_linear_and_its_actions_stay_in_their_bounds() -> None:
    agent = s4(squash="clip")
    with torch.no_grad():
        agent.policy.head.linear.weight.mul_(1e3)
    rows = rows_of(agent.policy, batch_of(make_dataset(), [0]))
    with torch.no_grad():
        predicted = agent.policy(rows)
    assert predicted.abs().max() > 2
    for action in agent.policy.code.choose(predicted[0], None).numpy():
        assert BOX.contains(action)


def test_the_defaults_are_those_of_the_calibration() -> None:
    config = DecisionS4Config(d_embed=64)
    pendulum = spaces.Box(-2, 2, (1,))
    policy = build_policy(config, OBS_SPACE, pendulum, None)
    # 54.9 thousand there, with B fixed at 1: 64 channels x 32 complex numbers in 3 blocks.
    learnt_b = 3 * 64 * 32 * 2
    assert sum(p.numel() for p in policy.parameters()) - learnt_b == 54_912
    agent = DecisionS4(config, OBS_SPACE, pendulum, statistics=None, total_updates=1, seed=0)
    assert agent.sampling == TrajectoryConfig(batch_size=16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DecisionS4Config(d_embed=0), "d_embed: expected at least 1, got 0"),
        (lambda: DecisionS4Config(buckets=0), "buckets: expected at least 1, got 0"),
        (lambda: DecisionS4Config(ssm_lr_factor=0.0), "ssm_lr_factor: expected a positive"),
        (
            lambda: DecisionS4Config(sequence=DecisionS4Sequence(kind="gru"), freeze="dynamics"),
            "freeze: expected none or all with kind 'gru'",
        ),
        (
            lambda: DecisionS4Sequence(block=BlockConfig(kind="plain")),
            "block: would be ignored",
        ),
        (lambda: DecisionS4Sequence(num_layers=0), "num_layers: expected at least 1"),
    ],
)
def test_settings_without_a_meaning_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
