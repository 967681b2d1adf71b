"""Fully connected networks and heads: shapes, initialisation, spaces."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from statewise.nets.distributions import Categorical, DiagonalGaussian, MultiCategorical
from statewise.nets.heads import MLP, PolicyHead, ValueHead, mlp

BOX = spaces.Box(-1.0, 1.0, (2, 3), np.float32)
SPACES = [
    pytest.param(spaces.Discrete(5), Categorical, (), id="discrete"),
    pytest.param(spaces.Discrete(5, start=2), Categorical, (), id="discrete-start"),
    pytest.param(spaces.MultiDiscrete([2, 4]), MultiCategorical, (2,), id="multi-discrete"),
    pytest.param(BOX, DiagonalGaussian, (6,), id="box"),
]
UNSUPPORTED = [
    pytest.param(spaces.MultiBinary(3), id="multi-binary"),
    pytest.param(spaces.MultiDiscrete([[2, 2], [2, 2]]), id="multi-discrete-matrix"),
    pytest.param(spaces.Box(0, 3, (2,), np.int64), id="integer-box"),
    pytest.param(spaces.Box(0.0, 1.0, (), np.float32), id="scalar-box"),
    pytest.param(spaces.Dict(a=spaces.Discrete(2)), id="dict"),
]


def assert_orthogonal(weight: torch.Tensor, gain: float) -> None:
    rows = weight if weight.shape[0] <= weight.shape[1] else weight.T
    torch.testing.assert_close(rows @ rows.T, gain**2 * torch.eye(rows.shape[0]))


def linears_of(network: MLP) -> list[nn.Linear]:
    return [layer for layer in network.linears if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize(
    ("activation", "reference"),
    [("leaky_relu", nn.LeakyReLU(0.01)), ("tanh", nn.Tanh()), ("silu", nn.SiLU())],
)
def test_mlp_is_its_layers_one_after_the_other(activation: str, reference: nn.Module) -> None:
    network = mlp(3, (8, 5), 2, activation=activation)  # type: ignore[arg-type]
    first, second, last = linears_of(network)
    x = torch.randn(4, 6, 3)
    torch.testing.assert_close(network(x), last(reference(second(reference(first(x))))))


def test_mlp_without_hidden_layers_is_linear() -> None:
    network = mlp(3, (), 2)
    x = torch.randn(4, 3)
    torch.testing.assert_close(network(2.0 * x), 2.0 * network(x))


def test_mlp_starts_orthogonal_with_zero_biases() -> None:
    network = mlp(3, (8, 5), 2, gain_hidden=2.0, gain_out=0.1)
    for linear, gain in zip(linears_of(network), (2.0, 2.0, 0.1), strict=True):
        assert_orthogonal(linear.weight.detach(), gain)
        assert not linear.bias.any()


@pytest.mark.parametrize(("space", "kind", "action_shape"), SPACES)
def test_policy_head_fits_the_action_space(
    space: spaces.Space, kind: type, action_shape: tuple[int, ...]
) -> None:
    head = PolicyHead(7, space, (16,))
    for lead in [(3,), (3, 2)]:
        distribution = head(torch.randn(*lead, 7))
        assert isinstance(distribution, kind)
        action = distribution.sample(None)
        assert action.shape == (*lead, *action_shape)
        assert distribution.log_prob(action).shape == lead


def test_policy_starts_close_to_uniform() -> None:
    head = PolicyHead(7, spaces.Discrete(5), (16,))
    entropy = head(torch.randn(20, 7)).entropy()
    torch.testing.assert_close(entropy, torch.full((20,), math.log(5.0)), atol=1e-2, rtol=0.0)


def test_policy_head_uses_the_gains_of_its_description() -> None:
    hidden, last = linears_of(PolicyHead(7, spaces.Discrete(5), (16,)).layers)
    assert_orthogonal(hidden.weight.detach(), math.sqrt(2.0))
    assert_orthogonal(last.weight.detach(), 0.01)


def test_gaussian_spread_is_one_trained_parameter_per_action() -> None:
    head = PolicyHead(7, BOX, ())
    assert head.log_std is not None
    assert torch.equal(head.log_std, torch.zeros(6))
    distribution = head(torch.randn(4, 7))
    distribution.log_prob(torch.zeros(4, 6)).sum().backward()
    assert head.log_std.grad is not None
    # d/dlog_std of -(mean/std)^2/2 - log_std, summed over 4 rows, at std 1 and action 0.
    torch.testing.assert_close(head.log_std.grad, (distribution.mode() ** 2 - 1.0).sum(0))


def test_the_first_spread_of_a_gaussian_is_set_and_refused_where_there_is_none() -> None:
    distribution = PolicyHead(7, BOX, (), initial_std=0.25)(torch.zeros(1000, 7))
    actions = distribution.sample(torch.Generator().manual_seed(0))
    assert actions.std(0).sub(0.25).abs().max() < 0.03  # 5 standard errors
    with pytest.raises(ValueError, match=r"initial_std: .* 0\.25 with Discrete") as error:
        PolicyHead(7, spaces.Discrete(5), (), initial_std=0.25)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("space", UNSUPPORTED)
def test_an_action_space_without_a_head_is_named_in_the_error(space: spaces.Space) -> None:
    with pytest.raises(ValueError, match="action_space: expected Discrete") as error:
        PolicyHead(7, space, (16,))
    assert str(space) in str(error.value)


def test_value_head_returns_one_number_per_feature_vector() -> None:
    head = ValueHead(7, (16,))
    assert head(torch.randn(3, 7)).shape == (3,)
    assert head(torch.randn(3, 2, 7)).shape == (3, 2)
    hidden, last = linears_of(head.layers)
    assert_orthogonal(hidden.weight.detach(), math.sqrt(2.0))
    assert_orthogonal(last.weight.detach(), 1.0)
