"""One call for a step of acting equals the composition of operations it stands for."""

import pytest
import torch
from torch import nn

from statewise.kernels import (
    mamba_step_runs,
    rms_norm,
)
from statewise.ssm.mamba import MambaConfig, MambaLayer
from statewise.ssm.norm import RMSNorm
from tests.ssm.variants import random_state
from tests.tolerance import assert_close

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
OPTIONS = {
    "standard": {},
    "signed": {"eigenvalues": "signed"},
    "polarized": {"polarized": "both"},
    "no convolution": {"conv_width": 1},
    "ranks": {"dt_rank": 3, "state_size": 5},
}
OTHERS = {
    "complex": {"eigenvalues": "complex"},
    "inner_norm": {"inner_norm": "rms"},
    "dt_scale": {"dt_scale": 0.5},
}


def _layer(options: dict, dtype: torch.dtype, backend: str) -> MambaLayer:
    torch.manual_seed(0)
    return MambaLayer(8, MambaConfig(**options), backend).to(dtype)


@pytest.mark.parametrize("B", [1, 2, 33])
@pytest.mark.parametrize("name", OPTIONS)
@DTYPES
def test_a_step_in_one_call_equals_the_reference_over_steps_with_resets(name, B, dtype):
    fast, slow = (_layer(OPTIONS[name], dtype, backend) for backend in ("auto", "reference"))
    slow.load_state_dict(fast.state_dict())
    state = other = random_state(fast, B)
    x = torch.randn(5, B, 8, dtype=dtype)
    reset = torch.rand(5, B) < 0.4
    reset[0], reset[3, 0] = False, True
    with torch.no_grad():
        cache = fast.prepare_step()
        assert fast.one_call
        assert mamba_step_runs(x[0], state["ssm"], "auto")
        assert not mamba_step_runs(x[0], state["ssm"], "reference")
        for t in range(5):
            y, state = fast.step(x[t], state, reset[t], cache=cache)
            expected, other = slow.step(x[t], other, reset[t])
            assert_close(y, expected, dtype, t + 1)
            for key, value in other.items():
                assert_close(state[key], value, dtype, t + 1)


@pytest.mark.parametrize("name", OTHERS)
def test_what_one_call_does_not_compute_is_left_to_the_composition(name):
    assert not _layer(OTHERS[name], torch.float32, "auto").one_call


def test_a_step_with_a_gradient_under_autocast_or_in_two_dtypes_is_the_composition():
    layer = _layer({}, torch.float32, "auto")
    x, ssm = torch.randn(2, 8), layer.initial_state(2)["ssm"]
    assert not mamba_step_runs(x, ssm, "auto")
    with torch.no_grad():
        assert mamba_step_runs(x, ssm, "auto")
        assert not mamba_step_runs(x.bfloat16(), ssm, "auto")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not mamba_step_runs(x, ssm, "auto")
            assert layer.step(x, layer.initial_state(2))[0].dtype == torch.bfloat16


def test_a_step_in_one_call_keeps_what_is_not_finite_behind_a_reset():
    layer = _layer({}, torch.float64, "auto")
    state = {key: value.fill_(float("nan")) for key, value in layer.initial_state(2).items()}
    with torch.no_grad():
        y, after = layer.step(torch.randn(2, 8).double(), state, torch.tensor([True, False]))
    assert y[0].isfinite().all()
    assert y[1].isnan().all()
    assert all(value[0].isfinite().all() for value in after.values())


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 256), (3, 37), (2, 5, 16), (0, 4), (70, 300)], ids=str
)
@DTYPES
def test_a_norm_equals_its_definition(shape, dtype):
    x, w = torch.randn(shape, dtype=dtype), torch.randn(shape[-1], dtype=dtype)
    expected = x * w / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt()
    with torch.no_grad():
        assert_close(rms_norm(x, w, 1e-3), expected, dtype, 1)
        assert_close(rms_norm(x, None, 1e-3) * w, expected, dtype, 1)
        turned = x.transpose(0, -1).contiguous().transpose(0, -1)
        assert torch.equal(rms_norm(turned, w, 1e-3), rms_norm(x, w, 1e-3))
    assert_close(rms_norm(x, w, 1e-3), expected, dtype, 1)  # a gradient could be asked for


def test_a_norm_in_bfloat16_is_that_of_torch():
    x = torch.randn(3, 8).bfloat16()
    with torch.no_grad():
        assert torch.equal(rms_norm(x, None, 1e-5), nn.functional.rms_norm(x, (8,), eps=1e-5))


def test_a_norm_as_a_module_is_that_of_torch_with_its_gradient():
    ours, theirs = RMSNorm(6, eps=1e-5), nn.RMSNorm(6, eps=1e-5)
    assert [name for name, _ in ours.named_parameters()] == ["weight"]
    x = torch.randn(4, 6, requires_grad=True)
    for module in (ours, theirs):
        module(x).square().sum().backward()
    assert torch.equal(ours.weight.grad, theirs.weight.grad)
    with torch.no_grad():
        assert_close(ours(x), theirs(x), torch.float32, 1)
