"""The kernels of the convolution mode in plain torch operations, on any device with doubles."""

from collections.abc import Iterator

import torch
from torch import Tensor

from statewise.kernels.convolution.reference import half_angles

BLOCK = 64  # powers between two anchors
WORK = 1 << 19  # terms of the Cauchy sums held at once


def _powers(a: Tensor, count: int) -> Tensor:
    """Return a^0 ... a^(count - 1), (H, N, count), by doubling."""
    table, square = torch.ones_like(a)[..., None], a[..., None]
    while table.shape[-1] < count:
        table = torch.cat((table, table * square), -1)
        square = square * square
    return table[..., :count]


def _two_levels(a: Tensor, L: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a in complex128, its powers below Q, and those of a^Q that cover L steps.

    Double precision because the error of a power grows with its exponent.
    """
    wide = torch.view_as_complex(a.double().contiguous())
    Q = min(BLOCK, L)
    fine = _powers(wide, Q)
    return wide, fine, _powers(fine[..., -1] * wide, (L + Q - 1) // Q)


def _rows(z: Tensor, dtype: torch.dtype, sign: int = 1) -> Tensor:
    """Turn complex (H, N, M) into real (H, M, 2 N): real parts, then signed imaginary ones."""
    z = z.transpose(1, 2)
    return torch.cat((z.real, sign * z.imag), -1).to(dtype)


def vandermonde(w: Tensor, a: Tensor, L: int) -> Tensor:
    """Return the kernel (H, L) of w, a (H, N, 2): one matrix product per channel.

    k_{jQ + i} = 2 Re sum_n (w a^{jQ})_n (a^i)_n.
    """
    _, fine, coarse = _two_levels(a, L)
    anchors = torch.view_as_complex(w.double().contiguous())[..., None] * coarse
    k = _rows(2 * anchors, w.dtype) @ _rows(fine, w.dtype, -1).transpose(1, 2)
    return k.flatten(1)[:, :L].contiguous()


def vandermonde_backward(grad: Tensor, w: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of w and a, through the sums over each block of Q powers."""
    L = grad.shape[1]
    wide, fine, coarse = _two_levels(a, L)
    Q, count = fine.shape[-1], coarse.shape[-1]
    g = torch.nn.functional.pad(grad, (0, count * Q - L)).unflatten(1, (count, Q))
    # With l = jQ + i: sum_l g_l a^l and sum_l l g_l a^{l-1}, all i of a block first.
    index = torch.arange(Q, dtype=g.dtype, device=g.device)
    slopes = torch.cat((torch.zeros_like(fine[..., :1]), fine[..., :-1]), -1) * index
    table = torch.cat((_rows(fine, g.dtype), _rows(slopes, g.dtype)), -1)
    sums = (g @ table).double().unflatten(2, (4, -1)).transpose(1, 3)  # (H, N, 4, count)
    values = torch.complex(sums[:, :, 0], sums[:, :, 1])
    within = torch.complex(sums[:, :, 2], sums[:, :, 3])
    before = torch.cat((torch.zeros_like(wide)[..., None], coarse[..., :-1]), -1)
    before = before * fine[..., -1:] * torch.arange(0, count * Q, Q, device=g.device)
    weights = torch.view_as_complex(w.double().contiguous())
    dw = 2 * (values * coarse).sum(-1)
    da = 2 * weights * (within * coarse + values * before).sum(-1)
    return _conjugate(dw).to(w.dtype), _conjugate(da).to(a.dtype)


def _conjugate(z: Tensor) -> Tensor:
    return torch.stack((z.real, -z.imag), -1)


def _numerators(v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Return Re v and Re(v conj(s)), (H, R, N), complex with zero imaginary parts."""
    v = v.transpose(0, 1)
    both = v[..., 0], (v * s[:, None]).sum(-1)
    return both[0].to(torch.complex128), both[1].to(torch.complex128)


def _blocks(s: Tensor, L: int) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Yield blocks of nodes: where, sigma, kappa, and 1 / denominator (H, N, block).

    The two terms of a pair share the denominator kappa^2 |s|^2 - 4 sigma^2 - 4i sigma kappa Re s.
    """
    sigma, kappa = half_angles(L, s.device)
    size = max(1, WORK // (s.shape[0] * s.shape[1]))
    square, re = s.square().sum(-1)[..., None], s[..., :1]
    for begin in range(0, len(sigma), size):
        at = slice(begin, begin + size)
        x, y = sigma[at], kappa[at]
        real = y.square() * square - 4 * x.square()
        yield at, x, y, 1 / torch.complex(real, -4 * x * y * re)


def cauchy(v: Tensor, s: Tensor, L: int) -> Tensor:
    """Return the sums (R, H, L // 2 + 1, 2) of v (R, H, N, 2) over s (H, N, 2)."""
    p, q = _numerators(v, s)
    sums = [2j * sigma * (p @ e) - kappa * (q @ e) for _, sigma, kappa, e in _blocks(s, L)]
    return torch.view_as_real(torch.cat(sums, -1).transpose(0, 1).contiguous())


def cauchy_backward(grad: Tensor, v: Tensor, s: Tensor, L: int) -> tuple[Tensor, Tensor]:
    """Return the gradients of v and s, through Re v, Re(v conj(s)), |s|^2 and Re s."""
    p, q = _numerators(v, s)
    g = torch.view_as_complex(grad.contiguous()).transpose(0, 1).conj_physical()
    dp, dq = torch.zeros_like(p.real), torch.zeros_like(p.real)
    d_square, d_re = torch.zeros_like(s[..., 0]), torch.zeros_like(s[..., 0])
    for at, sigma, kappa, e in _blocks(s, L):
        part, back = g[..., at], e.transpose(1, 2)
        dp += ((2j * sigma * part) @ back).real
        dq -= ((kappa * part) @ back).real
        through = 2j * sigma * (p.transpose(1, 2) @ part) - kappa * (q.transpose(1, 2) @ part)
        through = through * e.square()
        d_square -= (through.real * kappa.square()).sum(-1)
        d_re -= (through.imag * 4 * sigma * kappa).sum(-1)
    v = v.transpose(0, 1)
    ds = 2 * d_square[..., None] * s + (dq[..., None] * v).sum(1)
    ds[..., 0] += d_re
    dv = dq[..., None] * s[:, None]
    dv[..., 0] += dp
    return dv.transpose(0, 1).contiguous(), ds
