"""RG-LRU against its equations written out, and what begins a memory."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from statewise.ssm.rg_lru import RGLRUConfig, RGLRULayer, bounded_sqrt
from tests.resets import KINDS, pattern
from tests.tolerance import assert_close

B, D = 3, 4
DOUBLE = torch.float64


def _layer(**options: object) -> RGLRULayer:
    layer = RGLRULayer(D, RGLRUConfig(**options)).double()
    with torch.no_grad():
        for bias in (layer.gate_bias, layer.conv_bias):
            bias.normal_()
    return layer


def _block_diagonal(layer: RGLRULayer) -> tuple[Tensor, Tensor]:
    """Return the full matrices of the two gates."""
    half = layer.gate_weight.shape[-1] // 2
    blocks = layer.gate_weight
    return torch.block_diag(*blocks[..., :half]), torch.block_diag(*blocks[..., half:])


def _oracle(layer: RGLRULayer, x: Tensor, reset: Tensor | None) -> Tensor:
    """The equations of the paper, one row and one step at a time, from the initial state."""
    E, W = layer.inner, layer.config.conv_width
    (W_r, W_i), (b_r, b_i) = _block_diagonal(layer), layer.gate_bias.split(E)
    rows = []
    for b in range(len(x)):
        outputs, begin = [], 0
        h = torch.zeros(E, dtype=DOUBLE)
        v, z = (x[b] @ layer.in_proj.weight.T + layer.in_proj.bias).split(E, -1)
        for t in range(x.shape[1]):
            if reset is not None and reset[b, t]:
                begin = t
            taps = range(min(W, t - begin + 1))
            u = layer.conv_bias + sum(layer.conv_weight[:, W - 1 - j] * v[t - j] for j in taps)
            r, i = (u @ W_r + b_r).sigmoid(), (u @ W_i + b_i).sigmoid()
            a = torch.exp(-layer.config.c * r * F.softplus(layer.a_param))
            h = i * u if t == begin else a * h + (1 - a**2).sqrt() * (i * u)
            outputs.append(layer.out_proj(F.gelu(z[t], approximate="tanh") * h))
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"lru_width": 6, "heads": 3, "conv_width": 2, "c": 2.0}])
def test_it_is_the_recurrence_of_the_paper_in_values_and_gradients(options, kind):
    layer, reset = _layer(**options), pattern(kind, B, 9)
    x = torch.randn(B, 9, D, dtype=DOUBLE, requires_grad=True)
    y, _ = layer(x, None, reset)
    expected = _oracle(layer, x, reset)
    assert_close(y, expected, DOUBLE, 9)
    weights = torch.randn_like(y)
    inputs = [x, *layer.parameters()]
    # With resets everywhere nothing decays, and a_param plays no part.
    options = {"allow_unused": True, "materialize_grads": True}
    actual = torch.autograd.grad((y * weights).sum(), inputs, **options)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs, **options)
    for left, right in zip(actual, wanted, strict=True):
        assert_close(left, right, DOUBLE, 9, gradient=True)


def test_a_memory_of_zeros_that_has_begun_is_not_an_empty_one():
    layer, x = _layer(conv_width=1), torch.randn(B, D, dtype=DOUBLE)
    empty = layer.initial_state(B)
    begun = empty | {"begun": torch.ones(B, 1, dtype=DOUBLE)}
    _, first = layer.step(x, empty)
    _, later = layer.step(x, begun)
    assert (later["h"].abs() < first["h"].abs()).all()
    _, reset = layer.step(x, begun, torch.ones(B, dtype=torch.bool))
    assert torch.equal(reset["h"], first["h"])
    assert torch.equal(reset["begun"], torch.ones(B, 1, dtype=DOUBLE))


def test_only_the_first_step_of_a_window_asks_whether_memory_has_begun():
    layer, x = _layer(), torch.randn(B, 6, D, dtype=DOUBLE)
    _, between = layer(x[:, :2])
    assert torch.equal(between["begun"], torch.ones(B, 1, dtype=DOUBLE))
    whole, _ = layer(x)
    second, _ = layer(x[:, 2:], between)
    assert_close(second, whole[:, 2:], DOUBLE, 6)


def test_noise_keeps_its_size_whatever_the_decay():
    # With open gates and white input: var h = (1 - a^2) sum a^(2 k) = 1 for every a.
    layer = RGLRULayer(1, RGLRUConfig(lru_width=64, conv_width=1, radius_min=0.5)).double()
    with torch.no_grad():
        layer.in_proj.weight.zero_()
        layer.in_proj.weight[:64] = 1.0
        layer.in_proj.bias.zero_()
        layer.conv_weight.fill_(1.0)
        layer.gate_weight.zero_()
        layer.gate_bias.fill_(50.0)
    x = torch.randn(64, 2000, 1, dtype=DOUBLE)
    _, _, traced = layer.trace(x, every=50)
    variance = traced["h"][:, 10:].square().mean((0, 1))
    assert ((variance - 1).abs() < 0.15).all()


def test_the_radii_start_in_their_range_and_are_the_decay_at_an_open_gate():
    layer = RGLRULayer(8, RGLRUConfig(lru_width=4096, radius_min=0.6, radius_max=0.95)).double()
    radius = torch.exp(-F.softplus(layer.a_param))
    assert 0.6 - 1e-6 <= radius.min() < 0.61
    assert 0.94 < radius.max() <= 0.95 + 1e-6
    # Uniform in the square: half of the area lies below this radius.
    median = math.sqrt((0.6**2 + 0.95**2) / 2)
    assert abs((radius < median).double().mean() - 0.5) < 0.05
    assert_close(layer.prepare_step()["rate"].exp(), radius**8, DOUBLE, 1)


def test_a_gate_reads_its_own_block_alone():
    layer = _layer(lru_width=6, heads=3, conv_width=1)
    v = torch.randn(1, 6, dtype=DOUBLE, requires_grad=True)
    a, _ = layer._gated(v, layer._rate(), torch.zeros(1, dtype=torch.bool))
    for channel in range(6):
        (gradient,) = torch.autograd.grad(a[0, channel], v, retain_graph=True)
        block = channel // 2
        assert gradient[0].nonzero().flatten().tolist() == [2 * block, 2 * block + 1]


def test_the_derivative_of_the_root_is_bounded_and_else_exact():
    x = torch.tensor([0.0, 1e-9, 2.5e-7, 1e-4, 0.25, 1.0], dtype=DOUBLE, requires_grad=True)
    root = bounded_sqrt(x)
    assert torch.equal(root, x.detach().sqrt())
    (slope,) = torch.autograd.grad(root.sum(), x)
    expected = torch.tensor([1000.0, 1000.0, 1000.0, 50.0, 1.0, 0.5], dtype=DOUBLE)
    assert_close(slope, expected, DOUBLE, 1)
    with torch.no_grad():
        assert torch.equal(bounded_sqrt(x), root)


def test_a_closed_gate_gives_finite_gradients():
    layer = RGLRULayer(D)
    with torch.no_grad():
        layer.gate_bias.fill_(-200.0)  # r = 0 in float32, so a = 1 and sqrt(1 - a^2) = 0
    y, last = layer(torch.randn(B, 8, D))
    (y.square().sum() + last["h"].square().sum()).backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"conv_width": 0}, "conv_width"),
        ({"lru_width": 0}, "lru_width"),
        ({"c": 0.0}, "c"),
        ({"radius_max": 1.0}, "radius_min"),
        ({"radius_min": 0.9995}, "radius_min"),
    ],
    ids=str,
)
def test_a_bad_setting_is_named(options, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        RGLRUConfig(**options)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="heads: expected a divisor of the lru_width 6, got 4"):
        RGLRULayer(D, RGLRUConfig(lru_width=6, heads=4))
