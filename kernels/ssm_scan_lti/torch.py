"""The time-invariant scan in plain torch operations: chunk after chunk, each by the linear scan.

Holds (B, 64, H, N) arrays for one chunk at a time. Runs on any device.
"""

import torch
from torch import Tensor

from statewise.kernels.linear_scan import torch as linear

CHUNK = 64  # steps between kept states; ssm_scan_lti.cpp and triton.py know it, too

Forward = tuple[Tensor, Tensor, Tensor]
Backward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _states(
    x: Tensor, abar: Tensor, bbar: Tensor, h: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return all states (B, Q, H, N) of a chunk x (B, Q, H), and the last one; all complex."""
    driven = (x[..., None] * bbar).flatten(2)
    a, b, h0 = (torch.view_as_real(z) for z in (abar.flatten(), driven, h.flatten(1)))
    states, last = linear.forward(a, b, h0, reset, None, True)
    return (
        torch.view_as_complex(states).view(*x.shape, -1),
        torch.view_as_complex(last).view_as(h),
    )


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.contiguous())


def forward(
    x: Tensor,
    abar: Tensor,
    bbar: Tensor,
    c: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    keep: bool,
) -> Forward:
    """Run the scan; keeps the states before steps 64, 128, ... where `keep`."""
    abar, bbar, c, h = (_complex(z) for z in (abar, bbar, c, h0))
    wide = x.to(h0.dtype)
    kept, outputs = [], []
    for begin in range(0, x.shape[1], CHUNK):
        if begin:
            kept.append(h)
        at = slice(begin, begin + CHUNK)
        states, h = _states(wide[:, at], abar, bbar, h, None if reset is None else reset[:, at])
        outputs.append(2 * (c * states).sum(-1).real)
    y = torch.cat(outputs, 1).to(x.dtype).contiguous()
    if not (keep and kept):
        return y, torch.view_as_real(h).clone(), h0.new_empty((len(x), 0, *h0.shape[1:]))
    return y, torch.view_as_real(h).clone(), torch.view_as_real(torch.stack(kept, 1))


def backward(
    grad: Tensor,
    grad_last: Tensor,
    x: Tensor,
    abar: Tensor,
    bbar: Tensor,
    c: Tensor,
    h0: Tensor,
    reset: Tensor | None,
    kept: Tensor,
    need_x: bool,
    need_parameters: bool,
) -> Backward:
    """Run the adjoint, chunk by chunk from the end."""
    dtype = h0.dtype
    abar, bbar, c, start, v = (_complex(z) for z in (abar, bbar, c, h0, grad_last))
    wide, g = x.to(dtype), grad.to(dtype)
    starts = [start, *(_complex(z) for z in kept.unbind(1))]
    da, db, dc = (torch.zeros_like(abar) for _ in range(3))
    dx = []
    for index in reversed(range((x.shape[1] + CHUNK - 1) // CHUNK)):
        at = slice(index * CHUNK, (index + 1) * CHUNK)
        cut = None if reset is None else reset[:, at]
        grad_h = 2 * g[:, at, :, None] * c.conj_physical()
        states, before = grad_h, v  # stand-ins where no state is asked for
        if need_parameters:
            before = starts[index]
            states, _ = _states(wide[:, at], abar, bbar, before, cut)
            dc = dc + (2 * g[:, at, :, None] * states.conj_physical()).sum((0, 1))
        gh, gl, a, h, first = (
            torch.view_as_real(z)
            for z in (
                grad_h.flatten(2),
                v.flatten(1),
                abar.flatten(),
                states.flatten(2),
                before.flatten(1),
            )
        )
        grad_a, driven, v_, _ = linear.backward(
            gh, gl, a, h, first, cut, None, True, need_parameters
        )
        v = torch.view_as_complex(v_).view_as(v)
        driven = torch.view_as_complex(driven).view_as(grad_h)
        if need_parameters:
            da = da + torch.view_as_complex(grad_a).view_as(da)
            db = db + (driven * wide[:, at, :, None]).sum((0, 1))
        if need_x:
            dx.append((driven * bbar.conj_physical()).sum(-1).real)

    def given(z: Tensor) -> Tensor:
        return torch.view_as_real(z).clone() if need_parameters else h0.new_empty(0)

    return (
        torch.cat(dx[::-1], 1).to(x.dtype).contiguous() if need_x else x.new_empty(0),
        given(da),
        given(db),
        given(dc),
        torch.view_as_real(v).clone(),
    )
