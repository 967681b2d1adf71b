"""Stacks under torch.compile and torch.export: whole graphs with the eager results."""

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from statewise.ssm import SEQUENCES, SequenceConfig, SequenceModel, build_sequence
from statewise.ssm.s5 import S5Config
from statewise.ssm.stack import Stack
from tests.resets import pattern
from tests.tolerance import assert_close

# torch's fused GRU and LSTM know no resets inside a graph.
SCANNED = ["s5-learned", *(kind for kind in SEQUENCES if kind not in ("s5", "gru", "lstm"))]
# The ops take any length, see tests/kernels; s4, lssl, attention and delta_net cut windows into
# blocks, and make one graph per length.
ANY_LENGTH = ["s5-learned", "lru", "mamba"]
# The steps of all rows are exported, which takes a whole graph as well.
COMPILED_STEPS = ("s5", "lru", "s4", "mamba", "mamba2", "delta_net", "gru", "lstm", "attention")


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _stack(name: str) -> Stack:
    kind, _, option = name.partition("-")
    s5 = S5Config(initial_state="learned" if option == "learned" else "zero")
    # Tracing a second block of the same kind takes as long again and shows nothing new.
    layers = 2 if kind == "lru" else 1
    return build_sequence(SequenceConfig(kind=kind, d_model=8, num_layers=layers, s5=s5))


def _assert_equal_results(
    actual: tuple, expected: tuple, T: int, dtype: torch.dtype = torch.float32
) -> None:
    assert_close(actual[0], expected[0], dtype, T)
    for key in expected[1]:
        assert_close(actual[1][key], expected[1][key], dtype, T)


@pytest.mark.parametrize("name", SCANNED)
def test_the_compiled_forward_gives_the_eager_values_and_gradients(name):
    model = _stack(name).double()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x, reset = torch.randn(3, 6, 8, dtype=torch.float64), pattern("staggered", 3, 6)
    state = {key: torch.randn_like(value) for key, value in model.initial_state(3).items()}
    gradients = []
    for run in (compiled, model):
        model.zero_grad()
        y, last = run(x, state, reset)
        (y.square().sum() + sum(value.square().sum() for value in last.values())).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    _assert_equal_results(compiled(x, state, reset), model(x, state, reset), 6, torch.float64)
    for left, right in zip(*gradients, strict=True):
        assert_close(left, right, torch.float64, 6, gradient=True)


@pytest.mark.parametrize("name", ANY_LENGTH)
def test_the_compiled_forward_takes_windows_of_any_length_without_compiling_again(name):
    model, counter = _stack(name), CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    state = {key: torch.randn_like(value) for key, value in model.initial_state(3).items()}
    for T in (5, 16, 33):
        x, reset = torch.randn(3, T, 8), pattern("random", 3, T)
        torch._dynamo.mark_dynamic(x, 1)
        torch._dynamo.mark_dynamic(reset, 1)
        _assert_equal_results(compiled(x, state, reset), model(x, state, reset), T)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("kind", "cached"), [*((kind, True) for kind in COMPILED_STEPS), ("s5", False), ("gru", False)]
)
def test_the_compiled_step_gives_the_eager_values(kind, cached):
    model = _stack(kind)
    compiled = torch.compile(model.step, backend="aot_eager", fullgraph=True)
    cache = model.prepare_step() if cached else None
    eager = compiled_state = model.initial_state(3)
    # Dynamo refuses to look at torch.nn.GRU and LSTM, whose weights the steps read, by default.
    with torch.no_grad(), torch._dynamo.config.patch(allow_rnn=True):
        for t in range(4):
            x, reset = torch.randn(3, 8), torch.tensor([t == 2, False, True])
            y, compiled_state = compiled(x, compiled_state, reset, cache=cache)
            expected, eager = model.step(x, eager, reset, cache=cache)
            _assert_equal_results((y, compiled_state), (expected, eager), t + 1)


class _Step(nn.Module):
    """What a deployed policy runs: one step with every tensor an argument."""

    def __init__(self, model: SequenceModel):
        super().__init__()
        assert isinstance(model, nn.Module)
        self.model = model

    def forward(
        self, x: Tensor, state: dict[str, Tensor], reset: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.model.step(x, state, reset)


@pytest.mark.parametrize("kind", list(SEQUENCES))
def test_a_step_exports_and_the_export_acts_alike(kind):
    model = _stack(kind)
    step = _Step(model).eval()
    state = {key: torch.randn_like(value) for key, value in model.initial_state(2).items()}
    x, reset = torch.randn(2, 8), torch.tensor([True, False])
    exported = torch.export.export(step, (x, state, reset)).module()
    for _ in range(3):
        x, reset = torch.randn(2, 8), reset.flip(0)
        actual, expected = exported(x, state, reset), step(x, state, reset)
        _assert_equal_results(actual, expected, 1)
        state = expected[1]
