"""Perturb-then-diagonalise: what it diagonalises, how well, and that layers start as A + E."""

import numpy as np
import pytest
import torch

from statewise.ssm.hippo import hippo
from statewise.ssm.init import hippo_legs
from statewise.ssm.perturb import perturbed_legs, skew_gaussian
from statewise.ssm.s4d import S4DConfig, S4DLayer
from statewise.ssm.s5 import S5Config, S5Layer, initial_system
from tests.tolerance import ORACLE_FLOAT64, assert_close, assert_within

sizes = pytest.mark.parametrize("N", [4, 16, 64])


def _within(actual: np.ndarray, expected: np.ndarray, bound: float = ORACLE_FLOAT64) -> None:
    assert_within(torch.as_tensor(actual), torch.as_tensor(expected), bound)


def _responses(A: torch.Tensor, B: torch.Tensor, C: torch.Tensor, dt: float, T: int):
    """Return C exp(k dt A) A^-1 (exp(dt A) - 1) B, k < T, by matrix exponentials: (T,)."""
    N = len(A)
    block = torch.zeros(N + 1, N + 1, dtype=A.dtype)
    block[:N, :N], block[:N, N] = dt * A, dt * B
    whole = torch.linalg.matrix_exp(block)
    step, state, outputs = whole[:N, :N], whole[:N, N], []
    for _ in range(T):
        outputs.append(C @ state)
        state = step @ state
    return torch.stack(outputs)


@sizes
def test_the_kept_half_gives_the_perturbed_matrix_back(N):
    system = perturbed_legs(N, 0.1, paired=True)
    assert system.w.shape == (N // 2,)
    assert (system.w.imag < 0).all()
    whole = 2 * ((system.V * system.w) @ system.inverse).real
    _within(whole, system.A)
    _within(2 * (system.V @ system.inverse).real, np.eye(N))


@sizes
@pytest.mark.parametrize("perturbation", [0.05, 0.3])
def test_the_perturbation_has_the_size_asked_for_and_leaves_the_symmetric_part(N, perturbation):
    A, _ = hippo_legs(N)
    E = perturbed_legs(N, perturbation, paired=False).A - A
    ratio = np.linalg.norm(E, 2) / np.linalg.norm(A, 2)
    assert ratio == pytest.approx(perturbation, rel=1e-9)
    _within(E + E.T + 1, np.ones((N, N)))
    assert np.isrealobj(E)


def test_the_size_left_open_is_a_tenth():
    A, _ = hippo_legs(8)
    E = perturbed_legs(8, None, paired=True).A - A
    assert np.linalg.norm(E, 2) == pytest.approx(0.1 * np.linalg.norm(A, 2), rel=1e-9)


def test_an_entry_of_the_perturbation_is_symmetric_about_zero_and_differs_per_draw():
    draws = np.stack([skew_gaussian(3, 1.0) for _ in range(2000)])
    entries = draws[:, [0, 0, 1], [1, 2, 2]]
    # On the unit sphere in 3 dimensions each coordinate has mean 0 and variance 1 / 3.
    np.testing.assert_allclose(entries.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(np.square(entries).mean(0), 1 / 3, atol=0.03)


@sizes
@pytest.mark.parametrize("paired", [True, False])
def test_every_eigenvalue_decays_at_least_as_the_symmetric_part_says(N, paired):
    # x^* (A + E) x <= -1/2 |x|^2 for a skew-symmetric E.
    for _ in range(5):
        system = perturbed_legs(N, 0.2, paired=paired)
        assert system.w.real.max() <= -0.5 + 1e-9


@pytest.mark.parametrize("N", [8, 16, 64])
def test_the_eigenvectors_are_far_better_conditioned_than_those_of_legs(N):
    bare = np.linalg.cond(np.linalg.eig(hippo("legs", N).A)[1])
    system = perturbed_legs(N, 0.1, paired=True)
    V = np.concatenate([system.V, system.V.conj()], 1)
    assert np.linalg.cond(V) < 1e-2 * bare
    np.testing.assert_allclose(np.linalg.norm(V, axis=0), 1, rtol=1e-12)


def test_all_eigenvalues_come_in_pairs_or_are_real():
    system = perturbed_legs(9, 0.1, paired=False)
    assert system.w.shape == (9,)
    _within(np.sort_complex(system.w.conj()), np.sort_complex(system.w))
    _within((system.V * system.w) @ system.inverse, system.A.astype(np.complex128))


def test_a_layer_of_s4d_has_the_response_of_the_dense_system():
    torch.manual_seed(0)
    layer = S4DLayer(3, S4DConfig(state_size=16, init="ptd")).double()
    torch.manual_seed(0)
    torch.randn(3)  # the layer's D
    system = perturbed_legs(16, 0.1, paired=True)
    C = torch.randn(3, 16, dtype=torch.float64)
    with torch.no_grad():  # in place of the rounding to float32
        B = torch.as_tensor(system.inverse @ hippo_legs(16)[1])
        exact = {"A_im": system.w.imag, "log_neg_re": np.log(-system.w.real)}
        for name, numbers in exact.items():
            parameter = getattr(layer, name)
            torch.testing.assert_close(parameter[0], torch.as_tensor(numbers), rtol=1e-6, atol=0)
            parameter.copy_(torch.as_tensor(numbers))
        CV = C.to(torch.complex128) @ torch.as_tensor(system.V)
        for name, pairs in {"B": B.expand(3, -1), "C": CV}.items():
            parameter = getattr(layer, name)
            exact_pairs = torch.view_as_real(pairs.contiguous())
            assert_close(parameter, exact_pairs, torch.float32, 1)
            parameter.copy_(exact_pairs)
    kernel, dt = layer.kernel(40), layer.log_dt.detach().exp()
    for h in range(3):
        B_dense = torch.as_tensor(hippo_legs(16)[1])
        expected = _responses(torch.as_tensor(system.A), B_dense, C[h], dt[h].item(), 40)
        assert_close(kernel[h], expected, torch.float64, 40)


@pytest.mark.parametrize("conj_sym", [True, False])
@pytest.mark.parametrize("blocks", [1, 2])
def test_s5_starts_from_the_perturbed_matrix_on_the_diagonal(conj_sym, blocks):
    config = S5Config(state_size=12, init="ptd", blocks=blocks, conj_sym=conj_sym)
    torch.manual_seed(1)
    w, V, inverse = (torch.as_tensor(x) for x in initial_system(12, config))
    torch.manual_seed(1)
    A = torch.as_tensor(perturbed_legs(12 // blocks, None, paired=conj_sym).A)
    whole = (V * w) @ inverse
    whole = 2 * whole.real if conj_sym else whole.real
    assert_within(whole, torch.block_diag(*[A] * blocks), ORACLE_FLOAT64)


def test_s5_rotates_a_real_input_into_the_eigenbasis():
    # 2 Re(V B~) is real and is the truncated normal that was drawn: deviation N^-1/2, no more.
    torch.manual_seed(2)
    layer = S5Layer(32, S5Config(state_size=16, init="ptd"))
    torch.manual_seed(2)
    _, V, _ = initial_system(16, layer.config)
    B = 2 * (V @ torch.view_as_complex(layer.B.detach().double())).real
    assert B.std().item() == pytest.approx(16**-0.5, rel=0.1)
    assert B.abs().max().item() <= 2 * 16**-0.5 / 0.8796 + 1e-4


@pytest.mark.parametrize("width", [16, 64])
def test_the_output_of_a_perturbed_start_has_the_size_of_the_input(width):
    layer = S5Layer(width, S5Config(init="ptd"))
    y, _ = layer(torch.randn(2, 1024, width))
    assert 0.3 <= y.std().item() <= 3.0


def test_each_layer_gets_its_own_perturbation_and_a_seed_repeats_it():
    torch.manual_seed(0)
    first, second = (S4DLayer(2, S4DConfig(state_size=8, init="ptd")) for _ in range(2))
    torch.manual_seed(0)
    again = S4DLayer(2, S4DConfig(state_size=8, init="ptd"))
    assert not torch.equal(first.A_im, second.A_im)
    assert torch.equal(first.A_im, again.A_im)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: S5Config(perturbation=0.1), "perturbation: would be ignored with init 'legs'"),
        (lambda: S4DConfig(perturbation=0.1), "perturbation: would be ignored with init 'lin'"),
        (lambda: S5Config(init="ptd", perturbation=0.0), "perturbation: expected a positive"),
        (lambda: S5Layer(4, S5Config(init="ptd", blocks=4, conj_sym=False)), "blocks of at least"),
        (lambda: S5Layer(6, S5Config(init="ptd", blocks=4)), "state_size: expected a multiple"),
        (
            lambda: S5Layer(2, S5Config(init="ptd", perturbation=1e-3)),
            "perturbation: .* no real eigenvalue within 500 draws, got 0.001 for size 2: raise it",
        ),
    ],
)
def test_settings_that_cannot_work_or_would_be_ignored_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
