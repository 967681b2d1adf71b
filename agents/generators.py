"""Random generators that go on where they were saved."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_SIZES = {"cpu": torch.Generator().get_state().numel(), "cuda": 16}  # bytes of a state


def generators_of(agent: object) -> dict[str, torch.Generator]:
    """Return the random generators that an agent holds as attributes, by their names."""
    return {name: x for name, x in vars(agent).items() if isinstance(x, torch.Generator)}


def restore(generator: torch.Generator, state: Tensor) -> None:
    """Let a generator go on from a state.

    A state of another kind of device leaves it as it is: a stream of a GPU cannot go on on a CPU.

    Raises:
        RuntimeError: this is the state of no generator.
    """
    others = [size for kind, size in _SIZES.items() if kind != generator.device.type]
    if state.numel() not in others:
        generator.set_state(state.cpu())


@contextmanager
def draws_apart(agent: object, seed: int) -> Iterator[None]:
    """Let an agent's generators begin at a seed, and put them back afterwards.

    An evaluation while it trains then leaves the training as it would be without, and gives the
    same twice.
    """
    generators = generators_of(agent).values()
    before = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)
