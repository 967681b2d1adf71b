"""States on the way, for layers whose states are too large to be kept at every step."""

import torch
from torch import Tensor

from statewise.ssm.protocol import SequenceModel, State


def trace_by_windows(
    layer: SequenceModel,
    x: Tensor,
    state: State | None,
    reset: Tensor | None,
    every: int,
) -> tuple[Tensor, State, State]:
    """Run windows of `every` steps one after the other and keep the state after each.

    Exact, and never holds more than T // every states.

    Args:
        layer: what is run.
        x: (B, T, d_in).
        state: before x[:, 0]; None means the initial state.
        reset: (B, T) bool or None.
        every: >= 1.

    Returns:
        y (B, T, d_out), the final state, and states with tensors (B, T // every, ...).
    """
    state = layer.initial_state(x.shape[0]) if state is None else state
    outputs, kept = [], []
    for begin in range(0, x.shape[1], every):
        at = slice(begin, begin + every)
        y, state = layer(x[:, at], state, None if reset is None else reset[:, at])
        outputs.append(y)
        if begin + every <= x.shape[1]:
            kept.append(state)
    traced = {
        key: torch.stack([entry[key] for entry in kept], 1)
        if kept
        else value.new_empty((len(value), 0, *value.shape[1:]))
        for key, value in state.items()
    }
    return torch.cat(outputs, 1) if outputs else x.clone(), state, traced
