"""Initial values of state-space parameters: HiPPO matrices and what is derived from them.

Paper: Gu et al. 2020, "HiPPO: Recurrent Memory with Optimal Polynomial Projections"; the normal
part and its use as in Gu et al. 2022 (S4) and Smith et al. 2023 (S5).
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def hippo_legs(N: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return A (N, N) and B (N,) of HiPPO-LegS.

    A[n, k] = -sqrt((2n + 1)(2k + 1)) below the diagonal, -(n + 1) on it, 0 above
    B[n]    = sqrt(2n + 1)
    """
    root = np.sqrt(2 * np.arange(N) + 1.0)
    A = -np.tril(np.outer(root, root), -1) - np.diag(np.arange(N) + 1.0)
    return A, root


def legs_rank_one(N: int) -> NDArray[np.float64]:
    """Return P (N,) such that A + P P^T is -1/2 I plus a skew-symmetric matrix."""
    return np.sqrt(np.arange(N) + 0.5)


def normal_legs(N: int) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """Diagonalise the normal part of HiPPO-LegS.

    Returns:
        Eigenvalues (N,) by ascending imaginary part, all with real part -1/2, and the unitary
        matrix V (N, N) of eigenvectors in columns.
    """
    A, _ = hippo_legs(N)
    P = legs_rank_one(N)
    S = A + np.outer(P, P)
    imaginary, V = np.linalg.eigh(-1j * S)
    return np.mean(np.diagonal(S)) + 1j * imaginary, V


def truncated_normal(shape: tuple[int, ...], std: float, generator: torch.Generator | None) -> Any:
    """Draw a normal cut at two deviations, widened so that its deviation is `std`; float64."""
    draw = torch.empty(shape, dtype=torch.float64)
    torch.nn.init.trunc_normal_(draw, 0.0, 1.0, -2.0, 2.0, generator=generator)
    return draw * (std / 0.87962566103423978)


def log_uniform(shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """Draw the logarithm of numbers log-uniform in [low, high]; float64."""
    draw = torch.rand(shape, dtype=torch.float64)
    return draw * (math.log(high) - math.log(low)) + math.log(low)


def inverse_softplus(x: Tensor) -> Tensor:
    """Return y with softplus(y) = x, for x > 0."""
    return x + torch.log(-torch.expm1(-x))


def initial_step_bias(count: int, low: float, high: float) -> Tensor:
    """Return biases (count,) whose softplus is log-uniform in [low, high], 1e-4 or more."""
    steps = log_uniform((count,), low, high).exp().clamp(min=1e-4)
    return inverse_softplus(steps).to(torch.get_default_dtype())


def as_pairs(x: NDArray[np.complex128] | Tensor) -> Tensor:
    """Turn a complex array into real pairs, in torch's default dtype."""
    tensor = torch.as_tensor(x)
    return torch.view_as_real(tensor.resolve_conj().contiguous()).to(torch.get_default_dtype())
