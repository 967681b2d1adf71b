"""The scan of Mamba-2 (SSD) for JAX arrays, in chunks of matrix products.

Paper: Dao & Gu 2024, "Transformers are SSMs". Resets are masks between segments; they never
enter the sums of log-decays, where a large negative number would cancel the small ones.
"""

import jax
import jax.numpy as jnp

from statewise.kernels.jax.arrays import accumulate_dtype, require_reset, require_shape

OP = "ssd_scan(jax)"


def _check(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    Bm: jax.Array,
    Cm: jax.Array,
    D: jax.Array | None,
    h0: jax.Array | None,
    reset: jax.Array | None,
) -> None:
    if x.ndim != 4 or Bm.ndim != 4:
        raise ValueError(
            f"{OP}: x must be (B, T, heads, P) and Bm (B, T, G, N), got {x.shape} and {Bm.shape}"
        )
    B, T, H, P = x.shape
    G, N = Bm.shape[2:]
    if H % G:
        raise ValueError(f"{OP}: the groups of Bm must divide the {H} heads, got {G}")
    require_shape(OP, "dt", dt, (B, T, H))
    require_shape(OP, "A", A, (H,))
    require_shape(OP, "Bm", Bm, (B, T, G, N))
    require_shape(OP, "Cm", Cm, (B, T, G, N))
    require_shape(OP, "D", D, (H,), (H, P))
    require_shape(OP, "h0", h0, (B, H, P, N))
    require_reset(OP, reset, (B, T))


def _chunk(h: jax.Array, part: tuple[jax.Array, ...], A: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Advance h (B, H, P, N) over one chunk; part is x, dt, Bm, Cm (heads repeated), segment."""
    x, dt, Bm, Cm, segment = part  # (B, Q, H, P), (B, Q, H), (B, Q, H, N) twice, (B, Q)
    decay = jnp.cumsum(dt * A, 1)  # (B, Q, H), log
    Q = x.shape[1]
    same = segment[:, :, None] == segment[:, None, :]
    seen = (same & jnp.tril(jnp.ones((Q, Q), jnp.bool_)))[..., None]
    # Masked before exp: a masked infinity would be 0 * inf in the gradient.
    pairs = jnp.where(seen, decay[:, :, None] - decay[:, None, :], -jnp.inf)
    weight = jnp.exp(pairs) * jnp.einsum("bihn,bjhn->bijh", Cm, Bm)
    driven = dt[..., None] * x
    y = jnp.einsum("bijh,bjhp->bihp", weight, driven)
    carried = (segment == 0)[..., None]  # no reset so far in this chunk
    factor = jnp.exp(jnp.where(carried, decay, -jnp.inf))
    # Selections on both sides: a state that is not finite reaches nothing behind a reset, and
    # neither does its gradient.
    reading = jnp.where(carried[..., None], Cm, 0)
    read = jnp.einsum("bihn,bhpn,bih->bihp", reading, h, factor)
    y = y + jnp.where(carried[..., None], read, 0)
    kept = (segment == segment[:, -1:])[..., None]
    to_end = jnp.exp(jnp.where(kept, decay[:, -1:] - decay, -jnp.inf))
    update = jnp.einsum("bjhn,bjhp,bjh->bhpn", Bm, driven, to_end)
    through = carried[:, -1, :, None, None]
    return jnp.where(through, factor[:, -1][..., None, None] * h, 0) + update, y


def ssd_scan(
    x: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    Bm: jax.Array,
    Cm: jax.Array,
    *,
    chunk: int = 64,
    D: jax.Array | None = None,
    h0: jax.Array | None = None,
    reset: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Run the scan; arguments and results as `statewise.kernels.ssd_scan`.

    Args:
        x: (B, T, H, P), input of H heads.
        dt: (B, T, H), positive steps.
        A: (H,), negative.
        Bm: (B, T, G, N), G dividing H.
        Cm: (B, T, G, N).
        chunk: steps per chunk, >= 1; the result does not depend on it.
        D: (H,) or (H, P), skip.
        h0: (B, H, P, N).
        reset: (B, T) bool.

    Returns:
        y (B, T, H, P) in the dtype of x and the last state (B, H, P, N).

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    _check(x, dt, A, Bm, Cm, D, h0, reset)
    if chunk < 1:
        raise ValueError(f"{OP}: chunk must be at least 1, got {chunk}")
    B, T, H, P = x.shape
    dtype = accumulate_dtype(OP, x.dtype)
    h = jnp.zeros((B, H, P, Bm.shape[3]), dtype) if h0 is None else h0.astype(dtype)
    if T == 0 or B == 0:
        return x, h
    flags = jnp.zeros((B, T), jnp.bool_) if reset is None else reset
    Q = min(chunk, T)
    padding = -T % Q
    repeats = H // Bm.shape[2]

    def split(v: jax.Array) -> jax.Array:
        v = jnp.pad(v, [(0, 0), (0, padding)] + [(0, 0)] * (v.ndim - 2))
        return v.reshape(B, -1, Q, *v.shape[2:]).swapaxes(0, 1)

    def body(h: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        x_c, dt_c, B_c, C_c, flag = part
        segment = jnp.cumsum(flag, 1)
        heads = (jnp.repeat(m, repeats, axis=2) for m in (B_c, C_c))
        return _chunk(h, (x_c, dt_c, *heads, segment), A.astype(dtype))

    parts = tuple(split(v) for v in (*(v.astype(dtype) for v in (x, dt, Bm, Cm)), flags))
    last, y = jax.lax.scan(jax.checkpoint(body), h, parts)
    y = y.swapaxes(0, 1).reshape(B, -1, H, P)[:, :T]
    if D is not None:
        y = y + (D if D.ndim == 2 else D[:, None]).astype(dtype) * x.astype(dtype)
    return y.astype(x.dtype), last
