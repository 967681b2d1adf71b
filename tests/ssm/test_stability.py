"""What must survive training: decay below one, precision under autocast, long windows."""

import pytest
import torch
from torch import nn

from statewise.ssm import SequenceConfig, build_sequence
from statewise.ssm.lru import LRULayer
from statewise.ssm.s5 import S5Config, S5Layer
from tests.resets import pattern
from tests.tolerance import assert_within

LAYERS = {
    "s5-zoh": lambda: S5Layer(8),
    "s5-bilinear": lambda: S5Layer(8, S5Config(discretization="bilinear")),
    "s5-clip": lambda: S5Layer(8, S5Config(re_param="clip")),
    "lru": lambda: LRULayer(8),
}


def _modulus(layer: S5Layer | LRULayer) -> torch.Tensor:
    return torch.view_as_complex(layer.double().discretize().a.detach().contiguous()).abs()


@pytest.mark.parametrize("make", LAYERS.values(), ids=list(LAYERS))
def test_every_state_still_decays_after_fifty_large_random_steps(make):
    layer = make()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    for _ in range(50):
        for parameter in layer.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    moved = zip(before, layer.parameters(), strict=True)
    assert all((old - new).abs().max() > 0.5 for old, new in moved)
    assert (_modulus(layer) < 1).all()


@pytest.mark.parametrize("make", LAYERS.values(), ids=list(LAYERS))
def test_pushing_the_decay_away_never_makes_a_state_grow(make):
    # The loss rewards large final states, so every step pushes towards instability.
    layer = make()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.3)
    x = torch.randn(4, 60, 8)
    for _ in range(50):
        optimizer.zero_grad()
        _, last = layer(x)
        (-last["h"].square().mean().log()).backward()
        optimizer.step()
    assert (_modulus(layer) <= 1).all()
    _, last = layer(torch.randn(1, 5000, 8, dtype=torch.float64))
    assert last["h"].isfinite().all()


def test_clipping_stops_the_gradient_of_a_clipped_real_part():
    layer = S5Layer(8, S5Config(re_param="clip"))
    with torch.no_grad():
        layer.Lambda_re[:2] = 0.3
    re, _ = layer.eigenvalues()
    assert re[:2].tolist() == pytest.approx([-1e-4, -1e-4])
    re.sum().backward()
    assert layer.Lambda_re.grad.tolist() == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["s5", "lru"])
def test_autocast_keeps_the_state_and_the_gradients_of_parameters_in_float32(kind):
    model = build_sequence(SequenceConfig(kind=kind, d_model=16))
    x, reset = torch.randn(4, 50, 16), pattern("staggered", 4, 50)
    expected, _ = model(x, None, reset)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, last = model(x, None, reset)
        _, after = model.step(x[:, 0], last, reset[:, 0])
    for state in (last, after):
        assert all(value.dtype == torch.float32 for value in state.values())
    assert_within(y, expected, 2e-2)
    y.float().square().mean().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["s5", "lru", "gru", "lstm"])
def test_float32_modes_agree_over_a_long_window(kind):
    model = build_sequence(SequenceConfig(kind=kind, d_model=8))
    assert isinstance(model, nn.Module)
    x, reset = torch.randn(2, 500, 8), pattern("random", 2, 500)
    y, last = model(x, None, reset)
    state, outputs = model.initial_state(2), []
    for t in range(500):
        one, state = model.step(x[:, t], state, reset[:, t])
        outputs.append(one)
    assert_within(y, torch.stack(outputs, 1), 1e-4)
    for key in state:
        assert_within(last[key], state[key], 1e-4)
