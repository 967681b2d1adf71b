"""S4 layers against arrays computed by the authors' code (`tests/golden`)."""

import pytest
import torch
from torch import Tensor

from statewise.ssm.s4 import S4Config, S4Layer
from tests.golden_files import load, names
from tests.ssm.variants import step_loop
from tests.tolerance import GOLDEN_GRADIENT, GOLDEN_VALUE, assert_within

every_file = pytest.mark.parametrize("name", names("s4_dplr_*"))
every_backend = pytest.mark.parametrize("backend", ["torch", "cpu"])


def _layer(
    arrays: dict[str, Tensor],
    meta: dict,
    channel: int,
    backend: str = "auto",
    kernel: str = "powers",
) -> S4Layer:
    """Return the layer of one output channel; the authors' layers may have several."""
    config = S4Config(state_size=meta["N"], num_copies=meta["n_ssm"], kernel=kernel)
    layer = S4Layer(meta["H"], config, backend).double()
    with torch.no_grad():
        layer.log_dt.copy_(arrays["p_inv_dt"][:, 0])
        layer.log_neg_re.copy_(arrays["p_A_real"])
        layer.A_im.copy_(-arrays["p_A_imag"])
        layer.P.copy_(torch.view_as_real(arrays["p_P"]).transpose(0, 1))
        layer.B.copy_(torch.view_as_real(arrays["p_B"][0]))
        layer.C.copy_(torch.view_as_real(arrays["p_C"][channel]))
        layer.D.copy_(arrays["p_D"][channel])
    return layer


def _completion(N: int) -> Tensor:
    """Return the map from interleaved (Re z, Im z) to (z, conj z)."""
    upper = torch.zeros(N // 2, N, dtype=torch.complex128)
    upper[:, 0::2], upper[:, 1::2] = torch.eye(N // 2), 1j * torch.eye(N // 2)
    return torch.cat([upper, upper.conj()])


@every_file
def test_the_discretised_system_is_the_authors(name):
    arrays, meta = load(name)
    A, B, _ = (part.detach().to(torch.complex128) for part in _layer(arrays, meta, 0).discretize())
    T = _completion(meta["N"])
    assert_within(T @ A @ torch.linalg.inv(T), arrays["out_dA"], GOLDEN_VALUE)
    assert_within(B @ T.T, arrays["out_dB"], GOLDEN_VALUE)


def _untruncate(layer: S4Layer, C_tilde: Tensor, L: int) -> Tensor:
    """Solve C (1 - A^L) = C_tilde for C, so that C_tilde is the leaf as in the authors' code."""
    A = layer.discretize().A
    row = (C_tilde * C_tilde.new_tensor((2.0, -2.0))).flatten(1)
    rest = torch.eye(A.shape[-1], dtype=A.dtype) - torch.linalg.matrix_power(A, L)
    solved = torch.linalg.solve(rest.mT, row[..., None])[..., 0]
    return solved.unflatten(1, (-1, 2)) * C_tilde.new_tensor((0.5, -0.5))


@every_file
@every_backend
@pytest.mark.parametrize("how", ["powers", "cauchy", "scan"])
def test_the_kernel_and_its_gradients_are_the_authors(name, backend, how):
    arrays, meta = load(name)
    total = dict.fromkeys(("log_dt", "log_neg_re", "A_im", "B", "P"), 0.0)
    for c in range(meta["channels"]):
        layer = _layer(arrays, meta, c, backend, "cauchy" if how == "cauchy" else "powers")
        C_tilde = torch.view_as_real(arrays["p_C_tilde"][c]).clone().requires_grad_()
        C = _untruncate(layer, C_tilde, meta["L"])
        assert_within(C, layer.C, GOLDEN_VALUE)
        del layer.C
        layer.C = C
        if how == "scan":
            x = torch.zeros(1, meta["L"], meta["H"], dtype=torch.float64)
            x[:, 0] = 1
            K = (layer(x)[0] - x * layer.D)[0].T
        else:
            K = layer.kernel(meta["L"])
        assert_within(K, arrays["out_K"][c], GOLDEN_VALUE)
        (K * arrays["w_K"][c]).sum().backward()
        assert_within(C_tilde.grad, arrays["grad_C_tilde_ri"][c], GOLDEN_GRADIENT)
        total = {key: value + getattr(layer, key).grad for key, value in total.items()}
    assert_within(total["log_dt"], arrays["grad_inv_dt"][:, 0], GOLDEN_GRADIENT)
    assert_within(total["log_neg_re"], arrays["grad_A_real"], GOLDEN_GRADIENT)
    assert_within(total["A_im"], -arrays["grad_A_imag"], GOLDEN_GRADIENT)
    assert_within(total["B"], arrays["grad_B_ri"][0], GOLDEN_GRADIENT)
    assert_within(total["P"].transpose(0, 1), arrays["grad_P_ri"], GOLDEN_GRADIENT)


@every_file
@pytest.mark.parametrize("mode", ["scan", "conv", "steps"])
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
