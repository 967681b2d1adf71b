"""The stored step and the batch: the one layout of time that everything above shares."""

from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Tree = TypeVar("Tree")


def moved(tree: Tree, device: torch.device) -> Tree:
    """Return a batch on a device: named tuples and dicts of tensors; other leaves as they are."""
    parts: Any = tree
    if isinstance(parts, Tensor):
        return parts.to(device)  # type: ignore[return-value]
    if isinstance(parts, dict):
        return {key: moved(x, device) for key, x in parts.items()}  # type: ignore[return-value]
    if hasattr(parts, "_fields"):
        return type(parts)(*(moved(x, device) for x in parts))
    return tree


class Step(NamedTuple):
    """Steps of experience; the leading axes are (B, T) in a window and (B,) in a loop.

    Row t holds the observation, the action taken at it, and what that action caused.
    """

    obs: dict[str, Tensor]
    """(B, T, ...) per key of the flat observation space."""
    is_first: Tensor
    """(B, T) bool: obs[t] is the first observation of an episode."""
    reset: Tensor
    """(B, T) bool: the memory is cleared before obs[t] is read."""
    action: Tensor
    """(B, T, ...) taken at obs[t]."""
    reward: Tensor
    """(B, T) float, caused by action[t]; 0 where not valid."""
    terminated: Tensor
    """(B, T) bool: action[t] ended the episode by a rule of the task."""
    truncated: Tensor
    """(B, T) bool: the episode was cut off after action[t], for example by a time limit."""
    valid: Tensor
    """(B, T) bool: False on padding and on the row of a final observation, whose action
    the environment ignored."""


class Batch(NamedTuple):
    """A window of experience with the memory it began with."""

    step: Step
    """Leading axes (B, T)."""
    state: dict[str, Tensor]
    """Memory before the first step, (B, ...)."""
    extras: dict[str, Tensor]
    """What the agent's `act` returned beside the actions, (B, T, ...)."""
    value_tp1: Tensor
    """(B, T): V of the observation that followed action t, with the memory it had. Where an
    episode ended this is its final observation, not the reset one."""
