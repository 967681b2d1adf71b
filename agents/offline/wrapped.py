"""A sequence layer between two maps that act on each step alone; itself a `SequenceModel`.

    y_t = after(x_t, v_t),   v = layer(before(x))

A residual block is `Wrapped(norm, layer, add)`; a stack with a last norm is
`Wrapped(nn.Identity(), stack, last)`. State and cache are those of the layer.
"""

from torch import Tensor, nn

from statewise.ssm.protocol import Cache, SequenceModel, State


class Wrapped(nn.Module):
    """See the equation above.

    Args:
        before: maps (..., d_in) to the inputs of the layer.
        layer: an `nn.Module`.
        after: a module called with x and v, both (..., D).
    """

    def __init__(self, before: nn.Module, layer: SequenceModel, after: nn.Module) -> None:
        super().__init__()
        assert isinstance(layer, nn.Module), type(layer)
        self.d_in = self.d_out = layer.d_out
        self.before = before
        self.layer: SequenceModel = layer
        self.after = after

    def initial_state(self, batch_size: int) -> State:
        """Return the layer's."""
        return self.layer.initial_state(batch_size)

    def forward(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run T steps at once; see `SequenceModel`."""
        v, last = self.layer(self.before(x), state, reset)
        return self.after(x, v), last

    def trace(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None, every: int = 1
    ) -> tuple[Tensor, State, State]:
        """Run T steps and return states on the way; see `SequenceModel`."""
        v, last, traced = self.layer.trace(self.before(x), state, reset, every)
        return self.after(x, v), last, traced

    def prepare_step(self) -> Cache:
        """Return the layer's."""
        return self.layer.prepare_step()

    def step(
        self,
        x: Tensor,
        state: State,
        reset: Tensor | None = None,
        *,
        cache: Cache | None = None,
    ) -> tuple[Tensor, State]:
        """Run one step; see `SequenceModel`."""
        v, last = self.layer.step(self.before(x), state, reset, cache=cache)
        return self.after(x, v), last


def conforms(wrapped: Wrapped) -> SequenceModel:
    """Let the type checker compare the wrapper with the protocol."""
    return wrapped
