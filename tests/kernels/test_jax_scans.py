"""The scans for JAX arrays against those for torch: values, gradients, jit, vmap, resets."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import Tensor

from statewise import kernels
from statewise.kernels import jax as jax_kernels
from tests.resets import KINDS, pattern
from tests.tolerance import assert_close

B, T, E, N, G = 2, 11, 6, 3, 2
HEADS, P = 4, 3
DOUBLE = torch.float64
Arguments = dict[str, Any]


@pytest.fixture(autouse=True)
def _double_precision() -> Iterator[None]:
    # Compiling takes nearly all of the time of these small cases, and its optimisations most of it.
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.enable_x64(True):
        yield
    jax.config.update("jax_disable_most_optimizations", before)


def _randn(*shape: int, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def _linear(is_complex: bool, varying: bool = True) -> Arguments:
    dtype = torch.complex128 if is_complex else DOUBLE
    shape = (B, T, E) if varying else (E,)
    a = 0.9 * torch.nn.functional.normalize(_randn(*shape, dtype=dtype), dim=-1)
    options = {"h0": (B, E), "h_init": (E,)}
    return {"a": a, "b": _randn(B, T, E, dtype=dtype)} | {
        name: _randn(*shape, dtype=dtype) for name, shape in options.items()
    }


def _selective(is_complex: bool = False, **options: Any) -> Arguments:
    state = torch.complex128 if is_complex else DOUBLE
    A = -torch.rand(E, N, dtype=DOUBLE) - 0.1
    if is_complex:
        A = torch.complex(A, 3 * _randn(E, N))
    return {
        "u": _randn(B, T, E),
        "dt": _randn(B, T, E),
        "A": A,
        "Bm": _randn(B, T, G, N, dtype=state),
        "Cm": _randn(B, T, N, dtype=state),
        "D": _randn(E),
        "z": _randn(B, T, E),
        "dt_bias": _randn(E),
        "h0": _randn(B, E, N, dtype=state),
    } | options


def _ssd(**options: Any) -> Arguments:
    return {
        "x": _randn(B, T, HEADS, P),
        "dt": torch.rand(B, T, HEADS, dtype=DOUBLE),
        "A": -torch.rand(HEADS, dtype=DOUBLE) - 0.1,
        "Bm": _randn(B, T, G, N),
        "Cm": _randn(B, T, G, N),
        "D": _randn(HEADS, P),
        "h0": _randn(B, HEADS, P, N),
    } | options


CASES: dict[str, tuple[str, Callable[[], Arguments]]] = {
    "linear": ("linear_scan", lambda: _linear(False)),
    "linear-constant": ("linear_scan", lambda: _linear(False, varying=False)),
    "linear-complex": ("linear_scan", lambda: _linear(True)),
    "linear-reverse-hold": (
        "linear_scan",
        lambda: _linear(False) | {"reverse": True, "hold": torch.rand(B, T) < 0.3},
    ),
    "selective": ("selective_scan", _selective),
    "selective-complex": ("selective_scan", lambda: _selective(True)),
    "selective-signed": ("selective_scan", lambda: _selective(decay="signed", z=None)),
    "selective-override": (
        "selective_scan",
        lambda: _selective(a_override=torch.tensor([float("nan"), 1.0, 0.0], dtype=DOUBLE)),
    ),
    "ssd": ("ssd_scan", _ssd),
    "ssd-short-chunks": ("ssd_scan", lambda: _ssd(chunk=4)),
}
every_case = pytest.mark.parametrize("name", list(CASES))


def _to_jax(value: Any) -> Any:
    return jnp.asarray(value.detach().numpy()) if isinstance(value, Tensor) else value


def _to_torch(value: jax.Array) -> Tensor:
    return torch.from_numpy(np.array(value))


def _both(name: str, reset: Tensor | None, **extra: Any) -> tuple[Any, Any, Arguments]:
    op, make = CASES[name]
    arguments = make() | {"reset": reset}
    ours = getattr(jax_kernels, op)
    return getattr(kernels, op), lambda **kw: ours(**kw, **extra), arguments


@functools.cache
def _jitted(name: str, **extra: Any) -> Callable[[Arguments], Any]:
    """Return a case's op for arrays alone: it is compiled once for all patterns of resets."""
    _, jax_op, arguments = _both(name, None, **extra)
    fixed = {key: v for key, v in arguments.items() if not isinstance(v, Tensor | None)}
    return jax.jit(lambda arrays: jax_op(**arrays, **fixed))


def _arrays(arguments: Arguments) -> Arguments:
    return {key: _to_jax(v) for key, v in arguments.items() if isinstance(v, Tensor | None)}


@every_case
@pytest.mark.parametrize("kind", KINDS)
def test_values_equal_those_of_torch(name, kind):
    torch_op, _, arguments = _both(name, pattern(kind, B, T))
    expected = torch_op(**arguments)
    actual = _jitted(name)(_arrays(arguments))
    for got, want in zip(actual, expected, strict=True):
        assert_close(_to_torch(got), want, DOUBLE, T)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*((name, "staggered") for name in CASES), ("linear", "none"), ("ssd", "none")],
)
def test_gradients_equal_those_of_torch(name, kind):
    torch_op, jax_op, arguments = _both(name, pattern(kind, B, T))
    leaves = {
        key: value.requires_grad_()
        for key, value in arguments.items()
        if isinstance(value, Tensor) and value.dtype != torch.bool and key != "a_override"
    }
    y, last = torch_op(**arguments)
    weights = torch.randn_like(y), torch.randn_like(last)

    def loss(values: Any) -> Any:
        fixed = {key: _to_jax(v) for key, v in arguments.items() if key not in leaves}
        outputs = jax_op(**values, **fixed)
        pairs = zip(outputs, map(_to_jax, weights), strict=True)
        return sum((out * jnp.conj(weight)).real.sum() for out, weight in pairs)

    total = sum((out * w.conj()).real.sum() for out, w in zip((y, last), weights, strict=True))
    expected = torch.autograd.grad(total, list(leaves.values()))
    actual = jax.jit(jax.grad(loss))({key: _to_jax(value) for key, value in leaves.items()})
    for key, want in zip(leaves, expected, strict=True):
        # JAX's gradient of a complex number is the conjugate of torch's.
        assert_close(_to_torch(jnp.conj(actual[key])), want, DOUBLE, T, gradient=True)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("linear")])
@pytest.mark.parametrize("kind", KINDS)
def test_the_tree_equals_the_loop(name, kind):
    arrays = _arrays(_both(name, pattern(kind, B, T))[2])
    loop, tree = (_jitted(name, algorithm=way) for way in ("sequential", "associative"))
    for got, want in zip(tree(arrays), loop(arrays), strict=True):
        assert_close(_to_torch(got), _to_torch(want), DOUBLE, T)


@pytest.mark.parametrize("name", ["linear", "selective", "ssd"])
def test_jit_and_vmap_change_nothing(name):
    _, jax_op, arguments = _both(name, pattern("staggered", B, T))
    values = {key: _to_jax(value) for key, value in arguments.items()}
    expected = jax_op(**values)
    for got, want in zip(jax.jit(lambda v: jax_op(**v))(values), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)
    stacked = {key: None if v is None else jnp.stack([v, v]) for key, v in values.items()}
    for got, want in zip(jax.vmap(lambda v: jax_op(**v))(stacked), expected, strict=True):
        np.testing.assert_allclose(got[1], want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "selective", "ssd"])
@pytest.mark.parametrize("algorithm", ["sequential", "associative"])
def test_a_state_that_is_not_finite_does_not_pass_a_reset(name, algorithm):
    if name != "linear" and algorithm == "associative":
        return
    extra = {"algorithm": algorithm} if name == "linear" else {}
    reset = torch.zeros(B, T, dtype=torch.bool)
    reset[:, 4] = True
    _, jax_op, arguments = _both(name, reset, **extra)
    values = {key: _to_jax(value) for key, value in arguments.items()}
    values["h0"] = jnp.full_like(values["h0"], jnp.nan)
    first = next(iter(values))

    def loss(x: jax.Array) -> jax.Array:
        y, last = jax_op(**(values | {first: x}))
        return (y[:, 4:] ** 2).sum() + (last**2).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(values[first])
    assert jnp.isfinite(value)
    assert jnp.isfinite(gradient[:, 4:]).all()


def test_bfloat16_inputs_keep_a_float32_state():
    a, b = jnp.full((1, 9, 2), 0.999), jnp.ones((1, 9, 2), jnp.bfloat16)
    h, last = jax_kernels.linear_scan(a, b)
    assert (h.dtype, last.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(last[0, 0], sum(0.999**k for k in range(9)), rtol=1e-5)


@pytest.mark.parametrize("T", [0, 1])
@pytest.mark.parametrize("name", ["linear", "selective", "ssd"])
def test_short_windows_are_allowed(name, T):
    _, jax_op, arguments = _both(name, None)
    values = {key: _to_jax(value) for key, value in arguments.items()}
    short = {
        key: v[:, :T] if key in ("a", "b", "u", "dt", "x", "z", "Bm", "Cm") else v
        for key, v in values.items()
    }
    y, last = jax_op(**short)
    assert y.shape[1] == T
    assert last.shape == values["h0"].shape
    if T == 0:
        assert (last == values["h0"]).all()


@pytest.mark.parametrize(
    ("op", "changes", "message"),
    [
        ("linear_scan", {"h0": jnp.zeros((3, 3))}, r"h0 must be \(2, 6\), got \(3, 3\)"),
        ("linear_scan", {"algorithm": "fast"}, "sequential, associative, got fast"),
        ("linear_scan", {"b": jnp.zeros((2, 11, 6), jnp.float16)}, "got float16"),
        ("linear_scan", {"reset": jnp.zeros((2, 11))}, "reset must be bool"),
        ("selective_scan", {"Bm": jnp.zeros((2, 11, 4, 3))}, "must divide E = 6, got 4"),
        ("ssd_scan", {"chunk": 0}, "at least 1, got 0"),
    ],
)
def test_a_wrong_argument_is_named(op, changes, message):
    make = {"linear_scan": lambda: _linear(False), "selective_scan": _selective, "ssd_scan": _ssd}
    values = {key: _to_jax(value) for key, value in make[op]().items()} | changes
    with pytest.raises(ValueError, match=message):
        getattr(jax_kernels, op)(**values)
