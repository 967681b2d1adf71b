"""One step of the selective scan in torch operations, and what surrounds it."""

import torch
import torch.nn.functional as F
from torch import Tensor


def steps(dt: Tensor, dt_bias: Tensor | None, softplus: bool) -> Tensor:
    """Return the step sizes d = softplus(dt + bias), or dt + bias."""
    d = dt if dt_bias is None else dt + dt_bias
    return F.softplus(d) if softplus else d


def decays(d: Tensor, A: Tensor, a_override: Tensor | None, signed: bool) -> Tensor:
    """Return exp(d A), or 2 exp(d A) - 1, of shape (..., E, N), where it is not given."""
    a = torch.exp(d[..., None] * A)
    a = 2 * a - 1 if signed else a
    if a_override is None:
        return a
    given = ~a_override.isnan()
    # Selected on both sides: what is not used gives no gradient, finite or not.
    return torch.where(given, a_override.to(a.dtype), torch.where(given, torch.zeros_like(a), a))


def expand_groups(x: Tensor, E: int) -> Tensor:
    """Turn (..., G, N) into (..., E, N): group g serves channels g E / G and following."""
    return x if x.shape[-2] in (1, E) else x.repeat_interleave(E // x.shape[-2], -2)


def advance(
    h: Tensor,
    u: Tensor,
    d: Tensor,
    A: Tensor,
    Bm: Tensor,
    Cm: Tensor,
    a_override: Tensor | None,
    signed: bool,
) -> tuple[Tensor, Tensor]:
    """Return y (B, E), before skip and gate, and the next state (B, E, N).

    Args:
        h: (B, E, N), with resets applied.
        u: (B, E).
        d: (B, E).
        A: (E, N).
        Bm: (B, G, N).
        Cm: (B, G, N).
        a_override: (N,) or None.
        signed: decay 2 exp(d A) - 1.
    """
    E = u.shape[1]
    h = decays(d, A, a_override, signed) * h + (d * u)[..., None] * expand_groups(Bm, E)
    y = (expand_groups(Cm, E) * h).sum(-1)
    return (2 * y.real if y.is_complex() else y), h


def gated(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """Add the skip D u and apply the gate silu(z)."""
    y = y if D is None else y + D * u
    return y if z is None else y * F.silu(z)
