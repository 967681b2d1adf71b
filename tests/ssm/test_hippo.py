"""HiPPO matrices and spectra: closed forms, and arrays of the authors' code (`tests/golden`)."""

import numpy as np
import pytest
import torch

from statewise.ssm.hippo import clip_imaginary, hippo, legt, nplr, s4d_eigenvalues
from statewise.ssm.init import hippo_legs, normal_legs
from tests.golden_files import load, names
from tests.tolerance import GOLDEN_VALUE, ORACLE_FLOAT64, assert_within

MEASURES = ("legs", "legt", "fourier")
every_measure = pytest.mark.parametrize("measure", MEASURES)
every_file = pytest.mark.parametrize("name", names("hippo_N*"))


def _assert_equal(actual: np.ndarray, expected: np.ndarray, bound: float = ORACLE_FLOAT64) -> None:
    assert_within(torch.as_tensor(actual), torch.as_tensor(expected), bound)


def test_legs_of_size_four_is_the_matrix_of_the_paper():
    A, B = hippo_legs(4)
    expected = [
        [-1, 0, 0, 0],
        [-(3**0.5), -2, 0, 0],
        [-(5**0.5), -(15**0.5), -3, 0],
        [-(7**0.5), -(21**0.5), -(35**0.5), -4],
    ]
    _assert_equal(A, np.array(expected))
    _assert_equal(B, np.sqrt([1.0, 3.0, 5.0, 7.0]))


def test_legt_of_size_three_is_the_matrix_of_the_paper():
    # sqrt((2n + 1)(2k + 1)) / 2, alternating signs above the diagonal
    a, b, c = 3**0.5 / 2, 5**0.5 / 2, 15**0.5 / 2
    _assert_equal(legt(3).A, np.array([[-0.5, a, -b], [-a, -1.5, c], [-b, -c, -2.5]]))
    _assert_equal(legt(3).B, np.array([0.5, a, b]))


def test_fourier_turns_each_pair_at_its_frequency():
    system = hippo("fourier", 6)
    S = system.A + np.outer(system.B, system.B)
    w = np.linalg.eigvals(S)
    expected = np.array([-2, -1, 0, 0, 1, 2]) * np.pi
    _assert_equal(np.sort(w.imag), expected)
    _assert_equal(system.B, np.array([1, 0, 2**0.5, 0, 2**0.5, 0]))


@every_measure
@pytest.mark.parametrize("N", [4, 8, 64])
def test_adding_the_low_rank_term_leaves_a_skew_matrix_and_a_multiple_of_the_identity(measure, N):
    system = hippo(measure, N)
    normal = system.A + system.P.T @ system.P
    shift = {"legs": -0.5, "legt": 0.0, "fourier": 0.0}[measure]
    _assert_equal((normal + normal.T) / 2, shift * np.eye(N))


@every_measure
@pytest.mark.parametrize("N", [4, 8, 64])
def test_the_kept_half_gives_the_whole_system_back(measure, N):
    system, half = hippo(measure, N), nplr(measure, N)
    assert (half.w.imag <= 1e-12).all()
    assert (np.diff(half.w.imag) > 0).all()
    _assert_equal(2 * ((half.V * half.w) @ half.V.conj().T).real, system.A + system.P.T @ system.P)
    _assert_equal(2 * (half.V @ half.V.conj().T).real, np.eye(N))
    _assert_equal(2 * (half.V @ half.B).real, system.B)
    _assert_equal(2 * (half.V @ half.P.T).real, system.P.T)


# Of a Fourier basis the sine of frequency 0 is nothing: it neither moves nor decays.
@pytest.mark.parametrize(("measure", "num_still"), [("legs", 0), ("legt", 0), ("fourier", 1)])
def test_every_measure_starts_stable(measure, num_still):
    half = nplr(measure, 16)
    low = np.concatenate([half.P, half.P.conj()], 1)
    full = np.diag(np.concatenate([half.w, half.w.conj()])) - low.T @ low.conj()
    rates = np.sort(np.linalg.eigvals(full).real)
    assert np.abs(rates[len(rates) - num_still :]).max(initial=0) < 1e-12
    assert rates[len(rates) - num_still - 1] < -0.1


@every_file
def test_matrices_equal_the_authors(name):
    arrays, meta = load(name)
    for measure in MEASURES:
        for field, value in hippo(measure, meta["N"])._asdict().items():
            assert_within(torch.from_numpy(value), arrays[f"{measure}_{field}"], GOLDEN_VALUE)


@every_file
def test_the_split_of_legs_equals_the_authors_up_to_a_phase_per_column(name):
    arrays, meta = load(name)
    half = nplr("legs", meta["N"])
    assert_within(torch.from_numpy(half.w), arrays["nplr_Lambda"], GOLDEN_VALUE)
    for field in ("V", "P", "B"):
        actual, expected = torch.from_numpy(getattr(half, field)), arrays[f"nplr_{field}"]
        assert_within(actual.abs(), expected.abs(), GOLDEN_VALUE)
    product = torch.from_numpy(half.P.conj() * half.B)
    assert_within(product, arrays["nplr_P"].conj() * arrays["nplr_B"], GOLDEN_VALUE)
    clipped = clip_imaginary(arrays["nplr_B"].numpy(), 2.0)
    assert_within(torch.from_numpy(clipped), arrays["nplr_B_clip2"], GOLDEN_VALUE)


@every_file
@pytest.mark.parametrize("spectrum", ["lin", "inv", "quad", "real"])
def test_the_spectra_of_s4d_equal_the_authors(name, spectrum):
    arrays, meta = load(name)
    actual = torch.from_numpy(s4d_eigenvalues(spectrum, meta["N"]))
    assert_within(actual, arrays[f"s4d_A_{spectrum}"], GOLDEN_VALUE)


def test_the_spectrum_named_legs_is_that_of_the_normal_part():
    _assert_equal(s4d_eigenvalues("legs", 32), normal_legs(32)[0][:16])


def test_the_inverse_spectrum_of_size_four_by_hand():
    # (4 / pi)(4 / 1 - 1) and (4 / pi)(4 / 3 - 1)
    _assert_equal(-s4d_eigenvalues("inv", 4).imag, np.array([12, 4 / 3]) / np.pi)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="measure: expected legs, legt or fourier, got 'lmu'"):
        hippo("lmu", 4)
    with pytest.raises(ValueError, match=r"init: expected lin, .* got 'rand'"):
        s4d_eigenvalues("rand", 4)
