"""The selective scan in plain torch operations: chunk after chunk, each by the linear scan.

Holds (B, 32, E, N) arrays for one chunk at a time. Runs on any device.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from statewise.kernels.linear_scan import torch as linear
from statewise.kernels.selective_scan.step import decays, expand_groups, steps

CHUNK = 32  # steps between kept states; selective_scan.cpp and triton.py know it, too
SOFTPLUS_THRESHOLD = 20.0

Forward = tuple[Tensor, Tensor, Tensor]
Backward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


class Operands(NamedTuple):
    """What forward and backward read; complex arrays have a trailing axis of 2."""

    u: Tensor  # (B, T, E)
    dt: Tensor  # (B, T, E), accumulation dtype
    A: Tensor  # (E, N)
    Bm: Tensor  # (B, T, G, N), dtype of u
    Cm: Tensor  # (B, T, G, N), dtype of u
    D: Tensor | None  # (E,)
    z: Tensor | None  # (B, T, E), dtype of u
    dt_bias: Tensor | None  # (E,)
    h0: Tensor  # (B, E, N)
    reset: Tensor | None  # (B, T)
    a_override: Tensor | None  # (N,)


def _numbers(x: Tensor, pairs: bool, dtype: torch.dtype) -> Tensor:
    x = x.to(dtype)
    return torch.view_as_complex(x.contiguous()) if pairs else x


def _plain(x: Tensor, pairs: bool) -> Tensor:
    return torch.view_as_real(x) if pairs else x


def _ungroup(x: Tensor, G: int) -> Tensor:
    """Sum (B, Q, E, N) over the channels of each of G groups: (B, Q, G, N)."""
    return x.unflatten(2, (G, -1)).sum(3)


class _Chunk(NamedTuple):
    """One chunk as a linear scan over E * N states."""

    u: Tensor
    d: Tensor
    a: Tensor
    Bm: Tensor
    Cm: Tensor
    h: Tensor
    reset: Tensor | None


def _run_chunk(o: Operands, d: Tensor, h: Tensor, at: slice, signed: bool, pairs: bool) -> _Chunk:
    dtype, E = d.dtype, o.u.shape[2]
    u = o.u[:, at].to(dtype)
    A, Bm, Cm = (_numbers(x, pairs, dtype) for x in (o.A, o.Bm[:, at], o.Cm[:, at]))
    a = decays(d[:, at], A, o.a_override, signed)
    Bm, Cm = (expand_groups(x, E).expand_as(a) for x in (Bm, Cm))
    b = (d[:, at] * u)[..., None] * Bm
    reset = None if o.reset is None else o.reset[:, at]
    a_, b_ = _plain(a.flatten(2), pairs), _plain(b.flatten(2), pairs)
    states, _ = linear.forward(a_, b_, _plain(h.flatten(1), pairs), reset, None, pairs)
    all_h = _numbers(states, pairs, dtype).view(a.shape)
    return _Chunk(u, d[:, at], a, Bm, Cm, all_h, reset)


def forward(o: Operands, softplus: bool, signed: bool, pairs: bool, keep: bool) -> Forward:
    """Run the scan; keeps states on the way where `keep`."""
    dtype = o.h0.dtype
    d = steps(o.dt, o.dt_bias, softplus)
    h = _numbers(o.h0, pairs, dtype)
    kept, outputs = [], []
    for begin in range(0, o.u.shape[1], CHUNK):
        kept.append(h)
        part = _run_chunk(o, d, h, slice(begin, begin + CHUNK), signed, pairs)
        y = (part.Cm * part.h).sum(-1)
        outputs.append(2 * y.real if pairs else y)
        h = part.h[:, -1]
    y = torch.cat(outputs, 1)
    y = y if o.D is None else y + o.D * o.u.to(dtype)
    y = y if o.z is None else y * F.silu(o.z.to(dtype))
    states = _plain(torch.stack(kept, 1), pairs).flatten() if keep else o.h0.new_zeros(0)
    return y.to(o.u.dtype).contiguous(), _plain(h, pairs).clone(), states.clone()


def backward(
    grad: Tensor,
    grad_last: Tensor,
    o: Operands,
    kept: Tensor,
    softplus: bool,
    signed: bool,
    pairs: bool,
) -> Backward:
    """Run the adjoint, chunk by chunk from the end."""
    dtype, B = o.h0.dtype, o.u.shape[0]
    G = o.Bm.shape[2]
    d = steps(o.dt, o.dt_bias, softplus)
    gy = grad.to(dtype)
    states = _numbers(kept.view(B, -1, *o.h0.shape[1:]), pairs, dtype)
    v = _numbers(grad_last, pairs, dtype)
    A = _numbers(o.A, pairs, dtype)
    dA = torch.zeros_like(A)
    gate, slope = _gate(o, dtype)
    du, dd, dB, dC, dz = [], [], [], [], []
    for index in reversed(range(states.shape[1])):
        at = slice(index * CHUNK, (index + 1) * CHUNK)
        c = _run_chunk(o, d, states[:, index], at, signed, pairs)
        if gate is not None and slope is not None:
            y = (c.Cm * c.h).sum(-1)
            y = 2 * y.real if pairs else y
            y = y if o.D is None else y + o.D * c.u
            dz.append(gy[:, at] * y * slope[:, at])
        g = gy[:, at] if gate is None else gy[:, at] * gate[:, at]
        scaled = (2 * g if pairs else g)[..., None]
        dC.append(_ungroup(scaled * c.h.conj_physical(), G))
        out = linear.backward(
            _plain((scaled * c.Cm.conj_physical()).flatten(2), pairs),
            _plain(v.flatten(1), pairs),
            _plain(c.a.flatten(2), pairs),
            _plain(c.h.flatten(2), pairs),
            _plain(states[:, index].flatten(1), pairs),
            c.reset,
            None,
            pairs,
            True,
        )
        da, db = (_numbers(x, pairs, dtype).view(c.a.shape) for x in out[:2])
        v = _numbers(out[2], pairs, dtype).view_as(v)
        dlog = da * ((c.a + 1) if signed else c.a.conj_physical())
        if o.a_override is not None:
            dlog = torch.where(o.a_override.isnan(), dlog, 0)
        dA = dA + (dlog * c.d[..., None]).sum((0, 1))
        driven = (db * c.Bm.conj_physical()).sum(-1).real if pairs else (db * c.Bm).sum(-1)
        through = (dlog * A.conj_physical()).sum(-1).real if pairs else (dlog * A).sum(-1)
        dB.append(_ungroup(db * (c.d * c.u)[..., None], G))
        dd.append(through + driven * c.u)
        du.append(driven * c.d + (0 if o.D is None else o.D * g))
    ddt = torch.cat(dd[::-1], 1)
    if softplus:
        raw = o.dt if o.dt_bias is None else o.dt + o.dt_bias
        ddt = torch.where(raw > SOFTPLUS_THRESHOLD, ddt, ddt * raw.sigmoid())
    g_all = gy if gate is None else gy * gate
    return (
        torch.cat(du[::-1], 1).to(o.u.dtype).contiguous(),
        ddt.contiguous(),
        _plain(dA, pairs).clone(),
        _plain(torch.cat(dB[::-1], 1), pairs).contiguous(),
        _plain(torch.cat(dC[::-1], 1), pairs).contiguous(),
        (g_all * o.u.to(dtype)).sum((0, 1)),
        torch.cat(dz[::-1], 1).to(o.u.dtype) if dz else o.u.new_zeros(0),
        ddt.sum((0, 1)),
        _plain(v, pairs).clone(),
    )


def _gate(o: Operands, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Return silu(z) and its derivative."""
    if o.z is None:
        return None, None
    z = o.z.to(dtype)
    s = z.sigmoid()
    return z * s, s * (1 + z * (1 - s))
