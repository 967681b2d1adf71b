"""Every layer on a GPU against itself on the CPU in double precision, in all its modes."""

import copy

import pytest
import torch
from torch import Tensor

from statewise.ssm import SEQUENCES
from statewise.ssm.build import SequenceConfig, build_sequence
from statewise.ssm.stack import Stack
from tests.gpu.gpu_only import CUDA, marks
from tests.resets import pattern
from tests.tolerance import assert_close

pytestmark = marks
B, T, WIDTH = 3, 150, 64
FLOAT = torch.float32
every_kind = pytest.mark.parametrize("kind", list(SEQUENCES))


def _pair(kind: str) -> tuple[Stack, Stack]:
    """Return a stack on the GPU and the same one in double precision on the CPU."""
    model = build_sequence(SequenceConfig(kind=kind, d_model=WIDTH))
    return copy.deepcopy(model).to(CUDA), model.double()


def _inputs(model: Stack) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    reset = pattern("staggered", B, T)
    assert reset is not None
    x = torch.randn(B, T, WIDTH, dtype=torch.float64)
    state = {key: 0.3 * torch.randn_like(v) for key, v in model.initial_state(B).items()}
    return x, state, reset


def _to(tree: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.to(CUDA, FLOAT) for key, value in tree.items()}


@every_kind
def test_a_window_and_its_gradients_are_those_of_the_cpu(kind):
    there, here = _pair(kind)
    x, state, reset = _inputs(here)
    runs = []
    for model, inputs in ((there, (x.to(CUDA, FLOAT), _to(state), reset.to(CUDA))),
                          (here, (x, state, reset))):  # fmt: skip
        y, last = model(*inputs)
        (y.square().mean() + sum(v.square().mean() for v in last.values())).backward()
        gradients = {f"grad {n}": p.grad for n, p in model.named_parameters() if p.grad is not None}
        runs.append({"y": y, **last, **gradients})
    for name, expected in runs[1].items():
        gradient = name.startswith("grad")
        assert runs[0][name].device.type == CUDA.type
        assert_close(runs[0][name].cpu(), expected, FLOAT, T, gradient=gradient)


@every_kind
def test_steps_on_the_gpu_equal_the_window_on_the_cpu(kind):
    there, here = _pair(kind)
    x, state, reset = _inputs(here)
    steps = 12
    with torch.no_grad():
        expected, last = here(x[:, :steps], state, reset[:, :steps])
        cache, memory, outputs = there.prepare_step(), _to(state), []
        for t in range(steps):
            y, memory = there.step(
                x[:, t].to(CUDA, FLOAT), memory, reset[:, t].to(CUDA), cache=cache
            )
            outputs.append(y.cpu())
    assert_close(torch.stack(outputs, 1), expected, FLOAT, T)
    for key, value in last.items():
        assert_close(memory[key].cpu(), value, FLOAT, T)


@every_kind
def test_states_on_the_way_are_those_of_the_cpu(kind):
    there, here = _pair(kind)
    x, state, reset = _inputs(here)
    with torch.no_grad():
        *_, expected = here.trace(x, state, reset, every=16)
        *_, actual = there.trace(x.to(CUDA, FLOAT), _to(state), reset.to(CUDA), every=16)
    for key, value in expected.items():
        assert_close(actual[key].cpu(), value, FLOAT, T)
