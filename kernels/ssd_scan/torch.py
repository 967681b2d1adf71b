"""The scan of Mamba-2 in torch operations: products of matrices over chunks of time.

    within a chunk, with c the running sum of dt A and "seen" i >= j without a reset between:
    y_i = exp(c_i) C_i h + sum_j seen_ij exp(c_i - c_j) (C_i . B_j) dt_j x_j

Resets are masks; they never enter the sums. autograd differentiates these operations: on this
backend there is no adjoint to write. A masked product would still turn NaN into NaN (0 * NaN), so
steps that are not finite are replaced by zeros and the results that they reach by NaN.
"""

import torch
from torch import Tensor

from statewise.kernels.segments import broken, poisoned, starts

Forward = tuple[Tensor, Tensor]
Backward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _chunk(
    h: Tensor,
    u: Tensor,
    log: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    segment: Tensor,
) -> tuple[Tensor, Tensor]:
    """Advance h (B, H, P, N) over Q steps.

    Args:
        h: state before the chunk, finite.
        u: (B, H, Q, P), dt x.
        log: (B, H, Q), log-decays dt A.
        Bm: (B, H, Q, N).
        Cm: (B, H, Q, N).
        segment: (B, Q), resets of the chunk so far.

    Returns:
        y (B, H, Q, P) and the next state.
    """
    c = log.cumsum(-1)
    Q = log.shape[-1]
    seen = segment[:, :, None] == segment[:, None, :]
    seen = (seen & torch.ones(Q, Q, dtype=torch.bool, device=h.device).tril())[:, None]
    # Masked before exp: a masked infinity would come back as 0 * inf in the gradient.
    pairs = (c[..., :, None] - c[..., None, :]).masked_fill(~seen, -torch.inf)
    y = (pairs.exp() * (Cm @ Bm.mT)) @ u
    begun = (segment > 0)[:, None]  # the state before the chunk is forgotten
    reach = c.masked_fill(begun, -torch.inf).exp()[..., None]
    y = y + reach * (Cm @ h.mT)
    last = (segment == segment[:, -1:])[:, None]
    to_end = (c[..., -1:] - c).masked_fill(~last, -torch.inf).exp()[..., None]
    return y, reach[:, :, -1:] * h + (to_end * u).mT @ Bm


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    D: Tensor | None,
    h0: Tensor,
    reset: Tensor | None,
    chunk: int,
) -> Forward:
    """Run the scan; see `op.ssd_scan` for the shapes; D is (H, P)."""
    dtype, H = h0.dtype, x.shape[2]
    wide = x.to(dtype)
    heads = (m.to(dtype).repeat_interleave(H // m.shape[2], 2) for m in (Bm, Cm))
    Bm, Cm = heads
    u = dt[..., None] * wide
    bad = broken(u) | broken(Bm) | broken((dt * A)[..., None])
    unread = broken(Cm)
    before = broken(h0.flatten(2))
    reached = poisoned(bad, before, starts(reset, x))
    u, Bm = (torch.where(bad[..., None], 0, m).transpose(1, 2) for m in (u, Bm))
    log = torch.where(bad, 0, dt * A).transpose(1, 2)
    Cm = torch.where(unread[..., None], 0, Cm).transpose(1, 2)
    h = torch.where(before[..., None, None], 0, h0)
    outputs = []
    for begin in range(0, x.shape[1], chunk):
        at = slice(begin, begin + chunk)
        flags = x.new_zeros(x.shape[:2], dtype=torch.bool) if reset is None else reset
        segment = flags[:, at].cumsum(1)
        y, h = _chunk(h, u[:, :, at], log[:, :, at], Bm[:, :, at], Cm[:, :, at], segment)
        outputs.append(y)
    y = torch.cat(outputs, 2).transpose(1, 2)
    y = y if D is None else torch.addcmul(y, D, wide)
    y = torch.where((reached | unread)[..., None], torch.nan, y)
    h = torch.where(reached[:, -1, :, None, None], torch.nan, h)
    return y.to(x.dtype).contiguous(), h
