"""A step of all blocks of a stack in one call into C++, where the layers are S5 or LRU.

With a gradient, without a prepared cache, on a GPU or where something of a block is not among what
the call computes, the blocks run one after the other.
"""

from collections.abc import Sequence
from functools import cache as cached
from typing import NamedTuple, cast

import torch
from torch import Tensor

from statewise.kernels import (
    Backend,
    BlockForm,
    diagonal_blocks_step,
    diagonal_blocks_step_runs,
)
from statewise.ssm.block import Block
from statewise.ssm.diagonal import DiagonalLayer
from statewise.ssm.protocol import Cache, State

KEY = "one_call."


class OneCall(NamedTuple):
    """What a call for all blocks of a stack takes besides the input."""

    form: BlockForm
    """Of the blocks."""
    parts: list[tuple[Tensor, ...]]
    """Of each block, as in `kernels.diagonal_blocks_step`."""
    states: list[Tensor]
    """Of each block, before the step."""
    backend: Backend
    """Of the layers."""


_PARTS = ("norm_weight", "norm_bias", "a", "w_in", "w_out", "skip", "gate", "gate_bias", "h_init")


def form_of(blocks: Sequence[Block]) -> BlockForm | None:
    """Return what the blocks have in common; None if a step of them is more than one call."""
    first = blocks[0]
    layers = [block.layer for block in blocks]
    if not all(isinstance(layer, DiagonalLayer) for layer in layers):
        return None
    config = first.config
    if config.kind == "plain" or any(block.config != config for block in blocks):
        return None
    shared = config.after_norm == "shared"
    return BlockForm(
        config.norm, config.norm_position == "post", shared, config.gate, config.norm_eps
    )


@cached
def _names(count: int) -> tuple[tuple[str, ...], ...]:
    """Return the keys of the parts of each of so many blocks."""
    return tuple(tuple(f"{KEY}{i}.{name}" for name in _PARTS) for i in range(count))


@torch.no_grad()
def prepare(blocks: Sequence[Block], cache: Cache) -> Cache:
    """Return what the call reads of the present parameters, nothing where they are on a GPU.

    Args:
        blocks: of a stack that has a form.
        cache: what its blocks prepared, by number.
    """
    layer = cast("DiagonalLayer", blocks[0].layer)
    if layer.D.device.type != "cpu":
        return {}
    return {
        name: part
        for i, (block, names) in enumerate(zip(blocks, _names(len(blocks)), strict=True))
        for name, part in zip(names, _parts(block, cache, f"{i}."), strict=True)
    }


def _parts(block: Block, cache: Cache, prefix: str) -> tuple[Tensor, ...]:
    layer, norm, gate = cast("DiagonalLayer", block.layer), block.norm, block.gate
    none = layer.D.new_empty(0)
    return (
        getattr(norm, "weight", none).detach(),
        getattr(norm, "bias", none).detach(),
        cache[f"{prefix}a"],
        cache[f"{prefix}w_in"].t().contiguous(),
        cache[f"{prefix}w_out"].t().contiguous(),
        layer.D.detach(),
        none if gate is None else gate.weight.detach().t().contiguous(),
        none if gate is None else gate.bias.detach(),
        none if layer.h_init is None else layer.h_init.detach(),
    )


def gather(form: BlockForm, blocks: Sequence[Block], state: State, cache: Cache) -> OneCall | None:
    """Return what a call takes; None with a gradient, under a compiler, or if nothing is prepared.

    Args:
        form: of the blocks.
        blocks: of the stack.
        state: of the stack.
        cache: with what `prepare` returned.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    names = _names(len(blocks))
    if names[0][0] not in cache:
        return None
    layer = cast("DiagonalLayer", blocks[0].layer)
    parts = [tuple(map(cache.__getitem__, of_block)) for of_block in names]
    return OneCall(form, parts, [state[f"{i}.h"] for i in range(len(blocks))], layer.backend)


def state_of(after: Sequence[Tensor]) -> State:
    """Return the states of all blocks as that of the stack."""
    return {f"{i}.h": h for i, h in enumerate(after)}


def step(call: OneCall, x: Tensor, reset: Tensor | None) -> tuple[Tensor, State] | None:
    """Run one step; None if the call does not serve this input.

    Args:
        call: of the stack.
        x: (B, H).
        reset: (B,) bool or None.
    """
    if not diagonal_blocks_step_runs(x, call.states, call.form, call.backend):
        return None
    y, after = diagonal_blocks_step(x, call.parts, call.states, reset, call.form)
    return y, state_of(after)
