"""The linear scan in plain torch operations: two levels, about 2 sqrt(T) of them.

Time is cut into chunks of about sqrt(T) steps. All chunks run side by side from a zero state,
then the chunk carries are scanned, then each chunk adds what its carry contributes. Needs no
build and runs on any device. Resets are selections, so non-finite values do not pass them.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Forward = tuple[Tensor, Tensor]
Backward = tuple[Tensor, Tensor, Tensor, Tensor]


def _chunks(x: Tensor, length: int, padding: int) -> Tensor:
    """Split (B, T, ...) into (B, T / length, length, ...), padded with zeros at the end."""
    pad = [0, 0] * (x.dim() - 2) + [0, padding]
    return F.pad(x, pad).unflatten(1, (-1, length))


def _scan(
    a: Tensor, b: Tensor, h0: Tensor, reset: Tensor | None, h_init: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Scan (B, T, D) arrays whose `a` may be (D,); everything in one dtype."""
    T = b.shape[1]
    length = max(1, math.isqrt(T))
    padding = -T % length
    varying = a.dim() == 3
    a_c = _chunks(a, length, padding) if varying else a
    b_c = _chunks(b, length, padding)
    cut = None if reset is None else _chunks(reset, length, padding)
    restored = torch.zeros_like(h0[0]) if h_init is None else h_init
    state = torch.zeros_like(b_c[:, :, 0])
    decay = torch.ones_like(state)
    since = None if cut is None else torch.zeros_like(cut[:, :, 0])
    states, decays, passed = [], [], []
    for i in range(length):
        a_t = a_c[:, :, i] if varying else a
        if cut is not None and since is not None:
            flag = cut[:, :, i]
            state = torch.where(flag[..., None], restored, state)
            since = since | flag
            passed.append(since)
        state = a_t * state + b_c[:, :, i]
        decay = decay * a_t
        states.append(state)
        decays.append(decay)
    local, factor = torch.stack(states, 2), torch.stack(decays, 2)
    blocked = torch.stack(passed, 2)[..., None] if passed else torch.tensor(False)
    blocked = blocked.to(local.device).expand(*local.shape[:3], 1)
    carry, carries = h0, []
    for k in range(local.shape[1]):
        carries.append(carry)
        carried = torch.where(blocked[:, k, -1], 0, factor[:, k, -1] * carry)
        carry = local[:, k, -1] + carried
    # A selection, not a product with 0: what is beyond a reset may be infinite.
    carried = torch.where(blocked, 0, factor * torch.stack(carries, 1)[:, :, None])
    h = (local + carried).flatten(1, 2)[:, :T]
    return h, h[:, -1]


def _complex(x: Tensor, pairs: bool, dtype: torch.dtype) -> Tensor:
    x = x.to(dtype)
    return torch.view_as_complex(x.contiguous()) if pairs else x


def _real(x: Tensor, pairs: bool) -> Tensor:
    return torch.view_as_real(x) if pairs else x


def forward(
    a: Tensor, b: Tensor, h0: Tensor, reset: Tensor | None, h_init: Tensor | None, pairs: bool
) -> Forward:
    """Run the scan; see `op.linear_scan_pairs` for the shapes."""
    a_, b_, h0_ = (_complex(x, pairs, h0.dtype) for x in (a, b, h0))
    init = None if h_init is None else _complex(h_init, pairs, h0.dtype)
    h, last = _scan(a_, b_, h0_, reset, init)
    return _real(h, pairs).to(b.dtype).contiguous(), _real(last, pairs).clone()


def backward(
    grad_h: Tensor,
    grad_last: Tensor,
    a: Tensor,
    h: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    h_init: Tensor | None,
    pairs: bool,
    need_a: bool,
) -> Backward:
    """Run the adjoint scan, which is the same scan reversed in time."""
    dtype = h0.dtype
    a_, g, g_last, h_, h0_ = (_complex(x, pairs, dtype) for x in (a, grad_h, grad_last, h, h0))
    init = None if h_init is None else _complex(h_init, pairs, dtype)
    varying = a_.dim() == h_.dim()
    # v_t = g_t + conj(a_{t+1}) v_{t+1}, nothing from t + 1 where it is a reset.
    g = torch.cat([g[:, :-1], (g[:, -1] + g_last)[:, None]], 1)
    a_next = torch.roll(a_, -1, 1).flip(1) if varying else a_
    reset_next = None if reset is None else torch.roll(reset, -1, 1).flip(1)
    v, _ = _scan(a_next.conj_physical(), g.flip(1), torch.zeros_like(h0_), reset_next, None)
    v = v.flip(1)
    back = a_.conj_physical() * v
    grad_h0 = back[:, 0]
    grad_init = torch.empty(0, dtype=dtype, device=h0.device)
    if reset is not None:
        grad_h0 = torch.where(reset[:, 0, None], 0, grad_h0)
        if init is not None:
            grad_init = _real(torch.where(reset[..., None], back, 0).sum((0, 1)), pairs)
    elif init is not None:
        grad_init = _real(torch.zeros_like(init), pairs)
    grad_a = torch.empty(0, dtype=dtype, device=h0.device)
    if need_a:
        prev = torch.cat([h0_[:, None], h_[:, :-1]], 1)
        if reset is not None:
            prev = torch.where(reset[..., None], 0 if init is None else init, prev)
        product = v * prev.conj_physical()
        grad_a = _real(product if varying else product.sum((0, 1)), pairs).contiguous()
    return (
        grad_a.clone(),
        _real(v, pairs).to(h.dtype).contiguous(),
        _real(grad_h0, pairs).clone(),
        grad_init.clone(),
    )
