"""How S5 starts: HiPPO matrices in closed form, eigenvalues, time steps, size of the output."""

import math

import numpy as np
import pytest
import torch

from statewise.ssm.init import hippo_legs, legs_rank_one, log_uniform, normal_legs, truncated_normal
from statewise.ssm.s5 import S5Config, S5Layer, initial_eigenvalues
from tests.golden_files import load, names
from tests.tolerance import GOLDEN_VALUE, assert_within


def _pole(layer: S5Layer) -> torch.Tensor:
    return torch.view_as_complex(layer.discretize().a.detach().double().contiguous())


def test_the_legs_matrix_of_size_four_is_the_printed_one():
    A, B = hippo_legs(4)
    expected = [
        [-1, 0, 0, 0],
        [-math.sqrt(3), -2, 0, 0],
        [-math.sqrt(5), -math.sqrt(15), -3, 0],
        [-math.sqrt(7), -math.sqrt(21), -math.sqrt(35), -4],
    ]
    np.testing.assert_allclose(A, expected, rtol=1e-12)
    np.testing.assert_allclose(B, [1, math.sqrt(3), math.sqrt(5), math.sqrt(7)], rtol=1e-12)
    np.testing.assert_allclose(legs_rank_one(4), np.sqrt([0.5, 1.5, 2.5, 3.5]), rtol=1e-12)


@pytest.mark.parametrize("name", names("hippo_N*"))
def test_the_hippo_matrices_are_the_authors(name):
    arrays, meta = load(name)
    N = meta["N"]
    A, B = hippo_legs(N)
    assert_within(torch.from_numpy(A), arrays["legs_A"], GOLDEN_VALUE)
    assert_within(torch.from_numpy(B), arrays["legs_B"], GOLDEN_VALUE)
    assert_within(torch.from_numpy(legs_rank_one(N)), arrays["legs_P"][0], GOLDEN_VALUE)
    eigenvalues, V = normal_legs(N)
    kept = torch.from_numpy(eigenvalues[: N // 2])
    assert_within(kept, arrays["nplr_Lambda"], GOLDEN_VALUE)
    # An eigenvector is defined up to a phase: its modulus is not.
    half = torch.from_numpy(V[:, : N // 2])
    assert_within(half.abs(), arrays["nplr_V"].abs(), GOLDEN_VALUE)
    rotated = half.mH @ arrays["legs_B"].to(half.dtype)
    assert_within(rotated.abs(), arrays["nplr_B"].abs(), GOLDEN_VALUE)


@pytest.mark.parametrize("N", [2, 4, 8, 64])
def test_the_normal_part_is_minus_one_half_plus_skew_and_diagonalised(N):
    A, _ = hippo_legs(N)
    P = legs_rank_one(N)
    S = A + np.outer(P, P)
    np.testing.assert_allclose(S + S.T, -np.eye(N), atol=1e-10)
    eigenvalues, V = normal_legs(N)
    np.testing.assert_allclose(V.conj().T @ V, np.eye(N), atol=1e-12)
    np.testing.assert_allclose(V @ np.diag(eigenvalues) @ V.conj().T, S, atol=1e-9 * N * N)
    np.testing.assert_allclose(eigenvalues.real, -0.5, atol=1e-12)
    assert (np.diff(eigenvalues.imag) > 0).all()
    # The half that is kept stands for its conjugates: twice the real part gives the whole matrix.
    kept = V[:, : N // 2]
    whole = 2 * (kept @ np.diag(eigenvalues[: N // 2]) @ kept.conj().T).real
    np.testing.assert_allclose(whole, S, atol=1e-9 * N * N)
    assert (eigenvalues[: N // 2].imag < 0).all()


@pytest.mark.parametrize(("N", "blocks", "conj_sym", "P"), [
    (8, 1, True, 4), (8, 1, False, 8), (12, 3, True, 6), (12, 3, False, 12), (64, 4, True, 32),
])  # fmt: skip
def test_blocks_repeat_the_spectrum_of_a_smaller_matrix(N, blocks, conj_sym, P):
    eigenvalues, V = initial_eigenvalues(N, blocks, conj_sym)
    one, _ = initial_eigenvalues(N // blocks, 1, conj_sym)
    assert eigenvalues.shape == (P,)
    assert V.shape == (N, P)
    np.testing.assert_array_equal(eigenvalues, np.tile(one, blocks))
    np.testing.assert_allclose((V.mH @ V).numpy(), np.eye(P), atol=1e-12)


@pytest.mark.parametrize("re_param", ["exp", "clip"])
def test_the_real_parts_start_at_minus_one_half(re_param):
    layer = S5Layer(16, S5Config(re_param=re_param))
    re, im = layer.eigenvalues()
    torch.testing.assert_close(re, torch.full((8,), -0.5), rtol=0, atol=1e-6)
    expected = torch.from_numpy(normal_legs(16)[0].imag[:8]).float()
    torch.testing.assert_close(im, expected)


@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
@pytest.mark.parametrize("width", [8, 64, 256])
def test_every_state_decays_at_the_start(discretization, width):
    layer = S5Layer(width, S5Config(discretization=discretization))
    assert (_pole(layer).abs() < 1).all()
    assert layer.B.shape == (width // 2, width, 2)
    assert layer.C.shape == (width, width // 2, 2)


def test_time_steps_start_log_uniform_in_their_range():
    layer = S5Layer(2048, S5Config(state_size=512, blocks=64, dt_min=0.001, dt_max=0.1))
    dt = layer.log_step.detach().exp()
    assert dt.min() >= 0.001 * (1 - 1e-6)
    assert dt.max() <= 0.1 * (1 + 1e-6)
    assert layer.log_step.mean().item() == pytest.approx(math.log(0.01), abs=0.35)
    # Half of a log-uniform draw lies below the geometric mean.
    assert (log_uniform((4000,), 1e-3, 0.1) < math.log(0.01)).double().mean().item() == (
        pytest.approx(0.5, abs=0.05)
    )


def test_a_truncated_normal_has_the_deviation_asked_for_and_no_tails():
    draw = truncated_normal((200_000,), 0.3, None)
    assert draw.std().item() == pytest.approx(0.3, rel=0.02)
    assert draw.abs().max().item() <= 2 * 0.3 / 0.8796256610342398 + 1e-9


@pytest.mark.parametrize(
    ("c_init", "std"),
    # N = 64, H = 32: sqrt(1 / N), sqrt(1 / (N H)) per part of C, then rotated by a unitary V
    # whose columns keep the deviation; complex_normal is sqrt(1 / 2) per part.
    [("truncated_normal", 64**-0.5), ("lecun_normal", (64 * 32) ** -0.5),
     ("complex_normal", 0.5**0.5), ("half_normal", 0.5)],
)  # fmt: skip
def test_output_weights_start_with_the_scale_of_their_scheme(c_init, std):
    layer = S5Layer(32, S5Config(state_size=64, c_init=c_init))
    assert layer.C.detach().std().item() == pytest.approx(std, rel=0.1)


def test_input_weights_start_with_one_over_root_of_the_state_size():
    # B real with deviation N^-1/2, rotated by V: |B~|^2 = 1 / N per entry.
    layer = S5Layer(64, S5Config(state_size=64))
    power = layer.B.detach().square().sum(-1).mean().item()
    assert power == pytest.approx(1 / 64, rel=0.1)


@pytest.mark.parametrize("width", [32, 128])
def test_the_output_has_the_size_of_the_input_at_the_start(width):
    layer = S5Layer(width)
    y, _ = layer(torch.randn(2, 1024, width))
    assert 0.3 <= y.std().item() <= 3.0


@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
def test_normalised_inputs_give_every_state_the_same_size_whatever_it_remembers(discretization):
    layers = []
    for b_init in ("normal", "gamma_normalised"):
        torch.manual_seed(0)
        config = S5Config(state_size=32, discretization=discretization, b_init=b_init)
        layers.append(S5Layer(16, config).double())
    plain, layer = layers
    assert torch.equal(layer.log_step, plain.log_step)
    # Var x = |b|^2 / (1 - |a|^2) of white inputs is then |B|^2, without a time constant.
    b = layer.discretize().w_in.detach().reshape(-1, 2, 16).square().sum(1)
    wanted = (1 - _pole(layer).abs().square())[:, None] * plain.B.detach().square().sum(-1)
    assert_within(b, wanted, 1e-3)  # the factors were made in float32, of 1 - |a|^2 near 0


@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
def test_the_discretisation_is_the_matrix_exponential_or_its_rational_form(discretization):
    layer = S5Layer(2, S5Config(discretization=discretization)).double()
    re, im = layer.eigenvalues()
    A = torch.complex(re, im).detach()[0]
    dt = layer.log_step.detach().exp()[0]
    B = torch.view_as_complex(layer.B.detach())[0]
    system = layer.discretize()
    a = torch.view_as_complex(system.a.detach().contiguous())[0]
    w_in = system.w_in.detach().unflatten(0, (-1, 2)).transpose(1, 2).contiguous()
    if discretization == "zoh":
        # exp(dt [A 1; 0 0]) = [Abar, (Abar - 1) / A; 0 1], summed as a power series.
        block = dt * torch.stack([torch.stack([A, torch.ones_like(A)]), torch.zeros_like(B)])
        exponential = sum(
            torch.linalg.matrix_power(block, k) / math.factorial(k) for k in range(20)
        )
        expected_a, gain = exponential[0, 0], exponential[0, 1]
    else:
        half = dt * A / 2
        expected_a, gain = (1 + half) / (1 - half), dt / (1 - half)
    torch.testing.assert_close(a, expected_a, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(torch.view_as_complex(w_in)[0], gain * B, rtol=1e-12, atol=1e-14)


def test_small_steps_do_not_lose_the_input_to_cancellation():
    # Bbar -> dt B as dt -> 0; (exp(z) - 1) / Lambda computed naively in float32 is off by 1e-3.
    layer = S5Layer(8)
    with torch.no_grad():
        layer.log_step.fill_(math.log(1e-5))
        layer.Lambda_im.zero_()
    rows = layer.discretize().w_in.detach().unflatten(0, (-1, 2)).transpose(1, 2)
    torch.testing.assert_close(rows / 1e-5, layer.B.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_size": 0}, "state_size"),
        ({"state_size": 7}, "state_size"),
        ({"state_size": 10, "blocks": 3}, "state_size"),
        ({"blocks": 0}, "blocks"),
        ({"dt_min": 0.0}, "dt_min"),
        ({"dt_min": 0.2, "dt_max": 0.1}, "dt_min"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        S5Layer(8, S5Config(**options))
