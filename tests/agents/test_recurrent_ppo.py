"""Recurrent PPO against arithmetic by hand and a second derivation that walks step by step."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from statewise.agents.recurrent_ppo import (
    LossScale,
    NonFiniteLossError,
    RecurrentPPO,
    RecurrentPPOConfig,
    masked_mean,
    ppo_loss,
    standardize,
    weighted_sum,
)
from statewise.data.step import Batch
from statewise.ssm.build import SEQUENCES
from statewise.ssm.state import take
from tests.agents.ppo_cases import (
    T,
    assert_same_tree,
    make_agent,
    make_batch,
    make_config,
    parameters,
)

# --- the loss, by hand


def hand_case() -> dict[str, Tensor]:
    """Rows (0, 0), (0, 1), (1, 0) count; (1, 1) does not.

    ratio   2, 0.5, 1;  clip 0.2
    adv     1, -1, 3    -> min(2, 1.2) = 1.2; min(-0.5, -0.8) = -0.8; 3
    value   1, 0, 0.1;  old 0, 0, 0;  target 1, 2, 1;  value_clip 0.5
            error 0, 4, 0.81; near 0.5, 0, 0.1 -> 0.25, 4, 0.81; larger 0.25, 4, 0.81
    """
    return {
        "log_prob": torch.tensor([[math.log(2.0), math.log(0.5)], [0.0, 9.0]]),
        "log_prob_old": torch.zeros(2, 2),
        "advantage": torch.tensor([[1.0, -1.0], [3.0, 100.0]]),
        "value": torch.tensor([[1.0, 0.0], [0.1, 50.0]]),
        "value_old": torch.zeros(2, 2),
        "value_target": torch.tensor([[1.0, 2.0], [1.0, -50.0]]),
        "entropy": torch.tensor([[0.5, 0.7], [0.9, 70.0]]),
        "valid": torch.tensor([[True, True], [True, False]]),
    }


def test_the_three_terms_are_those_worked_by_hand() -> None:
    losses, metrics = ppo_loss(**hand_case(), clip=0.2, value_clip=0.5)
    assert losses["policy_gradient"].item() == pytest.approx(-(1.2 - 0.8 + 3) / 3)
    assert losses["value"].item() == pytest.approx(0.5 * (0.25 + 4 + 0.81) / 3)
    assert losses["entropy"].item() == pytest.approx(-(0.5 + 0.7 + 0.9) / 3)
    # k3: ratio - 1 - log ratio
    kl = (2 - 1 - math.log(2)) + (0.5 - 1 + math.log(2)) + 0
    assert metrics["approx_kl"].item() == pytest.approx(kl / 3)
    assert metrics["clip_fraction"].item() == pytest.approx(2 / 3)


def test_a_value_clip_of_zero_takes_the_plain_error() -> None:
    losses, _ = ppo_loss(**hand_case(), clip=0.2, value_clip=0.0)
    assert losses["value"].item() == pytest.approx(0.5 * (0 + 4 + 0.81) / 3)


def test_a_wide_clip_leaves_the_ratio_alone() -> None:
    losses, metrics = ppo_loss(**hand_case(), clip=5.0, value_clip=0.0)
    assert losses["policy_gradient"].item() == pytest.approx(-(2 - 0.5 + 3) / 3)
    assert metrics["clip_fraction"].item() == 0


def test_clipped_rows_get_no_policy_gradient() -> None:
    case = hand_case()
    case["log_prob"].requires_grad_()
    losses, _ = ppo_loss(**case, clip=0.2, value_clip=0.5)
    losses["policy_gradient"].backward()
    # both clipped in the direction of their advantage; the third: -ratio * adv / 3
    assert torch.allclose(case["log_prob"].grad, torch.tensor([[0.0, 0.0], [-1.0, 0.0]]))


@pytest.mark.parametrize(
    "name",
    ["log_prob", "log_prob_old", "advantage", "value", "value_old", "value_target", "entropy"],
)
def test_nan_in_a_masked_row_reaches_neither_losses_nor_gradients(name: str) -> None:
    def run(bad: float | None) -> tuple[dict[str, Tensor], list[Tensor]]:
        case = hand_case()
        if bad is not None:
            case[name][1, 1] = bad
        inputs = [case[key].requires_grad_() for key in ("log_prob", "value", "entropy")]
        losses, metrics = ppo_loss(**case, clip=0.2, value_clip=0.5)
        weighted_sum(losses, LossScale(entropy=0.1)).backward()
        return losses | metrics, [x.grad for x in inputs]

    (clean, clean_grads), (found, grads) = run(None), run(math.nan)
    assert_same_tree(found, clean)
    for grad, clean_grad in zip(grads, clean_grads, strict=True):
        assert torch.equal(grad, clean_grad)


def test_standardizing_ignores_masked_rows() -> None:
    x = torch.tensor([[1.0, 3.0], [5.0, math.nan]])
    valid = torch.tensor([[True, True], [True, False]])
    y = standardize(x, valid)
    deviation = math.sqrt(8 / 3)
    assert torch.allclose(y[valid], torch.tensor([-2.0, 0.0, 2.0]) / deviation)
    assert masked_mean(x, valid).item() == 3
    assert masked_mean(x, torch.zeros(2, 2, dtype=torch.bool)).item() == 0


def test_the_names_of_terms_and_coefficients_must_be_equal() -> None:
    names = ("policy_gradient", "value", "entropy")
    losses = {name: torch.tensor(x) for name, x in zip(names, (1.0, 2.0, 4.0), strict=True)}
    assert weighted_sum(losses, LossScale(value=0.5, entropy=0.25)).item() == 3.0
    with pytest.raises(AssertionError, match="entropy"):
        weighted_sum({name: losses[name] for name in ("policy_gradient", "value")}, LossScale())
    with pytest.raises(AssertionError, match="kl"):
        weighted_sum(losses | {"kl": torch.tensor(1.0)}, LossScale())


# --- the update, derived a second time


def loop_advantages(batch: Batch, config: RecurrentPPOConfig) -> tuple[Tensor, Tensor]:
    """Sum the discounted errors of each row up to the end of its episode or of the window."""
    step, value = batch.step, batch.extras["value"]
    advantage = torch.zeros_like(value)
    for b in range(value.shape[0]):
        for t in range(value.shape[1]):
            weight = 1.0
            for k in range(t, value.shape[1]):
                reward = float(step.reward[b, k]) * config.reward_scale
                dies = bool(step.terminated[b, k])
                if config.truncation == "terminate":
                    dies = dies or bool(step.truncated[b, k])
                after = 0.0 if dies else float(batch.value_tp1[b, k])
                advantage[b, t] += weight * (reward + config.discount * after - value[b, k])
                if step.terminated[b, k] or step.truncated[b, k]:
                    break
                weight *= config.discount * config.trace
    return advantage, advantage + value


def walk(agent: RecurrentPPO, batch: Batch, rows: Tensor) -> tuple[list[Any], list[Tensor]]:
    """Run the network over the rows with `step`, one row of time after the other."""
    state = take(batch.state, rows)
    policies, values = [], []
    for t in range(batch.step.reward.shape[1]):
        x = agent.network.project(agent.network.encoder({"obs": batch.step.obs["obs"][rows, t]}))
        y, state = agent.network.sequence.step(x, state, batch.step.reset[rows, t])
        policies.append(agent.network.policy(y))
        values.append(agent.network.value(y))
    return policies, values


def loop_loss(agent: RecurrentPPO, batch: Batch, rows: Tensor, adv: Tensor, target: Tensor) -> Any:
    """Return the loss of a minibatch, row by row."""
    config, valid = agent.config, batch.step.valid[rows]
    policies, values = walk(agent, batch, rows)
    chosen = adv[rows]
    if config.normalize_advantage == "minibatch":
        kept = chosen[valid]
        chosen = (chosen - kept.mean()) / (kept.std(correction=0) + 1e-8)
    total = torch.zeros(())
    for t, (policy, value) in enumerate(zip(policies, values, strict=True)):
        log_prob, entropy = policy.log_prob(batch.step.action[rows, t]), policy.entropy()
        for i, b in enumerate(rows.tolist()):
            if not valid[i, t]:
                continue
            ratio = (log_prob[i] - batch.extras["log_prob"][b, t]).exp()
            bounded = ratio.clamp(1 - config.clip, 1 + config.clip)
            gain = torch.minimum(ratio * chosen[i, t], bounded * chosen[i, t])
            error = (value[i] - target[b, t]) ** 2
            if config.value_clip > 0:
                old = batch.extras["value"][b, t]
                near = old + (value[i] - old).clamp(-config.value_clip, config.value_clip)
                error = torch.maximum(error, (near - target[b, t]) ** 2)
            scale = config.loss_scale
            total = total - scale.policy_gradient * gain + scale.value * 0.5 * error
            total = total - scale.entropy * entropy[i]
    return total / valid.sum()


def loop_update(agent: RecurrentPPO, batch: Batch, seed: int) -> None:
    """Train as `update` does on a first batch, with loops and Adam written out."""
    config = agent.config
    advantage, target = loop_advantages(batch, config)
    if config.normalize_advantage == "rollout":
        kept = advantage[batch.step.valid]
        advantage = (advantage - kept.mean()) / (kept.std(correction=0) + 1e-8)
    shuffle = torch.Generator().manual_seed(seed)
    weights = list(agent.network.parameters())
    first = [torch.zeros_like(p) for p in weights]
    second = [torch.zeros_like(p) for p in weights]
    count = 0
    for _ in range(config.num_epochs):
        order = torch.randperm(len(batch.step.reward), generator=shuffle)
        for rows in order.chunk(config.num_minibatches):
            count += 1
            grads = torch.autograd.grad(
                loop_loss(agent, batch, rows, advantage, target), weights, allow_unused=True
            )
            pairs = zip(weights, grads, strict=True)
            dense = [torch.zeros_like(p) if g is None else g for p, g in pairs]
            norm = math.sqrt(sum(float(g.square().sum()) for g in dense))
            shrink = min(1.0, config.max_grad_norm / (norm + 1e-6))
            with torch.no_grad():
                for p, m, v, g in zip(weights, first, second, dense, strict=True):
                    m.mul_(0.9).add_(0.1 * shrink * g)
                    v.mul_(0.999).add_(0.001 * (shrink * g) ** 2)
                    scaled = (v / (1 - 0.999**count)).sqrt() + config.adam_eps
                    p -= config.learning_rate * (m / (1 - 0.9**count)) / scaled


@pytest.mark.parametrize("kind", sorted(SEQUENCES))
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalize_advantage": "rollout", "value_clip": 0.0, "truncation": "terminate"},
        {"normalize_advantage": "none", "max_grad_norm": 1e6, "num_minibatches": 4},
    ],
    ids=["default", "rollout-terminate", "one-environment-minibatches"],
)
def test_an_update_equals_the_one_that_walks_step_by_step(
    kind: str, changes: dict[str, Any]
) -> None:
    config = make_config(kind, reward_scale=0.5, **changes)
    fast, slow = make_agent(config, seed=3), make_agent(config, seed=3)
    batch = make_batch(fast)
    assert batch.step.terminated.any()
    assert batch.step.truncated.any()
    before = parameters(fast)
    fast.update(batch)
    loop_update(slow, batch, seed=3)
    moved = 0.0
    for name, expected in parameters(slow).items():
        found = parameters(fast)[name]
        assert torch.allclose(found, expected, atol=1e-5, rtol=0), name
        moved = max(moved, float((expected - before[name]).abs().max()))
    assert moved > 1e-3


def test_the_walk_notices_reset_flags_that_are_off_by_one() -> None:
    fast, slow = make_agent(make_config("gru")), make_agent(make_config("gru"))
    batch = make_batch(fast)
    fast.update(batch._replace(step=batch.step._replace(reset=batch.step.reset.roll(1, 1))))
    loop_update(slow, batch, seed=0)
    assert any(
        not torch.allclose(parameters(fast)[name], expected, atol=1e-5, rtol=0)
        for name, expected in parameters(slow).items()
    )


def test_every_epoch_begins_from_the_stored_memory_and_leaves_it_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = make_agent(make_config(num_epochs=3, num_minibatches=1))
    batch = make_batch(agent)
    stored = {key: x.clone() for key, x in batch.state.items()}
    seen: list[dict[str, Tensor]] = []
    forward = agent.network.sequence.forward

    def recording(x: Tensor, state: Any = None, reset: Any = None) -> Any:
        seen.append(state)
        return forward(x, state, reset)

    monkeypatch.setattr(agent.network.sequence, "forward", recording)
    agent.update(batch)
    assert len(seen) == 3
    for state in seen:
        for key, x in state.items():
            order = x.flatten(1).sum(1).argsort()
            expected = stored[key][stored[key].flatten(1).sum(1).argsort()]
            assert torch.equal(x[order], expected)
            assert not x.requires_grad
    assert_same_tree(batch.state, stored)


def test_invalid_rows_change_nothing() -> None:
    one, other = make_agent(), make_agent()
    batch = make_batch(one)
    ignored = ~batch.step.valid
    assert ignored.any()
    step = batch.step._replace(
        action=torch.where(ignored, 2 - batch.step.action, batch.step.action),
    )
    extras = dict(batch.extras)
    extras["log_prob"] = torch.where(ignored, -50.0, extras["log_prob"])
    one.update(batch)
    other.update(batch._replace(step=step, extras=extras))
    assert_same_tree(parameters(one), parameters(other))


def test_truncation_bootstraps_and_termination_does_not() -> None:
    agent = make_agent(make_config(normalize_advantage="none", num_epochs=1))
    batch = make_batch(agent)
    bootstrapped, _ = loop_advantages(batch, agent.config)
    terminated, _ = loop_advantages(batch, make_config(truncation="terminate"))
    differing = bootstrapped != terminated
    assert differing[batch.step.truncated].all()
    assert not differing[batch.step.terminated].any()
    agents = [make_agent(make_config(truncation=kind)) for kind in ("bootstrap", "terminate")]
    for one in agents:
        one.update(batch)
    found = [parameters(one) for one in agents]
    assert any(not torch.equal(found[0][name], found[1][name]) for name in found[0])


# --- schedules and stops


def test_the_learning_rate_falls_linearly_to_zero_over_the_valid_steps() -> None:
    agent = make_agent()
    batch = make_batch(agent)
    valid = int(batch.step.valid.sum())
    agent.total_steps = 3 * valid
    rates = [agent.update(batch)["learning_rate"] for _ in range(4)]
    assert rates == pytest.approx([1e-3, 1e-3 * 2 / 3, 1e-3 / 3, 0.0])
    assert agent.steps_seen == 4 * valid
    before = parameters(agent)
    agent.update(batch)
    assert_same_tree(parameters(agent), before)


def test_a_constant_learning_rate_stays() -> None:
    agent = make_agent(make_config(anneal="constant"), total_steps=1)
    batch = make_batch(agent)
    assert [agent.update(batch)["learning_rate"] for _ in range(2)] == [1e-3, 1e-3]


def test_a_target_kl_stops_the_epochs() -> None:
    runs = {}
    for target in (0.0, 1e-9, 1e9):
        agent = make_agent(make_config(target_kl=target, num_epochs=5))
        runs[target] = agent.update(make_batch(agent))["num_epochs"]
    assert runs == {0.0: 5, 1e-9: 1, 1e9: 5}


@pytest.mark.parametrize("num_rows", [1, 2, T])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_one_environment_and_one_row_are_enough(num_envs: int, num_rows: int) -> None:
    agent = make_agent(make_config(num_minibatches=num_envs))
    before = parameters(agent)
    metrics = agent.update(make_batch(agent, num_envs, num_rows))
    assert all(math.isfinite(value) for value in metrics.values())
    assert any(not torch.equal(before[name], p) for name, p in parameters(agent).items())


@pytest.mark.parametrize(
    ("spoil", "term"),
    [
        (lambda b: b._replace(step=b.step._replace(reward=b.step.reward * 1e30)), "value_loss"),
        (
            lambda b: b._replace(extras=b.extras | {"log_prob": b.extras["log_prob"] - 500}),
            "policy_gradient_loss",
        ),
    ],
    ids=["value", "policy"],
)
def test_a_loss_that_is_not_finite_names_the_term_and_keeps_the_weights(
    spoil: Callable[[Batch], Batch], term: str
) -> None:
    agent = make_agent()
    agent.steps_seen = 123
    batch = make_batch(agent)
    before = parameters(agent)
    with pytest.raises(NonFiniteLossError, match=rf"{term}.*after 123 steps"):
        agent.update(spoil(batch))
    assert_same_tree(parameters(agent), before)
