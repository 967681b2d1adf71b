"""The GRU with a norm against the authors' arrays."""

import pytest
import torch
import torch.nn.functional as F

from statewise.worldmodels.block_gru import BlockGRU
from statewise.worldmodels.rssm import NormGRUCell, RSSMConfig, resets_by_step
from tests.golden_files import load
from tests.tolerance import GOLDEN_VALUE, assert_close, assert_within


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


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_the_cell_of_2024_is_a_loop_over_its_blocks(blocks: int) -> None:
    torch.manual_seed(0)
    cell = BlockGRU(5, 3, deter=8, units=6, blocks=blocks, norm="rms").double()
    with torch.no_grad():
        for p in cell.parameters():
            p.add_(0.1 * torch.randn_like(p))
    z, action, h = (torch.randn(4, n, dtype=torch.float64) for n in (5, 3, 8))
    size = 8 // blocks
    seen = torch.cat((cell.of_deter(h), cell.of_stoch(z), cell.of_action(action)), -1)
    mixed = torch.cat(
        [
            torch.cat((h[:, g * size : (g + 1) * size], seen), -1) @ cell.mix.weight[g]
            + cell.mix.bias[g]
            for g in range(blocks)
        ],
        -1,
    )
    v = F.silu(cell.norm(mixed))
    parts = []
    for g in range(blocks):
        own = slice(g * size, (g + 1) * size)
        r, c, u = (v[:, own] @ cell.gates.weight[g] + cell.gates.bias[g]).split(size, -1)
        update = torch.sigmoid(u - 1)
        parts.append(update * torch.tanh(torch.sigmoid(r) * c) + (1 - update) * h[:, own])
    assert_close(cell(z, action, h), torch.cat(parts, -1), torch.float64, 1)


def test_blocks_save_recurrent_weights_and_hear_of_each_other() -> None:
    torch.manual_seed(0)
    numbers = [
        BlockGRU(4, 2, deter=16, units=4, blocks=blocks, norm="rms").gates.weight.numel()
        for blocks in (1, 4)
    ]
    assert numbers[0] == 4 * numbers[1]
    cell = BlockGRU(4, 2, deter=16, units=4, blocks=4, norm="rms")
    h = torch.randn(1, 16, requires_grad=True)
    after = cell(torch.randn(1, 4), torch.randn(1, 2), h)
    [grad] = torch.autograd.grad(after[0, 0], h)
    assert (grad != 0).all()


@pytest.mark.parametrize("blocks", [-1, 3])
def test_blocks_divide_the_width(blocks: int) -> None:
    with pytest.raises(ValueError, match="blocks: expected 0 or a divisor of deter"):
        RSSMConfig(deter=8, blocks=blocks)
