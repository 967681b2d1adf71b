"""The forms of a negative real part: round trip, sign, gradients, and training."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from statewise.ssm.dss import DSSConfig, DSSLayer
from statewise.ssm.hippo import nplr, s4d_eigenvalues
from statewise.ssm.init import normal_legs
from statewise.ssm.real_part import initial_weight, parameter_name, value
from statewise.ssm.s4 import SMALLEST_DECAY, S4Config, S4Layer
from statewise.ssm.s4d import S4DConfig, S4DLayer
from statewise.ssm.s5 import S5Config, S5Layer
from tests.tolerance import ORACLE_FLOAT64, assert_within, limit

FORMS = ("exp", "softplus", "inv_square", "clip")
every_form = pytest.mark.parametrize("form", FORMS)
LAYERS = {
    "s5": lambda form: S5Layer(6, S5Config(state_size=8, re_param=form)),
    "s4d": lambda form: S4DLayer(6, S4DConfig(state_size=8, init="inv", re_param=form)),
    "s4": lambda form: S4Layer(6, S4Config(state_size=8, measure="legt", re_param=form)),
    "dss": lambda form: DSSLayer(6, DSSConfig(state_size=8, re_param=form)),
}
every_layer = pytest.mark.parametrize("kind", list(LAYERS))
STARTS = {
    "s5": normal_legs(8)[0][:4].real,
    "s4d": s4d_eigenvalues("inv", 8).real,
    "s4": np.minimum(nplr("legt", 8).w.real, -SMALLEST_DECAY),
    "dss": s4d_eigenvalues("legs", 8).real,
}


def _name(kind: str, form: str) -> str:
    return parameter_name(form, "Lambda_re" if kind == "s5" else "A_re")


def _weight(kind: str, form: str, layer: torch.nn.Module) -> torch.Tensor:
    return getattr(layer, _name(kind, form))


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(rate=st.floats(2e-4, 9.9))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_the_value_of_the_initial_weight_is_what_was_asked_for(form, dtype, rate):
    re = torch.tensor([-rate, -0.5], dtype=dtype)
    back = value(form, initial_weight(form, re))
    torch.testing.assert_close(back, re, rtol=limit(dtype, 4), atol=0)


def test_the_values_at_hand_picked_weights_are_the_formulas():
    w = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    # -exp(w); -log(1 + exp(w)); -1 / (w^2 + 0.1): 1 / 4.1, 1 / 0.1, 1 / 9.1; min(w, -1e-4)
    e = math.e
    expected = {
        "exp": [-(e**-2), -1.0, -(e**3)],
        "softplus": [-math.log(1 + e**-2), -math.log(2), -math.log(1 + e**3)],
        "inv_square": [-1 / 4.1, -10.0, -1 / 9.1],
        "clip": [-2.0, -1e-4, -1e-4],
    }
    for form, numbers in expected.items():
        assert value(form, w).tolist() == pytest.approx(numbers, rel=1e-12)


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(w=st.floats(-1e30, 1e30) | st.sampled_from([0.0, -1e30, 1e30, float("inf"), -float("inf")]))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_no_weight_makes_a_state_grow_or_a_gradient_infinite(form, dtype, w):
    weight = torch.tensor([w], dtype=dtype, requires_grad=True)
    re = value(form, weight)
    assert -1.01e12 <= re.item() <= -0.99e-12
    # what a zero-order hold makes of it: the factor and the gain of a mode with no rotation
    dt = 0.1
    (torch.exp(re * dt) + torch.expm1(re * dt) / re).backward()
    assert weight.grad.isfinite().all()


@given(w=st.floats(1e-3, 900.0))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_inv_square_bounds_the_gradient_of_the_memory_over_the_weight(w):
    # Memory -1 / Re = w^2 + 0.1, so that its gradient is 2 w whatever the memory is.
    weight = torch.tensor([w, -w], dtype=torch.float64, requires_grad=True)
    (-1 / value("inv_square", weight)).sum().backward()
    assert_within(weight.grad / weight, torch.full((2,), 2.0), ORACLE_FLOAT64)


@pytest.mark.parametrize("form", ["exp", "softplus"])
def test_the_other_forms_have_no_such_bound(form):
    # -exp(w): the memory is exp(-w) and so is its gradient, over a weight of -log(memory).
    weight = initial_weight(form, torch.tensor([-1e-1, -1e-3, -1e-5], dtype=torch.float64))
    weight.requires_grad_()
    (-1 / value(form, weight)).sum().backward()
    ratio = (weight.grad / weight).abs()
    assert ratio[1] > 10 * ratio[0]
    assert ratio[2] > 10 * ratio[1]


@every_layer
@every_form
def test_a_layer_starts_from_the_same_eigenvalues_with_every_form(kind, form):
    layer = LAYERS[kind](form)
    re = value(form, _weight(kind, form, layer).detach())
    expected = torch.as_tensor(STARTS[kind]).float().expand_as(re)
    torch.testing.assert_close(re, expected, rtol=2e-5, atol=0)


@every_layer
@every_form
def test_the_form_decides_how_a_step_of_the_weight_moves_the_layer(kind, form):
    layer = LAYERS[kind](form).double()
    x = torch.randn(2, 30, 6, dtype=torch.float64)
    y, _ = layer(x)
    weight = _weight(kind, form, layer)
    with torch.no_grad():
        weight.mul_(1.5)
    moved, _ = layer(x)
    assert (moved - y).abs().max() > 1e-6
    # The same eigenvalues through "exp" give the same output: the form is all that differs.
    other = LAYERS[kind]("exp").double()
    tensors = layer.state_dict()
    tensors["log_neg_re"] = initial_weight("exp", value(form, tensors.pop(_name(kind, form))))
    other.load_state_dict(tensors)
    assert_within(other(x)[0], moved, ORACLE_FLOAT64)


@every_layer
@pytest.mark.parametrize("form", ["softplus", "inv_square", "clip"])
def test_large_random_steps_leave_every_state_stable(kind, form):
    layer = LAYERS[kind](form)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3)
    for _ in range(50):
        for parameter in layer.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    _, last = layer(torch.randn(1, 3000, 6))
    assert last["h"].isfinite().all()
    # Without input a stable state does not grow.
    _, later = layer(torch.zeros(1, 3000, 6), last)
    assert later["h"].abs().max() <= last["h"].abs().max() * 30


def test_a_rate_that_inv_square_cannot_hold_is_refused_where_the_layer_is_made():
    S4DLayer(4, S4DConfig(state_size=8, init="real", re_param="inv_square"))  # rates 1 to 4
    message = r"^re_param: inv_square holds rates below 10, got .* down to -12: use .*$"
    with pytest.raises(ValueError, match=message):
        S4DLayer(4, S4DConfig(state_size=24, init="real", re_param="inv_square"))


def test_a_form_that_the_softmax_kernel_would_ignore_is_refused():
    with pytest.raises(ValueError, match="re_param: would be ignored with kernel softmax"):
        DSSConfig(kernel="softmax", length=8, re_param="softplus")
