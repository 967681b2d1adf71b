"""The linear scan h_t = a_t * prev_t + b_t for JAX arrays.

Two algorithms with equal results: a loop (`jax.lax.scan`), the faster one on CPUs, and a tree
(`jax.lax.associative_scan`), made for accelerators. The tree's operator carries the reset flag,
(a, b, c)_i . (a, b, c)_j, as in Lu et al. 2023, with selections instead of products.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from statewise.kernels.jax.arrays import (
    accumulate_dtype,
    expand_like,
    require_reset,
    require_shape,
    select,
)

Algorithm = Literal["auto", "sequential", "associative"]
ALGORITHMS = ("auto", "sequential", "associative")
OP = "linear_scan(jax)"
Elements = tuple[jax.Array, jax.Array, jax.Array]


def _join(left: Elements, right: Elements) -> Elements:
    (a_i, b_i, c_i), (a_j, b_j, c_j) = left, right
    cut = expand_like(c_j, b_j)
    # What does not pass is cleared before the product: 0 * inf would come back in the gradient.
    passed = jnp.where(cut, 0, b_i)
    return jnp.where(cut, 0, a_i) * a_j, a_j * passed + b_j, c_i | c_j


def _associative(
    a: jax.Array, b: jax.Array, h0: jax.Array, reset: jax.Array, h_init: jax.Array
) -> jax.Array:
    b = b + jnp.where(reset[..., None], a * h_init, 0)
    a = jnp.where(reset[..., None], 0, a)
    decay, h, cut = jax.lax.associative_scan(_join, (a, b, reset), axis=1)
    return h + decay * jnp.where(cut[..., None], 0, h0[:, None])


def _sequential(
    a: jax.Array, b: jax.Array, h0: jax.Array, reset: jax.Array, h_init: jax.Array
) -> jax.Array:
    def step(h: jax.Array, entry: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        a_t, b_t, flag = entry
        h = a_t * select(flag, h_init, h) + b_t
        return h, h

    _, h = jax.lax.scan(step, h0, tuple(x.swapaxes(0, 1) for x in (a, b, reset)))
    return h.swapaxes(0, 1)


def linear_scan(
    a: jax.Array,
    b: jax.Array,
    *,
    h0: jax.Array | None = None,
    reset: jax.Array | None = None,
    h_init: jax.Array | None = None,
    hold: jax.Array | None = None,
    reverse: bool = False,
    algorithm: Algorithm = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Scan along time with resets; arguments and results as `statewise.kernels.linear_scan`.

    Args:
        a: (B, T, D) or (D,), real or complex as b.
        b: (B, T, D).
        h0: (B, D), state before the first step; None means 0.
        reset: (B, T) bool; the state becomes `h_init` before step t reads b_t.
        h_init: (D,), what a reset restores; None means 0.
        hold: (B, T) bool; the state stays as it is.
        reverse: scan from T - 1 to 0.
        algorithm: "auto" is "sequential" where JAX runs on a CPU, else "associative".

    Returns:
        h (B, T, D) in the dtype of b, and the last state (B, D).

    Raises:
        ValueError: a shape, a dtype or the algorithm does not fit.
    """
    if b.ndim != 3:
        raise ValueError(f"{OP}: b must be (B, T, D), got {b.shape}")
    if algorithm not in ALGORITHMS:
        raise ValueError(f"{OP}: algorithm must be one of {', '.join(ALGORITHMS)}, got {algorithm}")
    B, T, D = b.shape
    require_shape(OP, "a", a, (B, T, D), (D,))
    require_shape(OP, "h0", h0, (B, D))
    require_shape(OP, "h_init", h_init, (D,))
    require_reset(OP, reset, (B, T))
    require_reset(OP, hold, (B, T))
    dtype = accumulate_dtype(OP, b.dtype)
    a_, b_ = jnp.broadcast_to(a, b.shape).astype(dtype), b.astype(dtype)
    h0_ = jnp.zeros((B, D), dtype) if h0 is None else h0.astype(dtype)
    init = jnp.zeros((D,), dtype) if h_init is None else h_init.astype(dtype)
    flags = jnp.zeros((B, T), jnp.bool_) if reset is None else reset
    if hold is not None:
        a_ = jnp.where(hold[..., None], 1, a_)
        b_ = jnp.where(hold[..., None], 0, b_)
    if reverse:
        a_, b_, flags = (x[:, ::-1] for x in (a_, b_, flags))
    if T == 0 or B == 0:
        return b, h0_
    tree = algorithm == "associative" or (algorithm == "auto" and jax.default_backend() != "cpu")
    h = (_associative if tree else _sequential)(a_, b_, h0_, flags, init)
    last = h[:, -1]
    return (h[:, ::-1] if reverse else h).astype(b.dtype), last
