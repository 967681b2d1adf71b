"""HiPPO matrices, their split into a normal matrix and a low rank, and the spectra of S4D.

Papers: Gu et al. 2020, "HiPPO: Recurrent Memory with Optimal Polynomial Projections"; Gu, Goel &
Re 2022, "Efficiently Modeling Long Sequences with Structured State Spaces" (S4, the split); Gu,
Johnson et al. 2023, "How to Train Your HiPPO" (LegT and Fourier in this scaling); Gu, Gupta et al.
2022, "On the Parameterization and Initialization of Diagonal State Space Models" (S4D).

Everything is float64 or complex128 numpy. A continuous system x' = A x + B u of size N remembers
u: LegS with exponentially decaying weight, LegT (Legendre polynomials) and Fourier over a sliding
window.
"""

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from statewise.ssm.init import hippo_legs, legs_rank_one

Measure = Literal["legs", "legt", "fourier"]
Spectrum = Literal["lin", "inv", "legs", "quad", "real"]
Real = NDArray[np.float64]
Complex = NDArray[np.complex128]

B_CLIP = 2.0  # of the imaginary parts of the input where S4 and S4D-LegS start, as in the release
ZERO = 1e-4  # an imaginary part below this is a zero eigenvalue


class HiPPO(NamedTuple):
    """A system and the low-rank term that makes it normal."""

    A: Real
    """(N, N)."""
    B: Real
    """(N,)."""
    P: Real
    """(R, N): A + P^T P is a multiple of the identity plus a skew-symmetric matrix."""


class NPLR(NamedTuple):
    """A HiPPO system in the eigenbasis of its normal part, one of each conjugate pair.

    With p = 2 Re(V P^T), which is the real P^T again: A = 2 Re(V diag(w) V^*) - p p^T.
    """

    w: Complex
    """(N / 2,), ascending imaginary parts, none positive."""
    P: Complex
    """(R, N / 2)."""
    B: Complex
    """(N / 2,)."""
    V: Complex
    """(N, N / 2), orthonormal columns; each is defined up to a phase."""


def legt(N: int) -> HiPPO:
    """Return translated Legendre polynomials (LegT), of rank 2, scaled to a window of length 2.

    A[n, k] = -sqrt((2n + 1)(2k + 1)) / 2 times (-1)^(n - k) above the diagonal
    B[n]    = sqrt(2n + 1) / 2
    """
    n = np.arange(N)
    root = np.sqrt(2 * n + 1.0)
    sign = np.where(n[:, None] < n, (-1.0) ** (n[:, None] - n), 1.0)
    P = np.stack([np.where(n % 2 == 1, root, 0.0), np.where(n % 2 == 0, root, 0.0)])
    return HiPPO(-0.5 * np.outer(root, root) * sign, root / 2, P / math.sqrt(2))


def fourier(N: int) -> HiPPO:
    """Return the truncated Fourier basis (FouT), of rank 1; N even.

    A = S - B B^T, S skew-symmetric with entries pi k between the sine and the cosine of
    frequency k; B is sqrt(2) on the cosines, and 1 on the constant.
    """
    between = np.zeros(N - 1)
    between[0::2] = np.arange(N // 2)
    S = math.pi * (np.diag(between, -1) - np.diag(between, 1))
    B = np.zeros(N)
    B[0::2] = math.sqrt(2)
    B[0] = 1.0
    return HiPPO(S - np.outer(B, B), B, B[None])


def hippo(measure: Measure, N: int) -> HiPPO:
    """Return the system of a measure.

    Args:
        measure: "legs" (rank 1), "legt" (rank 2) or "fourier" (rank 1).
        N: size, >= 1; even for "fourier".
    """
    match measure:
        case "legs":
            A, B = hippo_legs(N)
            return HiPPO(A, B, legs_rank_one(N)[None])
        case "legt":
            return legt(N)
        case "fourier":
            return fourier(N)
    raise ValueError(f"measure: expected legs, legt or fourier, got {measure!r}")


def clip_imaginary(x: Complex, bound: float) -> Complex:
    """Cut imaginary parts to [-bound, bound]."""
    return (x.real + 1j * np.clip(x.imag, -bound, bound)).astype(np.complex128)


def nplr(measure: Measure, N: int) -> NPLR:
    """Diagonalise the normal part of a HiPPO matrix of even size N >= 4 and keep half of it.

    For Fourier, the two zero eigenvalues share a plane on which every basis is an eigenbasis; the
    column kept is (1, i, 0, ...) / sqrt(2), so that it and its conjugate span the plane.
    """
    system = hippo(measure, N)
    normal = system.A + system.P.T @ system.P
    imaginary, V = np.linalg.eigh(-1j * normal)
    w = np.mean(np.diagonal(normal)) + 1j * imaginary[: N // 2]
    V = V[:, : N // 2].copy()
    if abs(w[-1].imag) < ZERO:
        V[:, -1] = 0
        V[:2, -1] = np.array([1, 1j]) / math.sqrt(2)
    P, B = (np.asarray(x @ V.conj(), np.complex128) for x in (system.P, system.B))
    return NPLR(w, P, B, V)


def s4d_eigenvalues(spectrum: Spectrum, N: int) -> Complex:
    """Return the N / 2 eigenvalues from which S4D starts; N even.

    lin   -1/2 - i pi n
    inv   -1/2 - i (N / pi) (N / (2n + 1) - 1)
    quad  -1/2 - i (2n + 1)^2 / pi
    real  -(n + 1)
    legs  eigenvalues of the normal part of HiPPO-LegS; N >= 4
    """
    n = np.arange(N // 2)
    match spectrum:
        case "lin":
            imaginary = math.pi * n
        case "inv":
            imaginary = (N / math.pi) * (N / (2 * n + 1) - 1)
        case "quad":
            imaginary = (2 * n + 1) ** 2 / math.pi
        case "real":
            return -(n + 1.0).astype(np.complex128)
        case "legs":
            return nplr("legs", N).w
        case other:
            raise ValueError(f"init: expected lin, inv, quad, real or legs, got {other!r}")
    return (-0.5 - 1j * imaginary).astype(np.complex128)
