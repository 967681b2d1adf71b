"""The GRU with a norm against the authors' arrays."""

import torch

from statewise.worldmodels.rssm import NormGRUCell, resets_by_step
from tests.golden_files import load
from tests.tolerance import GOLDEN_VALUE, assert_within


def test_the_cell_is_the_authors() -> None:
    arrays, _ = load("dreamer_math")
    x, h, weight = arrays["gru_in"], arrays["gru_h"], arrays["gru_W"]
    width = h.shape[-1]
    cell = NormGRUCell(x.shape[-1], width, "layer").double()
    with torch.no_grad():
        # Theirs reads [x, h], ours [h, x].
        cell.linear.weight.copy_(torch.cat((weight[:, -width:], weight[:, :-width]), 1))
        cell.norm.weight.copy_(arrays["gru_ln_w"])
        assert cell.norm.bias is not None
        cell.norm.bias.copy_(arrays["gru_ln_b"])
    assert_within(cell(cell.project(x), h), arrays["gru_out"], GOLDEN_VALUE)


def test_only_steps_with_a_reset_are_asked_to_clear_and_always_the_first() -> None:
    reset = torch.tensor([[False, False, True], [False, False, False]])
    first, second, third = resets_by_step(reset, 3)
    assert first is not None  # the start has a gradient, 0, in every window
    assert not first.any()
    assert second is None
    assert third is not None
    assert third.tolist() == [True, False]
    assert resets_by_step(None, 2) == [None, None]
