"""The selective scan of Mamba (S6) for JAX arrays.

Paper: Gu & Dao 2023, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces". A loop
over time inside chunks whose inner states are computed again for the gradient, so that no
(B, T, E, N) array is kept.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from statewise.kernels.jax.arrays import accumulate_dtype, require_reset, require_shape, select

OP = "selective_scan(jax)"
CHUNK = 64
SOFTPLUS_THRESHOLD = 20.0


def _step(
    h: jax.Array, entry: tuple[jax.Array, ...], A: jax.Array, kept: jax.Array, signed: bool
) -> tuple[jax.Array, jax.Array]:
    """Advance h (B, E, N); entry is u, d (B, E), Bm, Cm (B, E, N), reset (B,)."""
    u, d, Bm, Cm, reset = entry
    decay = jnp.exp(d[..., None] * A)
    if signed:
        decay = 2 * decay - 1
    decay = jnp.where(jnp.isnan(kept), decay, jnp.nan_to_num(kept))
    h = decay * select(reset, jnp.zeros_like(h), h) + (d * u)[..., None] * Bm
    y = (Cm * h).sum(-1)
    return h, 2 * y.real if jnp.iscomplexobj(y) else y


def _softplus(x: jax.Array) -> jax.Array:
    return jnp.where(
        x > SOFTPLUS_THRESHOLD, x, jnp.log1p(jnp.exp(jnp.minimum(x, SOFTPLUS_THRESHOLD)))
    )


def _heads(x: jax.Array, E: int) -> jax.Array:
    """Turn (B, T, [G,] N) into (B, T, E, N) lazily: group g serves channels g E / G ..."""
    x = x[:, :, None] if x.ndim == 3 else x
    return jnp.repeat(x, E // x.shape[2], axis=2)


def _check(u: jax.Array, dt: jax.Array, A: jax.Array, **arrays: Any) -> None:
    if u.ndim != 3 or A.ndim != 2:
        raise ValueError(f"{OP}: u must be (B, T, E) and A (E, N), got {u.shape} and {A.shape}")
    (B, T, E), N = u.shape, A.shape[1]
    require_shape(OP, "dt", dt, (B, T, E))
    require_shape(OP, "A", A, (E, N))
    for name in ("Bm", "Cm"):
        groups = arrays[name].shape[2] if arrays[name].ndim == 4 else 1
        require_shape(OP, name, arrays[name], (B, T, N), (B, T, groups, N))
        if E % groups:
            raise ValueError(f"{OP}: the groups of {name} must divide E = {E}, got {groups}")
    require_shape(OP, "z", arrays["z"], (B, T, E))
    require_shape(OP, "D", arrays["D"], (E,))
    require_shape(OP, "dt_bias", arrays["dt_bias"], (E,))
    require_shape(OP, "h0", arrays["h0"], (B, E, N))
    require_shape(OP, "a_override", arrays["a_override"], (N,))
    require_reset(OP, arrays["reset"], (B, T))


def selective_scan(
    u: jax.Array,
    dt: jax.Array,
    A: jax.Array,
    Bm: jax.Array,
    Cm: jax.Array,
    *,
    D: jax.Array | None = None,
    z: jax.Array | None = None,
    dt_bias: jax.Array | None = None,
    dt_softplus: bool = True,
    decay: Literal["exp", "signed"] = "exp",
    h0: jax.Array | None = None,
    reset: jax.Array | None = None,
    a_override: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Run the selective scan; arguments and results as `statewise.kernels.selective_scan`.

    Args:
        u: (B, T, E), input; dt (B, T, E), step before bias and softplus; A (E, N), real or
            complex; Bm, Cm (B, T, N) or (B, T, G, N) with G dividing E, real or complex as A.
        dt: see u.
        A: see u.
        Bm: see u.
        Cm: see u.
        D: (E,), skip.
        z: (B, T, E), gate.
        dt_bias: (E,).
        dt_softplus: apply softplus to dt + dt_bias.
        decay: "exp" or "signed", 2 exp(d A) - 1.
        h0: (B, E, N).
        reset: (B, T) bool.
        a_override: (N,), NaN where the decay is computed, else the decay itself.

    Returns:
        y (B, T, E) in the dtype of u and the last state (B, E, N).

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    _check(u, dt, A, Bm=Bm, Cm=Cm, D=D, z=z, dt_bias=dt_bias, h0=h0, reset=reset,
           a_override=a_override)  # fmt: skip
    B, T, E = u.shape
    N = A.shape[1]
    dtype = accumulate_dtype(OP, u.dtype)
    state = jnp.result_type(A.dtype, dtype)
    h = jnp.zeros((B, E, N), state) if h0 is None else h0.astype(state)
    d = dt.astype(dtype) + (0 if dt_bias is None else dt_bias.astype(dtype))
    d = _softplus(d) if dt_softplus else d
    flags = jnp.zeros((B, T), jnp.bool_) if reset is None else reset
    kept = jnp.full((N,), jnp.nan, dtype) if a_override is None else a_override.astype(dtype)
    if T == 0 or B == 0:
        return u, h
    x = u.astype(dtype)
    padding = -T % min(CHUNK, T)
    entries = (x, d, Bm.astype(state), Cm.astype(state), flags)
    held = jnp.arange(T + padding) >= T

    @jax.checkpoint
    def chunk(h: jax.Array, part: Any) -> tuple[jax.Array, jax.Array]:
        def step(h: jax.Array, entry: Any) -> tuple[jax.Array, jax.Array]:
            *values, hold = entry
            u_t, d_t, B_t, C_t, flag = values
            B_t, C_t = (_heads(m[:, None], E)[:, 0] for m in (B_t, C_t))
            after, y = _step(h, (u_t, d_t, B_t, C_t, flag), A, kept, decay == "signed")
            return jnp.where(hold, h, after), y

        return jax.lax.scan(step, h, part)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x.swapaxes(0, 1), [(0, padding)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(-1, min(CHUNK, T), *x.shape[1:])

    parts = (*(split(entry) for entry in entries), held.reshape(-1, min(CHUNK, T)))
    last, y = jax.lax.scan(chunk, h, parts)
    y = y.reshape(-1, B, E)[:T].swapaxes(0, 1)
    y = y if D is None else y + D.astype(dtype) * x
    y = y if z is None else y * jax.nn.silu(z.astype(dtype))
    return y.astype(u.dtype), last
