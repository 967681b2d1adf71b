"""The gated delta rule by chunks, in plain torch operations (Yang et al. 2024, sections 3 and 4).

Within a chunk of Q steps let G_ij = exp(g_{j+1} + ... + g_i), 0 where a reset lies in (j, i], and
G_i = exp(g_1 + ... + g_i), 0 once a reset has passed. What step i writes is k_i nu_i^T, and with
the state S before the chunk

    nu_i + beta_i sum_{j<i} G_ij <k_i, k_j> nu_j = beta_i v_i - beta_i G_i S^T k_i

a triangular system: nu = u - w S. The state after the chunk is then linear in S,

    S' = G_Q S + sum_j G_Qj k_j nu_j^T = M S + N

and this is all that runs from chunk to chunk; the outputs come last, for all chunks at once. Decays
are sums of logarithms, masked before exp; nothing is divided by a decay.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from statewise.kernels.segments import broken, poisoned, starts


def _chunks(x: Tensor, size: int, padding: int) -> Tensor:
    """Turn (B, T, H, ...) into (B, T / size, H, size, ...), zeros after the end."""
    x = F.pad(x, (*(0, 0) * (x.dim() - 2), 0, padding))
    return x.unflatten(1, (-1, size)).transpose(2, 3)


def _decays(g: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return the decays between the steps of a chunk, and from before it to each step.

    Args:
        g: (B, C, H, Q), logarithms of the decays.
        start: (B, C, Q), last reset at or before each step of the chunk, -1 where there is none.

    Returns:
        (B, C, H, Q, Q), 0 above the diagonal and across resets, and (B, C, H, Q).
    """
    size = g.shape[-1]
    steps = torch.arange(size, device=g.device)
    # Summed under the mask: differences of one running sum would lose the small ones.
    sums = torch.where(steps[:, None] > steps, g[..., None], 0.0).cumsum(-2)
    linked = (steps[:, None] >= steps) & (steps >= start[..., None])
    between = torch.where(linked[:, :, None], sums, -torch.inf).exp()
    entering = torch.where((start < 0)[:, :, None], g.cumsum(-1), -torch.inf).exp()
    return between, entering


def _carry(M: Tensor, N: Tensor, h0: Tensor, cut: Tensor) -> tuple[Tensor, Tensor]:
    """Return the states before each chunk (B, C, H, K, V), and after the last.

    Args:
        M: (B, C, H, K, K).
        N: (B, C, H, K, V).
        h0: (B, H, K, V).
        cut: (B, C) bool, chunks with a reset, which keep nothing.
    """
    h, states = h0, []
    for m, n, c in zip(M.unbind(1), N.unbind(1), cut.unbind(1), strict=True):
        states.append(h)
        h = n + torch.where(c[:, None, None, None], 0.0, m @ h)
    return torch.stack(states, 1), h


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Run the rule over finite inputs."""
    T, width = q.shape[1], v.shape[-1]
    size = min(chunk, T)
    padding = -T % size
    q, k, v, g, beta = (_chunks(x, size, padding) for x in (q, k, v, g, beta))
    cuts = torch.zeros((*q.shape[:2], size), dtype=torch.bool, device=q.device)
    if reset is not None:
        cuts = F.pad(reset, (0, padding)).unflatten(1, (-1, size))
    start = starts(cuts.flatten(0, 1), cuts.flatten(0, 1)).view(cuts.shape)
    between, entering = _decays(g, start)
    kb = k * beta[..., None]
    system = torch.tril(kb @ k.transpose(-1, -2) * between, -1)
    right = torch.cat((v * beta[..., None], kb * entering[..., None]), -1)
    # The diagonal counts as ones.
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    u, w = solved.split((width, k.shape[-1]), -1)
    tail = (k * between[..., -1, :, None]).transpose(-1, -2)
    keep = torch.diag_embed(entering[..., -1:].expand(*entering.shape[:3], k.shape[-1]))
    states, last = _carry(keep - tail @ w, tail @ u, h0, cuts.any(-1))
    written = u - w @ states
    o = (q @ k.transpose(-1, -2) * between) @ written
    o = o + (q * entering[..., None]) @ states
    return o.transpose(2, 3).flatten(1, 2)[:, :T], last


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor]:
    """Run T >= 1 steps by chunks; shapes as in `reference.forward`.

    A broken step (NaN or infinity in its inputs) makes the results of its head NaN up to the next
    reset, as the recurrence does, and touches nothing else.
    """
    start = starts(reset, q)
    bad = ~(g < torch.inf) | broken(beta[..., None]) | broken(q) | broken(k) | broken(v)
    before = broken(h0.flatten(2))
    q, k, v = (torch.where(bad[..., None], 0.0, x) for x in (q, k, v))
    g, beta = (torch.where(bad, 0.0, x) for x in (g, beta))
    h0 = torch.where(before[..., None, None], 0.0, h0)
    o, last = _run(q, k, v, g, beta, h0, reset, chunk)
    reached = poisoned(bad, before, start)
    o = torch.where(reached[..., None], torch.nan, o)
    return o, torch.where(reached[:, -1, :, None, None], torch.nan, last)
