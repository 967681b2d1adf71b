"""bfloat16 autocast: products are rounded, states and the recurrence are not."""

import pytest
import torch
from torch import Tensor, nn

from statewise.ssm import SEQUENCES, SequenceConfig, build_sequence
from tests.resets import pattern
from tests.tolerance import ORACLE_BFLOAT16, assert_within

B, T, WIDTH = 3, 48, 16
every_row = pytest.mark.parametrize("kind", list(SEQUENCES))


def _model(kind: str) -> nn.Module:
    return build_sequence(SequenceConfig(kind=kind, d_model=WIDTH))


def _autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@every_row
def test_outputs_stay_near_those_of_float32_and_states_are_float32(kind):
    model, x, reset = _model(kind), torch.randn(B, T, WIDTH), pattern("staggered", B, T)
    expected, expected_last = model(x, None, reset)
    with _autocast():
        y, last = model(x, None, reset)
    assert_within(y.float(), expected, ORACLE_BFLOAT16)
    for key, value in last.items():
        assert value.dtype == torch.float32, key
        assert_within(value, expected_last[key], 2 * ORACLE_BFLOAT16)


@every_row
def test_traced_states_are_float32(kind):
    model, x = _model(kind), torch.randn(B, T, WIDTH)
    with _autocast():
        _, _, traced = model.trace(x, None, pattern("random", B, T), 16)
    assert {value.dtype for value in traced.values()} == {torch.float32}


@every_row
def test_a_step_keeps_the_state_in_float32_and_agrees(kind):
    model, x = _model(kind), torch.randn(B, 8, WIDTH)
    state: dict[str, Tensor] = model.initial_state(B)
    with torch.no_grad(), _autocast():
        y, _ = model(x)
        for t in range(8):
            out, state = model.step(x[:, t], state, torch.zeros(B, dtype=torch.bool))
            assert {value.dtype for value in state.values()} == {torch.float32}
    assert_within(out.float(), y[:, -1].float(), 2 * ORACLE_BFLOAT16)


@every_row
def test_gradients_are_finite_and_those_of_parameters_float32(kind):
    model, x = _model(kind), torch.randn(B, T, WIDTH)
    with _autocast():
        y, last = model(x, None, pattern("staggered", B, T))
        loss = y.float().square().mean() + sum(value.square().mean() for value in last.values())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name
