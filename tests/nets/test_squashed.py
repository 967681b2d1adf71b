"""The squashed Gaussian: a density, its samples, and its bounds."""

import torch
from torch import Tensor

from statewise.nets.squashed import (
    MAX_LOG_STD,
    MIN_LOG_STD,
    SquashedGaussian,
    bounded_log_std,
)
from tests.tolerance import assert_close

DOUBLE = torch.float64


def test_the_density_is_that_of_the_change_of_variables() -> None:
    mean, log_std, noise = torch.randn(3, 5, 2, dtype=DOUBLE).unbind()
    action, log_prob = SquashedGaussian(mean, log_std).sample(noise)
    normal = torch.distributions.Normal(mean, log_std.exp()).log_prob(action.atanh())
    assert_close(log_prob, (normal - (1 - action.square()).log()).sum(-1), DOUBLE, 1)
    assert_close(action, (mean + log_std.exp() * noise).tanh(), DOUBLE, 1)


def test_the_density_integrates_to_one() -> None:
    mean, log_std = torch.tensor([0.4], dtype=DOUBLE), torch.tensor([-0.5], dtype=DOUBLE)
    action = torch.linspace(-1, 1, 40_001, dtype=DOUBLE)[1:-1, None]
    noise = (action.atanh() - mean) / log_std.exp()
    _, log_prob = SquashedGaussian(mean, log_std).sample(noise)
    total = float(torch.trapezoid(log_prob.exp(), action[:, 0]))
    assert abs(total - 1) < 1e-6


def test_far_out_the_density_and_its_gradient_stay_finite() -> None:
    mean = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    _, log_prob = SquashedGaussian(mean, torch.zeros(2, 1)).sample(torch.zeros(2, 1))
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert mean.grad is not None
    assert_close(mean.grad, torch.tensor([[2.0], [-2.0]]), torch.float32, 1)


def test_the_deviation_lies_between_its_bounds() -> None:
    output: Tensor = torch.tensor([-1e4, 0.0, 1e4])
    middle = (MIN_LOG_STD + MAX_LOG_STD) / 2
    assert_close(
        bounded_log_std(output), torch.tensor([MIN_LOG_STD, middle, MAX_LOG_STD]), output.dtype, 1
    )
