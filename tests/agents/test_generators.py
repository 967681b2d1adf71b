"""Generators go on where they were saved, and keep their seed on another kind of device."""

import pytest
import torch

from statewise.agents.generators import restore


def test_a_generator_goes_on_where_it_was_saved() -> None:
    saved = torch.Generator().manual_seed(3)
    torch.rand(5, generator=saved)
    state = saved.get_state()
    other = torch.Generator().manual_seed(8)
    restore(other, state)
    assert torch.equal(torch.rand(4, generator=other), torch.rand(4, generator=saved))


def test_the_state_of_another_kind_of_device_leaves_the_seed() -> None:
    of_a_gpu = torch.zeros(16, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(8)
    restore(generator, of_a_gpu)
    expected = torch.rand(4, generator=torch.Generator().manual_seed(8))
    assert torch.equal(torch.rand(4, generator=generator), expected)


def test_a_damaged_state_is_refused() -> None:
    state = torch.Generator().get_state()[:-1]
    with pytest.raises(RuntimeError):
        restore(torch.Generator(), state)
