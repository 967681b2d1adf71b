"""A stack whose memory is cleared before every step: the control of what memory is good for.

It has the parameters, the width and the initial weights of the stack that it holds, and its state
passes through, but an output is a function of the present input alone.
"""

import torch
from torch import Tensor, nn

from statewise.ssm.protocol import Cache, SequenceModel, State
from statewise.ssm.stack import Stack


class Forgetful(nn.Module):
    """A `SequenceModel` that resets a stack at every step.

    Args:
        stack: what it runs.
    """

    def __init__(self, stack: Stack):
        super().__init__()
        self.stack = stack
        self.d_in, self.d_out = stack.d_in, stack.d_out

    def initial_state(self, batch_size: int) -> State:
        """Return the stack's."""
        return self.stack.initial_state(batch_size)

    def forward(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run T steps, each from the initial state; see `SequenceModel`."""
        y, last = self.stack(x, state, _always(x))
        return y, last

    def trace(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None, every: int = 1
    ) -> tuple[Tensor, State, State]:
        """Run T steps and return states on the way; see `SequenceModel`."""
        return self.stack.trace(x, state, _always(x), every)

    def prepare_step(self) -> Cache:
        """Return the stack's."""
        return self.stack.prepare_step()

    def step(
        self,
        x: Tensor,
        state: State,
        reset: Tensor | None = None,
        *,
        cache: Cache | None = None,
    ) -> tuple[Tensor, State]:
        """Run one step from the initial state; see `SequenceModel`."""
        return self.stack.step(x, state, _always(x), cache=cache)


def _always(x: Tensor) -> Tensor:
    """Return flags (B, T) or (B,) that are all True for inputs with one more axis."""
    return torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)


def conforms(model: Forgetful) -> SequenceModel:
    """Let the type checker compare it with the protocol."""
    return model
