"""What every agent offers to loops and evaluation."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from statewise.data.step import Batch
from statewise.ssm.protocol import State

Metrics = dict[str, float]


class ActingAgent(Protocol):
    """A policy with a recurrent state."""

    def initial_state(self, batch_size: int) -> State:
        """Return the state for `batch_size` environments that are about to start."""
        ...

    def act(
        self,
        obs: dict[str, Tensor],
        state: State,
        is_first: Tensor,
        reset: Tensor,
        *,
        explore: bool,
    ) -> tuple[Tensor, dict[str, Tensor], State]:
        """Choose actions without gradient and without changing `state`.

        Args:
            obs: (B, ...) per key.
            state: memory before `obs`.
            is_first: (B,) bool.
            reset: (B,) bool.
            explore: sample if True, else take the mode or mean.

        Returns:
            Actions (B,) or (B, A), extras that must be stored with them (among them
            `value` (B,) for agents that have one), and the next state.
        """
        ...


class Agent(ActingAgent, Protocol):
    """A policy with a recurrent state and a way to improve itself."""

    def update(self, batch: Batch) -> Metrics:
        """Take the gradient steps that this batch is for."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to resume: nested dictionaries of tensors, numbers, text."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; raise ValueError on missing or extra keys."""
        ...


class ReplayAgent(ActingAgent, Protocol):
    """A policy with a recurrent state that learns from windows of a replay."""

    device: torch.device
    steps_seen: int
    """Environment steps it has learned from; the loop counts them."""
    updates_done: int

    @property
    def update(self) -> Callable[..., Metrics]:
        """Take the gradient steps of `ReplayBatch`es: windows, and whatever else the loop draws."""
        ...

    def stored_state(self, state: State) -> State:
        """Return what a replay stores of a state, if it stores any."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to resume, as `Agent`."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, as `Agent`."""
        ...
