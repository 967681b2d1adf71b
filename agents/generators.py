"""Random generators that go on where they were saved."""

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
