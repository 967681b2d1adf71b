"""The gated delta rule: chunks against the loop, the loop against matrices, and its laws."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from statewise.kernels.delta_rule.op import delta_rule, delta_rule_step
from statewise.kernels.dispatch import BackendError
from tests.resets import KINDS, pattern
from tests.tolerance import assert_close, assert_within, limit

DOUBLE = torch.float64
BACKENDS = ("reference", "torch")
NAMES = ("q", "k", "v", "g", "beta", "h0")
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def _make(
    B: int, T: int, H: int = 2, K: int = 5, V: int = 3, dtype: torch.dtype = DOUBLE
) -> dict[str, Tensor]:
    """Unit keys, beta in (0, 2), decays from 1 to exp(-2)."""
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    return {
        "q": torch.randn(B, T, H, K).to(dtype),
        "k": F.normalize(torch.randn(B, T, H, K), dim=-1).to(dtype),
        "v": torch.randn(B, T, H, V).to(dtype),
        "g": -2 * torch.rand(B, T, H).to(wide),
        "beta": 2 * torch.rand(B, T, H).to(wide),
        "h0": torch.randn(B, H, K, V).to(wide),
    }


def _results(
    arrays: dict[str, Tensor], reset: Tensor | None, **options: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Return outputs and final state, and the gradients for fixed random cotangents."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in arrays.items()}
    o, last = delta_rule(**leaves, reset=reset, **options)
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in (o, last)]
    gradients = torch.autograd.grad([o, last], list(leaves.values()), weights)
    return [o, last], list(gradients)


def _assert_results_close(actual: Any, expected: Any, dtype: torch.dtype, T: int) -> None:
    for left, right in zip(actual[0], expected[0], strict=True):
        assert_close(left, right, dtype, T)
    for left, right in zip(actual[1], expected[1], strict=True):
        assert_close(left, right, dtype, T, gradient=True)


def test_the_loop_is_a_product_of_matrices():
    # S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T, S cleared at a reset.
    T = 7
    x, reset = _make(1, T, H=1), pattern("adjacent", 1, T)
    S, outputs = x["h0"][0, 0], []
    for t in range(T):
        q, k, v, g, beta = (x[name][0, t, 0] for name in NAMES[:5])
        S = torch.zeros_like(S) if reset[0, t] else S
        S = g.exp() * (torch.eye(5, dtype=DOUBLE) - beta * k.outer(k)) @ S + beta * k.outer(v)
        outputs.append(q @ S)
    o, last = delta_rule(**x, reset=reset, backend="reference")
    assert_close(o[0, :, 0], torch.stack(outputs), DOUBLE, T)
    assert_close(last[0, 0], S, DOUBLE, T)


@pytest.mark.parametrize("T", [1, 2, 63, 64, 65, 130])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_equal_the_loop_in_values_and_gradients(T, kind):
    arrays, reset = _make(2, T), pattern(kind, 2, T)
    expected = _results(arrays, reset, backend="reference")
    _assert_results_close(_results(arrays, reset), expected, DOUBLE, T)


@pytest.mark.parametrize("chunk", [1, 2, 7, 16, 1000])
def test_the_chunk_changes_no_result(chunk):
    arrays, reset = _make(3, 33), pattern("random", 3, 33)
    expected = _results(arrays, reset, backend="reference")
    _assert_results_close(_results(arrays, reset, chunk=chunk), expected, DOUBLE, 33)


def test_a_reset_at_every_single_place_equals_the_loop():
    arrays = _make(9, 9)
    reset = torch.eye(9, dtype=torch.bool)
    expected = _results(arrays, reset, backend="reference")
    for chunk in (3, 4):
        _assert_results_close(_results(arrays, reset, chunk=chunk), expected, DOUBLE, 9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_narrow_inputs_stay_within_the_limit(dtype):
    arrays, reset = _make(2, 100, dtype=dtype), pattern("staggered", 2, 100)
    actual = _results(arrays, reset)
    exact = {name: value.to(DOUBLE) for name, value in arrays.items()}
    expected = _results(exact, reset, backend="reference")
    assert (actual[0][0].dtype, actual[0][1].dtype) == (dtype, torch.float32)
    for i, part in enumerate(actual):
        for left, right in zip(part, expected[i], strict=True):
            bound = limit(dtype, 100, gradient=i == 1 and dtype == torch.float32)
            assert_within(left, right, bound)


def test_small_decays_after_a_large_one_are_not_lost():
    # A running sum of g would be near -1e5 from step 1 on, where float32 cannot resolve 1e-3.
    arrays = _make(1, 20, dtype=torch.float32)
    arrays["g"] = torch.full((1, 20, 2), -1e-3)
    arrays["g"][:, 1] = -1e5
    exact = {name: value.to(DOUBLE) for name, value in arrays.items()}
    expected, _ = delta_rule(**exact, backend="reference")
    actual, _ = delta_rule(**arrays)
    assert_close(actual, expected, torch.float32, 20)


@pytest.mark.parametrize("kind", ["none", "staggered"])
def test_gradients_equal_finite_differences(kind):
    arrays, reset = _make(2, 5, H=1, K=2, V=2), pattern(kind, 2, 5)
    inputs = [value.requires_grad_() for value in arrays.values()]

    def function(*values: Tensor) -> tuple[Tensor, Tensor]:
        return delta_rule(**dict(zip(NAMES, values, strict=True)), reset=reset, chunk=2)

    assert torch.autograd.gradcheck(function, inputs, eps=1e-6, atol=1e-6)


# closed forms


@every_backend
def test_orthogonal_keys_are_stored_and_overwritten_exactly(backend):
    # beta = 1 replaces the value of a key and touches no other key.
    keys = torch.eye(4, dtype=DOUBLE)[[0, 1, 2, 1, 3]]
    v = torch.randn(1, 5, 1, 3, dtype=DOUBLE)
    ones = torch.ones(1, 5, 1, dtype=DOUBLE)
    q = k = keys[None, :, None]
    o, last = delta_rule(q, k, v, 0 * ones, ones, backend=backend, chunk=4)
    assert_close(o, v, DOUBLE, 5)
    assert_close(last[0, 0], v[0, [0, 3, 2, 4], 0], DOUBLE, 5)


@every_backend
def test_a_beta_of_two_flips_a_sign_and_so_computes_parity(backend):
    # S <- (1 - beta) S along the key: -1 for a one (beta 2), 1 for a zero (beta 0).
    bits = torch.rand(3, 130) < 0.5
    beta = (2.0 * bits)[..., None].double()
    k = torch.ones(3, 130, 1, 1, dtype=DOUBLE)
    h0 = torch.ones(3, 1, 1, 1, dtype=DOUBLE)
    o, last = delta_rule(k, k, 0 * k, 0 * beta, beta, h0=h0, backend=backend)
    parity = 1.0 - 2.0 * (bits.cumsum(1) % 2).double()
    assert torch.equal(o[..., 0, 0], parity)
    assert torch.equal(last.flatten(), parity[:, -1])
    # With beta below 1 the factor 1 - beta is positive and the sign never changes.
    o, _ = delta_rule(k, k, 0 * k, 0 * beta, 0.05 * beta, h0=h0, backend=backend)
    assert (o > 0).all()


@every_backend
def test_without_input_the_state_decays(backend):
    g = -torch.rand(2, 70, 1, dtype=DOUBLE)
    zeros = torch.zeros(2, 70, 1, 3, dtype=DOUBLE)
    h0 = torch.randn(2, 1, 3, 3, dtype=DOUBLE)
    _, last = delta_rule(zeros, zeros, zeros, g, 0 * g, h0=h0, backend=backend, chunk=16)
    assert_close(last, g.sum(1).exp()[..., None, None] * h0, DOUBLE, 70)


@every_backend
def test_a_decay_of_minus_infinity_forgets_everything(backend):
    arrays = _make(2, 12)
    arrays["g"][:, 6] = -torch.inf
    reset = torch.zeros(2, 12, dtype=torch.bool)
    reset[:, 6] = True
    arrays_cut = arrays | {"g": arrays["g"].clamp(min=-3.0)}
    o, last = delta_rule(**arrays, backend=backend, chunk=8)
    expected, expected_last = delta_rule(**arrays_cut, reset=reset, backend=backend, chunk=8)
    assert_close(o, expected, DOUBLE, 12)
    assert_close(last, expected_last, DOUBLE, 12)


# laws


@every_backend
def test_windows_compose(backend):
    arrays, reset = _make(2, 21), pattern("random", 2, 21)
    whole, whole_last = delta_rule(**arrays, reset=reset, backend=backend, chunk=8)
    for cut in (1, 8, 13, 20):
        first = {n: x if n == "h0" else x[:, :cut] for n, x in arrays.items()}
        o, between = delta_rule(**first, reset=reset[:, :cut], backend=backend, chunk=8)
        second = {n: between if n == "h0" else x[:, cut:] for n, x in arrays.items()}
        o2, last = delta_rule(**second, reset=reset[:, cut:], backend=backend, chunk=8)
        assert_close(torch.cat((o, o2), 1), whole, DOUBLE, 21)
        assert_close(last, whole_last, DOUBLE, 21)


def test_steps_equal_a_window():
    arrays, reset = _make(2, 6), pattern("staggered", 2, 6)
    o, last = delta_rule(**arrays, reset=reset)
    h, outputs = arrays["h0"], []
    for t in range(6):
        out, h = delta_rule_step(*(arrays[n][:, t] for n in NAMES[:5]), h, reset[:, t])
        outputs.append(out)
    assert_close(o, torch.stack(outputs, 1), DOUBLE, 6)
    assert_close(last, h, DOUBLE, 6)


@every_backend
@pytest.mark.parametrize("name", NAMES)
def test_nothing_broken_passes_a_reset_in_values_or_gradients(backend, name):
    arrays = _make(2, 12)
    reset = torch.zeros(2, 12, dtype=torch.bool)
    reset[:, 6] = True
    fresh = {n: x[:, 6:] for n, x in arrays.items() if n != "h0"}
    value = arrays[name].clone()
    value[:, 0 if name == "h0" else 2] = float("nan")
    leaves = {n: x.detach().requires_grad_() for n, x in (arrays | {name: value}).items()}
    o, last = delta_rule(**leaves, reset=reset, backend=backend, chunk=8)
    expected, expected_last = delta_rule(**fresh, backend="reference")
    assert_close(o[:, 6:], expected, DOUBLE, 12)
    assert_close(last, expected_last, DOUBLE, 12)
    if backend == "torch":
        loss = o[:, 6:].square().sum() + last.square().sum()
        for gradient in torch.autograd.grad(loss, list(leaves.values())):
            assert gradient.isfinite().all()


def test_a_broken_step_breaks_the_same_results_as_in_the_loop():
    arrays, reset = _make(2, 24), pattern("none", 2, 24)
    reset = torch.zeros(2, 24, dtype=torch.bool)
    reset[0, 13] = True
    arrays["v"][:, 9, 1] = float("nan")  # of one head
    o, last = delta_rule(**arrays, reset=reset, chunk=8)
    expected, expected_last = delta_rule(**arrays, reset=reset, backend="reference")
    assert torch.equal(o.isnan(), expected.isnan())
    assert torch.equal(last.isnan(), expected_last.isnan())
    assert o.isnan().any(-1).nonzero().tolist() == (
        [[0, t, 1] for t in range(9, 13)] + [[1, t, 1] for t in range(9, 24)]
    )


@pytest.mark.parametrize("shape", [(2, 0), (0, 3)], ids=str)
def test_an_empty_window_returns_the_state(shape):
    arrays = _make(*shape)
    o, last = delta_rule(**arrays)
    assert o.shape == (*shape, 2, 3)
    assert torch.equal(last, arrays["h0"])


def test_any_strides_give_the_same_result():
    arrays, reset = _make(2, 19), pattern("random", 2, 19)
    expected, _ = delta_rule(**arrays, reset=reset)
    turned = {n: x.transpose(0, 1).contiguous().transpose(0, 1) for n, x in arrays.items()}
    assert not turned["q"].is_contiguous()
    assert_close(delta_rule(**turned, reset=reset)[0], expected, DOUBLE, 19)


def test_it_compiles_into_one_graph():
    torch._dynamo.reset()
    arrays, reset = _make(2, 20), pattern("random", 2, 20)
    compiled = torch.compile(delta_rule, backend="aot_eager", fullgraph=True)
    leaves = {name: value.requires_grad_() for name, value in arrays.items()}
    gradients = []
    for run in (compiled, delta_rule):
        o, last = run(**leaves, reset=reset, chunk=8)
        loss = o.square().sum() + last.square().sum()
        gradients.append(torch.autograd.grad(loss, list(leaves.values())))
    for left, right in zip(*gradients, strict=True):
        assert_close(left, right, DOUBLE, 20, gradient=True)
    torch._dynamo.reset()


def test_autocast_does_not_reach_the_products():
    arrays = _make(2, 20, dtype=torch.float32)
    expected, _ = delta_rule(**arrays)
    with torch.autocast("cpu", torch.bfloat16):
        actual, _ = delta_rule(**arrays)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(2, 4, 2, 6)}, "q and k must be"),
        ({"v": torch.zeros(2, 3, 2, 3)}, "v \\(B, T, H, V\\)"),
        ({"g": torch.zeros(2, 4)}, "g must be \\(2, 4, 2\\), got \\(2, 4\\)"),
        ({"h0": torch.zeros(2, 2, 3, 5)}, "h0 must be \\(2, 2, 5, 3\\)"),
        ({"reset": torch.zeros(2, 4)}, "reset must be bool, got torch.float32"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"q": torch.zeros(2, 4, 2, 5).half()}, "q must be one of float32"),
    ],
    ids=["k", "v", "g", "h0", "reset", "chunk", "half"],
)
def test_what_does_not_fit_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        delta_rule(**(_make(2, 4) | change))
    assert "\n" not in str(caught.value)


def test_a_backend_that_does_not_exist_is_refused():
    with pytest.raises(BackendError, match="delta_rule: expected a backend of auto, torch"):
        delta_rule(**_make(2, 4), backend="cpu")
