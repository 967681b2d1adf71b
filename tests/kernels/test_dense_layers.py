"""Fully connected layers in one call, and steps of a rollout as one tensor, without gradient."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from statewise.kernels import DenseLayer, dense_layers, dense_layers_run, stack_steps
from statewise.kernels.acting import op
from statewise.kernels.extension import reason_missing
from statewise.nets import dreamer_layers
from statewise.nets.dreamer_layers import LinearSiLU, normed_mlp, output_linear
from tests.tolerance import assert_close

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
EPS = 1e-3


@pytest.fixture(autouse=True)
def _loaded():
    assert not reason_missing(op.OP)


def _draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=draw).to(dtype)


def _layer(K: int, N: int, dtype: torch.dtype, *, norm: str, bias: bool, silu: bool) -> DenseLayer:
    weight = _draw(N, K, dtype=dtype, seed=K) / K**0.5
    scale, shift = (1 + 0.5 * _draw(N, dtype=dtype, seed=i) for i in (1, 2))
    return DenseLayer(
        weight,
        _draw(N, dtype=dtype, seed=3) if bias else None,
        norm,
        None if norm == "none" else scale,
        shift if norm == "layer" else None,
        silu,
    )


def _reference(x: Tensor, layers: list[DenseLayer]) -> Tensor:
    """Return what the definition says, in float64."""
    x = x.double()
    for layer in layers:
        x = torch.einsum("...k,nk->...n", x, layer.weight.double())
        if layer.bias is not None:
            x = x + layer.bias
        if layer.norm == "layer":
            x = x - x.mean(-1, keepdim=True)
        if layer.norm != "none":
            x = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * layer.norm_weight
        if layer.norm_bias is not None:
            x = x + layer.norm_bias
        if layer.silu:
            x = x / (1 + (-x).exp())
    return x


# Rows around tiles of 24 rows; widths that are and are not multiples of a vector.
@pytest.mark.parametrize("lead", [(1,), (23,), (24,), (25,), (5, 11), (400,)], ids=str)
@pytest.mark.parametrize("widths", [(16, 16), (3, 1), (17, 64, 5), (68, 32, 48, 33)], ids=str)
@pytest.mark.parametrize("norm", ["none", "layer", "rms"])
@DTYPES
def test_layers_equal_their_definition(lead, widths, norm, dtype):
    forms = [{"norm": norm, "bias": norm == "none", "silu": True}] * (len(widths) - 2)
    forms.append({"norm": "none", "bias": len(lead) == 1, "silu": norm == "layer"})
    layers = [
        _layer(K, N, dtype, **form) for (K, N), form in zip(pairwise(widths), forms, strict=True)
    ]
    x = _draw(*lead, widths[0], dtype=dtype)
    y = dense_layers(x, layers, EPS)
    assert y.shape == (*lead, widths[-1])
    assert y.dtype == dtype
    assert_close(y, _reference(x, layers), dtype, len(layers))
    strided = x.repeat_interleave(2, -1)[..., ::2]
    assert torch.equal(dense_layers(strided, layers, EPS), y)


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_row_does_not_depend_on_the_rows_beside_it(norm):
    layers = [_layer(20, 48, torch.float32, norm=norm, bias=False, silu=True)]
    x = _draw(61, 20, dtype=torch.float32)
    y = dense_layers(x, layers, EPS)
    x[7] = float("nan")
    other = dense_layers(x, layers, EPS)
    assert other[7].isnan().all()
    others = torch.arange(61) != 7
    assert torch.equal(other[others], y[others])
    assert torch.equal(dense_layers(x[31:32], layers, EPS), y[31:32])


@pytest.mark.parametrize("norm", ["layer", "rms"])
@pytest.mark.parametrize("has_out", [False, True])
@DTYPES
def test_a_network_without_a_gradient_is_the_network_with_one(norm, has_out, dtype, monkeypatch):
    torch.manual_seed(0)
    mlp, out = normed_mlp(10, (16, 12), norm=norm).to(dtype), output_linear(12, 7).to(dtype)
    last = out if has_out else None
    x = _draw(50, 10, dtype=dtype)
    with_gradient = mlp(x, last)
    assert with_gradient.requires_grad
    calls = []
    monkeypatch.setattr(
        dreamer_layers, "dense_layers", lambda *a: calls.append(1) or dense_layers(*a)
    )
    with torch.no_grad():
        assert_close(mlp(x, last), with_gradient, dtype, 3)
    assert calls == [1]


@DTYPES
def test_a_layer_with_silu_is_its_composition(dtype):
    torch.manual_seed(0)
    layer = LinearSiLU(6, 10).to(dtype)
    assert [key for key, _ in layer.named_parameters()] == ["0.weight", "0.bias"]
    layer[0].bias.data.normal_()
    x = _draw(40, 6, dtype=dtype)
    expected = nn.functional.silu(nn.functional.linear(x, layer[0].weight, layer[0].bias))
    assert_close(layer(x), expected, dtype, 1)
    with torch.no_grad():
        assert_close(layer(x), expected, dtype, 1)


def test_what_the_call_does_not_serve_is_left_to_the_composition():
    x, weight = torch.randn(64, 8), torch.randn(4, 8)
    assert not dense_layers_run(x, [weight])  # a gradient could be asked for
    with torch.no_grad():
        assert dense_layers_run(x, [weight])
        assert dense_layers_run(x.reshape(8, 8, 8), [weight])
        assert not dense_layers_run(x[:15], [weight])
        assert not dense_layers_run(x, [])
        assert not dense_layers_run(x[:, :7], [weight])
        with pytest.raises(RuntimeError, match="64x7 and 8x16"):
            normed_mlp(8, (16,))(x[:, :7])
        assert not dense_layers_run(x.double(), [weight])
        assert not dense_layers_run(x, [weight, weight.double()])
        assert not dense_layers_run(x, [weight, torch.randn(8, op._LARGEST_WIDTH + 1)])
        assert not dense_layers_run(x.bfloat16(), [weight.bfloat16()])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not dense_layers_run(x, [weight])


@pytest.mark.parametrize("shape", [(1,), (3, 5), (700, 8, 8), (0, 4), (4, 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool], ids=str)
def test_steps_become_one_tensor(shape, dtype):
    xs = [_draw(*shape, dtype=torch.float64, seed=i).to(dtype) for i in range(4)]
    xs.append(xs[0][:1].expand(shape) if shape[0] else xs[0])
    expected = torch.stack(xs, 1)
    with torch.no_grad():
        assert torch.equal(stack_steps(xs), expected)
        assert torch.equal(stack_steps(xs[:1]), expected[:, :1])
    assert torch.equal(stack_steps(xs), expected)


def test_stacked_steps_have_their_gradients():
    xs = [torch.randn(3, 2, requires_grad=True) for _ in range(4)]
    weight = torch.randn(3, 4, 2)
    (stack_steps(xs) * weight).sum().backward()
    for t, x in enumerate(xs):
        assert torch.equal(x.grad, weight[:, t])
