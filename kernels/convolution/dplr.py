"""The kernel of S4: a diagonal plus low-rank state, through its generating function.

Paper: Gu, Goel & Re 2022, "Efficiently Modeling Long Sequences with Structured State Spaces",
algorithm 1 and appendix C.3.

The state z (N) stands for (z, conj(z)): z' = w z - P^T 2 Re(conj(P) z) + B x, y = 2 Re(C z).
Discretised by the bilinear rule with step dt, the first L taps of its impulse response are the
inverse FFT of the generating function at the L-th roots of unity, with C replaced by
C (I - A^L). The diagonal part gives Cauchy sums; each row of P is then taken off by one step of
elimination (Woodbury's identity for R rows, one at a time).

Deviations: the nodes are used in a form without the pole at omega = -1 (`cauchy.py`), and all is
done in double precision.
"""

import torch
from torch import Tensor

from statewise.kernels.checks import (
    COMPLEX,
    FLOATS,
    require_dtype,
    require_one_device,
    require_shape,
)
from statewise.kernels.convolution.cauchy import cauchy
from statewise.kernels.convolution.reference import half_angles
from statewise.kernels.dispatch import Backend

NAME = "dplr_kernel"


def _check(dt: Tensor, w: Tensor, P: Tensor, L: int, **output: Tensor) -> None:
    """Raise ValueError, in one line, unless everything fits; `output` is C by its name."""
    ((name, C),) = output.items()
    H, N = w.shape if w.dim() == 2 else (-1, -1)
    fits = dt.shape == (H,) and P.dim() == 3 and P.shape[1:] == (H, N)
    if H < 0 or not fits or C.shape[-2:] != (H, N) or C.dim() not in (2, 3):
        raise ValueError(
            f"{NAME}: dt must be (H,), w (H, N), P (R, H, N), {name} (H, N) or (M, H, N), got "
            f"{tuple(dt.shape)}, {tuple(w.shape)}, {tuple(P.shape)}, {tuple(C.shape)}"
        )
    require_dtype(NAME, FLOATS, dt=dt)
    require_dtype(NAME, COMPLEX, w=w, P=P, **output)
    require_one_device(NAME, dt=dt, w=w, P=P, **output)
    if L < 1:
        raise ValueError(f"{NAME}: L must be at least 1, got {L}")


def dplr_kernel(
    dt: Tensor,
    w: Tensor,
    P: Tensor,
    B: Tensor,
    C_tilde: Tensor,
    L: int,
    backend: Backend = "auto",
) -> Tensor:
    """Return the first L taps of S4's impulse response.

    Args:
        dt: (H,), real, > 0, steps.
        w: (H, N), complex, diagonal part; one of each conjugate pair.
        P: (R, H, N), complex, low-rank part: the state matrix is diag(w) - P^T conj(P) on the
            completed state.
        B: (H, N), complex, input weights.
        C_tilde: (H, N) or (M, H, N), complex, output weights times I - A^L: see
            `truncated_output`.
        L: number of taps, >= 1.
        backend: of the Cauchy sums; as for `cauchy`.

    Returns:
        k (H, L), or (M, H, L), in the real dtype of w; differentiable in all arguments. Computed
        in double precision.

    Raises:
        ValueError: a shape or dtype does not fit.
        BackendError: the backend asked for by name cannot run.
    """
    _check(dt, w, P, L, C_tilde=C_tilde)
    require_shape(NAME, "B", B, tuple(w.shape))
    require_dtype(NAME, COMPLEX, B=B)
    require_one_device(NAME, w=w, B=B)
    wide = torch.complex128
    step, w_, P_, B_ = dt.double()[:, None], w.to(wide), P.to(wide), B.to(wide)
    C = C_tilde.to(wide) if C_tilde.dim() == 3 else C_tilde.to(wide)[None]
    left, right = torch.cat((C, P_.conj())), torch.cat((B_[None], P_))
    v = (left[:, None] * right[None] * step).flatten(0, 1)
    sums = cauchy(v, w_ * step, L, backend).unflatten(0, (len(left), len(right)))
    sigma, kappa = half_angles(L, w.device)
    # The row j of P is taken off the sums of all pairs that are left.
    for _ in range(len(P)):
        by_row = sums[-1:, :-1] / (1 + 2 * kappa * sums[-1, -1])
        sums = sums[:-1, :-1] - 2 * kappa * sums[:-1, -1:] * by_row
    k = torch.fft.irfft(2 * torch.complex(kappa, sigma) * sums[:, 0], L)
    k = k.to(w.real.dtype)
    return k if C_tilde.dim() == 3 else k[0]


def _real_matrix(w: Tensor, P: Tensor) -> Tensor:
    """Return the state matrix (H, 2N, 2N) that acts on (Re z, Im z)."""
    diagonal = [torch.diag_embed(part) for part in (w.real, w.imag)]
    top = torch.cat((diagonal[0], -diagonal[1]), -1)
    matrix = torch.cat((top, torch.cat((diagonal[1], diagonal[0]), -1)), -2)
    rows = torch.cat((P.real, P.imag), -1)  # conj(P) z = rows . (Re z, Im z) + i ...
    return matrix - 2 * torch.einsum("rhi,rhj->hij", rows, rows)


def truncated_output(dt: Tensor, w: Tensor, P: Tensor, C: Tensor, L: int) -> Tensor:
    """Turn output weights C into C (I - A^L), which `dplr_kernel` takes for a kernel of L taps.

    A is the bilinear discretisation (I - dt/2 M)^{-1} (I + dt/2 M) of the completed system. Costs
    (2N)^3 log2 L per channel.

    Args:
        dt: (H,), real, > 0.
        w: (H, N), complex.
        P: (R, H, N), complex.
        C: (H, N) or (M, H, N), complex.
        L: number of taps, >= 1.

    Returns:
        C_tilde in the shape and dtype of C; differentiable in all arguments. Computed in double
        precision.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    _check(dt, w, P, L, C=C)
    wide = torch.complex128
    half = _real_matrix(w.to(wide), P.to(wide)) * (dt.double()[:, None, None] / 2)
    eye = torch.eye(half.shape[-1], dtype=half.dtype, device=half.device)
    power = torch.linalg.matrix_power(torch.linalg.solve(eye - half, eye + half), L)
    row = torch.cat((C.real, -C.imag), -1).double()[..., None, :]  # Re(C z)
    row = (row - row @ power)[..., 0, :]
    re, im = row.chunk(2, -1)
    return torch.complex(re, -im).to(C.dtype)
