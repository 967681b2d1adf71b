"""How the LRU starts: eigenvalues on a ring, the input scaled to unit variance."""

import math

import pytest
import torch

from statewise.ssm.lru import LRUConfig, LRULayer


def _radius_and_phase(layer: LRULayer) -> tuple[torch.Tensor, torch.Tensor]:
    return (-layer.nu_log.detach().exp()).exp(), layer.theta_log.detach().exp()


@pytest.mark.parametrize(
    ("r_min", "r_max", "max_phase"), [(0.0, 1.0, 6.28), (0.9, 0.999, 0.314), (0.5, 0.6, 1.0)]
)
def test_eigenvalues_start_uniform_on_the_ring(r_min, r_max, max_phase):
    config = LRUConfig(state_size=20_000, r_min=r_min, r_max=r_max, max_phase=max_phase)
    radius, phase = _radius_and_phase(LRULayer(1, config))
    assert radius.min() >= r_min - 1e-4
    assert radius.max() <= r_max
    assert (radius < 1).all()
    assert phase.min() > 0
    assert phase.max() <= max_phase * (1 + 1e-6)
    # Uniform in area: |lambda|^2 is uniform in [r_min^2, r_max^2], the phase in [0, max_phase].
    share = (radius.double().square() - r_min**2) / (r_max**2 - r_min**2)
    for uniform in (share, phase.double() / max_phase):
        assert uniform.mean().item() == pytest.approx(0.5, abs=0.02)
        assert uniform.var().item() == pytest.approx(1 / 12, abs=0.005)


def test_the_discrete_eigenvalue_is_the_one_of_the_parameters():
    layer = LRULayer(6, LRUConfig(state_size=5)).double()
    radius, phase = _radius_and_phase(layer)
    a = torch.view_as_complex(layer.discretize().a.detach().contiguous())
    torch.testing.assert_close(a, torch.polar(radius, phase), rtol=1e-12, atol=1e-14)


def test_the_input_gain_starts_where_white_noise_gives_states_of_unit_variance():
    layer = LRULayer(8, LRUConfig(state_size=200, r_min=0.2, r_max=0.99)).double()
    radius, _ = _radius_and_phase(layer)
    gain = layer.gamma_log.detach().exp()
    torch.testing.assert_close(gain, (1 - radius**2).sqrt(), rtol=1e-4, atol=1e-6)
    # Stationary variance of |h|^2 is gain^2 |B|^2 / (1 - |lambda|^2) = |B|^2 = 2 H / (2 H) = 1.
    _, last = layer(torch.randn(64, 600, 8, dtype=torch.float64))
    assert last["h"].square().sum(-1).mean().item() == pytest.approx(1.0, rel=0.15)


def test_weights_start_with_the_published_scales():
    layer = LRULayer(64, LRUConfig(state_size=128))
    for weight in (layer.B_re, layer.B_im):
        assert weight.shape == (128, 64)
        assert weight.detach().std().item() == pytest.approx((2 * 64) ** -0.5, rel=0.05)
    for weight in (layer.C_re, layer.C_im):
        assert weight.shape == (64, 128)
        assert weight.detach().std().item() == pytest.approx(128**-0.5, rel=0.05)


@pytest.mark.parametrize("config", [LRUConfig(), LRUConfig(r_min=0.9, r_max=0.999, max_phase=0.3)])
def test_the_output_has_the_size_of_the_input_at_the_start(config):
    layer = LRULayer(64, config)
    y, _ = layer(torch.randn(2, 1024, 64))
    assert 0.3 <= y.std().item() <= 3.0


def test_the_lowest_draw_keeps_every_parameter_finite(monkeypatch):
    monkeypatch.setattr(torch, "rand", torch.zeros)
    layer = LRULayer(4, LRUConfig(state_size=3))
    assert all(parameter.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_size": 0}, "state_size"),
        ({"r_min": -0.1}, "r_min"),
        ({"r_min": 0.9, "r_max": 0.9}, "r_min"),
        ({"r_max": 1.1}, "r_max"),
        ({"max_phase": 0.0}, "max_phase"),
        ({"max_phase": 2 * math.pi + 1e-3}, "max_phase"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        LRUConfig(**options)
