"""S4D layers against arrays computed by the authors' code (`tests/golden`)."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from statewise.ssm.s4d import S4DConfig, S4DLayer
from tests.golden_files import load, names
from tests.kernels.scan_cases import BACKENDS
from tests.ssm.variants import step_loop
from tests.tolerance import GOLDEN_GRADIENT, GOLDEN_VALUE, assert_within

FILES = [name for name in names("s4d_*") if "layer" not in name]
MODES = ("scan", "conv")
every_file = pytest.mark.parametrize("name", FILES)


def _layer(arrays: dict[str, Tensor], meta: dict, channel: int, backend: str = "auto") -> S4DLayer:
    """Return the layer of one output channel; the authors' layers may have several."""
    config = S4DConfig(
        state_size=meta["N"],
        discretization=meta["disc"],
        dt_tie=meta["dt_tie"],
        num_copies=meta["n_ssm"],
    )
    layer = S4DLayer(meta["H"], config, backend).double()
    with torch.no_grad():
        layer.log_dt.copy_(arrays["p_inv_dt"])
        layer.log_neg_re.copy_(arrays["p_A_real"])
        layer.A_im.copy_(-arrays["p_A_imag"])
        layer.B.copy_(torch.view_as_real(arrays["p_B"][0]))
        layer.C.copy_(torch.view_as_real(arrays["p_C"][channel]))
        layer.D.copy_(arrays["p_D"][channel])
    return layer


def _impulse_response(layer: S4DLayer, length: int, mode: str) -> Tensor:
    x = torch.zeros(1, length, layer.d_in, dtype=torch.float64)
    x[:, 0] = 1
    return (layer(x, None, None, mode)[0] - x * layer.D)[0].T


@every_file
def test_the_discretised_system_is_the_authors(name):
    arrays, meta = load(name)
    system = _layer(arrays, meta, 0).discretize()
    assert_within(system.a, torch.view_as_real(arrays["out_dA"]), GOLDEN_VALUE)
    assert_within(system.b, torch.view_as_real(arrays["out_dB"]), GOLDEN_VALUE)


@every_file
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", ["kernel", "scan"])
def test_the_kernel_and_its_gradients_are_the_authors(name, backend, how):
    arrays, meta = load(name)
    total = dict.fromkeys(("log_dt", "log_neg_re", "A_im", "B"), 0.0)
    for c in range(meta["channels"]):
        layer = _layer(arrays, meta, c, backend)
        if how == "kernel":
            K = layer.kernel(meta["L"])
        else:
            K = _impulse_response(layer, meta["L"], "scan")
        assert_within(K, arrays["out_K"][c], GOLDEN_VALUE)
        (K * arrays["w_K"][c]).sum().backward()
        assert_within(layer.C.grad, arrays["grad_C_ri"][c], GOLDEN_GRADIENT)
        total = {key: value + getattr(layer, key).grad for key, value in total.items()}
    assert_within(total["log_dt"], arrays["grad_inv_dt"], GOLDEN_GRADIENT)
    assert_within(total["log_neg_re"], arrays["grad_A_real"], GOLDEN_GRADIENT)
    assert_within(total["A_im"], -arrays["grad_A_imag"], GOLDEN_GRADIENT)
    assert_within(total["B"], arrays["grad_B_ri"][0], GOLDEN_GRADIENT)


@every_file
@pytest.mark.parametrize("mode", [*MODES, "steps"])
def test_outputs_and_states_are_the_authors(name, mode):
    arrays, meta = load(name)
    x, H = arrays["in_u"].transpose(1, 2), meta["H"]
    for c in range(meta["channels"]):
        layer, own = _layer(arrays, meta, c), slice(c * H, (c + 1) * H)
        state = {"h": torch.view_as_real(arrays["in_state0"])}
        if mode == "steps":
            y, _, _ = step_loop(layer, x, layer.initial_state(len(x)), None)
            y_state, last, _ = step_loop(layer, x, state, None)
        else:
            y, _ = layer(x, None, None, mode)
            y_state, last = layer(x, state, None, mode)
        assert_within(y.transpose(1, 2), arrays["out_y"][:, own], GOLDEN_VALUE)
        assert_within(y_state.transpose(1, 2), arrays["out_y_state"][:, own], GOLDEN_VALUE)
        final = torch.view_as_real(arrays["out_final_state"])
        assert_within(last["h"], final, GOLDEN_VALUE)


@every_file
@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_of_the_input_is_the_authors(name, mode):
    arrays, meta = load(name)
    x, H = arrays["in_u"].transpose(1, 2).contiguous().requires_grad_(), meta["H"]
    for c in range(meta["channels"]):
        y, _ = _layer(arrays, meta, c)(x, None, None, mode)
        (y.transpose(1, 2) * arrays["w_y"][:, c * H : (c + 1) * H]).sum().backward()
    assert_within(x.grad.transpose(1, 2), arrays["grad_u"], GOLDEN_GRADIENT)


@pytest.mark.parametrize("name", names("s4d_layer_*"))
@pytest.mark.parametrize("mode", MODES)
def test_the_layer_with_its_activation_and_mixing_is_the_authors(name, mode):
    arrays, meta = load(name)
    layer = S4DLayer(meta["H"], S4DConfig(state_size=meta["N"], init="lin", learn_b=False)).double()
    with torch.no_grad():
        layer.log_dt.copy_(arrays["p_log_dt"][:, None])
        layer.log_neg_re.copy_(arrays["p_log_A_real"])
        layer.A_im.copy_(arrays["p_A_imag"])
        layer.C.copy_(torch.view_as_real(arrays["p_C"]))
        layer.D.copy_(arrays["p_D"])
    x = arrays["in_u"].transpose(1, 2).contiguous().requires_grad_()
    W, b = (arrays[key].clone().requires_grad_() for key in ("p_W", "p_b"))
    mixed = F.linear(F.gelu(layer(x, None, None, mode)[0]), W, b)
    y = F.glu(mixed).transpose(1, 2)
    assert_within(layer.kernel(meta["L"]), arrays["out_K"], GOLDEN_VALUE)
    assert_within(y, arrays["out_y"], GOLDEN_VALUE)
    (y * arrays["w_y"]).sum().backward()
    gradients = {
        "u": x.grad.transpose(1, 2),
        "log_dt": layer.log_dt.grad[:, 0],
        "log_A_real": layer.log_neg_re.grad,
        "A_imag": layer.A_im.grad,
        "C_ri": layer.C.grad,
        "D": layer.D.grad,
        "W": W.grad,
        "b": b.grad,
    }
    for key, actual in gradients.items():
        assert_within(actual, arrays[f"grad_{key}"], GOLDEN_GRADIENT)
