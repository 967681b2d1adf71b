"""A stack without memory: every output is what a fresh stack says of that input alone."""

import pytest
import torch

from statewise.ssm import SEQUENCES, SequenceConfig, SequenceModel, build_sequence
from statewise.ssm.forgetful import Forgetful
from tests.ssm.variants import WIDTH, random_state, step_loop
from tests.tolerance import assert_close

B, T = 3, 5
DOUBLE = torch.float64


@pytest.mark.parametrize("kind", sorted(SEQUENCES))
def test_an_output_is_that_of_a_fresh_stack_at_this_input_alone(kind: str) -> None:
    config = {"kind": kind, "num_layers": 2, "d_model": WIDTH}
    model = build_sequence(SequenceConfig(**config, memory="none")).to(DOUBLE)
    assert isinstance(model, Forgetful)
    assert isinstance(model, SequenceModel)
    kept = build_sequence(SequenceConfig(**config)).to(DOUBLE)
    kept.load_state_dict(model.stack.state_dict())  # the same parameters
    x, state = torch.randn(B, T, WIDTH, dtype=DOUBLE), random_state(model, B)
    y, last = model(x, state)
    alone, after = kept(x.flatten(0, 1)[:, None])
    assert_close(y, alone.view_as(y), DOUBLE, T)
    for key, value in last.items():
        assert_close(value, after[key].view(B, T, *value.shape[1:])[:, -1], DOUBLE, T)
    stepped, _, _ = step_loop(model, x, state, None)
    assert_close(stepped, y, DOUBLE, T)
    traced, _, states = model.trace(x, state, every=1)
    assert_close(traced, y, DOUBLE, T)
    assert all(value.shape[:2] == (B, T) for value in states.values())
