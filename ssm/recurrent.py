"""Resets for recurrent networks that torch runs in one fused call: GRU and LSTM.

The fused call knows no resets, so a window is cut where they are: every stretch between resets
becomes a sequence of its own, all of them run in one packed call, and the outputs go back to
their places. Without resets inside the window the call is made as it is.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from statewise.ssm.precision import full_precision

Hidden = tuple[Tensor, ...]  # (h,) or (h, c), each (B, D)


def _call(rnn: nn.RNNBase, x: object, hidden: Hidden) -> tuple[object, Hidden]:
    """Run torch's layer on states without its leading layer axis."""
    stacked = tuple(part[None].contiguous() for part in hidden)
    with full_precision(hidden[0].device):
        y, last = rnn(x, stacked[0] if len(stacked) == 1 else stacked)
    parts = (last,) if isinstance(last, Tensor) else last
    return y, tuple(part[0] for part in parts)


def run(rnn: nn.RNNBase, x: Tensor, hidden: Hidden, reset: Tensor | None) -> tuple[Tensor, Hidden]:
    """Run a batch-first one-layer network with resets to zero.

    Args:
        rnn: torch.nn.GRU or torch.nn.LSTM with `batch_first`.
        x: (B, T, D).
        hidden: state before x[:, 0].
        reset: (B, T) bool or None. Whether any is set is decided on the host.

    Returns:
        y (B, T, D) and the state after x[:, T - 1].
    """
    x = x.to(hidden[0].dtype)
    if x.shape[1] == 0 or x.shape[0] == 0:
        return x.clone(), tuple(part.clone() for part in hidden)
    if reset is not None:
        start = reset[:, 0, None]
        hidden = tuple(torch.where(start, torch.zeros_like(part), part) for part in hidden)
        if bool(reset[:, 1:].any()):
            return _run_stretches(rnn, x, hidden, reset)
    y, last = _call(rnn, x, hidden)
    assert isinstance(y, Tensor)
    return y, last


def _run_stretches(
    rnn: nn.RNNBase, x: Tensor, hidden: Hidden, reset: Tensor
) -> tuple[Tensor, Hidden]:
    B, T = reset.shape
    begins = reset.clone()
    begins[:, 0] = True
    row, start = begins.nonzero(as_tuple=True)
    stretch = (begins.flatten().cumsum(0) - 1).view(B, T)  # which stretch each step is in
    offset = torch.arange(T, device=x.device) - start[stretch]
    length = torch.bincount(stretch.flatten())
    padded = x.new_zeros((len(row), int(length.max()), x.shape[2]))
    padded = padded.index_put((stretch, offset), x)
    first = (start == 0)[:, None]
    begin = tuple(torch.where(first, part[row], torch.zeros_like(part[row])) for part in hidden)
    packed = pack_padded_sequence(padded, length.cpu(), batch_first=True, enforce_sorted=False)
    out, last = _call(rnn, packed, begin)
    y, _ = pad_packed_sequence(out, batch_first=True)  # type: ignore[arg-type]
    ends = stretch[:, -1]
    return y[stretch, offset], tuple(part[ends] for part in last)
