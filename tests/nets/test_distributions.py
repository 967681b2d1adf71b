"""Distributions against torch.distributions, counted frequencies and extreme logits."""

import math

import pytest
import torch
from torch import distributions as reference

from statewise.nets.distributions import (
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
)

LEADS = [pytest.param(lead, id=str(lead)) for lead in [(), (3,), (2, 5)]]
NVECS = [pytest.param(nvec, id=str(nvec)) for nvec in [(3, 3), (2, 5, 3), (4,), (1, 3)]]
NUM_DRAWS = 40_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def examples() -> dict[str, Distribution]:
    return {
        "categorical": Categorical(torch.randn(2, 3, 4)),
        "equal": MultiCategorical(torch.randn(2, 3, 6), (3, 3)),
        "unequal": MultiCategorical(torch.randn(2, 3, 6), (2, 4)),
        "gaussian": DiagonalGaussian(torch.randn(2, 3, 4), torch.randn(4)),
    }


@pytest.mark.parametrize("lead", LEADS)
def test_categorical_agrees_with_torch(lead: tuple[int, ...]) -> None:
    logits = torch.randn(*lead, 5, dtype=torch.float64)
    ours, theirs = Categorical(logits), reference.Categorical(logits=logits)
    action = torch.randint(0, 5, lead)
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), logits.argmax(-1))


@pytest.mark.parametrize("nvec", NVECS)
@pytest.mark.parametrize("lead", LEADS)
def test_multi_categorical_is_the_sum_of_its_components(
    lead: tuple[int, ...], nvec: tuple[int, ...]
) -> None:
    logits = torch.randn(*lead, sum(nvec), dtype=torch.float64)
    ours = MultiCategorical(logits, nvec)
    parts = [reference.Categorical(logits=part) for part in logits.split(list(nvec), -1)]
    action = torch.stack([torch.randint(0, n, lead) for n in nvec], -1)
    log_prob = sum(part.log_prob(action[..., k]) for k, part in enumerate(parts))
    torch.testing.assert_close(ours.log_prob(action), log_prob)
    torch.testing.assert_close(ours.entropy(), sum(part.entropy() for part in parts))
    assert torch.equal(ours.mode(), torch.stack([part.logits.argmax(-1) for part in parts], -1))


@pytest.mark.parametrize("lead", LEADS)
def test_gaussian_agrees_with_torch(lead: tuple[int, ...]) -> None:
    mean, log_std = torch.randn(*lead, 3, dtype=torch.float64), torch.tensor([-1.0, 0.0, 0.7])
    log_std = log_std.double()
    ours = DiagonalGaussian(mean, log_std)
    theirs = reference.Independent(reference.Normal(mean, log_std.exp().expand_as(mean)), 1)
    action = torch.randn(*lead, 3, dtype=torch.float64)
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), mean)


def test_categorical_draws_follow_the_probabilities() -> None:
    p = torch.tensor([0.5, 0.3, 0.15, 0.05])
    draws = Categorical(p.log().expand(NUM_DRAWS, 4)).sample(seeded())
    frequency = torch.bincount(draws, minlength=4) / NUM_DRAWS
    # Five standard deviations of the least certain frequency: 5 * sqrt(0.25 / 40000) = 0.0125.
    assert (frequency - p).abs().max() < 0.0125


def test_components_are_drawn_independently() -> None:
    p, q = torch.tensor([0.7, 0.3]), torch.tensor([0.2, 0.3, 0.5])
    logits = torch.cat([p, q]).log().expand(NUM_DRAWS, 5)
    draws = MultiCategorical(logits, (2, 3)).sample(seeded())
    joint = torch.bincount(draws[:, 0] * 3 + draws[:, 1], minlength=6) / NUM_DRAWS
    assert (joint - torch.outer(p, q).flatten()).abs().max() < 0.0125


def test_gaussian_draws_have_the_mean_and_the_spread() -> None:
    mean, log_std = torch.tensor([1.0, -2.0]), torch.tensor([0.0, math.log(0.5)])
    draws = DiagonalGaussian(mean.expand(NUM_DRAWS, 2), log_std).sample(seeded())
    # Five standard errors: 5 / sqrt(40000) = 0.025 of the standard deviation.
    assert (draws.mean(0) - mean).abs().max() < 0.025
    assert (draws.std(0) - log_std.exp()).abs().max() < 0.025


@pytest.mark.parametrize("name", ["categorical", "equal", "unequal", "gaussian"])
def test_the_generator_alone_decides_the_draw(name: str) -> None:
    distribution = examples()[name]
    one = distribution.sample(seeded(1))
    torch.manual_seed(99)
    assert torch.equal(one, distribution.sample(seeded(1)))
    later = torch.stack([distribution.sample(seeded(seed)) for seed in range(2, 12)])
    assert (later != one).any()


@pytest.mark.parametrize("name", ["categorical", "equal", "unequal", "gaussian"])
def test_shapes_and_dtypes_follow_the_contract(name: str) -> None:
    distribution = examples()[name]
    action = distribution.sample(None)
    expected = {"categorical": (2, 3), "gaussian": (2, 3, 4)}.get(name, (2, 3, 2))
    assert action.shape == distribution.mode().shape == expected
    assert action.dtype == (torch.float32 if name == "gaussian" else torch.int64)
    assert distribution.log_prob(action).shape == distribution.entropy().shape == (2, 3)


def test_extreme_logits_give_finite_values_and_gradients() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [-1e30, 1e30, 0.0]], requires_grad=True)
    distribution = Categorical(logits)
    entropy = distribution.entropy()
    torch.testing.assert_close(entropy, torch.zeros(2))
    log_prob = distribution.log_prob(torch.tensor([0, 1]))
    torch.testing.assert_close(log_prob, torch.zeros(2))
    (entropy + log_prob).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert torch.equal(distribution.sample(seeded()), torch.tensor([0, 1]))


def test_impossible_categories_are_never_drawn_and_keep_gradients_finite() -> None:
    logits = torch.tensor([0.0, -math.inf, 0.0], requires_grad=True)
    distribution = Categorical(logits)
    entropy = distribution.entropy()
    torch.testing.assert_close(entropy, torch.tensor(math.log(2.0)))
    (entropy + distribution.log_prob(torch.tensor(0))).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([0.5, 0.0, -0.5]))
    draws = Categorical(logits.detach().expand(1000, 3)).sample(seeded())
    assert set(draws.tolist()) == {0, 2}


def test_padding_of_unequal_components_leaves_gradients_alone() -> None:
    logits = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    action = torch.tensor([1, 2]).expand(7, 2)
    ours = MultiCategorical(logits, (2, 3))
    (grad,) = torch.autograd.grad((ours.log_prob(action) + ours.entropy()).sum(), logits)
    parts = [reference.Categorical(logits=part) for part in logits.split([2, 3], -1)]
    expected = sum((p.log_prob(action[:, k]) + p.entropy()).sum() for k, p in enumerate(parts))
    (grad_expected,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(grad, grad_expected)


def test_samples_carry_no_gradient() -> None:
    mean, log_std = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    assert not DiagonalGaussian(mean, log_std).sample(None).requires_grad
    assert not Categorical(mean).sample(None).requires_grad
