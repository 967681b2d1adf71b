"""Causal attention against plain masked softmax, and the promises of its bounded cache."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from statewise.ssm.attention import AttentionConfig, AttentionLayer, rotate, rotation
from tests.resets import KINDS, pattern
from tests.tolerance import assert_close

B, D = 3, 6
DOUBLE = torch.float64


def _layer(context: int, heads: int = 2, dtype: torch.dtype = DOUBLE) -> AttentionLayer:
    config = AttentionConfig(context=context, num_heads=heads, rope_base=50.0)
    return AttentionLayer(D, config).to(dtype)


def _turn(x: Tensor, steps: int, base: float) -> Tensor:
    """Rotate (H, d) by `steps`, written with complex numbers."""
    half = x.shape[-1] // 2
    frequency = torch.tensor([base ** (-2 * f / (2 * half)) for f in range(half)], dtype=DOUBLE)
    pairs = torch.complex(x[:, :half], x[:, half:]) * torch.polar(
        torch.ones(half, dtype=DOUBLE), steps * frequency
    )
    return torch.cat((pairs.real, pairs.imag), -1)


def _oracle(layer: AttentionLayer, x: Tensor, reset: Tensor | None) -> Tensor:
    """One query at a time over an explicit list of the steps it may see."""
    H, d, config = layer.num_heads, layer.head_dim, layer.config
    q, k, v = (x @ layer.qkv_proj.weight.T).unflatten(-1, (3, H, d)).unbind(2)
    rows = []
    for b in range(len(x)):
        outputs = []
        for t in range(x.shape[1]):
            seen = []
            for j in range(t, max(t - config.context, -1), -1):
                seen.append(j)
                if reset is not None and reset[b, j]:
                    break
            scores = torch.stack(
                [(_turn(q[b, t], t - j, config.rope_base) * k[b, j]).sum(-1) for j in seen]
            )
            weights = (scores / d**0.5).softmax(0)
            heads = sum(w[:, None] * v[b, j] for w, j in zip(weights, seen, strict=True))
            outputs.append(heads.flatten())
        rows.append(torch.stack(outputs))
    return torch.stack(rows) @ layer.out_proj.weight.T


CASES = [
    *itertools.product((1, 3, 8), (1, 2, 9, 16), ("none", "random")),
    *((4, 11, kind) for kind in KINDS),
]


@pytest.mark.parametrize(("context", "T", "kind"), CASES)
def test_it_is_masked_softmax_over_the_window_in_values_and_gradients(context, T, kind):
    layer, reset = _layer(context), pattern(kind, B, T)
    x = torch.randn(B, T, D, dtype=DOUBLE, requires_grad=True)
    y, _ = layer(x, None, reset)
    expected = _oracle(layer, x, reset)
    assert_close(y, expected, DOUBLE, T)
    weights = torch.randn_like(y)
    inputs = [x, *layer.parameters()]
    actual = torch.autograd.grad((y * weights).sum(), inputs)
    wanted = torch.autograd.grad((expected * weights).sum(), inputs)
    for left, right in zip(actual, wanted, strict=True):
        assert_close(left, right, DOUBLE, T, gradient=True)


def test_scores_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=DOUBLE)

    def score(a: int, b: int) -> Tensor:
        left, right = (rotation(torch.tensor([n]), 8, 100.0, DOUBLE) for n in (a, b))
        return (rotate(q, left) * rotate(k, right)).sum()

    for a, b, shift in ((5, 2, 1), (0, 0, 9), (3, 17, 12345)):
        assert_close(score(a + shift, b + shift), score(a, b), DOUBLE, 1)
    assert (score(5, 2) - score(5, 3)).abs() > 1e-3
    assert (score(5, 2) - score(2, 5)).abs() > 1e-3


def test_a_pair_turns_by_its_own_angle():
    # Width 4, base 100: pair (0, 2) turns by n radians, pair (1, 3) by n / 10.
    turn = rotation(torch.tensor([3]), 4, 100.0, DOUBLE)
    x = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]], dtype=DOUBLE)
    angle = torch.tensor([3.0, 0.3], dtype=DOUBLE)
    expected = torch.cat((angle.cos(), angle.sin()))
    assert_close(rotate(x, turn).flatten(), expected, DOUBLE, 1)


@pytest.mark.parametrize("context", [1, 3, 5])
def test_a_query_sees_exactly_the_last_context_steps(context):
    T, layer = 12, _layer(context)
    x = torch.randn(1, T, D, dtype=DOUBLE, requires_grad=True)
    y, _ = layer(x)
    for t in range(T):
        (gradient,) = torch.autograd.grad(y[0, t].square().sum(), x, retain_graph=True)
        felt = (gradient[0] != 0).any(-1)
        assert felt.nonzero().flatten().tolist() == list(range(max(0, t - context + 1), t + 1))


def test_the_first_step_of_a_memory_returns_its_own_value():
    layer = _layer(4)
    x = torch.randn(B, 5, D, dtype=DOUBLE)
    v = layer.qkv_proj(x)[..., -layer.num_heads * layer.head_dim :]
    y, _ = layer(x, None, pattern("all", B, 5))
    assert_close(y, layer.out_proj(v), DOUBLE, 1)


def test_after_a_window_without_end_the_scores_are_those_of_the_beginning():
    # Nothing counts the steps: the same last `context` inputs give the same bits.
    layer, same = _layer(3, dtype=torch.float32), torch.randn(1, 3, D)
    state = layer.initial_state(1)
    results = []
    for _ in range(200):
        for t in range(3):
            y, state = layer.step(same[:, t], state)
        results.append(y)
    assert torch.equal(results[1], results[-1])


def test_the_cost_of_a_step_does_not_grow():
    layer, x = _layer(4), torch.randn(B, 1, D, dtype=DOUBLE)[:, 0]
    state, costs, sizes = layer.initial_state(B), [], []
    for _ in range(20):
        with FlopCounterMode(display=False) as counter:
            _, state = layer.step(x, state)
        costs.append(counter.get_total_flops())
        sizes.append({key: value.shape for key, value in state.items()})
    assert costs[0] > 0
    assert len(set(costs)) == 1
    assert all(size == sizes[0] for size in sizes)


class _Largest(TorchDispatchMode):
    """Notes the most elements that any tensor made under it has."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return out


def test_memory_grows_with_the_length_and_not_with_its_square():
    layer, largest = _layer(4), {}
    for T in (256, 512):
        with _Largest() as mode:
            y, _ = layer(torch.randn(1, T, D, dtype=DOUBLE), None, pattern("random", 1, T))
            y.sum().backward()
        largest[T] = mode.elements
    assert largest[512] < 2.2 * largest[256]
    assert largest[512] < 512 * 512 / 4


@pytest.mark.parametrize(("context", "T"), [(3, 12), (16, 12)])
def test_a_broken_step_reaches_the_steps_that_see_it_and_no_other(context, T):
    layer = _layer(context)
    x = torch.randn(2, T, D, dtype=DOUBLE)
    x[:, 4] = float("nan")
    reset = torch.zeros(2, T, dtype=torch.bool)
    reset[0, 6] = True  # row 1 has none: there the window ends it
    y, last = layer(x, None, reset)
    broken = ~y.isfinite().all(-1)
    state, expected = layer.initial_state(2), []
    for t in range(T):
        out, state = layer.step(x[:, t], state, reset[:, t])
        expected.append(~out.isfinite().all(-1))
    assert torch.equal(broken, torch.stack(expected, 1))
    assert broken[0].nonzero().flatten().tolist() == [4, 5]
    assert broken[1].nonzero().flatten().tolist() == list(range(4, min(4 + context, T)))
    for key, value in state.items():
        assert torch.equal(last[key].isnan(), value.isnan())


def test_a_broken_step_leaves_the_gradients_after_a_reset_finite():
    layer = _layer(16)
    x = torch.randn(1, 9, D, dtype=DOUBLE)
    x[:, 2] = float("inf")
    x.requires_grad_()
    reset = torch.zeros(1, 9, dtype=torch.bool)
    reset[:, 5] = True
    y, _ = layer(x, None, reset)
    (gradient,) = torch.autograd.grad(y[:, 5:].square().sum(), x)
    (expected,) = torch.autograd.grad(layer(x[:, 5:])[0].square().sum(), x)
    assert_close(gradient[:, 5:], expected[:, 5:], DOUBLE, 9, gradient=True)
    assert (gradient[:, :5] == 0).all()


def test_any_width_has_an_even_head():
    for width, heads in ((1, 1), (5, 1), (5, 2), (33, None), (100, 3)):
        layer = AttentionLayer(width, AttentionConfig(num_heads=heads, context=2))
        assert layer.head_dim % 2 == 0
        assert layer(torch.randn(2, 3, width))[0].shape == (2, 3, width)


@pytest.mark.parametrize(
    ("name", "value"), [("num_heads", 0), ("context", 0), ("rope_base", 1.0)], ids=str
)
def test_a_bad_setting_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected .*, got {value}"):
        AttentionConfig(**{name: value})
