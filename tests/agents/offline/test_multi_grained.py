"""The layers of multi-grained Decision Mamba: equations, resets, steps, where summaries go."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from statewise.agents.offline.multi_grained import (
    CausalWindow,
    Fusion,
    MultiGrained,
    ReleasedTriplets,
    ShiftedTriplets,
    at_next_step,
    build_core,
)
from statewise.ssm.mamba import MambaConfig
from tests.tolerance import ORACLE_FLOAT64, assert_within

D = 4
MAMBA = MambaConfig(state_size=2)


def tokens() -> tuple[Tensor, Tensor]:
    """Return x (2, 12, D) and resets at the first tokens of some steps, not at column 0 alone."""
    reset = torch.zeros(2, 12, dtype=torch.bool)
    reset[0, [0, 6]] = True
    reset[1, [3, 9]] = True
    return torch.randn(2, 12, D, dtype=torch.float64), reset


def by_window(window: CausalWindow, x: Tensor, reset: Tensor) -> Tensor:
    """Return the last three tokens mapped, token by token, zeros beyond a reset."""
    weights = window.linear.weight.split(D, 1)
    result = torch.zeros_like(x)
    for b in range(len(x)):
        for t in range(x.shape[1]):
            result[b, t] = window.linear.bias
            for lag in range(3):
                if t - lag >= 0 and not reset[b, t - lag + 1 : t + 1].any():
                    result[b, t] += weights[2 - lag] @ x[b, t - lag]
    return result


@pytest.mark.parametrize("resets", [[], [3], [2, 3], [1, 4, 5]], ids=str)
def test_the_window_reads_three_tokens_and_none_before_a_reset(resets: list[int]) -> None:
    window = CausalWindow(D).double()
    x = torch.randn(1, 7, D, dtype=torch.float64)
    reset = torch.zeros(1, 7, dtype=torch.bool)
    reset[0, resets] = True
    with torch.no_grad():
        expected = by_window(window, x, reset)
        state = window.initial_state(1)
        whole, _ = window(x, state, reset)
        assert_within(whole, expected, ORACLE_FLOAT64)
        pieces = []
        for t in range(7):
            y, state = window(x[:, t : t + 1], state, reset[:, t : t + 1])
            pieces.append(y)
        assert_within(torch.cat(pieces, 1), expected, ORACLE_FLOAT64)


@pytest.mark.parametrize("fusion", ["sum", "gate"])
def test_a_causal_layer_is_its_equation(fusion: Fusion) -> None:
    layer = MultiGrained(D, fusion, MAMBA).double()
    nn.init.normal_(layer.fuse.norm.weight)
    x, reset = tokens()
    with torch.no_grad():
        coarse, _ = layer.coarse(x, None, reset)
        fine, _ = layer.fine(by_window(layer.window, x, reset), None, reset)
        fine = F.layer_norm(fine, (D,)) * layer.fuse.norm.weight
        expected = coarse + fine
        if layer.fuse.gate is not None:
            g = torch.sigmoid(x @ layer.fuse.gate.weight.T + layer.fuse.gate.bias)
            expected = g * coarse + (1 - g) * fine
        assert_within(layer(x, None, reset)[0], expected, ORACLE_FLOAT64)


@pytest.mark.parametrize("fusion", ["sum", "gate"])
def test_steps_and_split_calls_equal_one_call(fusion: Fusion) -> None:
    layer = MultiGrained(D, fusion, MAMBA).double()
    x, reset = tokens()
    with torch.no_grad():
        whole, after = layer(x, None, reset)
        head, state = layer(x[:, :4], None, reset[:, :4])
        tail, split = layer(x[:, 4:], state, reset[:, 4:])
        assert_within(torch.cat((head, tail), 1), whole, ORACLE_FLOAT64)
        state, cache, steps = layer.initial_state(2), layer.prepare_step(), []
        for t in range(12):
            y, state = layer.step(x[:, t], state, reset[:, t], cache=cache)
            steps.append(y)
        assert_within(torch.stack(steps, 1), whole, ORACLE_FLOAT64)
        _, traced, on_the_way = layer.trace(x, None, reset, every=3)
        for key, expected in after.items():
            assert_within(split[key], expected, ORACLE_FLOAT64)
            assert_within(state[key], expected, ORACLE_FLOAT64)
            assert_within(traced[key], expected, ORACLE_FLOAT64)
            assert_within(on_the_way[key][:, -1], expected, ORACLE_FLOAT64)


def test_a_reset_hides_a_broken_state() -> None:
    layer = MultiGrained(D, "sum", MAMBA).double()
    x = torch.randn(2, 3, D, dtype=torch.float64)
    broken = {key: torch.full_like(v, float("nan")) for key, v in layer.initial_state(2).items()}
    now = torch.tensor([[True, False, False]] * 2)
    with torch.no_grad():
        expected, last = layer(x)
        found, after = layer(x, broken, now)
        assert_within(found, expected, ORACLE_FLOAT64)
        for key, value in after.items():
            assert_within(value, last[key], ORACLE_FLOAT64)


def test_the_summary_of_a_step_reaches_the_three_tokens_of_the_next() -> None:
    summary = torch.arange(1.0, 9.0).view(2, 4, 1)
    reset = torch.tensor([[True, False, False, False], [False, False, True, False]])
    expected = [[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3], [0, 0, 0, 5, 5, 5, 0, 0, 0, 7, 7, 7]]
    assert at_next_step(summary, reset).squeeze(-1).tolist() == expected


@pytest.mark.parametrize("make", [ShiftedTriplets, ReleasedTriplets])
def test_summaries_are_a_convolution_over_whole_steps(make: Any) -> None:
    branches = make(D, MAMBA, "auto").double()
    x, reset = tokens()
    known = x.clone()
    if make is ReleasedTriplets:
        known[:, -1] = 0
    kernel = branches.join.weight.view(D, 3, D).transpose(1, 2)
    with torch.no_grad():
        joined = F.conv1d(known.transpose(1, 2), kernel, branches.join.bias, stride=3)
        joined = joined.transpose(1, 2)
        coarse, fine = branches(x, reset)
        assert_within(coarse, branches.coarse(x, None, reset)[0], ORACLE_FLOAT64)
        for j in range(12):
            if make is ReleasedTriplets:
                expected = branches.fine(joined)[0][:, j % 4]
            else:
                steps = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1]]).bool()
                summary = branches.fine(joined, None, steps)[0][:, j // 3 - 1]
                starts = (j < 3) | steps[:, j // 3, None]
                expected = torch.where(starts, torch.zeros_like(summary), summary)
            assert_within(fine[:, j], expected, ORACLE_FLOAT64)


@pytest.mark.parametrize("fine", ["causal_window", "shifted_triplet"])
def test_blocks_add_their_branches_between_norms(fine: Any) -> None:
    core = build_core(
        fine, "sum", 2, d_model=D, dropout=0.0, mamba=MAMBA, backend="auto"
    )  # fmt: skip
    assert isinstance(core, nn.Module)
    core = core.double().eval()
    x, reset = tokens()

    def rms(v: Tensor) -> Tensor:
        return v / (v.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    with torch.no_grad():
        y = x
        blocks: Any = core.blocks if fine == "shifted_triplet" else core.layer.blocks  # type: ignore[union-attr]
        for block in blocks:
            if fine == "shifted_triplet":
                y = y + block.fuse(rms(y), *block.branches(rms(y), reset))
            else:
                y = y + block.layer.layer(rms(y), None, reset)[0]
        assert_within(core(x, None, reset)[0], rms(y), ORACLE_FLOAT64)


def test_a_core_of_whole_steps_refuses_parts_and_states() -> None:
    core = build_core(
        "shifted_triplet", "sum", 1, d_model=D, dropout=0.0, mamba=MAMBA, backend="auto"
    )
    with pytest.raises(ValueError, match="expected 3 tokens for every step and no state, got 4"):
        core(torch.zeros(1, 4, D))
    with pytest.raises(ValueError, match="got 3 tokens and 1 entries: use fine 'causal_window'"):
        core(torch.zeros(1, 3, D), {"h": torch.zeros(1)})
