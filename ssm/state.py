"""Functions over states: flat dictionaries of tensors with the batch first."""

from collections.abc import Sequence

import torch
from torch import Tensor

from statewise.ssm.protocol import State


def detach(state: State) -> State:
    """Cut the state from the graph that produced it."""
    return {key: value.detach() for key, value in state.items()}


def where(condition: Tensor, a: State, b: State) -> State:
    """Choose rows: `a` where `condition` (B,) bool is True, else `b`.

    A selection, never a product: a non-finite value in the row not taken does not leak.
    """
    return {
        key: torch.where(condition.view(-1, *(1,) * (value.dim() - 1)), value, b[key])
        for key, value in a.items()
    }


def take(state: State, index: Tensor) -> State:
    """Return the rows `index` (K,) of a state."""
    return {key: value[index] for key, value in state.items()}


def concatenate(states: Sequence[State]) -> State:
    """Join states along the batch."""
    return {key: torch.cat([state[key] for state in states]) for key in states[0]}


def flatten_time(state: State) -> State:
    """Merge the leading (B, T) axes of a trace into one axis of B * T rows."""
    return {key: value.flatten(0, 1) for key, value in state.items()}


def select(state: State, prefix: str) -> State:
    """Return the part of a stacked state under `prefix`, with the prefix removed."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def prefixed(state: State, prefix: str) -> State:
    """Put `prefix` before every key."""
    return {prefix + key: value for key, value in state.items()}


def to(state: State, device: torch.device | str) -> State:
    """Move a state to a device."""
    return {key: value.to(device) for key, value in state.items()}


def num_elements(state: State) -> int:
    """Return the numbers held per batch row."""
    return sum(value[0].numel() for value in state.values())
