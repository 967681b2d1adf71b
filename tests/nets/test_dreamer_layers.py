"""Dreamer's layers: initial weights, the norm and its precision, shapes, errors."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from statewise.nets.dreamer_layers import (
    CUT_DEVIATION,
    EPS,
    FeatureNorm,
    init_hidden,
    init_output,
    normed_mlp,
    output_linear,
)
from tests.tolerance import assert_close, assert_within

DOUBLE = torch.float64
HIDDEN_LAYERS = {  # layer, fan in, fan out
    "linear": (nn.Linear(100, 300), 100, 300),
    "convolution": (nn.Conv2d(12, 36, 4), 12 * 16, 36 * 16),
    "transposed": (nn.ConvTranspose2d(36, 12, 4), 36 * 16, 12 * 16),
}


def by_hand(x: Tensor, norm: str) -> Tensor:
    """Normalise the last axis from its definition, with unit scale and no bias."""
    centred = x - x.mean(-1, keepdim=True) if norm == "layer" else x
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt()


def scramble(module: nn.Module) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn_like(p))


# initial weights


def test_the_deviation_of_a_normal_cut_at_two_is_the_closed_form() -> None:
    # Var = 1 - 2 a phi(a) / (2 Phi(a) - 1) with a = 2.
    phi = math.exp(-2.0) / math.sqrt(2.0 * math.pi)
    mass = math.erf(2.0 / math.sqrt(2.0))
    assert abs(CUT_DEVIATION - math.sqrt(1.0 - 4.0 * phi / mass)) < 1e-12


@pytest.mark.parametrize("name", HIDDEN_LAYERS)
def test_hidden_weights_are_a_cut_normal_of_variance_one_over_the_mean_fan(name: str) -> None:
    layer, fan_in, fan_out = HIDDEN_LAYERS[name]
    weight = init_hidden(layer).weight.detach()
    deviation = math.sqrt(1.0 / (0.5 * (fan_in + fan_out)))
    # Over 6912 or more draws the deviation is known to about 1 %.
    assert abs(weight.std().item() / deviation - 1.0) < 0.04
    assert abs(weight.mean().item()) < 0.06 * deviation
    largest = weight.abs().max().item() / deviation
    assert 0.98 * 2.0 / CUT_DEVIATION < largest <= 2.0 / CUT_DEVIATION + 1e-6
    assert layer.bias is not None
    assert not layer.bias.any()


@pytest.mark.parametrize("outscale", [1.0, 0.25])
def test_output_weights_are_uniform_with_the_variance_scaled(outscale: float) -> None:
    layer = output_linear(100, 300, outscale)
    bound = math.sqrt(3.0 * outscale / 200.0)
    largest = layer.weight.abs().max().item()
    assert 0.99 * bound < largest <= bound
    assert abs(layer.weight.std().item() / math.sqrt(outscale / 200.0) - 1.0) < 0.02
    assert not layer.bias.any()


def test_an_output_scale_of_zero_gives_zeros_and_still_learns() -> None:
    layer = output_linear(5, 3, 0.0)
    y = layer(torch.randn(4, 5))
    assert not y.any()
    y.sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.any()


def test_weights_come_from_the_default_generator() -> None:
    torch.manual_seed(3)
    one, first = normed_mlp(4, (5,)), output_linear(4, 2)
    torch.manual_seed(3)
    two, second = normed_mlp(4, (5,)), output_linear(4, 2)
    assert torch.equal(one.linears[0].weight, two.linears[0].weight)  # type: ignore[arg-type]
    assert torch.equal(first.weight, second.weight)


# values


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_the_norm_is_its_definition_with_scale_and_bias(norm: Any) -> None:
    module = FeatureNorm(6, norm).double()
    x = 0.05 * torch.randn(2, 3, 6, dtype=DOUBLE)  # small: epsilon counts
    assert_close(module(x), by_hand(x, norm), DOUBLE, 1)
    scramble(module)
    bias = 0.0 if module.bias is None else module.bias
    assert_close(module(x), by_hand(x, norm) * module.weight + bias, DOUBLE, 1)
    assert (module.bias is None) == (norm == "rms")
    assert EPS == 1e-3


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_network_is_linear_norm_silu_per_layer(norm: Any) -> None:
    network = normed_mlp(4, (5, 6), norm=norm).double()
    x = torch.randn(2, 3, 4, dtype=DOUBLE)
    expected = x
    for linear in network.linears:
        z = by_hand(expected @ linear.weight.T, norm)  # type: ignore[union-attr, operator]
        expected = z / (1.0 + torch.exp(-z))
    assert_close(network(x), expected, DOUBLE, 2)
    assert network(x).shape == (2, 3, network.d_out)
    assert not [
        name for name, _ in network.named_parameters() if "linears" in name and "bias" in name
    ]


def test_the_two_norms_differ() -> None:
    torch.manual_seed(0)
    layer = normed_mlp(4, (5,))
    torch.manual_seed(0)
    rms = normed_mlp(4, (5,), norm="rms")
    x = torch.randn(3, 4)
    assert (layer(x) - rms(x)).abs().max() > 0.01


def test_without_hidden_layers_the_input_comes_back() -> None:
    network = normed_mlp(4, ())
    x = torch.randn(2, 4)
    assert network(x) is x
    assert network.d_out == 4
    assert list(network.parameters()) == []


# precision


def test_the_norm_runs_in_float32_on_bfloat16_inputs() -> None:
    module = FeatureNorm(64)
    x = (100.0 + torch.randn(8, 64)).bfloat16()  # in bfloat16 the mean would swallow the rest
    y = module(x)
    assert y.dtype == torch.float32
    assert_close(y, by_hand(x.double(), "layer"), torch.float32, 64)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_under_autocast_the_products_are_bfloat16_and_the_result_float32(norm: Any) -> None:
    network = normed_mlp(16, (32, 8), norm=norm)
    x = torch.randn(4, 16)
    expected = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = network(x)
    assert y.dtype == torch.float32
    assert 0.0 < (y - expected).abs().max() < 0.05


def test_a_network_takes_any_floating_dtype_and_returns_its_own() -> None:
    network = normed_mlp(4, (5,))
    x = torch.randn(3, 4)
    assert network(x.double()).dtype == torch.float32
    assert network.double()(x).dtype == DOUBLE
    assert network.bfloat16()(x).dtype == torch.bfloat16


def test_gradients_reach_every_parameter() -> None:
    network = normed_mlp(4, (5, 6))
    network(torch.randn(3, 4)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


def test_gradients_agree_with_finite_differences() -> None:
    network = normed_mlp(3, (4,), norm="rms").double()
    x = torch.randn(2, 3, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(network, x)


def test_init_output_keeps_a_layer_without_bias() -> None:
    layer = init_output(nn.Linear(3, 3, bias=False), 1.0)
    assert layer.bias is None
    assert_within(layer.weight.abs().max().clamp(max=1.0), layer.weight.abs().max(), 0.0)


# errors


@pytest.mark.parametrize("outscale", [-1.0, math.nan, math.inf])
def test_an_output_scale_out_of_range_is_refused(outscale: float) -> None:
    with pytest.raises(ValueError, match="outscale: expected a number >= 0"):
        output_linear(3, 2, outscale)


@pytest.mark.parametrize(("d_in", "hidden"), [(0, (3,)), (3, (4, 0)), (-1, ())])
def test_a_width_below_one_is_refused(d_in: int, hidden: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected widths >= 1"):
        normed_mlp(d_in, hidden)


def test_a_norm_that_does_not_exist_is_refused() -> None:
    bad: Any = "batch"
    with pytest.raises(ValueError, match="norm: expected one of layer, rms, got 'batch'"):
        normed_mlp(3, (4,), norm=bad)
