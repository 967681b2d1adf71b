"""A step of a stack in one call equals its blocks, one operation after the other."""

from dataclasses import replace

import pytest
import torch

from statewise.ssm import one_call
from statewise.ssm.block import BlockConfig
from statewise.ssm.build import SequenceConfig, build_sequence
from statewise.ssm.lru import LRUConfig
from statewise.ssm.s5 import S5Config
from tests.ssm.variants import random_state
from tests.tolerance import assert_close

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
LEARNED = S5Config(initial_state="learned", conj_sym=False, blocks=2)
BLOCKS = {
    "default": BlockConfig(),
    "post": BlockConfig(norm_position="post"),
    "rms": BlockConfig(norm="rms", norm_eps=1e-3),
    "no norm": BlockConfig(norm="none"),
    "shared": BlockConfig(after_norm="shared"),
    "half_glu1": BlockConfig(gate="half_glu1"),
    "half_glu2": BlockConfig(gate="half_glu2", norm="rms", norm_position="post"),
    "gelu": BlockConfig(gate="gelu"),
    "no gate": BlockConfig(gate="none"),
}
CONFIGS = {
    **{name: SequenceConfig(d_model=16, block=block) for name, block in BLOCKS.items()},
    "learned": SequenceConfig(d_model=32, num_layers=3, s5=LEARNED),
    "lru": SequenceConfig(kind="lru", d_model=48, lru=LRUConfig(state_size=8)),
    "one layer": SequenceConfig(d_model=16, num_layers=1),
}
OTHERS = {
    "mlp": SequenceConfig(d_model=16, block=BlockConfig(gate="mlp")),
    "narrow": SequenceConfig(d_model=12),
    "gru": SequenceConfig(kind="gru", d_model=16),
    "plain": SequenceConfig(d_model=16, block=BlockConfig(kind="plain")),
    "reference": SequenceConfig(d_model=16, backend="reference"),
}


def _shaken(config: SequenceConfig, dtype: torch.dtype) -> torch.nn.Module:
    """Return a stack none of whose parameters is 0 or 1."""
    torch.manual_seed(0)
    stack = build_sequence(config).to(dtype)
    with torch.no_grad():
        for p in stack.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return stack


def _count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count how often the call serves; the list has one entry per step."""
    served, step = [], one_call.step

    def counted(*args):
        done = step(*args)
        served.append(done is not None)
        return done

    monkeypatch.setattr(one_call, "step", counted)
    return served


@pytest.mark.parametrize("B", [1, 2, 24, 67])
@pytest.mark.parametrize("name", CONFIGS)
@DTYPES
def test_a_step_in_one_call_equals_the_blocks_over_steps_with_resets(name, B, dtype, monkeypatch):
    fast = _shaken(CONFIGS[name], dtype)
    slow = build_sequence(replace(CONFIGS[name], backend="reference")).to(dtype)
    slow.load_state_dict(fast.state_dict())
    state = other = random_state(fast, B)
    x = torch.randn(5, B, fast.d_in, dtype=dtype)
    reset = torch.rand(5, B) < 0.4
    reset[3, 0] = True
    served = _count_calls(monkeypatch)
    with torch.no_grad():
        cache = fast.prepare_step()
        for t in range(5):
            given = None if t == 0 else reset[t]
            y, state = fast.step(x[t], state, given, cache=cache)
            assert served == [True] * (t + 1)
            expected, other = slow.step(x[t], other, given)
            assert_close(y, expected, dtype, t + 1)
            for key, value in other.items():
                assert_close(state[key], value, dtype, t + 1)


@pytest.mark.parametrize("name", OTHERS)
def test_what_one_call_does_not_compute_is_left_to_the_blocks(name, monkeypatch):
    stack, served = _shaken(OTHERS[name], torch.float32), _count_calls(monkeypatch)
    with torch.no_grad():
        stack.step(torch.randn(2, stack.d_in), stack.initial_state(2), cache=stack.prepare_step())
    assert not any(served)


def test_a_step_with_a_gradient_or_under_autocast_runs_the_blocks(monkeypatch):
    stack, served = _shaken(CONFIGS["default"], torch.float32), _count_calls(monkeypatch)
    x, cache = torch.randn(2, 16), stack.prepare_step()
    y, _ = stack.step(x, stack.initial_state(2), cache=cache)
    assert y.requires_grad
    assert served == []  # with a gradient the call is not asked
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        stack.step(x, stack.initial_state(2), cache=cache)
    assert served == [False]


@pytest.mark.parametrize("name", ["default", "learned"])
def test_a_step_in_one_call_keeps_what_is_not_finite_behind_a_reset(name):
    stack = _shaken(CONFIGS[name], torch.float64)
    state = {key: torch.full_like(h, float("nan")) for key, h in stack.initial_state(2).items()}
    x = torch.randn(2, stack.d_in).double()
    with torch.no_grad():
        cache = stack.prepare_step()
        y, after = stack.step(x, state, torch.tensor([True, False]), cache=cache)
        fresh, _ = stack.step(x, stack.initial_state(2), cache=cache)
    assert_close(y[0], fresh[0], torch.float64, 1)
    assert y[1].isnan().all()
    assert all(h[0].isfinite().all() for h in after.values())


def test_rows_do_not_depend_on_the_rest_of_the_batch():
    stack = _shaken(CONFIGS["default"], torch.float32)
    x, state = torch.randn(67, 16), random_state(stack, 67)
    with torch.no_grad():
        cache = stack.prepare_step()
        whole, _ = stack.step(x, state, cache=cache)
        for rows in (slice(0, 1), slice(20, 50), slice(66, 67)):
            part, _ = stack.step(x[rows], {k: h[rows] for k, h in state.items()}, cache=cache)
            assert torch.equal(part, whole[rows])


def test_a_step_changes_neither_its_input_nor_the_state():
    stack = _shaken(CONFIGS["post"], torch.float32)
    x, state = torch.randn(3, 16), random_state(stack, 3)
    before = x.clone(), {key: h.clone() for key, h in state.items()}
    with torch.no_grad():
        stack.step(x, state, cache=stack.prepare_step())
    assert torch.equal(x, before[0])
    assert all(torch.equal(h, before[1][key]) for key, h in state.items())


def test_nothing_is_packed_for_another_device_than_the_cpu():
    stack = build_sequence(CONFIGS["default"])
    assert any(name.startswith(one_call.KEY) for name in stack.prepare_step())
    elsewhere = stack.to("meta").prepare_step()
    assert elsewhere
    assert not any(name.startswith(one_call.KEY) for name in elsewhere)
