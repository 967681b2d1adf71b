"""Refined labels: their algebra, their schedule, and a teacher that is truly past."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from statewise.agents.offline.self_evolution import (
    SelfEvolutionConfig,
    Teacher,
    as_code,
    iteration,
    refined,
    share,
)
from tests.agents.offline.mg_cases import mg
from tests.agents.offline.sequence_cases import batch_of, make_dataset, transformer
from tests.tolerance import ORACLE_FLOAT64, assert_within


def labels() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a prediction that is a leaf, a label and a past prediction, (4, 2)."""
    predicted, label, past = torch.randn(3, 4, 2, dtype=torch.float64).unbind()
    return predicted.clone().requires_grad_(), label, past


def test_the_share_grows_by_parts_of_the_run_up_to_its_bound() -> None:
    config = SelfEvolutionConfig()
    found = [share(k, config) for k in (0, 1, 12, 24, 40)]
    assert found == pytest.approx([0.0, 0.85 / 40, 0.255, 0.5, 0.5])
    assert share(24, SelfEvolutionConfig(beta_max=0.9)) == pytest.approx(0.51)


def test_parts_of_a_run_are_equal_and_the_first_has_no_past() -> None:
    for update, k in ((0, 0), (2499, 0), (2500, 1), (59_999, 23), (99_999, 39), (100_000, 40)):
        assert iteration(update, 100_000, 40) == k
    assert [iteration(update, 5, 2) for update in range(6)] == [0, 0, 0, 1, 1, 2]


def test_without_a_share_of_the_past_labels_stay_bit_by_bit() -> None:
    _, label, past = labels()
    assert torch.equal(refined(label, past, 0.0), label)


def test_the_loss_holds_the_policy_between_label_and_past() -> None:
    a_hat, a, past = labels()
    for beta in (0.1, 0.5):
        left = (a_hat - refined(a, past, beta)).square().sum()
        near = (1 - beta) * (a_hat - a).square().sum() + beta * (a_hat - past).square().sum()
        constant = beta * (1 - beta) * (a - past).square().sum()
        assert_within(left, near - constant, ORACLE_FLOAT64)


def test_the_gradient_is_that_of_the_squared_error_to_the_refined_label() -> None:
    a_hat, a, past = labels()
    past.requires_grad_()
    loss = F.mse_loss(a_hat, refined(a, past, 0.3))
    loss.backward()
    expected = 2 * (a_hat - (0.7 * a + 0.3 * past)) / a_hat.numel()
    assert a_hat.grad is not None
    assert_within(a_hat.grad, expected, ORACLE_FLOAT64)
    assert past.grad is None


def test_the_present_policy_as_its_own_teacher_only_scales_the_gradient() -> None:
    a_hat, a, _ = labels()
    plain = torch.autograd.grad(F.mse_loss(a_hat, a), a_hat)[0]
    own = torch.autograd.grad(F.mse_loss(a_hat, refined(a, a_hat, 0.3)), a_hat)[0]
    assert_within(own, 0.7 * plain, ORACLE_FLOAT64)


def test_of_discrete_actions_the_past_gives_probabilities() -> None:
    logits = torch.tensor([[0.0, 0.0, 5.0, 5.0 + torch.tensor(3.0).log()]])
    probabilities = as_code(logits, (2, 2))
    assert_within(probabilities, torch.tensor([[0.5, 0.5, 0.25, 0.75]]), 1e-6)
    assert as_code(logits, ()) is logits
    one_hot = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    mixed = refined(one_hot, probabilities, 0.4)
    assert_within(mixed, torch.tensor([[0.8, 0.2, 0.1, 0.9]]), 1e-6)


def one_update(agent: Any, changes: float) -> dict[str, torch.Tensor]:
    """Move every weight and return the parameters afterwards."""
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.add_(changes)
    return {name: p.detach().clone() for name, p in agent.policy.named_parameters()}


def parameters_of(teacher: Teacher) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in teacher.network.named_parameters()}


@pytest.mark.parametrize("kind", ["prev_iteration", "prev_step", "ema"])
def test_the_teacher_is_the_past_that_was_asked_for(kind: Any) -> None:
    agent = transformer(1)
    decay = {"ema_decay": 0.9} if kind == "ema" else {}
    teacher = Teacher(agent.policy, SelfEvolutionConfig(teacher=kind, iterations=3, **decay), 9)
    history = [parameters_of(teacher)]
    average = history[0]
    for updates_made in range(1, 10):
        kept = teacher.kept(agent.policy)
        history.append(one_update(agent, 0.1 * updates_made))
        teacher.follow(agent.policy, kept, updates_made)
        average = {key: 0.9 * x + 0.1 * history[-1][key] for key, x in average.items()}
        past = {
            "prev_iteration": history[3 * (updates_made // 3)],
            "prev_step": history[updates_made - 1],
            "ema": average,
        }[kind]
        for key, found in parameters_of(teacher).items():
            assert_within(found, past[key], 1e-6 if kind == "ema" else 0.0)


def test_the_teacher_has_no_dropout_and_no_gradient() -> None:
    agent = mg(1, dropout=0.5, fine="shifted_triplet")
    agent.policy.train()
    assert agent.teacher is not None
    batch = batch_of(make_dataset(), [0, 2])
    first, second = (agent.teacher.labels(batch) for _ in range(2))
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert not any(p.requires_grad for p in agent.teacher.network.parameters())
    assert agent.policy.training
    assert all(p.requires_grad for p in agent.policy.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 0}, "iterations: expected at least 1, got 0"),
        ({"beta_final": -0.1}, "beta_final: expected 0 or more, got -0.1"),
        ({"beta_max": 1.0}, r"beta_max: expected \[0, 1\), got 1.0"),
        ({"teacher": "ema", "ema_decay": 1.0}, r"ema_decay: expected \[0, 1\), got 1.0"),
        ({"ema_decay": 0.5}, "ema_decay: would be ignored with teacher 'prev_iteration'"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelfEvolutionConfig(**changes)
