"""The kernels of the convolution mode by their definitions: the oracle of the tests."""

import math

import torch
from torch import Tensor


def vandermonde(w: Tensor, a: Tensor, L: int) -> Tensor:
    """Return k_l = 2 Re sum_n w_n a_n^l (H, L), by L products; w, a (H, N) complex."""
    term, out = w, []
    for _ in range(L):
        out.append(2 * term.sum(-1).real)
        term = term * a
    return torch.stack(out, -1)


def half_angles(L: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return sin and cos of pi k / L for k = 0 ... L // 2, float64."""
    half = torch.arange(L // 2 + 1, dtype=torch.float64, device=device) * (math.pi / L)
    return half.sin(), half.cos()


def cauchy(v: Tensor, s: Tensor, L: int) -> Tensor:
    """Return the sums of `cauchy.cauchy` (R, H, L // 2 + 1), with all terms held at once."""
    sigma, kappa = half_angles(L, v.device)
    v, s = v[..., None], s[..., None]
    one = v / (4j * sigma - 2 * kappa * s)
    other = v.conj() / (4j * sigma - 2 * kappa * s.conj())
    return (one + other).sum(-2)
