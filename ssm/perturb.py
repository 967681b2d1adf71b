"""Perturb, then diagonalise: a diagonal start that is close to the whole of HiPPO-LegS.

Paper: Yu, Nigmetov, Morozov, Mahoney & Erichson 2024, "Robustifying State-space Models for Long
Sequences via Approximate Diagonalization" (S4-PTD, S5-PTD).

    A + E = V diag(w) V^-1,    B <- V^-1 B,    C <- C V

A of HiPPO-LegS has eigenvectors that no number format can hold (condition number above 1e19 at
N = 32), which is why S4D and S5 start from its normal part. A small random E makes them tame (about
60 at N = 64 and 10 %), and the diagonal system then has the impulse response of A + E exactly.

Deviations: E is real, Gaussian and skew-symmetric; the paper optimises E, or takes it without
structure. Real, so that eigenvalues come in pairs. Skew-symmetric, because the symmetric part of A,
which is at most -1/2, then stays what it is and with it Re w <= -1/2: an unstructured E of 10 % at
N = 64 has eigenvalues up to Re w = 140. Draws with real eigenvalues are drawn again.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from statewise.ssm.init import hippo_legs

PERTURBATION = 0.1  # of the size of A, where the configuration leaves it open
TRIES = 500
REAL = 1e-3  # a pair with smaller imaginary parts is as good as real: V would be nearly singular


class Perturbed(NamedTuple):
    """A diagonalised system; K = N, or N / 2 where one of each conjugate pair is kept."""

    A: NDArray[np.float64]
    """(N, N), A + E."""
    w: NDArray[np.complex128]
    """(K,), ascending imaginary parts, negative where a half is kept; Re w <= -1/2."""
    V: NDArray[np.complex128]
    """(N, K), columns of length 1."""
    inverse: NDArray[np.complex128]
    """(K, N), rows of V^-1."""


def check_perturbation(init: str, perturbation: float | None) -> None:
    """Check the size of E.

    Raises:
        ValueError: it is not positive, or `init` is another one and would ignore it.
    """
    if perturbation is None:
        return
    if init != "ptd":
        raise ValueError(
            f"perturbation: would be ignored with init {init!r}: remove it, or use init ptd"
        )
    if not perturbation > 0:
        raise ValueError(f"perturbation: expected a positive number, got {perturbation}")


def perturbed_legs(N: int, perturbation: float | None, *, paired: bool) -> Perturbed:
    """Draw E from torch's generator and diagonalise HiPPO-LegS + E in complex128.

    Args:
        N: size, >= 2; even where paired.
        perturbation: > 0, ||E||_2 / ||A||_2; None means 0.1.
        paired: keep one of each conjugate pair, and draw again while there are real eigenvalues.

    Raises:
        ValueError: no draw without real eigenvalues was found: E is too small.
    """
    size = PERTURBATION if perturbation is None else perturbation
    if N < 2:
        raise ValueError(f"state_size: expected blocks of at least 2 with init ptd, got {N}")
    A, _ = hippo_legs(N)
    norm = size * float(np.linalg.norm(A, 2))
    for _ in range(TRIES):
        moved = A + skew_gaussian(N, norm)
        if not paired or np.abs(np.linalg.eigvals(moved).imag).min() > REAL:
            return _diagonalise(moved, N // 2 if paired else N)
    raise ValueError(
        f"perturbation: expected one that leaves no real eigenvalue within {TRIES} draws, got "
        f"{size} for size {N}: raise it"
    )


def skew_gaussian(N: int, norm: float) -> NDArray[np.float64]:
    """Draw a skew-symmetric Gaussian (N, N) and scale it to a spectral norm; N >= 2."""
    G = torch.randn(N, N, dtype=torch.float64).numpy()
    E = G - G.T
    return np.asarray(E * (norm / np.linalg.norm(E, 2)), np.float64)


def _diagonalise(A: NDArray[np.float64], kept: int) -> Perturbed:
    w, V = (x.astype(np.complex128) for x in np.linalg.eig(A))
    order = np.argsort(w.imag, kind="stable")
    w, V = w[order], V[:, order]
    return Perturbed(A, w[:kept], V[:, :kept], np.linalg.inv(V)[:kept])
