"""Blocks in depth. State keys are prefixed with the number of the block: "0.h", "1.h"."""

from collections.abc import Sequence

from torch import Tensor, nn

from statewise.ssm import one_call
from statewise.ssm.block import Block
from statewise.ssm.protocol import Cache, SequenceModel, State
from statewise.ssm.state import prefixed, select


class Stack(nn.Module):
    """A sequence of blocks of equal width; a `SequenceModel`."""

    def __init__(self, blocks: Sequence[Block]):
        super().__init__()
        if not blocks:
            raise ValueError("a stack needs at least one block, got none")
        self.blocks = nn.ModuleList(blocks)
        self.d_in, self.d_out = blocks[0].d_in, blocks[-1].d_out
        self._form = one_call.form_of(blocks)

    def _each(self) -> list[tuple[str, Block]]:
        return [(f"{i}.", block) for i, block in enumerate(self.blocks)]  # type: ignore[misc]

    def initial_state(self, batch_size: int) -> State:
        """Return those of all blocks."""
        state: State = {}
        for prefix, block in self._each():
            state |= prefixed(block.initial_state(batch_size), prefix)
        return state

    def forward(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run T steps at once; see `SequenceModel`."""
        last: State = {}
        for prefix, block in self._each():
            x, after = block(x, None if state is None else select(state, prefix), reset)
            last |= prefixed(after, prefix)
        return x, last

    def trace(
        self, x: Tensor, state: State | None = None, reset: Tensor | None = None, every: int = 1
    ) -> tuple[Tensor, State, State]:
        """Run T steps and return states on the way; see `SequenceModel`."""
        last: State = {}
        traced: State = {}
        for prefix, block in self._each():
            before = None if state is None else select(state, prefix)
            x, after, on_the_way = block.trace(x, before, reset, every)
            last |= prefixed(after, prefix)
            traced |= prefixed(on_the_way, prefix)
        return x, last, traced

    def prepare_step(self) -> Cache:
        """Return those of all blocks."""
        cache: Cache = {}
        for prefix, block in self._each():
            cache |= prefixed(block.prepare_step(), prefix)
        if self._form is not None:
            cache |= one_call.prepare([block for _, block in self._each()], cache)
        return cache

    def as_one_call(self, state: State, cache: Cache | None) -> one_call.OneCall | None:
        """Return what one call for a step of all blocks takes; None without such a call."""
        if self._form is None or cache is None:
            return None
        return one_call.gather(self._form, [block for _, block in self._each()], state, cache)

    def step(
        self,
        x: Tensor,
        state: State,
        reset: Tensor | None = None,
        *,
        cache: Cache | None = None,
    ) -> tuple[Tensor, State]:
        """Run one step; see `SequenceModel`."""
        call = self.as_one_call(state, cache)
        done = None if call is None else one_call.step(call, x, reset)
        if done is not None:
            return done
        last: State = {}
        for prefix, block in self._each():
            own = None if cache is None else select(cache, prefix)
            x, after = block.step(x, select(state, prefix), reset, cache=own)
            last |= prefixed(after, prefix)
        return x, last


def conforms(stack: Stack) -> SequenceModel:
    """Let the type checker compare the stack with the protocol."""
    return stack
