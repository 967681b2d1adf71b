"""The numerics of every row of the table: backends, dtypes and lengths, against one oracle.

The oracle is the sequential loop of steps in float64. Cases are pruned: every row meets every
backend it has, both dtypes, every kind of reset and every length, but not every combination.
"""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from statewise.kernels import Backend
from statewise.ssm import SEQUENCES, SequenceConfig, SequenceModel, State
from statewise.ssm.build import NO_BACKEND
from tests.resets import KINDS, pattern
from tests.ssm.variants import random_state, step_loop
from tests.tolerance import GRADIENT_FACTOR, ORACLE_FLOAT32_MAX, assert_within, limit

WIDTH, B = 4, 3
# On both sides of the window of a convolution (4) and of a chunk (64), and several chunks.
LENGTHS = (1, 3, 4, 5, 63, 64, 65, 129)
DTYPES = (torch.float64, torch.float32)
STATE_SIZE = {"s4": 8, "s4d": 8, "dss": 8, "lssl": 6, "mamba": 4, "mamba2": 6}


def _backends(kind: str) -> tuple[Backend, ...]:
    if kind in NO_BACKEND:
        return ("auto",)
    # The delta rule has no C++ kernel of its own.
    return ("reference", "torch") if kind == "delta_net" else ("reference", "torch", "cpu")


def _layer(kind: str, backend: Backend = "auto") -> SequenceModel:
    own = SequenceConfig()
    options = {}
    if kind in STATE_SIZE:
        options[kind] = type(getattr(own, kind))(state_size=STATE_SIZE[kind])
    return SEQUENCES[kind].make(
        SequenceConfig(kind=kind, d_model=WIDTH, backend=backend, **options)
    )


def _cases() -> Iterator[tuple[str, Backend, torch.dtype, str, int]]:
    for kind in SEQUENCES:
        resets, lengths = itertools.cycle(KINDS), itertools.cycle(LENGTHS)
        for backend in _backends(kind):
            for dtype in DTYPES:
                for _ in range(4):
                    yield kind, backend, dtype, next(resets), next(lengths)


def _assert_near(
    found: Tensor, exact: Tensor, dtype: torch.dtype, T: int, factor: float = 1.0
) -> None:
    """Compare with the limit; a layer in float32 also rounds its discrete system."""
    bound = ORACLE_FLOAT32_MAX if dtype == torch.float32 else limit(dtype, T)
    assert_within(found, exact, factor * bound)


def _gradients(
    model: nn.Module, x: Tensor, outputs: list[Tensor], weights: list[Tensor]
) -> dict[str, Tensor]:
    inputs = {"x": x} | dict(model.named_parameters())
    found = torch.autograd.grad(
        outputs, list(inputs.values()), weights, allow_unused=True, materialize_grads=True
    )
    return dict(zip(inputs, found, strict=True))


@pytest.mark.parametrize(("kind", "backend", "dtype", "reset", "T"), list(_cases()), ids=str)
def test_the_parallel_mode_equals_the_loop_of_float64_in_values_and_gradients(
    kind, backend, dtype, reset, T
):
    layer, oracle = _layer(kind, backend), _layer(kind)
    assert isinstance(layer, nn.Module)
    assert isinstance(oracle, nn.Module)
    oracle.load_state_dict(layer.state_dict())
    layer.to(dtype), oracle.double()
    x = torch.randn(B, T, WIDTH).to(dtype).requires_grad_()
    exact_x = x.detach().double().requires_grad_()
    state: State = {key: value.float() for key, value in random_state(layer, B).items()}
    flags = pattern(reset, B, T)

    y, last = layer(x, {key: value.to(dtype) for key, value in state.items()}, flags)
    exact, exact_last, _ = step_loop(
        oracle, exact_x, {k: v.double() for k, v in state.items()}, flags
    )

    _assert_near(y, exact, dtype, T)
    for key in exact_last:
        _assert_near(last[key], exact_last[key], dtype, T)
    # Flags in a state (has memory begun, is an entry valid) have no gradient.
    kept = [key for key, value in exact_last.items() if value.requires_grad]
    outputs = [exact, *(exact_last[key] for key in kept)]
    weights = [torch.randn_like(value) for value in outputs]
    expected = _gradients(oracle, exact_x, outputs, weights)
    found = _gradients(layer, x, [y, *(last[key] for key in kept)], [w.to(dtype) for w in weights])
    for name, value in expected.items():
        _assert_near(found[name], value, dtype, T, factor=GRADIENT_FACTOR)


@pytest.mark.parametrize("kind", list(SEQUENCES))
def test_the_gradients_of_every_row_equal_finite_differences(kind):
    layer = _layer(kind)
    assert isinstance(layer, nn.Module)
    layer.double()
    names = [name for name, _ in layer.named_parameters()]
    state = random_state(layer, 2)
    flags = torch.tensor([[False, True, False], [False, False, False]])

    def run(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(state, values[: len(state)], strict=True))
        parameters = dict(zip(names, values[len(state) :], strict=True))
        y, last = torch.func.functional_call(layer, parameters, (x, given, flags))
        return y, *(last[key] for key in state)

    x = torch.randn(2, 3, WIDTH, dtype=torch.float64)
    inputs = [x, *state.values(), *layer.parameters()]
    inputs = [value.detach().clone().requires_grad_() for value in inputs]
    # A random direction of all inputs at once; elsewhere every entry is compared with the loop.
    assert torch.autograd.gradcheck(run, inputs, eps=1e-6, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("kind", list(SEQUENCES))
def test_a_fresh_layer_keeps_the_scale_of_its_input(kind):
    scales = []
    for seed in range(4):
        torch.manual_seed(seed)
        layer = SEQUENCES[kind].make(SequenceConfig(kind=kind, d_model=64))
        with torch.no_grad():
            y, _ = layer(torch.randn(2, 1024, 64))
        scales.append(float(y[:, 256:].std()))
    low, high = (0.3, 3.0) if kind in ("s5", "lru", "s4", "s4d", "dss", "lssl") else (0.03, 3.0)
    assert all(low <= scale <= high for scale in scales), scales
