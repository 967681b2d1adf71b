"""Random generators that go on where they were saved."""

import torch
from torch import Tensor


def restore(generator: torch.Generator, state: Tensor) -> None:
    """Let a generator go on from a state.

    One of another kind of device stays as it is: a stream of a GPU cannot go on on a CPU.
    """
    if state.numel() == generator.get_state().numel():
        generator.set_state(state.cpu())
